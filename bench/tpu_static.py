"""What the compiler makes of the Pallas kernels for TPUs, without a TPU: a count of its schedule.

    python -m bench.tpu_static            # every chip, to bench/results/tpu-static-CHIP.csv
    python -m bench.tpu_static --quick    # v5e, few n, float32, no file

libtpu compiles for a chip that is not there, and writes down the bundles (instruction words) that
the chip would run through. A loop is counted with its turns, and a condition as it falls out for
the rows in question. A bundle takes a cycle; so does a delay, an empty one while a result is on its
way. HBM cycles are what the bytes of the same rows take at the chip's peak: by bundles and delays,
they are the most of that peak that a kernel can reach.

What such a count does not see: waiting for memory, where a tile's computation and its copies do not
overlap (rows of more than 128 samples are fetched in chunks before they are sorted); what a grid
step costs of its own; and whether the two cores of a v4 or v5p share the rows. Nothing here is a
measured speed.
"""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench import commit_id, records
from bench.records import RESULTS, versions, write_table
from bench.shapes import MEASURED_N
from bench.tpu_compiler import CHIPS, Compiler

# Those that the chip sorts in VMEM.
SIZES = tuple(sorted({*MEASURED_N, 2048}))
QUICK_SIZES = (8, 32)
DTYPES = ("float32", "bfloat16", "bool")
PATHS = ("sorted", "4 values", "8 values", "bool")
# Of a matrix: smaller ones would lie in VMEM from the start.
ELEMENTS = 1 << 27
# Of the baselines: "xla" takes larger matrices in turns.
BASELINE_ELEMENTS = 1 << 20
# Their sorts of longer rows take very long to compile.
LONGEST_BASELINE = 1024
K = 4

# What of a kernel runs, by the names of its functions under `pl.when`: for some rows,
_OF_ROWS = {
    "sorted": {"of_many_levels"},
    "4 values": {"look_at_all_samples", "of_fewer_levels"},
    "8 values": {"look_at_all_samples", "look_for_more_levels", "of_most_levels"},
    "bool": set(),
}
# and in the grid steps that a tile of long rows takes: a chunk in, the tile itself, a chunk out.
_OF_STEPS = {
    "in": {"copy_chunk_in"},
    "tile": {"copy_chunk_in", "compute_tile"},
    "out": {"copy_chunk_out"},
}
_CONDITIONAL = set[str]().union(*_OF_ROWS.values(), *_OF_STEPS.values(), {"sum_offset"})


@dataclass(frozen=True)
class Row:
    """Figures for 1024 rows; None where a chip was not asked for them."""

    n: int
    dtype: str
    path: str
    bundles: float
    delays: float
    hbm_cycles: float
    fraction: float  # of the HBM roofline
    fraction_without_delays: float
    spills: float
    vmem_bytes: int
    compile_seconds: float
    bytes_over_floor: float


@contextmanager
def only(functions: set[str]) -> Iterator[None]:
    """Trace kernels in which conditions let these functions run, and no others."""
    import jax
    from jax.experimental import pallas as pl

    def when(condition: Any) -> Any:
        del condition

        def decide(body: Any) -> None:
            assert body.__name__ in _CONDITIONAL, body.__name__
            if body.__name__ in functions:
                body()

        return decide

    real = pl.when
    jax.clear_caches()  # type: ignore[no-untyped-call]
    try:
        pl.when = when
        yield
    finally:
        pl.when = real


