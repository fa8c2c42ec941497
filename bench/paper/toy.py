"""Section 5.1: one parameter, a reward that is known, and the variance of gradient estimates.

x ~ N(θ, 0.1), g(x) = x² on [0, 1], else 0 (Eq 35). max@k and its gradient in θ are known by
quadrature, so that every estimator's mean can be compared with what it estimates. Estimators that
share a case get the same samples.

Beyond the paper: `combined` is s less the best combination of the baselines rho_m(all but i),
m = 1..n−1, fitted by least squares on the very estimates, hence a little better than what could be
had. sloo_minus_one, sloo and centered are each s less one of them: what `combined` leaves is how
far they are from the end of this road.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

import pkpo_kernels as pk
from bench.paper import figures
from bench.paper.claims import Claim, Outcome
from bench.paper.runs import KS
from bench.paper.tables import COMBINED
from bench.records import Row
from pkpo_kernels.typing import EstimatorName

SIGMA = 0.1
THETAS = (0.6, 0.8, 0.9, 1.0)
# Variances are shown against n at this k and against k at this n, and claimed at this θ.
N, K, THETA = 16, 4, 1.0
DRAWS, QUICK_DRAWS = 15_000, 3_000
# Where max@k is largest, for k in KS: by quadrature in another program, to four digits.
OPTIMA = (0.8624, 0.9017, 0.9387, 0.9690, 0.9856)

Floats = NDArray[np.float64]
Estimator = Callable[[Floats, int], Floats]  # rewards (draws, n), k → effective rewards (draws, n)


def reward(x: Floats) -> Floats:
    """Grade samples (...) → (...)."""
    return np.where((x >= 0) & (x <= 1), x * x, 0.0)


@cache
def _quadrature() -> tuple[Floats, Floats]:
    """Find nodes (400,) in [−1, 1], and their weights (400,): that takes a second."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    return nodes, weights


def exact(theta: ArrayLike, k: int) -> tuple[Floats, Floats]:
    """Integrate max@k and its gradient at θ (...) → (...), (...).

    E max = ∫ 1 − F(t)^k dt over t in [0, 1], F(t) = P(g ≤ t) = 1 − P(√t < x ≤ 1), and with t = y²
    the integrand is smooth.

    >>> value, gradient = exact(1.0, 1)
    >>> x = np.random.default_rng(0).normal(1.0, SIGMA, 10**6)
    >>> bool(abs(reward(x).mean() - value) < 1e-3)
    True
    """
    centre = np.asarray(theta, float)[..., None]
    nodes, node_weights = _quadrature()
    y, weights = (nodes + 1) / 2, node_weights * (nodes + 1) / 2
    top, here = (1 - centre) / SIGMA, (y - centre) / SIGMA
    chance = 1 - ndtr(top) + ndtr(here)
    slope = (_density(top) - _density(here)) / SIGMA
    value = weights * (1 - chance**k)
    gradient = -weights * k * chance ** (k - 1) * slope
    return value.sum(-1), gradient.sum(-1)


def _density(z: Floats) -> Floats:
    return np.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def optimum(k: int) -> float:
    """Find the θ where max@k is largest: its gradient has one root between these."""
    return float(brentq(lambda theta: exact(theta, k)[1], 0.7, 1.1))


# ---- estimators --------------------------------------------------------------------------------


def _sets(g: Floats, k: int) -> Floats:
    """Part samples (draws, n) into disjoint sets (draws, n/k, k)."""
    return g.reshape(len(g), -1, k)


def naive_partitioned(g: Floats, k: int) -> Floats:
    """Give every sample its set's largest reward; the estimate is a mean over the sets."""
    return np.repeat(_sets(g, k).max(-1), k, axis=-1) * (k / g.shape[1])


def naive_partitioned_baselined(g: Floats, k: int) -> Floats:
    """The same, less the mean of the other sets' largest."""
    best = _sets(g, k).max(-1)
    best = best - (best.sum(-1, keepdims=True) - best) / (best.shape[1] - 1)
    return np.repeat(best, k, axis=-1) * (k / g.shape[1])


def loo_minus_one_partitioned(g: Floats, k: int) -> Floats:
    """Give every sample its set's largest reward less that of the others in the set: the largest
    gets its lead, the others nothing; the estimate is a mean over the sets."""
    sets = _sets(g, k)
    second, first = np.moveaxis(np.partition(sets, k - 2)[..., -2:], -1, 0)[..., None]
    lead = np.where(sets == first, first - second, 0.0)
    return lead.reshape(g.shape) * (k / g.shape[1])


PARTITIONED = {
    "naive partitioned": naive_partitioned,
    "naive partitioned, baselined": naive_partitioned_baselined,
    "loo minus one, partitioned": loo_minus_one_partitioned,
}
OURS: tuple[EstimatorName, ...] = ("s", "sloo", "sloo_minus_one", "centered")
NAMES = (*PARTITIONED, *OURS)
DEFAULT: EstimatorName = "sloo_minus_one"


