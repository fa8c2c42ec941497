"""The oracle: every estimator in float64 NumPy straight from its definition, a row at a time. Slow,
obvious, never optimised.

Two ways, neither of which shares a line with the implementations that they check:

- `enumerate_*`: the definitions word for word, over all subsets of size k. For small n.
- `transform_rows`, `max_at_k_rows`: the same sums with each subset's maximum counted once: how many
  subsets have the j-th smallest reward as their maximum is a binomial, taken from exact integers.
  No gaps, no scan. O(n²) a row.

Equation numbers: Walder & Karkhanis 2025, arXiv 2505.15201.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]


def enumerate_max_at_k(g: Row, k: int) -> float:
    """Eq 12: the mean of the maximum over all subsets of size k."""
    return float(np.mean([max(g[list(subset)]) for subset in combinations(range(len(g)), k)]))


def enumerate_s(g: Row, k: int) -> Row:
    """Eq 19: s_i = (1/C(n,k)) Σ_{I∋i} max_I."""
    out = np.zeros(len(g))
    for subset in combinations(range(len(g)), k):
        out[list(subset)] += max(g[list(subset)])
    return out / math.comb(len(g), k)


def enumerate_sloo(g: Row, k: int) -> Row:
    """Eq 29: s_i − (1/(n−1)) Σ_{j≠i} S(j, k, all but i)."""
    n = len(g)
    s = enumerate_s(g, k)
    return np.array([s[i] - enumerate_s(np.delete(g, i), k).sum() / (n - 1) for i in range(n)])


def enumerate_sloo_minus_one(g: Row, k: int) -> Row:
    """Eq 33: (1/C(n,k)) Σ_{I∋i} (max_I − max_{I∖i}); at k=1 Eq 26 at this family's scale."""
    n = len(g)
    if k == 1:
        return _leave_one_out(g) / n
    out = np.zeros(n)
    for subset in combinations(range(n), k):
        for i in subset:
            out[i] += max(g[list(subset)]) - max(g[j] for j in subset if j != i)
    return out / math.comb(n, k)


def enumerate_centered(g: Row, k: int) -> Row:
    """n/(n−k) · (s_i − mean s)."""
    s = enumerate_s(g, k)
    return len(g) / (len(g) - k) * (s - s.mean())


def enumerate_passk_training(g: Row, k: int) -> Row:
    """arXiv 2508.10751: a group of k samples scores its maximum; a sample's advantage is the mean,
    over the groups that it is in, of (score − mean score)/(deviation of scores)."""
    n = len(g)
    subsets = list(combinations(range(n), k))
    scores = np.array([max(g[list(subset)]) for subset in subsets])
    deviation = scores.std()
    if deviation == 0 or np.ptp(scores) == 0:
        return np.zeros(n)
    return np.array(
        [
            np.mean(
                [
                    score - scores.mean()
                    for score, subset in zip(scores, subsets, strict=True)
                    if i in subset
                ]
            )
            / deviation
            for i in range(n)
        ]
    )


ENUMERATIONS: dict[str, Callable[[Row, int], Row]] = {
    "sloo_minus_one": enumerate_sloo_minus_one,
    "sloo": enumerate_sloo,
    "s": enumerate_s,
    "centered": enumerate_centered,
    "passk_training": enumerate_passk_training,
}


@lru_cache(maxsize=64)
def _ratios(first: int, chosen: int, count: int, n: int, k: int) -> Row:
    """C(first + i, chosen) / C(n, k) for i = 0..count−1, each rounded once from exact integers."""
    total = math.comb(n, k)
    numbers = []
    number = None
    for m in range(first, first + count):
        if chosen < 0 or m < chosen:
            numbers.append(0.0)
            continue
        # C(m, r) = C(m−1, r) · m/(m−r)
        number = math.comb(m, chosen) if number is None else number * m // (m - chosen)
        numbers.append(number / total)
    return np.array(numbers)


def _leave_one_out(g: Row) -> Row:
    """Eq 26: g_i − mean of the others; 0 where there are none."""
    n = len(g)
    if n == 1:
        return np.zeros(1)
    return np.array([np.mean(g[i] - np.delete(g, i)) for i in range(n)])


def _max_at_k(g: Row, k: int) -> float:
    """Eq 12–14: the j-th smallest is the maximum of C(j−1, k−1) subsets."""
    n = len(g)
    return float(np.dot(_ratios(0, k - 1, n, n, k), np.sort(g)))


def _s(g: Row, k: int) -> Row:
    """Eq 18–21: among subsets with i, i is the maximum of C(i−1, k−1), a j > i of C(j−2, k−2)."""
    n = len(g)
    order = np.argsort(g)
    ordered = g[order]
    own, others = _ratios(0, k - 1, n, n, k), _ratios(-1, k - 2, n, n, k)
    out = np.empty(n)
    for i in range(n):
        out[order[i]] = own[i] * ordered[i] + np.dot(others[i + 1 :], ordered[i + 1 :])
    return out


