"""The Triton kernels behind the API, for torch."""

from __future__ import annotations

from collections.abc import Sequence

import pkpo_triton
import torch
from pkpo_triton import launch
from pkpo_triton.groups import prepared_by_id as prepared_by_id

from pkpo_kernels._calls import Again
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
    ks: Sequence[int | torch.Tensor] | torch.Tensor,
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Compute max@k of rows: rewards (rows, N), each k an integer or (), where (rows, N) → (rows,
    len(ks)), detached."""
    return pkpo_triton.max_at_k(rewards, _together(ks, rewards.device), where, dtype=dtype)


def prepared_transform(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    *,
    estimator: Estimator,
    scale: str,
    undersized: str,
    dtype: torch.dtype,
) -> Again | None:
    """Prepare `transform_rows` for rows of the form of these."""
    return launch.prepared_transform(
        rewards, k, where, estimator, scale=scale, undersized=undersized, dtype=dtype
    )


def prepared_max_at_k(
    rewards: torch.Tensor,
    ks: Sequence[int] | torch.Tensor,
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
    shape: Sequence[int],
) -> Again | None:
    """Prepare `max_at_k_rows` for rows of the form of these, and a result of some shape."""
    return launch.prepared_max_at_k(rewards, ks, where, dtype=dtype, shape=shape)


def _together(
    ks: Sequence[int | torch.Tensor] | torch.Tensor, device: torch.device
) -> tuple[int, ...] | torch.Tensor:
    """Put ks together: integers, or a tensor (number of ks,) on the device."""
    if isinstance(ks, torch.Tensor):
        return ks.to(device)
    if not isinstance(ks[0], torch.Tensor):  # and so no other
        return tuple(int(k) for k in ks)
    return torch.stack([k.to(device) for k in ks if not isinstance(k, int)])
