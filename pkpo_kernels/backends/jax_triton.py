"""The Triton kernels behind the API, for JAX arrays on NVIDIA GPUs, through jax-triton.

Where a program runs is known when it is lowered, not when it is traced: for anything but CUDA, and
for rows that no kernel holds, these functions are those of `portable_xla`. They batch under vmap,
by more rows. The compiler cannot divide a kernel's rows over devices as it divides operations:
arrays that are sharded under jit are gathered first, so call it inside `jax.shard_map`.
"""

# Triton has no types, so its decorator makes every kernel an untyped function.
# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-incomplete-defs=False, disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax_triton
import numpy as np
import triton
import triton.language as tl
from jax import lax
from pkpo_triton import coefficients, tables
from pkpo_triton.kernel import max_at_k_kernel, transform_kernel
from pkpo_triton.plan import OPTIONS, Plan, plan

from pkpo_kernels.backends import xla as xla_backend
from pkpo_kernels.backends.batched_rows import max_at_k_of_rows, transform_of_rows
from pkpo_kernels.maths.weights import Estimator

# Larger than any row: what a k may be cut to before it becomes an int32.
_LARGE = 1 << 30


class _Transform(NamedTuple):
    """What a compiled transform is compiled for; k where it is a constant of the program."""

    estimator: Estimator
    scale: str
    undersized: str
    dtype: np.dtype[Any]
    k: int | None


class _MaxAtK(NamedTuple):
    """None in ks stands for the next of those that are operands."""

    dtype: np.dtype[Any]
    ks: tuple[int | None, ...]


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
    if not _on_chip(rewards, where, dtype):
        return xla_backend.transform_rows(
            rewards,
            k,
            where,
            estimator=estimator,
            scale=scale,
            undersized=undersized,
            dtype=dtype,
        )
    known = _constant_of_the_program(rewards, k)
    options = _Transform(estimator, scale, undersized, jnp.dtype(dtype), known)
    hidden_k = jnp.asarray(k) if known is None else None
    return _transform_rows(lax.stop_gradient(rewards), hidden_k, where, options)


def max_at_k_rows(
    rewards: jax.Array,
    ks: Sequence[int | jax.Array],
    where: jax.Array | None,
    *,
    dtype: Any,
) -> jax.Array:
    """rewards (rows, N), each k an integer or (), where (rows, N) → (rows, len(ks)), a constant."""
    if not _on_chip(rewards, where, dtype):
        return xla_backend.max_at_k_rows(rewards, ks, where, dtype=dtype)
    known = tuple(_constant_of_the_program(rewards, k) for k in ks)
    hidden = [jnp.asarray(k) for k, one in zip(ks, known, strict=True) if one is None]
    options = _MaxAtK(jnp.dtype(dtype), known)
    return _max_at_k_rows(lax.stop_gradient(rewards), hidden, where, options)


def _on_chip(rewards: jax.Array, where: jax.Array | None, dtype: Any) -> bool:
    rows, n = rewards.shape
    # An export's symbolic sizes are no integers, and a kernel's grid is made of integers.
    if not (isinstance(rows, int) and isinstance(n, int) and rows > 0 and n > 0):
        return False
    return _plan(rewards, where, dtype, uniform=False) is not None


def _constant_of_the_program(rewards: jax.Array, k: int | jax.Array) -> int | None:
    # Within somebody's jit an integer is a constant anyway, and the kernel is faster for it.
    # Outside, it would mean another program for every k.
    return k if isinstance(k, int) and isinstance(rewards, jax.core.Tracer) else None


# The way from a call to a kernel: one program, more rows for vmap, then the choice by platform.


@partial(jax.jit, static_argnames=("options",))
def _transform_rows(
    rewards: jax.Array, k: jax.Array | None, where: jax.Array | None, options: _Transform
) -> jax.Array:
    def by_platform(*operands: Any) -> jax.Array:
        return lax.platform_dependent(
            *operands,
            cuda=partial(_launch_transform, options),
            default=partial(_portable_transform, options),
        )

    return transform_of_rows(by_platform)(rewards, k, where)


