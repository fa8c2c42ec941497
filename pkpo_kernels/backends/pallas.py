"""The Pallas kernels, for JAX arrays on TPUs, or in Pallas's interpreter of TPUs on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pkpo_pallas
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from pkpo_kernels.backends import _jax_rows, _rows
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.maths.weights import Estimator, GapWeights


class Kernels(NamedTuple):
    """The kernels, compiled or interpreted."""

    interpret: Any  # False, or the parameters of Pallas's interpreter

    def fits(self, rewards: jax.Array, where: jax.Array | None, dtype: Any) -> bool:
        """Whether rewards (rows, N) have kernels: all do."""
        return True

    def transform_rows(
        self,
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
        k = jnp.asarray(k)
        clip = undersized == "clip"
        if weights is None and where is None and k.ndim == 0:
            weights = _weights(estimator, rewards, k, clip=clip)
        if pkpo_pallas.fits(rewards.shape[1], self.interpret):
            return pkpo_pallas.transform(
                rewards,
                None if weights is not None else k,
                where,
                estimator,
                weights=weights,
                scale=scale,
                undersized=undersized,
                dtype=dtype,
                interpret=self.interpret,
            )
        keys = rewards.astype(jnp.float32)
        n = _jax_rows.group_sizes(keys, where)
        out = _rows.transform_rows(
            _jax_rows.primitives(keys)._replace(exclusive_prefix_sum=self._exclusive_prefix_sum),
            keys,
            n,
            weights or _jax_rows.weights_of(estimator, keys.shape[1], n, k, clip=clip),
            where,
            normalized=estimator.normalized,
            scale=scale,
            undersized=undersized,
        )
        return out.astype(dtype)

    def max_at_k_rows(
        self,
        rewards: jax.Array,
        ks: Sequence[int | jax.Array],
        where: jax.Array | None,
        *,
        weights: Sequence[GapWeights | None],
        dtype: Any,
    ) -> jax.Array:
        """Estimate the best of each k: rewards (rows, N), each k an integer or (), where (rows, N)
        or None, weights (1, N−1) of each k that the host knows → (rows, len(ks)) of dtype."""
        arrays = [jnp.asarray(k) for k in ks]
        all_weights = None
        if where is None:
            pairs = zip(arrays, weights, strict=True)
            all_weights = [given or _weights(MAX_AT_K, rewards, k) for k, given in pairs]
        if pkpo_pallas.fits(rewards.shape[1], self.interpret):
            return pkpo_pallas.max_at_k(
                rewards,
                None if all_weights is not None else jnp.stack(arrays),
                where,
                MAX_AT_K,
                weights=all_weights,
                dtype=dtype,
                interpret=self.interpret,
            )
        # One number a row: there is nothing to scan.
        keys = rewards.astype(jnp.float32)
        n = _jax_rows.group_sizes(keys, where)
        if all_weights is None:
            all_weights = [_jax_rows.weights_of(MAX_AT_K, keys.shape[1], n, k) for k in arrays]
        best = _rows.max_at_k_rows(_jax_rows.primitives(keys), keys, n, all_weights, where)
        return best.astype(dtype)

    def _exclusive_prefix_sum(
        self, gaps: jax.Array, terms: jax.Array, indices: jax.Array
    ) -> jax.Array:
        """Rows too long for VMEM: XLA sorts; its second sort leads what the kernel has summed up
        back to the samples."""
        sums = pkpo_pallas.prefix_sums(terms, interpret=self.interpret)
        # Nothing lies below the smallest.
        sums = jnp.concatenate([jnp.zeros_like(sums[:, :1]), sums], -1)
        _, out = lax.sort((indices, sums), dimension=1, is_stable=False, num_keys=1)
        return out


COMPILED = Kernels(interpret=False)
# Memory that nobody has written reads as NaN.
INTERPRETED = Kernels(interpret=pltpu.InterpretParams(uninitialized_memory="nan"))


def _weights(
    estimator: Estimator, rewards: jax.Array, k: jax.Array, *, clip: bool = False
) -> GapWeights:
    """Weigh rows (rows, N) that share n and k, in float32: (1, N−1)."""
    n = jnp.full((1,), rewards.shape[1], jnp.float32)
    return _jax_rows.weights_of(estimator, rewards.shape[1], n, k, clip=clip)
