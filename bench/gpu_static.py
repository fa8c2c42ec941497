"""What the Triton kernels do for an element, executed and counted without a GPU.

    python -m bench.gpu_static [--quick] [--only KERNEL] [--out FOLDER] [--target sm_90]

Every kernel that pkpo_triton ships is launched through the library on a machine that executes PTX
on the CPU (`bench.ptx`), as two whole programs, for every kind of rewards whose path is another.
Results are checked. A figure is

    executed  by that machine: shuffles, wavefronts and sectors of memory, barriers
    counted   in the machine code, which nothing executes: an instruction counts as often as the
              line of PTX that it was made for was executed (`bench.ptx.sass`)
    a model   of it all: the most that instructions, ALU and exchange between lanes allow of an
              H200's copy of the same bytes

and none is measured. Latency, occupancy and caches cannot be seen. For AMD's GPUs kernels are only
compiled. Figures are in lanes or bytes an element, barriers and shared bytes of a program; those of
a compilation are seconds of processors, from a cold cache.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Annotated, Any, NamedTuple
from unittest import mock

import torch
import triton
import typer
from pkpo_triton import matrices
from rich.console import Console
from rich.progress import track

from bench import commit_id
from bench.command import CommitOption, OutOption, new_app
from bench.ptx.driver import TARGETS, Compiled, Device, Launched
from bench.ptx.sass import counted
from bench.ptx.usage import usage_of
from bench.records import RESULTS, beside_others, listed, report, versions, write_table
from bench.variants import KINDS, Variant, shipped

H200 = "sm_90"
QUICK_N = 32
WORKERS = 2

# ---- What an H200 has while it copies ----------------------------------------------------------

COPY_BYTES_PER_SECOND = 4.05e12  # 3.8 to 4.2 were measured: bench/results/*-nvidia-h200.csv
SMS, CLOCK = 132, 1.98e9
SCHEDULERS, LANES = 4, 32  # a scheduler issues one instruction of 32 lanes a cycle
ALU_LANES = 64  # an SM's: half of what is issued
EXCHANGE_LANES = 32  # an SM's: words that come through its L1, shared, global or shuffled


class Budget(NamedTuple):
    """What there is for one element, in lane operations, in the time that its copy takes."""

    instructions: float
    alu: float
    exchanged: float

    @classmethod
    def of(cls, bytes_per_element: int) -> Budget:
        """With 8 bytes (float32, read and written): 66 issue slots, 33 on the ALU, 16.5 lanes."""
        cycles = SMS * CLOCK * bytes_per_element / COPY_BYTES_PER_SECOND
        return cls(cycles * SCHEDULERS * LANES, cycles * ALU_LANES, cycles * EXCHANGE_LANES)


# ---- Executing ---------------------------------------------------------------------------------


class Figures(NamedTuple):
    """What an element costs; in lanes, in bytes, and barriers of a program."""

    instructions: float  # counted: of SASS
    alu: float  # counted
    ptx: float  # executed, as all that follow
    shuffles: float
    wavefronts: float  # of shared memory, times 32
    least_wavefronts: float  # without conflicts
    global_wavefronts: float  # of global memory, times 32
    loaded: float  # of sectors
    least_loaded: float  # that lanes asked for, the same bytes more than once perhaps
    stored: float
    least_stored: float
    barriers: float

    def of_copy(self, bytes_per_element: int) -> float:
        """The most that it can reach of an H200's copy of the same bytes: a model."""
        have = Budget.of(bytes_per_element)
        exchanged = self.shuffles + self.wavefronts + self.global_wavefronts
        needs = (self.instructions, self.alu, exchanged)
        return min([1.0, *(has / need for need, has in zip(needs, have, strict=True) if need)])


def compile_alone(variant: Variant, target: str) -> tuple[Compiled, float]:
    """Compile what a call launches, and nothing more: → the kernel, and the seconds of processors
    that it took, ptxas's too."""
    start = sum(os.times()[:4])
    # As many rows as there are meant to be.
    with Device(target, executes=False) as device, mock.patch.object(matrices, "FEW_ROWS", 0):
        variant.call(variant.rewards("normal", rows=2))
    (kernel,) = device.kernels
    return kernel, sum(os.times()[:4]) - start


def execute(variant: Variant, rewards: torch.Tensor, target: str) -> Launched:
    """Execute the one launch that a call makes; ValueError where its result is wrong."""
    with Device(target) as device, mock.patch.object(matrices, "FEW_ROWS", 0):
        got = variant.call(rewards)
    want = variant.call(rewards.double(), "torch")
    relative = TOLERANCE.get(variant.dtype, 5e-6)
    allowed = relative * want.abs() + min(relative, 1e-6) * want.abs().max()
    # Of 16 bits small values are far apart.
    allowed += torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
    if not ((got - want).abs() <= allowed).all():
        raise ValueError(f"{variant.name} must be right; it is not")
    (launched,) = device.launches
    return launched


def figures_of(launched: Launched, elements: int) -> Figures:
    """Count what a launch did for each of all its elements."""
    executed = launched.run.counts.per_element(elements, launched.run.grid)._asdict()
    instructions, alu = counted(launched)
    return Figures(
        instructions=LANES * instructions / elements,
        alu=LANES * alu / elements,
        ptx=executed.pop("instructions"),
        **executed,
    )


