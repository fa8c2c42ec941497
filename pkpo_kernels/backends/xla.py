"""The transforms in plain JAX operations: every platform, any number of rows and of samples,
symbolic ones too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pkpo_kernels.backends import _jax_rows, _rows
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.maths.weights import Estimator, GapWeights

# Elements that are worked on at one time.
BLOCK_ELEMENTS = 1 << 20


def fits(rewards: jax.Array, where: jax.Array | None, dtype: Any) -> bool:
    """Tell whether rewards (rows, N) are served: all are."""
    return True


def transform_rows(
    rewards: jax.Array,
    k: int | jax.Array,
    where: jax.Array | None,
    *,
    weights: GapWeights | None,
    estimator: Estimator,
    scale: str,
    undersized: str,
    dtype: Any,
) -> jax.Array:
    """Transform rows: rewards (rows, N), k an integer, () or (rows,), where (rows, N) or None,
    weights (1, N−1) where the host knows them → (rows, N) of dtype."""

    def transform_block(
        rewards: jax.Array, k: jax.Array | None, where: jax.Array | None
    ) -> jax.Array:
        keys = _keys(rewards, dtype)
        n = _jax_rows.group_sizes(keys, where)
        clip = undersized == "clip"
        out = _rows.transform_rows(
            _jax_rows.primitives(keys),
            keys,
            n,
            weights or _jax_rows.weights_of(estimator, keys.shape[-1], n, k, clip=clip),
            where,
            normalized=estimator.normalized,
            scale=scale,
            undersized=undersized,
        )
        return out.astype(dtype)

    return _in_blocks(transform_block, rewards, None if weights else jnp.asarray(k), where)


def max_at_k_rows(
    rewards: jax.Array,
    ks: Sequence[int | jax.Array],
    where: jax.Array | None,
    *,
    weights: Sequence[GapWeights | None],
    dtype: Any,
) -> jax.Array:
    """Estimate the best of each k: rewards (rows, N), each k an integer or (), where (rows, N) or
    None, weights (1, N−1) of each k that the host knows → (rows, len(ks)) of dtype."""

    def best_of_block(
        rewards: jax.Array, _: jax.Array | None, where: jax.Array | None
    ) -> jax.Array:
        keys = _keys(rewards, dtype)
        n = _jax_rows.group_sizes(keys, where)
        all_weights = [
            given or _jax_rows.weights_of(MAX_AT_K, keys.shape[-1], n, k)
            for k, given in zip(ks, weights, strict=True)
        ]
        best = _rows.max_at_k_rows(_jax_rows.primitives(keys), keys, n, all_weights, where)
        return best.astype(dtype)

    return _in_blocks(best_of_block, rewards, None, where)


def _in_blocks(
    of_block: Callable[[jax.Array, jax.Array | None, jax.Array | None], jax.Array],
    rewards: jax.Array,
    k: jax.Array | None,
    where: jax.Array | None,
) -> jax.Array:
    """Compute large matrices (rows, N) block by block, so that temporaries stay small beside the
    input.

    A block has every blocks-th row, not neighbours: where rows are sharded over devices, each
    device has its share of every block, and nothing moves between them.
    """
    rows, n_columns = rewards.shape
    blocks = 1
    # A symbolic number of rows, in an export, is not known to be large.
    if isinstance(rows, int) and isinstance(n_columns, int):
        while rows % (2 * blocks) == 0 and rows * n_columns > blocks * BLOCK_ELEMENTS:
            blocks *= 2
    if blocks == 1:
        return of_block(rewards, k, where)

    def deal(x: jax.Array) -> jax.Array:
        return x.reshape(rows // blocks, blocks, *x.shape[1:]).swapaxes(0, 1)

    k_varies = k is not None and k.ndim > 0
    dealt = (
        deal(rewards),
        deal(k) if k is not None and k_varies else None,
        None if where is None else deal(where),
    )
    out = lax.map(lambda block: of_block(block[0], block[1] if k_varies else k, block[2]), dealt)
    return out.swapaxes(0, 1).reshape(rows, out.shape[-1])


def _keys(rewards: jax.Array, dtype: Any) -> jax.Array:
    return rewards.astype(jnp.float64 if jnp.float64 in (dtype, rewards.dtype) else jnp.float32)
