"""What an estimator weighs the gaps of a sorted row with, for any n and k.

Sort a row's n rewards ascending, g_(1) ≤ … ≤ g_(n), and let d_j = g_(j+1) − g_(j) ≥ 0 be its gaps,
j = 1..n−1. Every reward transform here is linear in that sorted row, and what it gives a sample
depends on the sample's rank only through how many gaps lie below it:

    out_(i) = row offset + Σ_{j<i} gap_j · d_j,   row offset = max · g_(n) − Σ_j offset_j · d_j

that is, one constant a row and one exclusive prefix sum. Where the coefficient `max` is 0 a common
offset of the rewards drops out exactly, and a row of equal rewards has no gap at all. All weights
are non-negative rational multiples of two binomial ratios,

    b_j = C(j, k−1)/C(n, k)        a_j = C(j−1, k−1)/C(n, k) = b_j · (j−k+1)/j

so that no weight is ever the difference of two others. One recurrence gives them, on the host or
traced:

    b_{n−1} = k/n,   b_{j−1} = b_j · (j−k+1)/j

Run downward from k/n every factor lies in [0, 1]: nothing overflows, the run reaches an exact 0
below j = k−1, and what underflows is 0 to working precision. No binomial is formed and no logarithm
taken.

A row may hold fewer samples than its matrix has columns (`where`). Samples that are left out sort
to the front, so that the run always starts at the last column, whatever the row's own n; the
columns in front get weight 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pkpo_kernels.validation import checked_integer

# NumPy, torch and JAX arrays share no static type; here it is whichever the caller works with.
Array = Any


class Coefficients(NamedTuple):
    """An estimator's weights as numbers, with r_j = a_j where its index_shift is 1, b_j where 0:

        gap_j    = r_j · (gap_1 + gap_k·k + gap_n·n + gap_nn·n(n−1)) / D
        offset_j = r_j · (offset_1 + offset_k·k + (slope_1 + slope_n·n) · distance_j) / D
        max      = max_1 + max_k · k / (n · (n−1)^over_n_minus_1)
        D        = k^over_k · (n−k)^over_n_minus_k · (n−1)^over_n_minus_1

    distance_j is n−1−j where the estimator is counted from the top, else j. All but max_k are 0 or
    positive. Array code evaluates them here; kernels get them as they are. The formulas work for
    floats, for `fractions.Fraction` in NumPy object arrays (which is how the tests prove them), for
    torch and for JAX, traced or not.
    """

    over_k: int = 0
    over_n_minus_k: int = 0
    over_n_minus_1: int = 0
    gap_1: int = 0
    gap_k: int = 0
    gap_n: int = 0
    gap_nn: int = 0
    offset_1: int = 0
    offset_k: int = 0
    slope_1: int = 0
    slope_n: int = 0
    max_1: int = 0
    max_k: int = 0

    def max_coefficient(self, n: Array, k: Array) -> Array:
        """Weigh a row's largest reward: n, k (...) → (...)."""
        coefficient = self.max_1 + 0 * n
        if self.max_k:
            coefficient = coefficient + self.max_k * k / (n * (n - 1) if self.over_n_minus_1 else n)
        return coefficient

    def gap_weights(self, ratios: Array, n: Array, k: Array) -> Array:
        """Weigh gaps in the exclusive prefix sum: ratios r_j (..., N−1), n, k (..., 1) → the
        same."""
        return self._weights(
            ratios,
            n,
            k,
            (self.gap_1, 1),
            (self.gap_k, k),
            (self.gap_n, n),
            (self.gap_nn, n * (n - 1)),
        )

    def offset_weights(self, ratios: Array, distances: Array, n: Array, k: Array) -> Array:
        """Weigh gaps in the row offset, which subtracts them: ratios r_j and distances (..., N−1),
        n, k (..., 1) → the same."""
        slope = self._sum((self.slope_1, 1), (self.slope_n, n))
        return self._weights(
            ratios, n, k, (self.offset_1, 1), (self.offset_k, k), (slope, distances)
        )

    def _weights(self, ratios: Array, n: Array, k: Array, *terms: tuple[Array, Array]) -> Array:
        weights = ratios * self._sum(*terms)
        divisor = None
        for applies, factor in (
            (self.over_k, k),
            (self.over_n_minus_k, n - k),
            (self.over_n_minus_1, n - 1),
        ):
            if applies:
                divisor = factor if divisor is None else divisor * factor
        return weights if divisor is None else weights / divisor

    @staticmethod
    def _sum(*terms: tuple[Array, Array]) -> Array:
        # What is 0 is left out: 0 · n would be an array of work.
        return sum(
            number * x for number, x in terms if not (isinstance(number, int) and not number)
        )


