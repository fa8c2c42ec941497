"""The Triton kernels behind the API, for torch."""

from __future__ import annotations

from collections.abc import Sequence

import pkpo_triton
import torch

from pkpo_kernels.maths.weights import Estimator


def transform_rows(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    *,
    estimator: Estimator,
    scale: str,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Transform rows: rewards (rows, N), k an integer, () or (rows,), where (rows, N) → (rows, N),
    detached."""
    return pkpo_triton.transform(
        rewards,
        k if isinstance(k, int) else k.to(rewards.device),
        where,
        estimator,
        scale=scale,
        undersized=undersized,
        dtype=dtype,
    )


def max_at_k_rows(
    rewards: torch.Tensor,
    ks: Sequence[int | torch.Tensor],
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Compute max@k of rows: rewards (rows, N), each k an integer or (), where (rows, N) → (rows,
    len(ks)), detached."""
    return pkpo_triton.max_at_k(rewards, ks, where, dtype=dtype)
