"""The public functions: check the arguments, fold to (rows, samples), hand over to one
implementation, unfold."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from pkpo_kernels import dispatch
from pkpo_kernels.estimators import ESTIMATORS, MAX_AT_K, Array, Estimator

SCALES = ("sum", "mean")
UNDERSIZED = ("zero", "nan", "clip")


def transform(
    rewards: Array,
    k: int | Array,
    *,
    estimator: str = "sloo_minus_one",
    where: Array | None = None,
    axis: int = -1,
    scale: str = "sum",
    undersized: str = "zero",
    implementation: str | None = None,
) -> Array:
    """Replace the rewards of every group of samples by rewards whose policy gradient maximises
    max@k (pass@k on 0/1).

    The outcome is a constant of the loss: detached in torch, under stop_gradient in JAX. Use it as
    the advantage: the gradient of Σ_i transform(rewards)_i · log p(sample_i), summed over a group,
    estimates that of max@k.

    Args:
        rewards: (..., n) floating, integer or bool: n samples of one task along `axis`, any leading
          shape. A NumPy array or nested list, a torch.Tensor, a jax.Array or a tracer. Rows with a
          NaN become NaN; infinities are limits of ever larger finite rewards.
        k: how many samples the trained policy will get, 1 ≤ k ≤ n. An integer, or integers that
          broadcast against the leading shape (one k a group). In JAX it may be traced, in torch a
          tensor on the device; such values are never read on the host, and where one is not in 1..n
          its group counts as undersized. A new k never recompiles; to torch.compile pass it as a
          tensor, since a new Python integer there is a new program.
        estimator: a name from `ESTIMATORS`: "sloo_minus_one" (the default, Eq 33), "sloo" (Eq 29),
          "s" (Eq 8 and 19), "centered", "passk_training".
        where: (..., n) bool, in the shape of rewards. A sample left out (False) gets 0 and is no
          part of its group.
        axis: the axis of the samples.
        scale: "sum", the paper's, for losses that sum over a group's samples; "mean" multiplies by
          the group's size, for trainers that average over samples. ("passk_training" is normalised
          by its own paper: use "sum".)
        undersized: what groups with too few samples for k get: "zero" (no signal), "nan", or "clip"
          (such a group uses the largest k that it admits).
        implementation: a name from `available_implementations()`, or None to choose. A name never
          falls back.

    Returns:
        An array of the same library, shape and device, in the same floating dtype (integers and
        bool: the library's default float). float16, bfloat16 and float32 are computed in float32 or
        better.

    Raises:
        ValueError: an argument's value is wrong: k < 1, k > n, k = n for "sloo" or "centered", an
          unknown name, `where` of another shape, an axis that is not there.
        TypeError: an argument's type or dtype is wrong, or arrays of two libraries are mixed.

    Source: Walder & Karkhanis 2025, "Pass@K Policy Optimization", arXiv 2505.15201.

    >>> transform([0.0, 1.0, 0.0, 3.0], k=2)
    array([0.        , 0.33333333, 0.        , 1.33333333])
    >>> transform([[1, 0, 0], [1, 1, 0]], k=2, estimator="s")
    array([[0.66666667, 0.33333333, 0.33333333],
           [0.66666667, 0.66666667, 0.66666667]])
    """
    chosen = _named("estimator", estimator, ESTIMATORS)
    _named("scale", scale, dict.fromkeys(SCALES))
    _named("undersized", undersized, dict.fromkeys(UNDERSIZED))
    groups = _Groups.of(rewards, where, axis)
    k = _checked_k(k, groups, chosen)
    options = {"estimator": chosen, "scale": scale, "undersized": undersized}
    return _computed(_transform_of_groups, groups, k, implementation, options)


def max_at_k(
    rewards: Array,
    k: int | Sequence[int] | Array,
    *,
    where: Array | None = None,
    axis: int = -1,
    implementation: str | None = None,
) -> Array:
    """The unbiased estimate of E[best of k samples] of every group, from its n samples; on 0/1
    rewards it is pass@k.

    Args:
        rewards: (..., n), as for `transform`.
        k: an integer, or a sequence of integers: several k from one sort.
        where: (..., n) bool; samples left out are no part of their group.
        axis: the axis of the samples.
        implementation: a name from `available_implementations()`, or None to choose.

    Returns:
        The leading shape of rewards for one k, with one more axis at the end for a sequence of ks;
        a constant of the loss, in the floating dtype of rewards (integers and bool: the library's
        default float). NaN where a group has fewer than k samples.

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
    ks = _checked_ks(k, groups)
    return _computed(_max_at_k_of_groups, groups, ks, implementation, {})


def pass_at_k(n: Any, c: Any, k: Any) -> Any:
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
    counts = (_host_integers("n", n), _host_integers("c", c), _host_integers("k", k))
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
    """Rewards that have been checked, as they came in."""

    kind: str
    rewards: Array  # (..., n)
    where: Array | None  # (..., n)
    dtype: Any  # of the result
    axis: int  # of the samples, from the front

    @classmethod
    def of(cls, rewards: Array, where: Array | None, axis: int) -> _Groups:
        rewards, kind = _checked_array("rewards", rewards)
        dtype = _result_dtype(rewards, kind)
        axis = _checked_axis(axis, rewards.shape)
        if where is not None:
            where = _checked_mask(where, rewards, kind)
        return cls(kind, rewards, where, dtype, axis)

    @property
    def n(self) -> int:
        return self.rewards.shape[self.axis]

    @property
    def leading(self) -> tuple[int, ...]:
        return _without(self.rewards.shape, self.axis)


def _computed(
    of_groups: Callable[..., Array],
    groups: _Groups,
    k: Any,
    implementation: str | None,
    options: dict[str, Any],
) -> Array:
    """of_groups, by an implementation that serves these groups, where they lie."""
    options = {"kind": groups.kind, "dtype": groups.dtype, **options}
    if groups.kind == "jax":
        from pkpo_kernels import jax_sharding

        layout = jax_sharding.layout_of(groups.rewards, k, groups.where, groups.axis)
        if layout is not None:
            shard = jax_sharding.one_shard(groups.rewards)
            options["module"] = dispatch.choose(implementation, groups.kind, shard)
            return jax_sharding.on_every_device(
                of_groups,
                layout,
                groups.rewards,
                k,
                groups.where,
                axis=groups.axis,
                reduce=of_groups is _max_at_k_of_groups,
                **options,
            )
    options["module"] = dispatch.choose(implementation, groups.kind, groups.rewards)
    return of_groups(groups.rewards, k, groups.where, axis=groups.axis, **options)


def _transform_of_groups(
    rewards: Array,
    k: int | Array,
    where: Array | None,
    *,
    axis: int,
    kind: str,
    module: ModuleType,
    **options: Any,
) -> Array:
    """rewards (..., n), k an integer or an array that broadcasts against the leading shape, where
    (..., n) → (..., n)."""
    xp = dispatch.namespace(kind)
    leading = _without(rewards.shape, axis)
    if not isinstance(k, int) and len(k.shape) > 0:
        k = xp.broadcast_to(k, leading).reshape(math.prod(leading))
    out = module.transform_rows(_fold(rewards, axis, xp), k, _fold(where, axis, xp), **options)
    out = out.reshape(*leading, out.shape[-1])
    return xp.moveaxis(out, -1, axis) if axis < len(leading) else out


def _max_at_k_of_groups(
    rewards: Array,
    k: Any,
    where: Array | None,
    *,
    axis: int,
    kind: str,
    module: ModuleType,
    **options: Any,
) -> Array:
    """rewards (..., n), k an integer, () or a sequence of them, where (..., n) → the leading shape,
    with one more axis for a sequence of ks."""
    xp = dispatch.namespace(kind)
    leading = _without(rewards.shape, axis)
    one = isinstance(k, int) or (not isinstance(k, tuple) and len(k.shape) == 0)
    ks = [k] if one else list(k)
    out = module.max_at_k_rows(_fold(rewards, axis, xp), ks, _fold(where, axis, xp), **options)
    return out.reshape(leading) if one else out.reshape(*leading, len(ks))


def _fold(x: Array | None, axis: int, xp: Any) -> Array | None:
    """(..., n) → (rows, n)."""
    if x is None:
        return None
    n, rows = x.shape[axis], math.prod(_without(x.shape, axis))
    return (xp.moveaxis(x, axis, -1) if axis < len(x.shape) - 1 else x).reshape(rows, n)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _named(argument: str, name: str, choices: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}; got {name!r}")
    return choices[name]


def _checked_array(argument: str, value: Any) -> tuple[Array, str]:
    kind = dispatch.library_of(value)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{argument} must be a plain array; got a masked array: pass its data, and where=~mask"
        )
    if kind is None:
        try:
            value, kind = np.asarray(value), "numpy"
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{argument} must be an array or a nested list of equally long rows;"
                f" got {_shown(value)}: {error}"
            ) from None
    return value, kind


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _dtype_name(dtype: Any) -> str:
    """'float32' for NumPy's, torch's and JAX's float32 alike."""
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")


