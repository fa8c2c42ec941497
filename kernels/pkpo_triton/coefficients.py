"""An estimator as data, and its weights for a number of samples and a k that the host knows.

An estimator gives the i-th smallest of a row's rewards g_(1) ≤ … ≤ g_(n), with gaps
d_j = g_(j+1) − g_(j),

    max_coefficient · g_(n) − Σ_j (offset + slope · |j − origin|) · r_j d_j + gap · Σ_{j<i} r_j d_j

a row offset and an exclusive prefix sum, with r_j = C(j − index_shift, k−1)/C(n, k) and an origin
of 0, or of n−1 where it is counted from the top. Its coefficients say how these weights come about:

    gap             = (gap_1 + gap_k·k + gap_n·n + gap_nn·n(n−1)) / D
    offset          = (offset_1 + offset_k·k) / D
    slope           = (slope_1 + slope_n·n) / D
    max_coefficient = max_1 + max_k · k / (n · (n−1)^over_n_minus_1)
    D               = k^over_k · (n−k)^over_n_minus_k · (n−1)^over_n_minus_1
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

# A kernel knows these by their index.
UNDERSIZED = ("zero", "nan", "clip")


class Estimator(Protocol):
    """What the kernels ask of an estimator.

    Attributes:
        coefficients: over_k, over_n_minus_k, over_n_minus_1, gap_1, gap_k, gap_n, gap_nn, offset_1,
          offset_k, slope_1, slope_n, max_1, max_k, in this order.
        coefficients_at_k_1: the same for k = 1, or None.
        index_shift: 0 or 1.
        counted_from_top: see above.
        requires_k_lt_n: a row of n samples admits 1 ≤ k ≤ n − 1, else 1 ≤ k ≤ n.
        normalized: values are divided by the std of the best of k.
    """

    @property
    def coefficients(self) -> Sequence[int]: ...
    @property
    def coefficients_at_k_1(self) -> Sequence[int] | None: ...
    @property
    def index_shift(self) -> int: ...
    @property
    def counted_from_top(self) -> bool: ...
    @property
    def requires_k_lt_n(self) -> bool: ...
    @property
    def normalized(self) -> bool: ...


class HostWeights(NamedTuple):
    """An estimator's weights for n samples and k."""

    first_ratio: float  # r_{n−1}
    max_coefficient: float
    gap: float
    offset: float
    slope: float


def both_coefficients(estimator: Estimator) -> tuple[Sequence[int], Sequence[int]]:
    """Give an estimator's coefficients for k ≥ 2 and for k = 1."""
    at_k_1 = estimator.coefficients_at_k_1
    return estimator.coefficients, estimator.coefficients if at_k_1 is None else at_k_1


class _FromText(NamedTuple):
    """An `Estimator`."""

    coefficients: tuple[int, ...]
    coefficients_at_k_1: tuple[int, ...] | None
    index_shift: int
    counted_from_top: bool
    requires_k_lt_n: bool
    normalized: bool


def as_text(estimator: Estimator, scale: str, undersized: str) -> str:
    """Write an estimator and its options down for a torch operator, which takes no object, and is
    called the faster the fewer arguments it has."""
    traits = (
        estimator.index_shift,
        int(estimator.counted_from_top),
        int(estimator.requires_k_lt_n),
        int(estimator.normalized),
    )
    numbers = (*traits, *estimator.coefficients, *(estimator.coefficients_at_k_1 or ()))
    return " ".join([scale, undersized, *[str(number) for number in numbers]])


@lru_cache
def from_text(text: str) -> tuple[Estimator, str, str]:
    """Read what `as_text` has written: an estimator, scale and undersized."""
    scale, undersized, *numbers = text.split()
    index_shift, *traits = map(int, numbers[:4])
    coefficients = tuple(map(int, numbers[4:]))
    estimator = _FromText(
        coefficients[:13], coefficients[13:] or None, index_shift, *map(bool, traits)
    )
    return estimator, scale, undersized


def host_weights(estimator: Estimator, n: int, k: int, *, scale: str) -> HostWeights:
    """Evaluate an estimator's weights for n samples and k, times n for a scale of "mean"."""
    (
        over_k, over_n_minus_k, over_n_minus_1, gap_1, gap_k, gap_n, gap_nn,
        offset_1, offset_k, slope_1, slope_n, max_1, max_k,
    ) = both_coefficients(estimator)[k == 1]  # fmt: skip
    others, rest = max(n - 1, 1), max(n - k, 1)
    divisor = k**over_k * rest**over_n_minus_k * others**over_n_minus_1
    times = n if scale == "mean" else 1
    return HostWeights(
        first_ratio=k / n * ((n - k) / others if estimator.index_shift else 1.0),
        max_coefficient=times * (max_1 + max_k * k / (n * others**over_n_minus_1)),
        gap=times * ((gap_1 + gap_k * k + gap_n * n + gap_nn * n * (n - 1)) / divisor),
        offset=times * ((offset_1 + offset_k * k) / divisor),
        slope=times * ((slope_1 + slope_n * n) / divisor),
    )


def has_offset(estimator: Estimator, k: int | None) -> bool:
    """Tell whether gaps may weigh something in the row offset; k where the host knows it."""
    above, at_k_1 = both_coefficients(estimator)
    possible = [above, at_k_1] if k is None else [at_k_1 if k == 1 else above]
    for *_, offset_1, offset_k, slope_1, slope_n, _max_1, _max_k in possible:
        if any((offset_1, offset_k, slope_1, slope_n)):
            return True
    return False


def needs_range_scale(estimator: Estimator, *, scale: str) -> bool:
    """Tell whether numbers may overflow on the way to values that do not: not where a value is a
    single product for k ≥ 2, and for k = 1 stays below the row's range. The same for every k, as
    kernels are compiled for it."""
    *_, offset_1, offset_k, slope_1, slope_n, max_1, max_k = estimator.coefficients
    return scale == "mean" or any((offset_1, offset_k, slope_1, slope_n, max_1, max_k))
