"""The mathematics of groups that lie in one flat array, in any order and of any sizes, where no
value may be looked at: under jax.jit and torch.compile.

Sorted by group and reward every group is a segment, and what `_rows` does along a row goes along a
segment: a running product for the weights, and one exclusive prefix sum. Each scan starts anew
where a segment does, so that no group sees a number of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from pkpo_kernels.backends._rows import RANGE_SCALE
from pkpo_kernels.maths.weights import Array, Estimator, GapWeights, clamp_k, segment_weights


class Segments(NamedTuple):
    """The runs of equal keys that N sorted elements lie in."""

    first: Array  # (N,) the index of the first of each one's run
    last: Array  # (N,) the index of the last


Parts = tuple[Array, ...]  # (N,) each
Combine = Callable[[Parts, Parts], Parts]


class Primitives(Protocol):
    """What an array library brings; xp has the functions that are named alike everywhere."""

    index: Array  # (N,) 0..N−1

    @property
    def xp(self) -> Any:
        """Give the module of the library's functions."""

    def floating(self, x: Array) -> Array:
        """Convert whole numbers to the dtype in which weights are computed."""

    def order_keys(self, keys: Array) -> Array:
        """Reinterpret floats as whole numbers in the same order, NaN at the ends, which sort
        faster."""

    def sort(self, keys: Sequence[Array]) -> tuple[list[Array], Array]:
        """Sort by keys (N,) each, the first the most significant, equal ones as they come → the
        keys in that order, and the index that each had."""

    def put_back(self, x: Array, order: Array) -> Array:
        """Undo a sort: x (N,), the index that each had → (N,)."""

    def segments(self, starts: Array) -> Segments:
        """Find segments by where they start: (N,) bool, True first."""

    def scan(self, segments: Segments, parts: Parts, combine: Combine) -> Parts:
        """Combine parts with all before them in their segments: combine(before, here)."""

    def product_from_right(
        self, segments: Segments, numerators: Array, denominators: Array
    ) -> Array:
        """Multiply ratios (N,) of every segment, from its last but one down; what comes out at its
        last is unspecified."""


def matrix_width(largest: int) -> int:
    """Choose the width of a matrix that holds groups of many sizes, the largest of so many samples:
    powers of two, since kernels are compiled for every width, in seconds."""
    return largest if largest <= 8 else 1 << (largest - 1).bit_length()


def segments_of(ops: Primitives, keys: Sequence[Array]) -> Segments:
    """Find the runs of equal keys: sorted keys (N,) each → their segments."""
    differs = ops.index[1:] < 0
    for key in keys:
        differs = differs | (key[1:] != key[:-1])
    return ops.segments(ops.xp.concatenate([ops.index[:1] >= 0, differs]))


def representatives(ops: Primitives, ids: Sequence[Array], valid: Array) -> Array:
    """Find the entry that stands for a sample: ids (N,) each, equal among the entries of one
    sample, valid (N,) bool → (N,) the index of its last valid entry, −1 where it has none."""
    xp = ops.xp
    (*keys, is_valid), order = ops.sort((*ids, xp.where(valid, ops.index * 0 + 1, 0)))
    last = segments_of(ops, keys).last
    return ops.put_back(xp.where(is_valid[last] > 0, order[last], -1), order)