@dataclass(frozen=True)
class Estimator:
    """One reward transform, as data.

    Attributes:
        name: what `transform(..., estimator=name)` calls it.
        equation: where it stands in its paper, and its definition there.
        source: that paper.
        summary: one line for people.
        coefficients: its weights as numbers.
        coefficients_at_k_1: those for k = 1, where they differ.
        index_shift: 0 or 1: its weights multiply C(j − index_shift, k−1)/C(n, k).
        counted_from_top: the distances of its row offset are n−1−j instead of j.
        requires_k_lt_n: a sample must stay outside every subset: k may be at most n − 1.
        normalized: its results are divided by the std of the best of k.
    """

    name: str
    equation: str
    source: str
    summary: str
    coefficients: Coefficients
    coefficients_at_k_1: Coefficients | None = None
    index_shift: int = 0
    counted_from_top: bool = False
    requires_k_lt_n: bool = False
    normalized: bool = False

    def largest_k(self, n: Any) -> Any:
        """The largest k that a group of n samples admits."""
        return n - int(self.requires_k_lt_n)

    def weights(self, n: int, k: int) -> GapWeights:
        """Weigh a group of n samples, in float64.

        Raises:
            ValueError: n < 1, k < 1, or a k that such a group does not admit.
            TypeError: n or k is not an integer.

        >>> from pkpo_kernels import ESTIMATORS
        >>> ESTIMATORS["sloo_minus_one"].weights(4, 2).gap        # C(j, 1) / C(4, 2)
        array([0.16666667, 0.33333333, 0.5       ])
        """
        n, k = checked_integer("n", n, least=1), checked_integer("k", k, least=1)
        if k > self.largest_k(n):
            raise ValueError(
                f"k must be at most {self.largest_k(n)} for {self.name!r}; got k={k} with n={n}"
            )
        return host_weights(self, n, n, k)


class GapWeights(NamedTuple):
    """The weights of a sorted row of N columns; see this module for the sum that they stand in."""

    k_is_valid: Array  # (...) bool: the group admits this k; where it does not, all weights are 0
    max_coefficient: Array  # (...) of the largest reward
    offset: Array  # (..., N−1) of each gap in the row offset
    gap: Array  # (..., N−1) of each gap in the exclusive prefix sum
    best: Array  # (..., N−1) a_j, the chance that the j-th smallest is the best of k, j < n
    best_of_max: Array  # (...) the same for the largest, k/n
    best_offset: Array  # (..., N−1) Σ_{i≤j} a_i, the `offset` of max@k


def gap_weights(
    estimator: Estimator,
    n_columns: int,
    n: Array,
    k: Array,
    *,
    xp: Any,
    columns: Array,
    product_from_right: Callable[[Array, Array], Array],
) -> GapWeights:
    """Weigh groups of n samples each, in the last n of N = n_columns sorted columns: n, k (...) →
    (..., N−1).

    Args:
        estimator: whose weights.
        n_columns: N ≥ 1, the width of the matrix.
        n, k: (...) arrays of whole numbers in the floating dtype to compute in; they broadcast. A k
          outside 1..estimator.largest_k(n) gives weights of 0.
        xp: numpy, torch or jax.numpy.
        columns: (N−1,) the numbers 1..N−1, in the dtype and on the device of n and k.
        product_from_right: (numerators, denominators) → the running product of their ratios, from
          the last column on.
    """
    # Gap j lies between the j-th and the (j+1)-th smallest sample of its row; j ≤ 0 in front of the
    # row's own samples.
    return _weigh(
        estimator,
        n,
        k,
        xp,
        lambda n: columns - (n_columns - n),
        lambda of_row: of_row[..., None],
        product_from_right,
    )


def segment_weights(
    estimator: Estimator,
    j: Array,
    n: Array,
    k: Array,
    *,
    xp: Any,
    product_from_right: Callable[[Array, Array], Array],
) -> GapWeights:
    """Weigh groups that lie one behind the other, each sorted ascending: each sample's rank
    j = 1..n, n and k of its group (N,) → (N,), of the gap above it, or of its group.

    product_from_right: as for `gap_weights`, starting anew where j = n − 1.
    """
    return _weigh(estimator, n, k, xp, lambda n: j, lambda of_row: of_row, product_from_right)


