"""From what users give of flat rewards to what is computed with: entries, k and scale, checked."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels._arguments import Groups
from pkpo_kernels._tracing import is_traced
from pkpo_kernels.backends import registry
from pkpo_kernels.backends._devices import on_one_cpu
from pkpo_kernels.conversion import (
    as_dtype,
    k_to_host,
    result_from_host,
    rewards_to_host,
    to_host,
)
from pkpo_kernels.maths.weights import Array, Estimator
from pkpo_kernels.typing import ImplementationName, Undersized
from pkpo_kernels.validation import (
    FLOATS,
    INTEGERS,
    check_device,
    checked_array,
    checked_library,
    checked_name,
    dtype_name,
    host_integers,
    is_integer,
    library_of,
    shown,
)

GroupScale = Literal["sum", "mean", "batch_mean"]
NaN = Literal["drop", "propagate"]


class Rules(NamedTuple):
    """Hold how groups are transformed, checked."""

    estimator: Estimator
    scale: GroupScale | float
    undersized: Undersized
    implementation: ImplementationName | None

    def of_equal_groups(self) -> Rules:
        """Say the same of groups of one size, all of them valid."""
        if self.scale != "batch_mean":
            return self
        # N / G is every group's own size.
        return self._replace(scale="sum" if self.estimator.normalized else "mean")


class Entries(NamedTuple):
    """Hold what a flat call was given, checked."""

    library: str
    rewards: Array  # (N,)
    kept: Array | None  # (N,) bool, what `where` says
    valid: Array | None  # (N,) bool: kept, and scored; None where all are
    dtype: Any  # of the result
    traced: bool  # a program is being made, and some values are unknown
    drops_nan: bool = False  # a NaN leaves an entry out, whether there is one or not

    @property
    def n(self) -> int:
        return int(self.rewards.shape[0])

    @classmethod
    def of(cls, rewards: Array, where: Any, nan: str = "drop", traced: bool = False) -> Entries:
        """Check rewards (N,) and where, (N,) or (N, T)."""
        array, library = checked_array("rewards", rewards)
        if len(array.shape) != 1:
            raise ValueError(
                f"rewards must be flat, one for each entry; got shape {tuple(array.shape)}:"
                " pk.transform takes matrices"
            )
        if library == "jax":
            if not isinstance(array.shape[0], int):  # a symbol of jax.export
                raise ValueError(
                    f"rewards must have a known length; got shape {tuple(array.shape)}: export for"
                    " a number of them, or pk.transform of a matrix"
                )
            # Inside a program even what is made of constants is traced.
            traced = traced or is_traced(array == array)
        xp = registry.namespace(library)
        kept = None
        if where is not None:
            kept = entries_kept(checked_where(where, library))
            if tuple(kept.shape) != tuple(array.shape):
                raise ValueError(
                    f"where must be (N,) or (N, T) for N={array.shape[0]} rewards;"
                    f" got shape {tuple(where.shape if library_of(where) else kept.shape)}"
                )
            check_device("where", kept, array, library)
        valid = kept
        drops_nan = nan == "drop" and dtype_name(array.dtype) in FLOATS
        if drops_nan:
            valid = _valid(array, kept, library, traced)
        if library == "numpy" and valid is not None and valid.all():
            valid = None
        # A list as it was written, where NumPy may have rounded its integers: of those that count.
        dtype = Groups.of(rewards, valid if library == "numpy" else None, 0).dtype
        # What is left out may hold anything: in torch nobody reads it, and two operations are
        # spared.
        if valid is not None and library != "torch":
            array = xp.where(valid, array, xp.zeros_like(array))
        if library == "torch":
            traced = traced or array.is_meta  # values are unknown there, too
            if dtype_name(array.dtype) in ("uint16", "uint32"):  # which torch can hardly index
                array = array.to(xp.int64)
        return cls(library, array, kept, valid, dtype, traced, drops_nan)

    def of_another(self, rewards: Array, kept: Array | None) -> Entries:
        """Hold tensors (N,) of another call of the same form."""
        valid = _valid(rewards, kept, self.library, self.traced) if self.drops_nan else kept
        return self._replace(rewards=rewards, kept=kept, valid=valid)

    @property
    def there(self) -> dict[str, Any]:
        """Tell torch's functions where the entries lie."""
        return {"device": self.rewards.device} if self.library == "torch" else {}

    @property
    def on_cpu(self) -> bool:
        """Tell whether a tensor or JAX array lies on one CPU, where the host sees it."""
        return not self.traced and on_one_cpu(self.library, self.rewards)

    def on_host(self) -> Entries:
        """Give all to NumPy, rewards in a dtype that it knows."""
        array = rewards_to_host(self.rewards, self.library, self.dtype)
        kept, valid = (None if x is None else to_host(x) for x in (self.kept, self.valid))
        valid = None if valid is None or valid.all() else valid
        return Entries("numpy", array, kept, valid, array.dtype, traced=False)

    def from_host(self, result: NDArray[Any]) -> Array:
        """Give NumPy's result (N,) the library and device of these entries, and its dtype."""
        return result_from_host(result, self.rewards, self.library, self.dtype)


