"""How time and memory grow, and what annealing k compiles.

    python -m bench.scaling [--device auto|cpu|cuda|tpu] [--quick] [--out FOLDER]

Three sweeps: rows at n=64; n at a fixed number of rows; and how many different ks there are in one
call, one k a row as an array of the library. Every implementation of pkpo_kernels that serves the
device is timed as bench.throughput times it, in turns, and gets no figure where a result differs
from the reference. JAX's are called under jax.jit, with k as an operand.

Memory is the most that is held at one time besides input and result, in multiples of the input:
traced by tracemalloc for NumPy, by torch's profiler for torch on CPUs and by its allocator on GPUs,
and the compiler's own figure for XLA.

Then k is annealed, step by step, through one compiled train step: under jax.jit with k traced,
under torch.compile with k a tensor. The step may be compiled once; the command fails where it is
not.
"""

from __future__ import annotations

import io
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

import pkpo_kernels as pk
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
from bench.shapes import INPUTS, MEASURED_N, K, Shape
from bench.throughput import (
    ROW_BY_ROW,
    Arm,
    Library,
    Outcome,
    Runner,
    disagreement,
    implementation_arms,
    in_short,
    in_turns,
    opened,
    places_to_prove,
)
from pkpo_kernels.maths.weights import Array
from pkpo_kernels.validation import library_of

N, DIFFERENT_KS = 64, (1, 2, 4, 8, 16, 32, 64)
# The largest k first, as one trains.
ANNEALED_KS = tuple(range(16, 0, -1))
# kind of device → the rows of the sweep over rows, and of the other two.
ROWS = {
    "cpu": ((16, 64, 256, 1024, 4096, 16384, 65536), 256),
    "cuda": ((256, 1024, 4096, 16384, 65536, 262144, 1048576), 4096),
    "tpu": ((256, 1024, 4096, 16384, 65536, 262144), 4096),
}
SAMPLES = 9


@dataclass(kw_only=True)
class Point(Outcome):
    """One implementation at one place of a sweep: "rows", "n" or "different ks"."""

    sweep: str
    rows: int
    n: int
    different_ks: int
    milliseconds: float | None = None
    milliseconds_p20: float | None = None
    milliseconds_p80: float | None = None
    temporary_memory: float | None = None  # in multiples of the input


@dataclass
class Annealing:
    """One compiled step through a run of ks.

    `compile_seconds` is the compiler's own figure under jax.jit, and under torch.compile the time
    of the first call less that of a later one.
    """

    implementation: str
    under: str
    steps: int
    compilations: int
    compile_seconds: float
    step_milliseconds: float
    agrees: bool

    @property
    def ok(self) -> bool:
        return self.compilations == 1 and self.agrees


def sweeps(device: str, quick: bool) -> list[tuple[str, Shape, int]]:
    """(sweep, shape, number of different ks) of every point; 0 for the one k of bench.shapes."""
    rows, fixed = ROWS[device]
    few = 4 if quick else None
    return [
        *(("rows", Shape(r, N), 0) for r in rows[:few]),
        *(("n", Shape(fixed, n), 0) for n in MEASURED_N[:few]),
        *(("different ks", Shape(fixed, N), count) for count in DIFFERENT_KS),
    ]


def ks_of_rows(rows: int, count: int) -> Any:
    """One k where count is 0; else a k for every row, so many different ones.

    >>> ks_of_rows(5, 2)
    array([1, 2, 1, 2, 1])
    """
    return 1 + np.arange(rows) % count if count else K


def calls(library: Library, like: Array, k: Any) -> dict[str, Callable[[Array], Array]]:
    """implementation → its call with this k; JAX's compiled."""
    found: dict[str, Callable[[Array], Array]] = {}
    for arm in implementation_arms(library.name, like):
        name = arm.name.removeprefix("pk ")
        if name in ROW_BY_ROW:
            continue
        call = partial(pk.transform, implementation=name)
        if library.name == "jax":
            import jax

            found[name] = partial(_with_k, jax.jit(call), jax.numpy.asarray(k))
        elif library.name == "torch" and np.ndim(k):
            import torch

            found[name] = partial(call, k=torch.asarray(k, device=like.device))
        else:
            found[name] = partial(call, k=k)
    return found


def _with_k(call: Callable[[Array, Array], Array], k: Array, rewards: Array) -> Array:
    return call(rewards, k)


def temporary_memory(call: Callable[[Array], Array], rewards: Array) -> float:
    """Peak bytes besides input and result of a call, in units of its input."""
    kind = library_of(rewards)
    if kind == "numpy":
        tracemalloc.start()
        out = call(rewards)
        peak = tracemalloc.get_traced_memory()[1] - out.nbytes
        tracemalloc.stop()
        return float(peak / rewards.nbytes)
    if kind == "torch":
        return _torch_memory(call, rewards)
    import jax

    memory = jax.jit(call).lower(rewards).compile().memory_analysis()
    assert memory is not None
    return float(memory.temp_size_in_bytes / rewards.nbytes)