_FLOATS = ("float16", "bfloat16", "float32", "float64")
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def _result_dtype(rewards: Array, kind: str) -> Any:
    name = _dtype_name(rewards.dtype)
    if name in _FLOATS:
        return rewards.dtype
    if name not in (*_INTEGERS, "bool"):
        raise TypeError(
            f"rewards must be of dtype {', '.join(_FLOATS)}, an integer dtype or bool; got {name}"
        )
    if kind == "torch":
        return dispatch.namespace(kind).get_default_dtype()
    if kind == "jax":
        return dispatch.namespace(kind).asarray(0.0).dtype
    return np.dtype(np.float64)


def _checked_axis(axis: int, shape: tuple[int, ...]) -> int:
    if len(shape) == 0:
        raise ValueError("rewards must have an axis of samples; got a scalar")
    try:
        index = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer; got {axis!r}") from None
    if not -len(shape) <= index < len(shape):
        raise ValueError(
            f"axis must be within {-len(shape)}..{len(shape) - 1} for rewards of shape"
            f" {tuple(shape)}; got {axis}"
        )
    return index % len(shape)


def _checked_mask(where: Any, rewards: Array, kind: str) -> Array:
    where, where_kind = _checked_array("where", where)
    if where_kind != kind:
        raise TypeError(
            f"where must be of the same array library as rewards ({kind}); got a {where_kind} array"
        )
    if _dtype_name(where.dtype) != "bool":
        raise TypeError(f"where must be of dtype bool; got {_dtype_name(where.dtype)}")
    if tuple(where.shape) != tuple(rewards.shape):
        raise ValueError(
            f"where must have the shape of rewards, {tuple(rewards.shape)};"
            f" got {tuple(where.shape)}"
        )
    if kind == "torch" and where.device != rewards.device:
        raise ValueError(
            f"where must be on the device of rewards, {rewards.device}; got {where.device}"
        )
    return where


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def _host_integers(argument: str, value: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{argument} must be an integer or integers; got {_shown(value)}")
    return array.astype(np.int64)


def _check_k(k: np.ndarray[Any, np.dtype[np.int64]] | int, n: int, estimator: Estimator) -> None:
    """Raise where a k known on the host is not what groups of n samples admit."""
    for value in (k,) if isinstance(k, int) else np.unique(k):
        if value < 1:
            raise ValueError(f"k must be at least 1; got k={value}")
        if value > n:
            raise ValueError(f"k must be at most the number of samples; got k={value} with n={n}")
        if value > estimator.largest_k(n):
            raise ValueError(
                f"k must be less than the number of samples for estimator {estimator.name!r}, since"
                f" no subset of k=n avoids a sample; got k={value} with n={n}"
            )


def _checked_k(k: Any, groups: _Groups, estimator: Estimator) -> int | Array:
    """k as an integer, or as an array of the library's that broadcasts against the leading
    shape."""
    if _is_integer(k):
        _check_k(int(k), groups.n, estimator)
        return int(k)
    kind = dispatch.library_of(k)
    if kind in (None, "numpy"):
        values = _host_integers("k", k)
        _check_k(values, groups.n, estimator)
        xp = dispatch.namespace(groups.kind)
        k = (
            xp.asarray(values)
            if groups.kind != "torch"
            else xp.asarray(values, device=groups.rewards.device)
        )
    else:
        _check_k_array(k, kind, groups)
    shape, leading = tuple(k.shape), groups.leading
    aligned = leading[len(leading) - len(shape) :] if len(shape) <= len(leading) else ()
    if len(shape) != len(aligned) or any(
        size != 1 and size != whole for size, whole in zip(shape, aligned, strict=True)
    ):
        raise ValueError(
            f"k must broadcast against the leading shape of rewards, {leading}; got shape {shape}"
        )
    return k


def _check_k_array(k: Array, kind: str | None, groups: _Groups) -> None:
    """A torch tensor or a JAX array: its values stay where they are."""
    if kind != groups.kind:
        raise TypeError(
            f"k must be integers, or of the same array library as rewards ({groups.kind});"
            f" got a {kind} array"
        )
    if _dtype_name(k.dtype) not in _INTEGERS:
        raise TypeError(f"k must be of an integer dtype; got {_dtype_name(k.dtype)}")


def _checked_ks(k: Any, groups: _Groups) -> int | tuple[int, ...] | Array:
    """k as an integer or several, or as an array of the library's, () or (number of ks,)."""
    kind = dispatch.library_of(k)
    ks: int | tuple[int, ...] | Array
    if kind in ("torch", "jax"):
        _check_k_array(k, kind, groups)
        shape, ks = tuple(k.shape), k
    elif _is_integer(k):
        shape, ks = (), int(k)
    # Lists without NumPy: torch.compile follows it.
    elif isinstance(k, list | tuple | range) and all(map(_is_integer, k)):
        shape, ks = (len(k),), tuple(int(one) for one in k)
    else:
        values = _host_integers("k", k)
        shape = values.shape
        ks = tuple(values.ravel().tolist()) if shape else int(values)
    if len(shape) > 1:
        raise ValueError(f"k must be an integer or a flat sequence of integers; got shape {shape}")
    if 0 in shape:
        raise ValueError("k must name at least one k; got an empty sequence")
    for one in (ks,) if isinstance(ks, int) else ks if isinstance(ks, tuple) else ():
        _check_k(one, groups.n, MAX_AT_K)
    return ks
