"""What a compiled Triton kernel holds while it runs."""

from __future__ import annotations

import re
from typing import NamedTuple

import triton

from bench.ptx.driver import Compiled
from bench.ptx.sass import nvidia_tool


class Usage(NamedTuple):
    """What one program, or one thread of it, holds."""

    registers: int  # a thread's; on AMD its vector registers
    spilled_words: int  # of 32 bits, that a thread keeps in memory
    spilled_scalars: int  # on AMD, scalar registers kept in lanes of vector registers
    shared_bytes: int  # a program's, what the kernel sets aside itself included


def usage_of(kernel: Compiled) -> Usage:
    """Read it out of PTX and its machine code, or of AMD's assembly."""
    if ".amdgcn_target" in kernel.assembly:
        return _amd_usage(kernel)
    text = nvidia_tool(triton.knobs.nvidia.cuobjdump, ["-res-usage"], kernel.binary)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    # The binary's own figure of shared memory holds what is reserved for the system, and lacks what
    # the launch asks for.
    variables = re.findall(r"\.shared \.align \d+ \.b32 \w+\[(\d+)\]", kernel.assembly)
    shared = 4 * sum(map(int, variables)) + kernel.shared_bytes
    return Usage(registers, (stack + local) // 4, 0, shared)


def _amd_usage(kernel: Compiled) -> Usage:
    def metadata(key: str) -> int:
        found = re.search(rf"^\s*\.{key}:\s*(\d+)", kernel.assembly, re.MULTILINE)
        assert found, key
        return int(found[1])

    return Usage(
        metadata("vgpr_count"),
        metadata("private_segment_fixed_size") // 4,
        metadata("sgpr_spill_count"),
        kernel.shared_bytes,  # asked for at the launch, so the binary's own figure is 0
    )
