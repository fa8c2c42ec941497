"""What the compiler makes of the Pallas kernels for TPUs, without a TPU: a count of its schedule.

    python -m bench.tpu_static [--quick] [--chip v5e] [--out FOLDER]

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

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from bench import commit_id, records
from bench.command import CommitOption, OutOption, new_app
from bench.shapes import MEASURED_N
from bench.tpu_compiler import CHIPS, Compiler

# Those that the chip sorts in VMEM.
SIZES = tuple(sorted({*MEASURED_N, 2048}))
QUICK_SIZES = (8, 32)
DTYPES = ("float32", "bfloat16", "bool")
PATHS = ("sorted", "4 values", "8 values", "bool")
# Of a matrix: smaller ones would lie in VMEM from the start.
ELEMENTS = 1 << 27
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


class Row(NamedTuple):
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


def measure_chip(
    chip_name: str, sizes: Sequence[int], dtypes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Count what a chip's schedules take: a row for every length, dtype and kind of rows."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        compiler = Compiler(chip_name, Path(folder))
        from pkpo_pallas.plan import GROUP, SHORTEST_COUNTED, chip

        with jax.sharding.use_abstract_mesh(compiler.mesh):
            longest = chip().longest
        shortest = {"4 values": SHORTEST_COUNTED, "8 values": 2 * GROUP + 1}
        for n in sizes:
            for dtype, path in product(dtypes, PATHS):
                is_of_dtype = (path == "bool") == (dtype == "bool")
                if n <= longest and is_of_dtype and n >= shortest.get(path, 1):
                    yield measure(compiler, n, dtype, path)._asdict()


COLUMNS = (
    *("n", "dtype", "path", "bundles", "delays", "hbm_cycles", "fraction", "spills", "vmem_bytes"),
    *("compile_seconds", "bytes_over_floor"),
)

app = new_app()


@app.command(help=measure_chip.__doc__)
def main(
    chip: Annotated[str, typer.Option(help=f"One of {', '.join(CHIPS)}.")] = "v5e",
    quick: Annotated[bool, typer.Option("--quick", help="Few n, and float32.")] = False,
    out: OutOption = records.RESULTS,
    commit: CommitOption = None,
) -> None:
    if chip not in CHIPS:
        raise typer.BadParameter(f"--chip must be one of {', '.join(CHIPS)}; got {chip!r}")
    sizes, dtypes = (QUICK_SIZES, DTYPES[:1]) if quick else (SIZES, DTYPES)
    rows = list(measure_chip(chip, sizes, dtypes))
    origin = {"chip": chip, "commit": commit or commit_id()}
    path = out / f"tpu-static-{chip}.csv"
    told = records.beside_others(rows, path, "n", "dtype", "path") if quick else rows
    records.write_table(path, told, origin | {"versions": records.versions("jax", "libtpu")})
    tables = {"of 1024 rows": records.listed(rows, COLUMNS)}
    records.report(path, f"Pallas kernels for {chip}", tables, [])


if __name__ == "__main__":
    app()
