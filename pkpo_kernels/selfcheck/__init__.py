"""Check the implementations on this machine: against the definitions, against exact gradients, and
on random shapes. Needs nothing but the package and the array libraries that are installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pkpo_kernels.backends import registry
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.selfcheck.definitions import against_enumeration, against_reference
from pkpo_kernels.selfcheck.expectations import against_closed_form
from pkpo_kernels.selfcheck.findings import Finding
from pkpo_kernels.selfcheck.random_cases import (
    RANDOM_CASES,
    drawn_case,
    random_shapes,
    random_shapes_tally,
    rows_not_finite,
)
from pkpo_kernels.selfcheck.subjects import EVERYTHING, UNBIASED
from pkpo_kernels.validation import checked_integer

__all__ = ["Finding", "count_findings", "fuzz", "verify"]

# Implementation, estimator, seed → what was found.
Check = Callable[[str, str, int], Finding]


def verify(implementations: Sequence[str] | None = None, *, seed: int = 0) -> Iterator[Finding]:
    """Check implementations; yields one `Finding` after another.

    Args:
        implementations: names from `available_implementations()`; None checks all available
          ones but the interpreted.
        seed: of the random rewards, policies and shapes; at least 0.

    Raises:
        ValueError: a name is unknown or cannot be used here, or the seed is negative; raised before
          anything is computed.

    >>> all(finding.ok for finding in verify(["numpy"]))
    True
    """
    return _findings(_checked(implementations, seed), seed)


def count_findings(implementations: Sequence[str] | None = None) -> int:
    """Count the findings that `verify` will yield.

    >>> count_findings(["numpy"])
    29
    """
    each = sum(len(_checks(estimator)) for estimator in EVERYTHING)
    return each * len(_checked(implementations, 0))


def fuzz(
    implementations: Sequence[str] | None = None,
    *,
    seed: int = 0,
    minutes: float,
    progress: Callable[[float], None] = lambda seconds: None,
) -> list[Finding]:
    """Check implementations on random shapes, masks, ks and options until the time is over.

    Args:
        implementations, seed: as for `verify`. Case i of a seed is the same on every machine.
        minutes: how long, above 0; the case at hand is finished.
        progress: is told after each case how many seconds have passed.

    Returns:
        A finding for each implementation and estimator, "random shapes" as in `verify`.

    Raises:
        ValueError: as `verify` does, or minutes is not above 0; raised before anything is computed.

    >>> {finding.ok for finding in fuzz(["numpy"], seed=1, minutes=0.001)}
    {True}
    """
    if not 0 < minutes < np.inf:
        raise ValueError(f"minutes must be above 0; got {minutes}")
    names = _checked(implementations, seed)
    tallies = {(i, e): random_shapes_tally(i, e) for e in EVERYTHING for i in names}
    start = time.monotonic()
    index = 0
    while (seconds := time.monotonic() - start) < 60 * minutes:
        progress(seconds)
        # Beyond the cases that `verify` has looked at.
        index += 1
        for estimator in EVERYTHING:
            case = drawn_case(seed, RANDOM_CASES + index, estimator)
            for implementation in names:
                case.compare(tallies[implementation, estimator])
    return [tally.finding() for tally in tallies.values()]


def _checked(implementations: Sequence[str] | None, seed: int) -> tuple[str, ...]:
    """Check the arguments: → the names of what is to be checked."""
    checked_integer("seed", seed, least=0)
    if implementations is None:
        available = registry.available_implementations()
        # What simulates a chip is there to be looked at, and takes minutes.
        return tuple(
            name
            for name, reason in available.items()
            if reason is None and not registry.IMPLEMENTATIONS[name].is_interpreter
        )
    for name in implementations:
        registry.choose(name, registry.library_served(name))
    return tuple(implementations)


def _checks(estimator: str) -> list[Check]:
    """List what an estimator, or max@k, is checked against."""
    # Where results are normalized their expectation is no gradient.
    exact = [against_closed_form] if estimator in (*UNBIASED, MAX_AT_K.name) else []
    return [against_enumeration, against_reference, *exact, rows_not_finite, random_shapes]


def _findings(implementations: tuple[str, ...], seed: int) -> Iterator[Finding]:
    for implementation in implementations:
        for estimator in EVERYTHING:
            for check in _checks(estimator):
                yield check(implementation, estimator, seed)
