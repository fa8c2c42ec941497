"""Matrices as kernels read and write them: which kernel is for them, what it is compiled for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton

from pkpo_triton.coefficients import Estimator
from pkpo_triton.plan import FEW_ROWS, OPTIONS, PackedPlan, Plan, packed_plan, plan
from pkpo_triton.tables import has_packed_weights

# So many neighbouring floats are what memory moves at a time.
ROWS_OF_A_SECTOR = 8


def plan_transform(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    estimator: Estimator,
    dtype: torch.dtype,
    *,
    any_rows: bool = False,
) -> Plan | None:
    """Plan a kernel for rewards (rows, n), None for rows that the library sorts; one for any number
    of rows where that is open."""
    uniform = isinstance(k, int) and where is None and not estimator.normalized
    few_rows = not any_rows and rewards.shape[0] < FEW_ROWS
    return _plan(rewards, where, dtype, uniform=uniform, few_rows=few_rows)


def plan_packed(
    rewards: torch.Tensor,
    k: Any,
    where: torch.Tensor | None,
    estimator: Estimator,
    undersized: str,
    dtype: torch.dtype,
) -> PackedPlan | None:
    """Plan a packed kernel for rewards (rows, n), None where another serves them. It may ask for a
    copy of the mask: see `packed_reads_mask`."""
    usual = (
        isinstance(k, int)
        and has_packed_weights(estimator, masked=where is not None, undersized=undersized)
        and rewards.dtype == dtype
        and dtype in (torch.float32, torch.bfloat16, torch.float16)
        and rewards.is_contiguous()
        and rewards.numel() > 0
        and _is_aligned(rewards)
    )
    backend = runs_on() if usual else ""
    rest: Any = {"itemsize": dtype.itemsize, "masked": where is not None, "k": k}
    return packed_plan(rewards.shape[1], usual=usual, backend=backend, **rest)


def plan_max_at_k(
    rewards: torch.Tensor, where: torch.Tensor | None, dtype: torch.dtype
) -> Plan | None:
    """Plan a kernel for rewards (rows, n), None for rows that the library sorts."""
    return _plan(rewards, where, dtype, uniform=False)


def _plan(
    rewards: torch.Tensor,
    where: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    uniform: bool,
    few_rows: bool = False,
) -> Plan | None:
    if torch.float64 in (rewards.dtype, dtype):
        raise ValueError("rewards and dtype must not be float64: the kernels compute in float32")
    itemsize = max(rewards.element_size(), dtype.itemsize)
    return plan(
        rewards.shape[1],
        itemsize,
        masked=where is not None,
        uniform=uniform,
        warp=_warp(),
        few_rows=few_rows,
    )


@functools.cache
def runs_on() -> str:
    """Ask Triton what it compiles for here; "" where it interprets."""
    if triton.knobs.runtime.interpret:
        return ""
    return str(triton.runtime.driver.active.get_current_target().backend)


@functools.cache
def _warp() -> int:
    """Ask how many threads run in step on the GPUs here; 32 where Triton interprets."""
    if triton.knobs.runtime.interpret:
        return 32
    return int(triton.runtime.driver.active.get_current_target().warp_size)


def forget() -> None:
    """Forget what Triton said: for another driver."""
    runs_on.cache_clear()
    _warp.cache_clear()


def empty_result(rewards: torch.Tensor, dtype: torch.dtype, chosen: Plan | None) -> torch.Tensor:
    """Make room for (rows, n), in the layout of the rewards where they lie by samples, and blocks
    have rows enough: both are read and written along."""
    rows, n = rewards.shape
    by_samples = rewards.stride(0) == 1 and rewards.stride(1) == rows
    if by_samples and chosen is not None and chosen.block_rows >= ROWS_OF_A_SECTOR:
        return torch.empty((n, rows), dtype=dtype, device=rewards.device).t()
    return torch.empty((rows, n), dtype=dtype, device=rewards.device)


def readable(
    rewards: torch.Tensor, where: torch.Tensor | None, k: Any, chosen: Plan
) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
    """Copy what a kernel does not read as it lies: rewards, a mask, and k if that is a tensor."""
    if not _reads_rewards(rewards, chosen):
        rewards = rewards.contiguous()
    if where is not None and not _reads_mask(where, chosen):
        where = where.clone(memory_format=torch.contiguous_format)
    if isinstance(k, torch.Tensor) and not _reads_k(k, rewards):
        k = k.to(rewards.device, torch.int64).contiguous()
    return rewards, where, k


def packed_reads_mask(where: torch.Tensor | None) -> bool:
    """Tell whether a packed kernel reads a mask as it lies."""
    return where is None or (where.is_contiguous() and _is_aligned(where))


def reads_all(rewards: torch.Tensor, where: torch.Tensor | None, k: Any, chosen: Plan) -> bool:
    """Tell whether a kernel reads rewards, a mask and k as they lie."""
    return (
        _reads_rewards(rewards, chosen)
        and (where is None or _reads_mask(where, chosen))
        and (not isinstance(k, torch.Tensor) or _reads_k(k, rewards))
    )


def _reads_rewards(rewards: torch.Tensor, chosen: Plan) -> bool:
    # Not as fast as a copy where a program has few rows, and they are no neighbours in memory.
    return chosen.block_rows >= ROWS_OF_A_SECTOR or rewards.stride(1) == 1


def _reads_mask(where: torch.Tensor, chosen: Plan) -> bool:
    # An address that 16 does not divide would mean another kernel; a mask is soon copied.
    return _reads_rewards(where, chosen) and _is_aligned(where)


def _reads_k(k: torch.Tensor, rewards: torch.Tensor) -> bool:
    # Another dtype would mean another kernel.
    return k.dtype == torch.int64 and k.is_contiguous() and k.device == rewards.device


def _is_aligned(x: torch.Tensor) -> bool:
    # What Triton knows of a pointer is whether 16 divides it.
    return x.data_ptr() % 16 == 0


def as_bytes(x: torch.Tensor | None) -> torch.Tensor | None:
    """View bools as the bytes that a kernel reads; leave all else as it is."""
    return x.view(torch.uint8) if x is not None and x.dtype == torch.bool else x


def strides(x: torch.Tensor | None) -> tuple[int, int]:
    """Give a kernel the strides of a matrix's rows and samples, 0 where there is none."""
    if x is None:
        return 0, 0
    # The stride of a single row is arbitrary, and would mean another kernel.
    return (x.stride(0) if x.shape[0] > 1 else x.shape[1]), x.stride(1)


