"""What the compiler makes of the Pallas kernels for TPUs, without a TPU: a count of its schedule.

    python -m bench.tpu_static            # every chip, to bench/results/tpu-static-CHIP.csv
    python -m bench.tpu_static --quick    # v5e, few n, float32, no file

libtpu compiles for a chip that is not there, and writes down the bundles (instruction words) that
the chip would run through. A loop is counted with its turns, and a condition as it falls out for
the rows in question. A bundle takes at least a cycle; HBM cycles are what the bytes of the same
rows take at the chip's peak. The ratio of the two is the most of that peak that a kernel can reach.

What such a count does not see: waiting for memory, where a tile's computation and its copies do not
overlap (rows of more than 128 samples are fetched in chunks before they are sorted); stalls between
units; what a grid step costs of its own; and whether the two cores of a v4 or v5p share the rows.
Nothing here is a measured speed.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from bench import commit_id, records
from bench.records import RESULTS, versions, write_table
from bench.shapes import MEASURED_N


class Chip(NamedTuple):
    """A chip as libtpu knows it, and one core's share of its memory's peak."""

    topology: str
    accelerator: str
    bytes_per_second: float
    cycles_per_second: float

    def cycles(self, size: int) -> float:
        return size / self.bytes_per_second * self.cycles_per_second


# Peaks and clocks as published; half of a chip's memory for each of two cores.
CHIPS = {
    "v5e": Chip("v5e:2x2", "v5litepod-4", 819e9, 1.5e9),
    "v4": Chip("v4:2x2x1", "v4-8", 614e9, 1.05e9),
    "v5p": Chip("v5p:2x2x1", "v5p-8", 1382e9, 1.75e9),
    "v6e": Chip("v6e:2x2", "v6e-4", 1640e9, 1.75e9),
}
# Those that the chip sorts in VMEM.
SIZES = tuple(sorted({*MEASURED_N, 2048}))
QUICK_SIZES = (8, 32)
DTYPES = ("float32", "bfloat16", "bool")
PATHS = ("sorted", "two values")
# Of a matrix: smaller ones would lie in VMEM from the start.
ELEMENTS = 1 << 27
# Of the baselines: "xla" takes larger matrices in turns.
BASELINE_ELEMENTS = 1 << 20
# Their sorts of longer rows take very long to compile.
LONGEST_BASELINE = 1024
K = 4

# What of a kernel runs, by the names of its functions under `pl.when`: for some rows,
_OF_ROWS = {
    "sorted": {"sort_many_levels"},
    "two values": {"look_at_all_samples", "count_few_levels"},
}
# and in the grid steps that a tile of long rows takes: a chunk in, the tile itself, a chunk out.
_OF_STEPS = {
    "in": {"copy_chunk_in"},
    "tile": {"copy_chunk_in", "compute_tile"},
    "out": {"copy_chunk_out"},
}
_CONDITIONAL = set[str]().union(*_OF_ROWS.values(), *_OF_STEPS.values())


class Schedule(NamedTuple):
    """What a compilation leaves of one kernel."""

    bundles: float  # of a grid step
    spills: float  # registers written to memory and read again later
    vmem_bytes: int


def schedule(text: str) -> Schedule:
    """A final schedule, in libtpu's words, counted.

    Every bundle counts as often as the loops it stands in have turns, but for the outermost, which
    is the grid's. A loop ends with a jump back to the region that begins at its head, and its exit
    test says how many turns it has; where that test is against what is not known when the kernel is
    compiled, it is a phase of a single turn.
    """
    lines = re.findall(r"^\s*(?:0x)?[0-9a-f]+\s+(LB)?[^{\n]*:[> ]*\{(.*)$", text, re.MULTILINE)
    times = [1.0] * len(lines)
    heads: list[int] = []
    for number, (head, body) in enumerate(lines):
        if head:
            heads.append(number)
        back = re.search(r"sbr\.rel \(!?(%p\w+)\) target = \$region(\d+)", body)
        if back is None or not heads:
            continue
        around = " ".join(body for _, body in lines[max(0, heads[-1] - 1) : heads[-1] + 1])
        if not re.search(rf"Start region {back[2]}\b", around):
            continue
        start = heads.pop()
        if not heads:
            # Outside of the grid's loop nothing is done for a block.
            times[:start] = [0.0] * start
            times[number + 1 :] = [0.0] * (len(lines) - number - 1)
            break
        loop = " ".join(body for _, body in lines[start : number + 1])
        test = rf"{back[1]} = scmp\.ge\.s32\.totalorder [^;}}]*?(%s\w+), (\d+) /"
        until = re.search(test, loop)
        turns = 1.0
        if until:
            # A turn of an unrolled loop takes several steps.
            step = re.search(rf"{until[1]} = sadd\.s32 (\d+),", loop)
            turns = math.ceil(int(until[2]) / (int(step[1]) if step else 1))
        for inside in range(start, number + 1):
            times[inside] *= turns
    spilled = (len(re.findall(r"vst \[vmem:\[#allocation\d+_spill", body)) for _, body in lines)
    spills = sum(count * often for count, often in zip(spilled, times, strict=True))
    return Schedule(sum(times), spills, 0)


@dataclass(frozen=True)
class Row:
    """Figures for 1024 rows; None where a chip was not asked for them."""

    n: int
    dtype: str
    path: str
    bundles: float
    hbm_cycles: float
    fraction: float  # of the HBM roofline
    spills: float
    vmem_bytes: int
    compile_seconds: float
    bytes_over_floor: float


class Compiler:
    """libtpu in this process, which writes down its schedules in a folder, where it gets one."""

    def __init__(self, chip_name: str, folder: Path | None = None):
        self.chip, self.folder = CHIPS[chip_name], folder
        os.environ.update(
            JAX_PLATFORMS="cpu",
            TPU_SKIP_MDS_QUERY="1",
            TPU_ACCELERATOR_TYPE=self.chip.accelerator,
            TPU_WORKER_HOSTNAMES="localhost",
            # There is no chip that processes might fight over.
            ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        )
        if folder is not None:
            os.environ["LIBTPU_INIT_ARGS"] = (
                f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
            )
        from jax.experimental import topologies
        from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

        topology = topologies.get_topology_desc(platform="tpu", topology_name=self.chip.topology)
        device: Any = topology.devices[0]
        self.sharding = SingleDeviceSharding(device)
        # What the kernels ask when they are traced: there is no chip here that they might ask.
        self.mesh = AbstractMesh(
            (1,), ("chip",), abstract_device=AbstractDevice(device.device_kind, None, "tpu")
        )

    def array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        import jax

        make: Any = jax.ShapeDtypeStruct
        return make(shape, dtype, sharding=self.sharding)

    def compile(self, function: Any, *operands: Any) -> tuple[Any, float]:
        import jax

        for old in self.folder.iterdir() if self.folder else ():
            old.unlink()
        start = time.perf_counter()
        with jax.sharding.use_abstract_mesh(self.mesh):
            traced = jax.jit(function).trace(*operands)
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
        return compiled, time.perf_counter() - start

    def schedules(self) -> Schedule:
        """The kernel's, of the compilation just done."""
        assert self.folder is not None
        finals = self.folder.glob("*-_launch*-final_bundles.txt")
        (final,) = (file for file in finals if "schedule-analysis" not in file.name)
        (original,) = self.folder.glob("*-_launch*-02-original.txt")
        sizes = re.findall(r"space=vmem, size = (0x[0-9a-f]+), scoped", original.read_text())
        vmem = sum(int(size, 16) for size in sizes)
        return schedule(final.read_text())._replace(vmem_bytes=vmem)


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
        chosen = plan(n, ELEMENTS // n, chip())
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

    steps = {"tile": 1, "in": n // LANES - 1, "out": n // LANES} if chosen.chunked else {"tile": 1}
    total, spills = 0.0, 0.0
    for step, times in steps.items():
        if times:
            with only(_OF_ROWS[path] | _OF_STEPS[step]):
                compiler.compile(program, operand)
            found = compiler.schedules()
            total += times * found.bundles / chosen.tiles
            spills += times * found.spills / chosen.tiles
    hbm = compiler.chip.cycles(TILE_ROWS * n * (item + result))
    return Row(
        n=n,
        dtype=dtype,
        path=path,
        bundles=round(total, 1),
        hbm_cycles=round(hbm, 1),
        fraction=round(min(1.0, hbm / total), 3),
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
        from pkpo_pallas.plan import chip

        with jax.sharding.use_abstract_mesh(compiler.mesh):
            longest = chip().longest
        return [
            asdict(measure(compiler, n, dtype, path))
            | (baselines.get(n, {}) if (path, dtype) == ("sorted", "float32") else {})
            for n in sizes
            if n <= longest
            for dtype in dtypes
            for path in PATHS
            if (path, dtype) != ("sorted", "bool")
            and (path == "sorted" or n > 16 or dtype == "bool")
        ]


def table(chip_name: str, rows: Sequence[records.Row]) -> Table:
    caption = (
        "A static count, for 1024 rows; nothing was run. roofline: HBM cycles by bundles, at most"
        " 1. XLA: its estimate of cycles, + what it has no estimate of."
    )
    out = Table(title=f"Pallas kernels for {chip_name}", caption=caption)
    for column in ("n", "dtype", "rows"):
        out.add_column(column)
    numbers = ("bundles", "HBM cycles", "roofline", "spills", "VMEM MiB", "compile s", "bytes")
    for column in (*numbers, "XLA, argsort", "xla"):
        out.add_column(column, justify="right")
    for row in rows:
        out.add_row(
            str(row["n"]),
            row["dtype"],
            row["path"],
            f"{row['bundles']:.0f}",
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
