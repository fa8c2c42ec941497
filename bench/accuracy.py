"""How exact the default estimator is, beside exact arithmetic and beside the form that subtracts.

    python -m bench.accuracy [--device auto|cpu|cuda|tpu] [--quick] [--out FOLDER]

Rewards are gaussian, at a distance from 0 (the offset), and rounded to float32 before anything
else. What is right is taken from these very numbers with Python's integers, from Eq 33 and not from
the form that the implementations use, and rounded once, to float64. Candidates are every
implementation of pkpo_kernels that serves the device, given float32, and the two-scan form of
bench/listing.py in float32, whose weights are right to the last digit.

Errors are relative to the right result of the very sample: the worst, and the median; and, kinder
to forms that cancel, the worst relative to the largest result of its row. k=1 stands by itself: a
result there is a reward less the mean of the others, which cancels whatever the form. Results below
1e-30 are left out: float32 has no full numbers below 1.2e-38, and terms of these are. Where the
right result is 0, as for the smallest reward of a row, what else came out is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench import command, listing, records
from bench.libraries import Library
from bench.records import Lines, Panel, Row, figure, number
from bench.shapes import MEASURED_N
from pkpo_kernels.conversion import to_host

OFFSETS = (0.0, 1.0, 100.0, 10000.0)
QUICK_N = 256
# Rows of all matrices together hold about so many rewards at each n, k and offset.
REWARDS, MOST_ROWS = 4096, 16
SMALLEST = 1e-30
# What every single result of ours must keep to at k ≥ 2; and at k=1, relative to its row's largest.
PROMISED, PROMISED_AT_1 = 5e-6, 1e-5
TWO_SCANS = "two scans, subtracted"

# (rewards (rows, n), k) → result (rows, n) on the host
Call = Callable[[NDArray[np.float32], int], NDArray[Any]]


def exact(row: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """Compute sloo_minus_one of one row (n,) in integers, each result rounded once to float64.

    Eq 33: i is the largest of a subset whose runner-up is j in C(j−1, k−2) of C(n, k) cases, for
    every j < i in ascending order, and then i is worth g_(i) − g_(j). At k=1 Eq 26 divided by n.

    >>> exact(np.array([3, 0, 1, 0], np.float32), 2) * 6
    array([8., 0., 2., 0.])
    >>> exact(np.array([3, 0, 1, 0], np.float32), 1) * 12
    array([ 8., -4.,  0., -4.])
    """
    ratios = [float(reward).as_integer_ratio() for reward in row]
    unit = max(denominator for _, denominator in ratios)  # a power of two
    order = np.argsort(row, kind="stable")
    ordered = [ratios[i][0] * (unit // ratios[i][1]) for i in order]
    n = len(row)
    if k == 1:
        counts, totals = [n] * n, [sum(ordered)] * n
        divisor = n * (n - 1) * unit
    else:
        cases = _binomials(n, k - 2)
        counts = list(accumulate(cases, initial=0))
        totals = list(accumulate((c * g for c, g in zip(cases, ordered, strict=True)), initial=0))
        divisor = math.comb(n, k) * unit
    out = np.empty(n)
    for index, reward, count, total in zip(order, ordered, counts, totals, strict=False):
        # Python divides integers of any size and rounds once.
        out[index] = (reward * count - total) / divisor
    return out


def _binomials(n: int, chosen: int) -> list[int]:
    """C(m, chosen) for m = 0..n−1."""
    found, number = [], 0
    for m in range(n):
        number = int(m == chosen) if m <= chosen else number * m // (m - chosen)
        found.append(number)
    return found


def ks_of(n: int) -> tuple[int, ...]:
    """One, small ks, half of the samples, and all.

    >>> ks_of(8), ks_of(1024)
    ((1, 2, 4, 8), (1, 2, 8, 512, 1024))
    """
    return tuple(sorted({1, 2, min(8, n), n // 2, n}))


def candidates_of(libraries: Sequence[Library]) -> dict[str, Call]:
    """Name what is compared, each in its own precision."""

    def call(library: Library, name: str, rewards: NDArray[np.float32], k: int) -> NDArray[Any]:
        return to_host(library.transform(name, k)(library.array(rewards)))

    found = {
        f"pk {name}": partial(call, library, name)
        for library in libraries
        for name in [*library.served(), *(["reference"] if library.name == "numpy" else [])]
    }
    return found | {TWO_SCANS: lambda rewards, k: listing.transform(rewards, k, np.float32)}


class Case(NamedTuple):
    """Rewards (rows, n), a k, and what is right (rows, n)."""

    rewards: NDArray[np.float32]
    k: int
    right: NDArray[np.float64]


def case(n: int, k: int, offset: float) -> Case:
    """Draw rewards around an offset, the same ones every time."""
    rows = max(1, min(MOST_ROWS, REWARDS // n))
    rewards = (np.random.default_rng(n).standard_normal((rows, n)) + offset).astype(np.float32)
    return Case(rewards, k, np.array([exact(row, k) for row in rewards]))


def measure(
    libraries: Sequence[Library], quick: bool, ns: Sequence[int] = MEASURED_N
) -> Iterator[list[dict[str, Any]]]:
    """Measure the error of every implementation against exact arithmetic."""
    candidates = candidates_of(libraries)
    pairs = [(n, k) for n in ns for k in ks_of(n) if n <= QUICK_N or not quick]
    for offset in OFFSETS:
        for kind, chosen in (
            ("2 to n", [case(n, k, offset) for n, k in pairs if k > 1]),
            ("1", [case(n, k, offset) for n, k in pairs if k == 1]),
        ):
            yield [
                {"candidate": name, "k": kind, "offset": offset, **errors_of(call, chosen)}
                for name, call in candidates.items()
                if (kind, name) != ("1", TWO_SCANS)  # Eq 33 has no k=1
            ]


def errors_of(call: Call, cases: Sequence[Case]) -> dict[str, Any]:
    """Compare a candidate's results with what is right: the largest of every figure, at any n and
    k, and the worst error at each n."""
    lengths = [it.rewards.shape[1] for it in cases]
    found: dict[str, Any] = {"n": f"{min(lengths)} to {max(lengths)}", "reason": ""}
    try:
        errors = [compare(call(it.rewards, it.k), it.right) for it in cases]
    except Exception as error:
        return found | {"reason": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    found |= {it: max(one[it] for one in errors) for it in ("worst", "median", "of_largest")}
    found |= {it: sum(one[it] for one in errors) for it in ("results", "zeros_missed")}
    pairs = sorted((n, one["worst"]) for n, one in zip(lengths, errors, strict=True))
    return found | {"worst_at": dict(pairs)}  # the last of each n is its worst


def compare(got: NDArray[Any], right: NDArray[np.float64]) -> dict[str, Any]:
    """Compare results (rows, n); ValueError where one is not finite."""
    if not np.isfinite(got).all():
        raise ValueError("not finite")
    error = np.abs(got - right)
    counted = np.abs(right) >= SMALLEST
    relative = error[counted] / np.abs(right[counted])
    return {
        "results": relative.size,
        "worst": float(relative.max()),
        "median": float(np.median(relative)),
        "of_largest": float((error / np.abs(right).max(axis=1, keepdims=True)).max()),
        "zeros_missed": int(np.sum((right == 0) & (got != 0))),
    }


def tables(rows: Sequence[Row]) -> dict[str, Lines]:
    """Lay out worst / median / of the row's largest: a candidate a line, an offset a column."""

    def cell(row: Row) -> str:
        figures = (number(row, name) for name in ("worst", "median", "of_largest"))
        return row["reason"] or " / ".join("–" if it is None else f"{it:.0e}" for it in figures)

    lines = records.pivot(
        sorted(rows, key=lambda row: row["k"] == "1"),
        lambda row: row["candidate"] + (", k=1" if row["k"] == "1" else ""),
        lambda row: f"rewards near {figure(float(row['offset']))}",
        cell,
        "candidate",
    )
    return {"relative error: worst / median / worst of its row's largest": lines}


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Draw the worst error at k ≥ 2 of every candidate over n, a panel an offset."""
    found = []
    for offset in OFFSETS:
        curves: dict[str, records.Points] = {
            row["candidate"]: list(row["worst_at"].items())
            for row in rows
            if (row["offset"], row["k"], row["reason"]) == (offset, "2 to n", "")
        }
        curves["what is promised"] = [(n, PROMISED) for n in MEASURED_N]
        near = f"rewards near {figure(offset)}"
        found.append(Panel(near, "n, samples per task", "worst relative error", curves))
    return found


BENCH = command.Bench("accuracy", measure, tables, panels, of_others=True)
app = command.command_of(BENCH)

if __name__ == "__main__":
    app()
