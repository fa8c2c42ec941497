"""The public functions: check the arguments, fold to (rows, samples), hand over to one
implementation, unfold."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, get_args, overload

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels import dispatch
from pkpo_kernels.estimators import ESTIMATORS, MAX_AT_K, Array, Estimator
from pkpo_kernels.typing import (
    DeviceArray,
    EstimatorName,
    FlatHostIntegers,
    FlatIntegers,
    Floating,
    HostIntegers,
    ImplementationName,
    Integers,
    NestedNumbers,
    NumpyMask,
    Scale,
    Undersized,
)
from pkpo_kernels.validation import (
    FLOATS,
    INTEGERS,
    checked_array,
    checked_axis,
    checked_mask,
    checked_name,
    dtype_name,
    host_integers,
    inexact_integers,
    is_integer,
    library_of,
    not_exact,
)

SCALES: tuple[Scale, ...] = get_args(Scale)
UNDERSIZED: tuple[Undersized, ...] = get_args(Undersized)


@overload
def transform(
    rewards: NDArray[Floating],
    k: HostIntegers,
    *,
    estimator: EstimatorName = ...,
    where: NumpyMask | None = ...,
    axis: int = ...,
    scale: Scale = ...,
    undersized: Undersized = ...,
    implementation: ImplementationName | None = ...,
) -> NDArray[Floating]: ...
@overload
def transform(
    rewards: NDArray[np.bool_ | np.integer[Any]] | NestedNumbers,
    k: HostIntegers,
    *,
    estimator: EstimatorName = ...,
    where: NumpyMask | None = ...,
    axis: int = ...,
    scale: Scale = ...,
    undersized: Undersized = ...,
    implementation: ImplementationName | None = ...,
) -> NDArray[np.float64]: ...
@overload
def transform(
    rewards: DeviceArray,
    k: Integers,
    *,
    estimator: EstimatorName = ...,
    where: DeviceArray | None = ...,
    axis: int = ...,
    scale: Scale = ...,
    undersized: Undersized = ...,
    implementation: ImplementationName | None = ...,
) -> DeviceArray: ...


def transform(
    rewards: Array,
    k: int | Array,
    *,
    estimator: EstimatorName = "sloo_minus_one",
    where: Array | None = None,
    axis: int = -1,
    scale: Scale = "sum",
    undersized: Undersized = "zero",
    implementation: ImplementationName | None = None,
) -> Array:
    """Replace the rewards of every group of samples by rewards whose policy gradient maximises
    max@k (pass@k on 0/1).

    The outcome is a constant of the loss: detached in torch, under stop_gradient in JAX. Use it as
    the advantage: the gradient of Σ_i transform(rewards)_i · log p(sample_i), summed over a group,
    estimates that of max@k.

    Args:
        rewards: (..., n) floating, integer or bool: n samples of one task along `axis`, any leading
          shape. A NumPy array or nested list, a torch.Tensor, a jax.Array or a tracer. A group with
          a NaN or an infinity, or whose range (largest − smallest) overflows float32 (float64 for
          float64 rewards), becomes NaN, and no other group. Integers are exact up to 2^24 in
          tensors and JAX arrays, which are computed in float32, and up to 2^53 in NumPy, which
          refuses larger ones.
        k: how many samples the trained policy will get, 1 ≤ k ≤ n. An integer, or integers that
          broadcast against the leading shape (one k a group). In JAX it may be traced, in torch a
          tensor on the device; such values are never read on the host, and where one is not in 1..n
          its group counts as undersized. One known on the host must be at least 1, and what all n
          samples admit unless `where` or undersized="clip" leaves that to each group. A new k never
          recompiles; to torch.compile pass it as a tensor, since a new Python integer there is a
          new program.
        estimator: a name from `ESTIMATORS`: "sloo_minus_one" (the default, Eq 33), "sloo" (Eq 29),
          "s" (Eq 8 and 19), "centered", "passk_training".
        where: (..., n) bool, in the shape of rewards. A sample left out (False) gets 0 and is no
          part of its group.
        axis: the axis of the samples.
        scale: "sum", the paper's, for losses that sum over a group's samples; "mean" multiplies by
          the group's size, for trainers that average over samples. ("passk_training" is normalised
          by its own paper, and takes "sum" alone.)
        undersized: what groups with too few samples for k get: "zero" (no signal), "nan", or "clip"
          (such a group uses the largest k that it admits).
        implementation: a name from `available_implementations()`, or None to choose. A name never
          falls back.

    Returns:
        An array of the same library, shape and device, in the same floating dtype (integers and
        bool: the library's default float). float16, bfloat16 and float32 are computed in float32 or
        better. ±inf where the exact result is too large for that dtype.

    Raises:
        ValueError: an argument's value is wrong: k < 1, k > n, k = n for "sloo" or "centered", an
          unknown name, `where` of another shape, an axis that is not there.
        TypeError: an argument's type or dtype is wrong, arrays of two libraries are mixed, or one
          is sparse, nested or distributed.

    Source: Walder & Karkhanis 2025, "Pass@K Policy Optimization", arXiv 2505.15201.

    >>> transform([0.0, 1.0, 0.0, 3.0], k=2)
    array([0.        , 0.33333333, 0.        , 1.33333333])
    >>> transform([[1, 0, 0], [1, 1, 0]], k=2, estimator="s")
    array([[0.66666667, 0.33333333, 0.33333333],
           [0.66666667, 0.66666667, 0.66666667]])
    """
    chosen = ESTIMATORS[checked_name("estimator", estimator, ESTIMATORS)]
    checked_name("scale", scale, SCALES)
    checked_name("undersized", undersized, UNDERSIZED)
    if scale == "mean" and chosen.standardised:
        raise ValueError(
            f"scale must be 'sum' for estimator {chosen.name!r}, which is normalised by itself;"
            " got 'mean'"
        )
    groups = _Groups.of(rewards, where, axis)
    rows_k = _k_of_rows(k, groups, chosen, clip=undersized == "clip")
    module = dispatch.choose(implementation, groups.library, groups.rewards)
    if groups.n == 0:
        return groups.unfold(groups.full(0, math.nan))
    out = module.transform_rows(
        groups.rewards,
        rows_k,
        groups.where,
        estimator=chosen,
        scale=scale,
        undersized=undersized,
        dtype=groups.dtype,
    )
    return groups.unfold(out)


@overload
def max_at_k(
    rewards: NDArray[Floating],
    k: FlatHostIntegers,
    *,
    where: NumpyMask | None = ...,
    axis: int = ...,
    implementation: ImplementationName | None = ...,
) -> NDArray[Floating]: ...
@overload
def max_at_k(
    rewards: NDArray[np.bool_ | np.integer[Any]] | NestedNumbers,
    k: FlatHostIntegers,
    *,
    where: NumpyMask | None = ...,
    axis: int = ...,
    implementation: ImplementationName | None = ...,
) -> NDArray[np.float64]: ...
@overload
def max_at_k(
    rewards: DeviceArray,
    k: FlatIntegers,
    *,
    where: DeviceArray | None = ...,
    axis: int = ...,
    implementation: ImplementationName | None = ...,
) -> DeviceArray: ...


def max_at_k(
    rewards: Array,
    k: int | Array,
    *,
    where: Array | None = None,
    axis: int = -1,
    implementation: ImplementationName | None = None,
) -> Array:
    """The unbiased estimate of E[best of k samples] of every group, from its n samples; on 0/1
    rewards it is pass@k.

    Args:
        rewards: (..., n), as for `transform`.
        k: an integer, or a sequence of integers: several k from one sort. On the host each must be
          at least 1, and at most n without `where`.
        where: (..., n) bool; samples left out are no part of their group.
        axis: the axis of the samples.
        implementation: a name from `available_implementations()`, or None to choose.

    Returns:
        The leading shape of rewards for one k, with one more axis at the end for a sequence of ks;
        a constant of the loss, in the floating dtype of rewards (integers and bool: the library's
        default float). NaN where a group has fewer than k samples, for every k where it has a NaN
        or an infinity or its range overflows (see `transform`), and ±inf where the exact result is
        too large for the dtype.

    Raises:
        ValueError, TypeError: as `transform` does.

    Source: Walder & Karkhanis 2025, arXiv 2505.15201, Eq 12–14.

    >>> max_at_k([0.0, 1.0, 0.0, 3.0], 2)
    array(1.83333333)
    >>> max_at_k([[1, 0, 0], [1, 1, 0]], [1, 2, 3])
    array([[0.33333333, 0.66666667, 1.        ],
           [0.66666667, 1.        , 1.        ]])
    """
    groups = _Groups.of(rewards, where, axis)
    ks, several = _sequence_of_ks(k, groups)
    module = dispatch.choose(implementation, groups.library, groups.rewards)
    if groups.n == 0:
        out = groups.full(len(ks), math.nan)
    else:
        out = module.max_at_k_rows(groups.rewards, ks, groups.where, dtype=groups.dtype)
    return out.reshape(*groups.leading, len(ks)) if several else out.reshape(groups.leading)


@overload
def pass_at_k(  # type: ignore[overload-overlap]
    n: int | np.integer[Any], c: int | np.integer[Any], k: int | np.integer[Any]
) -> float: ...
@overload
def pass_at_k(n: HostIntegers, c: HostIntegers, k: HostIntegers) -> NDArray[np.float64]: ...


def pass_at_k(n: HostIntegers, c: HostIntegers, k: HostIntegers) -> Any:
    """The unbiased estimate of pass@k from counts: 1 − C(n−c, k)/C(n, k).

    Args:
        n: samples of a task, n ≥ 1.
        c: how many of them are correct, 0 ≤ c ≤ n.
        k: how many samples the policy gets, k ≥ 1. n, c and k are integers or integer arrays that
          broadcast.

    Returns:
        float64 of the broadcast shape, relative error below 1e-12 for n to 10^6; NaN where k > n.

    Raises:
        ValueError: n < 1, c outside 0..n, k < 1, or shapes that do not broadcast.
        TypeError: an argument is not integral.

    Source: Walder & Karkhanis 2025, arXiv 2505.15201, Eq 3; Chen et al. 2021, arXiv 2107.03374.

    >>> pass_at_k(10, 3, [1, 5, 10, 11])
    array([0.3       , 0.91666667, 1.        ,        nan])
    """
    counts = (_counts("n", n), _counts("c", c), _counts("k", k))
    try:
        n, c, k = np.broadcast_arrays(*counts)
    except ValueError:
        shapes = ", ".join(str(count.shape) for count in counts)
        raise ValueError(f"n, c and k must have shapes that broadcast; got {shapes}") from None
    for name, value, wrong, right in (
        ("n", n, n < 1, "at least 1"),
        ("c", c, (c < 0) | (c > n), "within 0..n"),
        ("k", k, k < 1, "at least 1"),
    ):
        if wrong.any():
            raise ValueError(
                f"{name} must be {right}; got {name}={value[wrong][0]} with n={n[wrong][0]}"
            )
    triples, inverse = np.unique(
        np.stack([n.ravel(), c.ravel(), k.ravel()]), axis=1, return_inverse=True
    )
    values = np.array([_pass_at_k_of_one(*map(int, triple)) for triple in triples.T])
    return values[inverse.reshape(-1)].reshape(n.shape)[()]


def _counts(argument: str, value: Any) -> NDArray[np.int64]:
    counts, largest = host_integers(argument, value), np.iinfo(np.int64).max
    if counts.size and counts.max() > largest:
        raise ValueError(f"{argument} must be at most {largest}; got {counts.max()}")
    return counts.astype(np.int64)


def _pass_at_k_of_one(n: int, c: int, k: int) -> float:
    if k > n:
        return math.nan
    if c + k > n:
        return 1.0
    # C(n−c, k)/C(n, k) = Π_{i=n−c+1..n} (1 − k/i), and c and k may change places: the shorter
    # product. Its logarithm, and expm1, keep the relative error small where pass@k is small.
    fewer, more = sorted((c, k))
    return 0.0 - math.expm1(np.log1p(-more / np.arange(n - fewer + 1, n + 1)).sum())


class _Groups(NamedTuple):
    """Rewards as a matrix, with what it takes to lead a result back."""

    library: str
    rewards: Array  # (rows, n)
    where: Array | None  # (rows, n)
    dtype: Any  # of the result
    leading: tuple[int, ...]
    axis: int
    xp: Any

    @classmethod
    def of(cls, rewards: Array, where: Array | None, axis: int) -> _Groups:
        array, library = checked_array("rewards", rewards)
        if where is not None:
            where = checked_mask(where, array, library)
        inexact = inexact_integers(rewards, array) if library == "numpy" else None
        if inexact is not None and where is not None:
            inexact &= where
        if inexact is not None and inexact.any():
            raise ValueError(not_exact("rewards", array[inexact][0]))
        xp = dispatch.namespace(library)
        dtype = _result_dtype(array, library)
        axis = checked_axis(axis, array.shape)
        leading = (*array.shape[:axis], *array.shape[axis + 1 :])
        n = array.shape[axis]

        def fold(x: Array) -> Array:
            if axis < len(leading):
                x = xp.moveaxis(x, axis, -1)
            return x.reshape(math.prod(leading), n)

        return cls(
            library, fold(array), None if where is None else fold(where), dtype, leading, axis, xp
        )

    @property
    def n(self) -> int:
        return self.rewards.shape[-1]

    def full(self, columns: int, value: float) -> Array:
        """(rows, columns) of one value, where there is nothing to compute."""
        there = {"device": self.rewards.device} if self.library == "torch" else {}
        return self.xp.full((self.rewards.shape[0], columns), value, dtype=self.dtype, **there)

    def unfold(self, out: Array) -> Array:
        """(rows, n) → the shape that the rewards came in."""
        out = out.reshape(*self.leading, out.shape[-1])
        return self.xp.moveaxis(out, -1, self.axis) if self.axis < len(self.leading) else out


def _result_dtype(rewards: Array, library: str) -> Any:
    name = dtype_name(rewards.dtype)
    if name in FLOATS:
        return rewards.dtype
    if name not in (*INTEGERS, "bool"):
        raise TypeError(
            f"rewards must be of dtype {', '.join(FLOATS)}, an integer dtype or bool; got {name}"
        )
    if library == "torch":
        return dispatch.namespace(library).get_default_dtype()
    if library == "jax":
        return dispatch.namespace(library).asarray(0.0).dtype
    return np.dtype(np.float64)


def _k_of_rows(k: Any, groups: _Groups, estimator: Estimator, *, clip: bool) -> int | Array:
    """k as an integer, or as an array of the library's, () or (rows,)."""
    library = library_of(k)
    if library in ("torch", "jax"):
        _check_k_array(k, library, groups)
    elif is_integer(k):
        return _whole_k(int(k), groups, estimator, clip=clip)
    else:
        values = host_integers("k", k)
        if values.ndim == 0:
            return _whole_k(int(values), groups, estimator, clip=clip)
        k = _on_device(_bounded_k(values, groups, estimator, clip=clip), groups)
    if len(k.shape) == 0:
        return k
    try:
        return groups.xp.broadcast_to(k, groups.leading).reshape(groups.rewards.shape[0])
    except (ValueError, RuntimeError):
        raise ValueError(
            f"k must broadcast against the leading shape of rewards, {groups.leading};"
            f" got shape {tuple(k.shape)}"
        ) from None


def _whole_k(k: int, groups: _Groups, estimator: Estimator, *, clip: bool) -> int | Array:
    """An integer that implementations may take for one that rows of all n samples admit."""
    _check_k(k, k, groups, estimator, clip=clip)
    if groups.where is not None:
        # An export's symbolic n is no integer, and may not compare.
        return min(k, groups.n + 1) if isinstance(groups.n, int) else k
    largest = estimator.largest_k(groups.n)
    if k <= largest:
        return k
    # Groups too small for any k are left to the implementation, as with a k that nobody knows.
    return largest if largest >= 1 else _on_device(groups.n + 1, groups)


def _bounded_k(k: NDArray[Any], groups: _Groups, estimator: Estimator, *, clip: bool) -> Array:
    """ks known on the host, checked, and none so large that it would overflow on a device."""
    if k.size:
        _check_k(k.min(), k.max(), groups, estimator, clip=clip)
    return np.minimum(k, groups.n + 1).astype(np.int64)


def _check_k(least: int, most: int, groups: _Groups, estimator: Estimator, *, clip: bool) -> None:
    """Raise for ks known on the host: below 1, or too large for all groups alike."""
    n = groups.n
    if least < 1:
        raise ValueError(f"k must be at least 1; got k={least}")
    if clip or groups.where is not None:
        return  # each group has a way out, or its own n
    if most > n:
        raise ValueError(f"k must be at most the number of samples; got k={most} with n={n}")
    if most > estimator.largest_k(n):
        raise ValueError(
            f"k must be less than the number of samples for estimator {estimator.name!r}, since"
            f" no subset of k=n avoids a sample; got k={most} with n={n}"
        )


def _on_device(k: int | NDArray[Any], groups: _Groups) -> Array:
    if groups.library == "torch":
        return groups.xp.asarray(k, device=groups.rewards.device)
    return groups.xp.asarray(k)


def _check_k_array(k: Array, library: str | None, groups: _Groups) -> None:
    """A torch tensor or a JAX array: its values stay where they are."""
    if library != groups.library:
        raise TypeError(
            f"k must be integers, or of the same array library as rewards ({groups.library});"
            f" got a {library} array"
        )
    checked_array("k", k)
    if dtype_name(k.dtype) not in INTEGERS:
        raise TypeError(f"k must be of an integer dtype; got {dtype_name(k.dtype)}")


def _sequence_of_ks(k: Any, groups: _Groups) -> tuple[list[int | Array], bool]:
    """→ every k as an integer or a () array of the library's, and whether k was a sequence."""
    library = library_of(k)
    ks: list[int | Array]
    if library in ("torch", "jax"):
        _check_k_array(k, library, groups)
        shape = tuple(k.shape)
        ks = [k] if shape == () else list(k)
    elif is_integer(k):
        shape, ks = (), [int(k)]
    # Lists without NumPy: torch.compile follows it.
    elif isinstance(k, list | tuple | range) and all(map(is_integer, k)):
        shape, ks = (len(k),), [int(one) for one in k]
    else:
        values = host_integers("k", k)
        shape, ks = values.shape, values.reshape(-1).tolist()
    if len(shape) > 1:
        raise ValueError(f"k must be an integer or a flat sequence of integers; got shape {shape}")
    if 0 in shape:
        raise ValueError("k must name at least one k; got an empty sequence")
    return [
        _whole_k(one, groups, MAX_AT_K, clip=False) if isinstance(one, int) else one for one in ks
    ], len(shape) == 1
