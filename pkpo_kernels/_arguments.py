"""From what users give to what backends take: groups of samples, folded to rows, and their k."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.backends import registry
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.maths.weights import Array, Estimator
from pkpo_kernels.validation import (
    FLOATS,
    INTEGERS,
    checked_array,
    checked_axis,
    checked_mask,
    dtype_name,
    first_inexact,
    host_integers,
    inexact_integers,
    is_integer,
    library_of,
    not_exact,
)


class Groups(NamedTuple):
    """Groups of samples, checked."""

    library: str
    rewards: Array  # (..., n), the samples on any axis
    where: Array | None  # the same
    dtype: Any  # of the result
    axis: int  # of the samples, counted from the front

    @classmethod
    def of(cls, rewards: Array, where: Array | None, axis: int) -> Groups:
        array, library = checked_array("rewards", rewards)
        if where is not None:
            where = checked_mask(where, array, library)
        inexact = inexact_integers(rewards, array) if library == "numpy" else None
        if inexact is not None and where is not None:
            inexact &= where
        if inexact is not None and inexact.any():
            raise ValueError(not_exact("rewards", first_inexact(rewards, array, inexact)))
        dtype = _result_dtype(array, library)
        return cls(library, array, where, dtype, checked_axis(axis, array.shape))

    @property
    def n(self) -> int:
        return self.rewards.shape[self.axis]

    @property
    def n_is_open(self) -> bool:
        """Whether n is a symbol of JAX's export, which need not compare with k."""
        return self.library == "jax" and not isinstance(self.n, int)

    @property
    def leading(self) -> tuple[int, ...]:
        return (*self.rewards.shape[: self.axis], *self.rewards.shape[self.axis + 1 :])

    def full(self, columns: int, value: float) -> Array:
        """(rows, columns) of one value, where there is nothing to compute."""
        xp = registry.namespace(self.library)
        there = {"device": self.rewards.device} if self.library == "torch" else {}
        return xp.full((math.prod(self.leading), columns), value, dtype=self.dtype, **there)

    @property
    def lie_in_rows(self) -> bool:
        """Tell whether tensors lie in memory as (rows, n) one after the other."""
        return all(
            x is None or (self.axis == x.ndim - 1 and x.is_contiguous())
            for x in (self.rewards, self.where)
        )

    def rows(self) -> tuple[Array, Array | None]:
        """Fold rewards and mask: (..., n) → (rows, n)."""
        return self._fold(self.rewards), None if self.where is None else self._fold(self.where)

    @property
    def _is_matrix(self) -> bool:
        return self.axis == 1 and self.rewards.ndim == 2

    def _fold(self, x: Array) -> Array:
        if self._is_matrix:
            return x
        if self.axis < len(self.leading):
            x = registry.namespace(self.library).moveaxis(x, self.axis, -1)
        return x.reshape(math.prod(self.leading), self.n)

    def unfold(self, out: Array) -> Array:
        """(rows, n) → the shape that the rewards came in."""
        if self._is_matrix:
            return out
        out = out.reshape(*self.leading, out.shape[-1])
        if self.axis < len(self.leading):
            out = registry.namespace(self.library).moveaxis(out, -1, self.axis)
        return out


def _result_dtype(rewards: Array, library: str) -> Any:
    name = dtype_name(rewards.dtype)
    if name in FLOATS:
        return rewards.dtype
    if name not in (*INTEGERS, "bool"):
        raise TypeError(
            f"rewards must be of dtype {', '.join(FLOATS)}, an integer dtype or bool; got {name}"
        )
    if library == "torch":
        return registry.namespace(library).get_default_dtype()
    if library == "jax":
        return registry.namespace(library).asarray(0.0).dtype
    return np.dtype(np.float64)


