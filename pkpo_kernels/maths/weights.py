"""The weights of an estimator, for any n and k: one recurrence, run on the host or traced.

    b_j = C(j, k−1)/C(n, k):   b_{n−1} = k/n,   b_{j−1} = b_j · (j−k+1)/j

Run downward from k/n every ratio lies in [0, 1]: nothing overflows, the run reaches an exact 0
below j = k−1, and what underflows is 0 to working precision. No binomial is formed and no logarithm
taken.

A row may hold fewer samples than its matrix has columns (`where`). Samples that are left out sort
to the front, so that the run always starts at the last column, whatever the row's own n; the
columns in front get weight 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pkpo_kernels.maths.estimators import MAX_AT_K, Array, Estimator, Place


class GapWeights(NamedTuple):
    """Weights over a sorted row of N columns, for the sum in `pkpo_kernels.maths.estimators`."""

    admitted: Array  # (...) bool: the group admits this k; where it does not, all weights are 0
    anchor: Array  # (...): of the largest reward
    below: Array  # (..., N−1): of each gap in the row's constant
    gap: Array  # (..., N−1): of each gap in the prefix scan
    best: Array  # (..., N−1): a_j, the chance that the j-th smallest is the best of k, j < n
    best_top: Array  # (...): the same for the largest, k/n
    best_below: Array  # (..., N−1): the `below` of max@k


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
    """The weights for groups of n samples each, in the last n of N = n_columns sorted columns.

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
    admitted = (k >= 1) & (k <= estimator.largest_k(n))
    # Rows that admit no k go through the formulas as n=2, k=1, so that nothing is divided by 0, and
    # are cleared after.
    n, k = xp.where(admitted, n, 2), xp.where(admitted, k, 1)
    anchor = xp.where(admitted, estimator.anchor(n, k), 0)
    best_top = xp.where(admitted, k / n, 0)
    n, k = n[..., None], k[..., None]

    # Gap j lies between the j-th and the (j+1)-th smallest sample of its row; j ≤ 0 in front of the
    # row's own samples.
    j = columns - (n_columns - n)
    live = (j >= 1) & admitted[..., None]
    numerator = xp.where(j + 1 == n, k, xp.clip(j + 2 - k, 0, None))
    b = product_from_right(numerator, xp.clip(j + 1, 1, None))
    # The ratio first: at k=1 it is exactly 1, and a exactly 1/n.
    a = b * (xp.clip(j + 1 - k, 0, None) / xp.clip(j, 1, None))
    # A group of one has no gap at all; only its formulas' denominators need lifting.
    place = Place(j=j, n=xp.clip(n, 2, None), k=k, b=b, a=a, where=xp.where)

    def over_gaps(weight: Array) -> Array:
        return xp.where(live, weight, 0)

    return GapWeights(
        admitted=admitted,
        anchor=anchor,
        below=over_gaps(estimator.below(place)),
        gap=over_gaps(estimator.gap(place)),
        best=over_gaps(a),
        best_top=best_top,
        best_below=over_gaps(MAX_AT_K.below(place)),
    )


def clip_k(estimator: Estimator, n: Array, k: Array, xp: Any) -> Array:
    """`undersized="clip"`: the row's own largest k where it has fewer samples than k asks for."""
    return xp.minimum(k, estimator.largest_k(n))


def _product_from_right(numerator: Array, denominator: Array) -> Array:
    ratios = numerator / denominator
    # The deep end of the run underflows to 0, as it should.
    with np.errstate(under="ignore"):
        return np.flip(np.cumprod(np.flip(ratios, -1), -1), -1)


def host_weights(estimator: Estimator, n_columns: int, n: Any, k: Any) -> GapWeights:
    """`gap_weights` in float64 NumPy; n and k are integers or integer arrays.

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
