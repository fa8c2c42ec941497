"""How fast whole matrices are transformed, beside a plain copy and beside what else there is.

    python -m bench.throughput [--device auto|cpu|cuda|tpu] [--quick] [--out FOLDER]

Candidates are every implementation of pkpo_kernels that serves the device, the usual ways to write
the same transform (in eager torch, under torch.compile, under jax.jit, and beside a CPU row by row
in NumPy), a sort alone, and a plain copy: bench/candidates.py. How they are checked and timed says
bench/harness.py. Rates are in GB/s of what a transform must at least move: 8 bytes a reward of
float32, one read and one write; each is also given as a ratio to the plain copy of the same library
in the same rounds. What the host does for one call is timed apart, by eager calls on 8 x 8 rewards.

The exit code is 1 where an implementation that serves by default has no figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from bench import records
from bench.candidates import candidates_of
from bench.harness import Timed, buffers_of, measure
from bench.libraries import Library, opened
from bench.records import CommitOption, Device, DeviceOption, OutOption, Row, figure, number
from bench.shapes import INPUTS, K, Shape

# n and the inputs measured there, the most telling first; --quick takes three of them.
BOTH, ONE = ("gaussian", "0/1"), ("gaussian",)
PLAN = ((16, BOTH), (256, BOTH), (4096, ONE), (8, ONE), (64, ONE), (1024, ONE), (16384, ONE))
# Of a matrix; of float32 it is 1 GiB on GPUs. And of those that the host makes, to be repeated.
ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 28, "tpu": 1 << 26}
BLOCK_ELEMENTS = 1 << 22
BYTES = 8  # a reward, read and written
TINY = Shape(8, 8)


def host_work(libraries: Sequence[Library]) -> dict[str, dict[str, float | None]]:
    """Time what a call costs the host: candidate → microseconds."""
    block = INPUTS["gaussian"](np.random.default_rng(0), TINY)
    entries = [
        (candidate, [library.matrix(block, TINY.rows)])
        for library in libraries
        for candidate in candidates_of(library, *TINY)
    ]
    every = measure(entries, block, host=True)
    return {timed.candidate.name: timed.quantiles("host_us", 1e-6) for timed in every}


def matrices(
    libraries: Sequence[Library], plan: Sequence[tuple[Shape, Sequence[str]]], cache_bytes: int
) -> Iterator[tuple[Shape, str, list[Timed]]]:
    """Time the candidates on every matrix of the plan."""
    for shape, inputs in plan:
        # Once for all inputs, so that they are compiled once.
        candidates = [it for library in libraries for it in candidates_of(library, *shape)]
        few = Shape(max(1, min(shape.rows, BLOCK_ELEMENTS // shape.n)), shape.n)
        for name in inputs:
            block = INPUTS[name](np.random.default_rng(shape.n), few)
            buffers = {it: buffers_of(it, block, shape.rows, cache_bytes) for it in libraries}
            entries = [(it, buffers[it.library]) for it in candidates]
            yield shape, name, measure(entries, block, cache_bytes=cache_bytes)
            del buffers, entries  # a GPU may not hold them beside the next
        del candidates
        for library in libraries:
            library.release()


def rows_of(
    shape: Shape, name: str, every: Sequence[Timed], host: dict[str, dict[str, float | None]]
) -> list[dict[str, Any]]:
    """Make the lines of the CSV for one matrix; ratios are to the copy in these very rounds."""

    def rate(timed: Timed) -> float | None:
        size = BYTES * timed.rows * shape.n
        return size / float(np.median(timed.samples)) / 1e9 if timed.samples else None

    copies = {it.candidate.library: rate(it) for it in every if it.candidate.result == "copy"}
    rows = []
    for timed in every:
        mine, copy = rate(timed), copies.get(timed.candidate.library)
        row = timed.row() | {"input": name, "rows": shape.rows, "n": shape.n}
        row |= {"rows_timed": timed.rows, "cold_cache": timed.cold_cache}
        row |= {"samples": len(timed.samples), "first_call_s": timed.first_call_s}
        row |= {"gb_per_s": mine, "of_copy": mine / copy if mine and copy else None}
        rows.append(row | host.get(timed.candidate.name, {}))
    return rows


def lines_of(rows: Sequence[Row], name: str) -> list[list[str]]:
    """Lay out one input: a candidate a line, a length a column, and the host's work."""

    def cell(row: Row) -> str:
        rate, ratio = number(row, "gb_per_s"), number(row, "of_copy")
        if rate is None:
            return str(row["outcome"])
        return figure(rate) if ratio is None else f"{figure(rate)} ({figure(ratio)}x)"

    mine = sorted((row for row in rows if row["input"] == name), key=lambda row: int(row["n"]))
    lines = records.pivot(
        mine, lambda row: row["candidate"], lambda row: f"n={row['n']}", cell, f"{name}, k={K}"
    )
    host = {row["candidate"]: number(row, "host_us") for row in reversed(mine)}
    lines[0].append("host, µs")
    for line in lines[1:]:
        cost = host[line[0]]
        line.append("–" if cost is None else figure(cost))
    return lines


