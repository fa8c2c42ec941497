"""What a trainer logs of a step's rewards: pass@k, max@k, and how many groups give any signal.

Everything comes from `transform_groups`, and so runs where it does: on the device, under jit.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from pkpo_kernels import _grouping
from pkpo_kernels._entries import Entries, GroupScale, checked_k, checked_scale, checked_where
from pkpo_kernels._tracing import is_traced
from pkpo_kernels.backends import registry
from pkpo_kernels.conversion import as_dtype
from pkpo_kernels.groups import transform_groups
from pkpo_kernels.maths.estimators import ESTIMATORS
from pkpo_kernels.maths.weights import Array
from pkpo_kernels.typing import EstimatorName, Undersized
from pkpo_kernels.validation import (
    checked_array,
    checked_axis,
    checked_integers,
    checked_name,
    dtype_name,
    library_of,
    shown,
)

# At this scale no sum of as many numbers as a device can hold overflows.
SUM_SCALE = 2.0**-40


def group_metrics(
    rewards: Array,
    ks: Any,
    *,
    groups: Any = None,
    samples: Any = None,
    where: Any = None,
    k: Any = None,
    estimator: EstimatorName = "sloo_minus_one",
    scale: GroupScale | float | None = None,
    undersized: Undersized = "zero",
    axis: int = -1,
) -> dict[str, Array]:
    """Summarise a step's rewards, flat (N,) with group ids or a matrix (..., n), as scalars on
    their device.

    Args:
        rewards: (N,) with `groups`, or (..., n) without: n samples of one task in each row. NaN is
          a sample that could not be scored.
        ks: the ks of pass@k and max@k, integers ≥ 1.
        groups, samples: as for `transform_groups`.
        where: as for `transform_groups`, or in the shape of a matrix of rewards.
        k: the k that is trained with, as for `transform_groups`; None leaves out what depends on
          it.
        estimator, scale, undersized: those that are trained with. The scale None is the default of
          what transforms such rewards: "batch_mean" of groups, "sum" of a matrix.
        axis: of the samples in a matrix.

    Returns:
        A dict of () arrays (floats, in NumPy); NaN where there is nothing to average:

        - "pass@k", "max@k" for each of ks: the means over the groups with at least k samples. For
          pass@k a sample is correct whose reward is greater than 0.
        - "groups", and "group_size_min", "group_size_mean", "group_size_max", of groups with a
          valid sample.
        - "signal": the share of groups of which any sample gets an advantage other than 0. (That
          rewards differ is not enough: a single failure among n samples cannot lower the best of
          k = 2.)
        - "undersized": the share of groups with too few samples for the trained k.
        - "advantage_abs_mean", "advantage_abs_max": over valid samples.

    Raises:
        ValueError, TypeError: as `transform_groups` does.

    >>> metrics = group_metrics([0.0, 1.0, 0.0, 0.0, 2.0], [1, 2], groups=list("abaab"), k=2)
    >>> metrics["pass@2"], metrics["max@2"], metrics["signal"], metrics["group_size_max"]
    (0.5, 1.0, 0.5, 3.0)
    """
    arguments = rewards, ks, groups, samples, where, k, estimator, scale, undersized, axis
    if library_of(rewards) in ("torch", "jax"):
        return _group_metrics(*arguments)
    with np.errstate(all="ignore"):  # NaN is a documented result
        return _group_metrics(*arguments)


def _group_metrics(
    rewards: Array,
    ks: Any,
    groups: Any,
    samples: Any,
    where: Any,
    k: Any,
    estimator: EstimatorName,
    scale: GroupScale | float | None,
    undersized: Undersized,
    axis: int,
) -> dict[str, Array]:
    several = hasattr(ks, "__len__") and getattr(ks, "ndim", 1) > 0
    ks = checked_integers("ks", ks if several else [ks], least=1)
    chosen = ESTIMATORS[checked_name("estimator", estimator, ESTIMATORS)]
    if scale is None:
        scale = "sum" if groups is None else "batch_mean"
    checked_scale(scale, chosen)
    checked_name("undersized", undersized, get_args(Undersized))
    if groups is None:
        rewards, where, groups = _flat(rewards, where, axis)
    elif axis != -1:
        raise ValueError(f"axis must be left out where there are groups; got {shown(axis)}")
    traced = any(map(is_traced, (rewards, groups, samples, where, k)))
    entries = Entries.of(rewards, where, traced=traced)
    k = None if k is None else checked_k(k, entries)
    if samples is not None:
        entries, groups, samples, k = _grouping.gathered(entries, groups, samples, k)
    xp, rewards = registry.namespace(entries.library), entries.rewards
    # Sums of ones reach N, whatever the library's default dtype is.
    floating = xp.float32 if entries.library == "torch" else xp.result_type(float)
    if dtype_name(rewards.dtype) not in ("float32", "float64"):
        rewards = as_dtype(rewards, floating)
    is_valid = rewards == rewards if entries.valid is None else entries.valid
    if samples is not None:
        ids = [
            _grouping.ids_of("groups", groups, entries),
            _grouping.ids_of("samples", samples, entries),
        ]
        last = _grouping.standing(entries, *ids)
        is_valid = last == xp.arange(entries.n, dtype=last.dtype, **entries.there)

    def sums(values: Array, k: Any) -> Array:
        """Give every sample its s (Eq 19), which over a group adds up to k times its max@k."""
        options: Any = {"where": is_valid, "estimator": "s", "scale": "sum"}
        if dtype_name(values.dtype) == "bool":
            values = as_dtype(values, floating)
        return transform_groups(values, groups, k, **options)

    # Of ones at k=1 it is 1/n, which over all samples adds up to the number of groups.
    share = sums(is_valid, 1)
    sizes = xp.where(is_valid, xp.round(1 / xp.where(is_valid, share, 1)), 0)

    def ratio(total: Array, number: Array, at: Array | None = None) -> Array:
        """Divide a sum at a scale by a number, () each, NaN by 0, in the wider of their dtypes."""
        # JAX may have been told to promote nothing.
        dtype = max(total.dtype, number.dtype, key=lambda dtype: int(dtype.itemsize))
        total, number = as_dtype(total, dtype), as_dtype(number, dtype)
        number = number if at is None else number * as_dtype(at, dtype)
        return total / xp.where(number > 0, number, xp.nan)

    def mean(of_groups: Array, among: Array, at: Array | None = None) -> Array:
        """Average over groups what adds up to it at a scale, over those that `among` names."""
        groups = xp.round(xp.sum(xp.where(among, share, 0)))
        return ratio(xp.sum(xp.where(among, of_groups, 0)), groups, at)

    def share_of(flags: Array) -> Array:
        """Find the share of groups all of whose samples have a flag: of whole numbers of them."""
        named = xp.round(xp.sum(xp.where(is_valid & flags, share, 0)))
        return ratio(named, xp.round(xp.sum(share)))

    ones = xp.where(is_valid, xp.ones_like(share), 0)
    number = xp.sum(ones)

    def largest(values: Array) -> Array:
        """Find the largest of values (N,), none below 0; NaN where there is no valid sample."""
        return xp.where(number > 0, xp.amax(values) if entries.n else xp.sum(values), xp.nan)

    def scale_of(values: Array) -> Array:
        """Choose a power of two at which values (N,) add up without overflow: 1 for all but large
        ones."""
        most = xp.amax(xp.abs(values)) if entries.n else xp.sum(values)
        limit = float(xp.finfo(values.dtype).max) * SUM_SCALE
        return xp.where(most > limit, SUM_SCALE, xp.ones_like(most))

    of_rewards = scale_of(xp.where(is_valid, rewards, 0))
    found: dict[str, Array] = {}
    for one in ks:
        most_k = min(one, entries.n + 1)  # too large for any group
        found[f"pass@{one}"] = mean(sums(rewards > 0, most_k) / most_k, sizes >= most_k)
        best = sums(rewards, most_k) / most_k * of_rewards
        found[f"max@{one}"] = mean(best, sizes >= most_k, of_rewards)
    most = largest(sizes)
    found["groups"] = xp.round(xp.sum(share))
    found["group_size_min"] = most - largest(xp.where(is_valid, most - sizes, 0))
    found["group_size_mean"] = mean(ones, is_valid)
    found["group_size_max"] = most
    if k is not None:
        options: Any = {"estimator": estimator, "scale": scale, "undersized": undersized}
        magnitude = xp.abs(transform_groups(rewards, groups, k, where=is_valid, **options))
        # The largest of a group is its max@n.
        any_signal = sums(magnitude > 0, _integers(xp.clip(sizes, 1, None)))
        found["signal"] = share_of(any_signal > 0)
        of_sizes = k if isinstance(k, int) else as_dtype(k, sizes.dtype)  # one k or one an entry
        is_undersized = (k < 1) | (chosen.largest_k(sizes) < of_sizes)
        found["undersized"] = share_of(is_undersized)
        at = scale_of(magnitude)
        found["advantage_abs_mean"] = ratio(xp.sum(magnitude * at), number, at)
        found["advantage_abs_max"] = largest(magnitude)
    return {key: float(x) if entries.library == "numpy" else x for key, x in found.items()}


def _flat(rewards: Any, where: Any, axis: int) -> tuple[Array, Array | None, int]:
    """Flatten a matrix and its mask (..., n), or with n elsewhere, → (N,), and n."""
    rewards, library = checked_array("rewards", rewards)
    if len(rewards.shape) < 2:
        raise ValueError(
            "rewards must be (..., n) where there are no groups;"
            f" got shape {tuple(rewards.shape)}: pass groups="
        )
    axis, xp = checked_axis(axis, rewards.shape), registry.namespace(library)
    if not rewards.shape[axis]:
        raise ValueError(
            f"rewards must have samples in every row; got shape {tuple(rewards.shape)}"
        )
    if where is not None:
        where = checked_where(where, library)
        if tuple(where.shape) != tuple(rewards.shape):
            raise ValueError(
                f"where must have the shape of rewards, {tuple(rewards.shape)};"
                f" got {tuple(where.shape)}"
            )
        where = xp.moveaxis(where, axis, -1).reshape(-1)
    return xp.moveaxis(rewards, axis, -1).reshape(-1), where, int(rewards.shape[axis])


def _integers(x: Array) -> Array:
    return x.long() if hasattr(x, "long") else x.astype("int32")