def _sloo(g: Row, k: int) -> Row:
    """Eq 29; Σ_j S(j, k, J) = k · max@k of J."""
    n = len(g)
    s = _s(g, k)
    return np.array([s[i] - k / (n - 1) * _max_at_k(np.delete(g, i), k) for i in range(n)])


def _sloo_minus_one(g: Row, k: int) -> Row:
    """Eq 33: in C(j−1, k−2) subsets i is the maximum and j < i the runner-up that it replaces."""
    n = len(g)
    if k == 1:
        return _leave_one_out(g) / n
    order = np.argsort(g)
    ordered = g[order]
    runner_up = _ratios(0, k - 2, n, n, k)
    out = np.empty(n)
    for i in range(n):
        out[order[i]] = np.dot(runner_up[:i], ordered[i] - ordered[:i])
    return out


def _centered(g: Row, k: int) -> Row:
    s = _s(g, k)
    return len(g) / (len(g) - k) * (s - s.mean())


def _passk_training(g: Row, k: int) -> Row:
    """(n/k · s_i − max@k) / sigma, sigma² the variance of the maximum."""
    n = len(g)
    # An offset drops out. Seen from the largest all terms have one sign: small sums stay exact.
    g = g - g.max()
    chance = _ratios(0, k - 1, n, n, k)
    best = _max_at_k(g, k)
    ordered = np.sort(g)
    if np.ptp(ordered[k - 1 :]) == 0:
        return np.zeros(n)
    # Squares of deviations in units of the largest one neither overflow nor vanish.
    deviation = (ordered - best)[chance > 0]
    unit = np.abs(deviation).max()
    sigma = unit * math.sqrt(np.dot(chance[chance > 0], (deviation / unit) ** 2))
    return (n / k * _s(g, k) - best) / sigma


_LINEAR: dict[str, Callable[[Row, int], Row]] = {
    "sloo_minus_one": _sloo_minus_one,
    "sloo": _sloo,
    "s": _s,
    "centered": _centered,
}
_NEEDS_K_BELOW_N = ("sloo", "centered")


# Rows with rewards beyond this are scaled down, so that no sum of theirs overflows.
_LARGE, _RANGE_SCALE = 2.0**1000, 2.0**-24


def _scaled(row: Row, k: int, function: Callable[[Row, int], Row], times: int = 1) -> Row:
    """Apply a linear function to a finite row (n,) → (n,), ±inf where the value overflows."""
    range_scale = _RANGE_SCALE if np.abs(row).max() > _LARGE else 1.0
    return times * function(row * range_scale, k) / range_scale


def _is_finite(row: Row, compute: type[np.floating[Any]]) -> bool:
    """Tell whether all of row (n,) is finite, and largest − smallest in `compute` too."""
    return not len(row) or bool(np.isfinite(compute(row.max()) - compute(row.min())))


def _compute_dtype(rewards: NDArray[Any]) -> type[np.floating[Any]]:
    """Return the dtype in which a range may overflow."""
    return np.float64 if rewards.dtype.type is np.float64 else np.float32


# What overflows has a documented result, and needs no warning.
@np.errstate(over="ignore", under="ignore", invalid="ignore")
def transform_rows(
    rewards: NDArray[Any],
    k: int | NDArray[Any],
    where: NDArray[np.bool_] | None,
    *,
    estimator: Any,
    scale: str,
    undersized: str,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """rewards (rows, N), k an integer or (rows,), where (rows, N) or None → (rows, N) of dtype."""
    compute = _compute_dtype(rewards)
    rewards = rewards.astype(np.float64)
    out = np.zeros(rewards.shape)
    ks = np.broadcast_to(k, len(rewards))
    for r in range(len(rewards)):
        valid = np.ones(rewards.shape[1], bool) if where is None else where[r]
        row = rewards[r][valid]
        n, row_k = len(row), int(ks[r])
        largest = n - 1 if estimator.name in _NEEDS_K_BELOW_N else n
        if undersized == "clip":
            row_k = min(row_k, largest)
        if not _is_finite(row, compute):
            values = np.full(n, np.nan)
        elif 1 <= row_k <= largest:
            if estimator.normalized:
                values = _passk_training(row, row_k)
            else:
                times = n if scale == "mean" else 1
                values = _scaled(row, row_k, _LINEAR[estimator.name], times)
        else:
            values = np.full(n, np.nan if undersized == "nan" else 0.0)
        out[r, valid] = values
    return out.astype(dtype)


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def max_at_k_rows(
    rewards: NDArray[Any],
    ks: Sequence[int | NDArray[Any]],
    where: NDArray[np.bool_] | None,
    *,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """rewards (rows, N), each k an integer, where (rows, N) or None → (rows, len(ks)) of dtype."""
    compute = _compute_dtype(rewards)
    rewards = rewards.astype(np.float64)
    out = np.full((len(rewards), len(ks)), np.nan)
    for r in range(len(rewards)):
        row = rewards[r] if where is None else rewards[r][where[r]]
        for column, k in enumerate(map(int, ks)):
            if 1 <= k <= len(row) and _is_finite(row, compute):
                out[r, column] = _scaled(row, k, lambda g, k: np.array([_max_at_k(g, k)]))[0]
    return out.astype(dtype)