def constants(
    matrices: Sequence[torch.Tensor | None], chosen: Plan, max_registers: int | None = None
) -> dict[str, Any]:
    """List what a kernel is compiled for: rewards (rows, n) and all other matrices, as they lie,
    and a limit to a thread's registers where there is one."""
    given = [matrix for matrix in matrices if matrix is not None]
    return {
        "IS_BOOL": given[0].dtype == torch.bool,
        "CONTIGUOUS": chosen.threads_per_row == 1
        and all(matrix.is_contiguous() for matrix in given),
        "PADDED": chosen.samples > given[0].shape[1],
        "SAMPLES_PER_THREAD": chosen.samples_per_thread,
        "THREADS_PER_ROW": chosen.threads_per_row,
        "BLOCK_ROWS": chosen.block_rows,
        "VECTOR": _vector(given, chosen),
        "WARP": chosen.warp,
        "num_warps": chosen.num_warps,
        "num_stages": 1,
        **({"maxnreg": max_registers} if max_registers and runs_on() == "cuda" else {}),
        **OPTIONS,
    }


def _vector(matrices: Sequence[torch.Tensor], chosen: Plan) -> int:
    """Count the neighbours that a thread can read at a time."""
    vector = chosen.vector
    for x in matrices:
        if x.stride(1) != 1 or not _is_aligned(x):
            return 1
        while x.shape[0] > 1 and x.stride(0) % vector:
            vector //= 2
    return vector
