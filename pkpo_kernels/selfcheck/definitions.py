"""Checks against the definitions: all subsets of small groups enumerated, larger ones by the
oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.maths import reference
from pkpo_kernels.maths.estimators import ESTIMATORS
from pkpo_kernels.selfcheck.findings import Finding, Tally
from pkpo_kernels.selfcheck.subjects import computed, largest_k

ENUMERATED_N = (1, 2, 3, 5, 7)
REFERENCE_N = (9, 64, 250)
ROWS = 8


def against_enumeration(implementation: str, estimator: str, seed: int) -> Finding:
    """Compare small groups, at every k, with all of their subsets."""
    tally = Tally(implementation, estimator, "enumeration")
    for n in ENUMERATED_N:
        _compare(tally, n, range(1, n + 1), seed)
    return tally.finding()


def against_reference(
    implementation: str, estimator: str, seed: int, sizes: Sequence[int] = REFERENCE_N
) -> Finding:
    """Compare groups of these sizes, at the ends of the range of k, with the oracle in float64."""
    tally = Tally(implementation, estimator, "reference")
    for n in sizes:
        _compare(tally, n, (1, 2, 8, n // 2, n - 1, n), seed)
    return tally.finding()


def _compare(tally: Tally, n: int, ks: Sequence[int], seed: int) -> None:
    for k in (k for k in ks if k <= largest_k(tally.estimator, n)):
        for name, rewards, want in _expected(tally.estimator, tally.against, n, k, seed):

            def error(rewards: Any = rewards, k: int = k, want: Any = want) -> float:
                got = computed(tally.estimator, rewards, k, tally.implementation)
                size = max(float(np.abs(rewards).max()), float(np.abs(want).max()))
                worst = float(np.abs(got - want).max())
                return worst / size if size else worst

            tally.compare(f"n={n} k={k} {name}", ROWS, error)


@lru_cache(maxsize=512)  # The oracle takes its time, and all implementations are asked the same.
def _expected(
    estimator: str, against: str, n: int, k: int, seed: int
) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Compute what is right for each kind of rewards: → its name, rewards (ROWS, n), and (ROWS, n),
    or (ROWS,) for max@k."""
    found = []
    for name, rewards in _rewards(np.random.default_rng((seed, n, k)), n).items():
        if against == "reference":
            want = computed(estimator, rewards, k, "reference")
        else:
            of_row: Callable[[Any, int], Any] = (
                reference.ENUMERATIONS[estimator]
                if estimator in ESTIMATORS
                else reference.enumerate_max_at_k
            )
            want = np.array([of_row(row, k) for row in rewards])
        found.append((name, rewards, want))
    return found


def _rewards(rng: np.random.Generator, n: int) -> dict[str, NDArray[np.float64]]:
    """Draw rewards of each kind, exact in float32: → (ROWS, n) by name."""
    return {
        "gaussian": rng.standard_normal((ROWS, n)).astype(np.float32).astype(np.float64),
        "0/1": rng.integers(0, 2, (ROWS, n)).astype(np.float64),
        "five levels": rng.integers(-2, 3, (ROWS, n)) / 2.0,
    }