def panels_of(rows: Sequence[Row]) -> list[records.Panel]:
    """Draw the rates of every candidate over n, a panel an input."""
    return [
        records.Panel(
            f"{name} rewards",
            "n, samples per task",
            "GB/s",
            records.curves((row for row in rows if row["input"] == name), "n", "gb_per_s"),
        )
        for name in dict.fromkeys(row["input"] for row in rows)
    ]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    device: DeviceOption = Device.auto,
    quick: Annotated[bool, typer.Option("--quick", help="Three lengths.")] = False,
    out: OutOption = records.RESULTS,
    shape: Annotated[
        list[str] | None, typer.Option(help="ROWSxN instead of the plan's; may be repeated.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="For the whole run; what is not begun by then is left out.")
    ] = 420.0,
    commit: CommitOption = None,
) -> None:
    """Measure every transform against a plain copy and against what else there is."""
    start, errors = time.perf_counter(), Console(stderr=True)

    def say(remark: str) -> None:
        errors.print(remark, markup=False, highlight=False, soft_wrap=True)

    chosen = records.present(device)
    plan = [(Shape(ELEMENTS[chosen] // n, n), inputs) for n, inputs in PLAN[: 3 if quick else None]]
    try:
        plan = [(Shape.parse(text), BOTH) for text in shape or ()] or plan
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    where, libraries = records.origin(chosen, commit), opened(chosen, say)
    path = out / records.file_name("throughput", where["device"])
    host, rows = host_work(libraries), []
    todo = matrices(libraries, plan, cache_bytes(chosen))
    total = sum(len(inputs) for _, inputs in plan)
    for size, name, every in track(todo, "throughput", total, console=errors, transient=True):
        rows += rows_of(size, name, every, host)
        records.write_table(path, rows, where)  # a run that is cut short leaves what it has
        if time.perf_counter() - start > seconds:
            say(f"the {seconds:g} s are used up after {size} {name}")
            break
    tables = {
        f"GB/s for {name} rewards, and as a ratio to the copy": lines_of(rows, name)
        for name in dict.fromkeys(row["input"] for row in rows)
    }
    records.report(path, f"throughput, k={K}, {where['device']}", tables, panels_of(rows))
    defaults = {f"pk {library.served()[0]}" for library in libraries}
    without = [row for row in rows if row["outcome"] != "measured"]
    for row in without:
        place = f"{row['rows']}x{row['n']} {row['input']}, {row['candidate']}"
        say(f"{place} has no figure: {row['outcome']}: {row['reason']}")
    if any(row["candidate"] in defaults for row in without):
        raise typer.Exit(1)


def cache_bytes(device: str) -> int:
    """The cache that buffers have to exceed; CPUs are measured with their caches as they are."""
    if device != "cuda":
        return 0
    import torch

    return int(torch.cuda.get_device_properties(0).L2_cache_size)


if __name__ == "__main__":
    app()
