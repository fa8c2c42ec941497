"""Candidates timed beside each other: each is checked first, then all are timed in every round.

A candidate whose result is wrong gets no figure, and neither does one that fails. Times are the
host's clock's: on CPUs of single calls, on GPUs and TPUs of many in a row, of which the last is
waited for. Calls go round several arguments, on GPUs of four times the cache in all, so that no
call finds its input there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import cycle, islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import pkpo_kernels as pk
from bench.libraries import Array, Call, Library
from bench.shapes import K
from pkpo_kernels.conversion import to_host

ROUNDS, FEWEST_SAMPLES = 40, 5
# The seconds of a sample, so that what starts and ends it does not count; of all samples of a
# candidate; and of a call that is left out.
SAMPLE_SECONDS, CANDIDATE_SECONDS, SLOW_SECONDS = 0.02, 0.3, 2.0
# Of calls for the host's work so few in a row that a device's queue never makes the host wait.
HOST_CALLS = 50
# What a result may be off: relative to itself; to the largest result of its row; and to the
# largest reward there, for candidates that cancel in float64, where the right result is 0.
RELATIVE, OF_LARGEST, OF_REWARDS = 5e-6, 2e-6, 1e-12


class Candidate(NamedTuple):
    """One thing that is timed: a call, and what it must return of its rewards (rows, n)."""

    name: str
    library: Library  # whose arrays it takes
    call: Call
    result: Literal["transform", "sort", "copy"] = "transform"
    eager: Call | None = None  # what counts for the host's work, where it is not `call`
    rows: int | None = None  # of a matrix it takes so many, where not all


# (candidate, its result) → None where that is right, else how far it is off
Check = Callable[[Candidate, Array], float | None]
Sample = Callable[[int], float]  # calls in a row → the seconds of one


def checked_with(block: NDArray[Any]) -> Check:
    """Make the check of results (rows, n) for rewards of a block (some, n), repeated.

    It compares first, middle and last rows with the float64 reference. A copy and a sort only move
    rewards: they have no tolerance.
    """

    @cache
    def transformed(index: int) -> NDArray[np.float64]:
        """Transform a row by the definitions, once for all candidates: it is slow."""
        row = block[index : index + 1].astype(np.float64)
        return np.asarray(pk.transform(row, K, implementation="reference"))[0]

    def check(candidate: Candidate, out: Array) -> float | None:
        rows = len(out)
        some = {0, 1, rows // 2 - 1, rows // 2, rows - 2, rows - 1}
        indices = sorted(index for index in some if 0 <= index < rows)
        sources = [index % len(block) for index in indices]
        rewards: Any = block[sources].astype(np.float64)
        right, allowed = rewards, np.zeros(())
        if candidate.result == "sort":
            right = np.sort(rewards, axis=1)
        elif candidate.result == "transform":
            right = np.stack([transformed(source) for source in sources])
            allowed = RELATIVE * np.abs(right) + OF_LARGEST * _largest(right)
            allowed = allowed + OF_REWARDS * _largest(rewards)
        return off_by(to_host(out[np.array(indices)]), right, allowed)

    return check


def off_by(got: NDArray[Any], right: NDArray[Any], allowed: Any) -> float | None:
    """Compare results (rows, n): None where all errors are allowed, else the worst over its row's
    largest result, or the error itself where that is 0. NaN is never right."""
    if got.shape != right.shape:
        return math.inf
    error = np.abs(got - right)
    if np.all(error <= allowed):
        return None
    largest = _largest(right)
    return float(np.max(error / np.where(largest > 0, largest, 1.0)))


def _largest(rows: NDArray[Any]) -> NDArray[Any]:
    """Find the largest magnitude of each row: (rows, n) → (rows, 1)."""
    return np.abs(rows).max(axis=1, keepdims=True)


@dataclass
class Timed:
    """A candidate and the seconds that a call of it took: a sample a round, or fewer.

    Where there is a reason against it there are no samples.
    """

    candidate: Candidate
    reason: str = ""
    first_call_s: float | None = None  # with all that is compiled on the way
    calls: int = 1  # of a sample
    every: int = 1  # so many rounds there is a sample
    samples: list[float] = field(default_factory=list)

    def give_up(self, reason: str) -> None:
        self.reason, self.samples = reason[:200], []

    def quantiles(self, name: str, unit: float) -> dict[str, float | None]:
        """Summarize a call's time in a unit: name → the median, and name_p20, name_p80."""
        found: Any = [None] * 3
        if self.samples:
            found = (np.quantile(self.samples, (0.2, 0.5, 0.8)) / unit).tolist()
        return dict(zip((f"{name}_p20", name, f"{name}_p80"), found, strict=True))

    def row(self) -> dict[str, Any]:
        """What every table has of it."""
        row = {"candidate": self.candidate.name, "library": self.candidate.library.name}
        return row | {"reason": self.reason} | self.quantiles("ms", 1e-3)


def measure(
    entries: Iterable[tuple[Candidate, Sequence[Any]]],
    check: Check | None,
    *,
    host: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    rounds: int | None = None,
) -> list[Timed]:
    """Check every candidate on the last of its arguments, then time those that are right in rounds.

    With `host` calls are eager, and what is timed is what the host does until they return.
    """
    every: list[tuple[Timed, Sample]] = []
    for candidate, arguments in entries:
        call = candidate.eager if host and candidate.eager else candidate.call
        timed = Timed(candidate)
        sample: Sample = partial(_seconds, call, cycle(arguments), candidate.library, host, clock)
        with _failing(timed):
            _prepare(timed, sample, host)
            if check and not timed.reason:
                error = check(candidate, call(arguments[-1]))
                if error is not None:
                    timed.give_up(f"wrong: off by {error:.1e} of its row's largest result")
        every.append((timed, sample))
    for turn in range(rounds or ROUNDS):
        for timed, sample in every:
            if not timed.reason and turn % timed.every == 0:
                with _failing(timed):
                    timed.samples.append(sample(timed.calls))
    return [timed for timed, _ in every]


def _seconds(
    call: Call,
    arguments: Iterator[Any],
    library: Library,
    host: bool,
    clock: Callable[[], float],
    calls: int,
) -> float:
    """Time so many calls in a row; → the seconds of one."""
    start = clock()
    for argument in islice(arguments, calls):
        out = call(argument)
        if library.device == "cpu":  # where JAX would run them side by side
            library.wait(out)
    if not host:
        library.wait(out)
    spent = clock() - start
    library.wait(out)
    return spent / calls


def _prepare(timed: Timed, sample: Sample, host: bool) -> None:
    """Warm a candidate and plan its samples."""
    timed.first_call_s, once = sample(1), sample(1)
    if once > SLOW_SECONDS:
        timed.give_up(f"slow: a call takes {once:.1f} s, more than {SLOW_SECONDS:g}")
        return
    once = min(once, sample(1))
    timed.calls = min(math.ceil(SAMPLE_SECONDS / once), HOST_CALLS if host else 1 << 20)
    samples = max(FEWEST_SAMPLES, int(CANDIDATE_SECONDS / (timed.calls * once)))
    timed.every = max(1, ROUNDS // samples)


@contextmanager
def _failing(timed: Timed) -> Iterator[None]:
    """Note what a candidate fails with, and go on without it."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        timed.give_up(f"failed: {type(error).__name__}: {lines[0]}")
