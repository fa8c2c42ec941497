"""How exact the default estimator is, beside exact arithmetic and beside the form that subtracts.

    python -m bench.accuracy [--quick] [--out FOLDER]

Rewards are gaussian, at a distance from 0 (the offset), and rounded to float32 before anything
else: what that rounding loses is nobody's error. What is right is taken from these very numbers
with Python's integers, from Eq 33 and not from the form that the implementations use, and rounded
once, to float64. The arms are every implementation of pkpo_kernels that can be used here, given
float32, and the two-scan form of bench/listing.py in float32, whose weights are right to the last
digit.

Errors are relative to the right result of the very sample: the worst, and the median; and, kinder
to forms that cancel, the worst relative to the largest result of its row. k=1 stands by itself:
there a result is a reward less the mean of the others, which cancels whatever the form where the
two are near each other, and only the last of these figures is small. Results below 1e-30 are left
out: float32 has no full numbers below 1.2e-38, and terms of these are. Where the right result
is 0, as for the smallest reward of a row, it is counted how often something else came out.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

import pkpo_kernels as pk
from bench import listing
from bench.records import (
    RESULTS,
    Device,
    as_json,
    as_table,
    figure,
    machine,
    origin,
    present,
    stem_of,
    write,
)
from bench.shapes import MEASURED_N
from pkpo_kernels.backends import registry
from pkpo_kernels.conversion import from_host, to_host
from pkpo_kernels.typing import ImplementationName

OFFSETS = (0.0, 1.0, 100.0, 10000.0)
QUICK_N = 256
# Rows of all matrices together hold about so many rewards at each n, k and offset.
REWARDS, MOST_ROWS = 4096, 16
SMALLEST = 1e-30
# What every single result of ours must keep to at k ≥ 2; and at k=1, relative to its row's largest.
PROMISED, PROMISED_AT_1 = 5e-6, 1e-5
TWO_SCANS = "two scans, subtracted"


@dataclass(frozen=True)
class Accuracy:
    """The relative errors of an arm over all results for n rewards at an offset.

    `worst`, `median` and `of_largest` are None where a result is NaN or infinite, and where the arm
    failed, for the reason given.
    """

    arm: str
    n: int
    k: int
    offset: float
    results: int
    worst: float | None
    median: float | None
    of_largest: float | None
    zeros_missed: int = 0
    reason: str = ""


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


def arms() -> dict[str, Callable[[NDArray[np.float32], int], NDArray[Any]]]:
    """name → (rewards, k) → results on the host, in the arm's own precision."""

    def ours(name: ImplementationName) -> Callable[[NDArray[np.float32], int], NDArray[Any]]:
        kind = registry.library_served(name)

        def call(rewards: NDArray[np.float32], k: int) -> NDArray[Any]:
            out = pk.transform(from_host(rewards, kind), k, implementation=name)
            return to_host(out)

        return call

    there = [
        name
        for name, reason in pk.available_implementations().items()
        if reason is None and not registry.IMPLEMENTATIONS[name].is_interpreter
    ]
    return {f"pk {name}": ours(name) for name in there} | {
        TWO_SCANS: lambda rewards, k: listing.transform(rewards, k, np.float32)
    }


def compared(
    arm: str, n: int, k: int, offset: float, got: NDArray[Any], right: NDArray[np.float64]
) -> Accuracy:
    """The errors of (rows, n) results."""
    got = got.astype(np.float64)
    counted = np.abs(right) >= SMALLEST
    if not np.isfinite(got).all():
        return failed(arm, n, k, offset, "not finite")
    error = np.abs(got - right)
    relative = error[counted] / np.abs(right[counted])
    return Accuracy(
        arm,
        n,
        k,
        offset,
        results=relative.size,
        worst=float(relative.max()),
        median=float(np.median(relative)),
        of_largest=float((error / np.abs(right).max(axis=1, keepdims=True)).max()),
        zeros_missed=int(np.sum((right == 0) & (got != 0))),
    )


def failed(arm: str, n: int, k: int, offset: float, reason: str) -> Accuracy:
    """An arm without figures."""
    return Accuracy(arm, n, k, offset, 0, None, None, None, reason=reason)