PROGRAMS = 2  # that are launched, with nothing left over
TOLERANCE = {"bfloat16": 8e-3, "float16": 1e-3}
# A reward, read once, and its result, written once; a mask beside them is not counted.
BYTES = {"float32": 8, "bfloat16": 4, "float16": 4, "bool": 5}


# ---- The table ---------------------------------------------------------------------------------


class Row(NamedTuple):
    """The figures of a variant.

    What is executed or counted is None for AMD's GPUs, and so is for all but the H200 what it can
    reach of a copy of the transform's own bytes.
    """

    kernel: str
    n: int
    dtype: str
    num_warps: int
    elements: int  # of a program
    compile_seconds: float  # of processors
    registers: int
    spilled_words: int
    spilled_scalars: int
    shared_bytes: int
    normal: Figures | None = None
    two_values: Figures | None = None
    four_values: Figures | None = None
    near_ties: Figures | None = None
    of_copy: float | None = None
    two_values_of_copy: float | None = None


def measure(variant: Variant, target: str) -> Row:
    """Compile a variant, cold where Triton's cache lacks it, and execute it for NVIDIA's GPUs."""
    kernel, seconds = compile_alone(variant, target)
    rows = kernel.constants["BLOCK_ROWS"]
    row: dict[str, Any] = {
        "kernel": variant.name,
        "n": variant.n,
        "dtype": variant.dtype,
        "num_warps": kernel.num_warps,
        "elements": rows * variant.n,
        "compile_seconds": seconds,
        **usage_of(kernel)._asdict(),
    }
    if TARGETS[target][0].backend == "cuda":
        for kind in KINDS:
            rewards = variant.rewards(kind, PROGRAMS * rows)
            launched = execute(variant, rewards, target)
            if launched.kernel.binary != kernel.binary:
                raise ValueError(f"{variant.name} must be one kernel, whatever the rows; it is not")
            row[kind] = figures_of(launched, rewards.numel())
    if target == H200:
        row["of_copy"] = row["normal"].of_copy(BYTES[variant.dtype])
        row["two_values_of_copy"] = row["two_values"].of_copy(BYTES[variant.dtype])
    return Row(**row)


def warm_up(target: str) -> None:
    """Load everything, so that no row is charged for it."""
    compile_alone(Variant(6), target)  # which is in no row


def measure_all(target: str, largest_n: int | None = None, only: Sequence[str] = ()) -> list[Row]:
    """Execute and count all kernels, those for rows up to a length, or those of certain names."""
    every = {variant.name: variant for variant in shipped()}
    if unknown := set(only) - set(every):
        raise typer.BadParameter(
            f"--only must name kernels of the table; got {sorted(unknown)}; there are {list(every)}"
        )
    chosen = [
        variant
        for variant in every.values()
        if (largest_n is None or variant.n <= largest_n) and (not only or variant.name in only)
    ]
    # The longest first, so that no process is left alone with one in the end.
    chosen.sort(key=lambda variant: -variant.n)
    # Not forked: torch and LLVM have threads.
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cold,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cold),
        ProcessPoolExecutor(WORKERS, spawn, warm_up, (target,)) as pool,
    ):
        futures = {pool.submit(measure, variant, target): variant for variant in chosen}
        about = f"compiling and executing for {target}"
        errors = Console(stderr=True)
        done = track(as_completed(futures), about, len(chosen), console=errors, transient=True)
        rows = []
        for future in done:
            try:
                rows.append(future.result())
            except BaseException as error:
                error.add_note(f"in {futures[future].name}")
                pool.shutdown(cancel_futures=True)
                raise
    order = list(every)
    return sorted(rows, key=lambda row: (row.n, order.index(row.kernel)))


COLUMNS = (
    *("kernel", "normal_instructions", "normal_alu", "normal_shuffles", "normal_wavefronts"),
    *("normal_least_wavefronts", "of_copy", "two_values_instructions", "four_values_instructions"),
    *("near_ties_instructions", "registers", "spilled_words", "shared_bytes", "compile_seconds"),
)

app = new_app()


@app.command(help=measure_all.__doc__)
def main(
    quick: Annotated[bool, typer.Option("--quick", help=f"Those of n up to {QUICK_N}.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A kernel; may be repeated. Of the file, other rows stay as they are."),
    ] = None,
    out: OutOption = RESULTS,
    commit: CommitOption = None,
    target: Annotated[str, typer.Option(help=f"One of {', '.join(TARGETS)}.")] = H200,
) -> None:
    if target not in TARGETS:
        raise typer.BadParameter(f"--target must be one of {', '.join(TARGETS)}; got {target!r}")
    rows = measure_all(target, QUICK_N if quick else None, only or [])
    file = out / f"gpu-static-{target}.csv"
    compilers = f"{versions('triton', 'torch')}, ptxas {triton.knobs.nvidia.ptxas.version}"
    origin = {"target": target, "commit": commit or commit_id(), "versions": compilers}
    told = [row._asdict() for row in rows]
    write_table(file, beside_others(told, file, "kernel") if quick or only else told, origin)
    report(file, f"Triton kernels for {target}", {"for an element": listed(told, COLUMNS)}, [])


if __name__ == "__main__":
    app()
