"""The estimators, a row of the table for each: its equation, its limits on k, its coefficients.

What the numbers mean: `pkpo_kernels.maths.weights.Coefficients`. How to add one: CONTRIBUTING.md.

Equation numbers are those of Walder & Karkhanis, "Pass@K Policy Optimization" (2025), arXiv
2505.15201.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from pkpo_kernels.maths.weights import Coefficients, Estimator
from pkpo_kernels.typing import EstimatorName

PKPO = "Walder & Karkhanis 2025, arXiv 2505.15201"

_ALL = (
    Estimator(
        name="sloo_minus_one",
        equation="Eq 33: (1/C(n,k)) Σ_{I∋i} (max_I − max_{I∖i}); at k=1 Eq 26 divided by n",
        source=PKPO,
        summary="the paper's PKPO: leave-one-out baseline on subsets of k−1",
        coefficients=Coefficients(gap_1=1),
        # There the same as "centered", whose ratios are one, too: C(j, 0) = C(j − 1, 0).
        coefficients_at_k_1=Coefficients(over_n_minus_1=1, gap_n=1, offset_1=1, slope_1=1),
        counted_from_top=True,
    ),
    Estimator(
        name="sloo",
        equation="Eq 29: s_i − (1/(n−1)) Σ_{j≠i} S(j, k, all but i)",
        source=PKPO,
        summary="leave-one-out baseline on subsets of k; needs k < n",
        coefficients=Coefficients(
            over_n_minus_k=1, over_n_minus_1=1, gap_k=1, gap_nn=1, offset_k=1, slope_n=1, max_k=-1
        ),
        index_shift=1,
        counted_from_top=True,
        requires_k_lt_n=True,
    ),
    Estimator(
        name="s",
        equation="Eq 8 and 19: (1/C(n,k)) Σ_{I∋i} max_I",
        source=PKPO,
        summary="unbiased, without a baseline",
        coefficients=Coefficients(gap_1=1, offset_1=1, max_k=1),
        index_shift=1,
    ),
    Estimator(
        name="centered",
        equation="n/(n−k) · (s_i − mean s)",
        source="s of Eq 19, centred and rescaled so that it stays unbiased",
        summary="sums to zero over the group; needs k < n",
        coefficients=Coefficients(over_n_minus_k=1, gap_n=1, offset_1=1, slope_1=1),
        index_shift=1,
        counted_from_top=True,
        requires_k_lt_n=True,
    ),
    Estimator(
        name="passk_training",
        equation="(n/k · s_i − max@k) / sigma, the mean and deviation of the best of k",
        source="Chen et al. 2025, arXiv 2508.10751",
        summary="the analytical pass@k advantage, for continuous rewards too",
        coefficients=Coefficients(over_k=1, gap_n=1, offset_1=1, slope_1=1),
        index_shift=1,
        counted_from_top=True,
        normalized=True,
    ),
)

if TYPE_CHECKING:

    class _Estimators(Mapping[EstimatorName, Estimator]):
        # Iteration gives names that `transform` takes, and any string may be asked for.
        def __getitem__(self, name: str, /) -> Estimator: ...


ESTIMATORS = cast("_Estimators", MappingProxyType({e.name: e for e in _ALL}))

# max@k itself has coefficients of the same kind, with nothing to scan: a constant a row.
MAX_AT_K = Estimator(
    name="max_at_k",
    equation="Eq 12–14: Σ_i C(i−1,k−1)/C(n,k) · g_(i)",
    source=PKPO,
    summary="the mean of the best of k samples; pass@k on 0/1 rewards",
    coefficients=Coefficients(over_k=1, slope_1=1, max_1=1),
    index_shift=1,
)
