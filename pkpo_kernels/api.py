"""The public functions: check the arguments, fold to (rows, samples), hand over to one
implementation, unfold."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, get_args, overload

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.backends import registry
from pkpo_kernels.maths.estimators import ESTIMATORS, MAX_AT_K
from pkpo_kernels.maths.weights import Array, Estimator
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
    if scale == "mean" and chosen.normalized:
        raise ValueError(
            f"scale must be 'sum' for estimator {chosen.name!r}, which is normalised by itself;"
            " got 'mean'"
        )
    groups = _Groups.of(rewards, where, axis)
    k = _k_of_groups(k, groups, chosen, clip=undersized == "clip")
    options = {"estimator": chosen, "scale": scale, "undersized": undersized}
    return _computed(_transform, groups, k, implementation, options)


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
    return _computed(_max_at_k, groups, _checked_ks(k, groups), implementation, {})


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
    return np.asarray(np.maximum(counts, np.iinfo(np.int64).min)).astype(np.int64)


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
    """Groups of samples, checked."""

    library: str
    rewards: Array  # (..., n), the samples on any axis
    where: Array | None  # the same
    dtype: Any  # of the result
    axis: int  # of the samples, counted from the front

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
        dtype = _result_dtype(array, library)
        return cls(library, array, where, dtype, checked_axis(axis, array.shape))

    @property
    def n(self) -> int:
        return self.rewards.shape[self.axis]

    @property
    def leading(self) -> tuple[int, ...]:
        return (*self.rewards.shape[: self.axis], *self.rewards.shape[self.axis + 1 :])

    def full(self, columns: int, value: float) -> Array:
        """(rows, columns) of one value, where there is nothing to compute."""
        xp = registry.namespace(self.library)
        there = {"device": self.rewards.device} if self.library == "torch" else {}
        return xp.full((math.prod(self.leading), columns), value, dtype=self.dtype, **there)

    def fold(self, x: Array) -> Array:
        """(..., n) → (rows, n)."""
        if self.axis < len(self.leading):
            x = registry.namespace(self.library).moveaxis(x, self.axis, -1)
        return x.reshape(math.prod(self.leading), self.n)

    def unfold(self, out: Array) -> Array:
        """(rows, n) → the shape that the rewards came in."""
        out = out.reshape(*self.leading, out.shape[-1])
        if self.axis < len(self.leading):
            out = registry.namespace(self.library).moveaxis(out, -1, self.axis)
        return out


def _computed(
    compute: Callable[..., Array],
    groups: _Groups,
    k: Any,
    implementation: str | None,
    options: dict[str, Any],
) -> Array:
    """What compute makes of the groups, by an implementation that serves them where they lie."""
    if groups.library == "jax":
        from pkpo_kernels.backends import jax_sharding

        layout = jax_sharding.layout_of(groups.rewards, k, groups.where, groups.axis)
        if layout is not None:
            shard = jax_sharding.one_shard(groups.rewards)
            options["module"] = registry.choose(implementation, groups.library, shard)
            reduces = compute is _max_at_k
            return jax_sharding.on_every_device(compute, groups, k, options, layout, reduces)
    module = registry.choose(implementation, groups.library, groups.rewards)
    return compute(groups, k, module=module, **options)


def _transform(groups: _Groups, k: int | Array, *, module: ModuleType, **options: Any) -> Array:
    """→ the shape of the rewards."""
    if groups.n == 0:
        return groups.unfold(groups.full(0, math.nan))
    if not isinstance(k, int) and len(k.shape) > 0:
        xp = registry.namespace(groups.library)
        k = xp.broadcast_to(k, groups.leading).reshape(math.prod(groups.leading))
    rewards = groups.fold(groups.rewards)
    where = None if groups.where is None else groups.fold(groups.where)
    return groups.unfold(module.transform_rows(rewards, k, where, dtype=groups.dtype, **options))


def _max_at_k(groups: _Groups, k: Any, *, module: ModuleType) -> Array:
    """→ the leading shape, and for several ks an axis of them."""
    several = isinstance(k, tuple) or (not isinstance(k, int) and len(k.shape) > 0)
    ks = list(k) if several else [k]
    if groups.n == 0:
        out = groups.full(len(ks), math.nan)
    else:
        rewards = groups.fold(groups.rewards)
        where = None if groups.where is None else groups.fold(groups.where)
        out = module.max_at_k_rows(rewards, ks, where, dtype=groups.dtype)
    return out.reshape(*groups.leading, len(ks)) if several else out.reshape(groups.leading)


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


def _k_of_groups(k: Any, groups: _Groups, estimator: Estimator, *, clip: bool) -> int | Array:
    """k as an integer, or as an array of the library's that broadcasts against the leading
    shape."""
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
    shape, leading = tuple(k.shape), groups.leading
    aligned = leading[len(leading) - len(shape) :]
    if len(shape) > len(leading) or any(
        size != 1 and size != whole for size, whole in zip(shape, aligned, strict=True)
    ):
        raise ValueError(
            f"k must broadcast against the leading shape of rewards, {leading}; got shape {shape}"
        )
    return k


def _whole_k(k: int, groups: _Groups, estimator: Estimator, *, clip: bool) -> int | Array:
    """An integer that implementations may take for one that rows of all n samples admit."""
    _check_k(k, k, groups, estimator, clip=clip)
    if groups.where is not None:
        # An export's symbolic n is no integer, and may not compare.
        return min(k, groups.n + 1) if isinstance(groups.n, int) else k
    largest = estimator.largest_k(groups.n)
    if k <= largest or not isinstance(groups.n, int):
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
        return registry.namespace(groups.library).asarray(k, device=groups.rewards.device)
    return registry.namespace(groups.library).asarray(k)


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


def _checked_ks(k: Any, groups: _Groups) -> int | tuple[int, ...] | Array:
    """k as an integer or several, or as an array of the library's, () or (number of ks,)."""
    library = library_of(k)
    if library in ("torch", "jax"):
        _check_k_array(k, library, groups)
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
