"""What the kernels are told, as plain numbers: an estimator, and the tables they read.

Without torch or JAX, so that the glue for either can be built on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Threads that a row may lie in.
MOST_LANES = 256

# A kernel knows these by their place.
UNDERSIZED = ("zero", "nan", "clip")

_RADIX_BITS = 16
_PRECISION_BITS = 100
_RATIO_BITS = 1074 + _PRECISION_BITS


class Weights(NamedTuple):
    """An estimator, as far as a kernel knows it: out_(i) = anchor · g_(n) − Σ_j below_j d_j +
    Σ_{j<i} gap_j d_j over a sorted row's gaps d_j, with weights of r_j = C(j−lag, k−1)/C(n, k):

        gap_j   = r_j · (gap_1 + gap_k·k + gap_n·n + gap_nn·n(n−1)) / D
        below_j = r_j · (below_1 + below_k·k + (slope_1 + slope_n·n) · |j − mirror·(n−1)|) / D
        anchor  = anchor_1 + anchor_k · k / (n · (n−1)^over_others)
        D       = k^over_k · (n−k)^over_rest · (n−1)^over_others

    Attributes:
        form: over_k, over_rest, over_others, gap_1, gap_k, gap_n, gap_nn, below_1, below_k,
          slope_1, slope_n, anchor_1, anchor_k, for k ≥ 2.
        form_at_1: the same for k = 1.
        lag, mirror: 0 or 1.
        spared: a row of n samples admits 1 ≤ k ≤ n − spared.
        standardised: the outcome is divided by the deviation of the best of k.
    """

    form: Sequence[int]
    form_at_1: Sequence[int]
    lag: int
    mirror: int
    spared: int
    standardised: bool

    def scalars(self, n: int, k: int) -> tuple[float, float, float, float]:
        """anchor, and the factors of r_j: gap, below, slope."""
        f = self.form_at_1 if k == 1 else self.form
        others, rest = max(n - 1, 1), max(n - k, 1)
        under = k ** f[0] * rest ** f[1] * others ** f[2]
        return (
            f[11] + f[12] * k / (n * others ** f[2]),
            (f[3] + f[4] * k + f[5] * n + f[6] * n * (n - 1)) / under,
            (f[7] + f[8] * k) / under,
            (f[9] + f[10] * n) / under,
        )

    def has_constant(self, k: int | None) -> bool:
        """Whether Σ_j below_j d_j may be other than 0; k where it is known."""
        if k is None:
            forms = [self.form, self.form_at_1]
        else:
            forms = [self.form_at_1 if k == 1 else self.form]
        return any(any(form[7:11]) for form in forms)

    def needs_range_scale(self, *, by_mean: bool) -> bool:
        """Whether numbers may overflow on the way to values that do not: not where a value is a
        single product for k ≥ 2, and for k = 1 stays below the row's range. The same for every k,
        as kernels are compiled for it."""
        return by_mean or any(self.form[7:])


def factorials_size(largest: int) -> int:
    """How many factorials a table holds that must reach `largest`: few tables serve all rows."""
    return max(1024, 1 << largest.bit_length())


def factorials(size: int) -> list[list[float]]:
    """0!, 1!, … as mantissa · 65536^exponent: (2, size), the mantissas in [1, 65536), and the
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


def inverses(chunk: int) -> list[list[float]]:
    """1/(j − lag) for sample j of a row, 0 where j ≤ lag: (2, MOST_LANES · chunk), for a lag of 0
    and of 1, each in slots."""
    js = range(MOST_LANES * chunk)
    return [
        in_slots([1 / (j - lag) if j > lag else 0.0 for j in js], chunk, MOST_LANES)
        for lag in (0, 1)
    ]


def ratios(n: int, k: int, lag: int, chunk: int, lanes: int) -> list[float]:
    """r_j = C(j−lag, k−1)/C(n, k) for sample j of a row, in slots; 0 for j=0 and beyond the row."""
    numbers = [0.0] * (lanes * chunk)
    # In fixed point, beneath the smallest of float64: what is lost on the way is lost anyway.
    r = (k << _RATIO_BITS) // n
    if lag:
        r = r * (n - k) // max(n - 1, 1)
    for j in range(n - 1, 0, -1):
        numbers[j] = r / (1 << _RATIO_BITS)
        r = r * (j - lag - k + 1) // max(j - lag, 1)
    return in_slots(numbers, chunk, lanes)


def in_slots(numbers: list[float], chunk: int, lanes: int) -> list[float]:
    """Numbers for the samples j = lane · chunk + 4 · block + neighbour of a row, sorted by block,
    then lane, then neighbour, as kernels read them."""
    return [
        numbers[lane * chunk + 4 * block + neighbour]
        for block in range(chunk // 4)
        for lane in range(lanes)
        for neighbour in range(4)
    ]
