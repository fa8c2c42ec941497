"""An estimator's weights, row offsets, prefix sums and values, for the rows of a block.

The formula and the names of its weights: `pkpo_triton.coefficients`. A row with a NaN or an
infinity, or whose range overflows, becomes NaN through what is added to its largest: 0·x for each
of its rewards, and 0·(largest − smallest).
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.binomial import chain_next, chain_start, inverses
from pkpo_triton.layout import from_previous_thread, over_threads


class Weights(NamedTuple):
    """What an estimator weighs sorted rows with; each () or (T,)."""

    max_coefficient: Any
    gap: Any
    offset: Any
    slope: Any
    origin: Any
    has_offset: Any  # a number, 0 where no gap weighs anything in the row offset
    if_invalid: Any  # NaN where a row without a valid k shall be NaN, else 0


@triton.jit
def estimator_weights(coefficients_ptr, n, k):
    """Evaluate an estimator's weights for n samples and k, () or (T,): max_coefficient, gap, offset
    and slope. Its coefficients lie at coefficients_ptr, (2, 13): for k ≥ 2, for k = 1."""
    first = k == 1
    coefficients = ()
    for i in tl.static_range(13):
        at_k_1 = tl.load(coefficients_ptr + 13 + i)
        coefficients = coefficients + (tl.where(first, at_k_1, tl.load(coefficients_ptr + i)),)
    (
        over_k, over_n_minus_k, over_n_minus_1, gap_1, gap_k, gap_n, gap_nn,
        offset_1, offset_k, slope_1, slope_n, max_1, max_k,
    ) = coefficients  # fmt: skip
    n, k = n.to(tl.float32), k.to(tl.float32)
    others, rest = tl.maximum(n - 1, 1), tl.maximum(n - k, 1)
    others_divisor = 1 + over_n_minus_1 * (others - 1)
    divisor = (1 + over_k * (k - 1)) * (1 + over_n_minus_k * (rest - 1)) * others_divisor
    gap = (gap_1 + gap_k * k + gap_n * n + gap_nn * (n * (n - 1))) / divisor
    offset = (offset_1 + offset_k * k) / divisor
    slope = (slope_1 + slope_n * n) / divisor
    max_coefficient = max_1 + max_k * tl.div_rn(k, n * others_divisor)
    return max_coefficient, gap, offset, slope


@triton.jit
def times(weights, factor):
    """Multiply weights with () or (T,)."""
    return Weights(
        weights.max_coefficient * factor,
        weights.gap * factor,
        weights.offset * factor,
        weights.slope * factor,
        weights.origin,
        weights.has_offset,
        weights.if_invalid,
    )


@triton.jit
def ends(low, high, irregular, layout: tl.constexpr):
    """Find the smallest and the largest of each row from those of its threads, (T,) → two (T,); the
    largest is NaN where the row has a NaN or an infinity, or where its range overflows."""
    if layout.THREADS_PER_ROW > 1:
        # A maximum over threads drops a NaN, but never an infinity.
        high = tl.where(irregular == 0, high, float("inf"))
    else:
        high += irregular
    low, high = -over_threads(-low, True, layout), over_threads(high, True, layout)
    return low, high + (high - low) * 0.0


@triton.jit
def range_scale(low, high, RANGE_SCALED: tl.constexpr):
    """Choose what a row's estimator is multiplied with, so that nothing overflows on the way to its
    values, and what these are: () or (T,) → two of them. 1 but for rewards almost as large as they
    get: there 2^−24 and 2^24, which outweighs the length of any row; less would lose what is small
    in such a row."""
    if RANGE_SCALED:
        LARGE: tl.constexpr = 2.0**100
        large = tl.maximum(tl.abs(low), tl.abs(high)) > LARGE
        scale = tl.where(large, 2.0**-24, 1.0).to(tl.float32)
        unscale = tl.where(large, 2.0**24, 1.0).to(tl.float32)
    else:
        scale = tl.full([], 1.0, tl.float32)
        unscale = scale
    return scale, unscale


@triton.jit
def gaps_in_threads(ordered, thread, layout: tl.constexpr):
    """Compute the gap between each sample of sorted rows and the one before, 0 in front of a row's
    first: S × (T,) → S × (T,)."""
    first = tl.zeros([layout.THREADS], ordered[0].dtype)
    if layout.THREADS_PER_ROW > 1:
        last = ordered[layout.SAMPLES_PER_THREAD - 1]
        first = ordered[0] - from_previous_thread(last, ordered[0], thread, layout)
    gaps = (first,)
    for c in tl.static_range(1, layout.SAMPLES_PER_THREAD):
        gaps = gaps + (ordered[c] - ordered[c - 1],)
    return gaps


@triton.jit
def offset_sum(gaps, ratio, weights, thread, layout: tl.constexpr):
    """Add up what gaps take from a row's offset, Σ (offset + slope · |j − origin|) · r_j d_j: twice
    S × (T,) → (T,)."""
    out = tl.zeros_like(gaps[0])
    number = (thread % layout.THREADS_PER_ROW * layout.SAMPLES_PER_THREAD).to(tl.float32)
    for c in tl.static_range(layout.SAMPLES_PER_THREAD):
        distance = tl.abs(number + c - weights.origin)
        out += (weights.offset + weights.slope * distance) * (ratio[c] * gaps[c])
    return over_threads(out, False, layout)


@triton.jit
def prefix_sums(gaps, ratio, thread, layout: tl.constexpr):
    """Add up all that is sorted before, Σ_{j<i} r_j d_j: twice S × (T,) → S × (T,). Equal rewards
    get equal bits: a gap of 0 adds nothing."""
    total = gaps[0]
    if layout.THREADS_PER_ROW > 1:
        total = ratio[0] * gaps[0]
    sums = (total,)
    for c in tl.static_range(1, layout.SAMPLES_PER_THREAD):
        total = tl.fma(tl.broadcast_to(ratio[c], total.shape), gaps[c], total)
        sums = sums + (total,)
    if layout.THREADS_PER_ROW > 1:
        through = tl.cumsum(tl.reshape(total, [layout.BLOCK_ROWS, layout.THREADS_PER_ROW]), 1)
        through = tl.reshape(through, [layout.THREADS])
        before = from_previous_thread(through, 0.0, thread, layout)
        of_thread = sums
        sums = ()
        for c in tl.static_range(layout.SAMPLES_PER_THREAD):
            sums = sums + (before + of_thread[c],)
    return sums


@triton.jit
def std(ordered, largest, sizes, thread, tables, layout: tl.constexpr):
    """Compute the std of the best of k of sorted rows: S × (T,) → (T,), exactly 0 where only equals
    can be it."""
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    # The chance of sample j, counted from 0, to be the best of k is C(j, k−1) / C(n, k).
    top = sizes.k_is_valid * chain_start(sizes, thread, tables, 0, layout)
    inverse = inverses(tables, 0, layout)
    # How far the mean of the best lies below the largest: measured from there, an offset drops out.
    mean = tl.zeros([layout.THREADS], tl.float32)
    unit = tl.zeros([layout.THREADS], tl.float32)
    variance = tl.zeros([layout.THREADS], tl.float32)
    for scan in tl.static_range(3):
        chance = top
        for back in tl.static_range(S):
            valid = chance > 0
            if layout.PARTIAL:
                number = thread % layout.THREADS_PER_ROW * S + (S - 1 - back)
                valid = valid & (number < sizes.n)
            below = largest - ordered[S - 1 - back]
            deviation = tl.where(valid, mean - below, 0.0)
            if scan == 0:
                mean += tl.where(valid, chance * below, 0.0)
            elif scan == 1:
                unit = tl.maximum(unit, tl.abs(deviation))
            else:
                # Relative to the largest, squares neither overflow nor vanish.
                deviation = deviation / tl.where(unit > 0, unit, 1.0)
                variance += chance * (deviation * deviation)
            if back < S - 1:
                chance = chain_next(chance, S - 1 - back, sizes, thread, inverse, 0, layout)
        if scan == 0:
            mean = over_threads(mean, False, layout)
        elif scan == 1:
            unit = over_threads(unit, True, layout)
    return unit * tl.sqrt(over_threads(variance, False, layout))


@triton.jit
def values(sums, offset, largest, deviation, weights, unscale, traits: tl.constexpr):
    """Turn prefix sums into the estimator's values: any number of (T,) → as many (T,); offset,
    largest, deviation and unscale () or (T,)."""
    # Adding 0 turns a −0 into 0.
    smallest = (weights.max_coefficient * largest - offset) + 0.0 + weights.if_invalid
    divisor = tl.where(deviation > 0, deviation, float("inf"))
    out = ()
    for c in tl.static_range(len(sums)):
        value = weights.gap * sums[c] + smallest
        if traits.NORMALIZED:
            value = value / divisor
        out = out + (value * unscale if traits.RANGE_SCALED else value,)
    return out
