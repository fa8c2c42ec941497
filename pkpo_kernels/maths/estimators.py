"""Each estimator as data: its equation, its limits on k, its weights over a sorted row's gaps.

Sort a row's n rewards ascending, g_(1) ≤ … ≤ g_(n), and let d_j = g_(j+1) − g_(j) ≥ 0 be its gaps,
j = 1..n−1. Every reward transform here is linear in that sorted row, and what it gives a sample
depends on the sample's place only through how many gaps lie beneath it:

    out_(i) = anchor · g_(n) − Σ_j below_j · d_j + Σ_{j<i} gap_j · d_j

that is, one constant a row and one prefix scan. Where `anchor` is 0 a common offset of the rewards
drops out exactly, and a row of equal rewards has no gap at all. All weights are non-negative
rational multiples of two binomial ratios,

    b_j = C(j, k−1) / C(n, k)           a_j = C(j−1, k−1) / C(n, k) = b_j · (j−k+1)/j

so that no weight is ever the difference of two others. The multiples are few enough to be numbers:
a `Form`, which array code evaluates here and a kernel gets as data. Its formulas work for floats,
for `fractions.Fraction` in NumPy object arrays (which is how the tests prove them), for torch and
for JAX, traced or not.

Equation numbers are those of Walder & Karkhanis, "Pass@K Policy Optimization" (2025), arXiv
2505.15201.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pkpo_kernels.typing import EstimatorName

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
class Form:
    """The weights of an estimator as numbers, with r_j = a_j where lag is 1 and b_j where it is 0:

        gap_j   = r_j · (gap_1 + gap_k·k + gap_n·n + gap_nn·n(n−1)) / D
        below_j = r_j · (below_1 + below_k·k + (slope_1 + slope_n·n) · m_j) / D
        anchor  = anchor_1 + anchor_k · k / (n · (n−1)^over_others)
        D       = k^over_k · (n−k)^over_rest · (n−1)^over_others

    m_j is n−1−j where mirror is 1, and j where it is 0. All but anchor_k are 0 or positive.
    """

    lag: int
    over_k: int = 0
    over_rest: int = 0
    over_others: int = 0
    gap_1: int = 0
    gap_k: int = 0
    gap_n: int = 0
    gap_nn: int = 0
    below_1: int = 0
    below_k: int = 0
    slope_1: int = 0
    slope_n: int = 0
    anchor_1: int = 0
    anchor_k: int = 0
    mirror: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        """All but lag and mirror, in the order above: what a kernel reads."""
        return (
            *(self.over_k, self.over_rest, self.over_others),
            *(self.gap_1, self.gap_k, self.gap_n, self.gap_nn),
            *(self.below_1, self.below_k, self.slope_1, self.slope_n),
            *(self.anchor_1, self.anchor_k),
        )

    def anchor(self, n: Array, k: Array) -> Array:
        anchor = self.anchor_1 + 0 * n
        if self.anchor_k:
            anchor = anchor + self.anchor_k * k / (n * (n - 1) if self.over_others else n)
        return anchor

    def gap(self, p: Place) -> Array:
        """The weight of each gap in the prefix scan."""
        return self._weight(
            p,
            (self.gap_1, 1),
            (self.gap_k, p.k),
            (self.gap_n, p.n),
            (self.gap_nn, p.n * (p.n - 1)),
        )

    def below(self, p: Place) -> Array:
        """The weight of each gap in the row's constant, which is subtracted."""
        slope = self._sum((self.slope_1, 1), (self.slope_n, p.n))
        place = p.n - 1 - p.j if self.mirror else p.j
        return self._weight(p, (self.below_1, 1), (self.below_k, p.k), (slope, place))

    def _weight(self, p: Place, *terms: tuple[Array, Array]) -> Array:
        weight = (p.a if self.lag else p.b) * self._sum(*terms)
        divisor = None
        for there, factor in (
            (self.over_k, p.k),
            (self.over_rest, p.n - p.k),
            (self.over_others, p.n - 1),
        ):
            if there:
                divisor = factor if divisor is None else divisor * factor
        return weight if divisor is None else weight / divisor

    @staticmethod
    def _sum(*terms: tuple[Array, Array]) -> Array:
        # What is 0 is left out: 0 · n would be an array of work.
        return sum(
            number * x for number, x in terms if not (isinstance(number, int) and not number)
        )


