"""The public functions: check the arguments, fold to (rows, samples), choose a backend, compute,
unfold."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, get_args, overload

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels import _calls
from pkpo_kernels._arguments import Groups, checked_ks, k_of_groups
from pkpo_kernels._dtensor import is_dtensor, on_every_rank
from pkpo_kernels._tracing import is_traced
from pkpo_kernels.backends import registry
from pkpo_kernels.conversion import k_to_host, result_from_host, rewards_to_host, to_host
from pkpo_kernels.maths.estimators import ESTIMATORS
from pkpo_kernels.maths.weights import Array
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
from pkpo_kernels.validation import checked_name

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
    """Transform the rewards of every group of samples, (..., n) → (..., n), into rewards whose
    policy gradient maximises max@k (pass@k on 0/1).

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
          samples admit unless `where` or undersized="clip" leaves that to each group. A new k
          compiles nothing, but for a Python integer inside another program (torch.compile, jax.jit,
          jax.vmap), of which it is a constant: pass a changing one as a tensor or an array there.
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
          is sparse or nested. (A DTensor is fine where every group is whole on a rank.)

    Source: Walder & Karkhanis 2025, "Pass@K Policy Optimization", arXiv 2505.15201.

    >>> transform([0.0, 1.0, 0.0, 3.0], k=2)
    array([0.        , 0.33333333, 0.        , 1.33333333])
    >>> transform([[1, 0, 0], [1, 1, 0]], k=2, estimator="s")
    array([[0.66666667, 0.33333333, 0.33333333],
           [0.66666667, 0.66666667, 0.66666667]])
    """
    form, again = _calls.find(
        "transform", rewards, k, where, axis, estimator, scale, undersized, implementation
    )
    if again is not None:
        return again(rewards, where, k)
    chosen = ESTIMATORS[checked_name("estimator", estimator, ESTIMATORS)]
    given: object = scale
    if isinstance(given, str) and given == "batch_mean":
        raise ValueError(
            "scale must be one of sum, mean; got 'batch_mean', which transform_groups takes: of a"
            " matrix a loss that averages over all entries wants 'mean'"
        )
    checked_name("scale", scale, SCALES)
    checked_name("undersized", undersized, UNDERSIZED)
    if scale == "mean" and chosen.normalized:
        raise ValueError(
            f"scale must be 'sum' for estimator {chosen.name!r}, which is normalised by itself;"
            " got 'mean'"
        )
    if is_dtensor(rewards):
        local = partial(
            transform,
            axis=axis,
            estimator=estimator,
            scale=scale,
            undersized=undersized,
            implementation=implementation,
        )
        return on_every_rank(
            lambda x, k, w: local(x, k, where=w), rewards, k, where, axis, reduces=False
        )
    groups = Groups.of(rewards, where, axis)
    given_k, k = k, k_of_groups(k, groups, chosen, clip=undersized == "clip")
    if k is not given_k and not isinstance(k, int):
        form = None  # made of integers just now, as for the next call
    options = {"estimator": chosen, "scale": scale, "undersized": undersized}
    return _computed(_transform, groups, k, implementation, options, form)


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
    """Estimate E[best of k samples] of every group from its n samples, without bias: (..., n) →
    (...); on 0/1 rewards it is pass@k.

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
    form, again = _calls.find("max_at_k", rewards, k, where, axis, implementation)
    if again is not None:
        return again(rewards, where, k)
    if is_dtensor(rewards):
        return on_every_rank(
            lambda x, k, w: max_at_k(x, k, where=w, axis=axis, implementation=implementation),
            rewards,
            k,
            where,
            axis,
            reduces=True,
        )
    groups = Groups.of(rewards, where, axis)
    return _computed(_max_at_k, groups, checked_ks(k, groups), implementation, {}, form)