def measure(ns: Sequence[int], *, track_cases: Callable[[list[Any]], Any] = iter) -> list[Accuracy]:
    """Every arm at every n, k and offset."""
    rng = np.random.default_rng(0)
    found: list[Accuracy] = []
    cases = [(n, k, offset) for n in ns for k in ks_of(n) for offset in OFFSETS]
    chosen = arms()
    for n, k, offset in track_cases(cases):
        rows = max(1, min(MOST_ROWS, REWARDS // n))
        rewards = (rng.standard_normal((rows, n)) + offset).astype(np.float32)
        right = np.array([exact(row, k) for row in rewards])
        for arm, call in chosen.items():
            if k == 1 and arm == TWO_SCANS:  # Eq 33 has no k=1
                continue
            try:
                got = call(rewards, k)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                found.append(failed(arm, n, k, offset, reason))
            else:
                found.append(compared(arm, n, k, offset, got, right))
    return found


def worst_of(
    found: Sequence[Accuracy], arm: str, offset: float, name: str
) -> list[tuple[int, float]]:
    """(n, the largest over every k) of a figure of an arm at an offset: "worst", say."""
    values = [
        (a.n, getattr(a, name))
        for a in found
        if (a.arm, a.offset) == (arm, offset) and getattr(a, name) is not None
    ]
    return [(n, max(v for m, v in values if m == n)) for n in dict.fromkeys(n for n, _ in values)]


def by_k(found: Sequence[Accuracy]) -> dict[str, list[Accuracy]]:
    """What was found for k ≥ 2, and for k=1 where that was measured, by what is added to an arm."""
    parts = {"": [a for a in found if a.k > 1], ", k=1": [a for a in found if a.k == 1]}
    return {name: part for name, part in parts.items() if part}


def summary(found: Sequence[Accuracy]) -> list[list[str]]:
    """A heading, and a line an arm, then one an arm at k=1: at every offset the worst, the largest
    median, and the worst of its row's largest, over every n and k."""
    lines = [["arm", *(f"rewards near {figure(offset)}" for offset in OFFSETS)]]
    for suffix, part in by_k(found).items():
        for arm in dict.fromkeys(a.arm for a in part):
            cells = []
            for offset in OFFSETS:
                mine = [a for a in part if (a.arm, a.offset) == (arm, offset)]
                reasons = [a.reason for a in mine if a.reason]
                figures = [
                    max(value for _, value in worst_of(part, arm, offset, name))
                    for name in ("worst", "median", "of_largest")
                    if not reasons
                ]
                cells.append(reasons[0] if reasons else " / ".join(f"{v:.0e}" for v in figures))
            lines.append([arm + suffix, *cells])
    return lines


def plot(found: Sequence[Accuracy], title: str) -> bytes:
    """A PNG: the worst error at k ≥ 2 against n, and of the row's largest at every k, a panel an
    offset."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(14, 4.6), layout="constrained")
    panels = canvas.subplots(1, len(OFFSETS), sharex=True, sharey=True)
    for axes, offset in zip(panels, OFFSETS, strict=True):
        for arm in dict.fromkeys(a.arm for a in found):
            errors = worst_of(by_k(found).get("", []), arm, offset, "worst")
            if not errors:
                continue
            (line,) = axes.plot(*zip(*errors, strict=True), marker=".", label=arm)
            line.set_linewidth(2.5 if arm == TWO_SCANS else 1.2)
            kinder = worst_of(found, arm, offset, "of_largest")
            axes.plot(*zip(*kinder, strict=True), ":", color=line.get_color())
        axes.axhline(
            PROMISED, color="black", lw=0.8, ls="--", label=f"what is promised, {PROMISED:g}"
        )
        axes.set(title=f"rewards near {figure(offset)}", xlabel="n, samples per task")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("worst relative error; of the row's largest, k=1 too (dotted)")
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    canvas.suptitle(title)
    content = io.BytesIO()
    canvas.savefig(content, format="png", dpi=130)
    return content.getvalue()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help=f"n up to {QUICK_N} only.")] = False,
    out: Annotated[Path, typer.Option(help="The folder of the results.")] = RESULTS,
    commit: Annotated[
        str | None, typer.Option(help="What is measured, where git is not there to ask.")
    ] = None,
) -> None:
    """Measure the error of every implementation against exact arithmetic."""
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    errors = Console(stderr=True)
    found = measure(
        [n for n in MEASURED_N if n <= QUICK_N or not quick],
        track_cases=lambda cases: track(cases, "accuracy", console=errors, transient=True),
    )
    where = machine(present(Device.auto))
    record = {
        "what": "relative errors, measured",
        "estimator": "sloo_minus_one",
        **origin(where, commit),
        "seconds": round(time.perf_counter() - start, 1),
        "results_at_least": SMALLEST,
        "results": list(map(asdict, found)),
    }
    stem = stem_of("accuracy", record)
    write(out / f"{stem}.json", as_json(record))
    title = "relative error: worst / median / worst of its row's largest"
    Console(width=None if Console().is_terminal else 140).print(as_table(title, summary(found)))
    write(out / f"{stem}.png", plot(found, f"sloo_minus_one in float32, {where['name']}"))
    typer.echo(f"{record['seconds']:.0f} s; in {out}: {stem}.json, {stem}.png")


if __name__ == "__main__":
    app()
