"""The row mathematics that torch and XLA share: no value is read on the host or branched on.

From (rows, N) to (rows, N): sort, gaps, weights, one prefix scan, and each value back to its
sample's own place. What differs between the libraries is in `Primitives`; NumPy, which may look at
its data, has a leaner way of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pkpo_kernels.estimators import Array
from pkpo_kernels.weights import GapWeights


class Primitives(NamedTuple):
    """What an array library brings; `xp` has the functions that are named alike everywhere."""

    xp: Any
    columns: Array  # (N,) the integers 1..N
    # (rows, N) → ascending, NaN last; and what it takes to lead results back
    sort: Callable[[Array], tuple[Array, Array]]
    # (gaps, a term for each, what sort left) → for every sample, in its own place, the sum of the
    # terms of the gaps beneath it; the same bits for samples with no gap between them
    sum_beneath: Callable[[Array, Array, Array], Array]
    # False also where nobody may look
    all_finite: Callable[[Array], bool]


def transform_rows(
    ops: Primitives,
    keys: Array,
    n: Array,
    weights: GapWeights,
    where: Array | None,
    *,
    standardised: bool,
    scale: str,
    undersized: str,
) -> Array:
    """keys (rows, N) in the dtype to compute in, n () or (rows,), where (rows, N) → (rows, N)."""
    xp = ops.xp
    ordered, places = _sorted(ops, keys, n, where)
    limits = _limits(ops, ordered, weights, standardised)
    values = _transform(ops, _brought_in(xp, ordered, limits), places, weights, standardised)
    out = _at_the_limit(xp, values, keys, limits)
    if undersized == "nan":
        out = xp.where(weights.admitted[..., None], out, xp.nan)
    if scale == "mean":
        out = out * n[..., None]
    return out if where is None else xp.where(where, out, 0)


def max_at_k_rows(
    ops: Primitives, keys: Array, n: Array, all_weights: Sequence[GapWeights], where: Array | None
) -> Array:
    """keys (rows, N), n () or (rows,), weights of max@k for each k → (rows, number of ks)."""
    xp = ops.xp
    ordered, _ = _sorted(ops, keys, n, where)
    columns = []
    for weights in all_weights:
        limits = _limits(ops, ordered, weights, standardised=False)
        finite = _brought_in(xp, ordered, limits)
        best = _constant(xp, finite, _gaps(finite), weights)
        # Nothing is scanned: every sample of a row gets what its smallest does.
        best = _at_the_limit(xp, best, ordered[:, :1], limits)
        columns.append(xp.where(weights.admitted[..., None], best, xp.nan))
    return xp.concatenate(columns, -1)


def _sorted(ops: Primitives, keys: Array, n: Array, where: Array | None) -> tuple[Array, Array]:
    """Sort; samples left out come first and take the value of the smallest that stays."""
    xp = ops.xp
    if where is None:
        return ops.sort(keys)
    ordered, places = ops.sort(xp.where(where, keys, -xp.inf))
    n_columns = keys.shape[-1]
    own = ops.columns > n_columns - n[:, None]
    smallest = xp.amin(xp.where(own, ordered, xp.inf), -1)[:, None]
    return xp.where(own, ordered, smallest), places


class _Limits(NamedTuple):
    """What infinities, NaN, or a range beyond the largest float make of a row; each (rows, 1).

    An infinite reward is M · (its sign), M beyond every bound. What M is multiplied with decides;
    where that is 0, what remains is the estimator of the row with its infinities brought in to its
    smallest and largest finite reward.
    """

    has_nan: Array
    low: Array  # smallest and largest finite reward
    high: Array
    shrink: Array  # so that high − low stays finite
    constant: Array  # the estimator on the row of signs: what it gives to the smallest,
    above_bottom: Array  # what it adds for all that are not −inf,
    at_top: Array  # and for those that are +inf
    spread: Array | None


def _limits(
    ops: Primitives, ordered: Array, weights: GapWeights, standardised: bool
) -> _Limits | None:
    """None where every row is known to be finite."""
    xp = ops.xp
    smallest, largest = ordered[:, :1], ordered[:, -1:]
    if ops.all_finite(largest - smallest):
        return None
    finite = xp.isfinite(ordered)
    low = xp.amin(xp.where(finite, ordered, xp.inf), -1)[:, None]
    high = xp.amax(xp.where(finite, ordered, -xp.inf), -1)[:, None]
    some = low <= high
    low, high = xp.where(some, low, 0), xp.where(some, high, 0)
    signs = xp.where(xp.isinf(ordered), xp.sign(ordered), 0)
    steps, lower, upper = _gaps(signs), signs[:, :-1], signs[:, 1:]
    from_bottom = xp.where((lower == -1) & (upper > -1), weights.gap, 0)
    to_top = xp.where((lower < 1) & (upper == 1), weights.gap, 0)
    return _Limits(
        # NaN comes last in every library's sort.
        has_nan=xp.isnan(largest),
        low=low,
        high=high,
        shrink=xp.where(xp.isfinite(high - low), xp.ones_like(low), 0.25),
        constant=_constant(xp, signs, steps, weights),
        above_bottom=xp.sum(from_bottom, -1)[:, None],
        at_top=xp.sum(to_top, -1)[:, None],
        spread=_spread(xp, signs, steps, weights) if standardised else None,
    )


def _brought_in(xp: Any, ordered: Array, limits: _Limits | None) -> Array:
    """The rows with only finite rewards, and finite differences of them."""
    if limits is None:
        return ordered
    return xp.clip(ordered, limits.low, limits.high) * limits.shrink


def _at_the_limit(xp: Any, values: Array, keys: Array, limits: _Limits | None) -> Array:
    """Values of the rows brought in, (rows, N) or (rows, 1), where samples have these keys."""
    if limits is None:
        return values
    leading = (
        limits.constant
        + xp.where(keys > -xp.inf, limits.above_bottom, 0)
        + xp.where(keys == xp.inf, limits.at_top, 0)
    )
    if limits.spread is None:
        out = xp.where(leading != 0, xp.sign(leading) * xp.inf, values / limits.shrink)
    else:
        some = limits.spread > 0
        out = xp.where(some, leading / xp.where(some, limits.spread, 1), values)
    return xp.where(limits.has_nan, xp.nan, out)


def _transform(
    ops: Primitives, ordered: Array, places: Array, weights: GapWeights, standardised: bool
) -> Array:
    """Finite rows in ascending order (rows, N) → the estimator's values in the samples' places."""
    xp = ops.xp
    gaps = _gaps(ordered)
    out = ops.sum_beneath(gaps, gaps * weights.gap, places)
    out = out + _constant(xp, ordered, gaps, weights)
    if standardised:
        spread = _spread(xp, ordered, gaps, weights)
        out = out / xp.where(spread > 0, spread, xp.inf)
    return out


def _gaps(ordered: Array) -> Array:
    return ordered[:, 1:] - ordered[:, :-1]


def _constant(xp: Any, ordered: Array, gaps: Array, weights: GapWeights) -> Array:
    """What an estimator gives a row's smallest reward, (rows, 1)."""
    top = weights.anchor[..., None] * ordered[:, -1:]
    # Adding 0 turns a −0 into 0.
    return top - xp.sum(gaps * weights.below, -1)[:, None] + 0.0


def _spread(xp: Any, ordered: Array, gaps: Array, weights: GapWeights) -> Array:
    """The deviation of the best of k (rows, 1), exactly 0 where only equal rewards can be it."""
    largest = ordered[:, -1:]
    # How far the mean of the best lies below the largest: measured from there, an offset drops out.
    # A reward whose own chance has underflowed to 0 is no part of it.
    below = xp.where(weights.best > 0, weights.best_below, 0)
    lead = xp.sum(gaps * below, -1)[:, None]
    chance = xp.concatenate(
        [
            xp.broadcast_to(weights.best, gaps.shape),
            xp.broadcast_to(weights.best_top[..., None], lead.shape),
        ],
        -1,
    )
    deviation = xp.where(chance > 0, ordered - largest + lead, 0)
    # Squares of deviations relative to the largest one neither overflow nor vanish.
    unit = xp.amax(xp.abs(deviation), -1)[:, None]
    relative = deviation / xp.where(unit > 0, unit, 1)
    return unit * xp.sqrt(xp.sum(chance * relative * relative, -1)[:, None])
