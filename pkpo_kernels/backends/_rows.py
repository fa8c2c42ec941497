"""The row mathematics that torch and XLA share: no value is read on the host or branched on.

From (rows, N) to (rows, N): sort, gaps, weights, one exclusive prefix sum, and each value back to
its sample. What differs between the libraries is in `Primitives`; NumPy, which may look at its
data, has a leaner way of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pkpo_kernels.maths.weights import Array, GapWeights

# Rewards beyond the largest float times this are computed on at this scale. Nothing overflows then:
# the weights of a row make no more of it than a few times its range. Not smaller than that takes:
# what is scaled down to subnormal numbers is lost.
RANGE_SCALE = 2.0**-8


class Primitives(NamedTuple):
    """What an array library brings; `xp` has the functions that are named alike everywhere."""

    xp: Any
    columns: Array  # (N,) the numbers 1..N, in the dtype in which n is given
    # (rows, N) → ascending, NaN last; and the index that each had
    sort: Callable[[Array], tuple[Array, Array]]
    # gaps and a term for each (rows, N−1), indices (rows, N) → (rows, N): for every sample, at its
    # own index, the sum of the terms of the gaps below it; the same bits for samples with no gap
    # between them
    exclusive_prefix_sum: Callable[[Array, Array, Array], Array]
    largest: float  # the largest finite number of the dtype to compute in


def transform_rows(
    ops: Primitives,
    keys: Array,
    n: Array,
    weights: GapWeights,
    where: Array | None,
    *,
    normalized: bool,
    scale: str,
    undersized: str,
) -> Array:
    """Transform rows: keys (rows, N) in the dtype to compute in, n () or (rows,), where (rows, N)
    → (rows, N).

    A row whose range overflows in that dtype is NaN. For rewards of up to 32 bits that is float32's
    range also where float64 computes: the callers convert only integers so, and those are in it.
    """
    xp = ops.xp
    ordered, indices = _sorted(ops, keys, n, where)
    nan_or_0, range_scale = _range(ops, ordered)
    # In place where arrays can be changed, as torch's: fresh memory costs more than the work.
    ordered *= range_scale
    gaps = _gaps(ordered)
    out = ops.exclusive_prefix_sum(gaps, gaps * weights.gap, indices)
    out += _row_offset(xp, ordered, gaps, weights) + nan_or_0
    if normalized:
        std = _std(xp, ordered, gaps, weights)
        out /= xp.where(std > 0, std, xp.inf)
    else:
        out /= range_scale
    if undersized == "nan":
        out = xp.where(weights.k_is_valid[..., None], out, xp.nan)
    if scale == "mean":
        out *= n[..., None]
    return out if where is None else xp.where(where, out, 0)


def max_at_k_rows(
    ops: Primitives, keys: Array, n: Array, all_weights: Sequence[GapWeights], where: Array | None
) -> Array:
    """Estimate the best of each k: keys (rows, N), n () or (rows,), weights of max@k for each k →
    (rows, number of ks)."""
    xp = ops.xp
    ordered, _ = _sorted(ops, keys, n, where)
    nan_or_0, range_scale = _range(ops, ordered)
    ordered *= range_scale
    gaps = _gaps(ordered)
    columns = []
    for weights in all_weights:
        best = (_row_offset(xp, ordered, gaps, weights) + nan_or_0) / range_scale
        columns.append(xp.where(weights.k_is_valid[..., None], best, xp.nan))
    return xp.concatenate(columns, -1)


def _sorted(ops: Primitives, keys: Array, n: Array, where: Array | None) -> tuple[Array, Array]:
    """Sort rows: keys (rows, N), n () or (rows,) → (rows, N) ascending, and the index each had.
    Samples that are not valid come first and take the value of the smallest that is."""
    xp = ops.xp
    if where is None:
        return ops.sort(keys)
    ordered, indices = ops.sort(xp.where(where, keys, -xp.inf))
    n_columns = keys.shape[-1]
    valid = ops.columns > n_columns - n[:, None]
    smallest = xp.amin(xp.where(valid, ordered, xp.inf), -1)
    # A row without valid samples is one of zeros: infinities would make NaN of its range.
    smallest = xp.where(n > 0, smallest, 0)[:, None]
    return xp.maximum(ordered, smallest), indices


def _range(ops: Primitives, ordered: Array) -> tuple[Array, Array]:
    """Judge the range of sorted rows (rows, N) → NaN where it is not finite, else 0, and
    range_scale, (rows, 1) each."""
    xp = ops.xp
    smallest, largest = ordered[:, :1], ordered[:, -1:]
    magnitude = xp.maximum(-smallest, largest)
    is_large = magnitude > ops.largest * RANGE_SCALE
    range_scale = xp.where(is_large, RANGE_SCALE, xp.ones_like(magnitude))
    # NaN and infinities come to the ends. ∞ − ∞ is NaN; torch's compiler would take 0 · range for
    # 0, and a NaN that stands in a program stops JAX where it looks for them. To add a 0 also turns
    # a −0 into 0.
    excess = xp.where(largest - smallest <= ops.largest, 0.0, xp.inf)
    return excess - excess, range_scale


def _gaps(ordered: Array) -> Array:
    return ordered[:, 1:] - ordered[:, :-1]


def _row_offset(xp: Any, ordered: Array, gaps: Array, weights: GapWeights) -> Array:
    """Compute what an estimator gives a row's smallest reward: (rows, N) → (rows, 1)."""
    top = weights.max_coefficient[..., None] * ordered[:, -1:]
    return top - xp.sum(gaps * weights.offset, -1)[:, None]


def _std(xp: Any, ordered: Array, gaps: Array, weights: GapWeights) -> Array:
    """Compute the std of the best of k: (rows, N) → (rows, 1), exactly 0 where only equal rewards
    can be it."""
    largest = ordered[:, -1:]
    # How far the mean of the best lies below the largest: measured from there, an offset drops out.
    # A reward whose own chance has underflowed to 0 is no part of it.
    below = xp.where(weights.best > 0, weights.best_offset, 0)
    lead = xp.sum(gaps * below, -1)[:, None]
    chance = xp.concatenate(
        [
            xp.broadcast_to(weights.best, gaps.shape),
            xp.broadcast_to(weights.best_of_max[..., None], lead.shape),
        ],
        -1,
    )
    deviation = xp.where(chance > 0, ordered - largest + lead, 0)
    # Squares of deviations relative to the largest one neither overflow nor vanish.
    unit = xp.amax(xp.abs(deviation), -1)[:, None]
    relative = deviation / xp.where(unit > 0, unit, 1)
    return unit * xp.sqrt(xp.sum(chance * relative * relative, -1)[:, None])
