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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from bench import listing, records
from bench.libraries import Library, opened
from bench.records import CommitOption, Device, DeviceOption, OutOption, Row, figure, number
from bench.shapes import MEASURED_N

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
        out = library.transform(name, k)(library.matrix(rewards, len(rewards)))
        return library.rows(out, range(len(rewards)))

    found = {
        f"pk {name}": partial(call, library, name)
        for library in libraries
        for name in [*library.served(), *(["reference"] if library.name == "numpy" else [])]
    }
    return found | {TWO_SCANS: lambda rewards, k: listing.transform(rewards, k, np.float32)}


def errors_of(got: NDArray[Any], right: NDArray[np.float64]) -> dict[str, Any]:
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


def measure(
    ns: Sequence[int], candidates: Mapping[str, Call], offsets: Sequence[float] = OFFSETS
) -> Iterator[list[dict[str, Any]]]:
    """Compare every candidate at every n, k and offset."""
    rng = np.random.default_rng(0)
    cases = [(n, k, offset) for n in ns for k in ks_of(n) for offset in offsets]
    for n, k, offset in cases:
        rows = max(1, min(MOST_ROWS, REWARDS // n))
        rewards = (rng.standard_normal((rows, n)) + offset).astype(np.float32)
        right = np.array([exact(row, k) for row in rewards])
        found = []
        for name, call in candidates.items():
            if k == 1 and name == TWO_SCANS:  # Eq 33 has no k=1
                continue
            found.append({"candidate": name, "n": n, "k": k, "offset": offset, "reason": ""})
            try:
                found[-1] |= errors_of(call(rewards, k), right)
            except Exception as error:
                found[-1]["reason"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        yield found


def summarize(cases: Sequence[Row]) -> list[dict[str, Any]]:
    """Take the largest of every figure over n and k: a row a candidate and offset, k=1 apart."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for case in sorted(cases, key=lambda case: case["k"] == 1):
        ks = "1" if case["k"] == 1 else "2 to n"
        groups.setdefault((case["candidate"], ks, case["offset"]), []).append(case)
    rows = []
    for (name, ks, offset), found in groups.items():
        ns = [case["n"] for case in found]
        row = {"candidate": name, "k": ks, "offset": offset, "n": f"{min(ns)} to {max(ns)}"}
        row["reason"] = next((case["reason"] for case in found if case["reason"]), "")
        if not row["reason"]:
            row |= {it: max(case[it] for case in found) for it in ("worst", "median", "of_largest")}
            row |= {it: sum(case[it] for case in found) for it in ("results", "zeros_missed")}
        rows.append(row)
    return rows


def lines_of(rows: Sequence[Row]) -> list[list[str]]:
    """Lay out worst / median / of the row's largest: a candidate a line, an offset a column."""

    def cell(row: Row) -> str:
        figures = (number(row, name) for name in ("worst", "median", "of_largest"))
        return row["reason"] or " / ".join("–" if it is None else f"{it:.0e}" for it in figures)

    return records.pivot(
        rows,
        lambda row: row["candidate"] + (", k=1" if row["k"] == "1" else ""),
        lambda row: f"rewards near {figure(float(row['offset']))}",
        cell,
        "candidate",
    )


def panels_of(cases: Sequence[Row]) -> list[records.Panel]:
    """Draw the worst error at k ≥ 2 of every candidate over n, a panel an offset."""
    panels = []
    for offset in dict.fromkeys(case["offset"] for case in cases):
        mine = [case for case in cases if case["offset"] == offset and case["k"] > 1]
        curves: dict[str, records.Points] = {
            # Points in order: the last of each n is its worst.
            name: list(dict(sorted(points)).items())
            for name, points in records.curves(mine, "n", "worst").items()
        }
        curves["what is promised"] = [(case["n"], PROMISED) for case in mine]
        near = f"rewards near {figure(offset)}"
        panels.append(records.Panel(near, "n, samples per task", "worst relative error", curves))
    return panels


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    device: DeviceOption = Device.auto,
    quick: Annotated[bool, typer.Option("--quick", help=f"n up to {QUICK_N} only.")] = False,
    out: OutOption = records.RESULTS,
    commit: CommitOption = None,
) -> None:
    """Measure the error of every implementation against exact arithmetic."""
    chosen, errors = records.present(device), Console(stderr=True)
    where = records.origin(chosen, commit)
    ns = [n for n in MEASURED_N if n <= QUICK_N or not quick]
    total = len(OFFSETS) * sum(len(ks_of(n)) for n in ns)
    todo = measure(ns, candidates_of(opened(chosen, errors.print)))
    shown = track(todo, "accuracy", total, console=errors, transient=True)
    cases = [case for found in shown for case in found]
    rows = summarize(cases)
    path = out / records.file_name("accuracy", where["device"])
    records.write_table(path, rows, where)
    title = "relative error: worst / median / worst of its row's largest"
    records.report(
        path, f"sloo_minus_one, {where['device']}", {title: lines_of(rows)}, panels_of(cases)
    )


if __name__ == "__main__":
    app()
