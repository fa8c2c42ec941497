"""The transforms in plain torch operations, on any device, eagerly or under torch.compile.

No value is looked at: the host never waits for a device, and all of it batches under
torch.func.vmap and traces under make_fx and FakeTensorMode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pkpo_kernels.backends import _rows
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.maths.weights import Estimator, GapWeights, clamp_k, gap_weights

# Elements in a block of rows: cache-sized on a CPU, enough to fill any other device.
CPU_BLOCK_ELEMENTS = 1 << 19
DEVICE_BLOCK_ELEMENTS = 1 << 25


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
    """Transform rows: rewards (rows, N), k an integer, () or (rows,), where (rows, N) or None →
    (rows, N) of dtype, detached."""

    def transform_block(
        rewards: torch.Tensor, k: int | torch.Tensor, where: torch.Tensor | None
    ) -> torch.Tensor:
        keys, n = _keys(rewards, dtype), _group_sizes(rewards, where)
        whole_k = _whole(k, rewards)
        if undersized == "clip":
            whole_k = clamp_k(estimator, n, whole_k, torch)
        out = _rows.transform_rows(
            _primitives(keys),
            keys,
            n,
            _weights(estimator, keys, n, whole_k),
            where,
            normalized=estimator.normalized,
            scale=scale,
            undersized=undersized,
        )
        return out.to(dtype)

    return _in_blocks(transform_block, rewards, k, where)


def max_at_k_rows(
    rewards: torch.Tensor,
    ks: Sequence[int | torch.Tensor],
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Estimate the best of each k: rewards (rows, N), each k an integer or (), where (rows, N) or
    None → (rows, len(ks)) of dtype, detached."""

    def best_of_block(
        rewards: torch.Tensor, k: int | torch.Tensor, where: torch.Tensor | None
    ) -> torch.Tensor:
        keys, n = _keys(rewards, dtype), _group_sizes(rewards, where)
        weights = [_weights(MAX_AT_K, keys, n, _whole(one, rewards)) for one in ks]
        return _rows.max_at_k_rows(_primitives(keys), keys, n, weights, where).to(dtype)

    return _in_blocks(best_of_block, rewards, 0, where)


def _in_blocks(
    of_block: Callable[[torch.Tensor, int | torch.Tensor, torch.Tensor | None], torch.Tensor],
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
) -> torch.Tensor:
    """Large matrices a block of rows at a time, so that temporaries stay small beside the input.

    A compiler fuses the temporaries away and gets the matrix whole.
    """
    rows, n_columns = rewards.shape
    if torch.compiler.is_compiling():
        return of_block(rewards, k, where)
    on_cpu = rewards.device.type == "cpu"
    height = max(1, (CPU_BLOCK_ELEMENTS if on_cpu else DEVICE_BLOCK_ELEMENTS) // n_columns)
    if rows <= height:
        return of_block(rewards, k, where)
    out: torch.Tensor | None = None
    for start in range(0, rows, height):
        block = slice(start, start + height)
        part = of_block(
            rewards[block],
            k[block] if isinstance(k, torch.Tensor) and k.ndim else k,
            None if where is None else where[block],
        )
        if out is None:
            out = part.new_empty((rows, *part.shape[1:]))
        out[block] = part
    assert out is not None
    return out


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
            if name != "k_is_valid"
        }
    )


def _product_from_right(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    return (numerator / denominator).flip(-1).cumprod(-1).flip(-1)


def _primitives(keys: torch.Tensor) -> _rows.Primitives:
    # The CPU's own kernels scan strictly from left to right, in double precision.
    plain_cpu = keys.device.type == "cpu" and not torch.compiler.is_compiling()
    return _rows.Primitives(
        xp=torch,
        columns=torch.arange(1, keys.shape[-1] + 1, device=keys.device),
        sort=_sort,
        exclusive_prefix_sum=_by_serial_scan if plain_cpu else _by_parallel_scan,
        largest=torch.finfo(keys.dtype).max,
    )


def _sort(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ordered, indices = torch.sort(keys, dim=-1)
    return ordered, indices


def _by_serial_scan(gaps: torch.Tensor, terms: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return _put_back(torch.cumsum(terms, -1), indices)


def _by_parallel_scan(
    gaps: torch.Tensor, terms: torch.Tensor, indices: torch.Tensor
) -> torch.Tensor:
    sums = torch.cumsum(terms, -1)
    # A parallel scan may add in another order from column to column. Where there is no gap, carry
    # the sum on; the true sums never fall, so a running maximum does it.
    if sums.shape[-1]:
        sums = torch.cummax(torch.where(gaps > 0, sums, 0), -1).values
    return _put_back(sums, indices)


def _put_back(sums: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Put sums (rows, N−1) at their samples' indices (rows, N); the smallest of each row has
    nothing below it, and gets 0."""
    # Out of place: under torch.func.vmap the sums may be batched where the indices are not.
    return torch.scatter(sums.new_zeros(indices.shape), -1, indices[:, 1:], sums)
