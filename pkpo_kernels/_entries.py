"""From what users give of flat rewards to what is computed with: entries, k and scale, checked."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels._arguments import Groups
from pkpo_kernels.backends import registry
from pkpo_kernels.conversion import to_host
from pkpo_kernels.maths.weights import Array, Estimator
from pkpo_kernels.typing import ImplementationName, Undersized
from pkpo_kernels.validation import (
    FLOATS,
    INTEGERS,
    checked_array,
    checked_name,
    dtype_name,
    host_integers,
    is_integer,
    library_of,
)

GroupScale = Literal["sum", "mean", "batch_mean"]
NaN = Literal["drop", "propagate"]


class Options(NamedTuple):
    """How groups are transformed, checked."""

    estimator: Estimator
    scale: GroupScale | float
    undersized: Undersized
    implementation: ImplementationName | None


class Entries(NamedTuple):
    """Entries, checked."""

    library: str
    rewards: Array  # (N,)
    kept: Array | None  # (N,) bool, what `where` says
    valid: Array | None  # (N,) bool: kept, and scored; None where all are
    dtype: Any  # of the result
    traced: bool  # a program is being made, and some values are unknown

    @property
    def n(self) -> int:
        return int(self.rewards.shape[0])

    @classmethod
    def of(cls, rewards: Array, where: Any, nan: str = "drop", traced: bool = False) -> Entries:
        array, library = checked_array("rewards", rewards)
        if len(array.shape) != 1:
            raise ValueError(
                f"rewards must be flat, one for each entry; got shape {tuple(array.shape)}:"
                " pk.transform takes matrices"
            )
        xp = registry.namespace(library)
        kept = None
        if where is not None:
            kept = as_bool(of_library("where", where, library, "rewards"))
            if len(kept.shape) == 2:
                kept = kept.any(-1)
            if tuple(kept.shape) != tuple(array.shape):
                raise ValueError(
                    f"where must be (N,) or (N, T) for N={array.shape[0]} rewards;"
                    f" got shape {tuple(where.shape if library_of(where) else kept.shape)}"
                )
            if library == "torch":
                kept = kept.to(array.device)
        valid = kept
        if nan == "drop" and dtype_name(array.dtype) in FLOATS:
            scored = array == array
            valid = scored if kept is None else scored & kept
            if library == "numpy" and valid.all():
                valid = None
        # What is left out may hold anything, integers that are not exact, too.
        checked = array if valid is None else xp.where(valid, array, xp.zeros_like(array))
        if array is not rewards and valid is None:
            checked = rewards
        dtype = Groups.of(checked, None, 0).dtype
        return cls(library, array, kept, valid, dtype, traced)

    @property
    def on_cpu(self) -> bool:
        """Tell whether a tensor or JAX array lies on one CPU, where the host sees it."""
        if self.library == "jax" and not self.traced:
            devices = self.rewards.devices()
            return len(devices) == 1 and next(iter(devices)).platform == "cpu"
        return self.library == "torch" and not self.traced and self.rewards.device.type == "cpu"

    def on_host(self) -> Entries:
        """Give all to NumPy, rewards in a dtype that it knows."""
        rewards = self.rewards
        if dtype_name(rewards.dtype) not in ("float32", "float64"):
            # As the library computes them, integers too.
            rewards = rewards.float() if self.library == "torch" else rewards.astype("float32")
        array = to_host(rewards)
        kept, valid = (None if x is None else to_host(x) for x in (self.kept, self.valid))
        valid = None if valid is None or valid.all() else valid
        return Entries("numpy", array, kept, valid, array.dtype, traced=False)

    def like(self, result: NDArray[Any]) -> Array:
        """Give a result (N,) of NumPy the library, device and dtype that this one's has."""
        if self.library == "torch":
            import torch

            return torch.from_numpy(result).to(self.dtype)
        import jax

        return jax.device_put(result.astype(self.dtype), self.rewards.device)


def on_host(k: Any) -> Any:
    """Give an array of ks to NumPy, () as an integer; one below 1 as one too large for any group,
    which leaves it to `undersized` as well."""
    if isinstance(k, int) or library_of(k) == "numpy":
        return k
    values = to_host(k)
    values = np.where(values >= 1, values, np.iinfo(np.int32).max)
    return values.astype(np.int64) if values.ndim else int(values)


def as_bool(x: Array) -> Array:
    """Tell what is not 0: (...) of any dtype → (...) bool."""
    return x.bool() if hasattr(x, "bool") else x.astype(bool)


def of_library(argument: str, value: Any, library: str, beside: str) -> Array:
    value, of = checked_array(argument, value)
    if of != library:
        raise TypeError(
            f"{argument} must be of the same array library as {beside} ({library}); got"
            f" a {of} array"
        )
    return value


def checked_scale(scale: Any, estimator: Estimator) -> GroupScale | float:
    if not isinstance(scale, str) and isinstance(scale, (int, float, np.integer, np.floating)):
        if isinstance(scale, bool) or not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, or a name; got {scale}")
        return float(scale)
    name = checked_name("scale", scale, get_args(GroupScale))
    if name == "mean" and estimator.normalized:
        raise ValueError(
            f"scale must be 'sum', 'batch_mean' or a number for estimator {estimator.name!r}, which"
            " is normalised by itself; got 'mean'"
        )
    return name


def checked_k(k: Any, entries: Entries) -> Any:
    """An integer, or whole numbers () or (N,) of the rewards' library; none so large that it would
    overflow there."""
    most = entries.n + 1
    library = library_of(k)
    if library in ("torch", "jax"):
        if library != entries.library:
            raise TypeError(
                f"k must be integers, or of the same array library as rewards ({entries.library});"
                f" got a {library} array"
            )
        if dtype_name(k.dtype) not in INTEGERS:
            raise TypeError(f"k must be of an integer dtype; got {dtype_name(k.dtype)}")
        k = k.to(entries.rewards.device) if library == "torch" else k
    else:
        k = int(k) if is_integer(k) else host_integers("k", k)
        k = int(k) if not isinstance(k, int) and k.ndim == 0 else k
        least = k if isinstance(k, int) else k.min(initial=1)
        if least < 1:
            raise ValueError(f"k must be at least 1; got k={least}")
        if isinstance(k, int):
            return min(k, most)
        k = np.minimum(k, most).astype(np.int64)
    if len(k.shape) > 0 and tuple(k.shape) != (entries.n,):
        raise ValueError(
            f"k must be an integer, or one for each of {entries.n} rewards; got shape"
            f" {tuple(k.shape)}"
        )
    return k
