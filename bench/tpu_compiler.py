"""libtpu as a compiler for a chip that is not there, and what it says of a kernel: its schedule.

Of a schedule libtpu writes down two files. In the final one every instruction word has its place
among jumps and loops. The words that do nothing, delays while a result is on its way, are folded
into it there; they still stand in the one before (after the allocation of registers), which has the
same words otherwise, in the same order.
"""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple


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


class Schedule(NamedTuple):
    """What a compilation leaves of one kernel."""

    bundles: float  # of a grid step
    delays: float  # bundles that do nothing
    spills: float  # registers written to memory and read again later
    vmem_bytes: int


def schedule(final: str, before: str) -> Schedule:
    """A final schedule, and the one before it, in libtpu's words, counted.

    Every bundle counts as often as the loops it stands in have turns, but for the outermost, which
    is the grid's. A loop ends with a jump back to the region that begins at its head, and its exit
    test says how many turns it has; where that test is against what is not known when the kernel is
    compiled, it is a phase of a single turn. A delay counts as often as the bundle before it.
    """
    lines = _bundles_of(final)
    times = _times(lines)
    waits: list[int] = []  # behind each bundle that does something
    for _, body in _bundles_of(before):
        if not _is_empty(body):
            waits.append(0)
        elif waits:
            waits[-1] += 1
    often = [(count, _is_empty(body)) for (_, body), count in zip(lines, times, strict=True)]
    busy = [count for count, empty in often if not empty]
    # Only a file that means the same kernel has as many.
    delays = sum(count * wait for count, wait in zip(busy, waits, strict=True))
    spilled = (len(re.findall(r"vst \[vmem:\[#allocation\d+_spill", body)) for _, body in lines)
    spills = sum(count * often for count, often in zip(spilled, times, strict=True))
    return Schedule(sum(busy), delays, spills, 0)


def _bundles_of(text: str) -> list[tuple[str, str]]:
    """List bundles: whether each is the head of a loop, and what it does."""
    return re.findall(r"^\s*(?:0x)?[0-9a-f]+\s+(LB)?[^{\n]*:[> ]*\{(.*)$", text, re.MULTILINE)


def _is_empty(body: str) -> bool:
    return not body.split("/*")[0].strip(" }")


def _times(lines: list[tuple[str, str]]) -> list[float]:
    """Count how often each bundle runs in a grid step."""
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
    return times


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
        final, before, original = (
            self._written(name)
            for name in ("final_bundles", "packed-bundles-post-ra", "02-original")
        )
        sizes = re.findall(r"space=vmem, size = (0x[0-9a-f]+), scoped", original)
        vmem = sum(int(size, 16) for size in sizes)
        return schedule(final, before)._replace(vmem_bytes=vmem)

    def _written(self, name: str) -> str:
        """Read what was written of the kernel at a stage of its compilation."""
        assert self.folder is not None
        found = self.folder.glob(f"*-_launch*-*{name}.txt")
        (file,) = (file for file in found if "schedule-analysis" not in file.name)
        return file.read_text()
