"""The transforms in plain torch operations, on any device, eagerly or under torch.compile. No host
synchronisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pkpo_kernels import portable
from pkpo_kernels.estimators import MAX_AT_K, Estimator
from pkpo_kernels.weights import GapWeights, clip_k, gap_weights


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
    keys, n = _keys(rewards, dtype), _group_sizes(rewards, where)
    whole_k = _whole(k, rewards)
    if undersized == "clip":
        whole_k = clip_k(estimator, n, whole_k, torch)
    weights = _weights(estimator, keys, n, whole_k)
    out = portable.transform_rows(
        _primitives(keys),
        keys,
        n,
        weights,
        where,
        standardised=estimator.standardised,
        scale=scale,
        undersized=undersized,
    )
    return out.to(dtype)


def max_at_k_rows(
    rewards: torch.Tensor,
    ks: Sequence[int | torch.Tensor],
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """rewards (rows, N), each k an integer or (), where (rows, N) → (rows, len(ks)), detached."""
    keys, n = _keys(rewards, dtype), _group_sizes(rewards, where)
    weights = [_weights(MAX_AT_K, keys, n, _whole(k, rewards)) for k in ks]
    return portable.max_at_k_rows(_primitives(keys), keys, n, weights, where).to(dtype)


def _keys(rewards: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    compute = torch.float64 if torch.float64 in (dtype, rewards.dtype) else torch.float32
    # Contiguous, so that sums add up in the same order whatever the layout of the rewards.
    return rewards.detach().to(compute).contiguous()


def _group_sizes(rewards: torch.Tensor, where: torch.Tensor | None) -> torch.Tensor:
    return _whole(rewards.shape[-1], rewards) if where is None else where.sum(-1)


def _whole(number: int | torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    if isinstance(number, torch.Tensor):
        return number.to(device=rewards.device, dtype=torch.int64)
    # A fill on the device; torch.tensor would copy from the host and wait.
    return torch.full((), number, dtype=torch.int64, device=rewards.device)


def _weights(
    estimator: Estimator, keys: torch.Tensor, n: torch.Tensor, k: torch.Tensor
) -> GapWeights:
    # Apple's GPUs have no float64.
    precise = torch.float32 if keys.device.type == "mps" else torch.float64
    n_columns = keys.shape[-1]
    weights = gap_weights(
        estimator,
        n_columns,
        n.to(precise),
        k.to(precise),
        xp=torch,
        columns=torch.arange(1, n_columns, dtype=precise, device=keys.device),
        product_from_right=_product_from_right,
    )
    return weights._replace(
        **{
            name: getattr(weights, name).to(keys.dtype)
            for name in weights._fields
            if name != "admitted"
        }
    )


def _product_from_right(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    return (numerator / denominator).flip(-1).cumprod(-1).flip(-1)


def _primitives(keys: torch.Tensor) -> portable.Primitives:
    # The CPU's own kernels may be looked into, and scan strictly from left to right, in double
    # precision.
    plain_cpu = keys.device.type == "cpu" and not torch.compiler.is_compiling()
    return portable.Primitives(
        xp=torch,
        columns=torch.arange(1, keys.shape[-1] + 1, device=keys.device),
        sort=_sort,
        put_back=_put_back,
        prefix_sum=_prefix_sum,
        running_max=None if plain_cpu else _running_max,
        all_finite=_all_finite if plain_cpu else _unknown,
    )


def _sort(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ordered, places = torch.sort(keys, dim=-1)
    return ordered, places


def _put_back(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(values).scatter_(-1, places, values)


def _prefix_sum(x: torch.Tensor) -> torch.Tensor:
    return torch.cumsum(x, -1)


def _running_max(x: torch.Tensor) -> torch.Tensor:
    return torch.cummax(x, -1).values if x.shape[-1] else x


def _all_finite(x: torch.Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _unknown(x: torch.Tensor) -> bool:
    return False
