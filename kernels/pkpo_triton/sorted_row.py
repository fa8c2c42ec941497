"""Finish one sorted row of any length in memory: a program walks along it, block by block.

Once for the row's offset, once more for the prefix sums, whose values it writes straight to the
samples' own offsets. What an estimator is: see `coefficients`; what becomes of NaN, infinities and
rewards that are very large: see `estimator`. There a ratio r_j comes from its neighbour; here each
stands alone, taken from a table of factorials, so that an error does not grow along the row.

Samples left out stand behind the row's n valid ones, as +inf, or 2 among bools, but for a NaN, and
take the value of the largest of these, so that the gaps above are 0.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.binomial import half_power, narrow_k, valid_sizes
from pkpo_triton.estimator import Weights, estimator_weights, range_scale, times

# A k beyond the longest row, as good as any larger one.
MOST_K = 1 << 30


class Row(NamedTuple):
    """A sorted row in memory."""

    ptr: Any
    n_samples: Any
    high: Any  # its largest valid reward, or an infinity


class Ratio(NamedTuple):
    """What the ratios of a row have in common: see `_ratios`."""

    n: Any
    k: Any
    mantissa: Any
    exponent: Any
    at_k_1: Any
    factorials_ptr: Any
    factorials_size: Any


@triton.jit
def _factorial(i, factorials_ptr, factorials_size):
    """Load i! as mantissa and exponent, for whole numbers i ≥ 0: () or (BLOCK,) → two of them."""
    return tl.load(factorials_ptr + i), tl.load(factorials_ptr + factorials_size + i)


@triton.jit
def _common_ratio(sizes, factorials_ptr, factorials_size):
    """Compute what the ratios of a row have in common, times k_is_valid: `Ratio`, each ()."""
    over, over_exponent = _factorial(sizes.n - sizes.k, factorials_ptr, factorials_size)
    under, under_exponent = _factorial(sizes.n, factorials_ptr, factorials_size)
    k, n = sizes.k.to(tl.float32), sizes.n.to(tl.float32)
    mantissa = sizes.k_is_valid * k * tl.div_rn(over, under)
    # At k=1 exactly what an estimator's max coefficient may be, so that the two cancel.
    at_k_1 = sizes.k_is_valid * tl.div_rn(k, n)
    exponent = over_exponent - under_exponent
    return Ratio(sizes.n, sizes.k, mantissa, exponent, at_k_1, factorials_ptr, factorials_size)


@triton.jit
def _ratios(i, common):
    """Compute C(i, k−1) / C(n, k), times k_is_valid, for whole numbers i < n: (BLOCK,) → (BLOCK,);
    0 for i < k−1 and for i ≥ n.

    = k · i! (n−k)! / ((i−k+1)! n!) from a table of factorials, mantissa · 65536^exponent: first
    all mantissas, then all exponents.
    """
    k = common.k
    inside = (i >= k - 1) & (i < common.n)
    # The table reaches as far as the row does, and a block may reach further.
    i = tl.where(inside, i, k - 1)
    over, over_exponent = _factorial(i, common.factorials_ptr, common.factorials_size)
    under, under_exponent = _factorial(i - k + 1, common.factorials_ptr, common.factorials_size)
    half = half_power(common.exponent + (over_exponent - under_exponent))
    ratio = (over / under * common.mantissa) * half * half
    return tl.where(inside, tl.where(k == 1, common.at_k_1, ratio), 0.0)


@triton.jit
def _larger(a, b):
    """Take the larger of two."""
    return tl.maximum(a, b)


@triton.jit
def _rewards(row, i):
    """Load the rewards number i ≥ −1 of a sorted row, none above row.high; in front of the first
    stands the first, and row.high behind the last: (BLOCK,) → (BLOCK,)."""
    pointers, inside = row.ptr + tl.maximum(i, 0), i < row.n_samples
    if row.ptr.dtype.element_ty.is_floating():
        x = tl.load(pointers, mask=inside, other=float("inf"))
    else:
        x = tl.load(pointers, mask=inside, other=2)
    return tl.minimum(x.to(tl.float32), row.high)


@triton.jit
def _gaps(row, i):
    """Compute the gaps between the rewards number i of a sorted row and those in front: (BLOCK,) →
    (BLOCK,)."""
    return _rewards(row, i) - _rewards(row, i - 1)


class Rules(NamedTuple):
    """How a row is transformed, as numbers."""

    requires_k_lt_n: Any
    undersized: Any  # an index into `coefficients.UNDERSIZED`
    by_mean: Any
    counted_from_top: Any


class Kind(NamedTuple):
    """What a kernel is compiled for; constants, to be bound as a `layout.Layout` is."""

    MASKED: Any
    MAX_AT_K: Any  # a single number for the row, and no coefficients are read
    INDEX_SHIFT: Any
    NORMALIZED: Any
    BLOCK: Any


@triton.jit
def load_k(k, k_ptr, K: tl.constexpr):
    """Load k from where K says that it is: "int", the argument; else in memory → ()."""
    if K == "int":
        return tl.full([], k, tl.int32)
    else:
        return narrow_k(tl.load(k_ptr))


@triton.jit
def finish_row(
    ordered_ptr, offsets_ptr, out_ptr, where_ptr, where_stride, n_samples, n_valid, k, factor,
    rules, coefficients_ptr, factorials_ptr, factorials_size, kind: tl.constexpr,
):  # fmt: skip
    """Store the values of one sorted row (n_samples,), times a factor, at its samples' offsets,
    BLOCK at a time."""
    every = tl.arange(0, kind.BLOCK)  # (BLOCK,)
    zero = tl.full([], 0.0, tl.float32)  # ()
    # What is summed up over blocks: rounding there would add up along a row of a million.
    nothing = tl.full([], 0.0, tl.float64)  # ()

    # The estimator for the row's n and k.
    if rules.undersized == 2:
        k = tl.minimum(k, n_valid - rules.requires_k_lt_n)  # ()
    sizes = valid_sizes(n_valid, k, rules.requires_k_lt_n)  # ()
    is_zero = (sizes.k_is_valid > 0) | (rules.undersized != 1)  # ()
    if_invalid = tl.where(is_zero, 0.0, float("nan")).to(tl.float32)  # ()
    origin = (rules.counted_from_top * (sizes.n - 1)).to(tl.float32)  # ()
    if kind.MAX_AT_K:
        slope = 1 / sizes.k.to(tl.float32)  # ()
        weights = Weights(zero + 1, zero, zero, slope, origin, 1, if_invalid)  # ()
        weights = times(weights, sizes.k_is_valid)  # ()
    else:
        max_coefficient, gap, offset, slope = estimator_weights(
            coefficients_ptr, sizes.n, sizes.k
        )  # ()
        weights = Weights(max_coefficient, gap, offset, slope, origin, 1, if_invalid)  # ()
        by_size = tl.where(rules.by_mean != 0, n_valid, 1).to(tl.float32)  # ()
        weights = times(weights, sizes.k_is_valid * by_size)  # ()
    common = _common_ratio(sizes, factorials_ptr, factorials_size)  # ()

    low = tl.load(ordered_ptr).to(tl.float32)  # ()
    high = tl.load(ordered_ptr + tl.maximum(n_valid - 1, 0)).to(tl.float32)  # ()
    row = Row(ordered_ptr, n_samples, high)
    # NaN comes last in a sort, behind what is left out too, and infinities come first and last.
    last = tl.load(ordered_ptr + n_samples - 1).to(tl.float32)  # ()
    largest = tl.where(last == last, high + (high - low) * 0.0, last)  # ()
    scale, unscale = range_scale(low, high, True)  # ()
    weights = times(weights, scale)  # ()

    # The row's offset; the mean of the best of k, measured down from the largest so that a common
    # offset drops out; how far down it can lie.
    offset_sum, mean, reach = nothing, nothing, zero  # ()
    if kind.NORMALIZED or ((weights.offset != 0) | (weights.slope != 0)):
        for start in tl.range(0, n_samples, kind.BLOCK):
            i = start + every  # (BLOCK,)
            ratios = _ratios(i - kind.INDEX_SHIFT, common)  # (BLOCK,)
            distance = tl.abs(i.to(tl.float32) - weights.origin)  # (BLOCK,)
            terms = ratios * (weights.offset + weights.slope * distance) * _gaps(row, i)  # (BLOCK,)
            offset_sum += tl.sum(terms, 0).to(tl.float64)  # ()
            if kind.NORMALIZED:
                chance = _ratios(i, common)  # (BLOCK,)
                below = largest - _rewards(row, i)  # (BLOCK,)
                mean += tl.sum(chance * below, 0).to(tl.float64)  # ()
                reach = tl.maximum(reach, tl.max(tl.where(chance > 0, below, 0.0), 0))  # ()
    # Adding 0 turns a −0 into 0.
    smallest = weights.max_coefficient * largest - offset_sum.to(tl.float32)  # ()
    smallest = smallest + 0.0 + weights.if_invalid  # ()

    divisor = zero + 1  # ()
    if kind.NORMALIZED:
        mean_below = mean.to(tl.float32)  # ()
        # The largest deviation: relative to it, squares neither overflow nor vanish.
        unit = tl.maximum(mean_below, reach - mean_below)  # ()
        divided_by = tl.where(unit > 0, unit, 1.0)  # () whose inverse may be infinite
        variance = nothing  # ()
        for start in tl.range(0, n_samples, kind.BLOCK):
            i = start + every  # (BLOCK,)
            chance = _ratios(i, common)  # (BLOCK,)
            below = largest - _rewards(row, i)  # (BLOCK,)
            relative = (mean_below - below) / divided_by  # (BLOCK,)
            relative = tl.where(chance > 0, relative, 0.0)  # (BLOCK,)
            variance += tl.sum(chance * relative * relative, 0).to(tl.float64)  # ()
        std = unit * tl.sqrt(variance).to(tl.float32)  # ()
        divisor = tl.where(std > 0, std, float("inf"))  # ()

    if kind.MAX_AT_K:
        tl.store(out_ptr, smallest * unscale)
    else:
        before = nothing  # () the sum over all blocks before
        level = zero  # () the prefix sum of the sample before
        for start in tl.range(0, n_samples, kind.BLOCK):
            i = start + every  # (BLOCK,)
            inside = i < n_samples  # (BLOCK,)
            gaps = _gaps(row, i)  # (BLOCK,)
            terms = _ratios(i - kind.INDEX_SHIFT, common) * gaps  # (BLOCK,)
            sums = before.to(tl.float32) + tl.cumsum(terms, 0)  # (BLOCK,)
            before += tl.sum(terms, 0).to(tl.float64)  # ()
            # A parallel scan may add in another order from sample to sample. Where there is no gap,
            # carry the sum on; the true sums never fall, so a running maximum does it.
            sums = tl.where(gaps > 0, tl.maximum(sums, level), level)  # (BLOCK,)
            sums = tl.associative_scan(sums, 0, _larger)  # (BLOCK,)
            level = tl.max(sums, 0)  # ()
            value = weights.gap * sums + smallest  # (BLOCK,)
            if kind.NORMALIZED:
                value = value / divisor  # (BLOCK,)
            value = value * unscale * factor  # (BLOCK,)
            offsets = tl.load(offsets_ptr + i, mask=inside, other=0)  # (BLOCK,)
            if kind.MASKED:
                valid = tl.load(where_ptr + offsets * where_stride, mask=inside)
                value = tl.where(valid != 0, value, 0.0)  # (BLOCK,)
            tl.store(out_ptr + offsets, value, mask=inside)