@partial(jax.jit, static_argnames=("options",))
def _max_at_k_rows(
    rewards: jax.Array, ks: Sequence[jax.Array], where: jax.Array | None, options: _MaxAtK
) -> jax.Array:
    def by_platform(*operands: Any) -> jax.Array:
        return lax.platform_dependent(
            *operands,
            cuda=partial(_launch_max_at_k, options),
            default=partial(_portable_max_at_k, options),
        )

    return max_at_k_of_rows(by_platform)(rewards, ks, where)


def _portable_transform(
    options: _Transform, rewards: jax.Array, k: jax.Array | None, where: jax.Array | None
) -> jax.Array:
    known_or_not = options.k if k is None else k
    assert known_or_not is not None
    return xla_backend.transform_rows(
        rewards,
        known_or_not,
        where,
        estimator=options.estimator,
        scale=options.scale,
        undersized=options.undersized,
        dtype=options.dtype,
    )


def _portable_max_at_k(
    options: _MaxAtK, rewards: jax.Array, ks: Sequence[jax.Array], where: jax.Array | None
) -> jax.Array:
    hidden = iter(ks)
    every = [next(hidden) if k is None else k for k in options.ks]
    return xla_backend.max_at_k_rows(rewards, every, where, dtype=options.dtype)


# jax-triton takes a kernel's outputs behind all its inputs, and hands no None over, so a kernel
# here only puts its arguments in the order of pkpo_triton's. A number that is 1 jax-triton makes a
# constant, and compiles another kernel for it: integers arrive with something added, and floats
# that are never negative with their sign changed. The length of a row is a constant of the program,
# so here it is one of the kernel, which then knows how rows are aligned.


@triton.jit
def _bytes(pointer):
    """bools as the bytes that they are."""
    if pointer.dtype.element_ty == tl.int1:
        pointer = pointer.to(tl.pointer_type(tl.uint8))
    return pointer


