"""Candidates timed beside each other: each is checked first, then all are timed in every round.

A candidate whose result is wrong on any of its first, middle and last rows gets no figure, and
neither does one that fails. Times are the host's clock's: on CPUs of single calls, on GPUs and TPUs
of many in a row, of which the last is waited for. They go round several buffers, on GPUs of four
times the cache in all, so that no call finds its input there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import cycle, islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import pkpo_kernels as pk
from bench.libraries import Array, Call, Library
from bench.shapes import K

ROUNDS, FEWEST_SAMPLES = 40, 5
# The seconds of a sample, so that what starts and ends it does not count; of all samples of a
# candidate; and of a call that is left out.
SAMPLE_SECONDS, CANDIDATE_SECONDS, SLOW_SECONDS = 0.02, 0.3, 2.0
# Of eager calls so few in a row that a device's queue never makes the host wait.
HOST_CALLS = 50
# More buffers than this are never made: tiny matrices may stay in the cache.
MOST_BUFFERS = 64
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
    most_elements: int | None = None  # it is timed on so many, the matrix's first


def error_of(
    library: Library,
    out: Array,
    block: NDArray[Any],
    k: int | NDArray[np.integer[Any]] = K,
    result: str = "transform",
) -> float | None:
    """Compare first, middle and last rows of a result (rows, n) with the float64 reference.

    The rewards are a block (some, n), repeated. None where every value is within the tolerance;
    else the worst error over its row's largest result, or the error itself where that is 0. NaN is
    never right. A copy and a sort only move rewards: they have no tolerance.
    """
    rows = len(out)
    some = {0, 1, rows // 2 - 1, rows // 2, rows - 2, rows - 1}
    indices = sorted(index for index in some if 0 <= index < rows)
    got = library.rows(out, indices)
    sources = [index % len(block) for index in indices]
    rewards: Any = block[sources].astype(np.float64)
    right = rewards
    allowed: Any = 0.0
    if result == "sort":
        right = np.sort(rewards, axis=1)
    if result == "transform":
        ks = np.broadcast_to(k, len(block))[sources]
        right = np.stack([_right(*it) for it in zip(map(bytes, rewards), ks.tolist(), strict=True)])
        allowed = RELATIVE * np.abs(right) + OF_LARGEST * np.abs(right).max(axis=1, keepdims=True)
        allowed += OF_REWARDS * np.abs(rewards).max(axis=1, keepdims=True)
    if got.shape != right.shape:
        return math.inf
    error = np.abs(got - right)
    if bool(np.all(error <= allowed)):
        return None
    largest = np.abs(right).max(axis=1, keepdims=True)
    return float(np.max(error / np.where(largest > 0, largest, 1.0)))


@lru_cache(maxsize=64)
def _right(row: bytes, k: int) -> NDArray[np.float64]:
    """Transform one row of float64 by the definitions, once for all candidates: it is slow."""
    (out,) = pk.transform(np.frombuffer(row)[None], k, implementation="reference")
    return np.asarray(out)


@dataclass
class Timed:
    """A candidate and the seconds that a call of it took: a sample a round, or fewer.

    `outcome` is "measured", or else "wrong", "slow" or "failed", with the reason and no samples.
    """

    candidate: Candidate
    rows: int = 0
    cold_cache: bool = False
    outcome: str = "measured"
    reason: str = ""
    first_call_s: float | None = None  # with all that is compiled on the way
    calls: int = 1  # of a sample
    every: int = 1  # so many rounds there is a sample
    samples: list[float] = field(default_factory=list)

    def give_up(self, outcome: str, reason: str) -> None:
        self.outcome, self.reason, self.samples = outcome, reason[:200], []

    def quantiles(self, name: str, unit: float) -> dict[str, float | None]:
        """Summarize a call's time in a unit: name → the median, and name_p20, name_p80."""
        found: Any = [None] * 3
        if self.samples:
            found = (np.quantile(self.samples, (0.2, 0.5, 0.8)) / unit).tolist()
        return dict(zip((f"{name}_p20", name, f"{name}_p80"), found, strict=True))

    def row(self) -> dict[str, Any]:
        """What every table has of it."""
        row = {"candidate": self.candidate.name, "library": self.candidate.library.name}
        row |= {"outcome": self.outcome, "reason": self.reason}
        return row | self.quantiles("ms", 1e-3)


def buffers_of(library: Library, block: NDArray[Any], rows: int, cache_bytes: int) -> list[Array]:
    """Make matrices (rows, n) of repeated blocks: two, or more where they fit into the cache."""
    count = max(2, min(MOST_BUFFERS, -(-4 * cache_bytes // (rows * block[0].nbytes))))
    return [library.matrix(block, rows) for _ in range(count)]


def measure(
    entries: Iterable[tuple[Candidate, Sequence[Array]]],
    block: NDArray[Any],
    k: int | NDArray[np.integer[Any]] = K,
    *,
    cache_bytes: int = 0,
    host: bool = False,
) -> list[Timed]:
    """Check every candidate on its buffers (rows, n), then time those that are right in rounds.

    With `host` calls are eager, and what is timed is what the host does until they return.
    """
    every: list[tuple[Timed, Call, Iterator[Array]]] = []
    for candidate, buffers in entries:
        call = candidate.eager if host and candidate.eager else candidate.call
        rows, n = buffers[0].shape
        if candidate.most_elements is not None:
            rows = min(rows, max(1, candidate.most_elements // n))
        held = [buffer[:rows] for buffer in buffers] if rows < len(buffers[0]) else buffers
        cold = 0 < 4 * cache_bytes <= sum(buffer.nbytes for buffer in held)
        timed = Timed(candidate, rows, cold)
        with _failing(timed):
            _prepare(timed, call, held, host)
            if timed.outcome == "measured":
                out = call(held[-1])
                error = error_of(candidate.library, out, block, k, candidate.result)
                del out
                if error is not None:
                    timed.give_up("wrong", f"off by {error:.1e} of its row's largest result")
        every.append((timed, call, cycle(held)))
    for turn in range(ROUNDS):
        for timed, call, turns in every:
            if timed.outcome == "measured" and turn % timed.every == 0:
                with _failing(timed):
                    library = timed.candidate.library
                    timed.samples.append(seconds(call, turns, timed.calls, library, host))
    return [timed for timed, *_ in every]


def seconds(
    call: Call, buffers: Iterable[Array], calls: int, library: Library, host: bool
) -> float:
    """Time so many calls in a row; → the seconds of one."""
    start = time.perf_counter()
    for buffer in islice(buffers, calls):
        out = call(buffer)
        if library.device == "cpu":  # where JAX would run them side by side
            library.wait(out)
    if not host:
        library.wait(out)
    spent = time.perf_counter() - start
    library.wait(out)
    return spent / calls


def _prepare(timed: Timed, call: Call, buffers: Sequence[Array], host: bool) -> None:
    """Warm a candidate and plan its samples."""
    library = timed.candidate.library
    timed.first_call_s = seconds(call, buffers, 1, library, host=False)
    once = seconds(call, buffers, 1, library, host=False)
    if once > SLOW_SECONDS:
        timed.give_up("slow", f"a call takes {once:.1f} s, more than {SLOW_SECONDS:g}")
    once = seconds(call, buffers, 1, library, host)
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
        timed.give_up("failed", f"{type(error).__name__}: {lines[0]}")
