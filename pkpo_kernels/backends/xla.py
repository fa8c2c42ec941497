"""The transforms in plain JAX operations: every backend, jit, vmap, scan, shard_map, export.

k is an operand of the compiled program, never a constant of it: a new value compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pkpo_kernels.backends import _rows
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.maths.weights import Estimator, GapWeights, clamp_k, gap_weights, host_weights

# Elements that are worked on at one time.
BLOCK_ELEMENTS = 1 << 20


def transform_rows(
    rewards: jax.Array,
    k: int | jax.Array,
    where: jax.Array | None,
    *,
    estimator: Estimator,
    scale: str,
    undersized: str,
    dtype: Any,
) -> jax.Array:
    """rewards (rows, N), k an integer, () or (rows,), where (rows, N) → (rows, N), a constant."""
    weights = known_weights(estimator, rewards, k, where, dtype)
    return _transform_rows(
        lax.stop_gradient(rewards),
        k if weights is None else None,
        weights,
        where,
        estimator=estimator,
        scale=scale,
        undersized=undersized,
        dtype=dtype,
    )


def max_at_k_rows(
    rewards: jax.Array,
    ks: Sequence[int | jax.Array],
    where: jax.Array | None,
    *,
    dtype: Any,
) -> jax.Array:
    """rewards (rows, N), each k an integer or (), where (rows, N) → (rows, len(ks)), a constant."""
    weights = [known_weights(MAX_AT_K, rewards, k, where, dtype) for k in ks]
    unknown = [k if known is None else None for k, known in zip(ks, weights, strict=True)]
    return _max_at_k_rows(lax.stop_gradient(rewards), unknown, weights, where, dtype=dtype)


@partial(jax.jit, static_argnames=("estimator", "scale", "undersized", "dtype"))
def _transform_rows(
    rewards: jax.Array,
    k: jax.Array | None,
    weights: GapWeights | None,
    where: jax.Array | None,
    *,
    estimator: Estimator,
    scale: str,
    undersized: str,
    dtype: Any,
) -> jax.Array:

    def transform_block(
        rewards: jax.Array, k: jax.Array | None, where: jax.Array | None
    ) -> jax.Array:
        keys = _keys(rewards, dtype)
        n = group_sizes(keys, where)
        out = _rows.transform_rows(
            primitives(keys),
            keys,
            n,
            weights or traced_weights(estimator, keys, n, k, clip=undersized == "clip"),
            where,
            normalized=estimator.normalized,
            scale=scale,
            undersized=undersized,
        )
        return out.astype(dtype)

    return _in_blocks(transform_block, rewards, None if k is None else jnp.asarray(k), where)


@partial(jax.jit, static_argnames=("dtype",))
def _max_at_k_rows(
    rewards: jax.Array,
    ks: Sequence[jax.Array | None],
    weights: Sequence[GapWeights | None],
    where: jax.Array | None,
    *,
    dtype: Any,
) -> jax.Array:
    def best_of_block(
        rewards: jax.Array, _: jax.Array | None, where: jax.Array | None
    ) -> jax.Array:
        keys = _keys(rewards, dtype)
        n = group_sizes(keys, where)
        all_weights = [
            known or traced_weights(MAX_AT_K, keys, n, k)
            for k, known in zip(ks, weights, strict=True)
        ]
        best = _rows.max_at_k_rows(primitives(keys), keys, n, all_weights, where)
        return best.astype(dtype)

    return _in_blocks(best_of_block, rewards, None, where)


def _in_blocks(
    of_block: Callable[[jax.Array, jax.Array | None, jax.Array | None], jax.Array],
    rewards: jax.Array,
    k: jax.Array | None,
    where: jax.Array | None,
) -> jax.Array:
    """Large matrices in turns, so that temporaries stay small beside the input.

    A turn takes every blocks-th row, not a run of them: where rows are sharded over devices, each
    device has its share of every turn, and nothing moves between them.
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


def _compute_dtype(rewards: jax.Array, dtype: Any) -> Any:
    return jnp.float64 if jnp.float64 in (dtype, rewards.dtype) else jnp.float32


def _keys(rewards: jax.Array, dtype: Any) -> jax.Array:
    return rewards.astype(_compute_dtype(rewards, dtype))


def group_sizes(keys: jax.Array, where: jax.Array | None) -> jax.Array:
    """How many samples are valid, (rows,) or where all are (1,), in the dtype of keys (rows, N)."""
    if where is None:
        return jnp.asarray(keys.shape[-1]).astype(keys.dtype)[None]
    return where.sum(-1, dtype=keys.dtype)