def measure(compiler: Compiler, n: int, dtype: str, path: str) -> Row:
    import jax
    import jax.numpy as jnp
    from pkpo_pallas.plan import LANES, TILE_ROWS, chip, plan

    from pkpo_kernels import transform

    with jax.sharding.use_abstract_mesh(compiler.mesh):
        chosen = plan(n, ELEMENTS // n, chip(), narrow=dtype == "bfloat16")
    operand = compiler.array((ELEMENTS // n, n), jnp.dtype(dtype))

    def program(rewards: Any) -> Any:
        # With a producer, as in a train step.
        rewards = ~rewards if dtype == "bool" else 2 * rewards
        return transform(rewards, K, implementation="pallas")

    compiled, seconds = compiler.compile(program, operand)
    assert "tpu_custom_call" in compiled.as_text()
    vmem = compiler.schedules().vmem_bytes
    item = jnp.dtype(dtype).itemsize
    result = 4 if dtype == "bool" else item
    floor = operand.size * (item + result)
    # What the kernel reads and writes is not counted, but what its producer does.
    beyond = compiled.cost_analysis()["bytes accessed"] - operand.size * 2 * item

    of_rows = set(_OF_ROWS[path])
    if path == "4 values" and n >= LANES:
        # Their values are given like those of eight.
        of_rows ^= {"of_fewer_levels", "of_most_levels"}
    chunks = n // chosen.chunk if chosen.chunked else 0
    steps = {"tile": 1, "in": chunks - 1, "out": chunks} if chosen.chunked else {"tile": 1}
    bundles, delays, spills = 0.0, 0.0, 0.0
    for step, times in steps.items():
        if times:
            with only(of_rows | _OF_STEPS[step]):
                compiler.compile(program, operand)
            found = compiler.schedules()
            bundles += times * found.bundles / chosen.tiles
            delays += times * found.delays / chosen.tiles
            spills += times * found.spills / chosen.tiles
    hbm = compiler.chip.cycles(TILE_ROWS * n * (item + result))
    return Row(
        n=n,
        dtype=dtype,
        path=path,
        bundles=round(bundles, 1),
        delays=round(delays, 1),
        hbm_cycles=round(hbm, 1),
        fraction=round(min(1.0, hbm / (bundles + delays)), 3),
        fraction_without_delays=round(min(1.0, hbm / bundles), 3),
        spills=round(spills, 1),
        vmem_bytes=vmem,
        compile_seconds=round(seconds, 2),
        bytes_over_floor=round(1 + beyond / floor, 3),
    )


def all_baselines(chip_name: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    compiler = Compiler(chip_name)
    return [baselines(compiler, n) for n in sizes]


def baselines(compiler: Compiler, n: int) -> dict[str, Any]:
    """XLA's own estimate of cycles for 1024 rows: of the argsort form, and of "xla"."""
    import jax.numpy as jnp
    from jax import lax

    from pkpo_kernels import transform
    from pkpo_kernels.maths.estimators import ESTIMATORS

    rows = BASELINE_ELEMENTS // n
    gap = jnp.asarray(ESTIMATORS["sloo_minus_one"].weights(n, K).gap, jnp.float32)

    def argsort_form(x: Any) -> Any:
        order = lax.broadcasted_iota(jnp.int32, x.shape, 1)
        ordered, order = lax.sort((x, order), dimension=1, is_stable=False, num_keys=1)
        sums = jnp.cumsum(gap * jnp.diff(ordered, axis=-1), axis=-1)
        sums = jnp.concatenate([jnp.zeros_like(sums[:, :1]), sums], -1)
        return lax.sort((order, sums), dimension=1, is_stable=False, num_keys=1)[1]

    out: dict[str, Any] = {"n": n}
    for name, form in (
        ("argsort", argsort_form),
        ("xla", lambda x: transform(x, K, implementation="xla")),
    ):
        compiled, _ = compiler.compile(form, compiler.array((rows, n), jnp.float32))
        text = compiled.as_text()
        cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
        out[name] = round(cycles * 1024 / rows, 1)
        # What has no estimate counts for nothing above.
        out[f"{name}_without_estimate"] = sum(
            "estimated_cycles" not in line
            for line in text.splitlines()
            if re.search(r" (sort|gather|scatter|reduce-window|while)\(", line)
        )
    return out


def measure_chip(
    chip_name: str, sizes: Sequence[int], dtypes: Sequence[str], *, with_baselines: bool
) -> list[records.Row]:
    """Count what a chip's schedules take: a row for every length, dtype and kind of rows."""
    import jax

    baselines: dict[int, dict[str, Any]] = {}
    if with_baselines:
        # In a process that writes down no schedules: sorts have long ones.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(
                all_baselines, chip_name, [n for n in sizes if n <= LONGEST_BASELINE]
            ).result()
        baselines = {baseline.pop("n"): baseline for baseline in found}
    with tempfile.TemporaryDirectory() as folder:
        compiler = Compiler(chip_name, Path(folder))
        from pkpo_pallas.plan import GROUP, SHORTEST_COUNTED, chip

        with jax.sharding.use_abstract_mesh(compiler.mesh):
            longest = chip().longest
        return [
            asdict(measure(compiler, n, dtype, path))
            | (baselines.get(n, {}) if (path, dtype) == ("sorted", "float32") else {})
            for n in sizes
            if n <= longest
            for dtype in dtypes
            for path in PATHS
            if (path == "bool") == (dtype == "bool")
            and n >= {"4 values": SHORTEST_COUNTED, "8 values": 2 * GROUP + 1}.get(path, 1)
        ]


def table(chip_name: str, rows: Sequence[records.Row]) -> Table:
    caption = (
        "A static count, for 1024 rows; nothing was run. roofline: HBM cycles by bundles and"
        " delays, at most 1. XLA: its estimate of cycles, + what it has no estimate of."
    )
    out = Table(title=f"Pallas kernels for {chip_name}", caption=caption)
    for column in ("n", "dtype", "rows"):
        out.add_column(column)
    counts = ("bundles", "delays", "HBM cycles", "roofline", "spills", "VMEM MiB")
    for column in (*counts, "compile s", "bytes", "XLA, argsort", "xla"):
        out.add_column(column, justify="right")
    for row in rows:
        out.add_row(
            str(row["n"]),
            row["dtype"],
            row["path"],
            f"{row['bundles']:.0f}",
            f"{row['delays']:.0f}",
            f"{row['hbm_cycles']:.0f}",
            f"{row['fraction']:.2f}",
            f"{row['spills']:.0f}",
            f"{row['vmem_bytes'] / 2**20:.1f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['bytes_over_floor']:.2f}",
            *(f"{row[name]:.0f} +" if name in row else "" for name in ("argsort", "xla")),
        )
    return out


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    quick: Annotated[bool, typer.Option("--quick", help="v5e, few n, and float32.")] = False,
    chip: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="XLA's own estimates too, which takes long.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the results; with --quick there is none.")
    ] = None,
) -> None:
    chips = chip or (["v5e"] if quick else list(CHIPS))
    unknown = [name for name in chips if name not in CHIPS]
    if unknown:
        raise typer.BadParameter(f"--chip must be one of {', '.join(CHIPS)}; got {unknown[0]}")
    folder = out if quick else out or RESULTS
    if len(chips) > 1:
        # libtpu knows one chip a process.
        for name in chips:
            command = ["-m", "bench.tpu_static", "--chip", name, "--out", str(folder)]
            command += ["--beside"] * beside
            subprocess.run([sys.executable, *command], check=True)
        return
    (name,) = chips
    sizes, dtypes = (QUICK_SIZES, DTYPES[:1]) if quick else (SIZES, DTYPES)
    rows = measure_chip(name, sizes, dtypes, with_baselines=beside)
    Console(width=150).print(table(name, rows))
    if folder is not None:
        origin = {"chip": name, "commit": commit_id(), "versions": versions("jax", "libtpu")}
        write_table(folder / f"tpu-static-{name}.csv", rows, origin)


if __name__ == "__main__":
    app()
