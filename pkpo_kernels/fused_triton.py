"""The Triton kernels behind the API: an estimator becomes the numbers that they take."""

from __future__ import annotations

from collections.abc import Sequence

import pkpo_triton
import torch

from pkpo_kernels.estimators import Estimator


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
    """rewards (rows, N), k an integer, () or (rows,), where (rows, N) → (rows, N), detached."""
    return pkpo_triton.transform(
        rewards,
        k if isinstance(k, int) else k.to(rewards.device),
        where,
        _weights(estimator),
        by_mean=scale == "mean",
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
    """rewards (rows, N), each k an integer or (), where (rows, N) → (rows, len(ks)), detached."""
    return pkpo_triton.max_at_k(rewards, ks, where, dtype=dtype)


def _weights(estimator: Estimator) -> pkpo_triton.Weights:
    form, at_1 = estimator.form, estimator.form_at_1 or estimator.form
    return pkpo_triton.Weights(
        form=form.numbers,
        form_at_1=at_1.numbers,
        lag=form.lag,
        mirror=form.mirror,
        spared=estimator.spared,
        standardised=estimator.standardised,
    )
