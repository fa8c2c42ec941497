"""The numbers of the tables that kernels read, made on the host.

Without torch or JAX, so that the glue for either can be built on it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pkpo_triton.coefficients import (
    Estimator,
    HostWeights,
    as_text,
    from_text,
    has_offset,
    host_weights,
)
from pkpo_triton.plan import MOST_THREADS_PER_ROW

# Of `row_weights`, which kernels read four at a time.
NUMBERS_OF_ROW = 8


class PackedWeights(NamedTuple):
    """What a packed kernel is given of an estimator."""

    table: str  # "gap_weights" or "row_weights"
    arguments: tuple[Any, ...]  # of that function
    has_offset: bool  # gaps may weigh something in the row offset
    max_coefficient: float  # of whole rows


def packed_weights(
    estimator: Estimator,
    n: int,
    k: int,
    *,
    slots: tuple[int, int],
    masked: bool,
    scale: str,
    undersized: str,
) -> PackedWeights:
    """Choose a packed kernel's weights for rows of n samples, in slots of so many samples a thread
    and so many threads; if masked, more of them may be left out."""
    if masked:
        rules = as_text(estimator, scale, undersized)
        of_k = None if undersized == "clip" else k
        return PackedWeights("row_weights", (rules, *slots, k), has_offset(estimator, of_k), 0.0)
    weights = host_weights(estimator, n, k, scale=scale)
    arguments = (n, k, *slots, estimator.index_shift, estimator.counted_from_top, weights)
    offset = has_offset(estimator, k)
    return PackedWeights("gap_weights", arguments, offset, weights.max_coefficient)


def has_packed_weights(estimator: Estimator, *, masked: bool, undersized: str) -> bool:
    """Tell whether there are any: see `row_weights` of those that are not."""
    clips = masked and undersized == "clip"
    return not estimator.normalized and not (
        clips and estimator.requires_k_lt_n > estimator.index_shift
    )


_RADIX_BITS = 16
_PRECISION_BITS = 100
_RATIO_BITS = 1074 + _PRECISION_BITS


def factorials_size(largest: int) -> int:
    """Choose how many factorials a table holds that must reach `largest`: few tables serve all."""
    return max(1024, 1 << largest.bit_length())


def factorials(size: int) -> list[list[float]]:
    """List 0!, 1!, … as mantissa · 65536^exponent: (2, size), the mantissas in [1, 65536), and the
    exponents."""
    mantissas, exponents = [], []
    # n! in fixed point: a hundred bits lose 2^−100 of it in a step.
    mantissa, exponent = 1 << _PRECISION_BITS, 0
    for n in range(size):
        mantissa *= max(n, 1)
        while mantissa >> (_PRECISION_BITS + _RADIX_BITS):
            mantissa >>= _RADIX_BITS
            exponent += 1
        mantissas.append(mantissa / (1 << _PRECISION_BITS))
        exponents.append(float(exponent))
    return [mantissas, exponents]


def inverses(samples_per_thread: int) -> list[list[float]]:
    """List 1/(j − index_shift) for sample j of a row, 0 where j ≤ index_shift: (2,
    MOST_THREADS_PER_ROW · samples_per_thread), for an index shift of 0 and of 1, each in slots."""
    js = range(MOST_THREADS_PER_ROW * samples_per_thread)
    return [
        in_slots(
            [1 / (j - index_shift) if j > index_shift else 0.0 for j in js],
            samples_per_thread,
            MOST_THREADS_PER_ROW,
        )
        for index_shift in (0, 1)
    ]


def ratios(
    n: int, k: int, index_shift: int, samples_per_thread: int, threads_per_row: int
) -> list[float]:
    """List r_j = C(j − index_shift, k−1)/C(n, k) for sample j of a row, in slots; 0 for j=0 and
    beyond the row."""
    numbers = [0.0] * (threads_per_row * samples_per_thread)
    numbers[:n] = _ratios_in_order(n, k, index_shift)
    return in_slots(numbers, samples_per_thread, threads_per_row)


def gap_weights(
    n: int,
    k: int,
    samples_per_thread: int,
    threads_per_row: int,
    index_shift: int,
    counted_from_top: bool,
    weights: HostWeights,
) -> list[list[float]]:
    """List what an estimator weighs the gap below sample j with, in the sums of all above it and in
    the row offset: (2, threads_per_row · samples_per_thread), 0 for j=0 and from n on, in slots."""
    origin = n - 1 if counted_from_top else 0
    r = _ratios_in_order(n, k, index_shift)
    in_offset = [(weights.offset + weights.slope * abs(j - origin)) * r[j] for j in range(n)]
    filled = [0.0] * (threads_per_row * samples_per_thread - n)
    return [
        in_slots([*numbers, *filled], samples_per_thread, threads_per_row)
        for numbers in ([weights.gap * ratio for ratio in r], in_offset)
    ]


def row_weights(rules: str, samples_per_thread: int, threads_per_row: int, k: int) -> list[float]:
    """List what an estimator weighs the gaps of rows of 0 … n valid samples with, n as many as the
    threads hold, each a multiple of 4: first NUMBERS_OF_ROW for each number of samples,

        where its ratios are, factor, gap, max_coefficient, start, step, 0, 0

    then, in slots, what times the factor is r_j for j = 0 … n−1: C(j − index_shift, k−1), scaled,
    for all rows that admit k. start + step · j is what r_j is multiplied with in the row offset.

    rules: `coefficients.as_text` of an estimator for which the smaller of two samples weighs
    nothing at the largest k: for "clip" only the gap below a row's largest weighs something.
    """
    estimator, scale, undersized = from_text(rules)
    n = samples_per_thread * threads_per_row
    slots = in_slots(list(range(n)), samples_per_thread, threads_per_row)
    slot_of = dict(zip(slots, range(n), strict=True))
    # Of two numbers from 1 to C(n, k), one in a row's ratios and one in its factor, each gets half.
    # As far as `plan.MOST_BITS_MASKED` the smallest and the largest are normal numbers of float32.
    scaled = 1 << math.comb(n, k).bit_length() // 2
    numbers: list[float] = []
    first = NUMBERS_OF_ROW * (n + 1)
    for m in range(n + 1):
        largest_k = m - estimator.requires_k_lt_n
        k_of_row = min(k, largest_k) if undersized == "clip" else k
        if not 1 <= k_of_row <= largest_k:
            of_largest = math.nan if undersized == "nan" else 0.0
            numbers += [first, 0.0, 0.0, of_largest, 0.0, 0.0, 0.0, 0.0]
            continue
        if k_of_row == k:
            at, factor = first, scaled / math.comb(m, k)
        else:
            # From here on the window of the top gap's slot modulo 4 has a 1 at that slot.
            slot = slot_of[m - 1]
            at = first + n + 2 * n * (slot % 4) + n - slot // 4 * 4
            below = max(m - 1 - estimator.index_shift, 0)
            factor = math.comb(below, k_of_row - 1) / math.comb(m, k_of_row)
        weights = host_weights(estimator, m, k_of_row, scale=scale)
        start, step = weights.offset, weights.slope
        if estimator.counted_from_top:
            start, step = start + step * (m - 1), -step
        numbers += [at, factor, weights.gap, weights.max_coefficient, start, step, 0.0, 0.0]
    numerators = [math.comb(max(j - estimator.index_shift, 0), k - 1) / scaled for j in range(n)]
    numbers += [numerators[j] if j else 0.0 for j in slots]
    if undersized == "clip":
        for window in range(4):
            numbers += [float(j == n + window) for j in range(2 * n)]
    return numbers


def _ratios_in_order(n: int, k: int, index_shift: int) -> list[float]:
    """List r_j for j = 0 … n−1, 0 for j=0."""
    numbers = [0.0] * n
    # In fixed point, finer than the smallest of float64: what is lost on the way is lost anyway.
    r = (k << _RATIO_BITS) // n
    if index_shift:
        r = r * (n - k) // max(n - 1, 1)
    for j in range(n - 1, 0, -1):
        numbers[j] = r / (1 << _RATIO_BITS)
        r = r * (j - index_shift - k + 1) // max(j - index_shift, 1)
    return numbers


def in_slots(numbers: list[Any], samples_per_thread: int, threads_per_row: int) -> list[Any]:
    """Sort numbers for the samples j = thread · samples_per_thread + 4 · block + neighbour of a row
    by block, then thread, then neighbour, as kernels read them."""
    return [
        numbers[thread * samples_per_thread + 4 * block + neighbour]
        for block in range(samples_per_thread // 4)
        for thread in range(threads_per_row)
        for neighbour in range(4)
    ]
