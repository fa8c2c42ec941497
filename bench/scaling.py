"""How time and memory grow, and what annealing k compiles.

    python -m bench.scaling [--device auto|cpu|cuda|tpu] [--quick] [--out FOLDER]

Three sweeps: rows at n=64; n at a fixed number of rows; and how many different ks there are in one
call, one k a row as an array of the library. Every implementation of pkpo_kernels that serves the
device is checked and timed by bench/harness.py; JAX's are called under jax.jit.

Memory is the most that is held at one time besides input and result, in multiples of the input:
traced by tracemalloc for NumPy, by torch's profiler for torch on CPUs and by its allocator on GPUs,
and the compiler's own figure for XLA.

Then k is annealed, step by step, through one compiled step: under jax.jit with k traced, under
torch.compile with k a tensor. It may be compiled once; the exit code is 1 where it is not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from bench import records
from bench.harness import Candidate, buffers_of, error_of, measure
from bench.libraries import Library, opened
from bench.records import CommitOption, Device, DeviceOption, OutOption, Row, figure, number
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
UNDER = {"jax": "jax.jit", "torch": "torch.compile"}


def points(device: str, quick: bool) -> list[tuple[str, Shape, int]]:
    """List (sweep, shape, number of different ks); 0 for the one k of bench/shapes.py."""
    rows, fixed = ROWS[device]
    few = 4 if quick else None
    return [
        *(("rows", Shape(r, N), 0) for r in rows[:few]),
        *(("n", Shape(fixed, n), 0) for n in MEASURED_N[:few]),
        *(("different ks", Shape(fixed, N), count) for count in DIFFERENT_KS),
    ]


def measure_point(
    libraries: Sequence[Library], sweep: str, shape: Shape, count: int
) -> list[dict[str, Any]]:
    """Time all implementations at one point, in rounds."""
    block = INPUTS["gaussian"](np.random.default_rng(shape.n), shape)
    ks = 1 + np.arange(shape.rows) % count if count else K
    buffers = {library: buffers_of(library, block, shape.rows, 0) for library in libraries}
    candidates = [
        Candidate(name, library, library.jitted(library.transform(name, ks)))
        for library in libraries
        for name in library.served()
    ]
    rows = []
    for timed in measure([(it, buffers[it.library]) for it in candidates], block, ks):
        _, library, call, *_ = timed.candidate
        row = {"sweep": sweep, "rows": shape.rows, "n": shape.n, "different_ks": count or 1}
        rows.append(timed.row() | row)
        if timed.outcome == "measured":
            rows[-1]["temporary_memory"] = library.temporary_memory(call, buffers[library][0])
    return rows


def anneal(library: Library, shape: Shape) -> list[dict[str, Any]]:
    """Take every implementation of a library through a run of ks; nothing where none is compiled.

    What compiling takes is the time of the first step less that of a later one.
    """
    block = INPUTS["gaussian"](np.random.default_rng(0), shape)
    matrix, rows = library.matrix(block, shape.rows), []
    for name in library.served():
        step = library.step(name, ANNEALED_KS)
        if step is None:
            continue
        call, given, compilations = step
        times, errors = [], []
        for k, operand in zip(ANNEALED_KS, given, strict=True):
            start = time.perf_counter()
            out = call(matrix, operand)
            library.wait(out)
            times.append(time.perf_counter() - start)
            errors.append(error_of(library, out, block, k))
        later = float(np.median(times[1:]))
        row: dict[str, Any] = {"candidate": name, "library": library.name, "sweep": ANNEALED}
        row |= {"rows": shape.rows, "n": shape.n, "different_ks": len(ANNEALED_KS)}
        row |= {"outcome": "wrong" if any(errors) else "measured", "ms": 1e3 * later}
        row |= {"compilations": compilations(), "compile_s": times[0] - later}
        rows.append(row)
    return rows


def curves(rows: Sequence[Row], sweep: str, name: str) -> dict[str, records.Points]:
    """Collect candidate → (place in the sweep, a figure of it)."""
    return records.curves((row for row in rows if row["sweep"] == sweep), SWEEPS[sweep], name)


def growth(rows: Sequence[Row]) -> list[list[str]]:
    """Lay out the ends of each sweep, and the memory that the largest matrix takes, and any."""
    lines = [["implementation", *SWEEPS, "temporary memory, of the input"]]
    for name in dict.fromkeys(row["candidate"] for row in rows):
        lines.append([name])
        for sweep in SWEEPS:
            curve = curves(rows, sweep, "ms").get(name)
            if curve is None:
                lines[-1].append("no figure")
                continue
            (low, first), (high, last) = curve[0], curve[-1]
            lines[-1].append(f"{low:.0f} to {high:.0f}: {figure(first)} to {figure(last)} ms")
        held = [
            (int(row["rows"]) * int(row["n"]), number(row, "temporary_memory") or 0.0)
            for row in rows
            if row["candidate"] == name and row["sweep"] != ANNEALED
        ]
        # Small matrices have tables of weights, too.
        most = max(memory for _, memory in held)
        lines[-1].append(f"largest matrix {max(held)[1]:.1f} x, any at most {most:.1f} x")
    return lines


def annealing(rows: Sequence[Row]) -> list[list[str]]:
    """Lay out what annealing k compiled, a candidate a line."""
    lines = [
        ["implementation", "step under", "steps, each with its k", "compilations", "compiling"]
    ]
    for row in (row for row in rows if row["sweep"] == ANNEALED):
        times = str(row["compilations"]) + ("" if row["outcome"] == "measured" else ", wrong")
        line = [row["candidate"], UNDER[row["library"]], str(row["different_ks"]), times]
        lines.append([*line, f"{float(row['compile_s']):.1f} s"])
    return lines


def panels_of(rows: Sequence[Row]) -> list[records.Panel]:
    """Draw time over the three sweeps, and memory over n."""
    time_of = [
        records.Panel("time of a call", it, "ms", curves(rows, it, "ms"), it != "different ks")
        for it in SWEEPS
    ]
    memory = curves(rows, "n", "temporary_memory")
    return [*time_of, records.Panel("temporary memory", "n", "of the input", memory, False)]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    device: DeviceOption = Device.auto,
    quick: Annotated[bool, typer.Option("--quick", help="The small ends only.")] = False,
    out: OutOption = records.RESULTS,
    commit: CommitOption = None,
) -> None:
    """Measure how time and memory grow, and what annealing k compiles."""
    chosen, errors, rows = records.present(device), Console(stderr=True), []
    where, libraries = records.origin(chosen, commit), opened(chosen, errors.print)
    for point in track(points(chosen, quick), "scaling", console=errors, transient=True):
        rows += measure_point(libraries, *point)
    for library in libraries:
        rows += anneal(library, Shape(ROWS[chosen][1], N))
    path = out / records.file_name("scaling", where["device"])
    records.write_table(path, rows, where)
    tables = {"median times": growth(rows), "k annealed in one compiled step": annealing(rows)}
    records.report(path, f"sloo_minus_one, {where['device']}", tables, panels_of(rows))
    if any(row["outcome"] != "measured" or row.get("compilations", 1) != 1 for row in rows):
        errors.print("no figure, or a new k was compiled anew")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