@triton.jit
def _transform_in_order(
    rewards_ptr, where_ptr, k_ptr, coefficients_ptr, factorials_ptr, samples_ptr, rows_plus_1,
    k_plus_2, requires_k_lt_n_plus_2, undersized_plus_2, by_mean_plus_2, has_offset_plus_2,
    counted_from_top_plus_2, minus_first_ratio, max_coefficient, minus_gap, minus_offset,
    minus_slope, out_ptr,
    N: tl.constexpr, FACTORIALS_SIZE: tl.constexpr, K: tl.constexpr, MASKED: tl.constexpr,
    WEIGHTS: tl.constexpr, INDEX_SHIFT: tl.constexpr, RANGE_SCALED: tl.constexpr,
    NORMALIZED: tl.constexpr, IS_BOOL: tl.constexpr, CONTIGUOUS: tl.constexpr,
    PADDED: tl.constexpr, SAMPLES_PER_THREAD: tl.constexpr, THREADS_PER_ROW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    """Call `transform_kernel`."""
    transform_kernel(
        rewards_ptr=_bytes(rewards_ptr),
        where_ptr=_bytes(where_ptr),
        k_ptr=k_ptr,
        out_ptr=out_ptr,
        coefficients_ptr=coefficients_ptr,
        factorials_ptr=factorials_ptr,
        samples_ptr=samples_ptr,
        factorials_size=FACTORIALS_SIZE,
        n_rows=rows_plus_1 - 1,
        n_samples=N,
        k=k_plus_2 - 2,
        requires_k_lt_n=requires_k_lt_n_plus_2 - 2,
        undersized=undersized_plus_2 - 2,
        by_mean=by_mean_plus_2 - 2,
        has_offset=has_offset_plus_2 - 2,
        counted_from_top=counted_from_top_plus_2 - 2,
        rewards_stride_row=N,
        rewards_stride_sample=1,
        where_stride_row=N,
        where_stride_sample=1,
        out_stride_row=N,
        out_stride_sample=1,
        first_ratio=-minus_first_ratio,
        max_coefficient=max_coefficient,
        gap=-minus_gap,
        offset=-minus_offset,
        slope=-minus_slope,
        K=K,
        MASKED=MASKED,
        WEIGHTS=WEIGHTS,
        INDEX_SHIFT=INDEX_SHIFT,
        RANGE_SCALED=RANGE_SCALED,
        NORMALIZED=NORMALIZED,
        IS_BOOL=IS_BOOL,
        CONTIGUOUS=CONTIGUOUS,
        PADDED=PADDED,
        SAMPLES_PER_THREAD=SAMPLES_PER_THREAD,
        THREADS_PER_ROW=THREADS_PER_ROW,
        BLOCK_ROWS=BLOCK_ROWS,
        VECTOR=VECTOR,
        WARP=WARP,
    )


@triton.jit
def _max_at_k_in_order(
    rewards_ptr, where_ptr, ks_ptr, factorials_ptr, samples_ptr, rows_plus_1, n_ks_plus_1, out_ptr,
    N: tl.constexpr, FACTORIALS_SIZE: tl.constexpr, MASKED: tl.constexpr, IS_BOOL: tl.constexpr,
    CONTIGUOUS: tl.constexpr, PADDED: tl.constexpr, SAMPLES_PER_THREAD: tl.constexpr,
    THREADS_PER_ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr,
    WARP: tl.constexpr,
):  # fmt: skip
    """Call `max_at_k_kernel`."""
    max_at_k_kernel(
        rewards_ptr=_bytes(rewards_ptr),
        where_ptr=_bytes(where_ptr),
        ks_ptr=ks_ptr,
        out_ptr=out_ptr,
        factorials_ptr=factorials_ptr,
        samples_ptr=samples_ptr,
        factorials_size=FACTORIALS_SIZE,
        n_rows=rows_plus_1 - 1,
        n_samples=N,
        n_ks=n_ks_plus_1 - 1,
        rewards_stride_row=N,
        rewards_stride_sample=1,
        where_stride_row=N,
        where_stride_sample=1,
        MASKED=MASKED,
        IS_BOOL=IS_BOOL,
        CONTIGUOUS=CONTIGUOUS,
        PADDED=PADDED,
        SAMPLES_PER_THREAD=SAMPLES_PER_THREAD,
        THREADS_PER_ROW=THREADS_PER_ROW,
        BLOCK_ROWS=BLOCK_ROWS,
        VECTOR=VECTOR,
        WARP=WARP,
    )


def _launch_transform(
    options: _Transform, rewards: jax.Array, k: jax.Array | None, where: jax.Array | None
) -> jax.Array:
    rows, n = rewards.shape
    estimator, scale = options.estimator, options.scale
    uniform = options.k is not None and where is None
    chosen = _plan(rewards, where, options.dtype, uniform=uniform and not estimator.normalized)
    assert chosen is not None
    table = _table(chosen)
    if chosen.weights == "ready":
        assert options.k is not None
        of_samples = jnp.asarray(_ratios(n, options.k, estimator.index_shift, chosen))
    else:
        of_samples = _of_samples(chosen, table)
    kind = "int" if k is None else "row" if k.ndim else "scalar"
    static_k = None if options.undersized == "clip" else options.k
    weights = coefficients.HostWeights(0.0, 0.0, 0.0, 0.0, 0.0)
    if options.k is not None and where is None:
        weights = coefficients.host_weights(estimator, n, options.k, scale=scale)
    return _varying_as(
        (rewards, k, where),
        jax_triton.triton_call(
            rewards,
            rewards if where is None else where,
            rewards if k is None else k,
            jnp.asarray(np.array(coefficients.both_coefficients(estimator), np.float32)),
            table,
            of_samples,
            rows + 1,
            (options.k or 0) + 2,
            estimator.requires_k_lt_n + 2,
            coefficients.UNDERSIZED.index(options.undersized) + 2,
            (scale == "mean") + 2,
            coefficients.has_offset(estimator, static_k) + 2,
            estimator.counted_from_top + 2,
            -weights.first_ratio,
            weights.max_coefficient,
            -weights.gap,
            -weights.offset,
            -weights.slope,
            kernel=_transform_in_order,
            out_shape=jax.ShapeDtypeStruct((rows, n), options.dtype),
            K=kind,
            WEIGHTS=chosen.weights,
            INDEX_SHIFT=estimator.index_shift,
            RANGE_SCALED=coefficients.needs_range_scale(estimator, scale=scale),
            NORMALIZED=estimator.normalized,
            **_constants(rewards, where, table, chosen),
        ),
    )


def _launch_max_at_k(
    options: _MaxAtK, rewards: jax.Array, ks: Sequence[jax.Array], where: jax.Array | None
) -> jax.Array:
    rows = rewards.shape[0]
    chosen = _plan(rewards, where, options.dtype, uniform=False)
    assert chosen is not None
    table = _table(chosen)
    hidden = iter(ks)
    every = [jnp.int32(k) if k is not None else _int32(next(hidden)) for k in options.ks]
    return _varying_as(
        (rewards, ks, where),
        jax_triton.triton_call(
            rewards,
            rewards if where is None else where,
            jnp.stack(every),
            table,
            _of_samples(chosen, table),
            rows + 1,
            len(every) + 1,
            kernel=_max_at_k_in_order,
            out_shape=jax.ShapeDtypeStruct((rows, len(every)), options.dtype),
            **_constants(rewards, where, table, chosen),
        ),
    )


def _int32(k: jax.Array) -> jax.Array:
    """Any integer, such that one beyond every row stays beyond every row."""
    if jnp.iinfo(k.dtype).max > _LARGE:
        k = jnp.clip(k, 0, _LARGE)
    return k.astype(jnp.int32)


def _plan(rewards: jax.Array, where: jax.Array | None, dtype: Any, *, uniform: bool) -> Plan | None:
    if np.float64 in (dtype, rewards.dtype):  # the kernels compute in float32
        return None
    itemsize = max(rewards.dtype.itemsize, np.dtype(dtype).itemsize)
    return plan(rewards.shape[1], itemsize, masked=where is not None, uniform=uniform)


def _table(chosen: Plan) -> jax.Array:
    return jnp.asarray(_factorials(tables.factorials_size(chosen.samples)))


def _of_samples(chosen: Plan, table: jax.Array) -> jax.Array:
    """What the chain reads for each sample; anything where it reads nothing."""
    if chosen.threads_per_row == 1:
        return table
    return jnp.asarray(_inverses(chosen.samples_per_thread))


@lru_cache
def _factorials(size: int) -> np.ndarray[Any, Any]:
    return np.array(tables.factorials(size), np.float32)


@lru_cache
def _inverses(samples_per_thread: int) -> np.ndarray[Any, Any]:
    return np.array(tables.inverses(samples_per_thread), np.float32)


@lru_cache
def _ratios(n: int, k: int, index_shift: int, chosen: Plan) -> np.ndarray[Any, Any]:
    numbers = tables.ratios(n, k, index_shift, chosen.samples_per_thread, chosen.threads_per_row)
    return np.array(numbers, np.float32)


def _constants(
    rewards: jax.Array, where: jax.Array | None, table: jax.Array, chosen: Plan
) -> dict[str, Any]:
    rows, n = rewards.shape
    return {
        "N": n,
        "FACTORIALS_SIZE": table.shape[1],
        "MASKED": where is not None,
        "IS_BOOL": rewards.dtype == np.bool_,
        "CONTIGUOUS": chosen.threads_per_row == 1,
        "PADDED": chosen.samples > n,
        "SAMPLES_PER_THREAD": chosen.samples_per_thread,
        "THREADS_PER_ROW": chosen.threads_per_row,
        "BLOCK_ROWS": chosen.block_rows,
        "VECTOR": chosen.vector,
        "WARP": chosen.warp,
        "grid": (-(-rows // chosen.block_rows),),
        "num_warps": chosen.num_warps,
        "num_stages": 1,
        **OPTIONS,
    }


def _varying_as(operands: Any, out: jax.Array) -> jax.Array:
    """Inside shard_map a result differs between devices where an operand does; jax-triton does not
    say so of a kernel's."""
    axes = frozenset[Any]().union(*map(_axes_it_varies_over, jax.tree.leaves(operands)))
    axes -= _axes_it_varies_over(out)
    if not axes:
        return out
    varying: Callable[..., jax.Array] = lax.pcast
    return varying(out, tuple(axes), to="varying")


def _axes_it_varies_over(x: jax.Array) -> frozenset[Any]:
    # Under its name of JAX 0.10 and newer, and of the older ones.
    kind = getattr(jax.typeof(x), "manual_axis_type", jax.typeof(x))
    return frozenset(getattr(kind, "varying", getattr(kind, "vma", ())))
