"""Groups in one flat array, in plain JAX operations: one program for any ids, sizes and k."""

# JAX gives PartitionSpec and reshard no types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from pkpo_kernels.backends import _jax_rows, _segments
from pkpo_kernels.backends._segments import Combine, Parts, Segments
from pkpo_kernels.maths.weights import Estimator


@partial(jax.jit, static_argnames=("estimator", "scale", "undersized", "dtype"))
def transform(
    rewards: jax.Array,
    ids: Sequence[jax.Array],
    valid: jax.Array,
    k: jax.Array,
    *,
    estimator: Estimator,
    scale: str,
    factor: jax.Array,
    undersized: str,
    dtype: Any,
) -> jax.Array:
    """Transform groups: rewards, ids, valid (N,), k () or (N,) → (N,) of dtype, a constant of the
    loss: `_segments.transform`, times a factor."""
    compute = jnp.float64 if jnp.float64 in (dtype, rewards.dtype) else jnp.float32
    keys = lax.stop_gradient(rewards).astype(compute)
    out = _segments.transform(
        Primitives(keys),
        keys,
        ids,
        valid,
        k,
        limit=float(np.finfo(compute).max),
        estimator=estimator,
        scale=scale,
        undersized=undersized,
    )
    return (out * factor).astype(dtype)


@jax.jit
def representatives(ids: Sequence[jax.Array], valid: jax.Array) -> jax.Array:
    """Find the entry that stands for a sample: see `_segments.representatives`."""
    return _segments.representatives(Primitives(valid), ids, valid)


# ---- Explicit axes of a mesh -------------------------------------------------------------------
#
# Where the type of an array says how it lies along them, JAX sorts none that is spread over
# devices: every device gets the whole batch, and keeps its part of the result.


def sharding_of(x: jax.Array) -> Any:
    """Tell how an array (N, …) is spread over devices along Explicit axes: its NamedSharding, None
    where it is not."""
    of_type: Any = jax.typeof(x).sharding
    is_spread = any(names is not None for names in of_type.spec)
    if jax.sharding.AxisType.Explicit not in of_type.mesh.axis_types or not is_spread:
        return None
    # A type knows no devices; an array does.
    of_array: Any = of_type if isinstance(x, jax.core.Tracer) else x.sharding
    return of_array


def gathered(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Give every device of a mesh the whole of an array."""
    return resharded(x, NamedSharding(sharding.mesh, PartitionSpec()))


def resharded(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Spread an array (N,) over devices."""
    return jax.sharding.reshard(x, sharding)


def shard_size(x: jax.Array, sharding: NamedSharding) -> int:
    """Count the entries (N,) of one device."""
    names = sharding.spec[0] if isinstance(sharding.spec[0], tuple) else (sharding.spec[0],)
    return int(x.shape[0] // math.prod(sharding.mesh.shape[name] for name in names))


class Primitives:
    """JAX's part of `_segments.Primitives`, for arrays beside one (N,)."""

    xp = jnp

    def __init__(self, like: jax.Array) -> None:
        self.index = lax.iota(jnp.int32, like.shape[0])
        self.dtype = like.dtype

    def floating(self, x: jax.Array) -> jax.Array:
        return x.astype(self.dtype)

    def order_keys(self, keys: jax.Array) -> jax.Array:
        dtype = jnp.int64 if keys.dtype == jnp.float64 else jnp.int32
        signed = lax.bitcast_convert_type(keys, dtype)
        # Of negative numbers all bits but the sign run the other way.
        return jnp.where(signed < 0, signed ^ np.iinfo(dtype).max, signed)

    def sort(self, keys: Sequence[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        *in_order, order = lax.sort((*keys, self.index), num_keys=len(keys))
        return in_order, order

    def put_back(self, x: jax.Array, order: jax.Array) -> jax.Array:
        return jnp.zeros_like(x).at[order].set(x, unique_indices=True, mode="promise_in_bounds")

    def segments(self, starts: jax.Array) -> Segments:
        number = lax.cumsum(starts.astype(jnp.int32)) - 1
        # Not by lax.cummax, whose program is many times as long.
        first = jnp.full_like(number, number.shape[0]).at[number].min(self.index)
        last = jnp.zeros_like(number).at[number].max(self.index)
        return Segments(first[number], last[number])

    def scan(self, segments: Segments, parts: Parts, combine: Combine) -> Parts:
        return self._scan(segments, parts, combine, 1, lambda d: self.index - d >= segments.first)

    def product_from_right(
        self, segments: Segments, numerators: jax.Array, denominators: jax.Array
    ) -> jax.Array:
        def scan(parts: Parts, combine: Combine) -> Parts:
            return self._scan(
                segments, parts, combine, -1, lambda d: self.index + d < segments.last
            )

        return _jax_rows.product_from_right(numerators, denominators, scan)

    def _scan(
        self,
        segments: Segments,
        parts: Parts,
        combine: Combine,
        direction: int,
        is_inside: Callable[[jax.Array], jax.Array],
    ) -> Parts:
        """Combine parts with all before them (direction 1) or behind them (−1), over distances that
        double up to the longest segment, where one of that distance is inside the same."""
        longest = jnp.max(segments.last - segments.first, initial=0) + 1

        def step(state: tuple[jax.Array, Parts]) -> tuple[jax.Array, Parts]:
            distance, parts = state
            others = tuple(jnp.roll(x, direction * distance) for x in parts)
            inside = is_inside(distance)
            return 2 * distance, tuple(
                jnp.where(inside, both, own)
                for both, own in zip(combine(others, parts), parts, strict=True)
            )

        start = jnp.ones_like(longest)
        scanned: Parts = lax.while_loop(lambda state: state[0] < longest, step, (start, parts))[1]
        return scanned