def _computed(
    compute: Callable[..., Array],
    groups: Groups,
    k: Any,
    implementation: str | None,
    options: dict[str, Any],
    form: Hashable | None,
) -> Array:
    """Compute for groups, by a backend that serves them where they lie: `_transform` or
    `_max_at_k`'s result. The next call of the form does the same."""
    if groups.library == "jax":
        from pkpo_kernels.backends import jax_meshes

        layout = jax_meshes.layout_of(groups.rewards, k, groups.where, groups.axis)
        if layout is not None:
            shard = jax_meshes.one_shard(groups.rewards)
            chosen = registry.choose(implementation, groups.library, shard, traced=True)
            options["backend"] = chosen.backend
            reduces = compute is _max_at_k
            return jax_meshes.on_every_device(compute, groups, k, options, layout, reduces)
    traced = any(map(is_traced, (groups.rewards, groups.where, k)))
    library, backend = registry.choose(
        implementation, groups.library, groups.rewards, traced=traced
    )
    if library != groups.library:
        computed = partial(_by_host, partial(compute, backend=backend, **options))
    else:
        computed = partial(compute, backend=backend, **options)
    if form is None:
        return computed(groups, k)
    again = None
    if isinstance(backend, registry.Prepares) and groups.lie_in_rows:
        prepared = _prepared_max_at_k if compute is _max_at_k else _prepared_transform
        again = prepared(groups, k, backend, **options)
    if again is None:
        # Without the tensors of this call.
        of_form = groups._replace(rewards=None, where=None)
        static_k = k if isinstance(k, int | tuple) else None
        again = partial(_of_form, computed, of_form, static_k)
    _calls.remember(form, again)
    return again(groups.rewards, groups.where, k)


def _prepared_transform(
    groups: Groups, k: Any, backend: registry.Prepares, **options: Any
) -> _calls.Again | None:
    """Prepare what transforms groups of this form that lie in rows, in any leading shape."""
    # A call's k is read as it lies.
    if not isinstance(k, int) and not (
        tuple(k.shape) in ((), groups.leading) and k.is_contiguous()
    ):
        return None
    of_rows = k if isinstance(k, int) or k.ndim == 0 else k.reshape(-1)
    rewards, where = groups.rows()
    return backend.prepared_transform(rewards, of_rows, where, dtype=groups.dtype, **options)


def _prepared_max_at_k(groups: Groups, k: Any, backend: registry.Prepares) -> _calls.Again | None:
    """Prepare what estimates the best of k of groups of this form that lie in rows."""
    several = isinstance(k, tuple) or (not isinstance(k, int) and k.ndim > 0)
    shape = (*groups.leading, len(k)) if several else groups.leading
    ks = k if several else (k,) if isinstance(k, int) else k[None]
    rewards, where = groups.rows()
    return backend.prepared_max_at_k(rewards, ks, where, dtype=groups.dtype, shape=shape)


def _of_form(
    compute: Callable[..., Array], groups: Groups, static_k: Any, rewards: Any, where: Any, k: Any
) -> Array:
    """Compute for arrays of a form that is known."""
    of_call = groups._replace(rewards=rewards, where=where)
    return compute(of_call, k if static_k is None else static_k)


def _by_host(compute: Callable[..., Array], groups: Groups, k: Any) -> Array:
    """Have NumPy compute, and give the result back to the groups' library."""
    out = compute(_on_host(groups), k_to_host(k))
    return result_from_host(out, groups.rewards, groups.library, groups.dtype)


def _on_host(groups: Groups) -> Groups:
    """Give groups to NumPy."""
    rewards = rewards_to_host(groups.rewards, groups.library, groups.dtype)
    where = None if groups.where is None else to_host(groups.where)
    return Groups("numpy", rewards, where, rewards.dtype, groups.axis)


def _transform(
    groups: Groups, k: int | Array, *, backend: registry.Backend, **options: Any
) -> Array:
    """Transform groups → the shape of the rewards."""
    if groups.n == 0:
        return groups.unfold(groups.full(0, math.nan))
    if not isinstance(k, int) and len(k.shape) > 0:
        xp = registry.namespace(groups.library)
        k = xp.broadcast_to(k, groups.leading).reshape(math.prod(groups.leading))
    rewards, where = groups.rows()
    return groups.unfold(backend.transform_rows(rewards, k, where, dtype=groups.dtype, **options))


def _max_at_k(groups: Groups, k: Any, *, backend: registry.Backend) -> Array:
    """Estimate the best of k → the leading shape, and for several ks an axis of them."""
    several = isinstance(k, tuple) or (not isinstance(k, int) and len(k.shape) > 0)
    ks = k if several else [k]
    if groups.n == 0:
        out = groups.full(len(ks), math.nan)
    else:
        rewards, where = groups.rows()
        out = backend.max_at_k_rows(rewards, ks, where, dtype=groups.dtype)
    return out.reshape(*groups.leading, len(ks)) if several else out.reshape(groups.leading)