def _valid(array: Array, kept: Array | None, library: str, traced: bool) -> Array | None:
    """Tell which of the entries that are kept are not NaN: (N,) bool, None where all are kept and
    the host sees that none is."""
    scored = _scored(array, library, traced)
    if scored is None or kept is None:
        return kept if scored is None else scored
    return scored & kept


def _scored(array: Array, library: str, traced: bool) -> Array | None:
    """Tell which entries are not NaN: (N,) bool, None where the host sees that none is."""
    if library == "numpy" or (not traced and on_one_cpu(library, array)):
        # Of tensors, too: torch's threads, once at work, would wait for more beside NumPy's. Of
        # JAX's arrays, since a mask of theirs takes longer than all the rest.
        host = to_host(array)
        scored: Array = host == host
        if scored.all():
            return None
        if library != "jax":
            return scored if library == "numpy" else registry.namespace(library).from_numpy(scored)
    return array == array


def k_on_host(k: Any) -> Any:
    """Give an array of ks to NumPy, as `k_to_host`; one below 1 as one too large for any group,
    which makes it undersized as well, and is no error."""
    k, most = k_to_host(k), (1 << 31) - 1
    if isinstance(k, int):
        return k if k >= 1 else most
    return np.where(k >= 1, k, most)


def checked_where(where: Any, library: str) -> Array:
    """Check a mask (...) of any dtype, for rewards of a library: → (...) bool."""
    mask = checked_library("where", where, library, "rewards")
    if library == "numpy" and mask.dtype.kind in "USTmM":
        raise TypeError(f"where must be bool or numbers; got {shown(where)}")
    return as_bool(mask)


def entries_kept(mask: Array) -> Array:
    """Tell which entries a mask keeps: (N,) or (N, T) of any dtype → (N,) bool."""
    mask = as_bool(mask)
    return mask.any(-1) if len(mask.shape) == 2 else mask


def as_bool(x: Array) -> Array:
    """Tell what is not 0: (...) of any dtype → (...) bool."""
    return as_dtype(x, registry.namespace("torch").bool if library_of(x) == "torch" else bool)


def checked_scale(scale: Any, estimator: Estimator) -> GroupScale | float:
    """Check a scale: a name that the estimator admits, or a finite number."""
    if isinstance(scale, (int, float, np.integer, np.floating)):
        try:
            number = math.nan if isinstance(scale, bool) else float(scale)
        except OverflowError:  # an integer that is larger than any float
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"scale must be a finite number, or a name; got {shown(scale)}")
        return number
    name = checked_name("scale", scale, get_args(GroupScale))
    if name == "mean" and estimator.normalized:
        raise ValueError(
            f"scale must be 'sum', 'batch_mean' or a number for estimator {estimator.name!r}, which"
            " is normalised by itself; got 'mean'"
        )
    return name


def checked_k(k: Any, entries: Entries, most: int | None = None) -> Any:
    """Check k → an integer, or whole numbers () or (N,) where the rewards are, those that the host
    knows at most `most`: as none would overflow there, one more than there are entries."""
    most = entries.n + 1 if most is None else most
    library = library_of(k)
    if library in ("torch", "jax"):
        checked_library("k", k, entries.library, "rewards")
        if dtype_name(k.dtype) not in INTEGERS:
            raise TypeError(f"k must be of an integer dtype; got {dtype_name(k.dtype)}")
        if library == "torch":
            k = k.to(entries.rewards.device, registry.namespace(library).int64)
    else:
        # An integer without NumPy: torch.compile follows it.
        values = k if is_integer(k) else host_ks(k)
        if is_integer(k) or values.ndim == 0:
            _at_least_1(int(values))
            return min(int(values), most)
        _at_least_1(values.min(initial=1))
        k = _where_rewards_are(np.minimum(values, most).astype(np.int64), entries)
    if len(k.shape) > 0 and tuple(k.shape) != (entries.n,):
        raise ValueError(
            f"k must be an integer, or one for each of {entries.n} rewards; got shape"
            f" {tuple(k.shape)}"
        )
    return k


def host_ks(k: Any) -> NDArray[Any]:
    """Check integers that the host knows; none at all are integers, too."""
    return (
        np.zeros(0, np.int64) if isinstance(k, (list, tuple)) and not k else host_integers("k", k)
    )


def _at_least_1(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1; got k={k}")


def _where_rewards_are(k: NDArray[np.int64], entries: Entries) -> Array:
    xp = registry.namespace(entries.library)
    if entries.library == "jax":
        return xp.asarray(k, xp.int32)
    return k if entries.library == "numpy" else xp.from_numpy(k).to(entries.rewards.device)