def k_of_groups(k: Any, groups: Groups, estimator: Estimator, *, clip: bool) -> int | Array:
    """k as an integer, or as an array of the library's that broadcasts against the leading
    shape."""
    library = library_of(k)
    if library in ("torch", "jax"):
        k = _checked_k_array(k, library, groups)
    elif is_integer(k):
        return _whole_k(int(k), groups, estimator, clip=clip)
    else:
        values = host_integers("k", k)
        if values.ndim == 0:
            return _whole_k(int(values), groups, estimator, clip=clip)
        k = _on_device(_bounded_k(values, groups, estimator, clip=clip), groups)
    shape, leading = tuple(k.shape), groups.leading
    aligned = leading[len(leading) - len(shape) :]
    if len(shape) > len(leading) or any(
        size != 1 and size != whole for size, whole in zip(shape, aligned, strict=True)
    ):
        raise ValueError(
            f"k must broadcast against the leading shape of rewards, {leading}; got shape {shape}"
        )
    return k


def _whole_k(k: int, groups: Groups, estimator: Estimator, *, clip: bool) -> int | Array:
    """An integer that implementations may take for one that rows of all n samples admit."""
    _check_k(k, k, groups, estimator, clip=clip)
    if groups.where is not None:
        # An export's symbolic n is no integer, and may not compare.
        return min(k, groups.n + 1) if isinstance(groups.n, int) else k
    if groups.n_is_open:
        return k
    largest = estimator.largest_k(groups.n)
    if k <= largest or not isinstance(groups.n, int):
        return k
    # Groups too small for any k are left to the implementation, as with a k that nobody knows.
    return largest if largest >= 1 else _on_device(groups.n + 1, groups)


def _bounded_k(k: NDArray[Any], groups: Groups, estimator: Estimator, *, clip: bool) -> Array:
    """ks known on the host, checked, and none so large that it would overflow on a device."""
    if k.size:
        _check_k(k.min(), k.max(), groups, estimator, clip=clip)
    return np.minimum(k, groups.n + 1).astype(np.int64)


def _check_k(least: int, most: int, groups: Groups, estimator: Estimator, *, clip: bool) -> None:
    """Raise for ks known on the host: below 1, or too large for all groups alike."""
    n = groups.n
    if least < 1:
        raise ValueError(f"k must be at least 1; got k={least}")
    if clip or groups.where is not None or groups.n_is_open:
        return  # each group has a way out, or its own n, or one that is known later
    if most > n:
        raise ValueError(f"k must be at most the number of samples; got k={most} with n={n}")
    if most > estimator.largest_k(n):
        raise ValueError(
            f"k must be less than the number of samples for estimator {estimator.name!r}, since"
            f" no subset of k=n avoids a sample; got k={most} with n={n}"
        )


def _on_device(k: int | NDArray[Any], groups: Groups) -> Array:
    if groups.library == "torch":
        return registry.namespace(groups.library).asarray(k, device=groups.rewards.device)
    return registry.namespace(groups.library).asarray(k)


def _checked_k_array(k: Array, library: str | None, groups: Groups) -> Array:
    """A torch tensor or a JAX array: its values stay where they are."""
    if library != groups.library:
        raise TypeError(
            f"k must be integers, or of the same array library as rewards ({groups.library});"
            f" got a {library} array"
        )
    k, _ = checked_array("k", k)
    if dtype_name(k.dtype) not in INTEGERS:
        raise TypeError(f"k must be of an integer dtype; got {dtype_name(k.dtype)}")
    return k


def checked_ks(k: Any, groups: Groups) -> int | tuple[int, ...] | Array:
    """k as an integer or several, or as an array of the library's, () or (number of ks,)."""
    library = library_of(k)
    if library in ("torch", "jax"):
        k = _checked_k_array(k, library, groups)
        shape = tuple(k.shape)
    elif is_integer(k):
        shape, k = (), int(k)
    # Lists without NumPy: torch.compile follows it.
    elif isinstance(k, list | tuple | range) and all(map(is_integer, k)):
        shape, k = (len(k),), tuple(int(one) for one in k)
    else:
        values = host_integers("k", k)
        shape, k = values.shape, tuple(values.reshape(-1).tolist())
        k = k if shape else k[0]
    if len(shape) > 1:
        raise ValueError(f"k must be an integer or a flat sequence of integers; got shape {shape}")
    if 0 in shape:
        raise ValueError("k must name at least one k; got an empty sequence")
    if isinstance(k, tuple):
        return tuple(_whole_k(one, groups, MAX_AT_K, clip=False) for one in k)
    return _whole_k(k, groups, MAX_AT_K, clip=False) if isinstance(k, int) else k
