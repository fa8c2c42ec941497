"""Triton kernels compiled ahead of time, cold, for GPUs that are not here."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
from pkpo_triton.plan import OPTIONS
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.sass import nvidia_tool
from bench.variants import Variant

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Usage(NamedTuple):
    """What one program, or one thread of it, holds."""

    registers: int  # a thread's; on AMD its vector registers
    spilled_words: int  # of 32 bits, that a thread keeps in memory
    spilled_scalars: int  # on AMD, scalar registers kept in lanes of vector registers
    shared_bytes: int  # a program's, what the kernel sets aside itself included


@dataclass(frozen=True)
class Compiled:
    """A variant for a target: Triton's CompiledKernel, the processor seconds it took, its usage."""

    variant: Variant
    target: GPUTarget
    kernel: Any
    seconds: float
    usage: Usage


def compile_variant(variant: Variant, target: GPUTarget) -> Compiled:
    """Compile from the beginning, whatever Triton's cache on disk holds."""
    with compiled_cold(variant, target) as compiled:
        return compiled


@contextmanager
def compiled_cold(variant: Variant, target: GPUTarget) -> Iterator[Compiled]:
    """The same; meanwhile this variant is all that Triton's cache on disk holds."""
    # scope() puts the setting back, and the environment variable that it is written through to.
    with tempfile.TemporaryDirectory() as empty, triton.knobs.cache.scope():
        triton.knobs.cache.dir = empty
        start = processor_seconds()
        options = {"num_warps": variant.num_warps, "num_stages": 1, **OPTIONS}
        if variant.max_registers is not None:
            options["maxnreg"] = variant.max_registers
        kernel = triton.compile(source_of(variant), target=target, options=options)
        seconds = processor_seconds() - start
        usage = nvidia_usage(kernel) if target.backend == "cuda" else amd_usage(kernel)
        variant.kernel.device_caches.clear()  # what launches have found elsewhere
        try:
            yield Compiled(variant, target, kernel, seconds, usage)
        finally:
            variant.kernel.device_caches.clear()  # what they found here


def source_of(variant: Variant) -> ASTSource:
    """What a launch asks Triton's compiler for, to the letter, so that its cache knows it."""
    constants, attributes = {}, {}
    for index, (name, kind) in enumerate(variant.signature.items()):
        specialised = kind != "constexpr" and not kind.startswith("fp")
        specialised &= not variant.kernel.params[index].do_not_specialize
        if kind == "constexpr":
            constants[(index,)] = variant.constants[name]
        if name in variant.divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
        # A launch has nothing to say here, and says so; of constants, where they are text.
        elif specialised or isinstance(variant.constants.get(name), str):
            attributes[(index,)] = []
    return ASTSource(variant.kernel, variant.signature, constants, attributes)


def processor_seconds() -> float:
    """This process's and its children's: ptxas is one. As long as the compilation itself takes, but
    the same beside other work."""
    return sum(os.times()[:4])


def nvidia_usage(kernel: Any) -> Usage:
    text = nvidia_tool(triton.knobs.nvidia.cuobjdump, ["-res-usage"], kernel.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    # The binary's own figure of shared memory holds what is reserved for the system, and lacks what
    # the launch asks for.
    variables = re.findall(r"\.shared \.align \d+ \.b32 \w+\[(\d+)\]", kernel.asm["ptx"])
    shared = 4 * sum(map(int, variables)) + kernel.metadata.shared
    return Usage(registers, (stack + local) // 4, 0, shared)


def amd_usage(kernel: Any) -> Usage:
    def metadata(key: str) -> int:
        found = re.search(rf"^\s*\.{key}:\s*(\d+)", kernel.asm["amdgcn"], re.MULTILINE)
        assert found, key
        return int(found[1])

    return Usage(
        metadata("vgpr_count"),
        metadata("private_segment_fixed_size") // 4,
        metadata("sgpr_spill_count"),
        kernel.metadata.shared,  # asked for at the launch, so the binary's own figure is 0
    )
