"""Kernels in PTX written by hand, run on the machine of bench.ptx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.ptx.launch import Launch
from bench.ptx.memory import Pointer
from bench.ptx.program import Program

# %rd1: where this thread's word of `out` lies.
OF_THREAD = [
    "mov.u32 %r1, %tid.x;",
    "mov.u32 %r2, %ctaid.x;",
    "mov.u32 %r3, %ntid.x;",
    "mad.lo.s32 %r4, %r2, %r3, %r1;",
    "ld.param.u64 %rd0, [out];",
    "mad.wide.u32 %rd1, %r4, 4, %rd0;",
]


def words(count: int) -> Any:
    return torch.zeros(count, dtype=torch.int32)


def kernel(text: Sequence[str], tensors: dict[str, Any], threads: int = 32) -> Program:
    parameters = ", ".join(f".param .u64 {name}" for name in tensors)
    registers = ".reg .pred %p<32>; .reg .b16 %rs<32>; .reg .b32 %r<64>; .reg .b64 %rd<64>;"
    return Program(
        f".visible .entry kernel({parameters})\n.reqntid {threads}\n{{\n{registers}\n"
        + "\n".join([*text, "ret;"])
        + "\n}\n"
    )


def run(
    text: Sequence[str], tensors: dict[str, Any], *, grid: int = 1, threads: int = 32,
    shared: int = 0, **options: Any,
) -> Launch:  # fmt: skip
    pointers = [Pointer(name, tensor, tensor.data_ptr()) for name, tensor in tensors.items()]
    return Launch(kernel(text, tensors, threads), grid, pointers, shared, **options)