def _weigh(
    estimator: Estimator,
    n: Array,
    k: Array,
    xp: Any,
    numbers: Callable[[Array], Array],
    over_gaps: Callable[[Array], Array],
    product_from_right: Callable[[Array, Array], Array],
) -> GapWeights:
    """Weigh gaps: n, k (...), the numbers j of the gaps of groups of n, what spreads a value of a
    group over its gaps."""
    k_is_valid = (k >= 1) & (k <= estimator.largest_k(n))
    # Rows whose k is not valid go through the formulas as n=2, k=1, so that nothing is divided by
    # 0, and are cleared after.
    n, k = xp.where(k_is_valid, n, 2), xp.where(k_is_valid, k, 1)
    max_coefficient = xp.where(k_is_valid, _max_coefficient(estimator, n, k, xp), 0)
    best_of_max = xp.where(k_is_valid, k / n, 0)
    n, k = over_gaps(n), over_gaps(k)

    j = numbers(n)
    is_gap = (j >= 1) & (j < n) & over_gaps(k_is_valid)
    numerator = xp.where(j + 1 == n, k, xp.clip(j + 2 - k, 0, None))
    b = product_from_right(numerator, xp.clip(j + 1, 1, None))
    # The ratio first: at k=1 it is exactly 1, and a exactly 1/n.
    a = b * (xp.clip(j + 1 - k, 0, None) / xp.clip(j, 1, None))
    # A group of one has no gap at all; only its formulas' denominators need lifting.
    n = xp.clip(n, 2, None)
    ratios = a if estimator.index_shift else b
    offset, gap = row_weights(estimator, ratios, j, n, k, where=xp.where)

    def of_gaps(weights: Array) -> Array:
        return xp.where(is_gap, weights, 0)

    return GapWeights(
        k_is_valid=k_is_valid,
        max_coefficient=max_coefficient,
        offset=of_gaps(offset),
        gap=of_gaps(gap),
        best=of_gaps(a),
        best_of_max=best_of_max,
        # Σ_{i≤j} C(i−1, k−1) = C(j, k) = C(j−1, k−1) · j/k.
        best_offset=of_gaps(a * j / k),
    )


def _max_coefficient(estimator: Estimator, n: Array, k: Array, xp: Any) -> Array:
    coefficient = estimator.coefficients.max_coefficient(n, k)
    if estimator.coefficients_at_k_1 is None:
        return coefficient
    return xp.where(k == 1, estimator.coefficients_at_k_1.max_coefficient(n, k), coefficient)


def row_weights(
    estimator: Estimator,
    ratios: Array,
    j: Array,
    n: Array,
    k: Array,
    *,
    where: Callable[[Array, Array, Array], Array],
) -> tuple[Array, Array]:
    """Weigh gaps in the row offset and in the exclusive prefix sum: ratios r_j and numbers j
    (..., N−1), n, k (..., 1) → both (..., N−1). `where` is the array library's select."""
    distances = n - 1 - j if estimator.counted_from_top else j

    def weights_by(coefficients: Coefficients) -> tuple[Array, Array]:
        return (
            coefficients.offset_weights(ratios, distances, n, k),
            coefficients.gap_weights(ratios, n, k),
        )

    offset, gap = weights_by(estimator.coefficients)
    if estimator.coefficients_at_k_1 is None:
        return offset, gap
    offset_at_1, gap_at_1 = weights_by(estimator.coefficients_at_k_1)
    return where(k == 1, offset_at_1, offset), where(k == 1, gap_at_1, gap)


def clamp_k(estimator: Estimator, n: Array, k: Array, xp: Any) -> Array:
    """Cut k to what each group admits, for `undersized="clip"`: n, k (...) → (...)."""
    return xp.minimum(k, estimator.largest_k(n))


def _product_from_right(numerator: Array, denominator: Array) -> Array:
    ratios = numerator / denominator
    # The deep end of the run underflows to 0, as it should.
    with np.errstate(under="ignore"):
        return np.flip(np.cumprod(np.flip(ratios, -1), -1), -1)


# Backends keep the latest weights of rows of so many samples at most: 20 MB if all are as long.
LONGEST_KEPT = 8192


def host_weights(estimator: Estimator, n_columns: int, n: Any, k: Any) -> GapWeights:
    """Weigh groups of n samples in float64 NumPy: integers or integer arrays n, k (...) →
    (..., N−1), as `gap_weights`.

    Relative error at most 1e-12 for n up to 65536, wherever the weight is a normal float64.
    """
    n, k = np.asarray(n, np.float64), np.asarray(k, np.float64)
    with np.errstate(under="ignore"):
        return gap_weights(
            estimator,
            n_columns,
            n,
            k,
            xp=np,
            columns=np.arange(1, n_columns, dtype=np.float64),
            product_from_right=_product_from_right,
        )
