"""How time and memory grow, and what annealing k compiles.

    python -m bench.scaling [--device auto|cpu|cuda|tpu] [--quick] [--out FOLDER]

Three sweeps: rows at n=64; n at a fixed number of rows; and how many different ks there are in one
call, one k a row as an array of the library. Every implementation of pkpo_kernels that serves the
device is checked and timed by bench/harness.py; JAX's are called under jax.jit.

Memory is the most that is held at one time besides input and result, in multiples of the input:
traced by tracemalloc for NumPy, by torch's profiler for torch on CPUs and by its allocator on GPUs,
and the compiler's own figure for XLA.

Then k is annealed, step by step, through one compiled step: under jax.jit with k traced, under
torch.compile with k a tensor. It may be compiled once: there is no figure where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from bench import command, harness, records
from bench.harness import Candidate, checked_with
from bench.libraries import Library
from bench.records import Lines, Panel, Row, figure, number
from bench.shapes import INPUTS, MEASURED_N, K, Shape

N, DIFFERENT_KS = 64, (1, 2, 4, 8, 16, 32, 64)
# The largest k first, as one trains.
ANNEALED_KS = tuple(range(16, 0, -1))
# device → the rows of the sweep over rows, and of the other two.
ROWS = {
    "cpu": ((16, 64, 256, 1024, 4096, 16384, 65536), 256),
    "cuda": ((256, 1024, 4096, 16384, 65536, 262144, 1048576), 4096),
    "tpu": ((256, 1024, 4096, 16384, 65536, 262144), 4096),
}
# sweep → the column that grows along it
SWEEPS = {"rows": "rows", "n": "n", "different ks": "different_ks"}
ANNEALED = "annealed k"


def measure(libraries: Sequence[Library], quick: bool) -> Iterator[list[dict[str, Any]]]:
    """Measure how time and memory grow, and what annealing k compiles."""
    (rows, fixed), few = ROWS[libraries[0].device], 4 if quick else None
    for r in rows[:few]:
        yield measure_point(libraries, "rows", Shape(r, N))
    for n in MEASURED_N[:few]:
        yield measure_point(libraries, "n", Shape(fixed, n))
    for count in DIFFERENT_KS:
        yield measure_point(libraries, "different ks", Shape(fixed, N), count)
    for library in libraries:
        yield anneal(library, Shape(fixed, N))


def measure_point(
    libraries: Sequence[Library], sweep: str, shape: Shape, different_ks: int | None = None
) -> list[dict[str, Any]]:
    """Time all implementations at one point, in rounds; without a number of ks at the usual one."""
    block = INPUTS["gaussian"](np.random.default_rng(shape.n), shape)
    ks = 1 + np.arange(shape.rows) % different_ks if different_ks else K
    buffers = {library: library.buffers(block, shape.rows) for library in libraries}
    entries = [
        (Candidate(name, library, library.jitted(library.transform(name, ks))), buffers[library])
        for library in libraries
        for name in library.served()
    ]
    about = {"sweep": sweep, "rows": shape.rows, "n": shape.n, "different_ks": different_ks or 1}
    rows = []
    for timed in harness.measure(entries, checked_with(block, ks)):
        rows.append(timed.row() | about)
        if not timed.reason:
            _, library, call, *_ = timed.candidate
            rows[-1]["temporary_memory"] = library.temporary_memory(call, buffers[library][0])
    return rows


def anneal(library: Library, shape: Shape) -> list[dict[str, Any]]:
    """Take every implementation of a library through a run of ks; nothing where none is compiled.

    What compiling takes is the time of the first step less that of a later one.
    """
    block = INPUTS["gaussian"](np.random.default_rng(0), shape)
    matrix = library.matrix(block, shape.rows)
    about = {"sweep": ANNEALED, "rows": shape.rows, "n": shape.n, "different_ks": len(ANNEALED_KS)}
    rows = []
    for name in library.served():
        if (step := library.step(name, ANNEALED_KS)) is None:
            continue
        call, given, compilations = step
        candidate = Candidate(name, library, partial(call, matrix))
        (timed,) = harness.measure([(candidate, given)], checked_with(block, ANNEALED_KS[-1]))
        row = timed.row() | about | {"compilations": compilations()}
        if row["compilations"] != 1 and not timed.reason:
            row["reason"] = "failed: a new k was compiled anew"
        if timed.first_call_s is not None and row["ms"] is not None:
            row["compile_s"] = timed.first_call_s - row["ms"] / 1e3
        rows.append(row)
    return rows


def tables(rows: Sequence[Row]) -> dict[str, Lines]:
    """Lay out both ends of every sweep, and what annealing compiled, a candidate a line."""
    shown: list[Row] = []
    for sweep, growing in SWEEPS.items():
        mine = [row for row in rows if row["sweep"] == sweep]
        ends = mine[0][growing], mine[-1][growing]
        shown += [row for row in mine if row[growing] in ends]
    shown += [row for row in rows if row["sweep"] == ANNEALED]
    lines = records.pivot(shown, "{candidate}".format_map, _column, _cell, "a call")
    return {"time, and temporary memory in multiples of the input": lines}


def _column(row: Row) -> str:
    if row["sweep"] == ANNEALED:
        return f"annealing k, {row['different_ks']} steps"
    of_ks = f", a k a row of {row['different_ks']}" if row["sweep"] == "different ks" else ""
    return f"{row['rows']} x {row['n']}{of_ks}"


def _cell(row: Row) -> str:
    ms, memory, seconds = (number(row, it) for it in ("ms", "temporary_memory", "compile_s"))
    if row["reason"] or ms is None:
        return str(row["reason"]).partition(":")[0]
    if seconds is not None:
        return f"compiled once, in {seconds:.1f} s"
    return f"{figure(ms)} ms, {memory:.1f} x"


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Draw time over the three sweeps, and memory over n."""

    def curves(sweep: str, name: str) -> dict[str, records.Points]:
        mine = (row for row in rows if row["sweep"] == sweep)
        return records.curves(mine, SWEEPS[sweep], name)

    times = [Panel("time of a call", sweep, "ms", curves(sweep, "ms")) for sweep in SWEEPS]
    memory = Panel("temporary memory", "n", "of the input", curves("n", "temporary_memory"))
    return [*times, memory]


BENCH = command.Bench("scaling", measure, tables, panels)
app = command.command_of(BENCH)

if __name__ == "__main__":
    app()
