"""Each estimator as data: its equation, its limits on k, its weights over a sorted row's gaps.

Sort a row's n rewards ascending, g_(1) ≤ … ≤ g_(n), and let d_j = g_(j+1) − g_(j) ≥ 0 be its gaps,
j = 1..n−1. Every reward transform here is linear in that sorted row, and what it gives a sample
depends on the sample's place only through how many gaps lie beneath it:

    out_(i) = anchor · g_(n) − Σ_j below_j · d_j + Σ_{j<i} gap_j · d_j

that is, one constant a row and one prefix scan. Where `anchor` is 0 a common offset of the rewards
drops out exactly, and a row of equal rewards has no gap at all. All weights are non-negative
rational multiples of two binomial ratios,

    b_j = C(j, k−1) / C(n, k)           a_j = C(j−1, k−1) / C(n, k) = b_j · (j−k+1)/j

so that no weight is ever the difference of two others. The formulas below work for floats, for
`fractions.Fraction` in NumPy object arrays (which is how the tests prove them), for torch and for
JAX, traced or not.

Equation numbers are those of Walder & Karkhanis, "Pass@K Policy Optimization" (2025), arXiv
2505.15201.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

# NumPy, torch and JAX arrays share no static type; here it is whichever the caller works with.
Array = Any


class Place(NamedTuple):
    """What a weight formula may look at. Everything broadcasts; j has the gaps on its last axis."""

    j: Array  # the gap's number: how many of the row's rewards lie at or below it
    n: Array  # rewards in the row
    k: Array
    b: Array  # C(j, k−1) / C(n, k)
    a: Array  # C(j−1, k−1) / C(n, k)
    where: Callable[[Array, Array, Array], Array]  # the array library's select


@dataclass(frozen=True)
class Estimator:
    """One reward transform.

    Attributes:
        name: what `transform(..., estimator=name)` calls it.
        equation: where it stands in its paper, and its definition there.
        source: that paper.
        summary: one line for people.
        spared: how many samples must stay outside a subset: k may be at most n − spared.
        anchor: (n, k) → the weight of the largest reward.
        below: Place → below_j, the weight of each gap in the row's constant (subtracted).
        gap: Place → gap_j, the weight of each gap in the prefix scan.
        standardised: the outcome is divided by the standard deviation of the best of k samples.
    """

    name: str
    equation: str
    source: str
    summary: str
    spared: int
    anchor: Callable[[Array, Array], Array]
    below: Callable[[Place], Array]
    gap: Callable[[Place], Array]
    standardised: bool = False

    def largest_k(self, n: Any) -> Any:
        """The largest k that a group of n samples admits."""
        return n - self.spared

    def weights(self, n: int, k: int) -> Any:
        """This estimator's weights for a group of n samples, in float64: see
        `pkpo_kernels.weights.GapWeights`.

        >>> ESTIMATORS["sloo_minus_one"].weights(4, 2).gap        # C(j, 1) / C(4, 2)
        array([0.16666667, 0.33333333, 0.5       ])
        """
        from pkpo_kernels.weights import host_weights

        return host_weights(self, n, n, k)


PKPO = "Walder & Karkhanis 2025, arXiv 2505.15201"


def _none(n: Array, k: Array) -> Array:
    return 0 * n


def _sloo_minus_one_below(p: Place) -> Array:
    return p.where(p.k == 1, p.b * (p.n - p.j) / (p.n - 1), 0 * p.b)


def _sloo_minus_one_gap(p: Place) -> Array:
    return p.where(p.k == 1, p.b * p.n / (p.n - 1), p.b)


_ALL = (
    Estimator(
        name="sloo_minus_one",
        equation="Eq 33: (1/C(n,k)) Σ_{I∋i} (max_I − max_{I∖i}); at k=1 Eq 26 divided by n",
        source=PKPO,
        summary="the paper's PKPO: leave-one-out baseline on subsets of k−1",
        spared=0,
        anchor=_none,
        below=_sloo_minus_one_below,
        gap=_sloo_minus_one_gap,
    ),
    Estimator(
        name="sloo",
        equation="Eq 29: s_i − (1/(n−1)) Σ_{j≠i} S(j, k, all but i)",
        source=PKPO,
        summary="leave-one-out baseline on subsets of k; needs k < n",
        spared=1,
        anchor=lambda n, k: -k / (n * (n - 1)),
        below=lambda p: p.a * (p.n * (p.n - 1 - p.j) + p.k) / ((p.n - 1) * (p.n - p.k)),
        gap=lambda p: p.a * (p.n * (p.n - 1) + p.k) / ((p.n - 1) * (p.n - p.k)),
    ),
    Estimator(
        name="s",
        equation="Eq 8 and 19: (1/C(n,k)) Σ_{I∋i} max_I",
        source=PKPO,
        summary="unbiased, without a baseline",
        spared=0,
        anchor=lambda n, k: k / n,
        below=lambda p: p.a,
        gap=lambda p: p.a,
    ),
    Estimator(
        name="centered",
        equation="n/(n−k) · (s_i − mean s)",
        source="s of Eq 19, centred and rescaled so that it stays unbiased",
        summary="sums to zero over the group; needs k < n",
        spared=1,
        anchor=_none,
        below=lambda p: p.a * (p.n - p.j) / (p.n - p.k),
        gap=lambda p: p.a * p.n / (p.n - p.k),
    ),
    Estimator(
        name="passk_training",
        equation="(n/k · s_i − max@k) / sigma, the mean and deviation of the best of k",
        source="Chen et al. 2025, arXiv 2508.10751",
        summary="the analytical pass@k advantage, for continuous rewards too",
        spared=0,
        anchor=_none,
        below=lambda p: p.a * (p.n - p.j) / p.k,
        gap=lambda p: p.a * p.n / p.k,
        standardised=True,
    ),
)

ESTIMATORS: Mapping[str, Estimator] = MappingProxyType({e.name: e for e in _ALL})

# max@k itself has the same form with nothing to scan: a constant a row.
MAX_AT_K = Estimator(
    name="max_at_k",
    equation="Eq 12–14: Σ_i C(i−1,k−1)/C(n,k) · g_(i)",
    source=PKPO,
    summary="the mean of the best of k samples; pass@k on 0/1 rewards",
    spared=0,
    anchor=lambda n, k: 1 + 0 * n,
    below=lambda p: p.a * p.j / p.k,
    gap=lambda p: 0 * p.a,
)