def transform(
    ops: Primitives,
    keys: Array,
    ids: Sequence[Array],
    valid: Array,
    k: Array,
    *,
    limit: float,
    estimator: Estimator,
    scale: str,
    undersized: str,
) -> Array:
    """Transform groups: keys, ids, valid (N,), k () or (N,) → (N,), in the dtype of keys.

    Args:
        ops: the array library.
        keys: the rewards, in the dtype to compute in.
        ids: whole numbers, equal among the samples of one group.
        valid: bool, which entries are samples; the others get 0, whatever they hold.
        k: whole numbers; where it varies within a group, the group is undersized.
        limit: the largest finite number of the rewards' precision.
        estimator, undersized: as for rows.
        scale: "sum", "mean" (× the group's size), or "batch_mean" (× N over the number of groups
          with a sample).
    """
    xp, index = ops.xp, ops.index
    # What is left out comes last in its group, behind any NaN, and is a segment of its own.
    order_keys = ops.order_keys(keys)
    most = xp.iinfo(order_keys.dtype).max
    (*in_order, order_keys), order = ops.sort(
        (*ids, xp.where(valid, xp.clip(order_keys, None, most - 1), most))
    )
    left_out = order_keys == most
    ordered = xp.where(left_out, 0, keys[order])
    segments = segments_of(ops, (left_out, *in_order))
    first, last = segments
    n = ops.floating(last - first + 1)
    weights = _weights(
        ops, segments, n, _k_of_groups(ops, segments, k, order), estimator, undersized
    )

    smallest, largest = ordered[first], ordered[last]
    # As in `_rows`: a range that is not finite makes NaN, a large one is computed on at a scale.
    excess = xp.where(largest - smallest <= limit, 0.0, xp.inf)
    nan_or_0 = excess - excess
    is_large = xp.maximum(-smallest, largest) > limit * RANGE_SCALE
    range_scale = xp.where(is_large, RANGE_SCALE, xp.ones_like(ordered))
    ordered = ordered * range_scale
    largest = ordered[last]
    following = xp.concatenate([ordered[1:], ordered[-1:]])
    gaps = xp.where(index < last, following - ordered, 0)

    # A scan may add in another order from place to place: equal rewards get what their first gets.
    rises = xp.concatenate([index[:1] >= 0, gaps[:-1] > 0])
    below = xp.where(weights.best > 0, weights.best_offset, 0)
    sums, firsts, offsets, *lead = ops.scan(
        segments,
        (
            gaps * weights.gap,
            xp.where(rises | (first == index), index, 0),
            gaps * weights.offset,
            *([gaps * below] if estimator.normalized else []),
        ),
        lambda before, here: (
            before[0] + here[0],
            xp.maximum(before[1], here[1]),
            *(x + y for x, y in zip(before[2:], here[2:], strict=True)),
        ),
    )
    out = xp.where(first < index, sums[xp.clip(index - 1, 0, None)], 0)[firsts]
    out = out + (weights.max_coefficient * largest - offsets[last] + nan_or_0)
    if estimator.normalized:
        std = _std(ops, segments, weights, ordered - largest + lead[0][last])
        out = out / xp.where(std > 0, std, xp.inf)
    else:
        out = out / range_scale
    if undersized == "nan":
        out = xp.where(weights.k_is_valid, out, xp.nan)
    if scale == "mean":
        out = out * n
    if scale == "batch_mean":
        groups = ops.floating(xp.sum(xp.where((first == index) & ~left_out, 1, index * 0)))
        out = out * (index.shape[0] / xp.clip(groups, 1, None))
        out = out / n if estimator.normalized else out
    return ops.put_back(xp.where(left_out, 0, out), order)


def _k_of_groups(ops: Primitives, segments: Segments, k: Array, order: Array) -> Array:
    """Sort k () or (N,) like the rewards; 0 where it varies within a group."""
    if len(k.shape) == 0:
        return k
    k = k[order]
    differs = ops.xp.where(k != k[segments.first], 1, ops.index * 0)
    (any_differs,) = ops.scan(
        segments, (differs,), lambda before, here: (ops.xp.maximum(before[0], here[0]),)
    )
    return ops.xp.where(any_differs[segments.last] > 0, 0, k)


def _weights(
    ops: Primitives, segments: Segments, n: Array, k: Array, estimator: Estimator, undersized: str
) -> GapWeights:
    k = ops.floating(k)
    if undersized == "clip":
        k = clamp_k(estimator, n, k, ops.xp)
    return segment_weights(
        estimator,
        ops.floating(ops.index - segments.first + 1),
        n,
        k,
        xp=ops.xp,
        product_from_right=lambda numerators, denominators: ops.product_from_right(
            segments, numerators, denominators
        ),
    )


def _std(ops: Primitives, segments: Segments, weights: GapWeights, deviation: Array) -> Array:
    """Compute the std of the best of k: each sample's deviation from the mean of the best (N,) →
    (N,), exactly 0 where only equal rewards can be it."""
    xp = ops.xp
    chance = xp.where(ops.index == segments.last, weights.best_of_max, weights.best)
    deviation = xp.where(chance > 0, deviation, 0)
    # Squares of deviations relative to the largest one neither overflow nor vanish.
    (unit,) = ops.scan(
        segments,
        (xp.abs(deviation),),
        lambda before, here: (xp.maximum(before[0], here[0]),),
    )
    unit = unit[segments.last]
    relative = deviation / xp.where(unit > 0, unit, 1)
    (variance,) = ops.scan(
        segments,
        (chance * relative * relative,),
        lambda before, here: (before[0] + here[0],),
    )
    return unit * xp.sqrt(variance[segments.last])
