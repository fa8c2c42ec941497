"""Groups in one flat array, in plain JAX operations: one program for any ids, sizes and k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pkpo_kernels.backends import _jax_rows, _segments
from pkpo_kernels.backends._segments import Segments
from pkpo_kernels.maths.weights import Estimator


@partial(jax.jit, static_argnames=("estimator", "scale", "undersized", "dtype"))
def transform(
    rewards: jax.Array,
    ids: Sequence[jax.Array],
    counted: jax.Array,
    k: jax.Array,
    *,
    estimator: Estimator,
    scale: str,
    factor: jax.Array,
    undersized: str,
    dtype: Any,
) -> jax.Array:
    """Transform groups: rewards, ids, counted (N,), k () or (N,) → (N,) of dtype, a constant of the
    loss: `_segments.transform`, times a factor."""
    compute = jnp.float64 if jnp.float64 in (dtype, rewards.dtype) else jnp.float32
    keys = lax.stop_gradient(rewards).astype(compute)
    out = _segments.transform(
        Primitives(keys),
        keys,
        ids,
        counted,
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


class Primitives:
    """JAX's part of `_segments.Primitives`, for arrays beside one (N,)."""

    xp = jnp

    def __init__(self, like: jax.Array) -> None:
        self.index = lax.iota(jnp.int32, like.shape[0])
        self.dtype = like.dtype

    def floating(self, x: jax.Array) -> jax.Array:
        return x.astype(self.dtype)

    def sort(self, keys: Sequence[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        *in_order, order = lax.sort((*keys, self.index), num_keys=len(keys))
        return in_order, order

    def running_max(self, x: jax.Array) -> jax.Array:
        return lax.cummax(x)

    def put_back(self, x: jax.Array, order: jax.Array) -> jax.Array:
        return jnp.zeros_like(x).at[order].set(x, unique_indices=True, mode="promise_in_bounds")

    def sums(self, segments: Segments, *terms: jax.Array) -> tuple[jax.Array, ...]:
        def add(
            before: tuple[jax.Array, ...], here: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, ...]:
            return tuple(x + y for x, y in zip(before, here, strict=True))

        return self._scan(segments.first == self.index, terms, add)

    def largest(self, segments: Segments, x: jax.Array) -> jax.Array:
        (so_far,) = self._scan(
            segments.first == self.index, (x,), lambda a, b: (jnp.maximum(a[0], b[0]),)
        )
        return so_far[segments.last]

    def product_from_right(
        self, segments: Segments, numerators: jax.Array, denominators: jax.Array
    ) -> jax.Array:
        return _jax_rows.product_from_right(
            numerators,
            denominators,
            partial(self._scan, segments.last == self.index + 1, reverse=True),
        )

    def _scan(
        self,
        starts: jax.Array,
        x: tuple[jax.Array, ...],
        combine: Callable[[Any, Any], tuple[jax.Array, ...]],
        reverse: bool = False,
    ) -> tuple[jax.Array, ...]:
        """Combine each of x (N,) with all before it up to a start; in reverse all behind it."""

        def step(before: Any, here: Any) -> Any:
            both = combine(before[1], here[1])
            return before[0] | here[0], tuple(
                jnp.where(here[0], own, combined)
                for own, combined in zip(here[1], both, strict=True)
            )

        return lax.associative_scan(step, (starts, x), reverse=reverse)[1]