def estimators(n: int, k: int) -> dict[str, Estimator]:
    """Name the estimators that there are for n samples and this k."""
    found: dict[str, Estimator] = dict(PARTITIONED) if n % k == 0 else {}
    if k == n:
        del found["naive partitioned, baselined"]
    if k == 1:  # sets of one have no others
        found.pop("loo minus one, partitioned")
    names = [name for name in OURS if k < n or name in ("s", DEFAULT)]
    return found | {
        name: lambda g, k, name=name: pk.transform(g, k, estimator=name) for name in names
    }


def baselines(g: Floats) -> list[Floats]:
    """Compute rho_m(all but i) of rewards (draws, n): for m = 1..n−1 an array (draws, n).

    From s_i = rho − ((n−m)/n) · rho_m(all but i).

    >>> baselines(np.array([[1.0, 2.0, 4.0]]))
    [array([[3. , 2.5, 1.5]]), array([[4., 4., 2.]])]
    """
    n = g.shape[1]
    best = pk.max_at_k(g, range(1, n))
    return [
        (best[:, m - 1, None] - pk.transform(g, m, estimator="s")) * (n / (n - m))
        for m in range(1, n)
    ]


def measure(
    n: int, ks: Sequence[int], theta: float, draws: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Estimate gradients many times from the same samples: for every k a row with the variance of
    every estimator, and the largest |z| of their means against quadrature."""
    rng = np.random.default_rng([seed, n, int(1000 * theta)])
    x = rng.normal(theta, SIGMA, (draws, n))
    g, score = reward(x), (x - theta) / SIGMA**2
    of_baselines = [_sum(it, score) for it in baselines(g)] if n == N else []
    for k in ks:
        right = float(exact(theta, k)[1])
        found = {name: _sum(call(g, k), score) for name, call in estimators(n, k).items()}
        z = [(it.mean() - right) / np.sqrt(it.var(ddof=1) / draws) for it in found.values()]
        row: dict[str, Any] = {"theta": theta, "n": n, "k": k, "seed": seed, "draws": draws}
        row |= {"gradient": right, "z": float(np.abs(z).max())}
        row |= {name: found[name].var(ddof=1) if name in found else "" for name in NAMES}
        if of_baselines:
            # A baseline's own estimate has the mean 0, so least squares leave the least variance:
            # what of s is orthogonal to all of them.
            columns = np.stack([*of_baselines, found["s"]], axis=-1)
            r: Any = np.linalg.qr(columns - columns.mean(0), mode="r")
            row[COMBINED] = float(r[-1, -1] ** 2 / (draws - 1))
        yield row


def _sum(effective: Floats, score: Floats) -> Floats:
    """Gradient estimates (draws,) of effective rewards and scores (draws, n)."""
    return np.einsum("ij,ij->i", effective, score)


# ---- the experiment ----------------------------------------------------------------------------


def cases(quick: bool) -> list[tuple[int, Sequence[int], float]]:
    """List (n, ks, θ): the ks and the ns at every θ, and more ks at one."""
    if quick:
        return [(N, KS, theta) for theta in THETAS]
    every_k = sorted({*KS, 3, 6, 10, 12, 14})
    found = [(N, every_k if theta == THETA else KS, theta) for theta in THETAS]
    return found + [(n, (K,), theta) for theta in THETAS for n in (4, 8, 12, 24, 32)]


def run(seeds: int, quick: bool) -> Outcome:
    """Measure, draw, and say what was found."""
    draws = QUICK_DRAWS if quick else DRAWS
    every = [(*case, draws, seed) for case in cases(quick) for seed in range(seeds)]
    rows = [row for one in every for row in measure(*one)]
    drawn = {
        "toy-effective-rewards": draw_effective_rewards(draws),
        "toy-objective": draw_objective(),
        "toy-variance-k": draw_variance(rows, "k", "n", N),
        "toy-combined": draw_combined(rows),
    }
    if not quick:
        drawn["toy-variance-n"] = draw_variance(rows, "n", "k", K)
    return Outcome(rows, claims(rows), drawn)


def variances(rows: Iterable[Row], n: int, k: int, theta: float) -> dict[str, float]:
    """Average every estimator's variance in a case over seeds."""
    mine = [row for row in rows if (row["n"], row["k"], row["theta"]) == (n, k, theta)]
    names = [name for name in (*NAMES, COMBINED) if mine[0].get(name, "") != ""]
    return {name: float(np.mean([row[name] for row in mine])) for name in names}


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Hold the results against the paper."""
    found = [
        Claim("5.1", f"θ where max@{k} is largest", optimum(k), at - 5e-4, at + 5e-4)
        for k, at in zip(KS, OPTIMA, strict=True)
    ]
    worst = max(row["z"] for row in rows)
    what = f"unbiased: largest abs(z) of {sum(_estimates(row) for row in rows)} means"
    found.append(Claim("5.1", what, worst, most=4.5))
    at_4 = variances(rows, N, K, THETA)
    ours = at_4.pop(DEFAULT)
    where = f"at θ=1, n={N}, k={K}"
    found.append(Claim("5.1", f"variance of {DEFAULT} {where}", ours, 0.84 * 0.94, 0.84 * 1.06))
    for name, times in (
        ("s", 40),
        ("naive partitioned, baselined", 12),
        ("sloo", 3),
        ("loo minus one, partitioned", 2.3),
        ("centered", 1.8),
    ):
        found.append(Claim("5.1", f"that of {name}, of it", at_4[name] / ours, times))
    for k in (2, 4, 8):
        others = variances(rows, N, k, THETA)
        others.pop(COMBINED)
        ours = others.pop(DEFAULT)
        what = f"lowest variance: the next, of it, at θ=1, n={N}, k={k}"
        found.append(Claim("5.1", what, min(others.values()) / ours, 1.0, strict=True))
    g = np.random.default_rng(0).random((100, N))
    off = np.abs(pk.transform(g, N) - loo_minus_one_partitioned(g, N)).max()
    found.append(Claim("5.1", "k = n: off the partitioned form", float(off), most=1e-9))
    return found


def _estimates(row: Row) -> int:
    return sum(row[name] != "" for name in NAMES)


# ---- figures ----------------------------------------------------------------------------------


def draw_effective_rewards(draws: int) -> Figure:
    """Draw what raw rewards become, on average over the others."""
    raw = np.random.default_rng(0).uniform(-0.5, 0.5, (draws, 32))
    edges = np.linspace(-0.5, 0.5, 41)
    bins = np.digitize(raw, edges).ravel() - 1
    counts = np.bincount(bins, minlength=40)
    middle = (edges[1:] + edges[:-1]) / 2
    canvas, panels = figures.panels(3)
    shown: tuple[EstimatorName, ...] = ("s", "sloo", DEFAULT)
    for axes, name in zip(panels, shown, strict=True):
        for k in KS:
            effective = 32 * pk.transform(raw, k, estimator=name)
            mean = np.bincount(bins, effective.ravel(), 40) / counts
            axes.plot(middle, mean, color=figures.color(f"k={k}"), label=f"k={k}")
        axes.set(title=name, xlabel="raw reward, uniform", ylabel="n × mean effective reward")
    return figures.titled(canvas, "Effective rewards, n=32")


def draw_objective() -> Figure:
    """Draw max@k and its gradient against θ, with the optima."""
    thetas = np.linspace(-0.2, 1.4, 321)
    canvas, panels = figures.panels(2)
    for k in KS:
        for axes, values in zip(panels, exact(thetas, k), strict=True):
            axes.plot(thetas, values, color=figures.color(f"k={k}"), label=f"k={k}")
        best = optimum(k)
        panels[0].plot(best, exact(best, k)[0], "o", color=figures.color(f"k={k}"), ms=5)
    panels[0].plot(thetas, reward(thetas), "k--", lw=1, label="g(x)")
    panels[0].set(title="max@k, the optimum marked", xlabel="θ, or x")
    panels[1].set(title="its gradient in θ", xlabel="θ")
    title = f"x ~ N(θ, {SIGMA}), g(x) = x² on [0, 1]: by quadrature"
    return figures.titled(canvas, title)


def draw_variance(rows: Sequence[Row], x: str, other: str, fixed: int) -> Figure:
    """Draw variances against one of k and n where the other is fixed: a panel a θ."""
    canvas, panels = figures.panels(len(THETAS))
    for axes, theta in zip(panels, THETAS, strict=True):
        mine = [row for row in rows if row["theta"] == theta and row[other] == fixed]
        for index, name in enumerate(NAMES):
            figures.points(axes, name, _by(mine, x, name), figures.marked(index))
        axes.set(title=f"θ={theta:g}, {other}={fixed}", xlabel=x, yscale="log")
    panels[0].set_ylabel("variance of the estimate")
    title = f"Variance of gradient estimates against {x} (bars: deviation over seeds)"
    return figures.titled(canvas, title)


def draw_combined(rows: Sequence[Row]) -> Figure:
    """Draw what the best combination of baselines leaves of the variance of the better of two
    estimators, and what each of these has of it."""
    canvas, panels = figures.panels(3)
    mine = [row for row in rows if row["n"] == N and 1 < row["k"] < N]
    for axes, name in zip(panels, (COMBINED, DEFAULT, "centered"), strict=True):
        for index, theta in enumerate(THETAS):
            shares = [
                {"k": row["k"], "share": row[name] / min(row[DEFAULT], row["centered"])}
                for row in mine
                if row["theta"] == theta
            ]
            figures.points(axes, f"θ={theta:g}", _by(shares, "k", "share"), figures.marked(index))
        axes.axhline(1, color="black", lw=0.8)
        axes.set_ylim(bottom=0)
        axes.set(title=name, xlabel="k")
    panels[0].set_ylabel("variance, relative")
    title = f"Variance over the lower one of {DEFAULT} and centered, n={N} (bars: over seeds)"
    return figures.titled(canvas, title)


def _by(rows: Iterable[Row], x: str, y: str) -> Mapping[float, list[float]]:
    """Collect x → the figures of all seeds."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row.get(y, "") != "":
            found.setdefault(row[x], []).append(row[y])
    return dict(sorted(found.items()))
