"""What XLA and the long rows of Pallas share: JAX operations behind `_rows`, and weights for values
of n and k that only a device knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pkpo_kernels.backends import _rows
from pkpo_kernels.maths.weights import Estimator, GapWeights, clamp_k, gap_weights

Parts = tuple[jax.Array, ...]
Scan = Callable[[Parts, Callable[[Parts, Parts], Parts]], Parts]


def group_sizes(keys: jax.Array, where: jax.Array | None) -> jax.Array:
    """Count valid samples: keys, where (rows, N) → (rows,), or (1,) where all are valid, in the
    dtype of keys."""
    if where is None:
        return jnp.asarray(keys.shape[-1]).astype(keys.dtype)[None]
    return where.sum(-1, dtype=keys.dtype)


def weights_of(
    estimator: Estimator, n_columns: Any, n: jax.Array, k: Any, *, clip: bool = False
) -> GapWeights:
    """Weigh rows of N columns in the dtype of n: group sizes n (rows,) or (1,), k an integer, () or
    (rows,) → (rows, N−1), or (1, N−1)."""
    # No row has as many samples as a k that floating point would round.
    k = jnp.asarray(k).astype(n.dtype)
    if clip:
        k = clamp_k(estimator, n, k, jnp)
    return gap_weights(
        estimator,
        n_columns,
        n,
        k,
        xp=jnp,
        columns=jnp.arange(1, n_columns, dtype=n.dtype)[None],
        product_from_right=partial(product_from_right, scan=_along_rows),
    )


def product_from_right(numerator: jax.Array, denominator: jax.Array, scan: Scan) -> jax.Array:
    """Multiply ratios (..., N) from the last on, as `scan` goes: a running product whose error
    stays at a rounding or two, however long it is.

    In float32 a plain product of 16384 ratios is wrong by 1e-5 and more. Every division and every
    product here leaves its relative rounding error beside it; the errors add up to the correction
    of the whole.
    """
    numerator, denominator = jnp.broadcast_arrays(numerator, denominator)
    ratio = numerator / denominator
    if ratio.dtype == jnp.float64:
        (product,) = scan((ratio,), lambda right, left: (right[0] * left[0],))
        return product
    whole, rest = _exact_product(ratio, denominator)
    error = jnp.where(
        numerator > 0, (numerator - whole - rest) / jnp.where(numerator > 0, numerator, 1), 0
    )

    def combine(right: Parts, left: Parts) -> Parts:
        product, rest = _exact_product(right[0], left[0])
        # What is about to underflow needs no correction, and has none to give.
        normal = product > 1e-30
        return product, right[1] + left[1] + jnp.where(
            normal, rest / jnp.where(normal, product, 1), 0
        )

    product, error = scan((ratio, error), combine)
    return product + product * error


def _along_rows(parts: Parts, combine: Callable[[Parts, Parts], Parts]) -> Parts:
    """Scan rows (..., N) from their ends on."""
    if not isinstance(parts[0].shape[-1], int):
        return _one_by_one(parts, combine)
    if len(parts) == 1:
        return (lax.cumprod(parts[0], axis=parts[0].ndim - 1, reverse=True),)
    out: Parts = lax.associative_scan(combine, parts, reverse=True, axis=parts[0].ndim - 1)
    return out


def _one_by_one(parts: Parts, combine: Callable[[Parts, Parts], Parts]) -> Parts:
    """Scan rows (..., N) as `_along_rows` does, where an export leaves N open: JAX's parallel scan
    unrolls."""

    def step(right: Parts, left: Parts) -> tuple[Parts, Parts]:
        both = combine(right, left)
        return both, both

    columns = tuple(jnp.moveaxis(_with_a_column(part), -1, 0) for part in parts)
    # 1, without an error.
    first = tuple(jnp.full(part.shape[1:], i == 0, part.dtype) for i, part in enumerate(columns))
    _, out = lax.scan(step, first, columns, reverse=True)
    return tuple(jnp.moveaxis(part, 0, -1)[..., 1:] for part in out)


def _with_a_column(x: jax.Array) -> jax.Array:
    """Put a 0 before rows: (..., N − 1) → (..., N). Of N samples there are N − 1 gaps, and where an
    export leaves N open these may be none, which JAX's scans do not take."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 0)])


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
    """What `_rows` asks of JAX for keys (rows, N)."""
    return _rows.Primitives(
        xp=jnp,
        columns=jnp.arange(1, keys.shape[1] + 1, dtype=keys.dtype)[None],
        sort=_sort,
        exclusive_prefix_sum=_exclusive_prefix_sum,
        largest=float(np.finfo(keys.dtype).max),
    )


def _sort(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    indices = lax.broadcasted_iota(jnp.int32, keys.shape, 1)
    ordered, indices = lax.sort((keys, indices), dimension=1, is_stable=False, num_keys=1)
    return ordered, indices


def _exclusive_prefix_sum(gaps: jax.Array, terms: jax.Array, indices: jax.Array) -> jax.Array:
    first = 1
    if not isinstance(gaps.shape[1], int):
        gaps, terms = _with_a_column(gaps), _with_a_column(terms)
        first = 0
    # A parallel scan may add in another order from column to column. Where there is no gap, carry
    # the sum on; the true sums never fall, so a running maximum does it.
    sums = lax.cummax(jnp.where(gaps > 0, lax.cumsum(terms, axis=1), 0), axis=1)

    @jax.vmap
    def put_back(sums: jax.Array, indices: jax.Array) -> jax.Array:
        out = jnp.zeros(indices.shape, sums.dtype)
        return out.at[indices[first:]].set(sums, unique_indices=True, mode="promise_in_bounds")

    return put_back(sums, indices)
