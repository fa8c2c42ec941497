"""What a check finds, and how it is put together case by case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pkpo_kernels.backends import registry

# NumPy computes float64 in float64; the others are given float32.
TOLERANCES = {"numpy": 1e-11, "torch": 5e-6, "jax": 5e-6}


@dataclass(frozen=True)
class Finding:
    """What one implementation of one estimator gave.

    Attributes:
        implementation, estimator: what was checked.
        against: "enumeration" of all subsets (small n, every k); "reference", the oracle in float64
          (larger n); "exact gradient" and "exact value": the derivative of max@k and pass@k, and
          max@k itself, in closed form, for a policy whose every outcome is enumerated; "rows that
          are not finite": a row with a NaN, an infinity or a range that overflows is NaN, whatever
          else is in its matrix, and rewards near the largest number give what the reference makes
          of small ones; "random shapes": the reference again, on shapes, masks, ks, options and
          rows that are not finite, drawn from the seed, the same for all implementations.
        cases: how many rows were compared.
        worst_error: the largest difference, relative to the size of the row's results or rewards;
          absolute for "exact gradient" and "exact value", whose rewards are of size 1. Infinite
          where the implementation raised an error.
        tolerance: what is allowed.
        worst_case: where the worst was seen, and the error that was raised there.
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
        """Whether the worst error is within the tolerance."""
        # A NaN is no number below the tolerance.
        return bool(self.worst_error <= self.tolerance)

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON: what is not finite is None."""
        error = self.worst_error if np.isfinite(self.worst_error) else None
        return asdict(self) | {"worst_error": error, "ok": self.ok}


class Tally:
    """A finding in the making."""

    def __init__(
        self, implementation: str, estimator: str, against: str, tolerance: float | None = None
    ) -> None:
        self.implementation, self.estimator, self.against = implementation, estimator, against
        self.library = registry.library_served(implementation)
        self.tolerance = TOLERANCES[self.library] if tolerance is None else tolerance
        self.cases, self.worst, self.worst_case = 0, 0.0, "none"

    def compare(self, case: str, rows: int, error: Callable[[], float]) -> None:
        """Enter the error of a case of so many rows; what it raises is an infinite error."""
        self.cases += rows
        # What breaks on a user's machine breaks in any way at all, and the rest is still to check.
        try:
            found = error()
        except Exception as raised:
            found = np.inf
            case = f"{case}: {type(raised).__name__}: {' '.join(str(raised).split())[:200]}"
        # A NaN stays the worst.
        if not found <= self.worst and not np.isnan(self.worst):
            self.worst, self.worst_case = found, case

    def finding(self) -> Finding:
        """Conclude."""
        return Finding(
            self.implementation,
            self.estimator,
            self.against,
            self.cases,
            self.worst,
            self.tolerance,
            self.worst_case,
        )