def known_weights(
    estimator: Estimator, rewards: jax.Array, k: Any, where: jax.Array | None, dtype: Any
) -> GapWeights | None:
    """The weights in float64 from the host, rounded once, where n and k are known there."""
    if where is not None or not isinstance(k, int) or not isinstance(rewards.shape[-1], int):
        return None
    compute = np.dtype(_compute_dtype(rewards, dtype))
    n = rewards.shape[-1]
    # With an axis of rows: JAX may be told to broadcast no missing one.
    weights = host_weights(estimator, n, [n], [k])
    return GapWeights(weights.k_is_valid, *(np.asarray(weight, compute) for weight in weights[1:]))


def traced_weights(
    estimator: Estimator, keys: jax.Array, n: jax.Array, k: Any, *, clip: bool = False
) -> GapWeights:
    """The weights of keys (rows, N) in their dtype, for group sizes n (rows,) or (1,) in it, and k
    () or (rows,)."""
    # No row has as many samples as a k that floating point would round.
    k = jnp.asarray(k).astype(keys.dtype)
    if clip:
        k = clamp_k(estimator, n, k, jnp)
    return gap_weights(
        estimator,
        keys.shape[-1],
        n,
        k,
        xp=jnp,
        columns=jnp.arange(1, keys.shape[-1], dtype=keys.dtype)[None],
        product_from_right=_product_from_right,
    )


def _product_from_right(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """A running product of ratios whose error stays at a rounding or two, however long it is.

    In float32 a plain product of 16384 ratios is wrong by 1e-5 and more. Every division and every
    product here leaves its relative rounding error beside it; the errors add up to the correction
    of the whole.
    """
    numerator, denominator = jnp.broadcast_arrays(numerator, denominator)
    ratio = numerator / denominator
    if ratio.dtype == jnp.float64:
        return lax.cumprod(ratio, axis=ratio.ndim - 1, reverse=True)
    whole, rest = _exact_product(ratio, denominator)
    error = jnp.where(
        numerator > 0, (numerator - whole - rest) / jnp.where(numerator > 0, numerator, 1), 0
    )

    def combine(right: Any, left: Any) -> Any:
        product, rest = _exact_product(right[0], left[0])
        # What is about to underflow needs no correction, and has none to give.
        normal = product > 1e-30
        return product, right[1] + left[1] + jnp.where(
            normal, rest / jnp.where(normal, product, 1), 0
        )

    product, error = lax.associative_scan(
        combine, (ratio, error), reverse=True, axis=ratio.ndim - 1
    )
    return product + product * error


def _exact_product(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x·y of float32 as a rounded product and what the rounding lost (Dekker 1971).

    The factors are halved by their bits, so that the four partial products are exact and it does
    not matter whether a compiler fuses a multiplication with the addition behind it.
    """
    x_high, y_high = _leading_bits(x), _leading_bits(y)
    x_low, y_low = x - x_high, y - y_high
    product = x * y
    rest = ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low
    return product, rest


def _leading_bits(x: jax.Array) -> jax.Array:
    bits = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-(1 << 12))
    return lax.bitcast_convert_type(bits, jnp.float32)


def primitives(keys: jax.Array) -> _rows.Primitives:
    return _rows.Primitives(
        xp=jnp,
        columns=jnp.arange(1, keys.shape[1] + 1, dtype=keys.dtype)[None],
        sort=_sort,
        sum_beneath=_sum_beneath,
        largest=float(np.finfo(keys.dtype).max),
    )


def _sort(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    places = lax.broadcasted_iota(jnp.int32, keys.shape, 1)
    ordered, places = lax.sort((keys, places), dimension=1, is_stable=False, num_keys=1)
    return ordered, places


def _sum_beneath(gaps: jax.Array, terms: jax.Array, places: jax.Array) -> jax.Array:
    # A parallel scan may add in another order from column to column. Where there is no gap, carry
    # the sum on; the true sums never fall, so a running maximum does it.
    sums = lax.cummax(jnp.where(gaps > 0, lax.cumsum(terms, axis=1), 0), axis=1)

    @jax.vmap
    def put_back(sums: jax.Array, places: jax.Array) -> jax.Array:
        out = jnp.zeros(places.shape, sums.dtype)
        return out.at[places[1:]].set(sums, unique_indices=True, mode="promise_in_bounds")

    return put_back(sums, places)
