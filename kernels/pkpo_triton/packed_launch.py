"""Launches of the packed kernel: see `pkpo_triton.packed`."""

from __future__ import annotations

import torch
import triton

from pkpo_triton import packed, table_cache
from pkpo_triton.coefficients import Estimator, has_offset, host_weights
from pkpo_triton.plan import OPTIONS, PackedPlan, packed_plan


def plan_packed(rewards: torch.Tensor, dtype: torch.dtype, backend: str) -> PackedPlan | None:
    """Plan a packed kernel for rewards (rows, n), all of them, one k for all rows and results of a
    dtype; None where another kernel serves them."""
    usual = (
        rewards.dtype == dtype == torch.float32
        and rewards.is_contiguous()
        and rewards.data_ptr() % 16 == 0
    )
    return packed_plan(rewards.shape[1], usual=usual, backend=backend)


def transform_packed(
    rewards: torch.Tensor, k: int, estimator: Estimator, scale: str, chosen: PackedPlan
) -> torch.Tensor:
    """Transform every row on the current device: (rows, n) → (rows, n). The arguments are those of
    `pkpo_triton.launch.transform`; the estimator is not normalized."""
    rows, n = rewards.shape
    out = torch.empty_like(rewards)
    if rows == 0:
        return out
    weights = host_weights(estimator, n, k, scale=scale)
    packed.packed_kernel[(triton.cdiv(rows, chosen.block_rows),)](
        rewards,
        out,
        table_cache.gap_weights(estimator, n, k, weights, rewards.device),
        rows,
        int(has_offset(estimator, k)),
        weights.max_coefficient,
        N=n,
        BLOCK_ROWS=chosen.block_rows,
        LEVELS=chosen.levels,
        num_warps=1,
        maxnreg=chosen.max_registers,
        num_stages=1,
        **OPTIONS,
    )
    return out
