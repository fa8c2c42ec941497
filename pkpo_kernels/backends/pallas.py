"""The Pallas kernels behind the API, for JAX arrays on TPUs.

Where a program runs is known when it is lowered, not when it is traced: for anything but TPUs these
functions are those of the implementation that would be chosen there. They batch under vmap, by more
rows. The compiler cannot divide a kernel's rows over devices as it divides operations: where rows
are sharded, call them inside `jax.shard_map`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pkpo_pallas
from jax import lax

from pkpo_kernels.backends import _rows
from pkpo_kernels.backends import xla as xla_backend
from pkpo_kernels.backends.batched_rows import max_at_k_of_rows, transform_of_rows
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.maths.weights import Estimator, GapWeights


class _Transform(NamedTuple):
    """What a compiled transform is compiled for."""

    estimator: Estimator
    scale: str
    undersized: str
    dtype: np.dtype[Any]
    k: int | None  # where it is a constant of the program
    interpret: Any  # False, or the parameters of Pallas's interpreter


class _MaxAtK(NamedTuple):
    """None in ks stands for the next of those that are operands."""

    dtype: np.dtype[Any]
    ks: tuple[int | None, ...]
    interpret: Any


def transform_rows(
    rewards: jax.Array,
    k: int | jax.Array,
    where: jax.Array | None,
    *,
    estimator: Estimator,
    scale: str,
    undersized: str,
    dtype: Any,
    interpret: Any = False,
) -> jax.Array:
    """rewards (rows, N), k an integer, () or (rows,), where (rows, N) → (rows, N), a constant."""
    known = _constant_of_the_program(rewards, k, interpret)
    options = _Transform(estimator, scale, undersized, jnp.dtype(dtype), known, interpret)
    hidden_k = jnp.asarray(k) if known is None else None
    if not _has_a_grid(rewards):
        return _transform_elsewhere(options, rewards, hidden_k, where)
    of_rows = _transform_rows if interpret else _transform_in_one_program
    return of_rows(lax.stop_gradient(rewards), hidden_k, where, options)


def max_at_k_rows(
    rewards: jax.Array,
    ks: Sequence[int | jax.Array],
    where: jax.Array | None,
    *,
    dtype: Any,
    interpret: Any = False,
) -> jax.Array:
    """rewards (rows, N), each k an integer or (), where (rows, N) → (rows, len(ks)), a constant."""
    known = tuple(_constant_of_the_program(rewards, k, interpret) for k in ks)
    hidden = [jnp.asarray(k) for k, one in zip(ks, known, strict=True) if one is None]
    options = _MaxAtK(jnp.dtype(dtype), known, interpret)
    if not _has_a_grid(rewards):
        return _max_at_k_elsewhere(options, rewards, hidden, where)
    of_rows = _max_at_k_rows if interpret else _max_at_k_in_one_program
    return of_rows(lax.stop_gradient(rewards), hidden, where, options)


def _has_a_grid(rewards: jax.Array) -> bool:
    # An export's symbolic sizes are no integers, and a kernel's grid is made of integers.
    return all(isinstance(size, int) and size > 0 for size in rewards.shape)


def _constant_of_the_program(rewards: jax.Array, k: int | jax.Array, interpret: Any) -> int | None:
    # Within somebody's jit an integer is a constant anyway, and its weights come from the host.
    # Outside, it would mean another program for every k; interpreted, it is a program a step.
    in_a_program = isinstance(rewards, jax.core.Tracer)
    return k if isinstance(k, int) and (in_a_program or interpret) else None


# The way from a call to a kernel: one program, more rows for vmap, then the choice by platform.


def _transform_rows(
    rewards: jax.Array, k: jax.Array | None, where: jax.Array | None, options: _Transform
) -> jax.Array:
    choose = partial(_by_platform, options, _launch_transform, _transform_elsewhere)
    return transform_of_rows(choose)(rewards, k, where)


def _max_at_k_rows(
    rewards: jax.Array, ks: Sequence[jax.Array], where: jax.Array | None, options: _MaxAtK
) -> jax.Array:
    choose = partial(_by_platform, options, _launch_max_at_k, _max_at_k_elsewhere)
    return max_at_k_of_rows(choose)(rewards, ks, where)


_transform_in_one_program = jax.jit(_transform_rows, static_argnames=("options",))
_max_at_k_in_one_program = jax.jit(_max_at_k_rows, static_argnames=("options",))


def _by_platform(
    options: Any,
    launch: Callable[..., jax.Array],
    elsewhere: Callable[..., jax.Array],
    *operands: Any,
) -> jax.Array:
    if options.interpret:
        return launch(options, *operands)
    return lax.platform_dependent(
        *operands, tpu=partial(launch, options), default=partial(elsewhere, options)
    )


# What other platforms run.


def _others() -> Any:
    """The module that serves JAX arrays there."""
    try:
        from pkpo_kernels.backends import jax_triton as jax_triton_backend
    except ImportError:
        return xla_backend
    return jax_triton_backend


def _transform_elsewhere(
    options: _Transform, rewards: jax.Array, k: jax.Array | None, where: jax.Array | None
) -> jax.Array:
    return _others().transform_rows(
        rewards,
        options.k if k is None else k,
        where,
        estimator=options.estimator,
        scale=options.scale,
        undersized=options.undersized,
        dtype=options.dtype,
    )


def _max_at_k_elsewhere(
    options: _MaxAtK, rewards: jax.Array, ks: Sequence[jax.Array], where: jax.Array | None
) -> jax.Array:
    return _others().max_at_k_rows(rewards, _in_place(options, ks), where, dtype=options.dtype)


def _in_place(options: _MaxAtK, hidden: Sequence[jax.Array]) -> list[int | jax.Array]:
    """All ks, in their order."""
    rest = iter(hidden)
    return [next(rest) if k is None else k for k in options.ks]


# What TPUs run.


def _launch_transform(
    options: _Transform, rewards: jax.Array, k: jax.Array | None, where: jax.Array | None
) -> jax.Array:
    n = rewards.shape[1]
    estimator = options.estimator
    given: Any = options.k if k is None else k
    if not pkpo_pallas.fits(n, options.interpret):
        return _transform_long(options, rewards, given, where)
    weights = None
    if where is None and (isinstance(given, int) or given.ndim == 0):
        weights = _shared_weights(estimator, rewards, given, clip=options.undersized == "clip")
    return pkpo_pallas.transform(
        rewards,
        None if weights is not None else jnp.asarray(given),
        where,
        estimator,
        weights=weights,
        scale=options.scale,
        undersized=options.undersized,
        dtype=options.dtype,
        interpret=options.interpret,
    )


def _launch_max_at_k(
    options: _MaxAtK, rewards: jax.Array, hidden: Sequence[jax.Array], where: jax.Array | None
) -> jax.Array:
    ks = _in_place(options, hidden)
    if not pkpo_pallas.fits(rewards.shape[1], options.interpret):
        # One number a row: there is nothing to scan.
        return xla_backend.max_at_k_rows(rewards, ks, where, dtype=options.dtype)
    weights = None
    if where is None:
        weights = [_shared_weights(MAX_AT_K, rewards, k) for k in ks]
    return pkpo_pallas.max_at_k(
        rewards,
        None if weights is not None else jnp.stack([jnp.asarray(k) for k in ks]),
        where,
        MAX_AT_K,
        weights=weights,
        dtype=options.dtype,
        interpret=options.interpret,
    )


def _transform_long(
    options: _Transform, rewards: jax.Array, k: int | jax.Array, where: jax.Array | None
) -> jax.Array:
    """XLA sorts; its second sort leads what the kernel has summed up back to the samples."""
    keys = rewards.astype(jnp.float32)
    n = xla_backend.group_sizes(keys, where)

    def sum_beneath(gaps: jax.Array, terms: jax.Array, places: jax.Array) -> jax.Array:
        sums = pkpo_pallas.prefix_sums(terms, interpret=options.interpret)
        # Nothing lies beneath the smallest.
        sums = jnp.concatenate([jnp.zeros_like(sums[:, :1]), sums], -1)
        _, out = lax.sort((places, sums), dimension=1, is_stable=False, num_keys=1)
        return out

    out = _rows.transform_rows(
        xla_backend.primitives(keys)._replace(sum_beneath=sum_beneath),
        keys,
        n,
        _weights(options.estimator, keys, n, k, where, clip=options.undersized == "clip"),
        where,
        normalized=options.estimator.normalized,
        scale=options.scale,
        undersized=options.undersized,
    )
    return out.astype(options.dtype)


def _weights(
    estimator: Estimator,
    keys: jax.Array,
    n: jax.Array,
    k: int | jax.Array,
    where: jax.Array | None,
    *,
    clip: bool,
) -> GapWeights:
    known = xla_backend.known_weights(estimator, keys, k, where, jnp.float32)
    return known or xla_backend.traced_weights(estimator, keys, n, k, clip=clip)


def _shared_weights(
    estimator: Estimator,
    rewards: jax.Array,
    k: int | jax.Array,
    *,
    clip: bool = False,
) -> GapWeights:
    """Weigh what rows of rewards (rows, N) have in common that share n and k, in float32: arrays
    (1, N−1) and (1,)."""
    keys = jnp.zeros((1, rewards.shape[1]), jnp.float32)
    n = xla_backend.group_sizes(keys, None)
    return _weights(estimator, keys, n, k, None, clip=clip)