def _torch_memory(call: Callable[[Array], Array], rewards: Array) -> float:
    import torch

    if rewards.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = call(rewards)
        torch.cuda.synchronize()
        held = torch.cuda.max_memory_allocated() - before - out.nbytes
        return float(held / rewards.nbytes)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call(rewards)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return float(changes.max() / rewards.nbytes - 1)


def measure_point(
    libraries: Sequence[Library], sweep: str, shape: Shape, count: int
) -> list[Point]:
    """All implementations at one place, in turns."""
    block = INPUTS["gaussian"](np.random.default_rng(shape.n), shape)
    ks = ks_of_rows(shape.rows, count)
    places = places_to_prove(shape.rows)
    given = block[places].astype(np.float64)
    chosen = ks if np.ndim(ks) == 0 else ks[places]
    expected = pk.transform(given, chosen, implementation="reference")
    points: list[Point] = []
    runners: list[Runner] = []
    for library in libraries:
        buffers = [library.matrix(block, shape.rows) for _ in range(2)]
        for name, call in calls(library, buffers[0], ks).items():
            point = Point(
                arm=name,
                library=library.name,
                sweep=sweep,
                rows=shape.rows,
                n=shape.n,
                different_ks=count or 1,
            )
            points.append(point)
            try:
                runner = _prepared(point, library, call, buffers, places, given, expected)
            except Exception as error:
                point.give_up("failed", in_short(error))
            else:
                runners += [] if runner is None else [runner]
    for found, seconds in in_turns(runners):
        assert isinstance(found, Point)
        found.milliseconds = 1e3 * seconds.median
        found.milliseconds_p20, found.milliseconds_p80 = 1e3 * seconds.p20, 1e3 * seconds.p80
    for library in libraries:
        library.release(programs=False)
    return points


def _prepared(
    point: Point,
    library: Library,
    call: Callable[[Array], Array],
    buffers: Sequence[Array],
    places: Sequence[int],
    given: NDArray[np.float64],
    expected: NDArray[np.float64],
) -> Runner | None:
    """The call warm and proven, its memory looked at; None where it is wrong."""
    start = time.perf_counter()
    library.wait(call(buffers[0]))
    point.first_call_seconds = time.perf_counter() - start
    memory = temporary_memory(call, buffers[0])
    watch, result = library.stopwatch(Arm(point.arm, library.name, call), buffers)
    error = disagreement(library.rows(result, places), expected, given)
    if error is not None:
        point.give_up("disagrees", f"the worst error is {error:.1e} of its row's largest")
        return None
    point.temporary_memory = memory
    each = watch.run(1) * watch.calls_per_unit
    units = max(1, int(watch.span / each))
    point.method, point.calls_per_sample = watch.method, units * watch.calls_per_unit
    return Runner(point, watch, units, SAMPLES)


def anneal(library: Library, shape: Shape) -> list[Annealing]:
    """Every implementation of the library through a run of ks."""
    if library.name == "numpy":
        return []  # nothing is compiled
    block = INPUTS["gaussian"](np.random.default_rng(0), shape)
    expected = [
        pk.transform(block.astype(np.float64), k, implementation="numpy") for k in ANNEALED_KS
    ]
    matrix = library.matrix(block, shape.rows)
    steps = {"jax": _steps_of_jax, "torch": _steps_of_torch}[library.name]
    found: list[Annealing] = []
    for name in calls(library, matrix, K):
        outs, times, count, seconds = steps(name, matrix, library.wait)
        found.append(
            Annealing(
                name,
                {"jax": "jax.jit", "torch": "torch.compile"}[library.name],
                len(ANNEALED_KS),
                count,
                seconds,
                1e3 * float(np.median(times[1:])),
                all(
                    disagreement(library.rows(out, range(shape.rows)), want, block) is None
                    for out, want in zip(outs, expected, strict=True)
                ),
            )
        )
    return found


Steps = tuple[list[Array], list[float], int, float]


def _timed(
    step: Callable[[Array, Array], Array], matrix: Array, ks: Sequence[Any], wait: Any
) -> tuple[list[Array], list[float]]:
    outs: list[Array] = []
    times: list[float] = []
    for k in ks:
        start = time.perf_counter()
        outs.append(step(matrix, k))
        wait(outs[-1])
        times.append(time.perf_counter() - start)
    return outs, times


def _steps_of_jax(name: str, matrix: Array, wait: Callable[[Array], None]) -> Steps:
    import jax

    compilations: list[float] = []

    def heard(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration_secs)

    step = jax.jit(partial(pk.transform, implementation=name))
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        # NumPy's scalars: to make JAX's would be compiled too.
        outs, times = _timed(step, matrix, [np.int32(k) for k in ANNEALED_KS], wait)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    return outs, times, len(compilations), sum(compilations)


def _steps_of_torch(name: str, matrix: Array, wait: Callable[[Array], None]) -> Steps:
    import torch
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    step = torch.compile(partial(pk.transform, implementation=name), fullgraph=True)
    ks = [torch.tensor(k, device=matrix.device) for k in ANNEALED_KS]
    outs, times = _timed(step, matrix, ks, wait)
    return outs, times, counters["stats"]["unique_graphs"], times[0] - float(np.median(times[1:]))


