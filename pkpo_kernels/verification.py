"""Check the implementations on this machine against enumeration and the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels import dispatch, reference
from pkpo_kernels.api import max_at_k, transform
from pkpo_kernels.estimators import ESTIMATORS, MAX_AT_K

# NumPy computes float64 in float64; the others are given float32.
TOLERANCES = {"numpy": 1e-11, "torch": 5e-6, "jax": 5e-6}
ENUMERATED_N = (1, 2, 3, 5, 7)
REFERENCE_N = (9, 64, 250)
ROWS = 8


@dataclass(frozen=True)
class Finding:
    """What one implementation of one estimator gave.

    Attributes:
        implementation, estimator: what was checked.
        against: "enumeration" (small n, every k) or "reference" (larger n).
        cases: how many rows were compared.
        worst_error: the largest difference, relative to the size of the row's results or rewards.
        tolerance: what is allowed.
        worst_case: where the worst was seen.
    """

    implementation: str
    estimator: str
    against: str
    cases: int
    worst_error: float
    tolerance: float
    worst_case: str

    @property
    def ok(self) -> bool:
        # A NaN is no number below the tolerance.
        return bool(self.worst_error <= self.tolerance)


def verify(implementations: Sequence[str] | None = None, *, seed: int = 0) -> Iterator[Finding]:
    """Check implementations; yields one `Finding` after another.

    Args:
        implementations: names from `available_implementations()`; None checks all available
          ones but the interpreted.
        seed: of the random rewards.

    Raises:
        ValueError: a name is unknown or cannot be used here; raised before anything is computed.

    >>> all(finding.ok for finding in verify(["numpy"]))
    True
    """
    return _findings(_checked(implementations), seed)


def count_findings(implementations: Sequence[str] | None = None) -> int:
    """How many findings `verify` will yield."""
    return 2 * len(_checked(implementations)) * len((*ESTIMATORS, MAX_AT_K.name))


def _checked(implementations: Sequence[str] | None) -> tuple[str, ...]:
    if implementations is None:
        available = dispatch.available_implementations()
        # What simulates a chip is there to be looked at, and takes minutes.
        return tuple(
            name
            for name, reason in available.items()
            if reason is None and not dispatch.IMPLEMENTATIONS[name].simulated
        )
    for name in implementations:
        dispatch.choose(name, dispatch.kind_of(name))
    return tuple(implementations)


def _findings(implementations: tuple[str, ...], seed: int) -> Iterator[Finding]:
    for implementation in implementations:
        for estimator in (*ESTIMATORS, MAX_AT_K.name):
            for against, sizes in (("enumeration", ENUMERATED_N), ("reference", REFERENCE_N)):
                yield _finding(implementation, estimator, against, sizes, seed)


def _finding(
    implementation: str, estimator: str, against: str, sizes: tuple[int, ...], seed: int
) -> Finding:
    kind = dispatch.kind_of(implementation)
    rng = np.random.default_rng(seed)
    cases, worst, worst_case = 0, 0.0, "none"
    for n in sizes:
        largest = ESTIMATORS[estimator].largest_k(n) if estimator in ESTIMATORS else n
        ks = range(1, n + 1) if against == "enumeration" else (1, 2, 8, n // 2, n - 1, n)
        for k in (k for k in ks if k <= largest):
            for name, rewards in _rewards(rng, n).items():
                want = _expected(rewards, k, estimator, against)
                got = _computed(rewards, k, estimator, implementation, kind)
                size = max(float(np.abs(rewards).max()), float(np.abs(want).max()))
                error = float(np.abs(got - want).max()) / size if size else float(np.abs(got).max())
                cases += ROWS
                if not error <= worst:
                    worst, worst_case = error, f"n={n} k={k} {name}"
    return Finding(implementation, estimator, against, cases, worst, TOLERANCES[kind], worst_case)


def _rewards(rng: np.random.Generator, n: int) -> dict[str, NDArray[np.float64]]:
    """(ROWS, n) of each kind, exact in float32."""
    return {
        "gaussian": rng.standard_normal((ROWS, n)).astype(np.float32).astype(np.float64),
        "0/1": rng.integers(0, 2, (ROWS, n)).astype(np.float64),
        "five levels": rng.integers(-2, 3, (ROWS, n)) / 2.0,
    }


def _expected(
    rewards: NDArray[np.float64], k: int, estimator: str, against: str
) -> NDArray[np.float64]:
    if against == "reference":
        return np.asarray(_call(estimator, rewards, k, "reference"), np.float64)
    of_row: Callable[[Any, int], Any] = (
        reference.ENUMERATIONS[estimator]
        if estimator in ESTIMATORS
        else reference.enumerate_max_at_k
    )
    return np.array([of_row(row, k) for row in rewards])


def _computed(
    rewards: NDArray[np.float64], k: int, estimator: str, implementation: str, kind: str
) -> NDArray[np.float64]:
    xp = dispatch.namespace(kind)
    array: Any = rewards
    if kind == "torch":
        device = "cuda" if xp.cuda.is_available() else "cpu"
        array = xp.asarray(rewards, dtype=xp.float32, device=device)
    elif kind == "jax":
        array = xp.asarray(rewards, xp.float32)
    out = _call(estimator, array, k, implementation)
    return np.asarray(out.cpu() if kind == "torch" else out, np.float64)


def _call(estimator: str, array: Any, k: int, implementation: str) -> Any:
    if estimator == MAX_AT_K.name:
        return max_at_k(array, k, implementation=implementation)
    return transform(array, k, estimator=estimator, implementation=implementation)
