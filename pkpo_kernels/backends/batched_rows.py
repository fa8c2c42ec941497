"""What a kernel without a batching rule does under jax.vmap: it takes more rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

Rows = Callable[[jax.Array, Any, jax.Array | None], jax.Array]


def transform_of_rows(compute: Rows) -> Rows:
    """compute(rewards (rows, N), k None, () or (rows,), where (rows, N) or None) → (rows, N): the
    same function, which batches."""

    @custom_vmap
    def of_rows(rewards: jax.Array, k: jax.Array | None, where: jax.Array | None) -> jax.Array:
        return compute(rewards, k, where)

    @of_rows.def_vmap
    def of_more_rows(
        size: int,
        batched: Sequence[Any],
        rewards: jax.Array,
        k: jax.Array | None,
        where: jax.Array | None,
    ) -> tuple[jax.Array, bool]:
        rewards = _with_batch(size, batched[0], rewards)
        rows, n = rewards.shape[1:]
        if k is not None and (batched[1] or k.ndim > 0):
            k = _with_batch(size, batched[1], k)
            k = jnp.broadcast_to(k.reshape(size, -1), (size, rows)).reshape(-1)
        if where is not None:
            where = _with_batch(size, batched[2], where).reshape(-1, n)
        return of_rows(rewards.reshape(-1, n), k, where).reshape(size, rows, n), True

    return of_rows


def max_at_k_of_rows(compute: Rows) -> Rows:
    """compute(rewards (rows, N), ks a sequence of (), where (rows, N) or None) → (rows, number of
    ks): the same function, which batches."""

    @custom_vmap
    def of_rows(rewards: jax.Array, ks: Sequence[jax.Array], where: jax.Array | None) -> jax.Array:
        return compute(rewards, ks, where)

    @of_rows.def_vmap
    def of_more_rows(
        size: int,
        batched: Sequence[Any],
        rewards: jax.Array,
        ks: Sequence[jax.Array],
        where: jax.Array | None,
    ) -> tuple[jax.Array, bool]:
        rewards = _with_batch(size, batched[0], rewards)
        rows, n = rewards.shape[1:]
        if where is not None:
            where = _with_batch(size, batched[2], where)
        if any(batched[1]):
            # A kernel has the same ks for all its rows: one launch for each element of the batch.
            ks = [_with_batch(size, of_k, k) for of_k, k in zip(batched[1], ks, strict=True)]
            return lax.map(lambda one: of_rows(*one), (rewards, ks, where)), True
        if where is not None:
            where = where.reshape(-1, n)
        return of_rows(rewards.reshape(-1, n), ks, where).reshape(size, rows, -1), True

    return of_rows


def _with_batch(size: int, batched: bool, x: jax.Array) -> jax.Array:
    return x if batched else jnp.broadcast_to(x, (size, *x.shape))