def curves(points: Sequence[Point], sweep: str, name: str) -> dict[str, list[tuple[int, float]]]:
    """implementation → (place in the sweep, a figure of it), for what was measured."""
    places = {"rows": "rows", "n": "n", "different ks": "different_ks"}[sweep]
    found: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        value = getattr(point, name)
        if point.sweep == sweep and value is not None:
            found.setdefault(point.arm, []).append((getattr(point, places), value))
    return found


def plot(points: Sequence[Point], title: str) -> bytes:
    """A PNG: time over the three sweeps, and memory over n."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(14, 4.6), layout="constrained")
    panels = canvas.subplots(1, 4, squeeze=False)[0]
    drawn = (
        ("rows", "milliseconds", f"n={N}"),
        ("n", "milliseconds", "samples per task"),
        ("different ks", "milliseconds", f"n={N}, one k a row"),
        ("n", "temporary_memory", "samples per task"),
    )
    for axes, (sweep, name, remark) in zip(panels, drawn, strict=True):
        for arm, curve in curves(points, sweep, name).items():
            axes.plot(*zip(*curve, strict=True), marker=".", label=arm)
        axes.set_xlabel(f"{sweep} ({remark})")
        axes.set_ylabel("ms" if name == "milliseconds" else "temporary memory, of the input")
        axes.set_xscale("log", base=2)
        if name == "milliseconds" and sweep != "different ks":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    canvas.suptitle(title)
    content = io.BytesIO()
    canvas.savefig(content, format="png", dpi=130)
    return content.getvalue()


def growth(points: Sequence[Point]) -> list[list[str]]:
    """A heading, and a line an implementation: time at the ends of each sweep, and the memory that
    the largest matrix takes, and that any takes at most: small ones have tables of weights, too."""
    lines = [["implementation", "rows", "n", "different ks", "temporary memory, of the input"]]
    for arm in dict.fromkeys(point.arm for point in points):
        line = [arm]
        for sweep in ("rows", "n", "different ks"):
            curve = curves(points, sweep, "milliseconds").get(arm)
            if not curve:
                line.append("no figure")
                continue
            (low, first), (high, last) = curve[0], curve[-1]
            line.append(f"{low} to {high}: {figure(first)} to {figure(last)} ms")
        held = [
            (point.rows * point.n, point.temporary_memory)
            for point in points
            if point.arm == arm and point.temporary_memory is not None
        ]
        if held:
            most = max(memory for _, memory in held)
            line.append(f"largest matrix {max(held)[1]:.1f} x, any at most {most:.1f} x")
        lines.append(line if held else [*line, "no figure"])
    return lines


def annealing_lines(runs: Sequence[Annealing]) -> list[list[str]]:
    """A heading, and a line a run."""
    return [
        ["implementation", "step under", "steps, each with its k", "compilations", "compiling"],
        *(
            [
                run.implementation,
                run.under,
                str(run.steps),
                f"{run.compilations}" + ("" if run.agrees else ", results disagree"),
                f"{run.compile_seconds:.1f} s",
            ]
            for run in runs
        ),
    ]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.auto,
    quick: Annotated[bool, typer.Option("--quick", help="The small ends only.")] = False,
    out: Annotated[Path, typer.Option(help="The folder of the results.")] = RESULTS,
    commit: Annotated[
        str | None, typer.Option(help="What is measured, where git is not there to ask.")
    ] = None,
) -> None:
    """Measure how time and memory grow, and what annealing k compiles."""
    try:
        chosen = present(device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    where = machine(chosen)
    errors = Console(stderr=True)

    def say(remark: str) -> None:
        errors.print(remark, markup=False, highlight=False, soft_wrap=True)

    libraries = opened(chosen, say)
    points: list[Point] = []
    for sweep, shape, count in track(
        sweeps(chosen, quick), "scaling", console=errors, transient=True
    ):
        points += measure_point(libraries, sweep, shape, count)
    shape = Shape(ROWS[chosen][1], N)
    runs = [run for library in libraries for run in anneal(library, shape)]
    record = {
        "what": "times, memory and compilations, measured",
        "estimator": "sloo_minus_one",
        **origin(where, commit),
        "seconds": round(time.perf_counter() - start, 1),
        "points": list(map(asdict, points)),
        "annealing": [asdict(run) | {"ok": run.ok} for run in runs],
    }
    stem = stem_of("scaling", record)
    write(out / f"{stem}.json", as_json(record))
    write(out / f"{stem}.png", plot(points, f"sloo_minus_one, float32, {where['name']}"))
    for point in points:
        if point.outcome != "measured":
            place = f"{point.rows}x{point.n}, {point.different_ks} ks"
            say(f"{place}, {point.arm}: {point.outcome}: {point.reason}")
    console = Console(width=None if Console().is_terminal else 140)
    console.print(as_table("median times", growth(points)))
    console.print(as_table("k annealed in one compiled step", annealing_lines(runs)))
    typer.echo(f"{record['seconds']:.0f} s; in {out}: {stem}.json, {stem}.png")
    if not all(run.ok for run in runs):
        typer.echo("a new k was compiled anew, or its results disagree")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
