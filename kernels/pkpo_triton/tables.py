"""The numbers of the tables that kernels read, made on the host.

Without torch or JAX, so that the glue for either can be built on it.
"""

from __future__ import annotations

from pkpo_triton.coefficients import HostWeights
from pkpo_triton.plan import MOST_THREADS_PER_ROW

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
    n: int, k: int, index_shift: int, counted_from_top: bool, weights: HostWeights
) -> list[list[float]]:
    """List what an estimator weighs the gap below sample j with, in the sums of all above it and in
    the row offset: (2, n), 0 for j=0."""
    origin = n - 1 if counted_from_top else 0
    r = _ratios_in_order(n, k, index_shift)
    in_offset = [(weights.offset + weights.slope * abs(j - origin)) * r[j] for j in range(n)]
    return [[weights.gap * ratio for ratio in r], in_offset]


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


def in_slots(numbers: list[float], samples_per_thread: int, threads_per_row: int) -> list[float]:
    """Sort numbers for the samples j = thread · samples_per_thread + 4 · block + neighbour of a row
    by block, then thread, then neighbour, as kernels read them."""
    return [
        numbers[thread * samples_per_thread + 4 * block + neighbour]
        for block in range(samples_per_thread // 4)
        for thread in range(threads_per_row)
        for neighbour in range(4)
    ]