@dataclass(frozen=True)
class Estimator:
    """One reward transform.

    Attributes:
        name: what `transform(..., estimator=name)` calls it.
        equation: where it stands in its paper, and its definition there.
        source: that paper.
        summary: one line for people.
        spared: how many samples must stay outside a subset: k may be at most n − spared.
        form: its weights.
        form_at_1: its weights at k=1, with the same lag and mirror, where they differ.
        standardised: the outcome is divided by the standard deviation of the best of k samples.
    """

    name: str
    equation: str
    source: str
    summary: str
    spared: int
    form: Form
    form_at_1: Form | None = None
    standardised: bool = False

    def largest_k(self, n: Any) -> Any:
        """The largest k that a group of n samples admits."""
        return n - self.spared

    def anchor(self, n: Array, k: Array) -> Array:
        """(n, k) → the weight of the largest reward; the same for every k."""
        return self.form.anchor(n, k)

    def below(self, p: Place) -> Array:
        """The weight of each gap in the row's constant (subtracted)."""
        return self._at_its_k(p, Form.below)

    def gap(self, p: Place) -> Array:
        """The weight of each gap in the prefix scan."""
        return self._at_its_k(p, Form.gap)

    def _at_its_k(self, p: Place, weight: Callable[[Form, Place], Array]) -> Array:
        if self.form_at_1 is None:
            return weight(self.form, p)
        return p.where(p.k == 1, weight(self.form_at_1, p), weight(self.form, p) + 0 * p.b)

    def weights(self, n: int, k: int) -> Any:
        """This estimator's weights for a group of n samples, in float64: see
        `pkpo_kernels.maths.weights.GapWeights`.

        Raises:
            ValueError: n < 1, k < 1, or a k that such a group does not admit.

        >>> ESTIMATORS["sloo_minus_one"].weights(4, 2).gap        # C(j, 1) / C(4, 2)
        array([0.16666667, 0.33333333, 0.5       ])
        """
        from pkpo_kernels.maths.weights import host_weights
        from pkpo_kernels.validation import checked_integer

        n, k = checked_integer("n", n, least=1), checked_integer("k", k, least=1)
        if k > self.largest_k(n):
            raise ValueError(
                f"k must be at most {self.largest_k(n)} for {self.name!r}; got k={k} with n={n}"
            )
        return host_weights(self, n, n, k)


PKPO = "Walder & Karkhanis 2025, arXiv 2505.15201"


_ALL = (
    Estimator(
        name="sloo_minus_one",
        equation="Eq 33: (1/C(n,k)) Σ_{I∋i} (max_I − max_{I∖i}); at k=1 Eq 26 divided by n",
        source=PKPO,
        summary="the paper's PKPO: leave-one-out baseline on subsets of k−1",
        spared=0,
        form=Form(lag=0, gap_1=1, mirror=1),
        # There "centered", with b for a: at k=1 they are the same.
        form_at_1=Form(lag=0, over_others=1, gap_n=1, below_1=1, slope_1=1, mirror=1),
    ),
    Estimator(
        name="sloo",
        equation="Eq 29: s_i − (1/(n−1)) Σ_{j≠i} S(j, k, all but i)",
        source=PKPO,
        summary="leave-one-out baseline on subsets of k; needs k < n",
        spared=1,
        form=Form(
            lag=1,
            over_rest=1,
            over_others=1,
            gap_k=1,
            gap_nn=1,
            below_k=1,
            slope_n=1,
            anchor_k=-1,
            mirror=1,
        ),
    ),
    Estimator(
        name="s",
        equation="Eq 8 and 19: (1/C(n,k)) Σ_{I∋i} max_I",
        source=PKPO,
        summary="unbiased, without a baseline",
        spared=0,
        form=Form(lag=1, gap_1=1, below_1=1, anchor_k=1),
    ),
    Estimator(
        name="centered",
        equation="n/(n−k) · (s_i − mean s)",
        source="s of Eq 19, centred and rescaled so that it stays unbiased",
        summary="sums to zero over the group; needs k < n",
        spared=1,
        form=Form(lag=1, over_rest=1, gap_n=1, below_1=1, slope_1=1, mirror=1),
    ),
    Estimator(
        name="passk_training",
        equation="(n/k · s_i − max@k) / sigma, the mean and deviation of the best of k",
        source="Chen et al. 2025, arXiv 2508.10751",
        summary="the analytical pass@k advantage, for continuous rewards too",
        spared=0,
        form=Form(lag=1, over_k=1, gap_n=1, below_1=1, slope_1=1, mirror=1),
        standardised=True,
    ),
)

if TYPE_CHECKING:

    class _Estimators(Mapping[EstimatorName, Estimator]):
        # Iteration gives names that `transform` takes, and any string may be asked for.
        def __getitem__(self, name: str, /) -> Estimator: ...


ESTIMATORS = cast("_Estimators", MappingProxyType({e.name: e for e in _ALL}))

# max@k itself has the same form with nothing to scan: a constant a row.
MAX_AT_K = Estimator(
    name="max_at_k",
    equation="Eq 12–14: Σ_i C(i−1,k−1)/C(n,k) · g_(i)",
    source=PKPO,
    summary="the mean of the best of k samples; pass@k on 0/1 rewards",
    spared=0,
    form=Form(lag=1, over_k=1, slope_1=1, anchor_1=1),
)
