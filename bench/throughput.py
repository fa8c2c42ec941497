"""How fast whole matrices are transformed, beside a plain copy and beside what else there is.

    python -m bench.throughput [--device auto|cpu|cuda|tpu] [--quick] [--out FOLDER]

Candidates are every implementation of pkpo_kernels that serves the device, the usual ways to write
the same transform (in eager torch, under torch.compile, under jax.jit, and beside a CPU row by row
in NumPy), a sort alone, and a plain copy: bench/candidates.py. How they are checked and timed says
bench/harness.py. Rates are in GB/s of what a transform must at least move: 8 bytes a reward of
float32, one read and one write; each is also given as a ratio to the plain copy of the same library
in the same rounds. What the host does for one call is timed apart, by eager calls on 8 x 8 rewards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer

from bench import command, harness, records
from bench.candidates import candidates_of
from bench.harness import Timed, checked_with
from bench.libraries import Library
from bench.records import Lines, Panel, Row, figure, number
from bench.shapes import INPUTS, K, Shape

# n and the inputs measured there, the most telling first; --quick takes three of them.
BOTH, ONE = ("gaussian", "0/1"), ("gaussian",)
PLAN = ((16, BOTH), (256, BOTH), (4096, ONE), (8, ONE), (64, ONE), (1024, ONE), (16384, ONE))
# Of a matrix; of float32 it is 1 GiB on GPUs. And of those that the host makes, to be repeated.
ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 28, "tpu": 1 << 26}
BLOCK_ELEMENTS = 1 << 22
BYTES = 8  # a reward, read and written
TINY = Shape(8, 8)


def measure(
    libraries: Sequence[Library], quick: bool, shapes: Sequence[Shape] = ()
) -> Iterator[list[dict[str, Any]]]:
    """Measure every transform against a plain copy and against what else there is."""
    device = libraries[0].device
    plan = [(Shape(ELEMENTS[device] // n, n), inputs) for n, inputs in PLAN[: 3 if quick else None]]
    host, cache = host_work(libraries), cache_bytes(device)
    for shape, inputs in [(shape, BOTH) for shape in shapes] or plan:
        # Once for all inputs, so that they are compiled once.
        candidates = [it for library in libraries for it in candidates_of(library, *shape)]
        few = Shape(max(1, min(shape.rows, BLOCK_ELEMENTS // shape.n)), shape.n)
        for name in inputs:
            block = INPUTS[name](np.random.default_rng(shape.n), few)
            buffers = {it: it.buffers(block, shape.rows, cache) for it in libraries}
            entries = [(it, buffers[it.library]) for it in candidates]
            rows = rows_of(shape, name, harness.measure(entries, checked_with(block)), host)
            is_cold = 0 < 4 * cache <= sum(buffer.nbytes for buffer in buffers[libraries[0]])
            del buffers, entries  # a GPU may not hold them beside the next
            yield [row | {"cold_cache": is_cold} for row in rows]
        del candidates
        for library in libraries:
            library.release()


def cache_bytes(device: str) -> int:
    """The cache that buffers have to exceed; CPUs are measured with their caches as they are."""
    if device != "cuda":
        return 0
    import torch

    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def host_work(libraries: Sequence[Library]) -> dict[str, dict[str, float | None]]:
    """Time what a call costs the host: candidate → microseconds."""
    block = INPUTS["gaussian"](np.random.default_rng(0), TINY)
    entries = [
        (candidate, [library.matrix(block, TINY.rows)])
        for library in libraries
        for candidate in candidates_of(library, *TINY)
    ]
    every = harness.measure(entries, checked_with(block), host=True)
    return {timed.candidate.name: timed.quantiles("host_us", 1e-6) for timed in every}


def rows_of(
    shape: Shape, name: str, every: Sequence[Timed], host: dict[str, dict[str, float | None]]
) -> list[dict[str, Any]]:
    """Make the lines of the CSV for one matrix; ratios are to the copy in these very rounds."""

    def rate(timed: Timed) -> float | None:
        size = BYTES * (timed.candidate.rows or shape.rows) * shape.n
        return size / float(np.median(timed.samples)) / 1e9 if timed.samples else None

    copies = {it.candidate.library: rate(it) for it in every if it.candidate.result == "copy"}
    rows = []
    for timed in every:
        mine, copy = rate(timed), copies.get(timed.candidate.library)
        row = timed.row() | {"input": name, "rows": shape.rows, "n": shape.n}
        row |= {"rows_timed": timed.candidate.rows or shape.rows, "samples": len(timed.samples)}
        row |= {"first_call_s": timed.first_call_s, "gb_per_s": mine}
        row |= {"of_copy": mine / copy if mine and copy else None}
        rows.append(row | host.get(timed.candidate.name, {}))
    return rows


def tables(rows: Sequence[Row]) -> dict[str, Lines]:
    """Lay out each input: a candidate a line, a length a column, and the host's work."""
    found: dict[str, Lines] = {}
    for name in dict.fromkeys(row["input"] for row in rows):
        mine = sorted((row for row in rows if row["input"] == name), key=lambda row: int(row["n"]))
        lines = records.pivot(
            mine, "{candidate}".format_map, "n={n}".format_map, _cell, f"{name}, k={K}"
        )
        host = {row["candidate"]: number(row, "host_us") for row in reversed(mine)}
        lines[0].append("host, µs")
        for line in lines[1:]:
            cost = host[line[0]]
            line.append("–" if cost is None else figure(cost))
        found[f"GB/s for {name} rewards, and as a ratio to the copy"] = lines
    return found


def _cell(row: Row) -> str:
    """Write a rate and its ratio; where there is none, "wrong", "slow" or "failed"."""
    rate, ratio = number(row, "gb_per_s"), number(row, "of_copy")
    if rate is None:
        return str(row["reason"]).partition(":")[0]
    return figure(rate) if ratio is None else f"{figure(rate)} ({figure(ratio)}x)"


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Draw the rates of every candidate over n, a panel an input."""
    return [
        Panel(
            f"{name} rewards",
            "n, samples per task",
            "GB/s",
            records.curves((row for row in rows if row["input"] == name), "n", "gb_per_s"),
        )
        for name in dict.fromkeys(row["input"] for row in rows)
    ]


BENCH = command.Bench("throughput", measure, tables, panels, of_others=True)
app = command.new_app()


@app.command(help=measure.__doc__)
def main(
    device: command.DeviceOption = command.Device.auto,
    quick: command.QuickOption = False,
    out: command.OutOption = records.RESULTS,
    commit: command.CommitOption = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="ROWSxN instead of the plan's; may be repeated.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="For the whole run; what is not begun by then is left out.")
    ] = 420.0,
) -> None:
    shapes = [shape_of(text) for text in shape or ()]
    bench = BENCH._replace(measure=partial(measure, shapes=shapes))
    command.run(bench, command.opened_for(device), quick, out, commit, seconds)


def shape_of(text: str) -> Shape:
    """Read "64x8" as Shape(rows=64, n=8); n must admit the k that is measured."""
    rows, _, n = text.lower().partition("x")
    if not (rows.isdecimal() and n.isdecimal() and int(rows) >= 1 and int(n) >= K):
        raise typer.BadParameter(f"a shape must be ROWSxN with N of at least {K}, got {text!r}")
    return Shape(int(rows), int(n))


if __name__ == "__main__":
    app()
