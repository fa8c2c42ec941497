"""The Triton kernels, for JAX arrays on NVIDIA GPUs, through jax-triton.

The compiler cannot divide a kernel's rows over devices as it divides operations: arrays that are
sharded along Auto axes under jit are gathered first, so call it inside `jax.shard_map`.
"""

# Triton has no types, so its decorator makes every kernel an untyped function.
# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-incomplete-defs=False, disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import jax_triton
import numpy as np
import triton
import triton.language as tl
from jax import lax
from pkpo_triton import weights as tables
from pkpo_triton.kernels import max_at_k_kernel, transform_kernel
from pkpo_triton.plan import OPTIONS, Plan, plan
from pkpo_triton.weights import Weights

from pkpo_kernels.backends.fused_weights import kernel_weights
from pkpo_kernels.maths.weights import Estimator, GapWeights

# Larger than any row: what a k may be cut to before it becomes an int32.
_LARGE = 1 << 30


def fits(rewards: jax.Array, where: jax.Array | None, dtype: Any) -> bool:
    """Whether rewards (rows, N) are sorted on chip."""
    return _plan(rewards, where, dtype, uniform=False) is not None


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
    rewards_ptr, where_ptr, k_ptr, form_ptr, table_ptr, sample_ptr, rows_plus_1, k_plus_2,
    spared_plus_2, undersized_plus_2, by_mean_plus_2, has_constant_plus_2, mirror_plus_2,
    minus_first, anchor, minus_gap, minus_below, minus_slope, out_ptr,
    N: tl.constexpr, TABLE_SIZE: tl.constexpr, K: tl.constexpr, MASKED: tl.constexpr,
    WEIGHTS: tl.constexpr, LAG: tl.constexpr, SCALED: tl.constexpr, STANDARDISED: tl.constexpr,
    COUNT_ONLY: tl.constexpr, CONTIGUOUS: tl.constexpr, PADDED: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr,
    WARP: tl.constexpr,
):  # fmt: skip
    transform_kernel(
        rewards_ptr=_bytes(rewards_ptr),
        where_ptr=_bytes(where_ptr),
        k_ptr=k_ptr,
        out_ptr=out_ptr,
        form_ptr=form_ptr,
        table_ptr=table_ptr,
        sample_ptr=sample_ptr,
        table_size=TABLE_SIZE,
        n_rows=rows_plus_1 - 1,
        n_samples=N,
        k=k_plus_2 - 2,
        spared=spared_plus_2 - 2,
        undersized=undersized_plus_2 - 2,
        by_mean=by_mean_plus_2 - 2,
        has_constant=has_constant_plus_2 - 2,
        mirror=mirror_plus_2 - 2,
        rewards_row=N,
        rewards_sample=1,
        where_row=N,
        where_sample=1,
        out_row=N,
        out_sample=1,
        first=-minus_first,
        anchor=anchor,
        gap=-minus_gap,
        below=-minus_below,
        slope=-minus_slope,
        K=K,
        MASKED=MASKED,
        WEIGHTS=WEIGHTS,
        LAG=LAG,
        SCALED=SCALED,
        STANDARDISED=STANDARDISED,
        COUNT_ONLY=COUNT_ONLY,
        CONTIGUOUS=CONTIGUOUS,
        PADDED=PADDED,
        CHUNK=CHUNK,
        LANES=LANES,
        BLOCK_ROWS=BLOCK_ROWS,
        VECTOR=VECTOR,
        WARP=WARP,
    )


@triton.jit
def _max_at_k_in_order(
    rewards_ptr, where_ptr, ks_ptr, table_ptr, sample_ptr, rows_plus_1, n_ks_plus_1, out_ptr,
    N: tl.constexpr, TABLE_SIZE: tl.constexpr, MASKED: tl.constexpr, COUNT_ONLY: tl.constexpr,
    CONTIGUOUS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    max_at_k_kernel(
        rewards_ptr=_bytes(rewards_ptr),
        where_ptr=_bytes(where_ptr),
        ks_ptr=ks_ptr,
        out_ptr=out_ptr,
        table_ptr=table_ptr,
        sample_ptr=sample_ptr,
        table_size=TABLE_SIZE,
        n_rows=rows_plus_1 - 1,
        n_samples=N,
        n_ks=n_ks_plus_1 - 1,
        rewards_row=N,
        rewards_sample=1,
        where_row=N,
        where_sample=1,
        MASKED=MASKED,
        COUNT_ONLY=COUNT_ONLY,
        CONTIGUOUS=CONTIGUOUS,
        PADDED=PADDED,
        CHUNK=CHUNK,
        LANES=LANES,
        BLOCK_ROWS=BLOCK_ROWS,
        VECTOR=VECTOR,
        WARP=WARP,
    )


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
    """Transform rows: rewards (rows, N), k an integer, () or (rows,), where (rows, N) or None →
    (rows, N) of dtype. The kernels have weights of their own."""
    rows, n = rewards.shape
    numbers = kernel_weights(estimator, Weights)
    by_mean = scale == "mean"
    compute = _compute_dtype(rewards, dtype)
    static_k = k if isinstance(k, int) else None
    uniform = static_k is not None and where is None
    chosen = _plan(rewards, where, dtype, uniform=uniform and not numbers.standardised)
    assert chosen is not None
    table = _table(chosen, compute)
    if chosen.weights == "ready":
        assert static_k is not None
        of_samples = jnp.asarray(_ratios(n, static_k, numbers.lag, chosen, compute))
    else:
        of_samples = _of_samples(chosen, table)
    kind = "int" if isinstance(k, int) else "row" if k.ndim else "scalar"
    known_k = None if undersized == "clip" else static_k
    anchor, gap, below, slope, first = 0.0, 0.0, 0.0, 0.0, 0.0
    if static_k is not None and where is None:
        times = n if by_mean else 1
        anchor, gap, below, slope = (times * x for x in numbers.scalars(n, static_k))
        first = static_k / n * ((n - static_k) / max(n - 1, 1) if numbers.lag else 1.0)
    return _varying_as(
        (rewards, None if isinstance(k, int) else k, where),
        jax_triton.triton_call(
            rewards,
            rewards if where is None else where,
            rewards if isinstance(k, int) else k,
            jnp.asarray(np.array([numbers.form, numbers.form_at_1], compute)),
            table,
            of_samples,
            rows + 1,
            (static_k or 0) + 2,
            numbers.spared + 2,
            tables.UNDERSIZED.index(undersized) + 2,
            by_mean + 2,
            numbers.has_constant(known_k) + 2,
            numbers.mirror + 2,
            -first,
            anchor,
            -gap,
            -below,
            -slope,
            kernel=_transform_in_order,
            out_shape=jax.ShapeDtypeStruct((rows, n), dtype),
            K=kind,
            WEIGHTS=chosen.weights,
            LAG=numbers.lag,
            SCALED=numbers.needs_range_scale(by_mean=by_mean),
            STANDARDISED=numbers.standardised,
            **_constants(rewards, where, table, chosen),
        ),
    )


def max_at_k_rows(
    rewards: jax.Array,
    ks: Sequence[int | jax.Array],
    where: jax.Array | None,
    *,
    weights: Sequence[GapWeights | None],
    dtype: Any,
) -> jax.Array:
    """Estimate the best of each k: rewards (rows, N), each k an integer or (), where (rows, N) or
    None → (rows, len(ks)) of dtype."""
    rows = rewards.shape[0]
    compute = _compute_dtype(rewards, dtype)
    chosen = _plan(rewards, where, dtype, uniform=False)
    assert chosen is not None
    table = _table(chosen, compute)
    every = [jnp.int32(k) if isinstance(k, int) else _int32(k) for k in ks]
    return _varying_as(
        (rewards, every, where),
        jax_triton.triton_call(
            rewards,
            rewards if where is None else where,
            jnp.stack(every),
            table,
            _of_samples(chosen, table),
            rows + 1,
            len(every) + 1,
            kernel=_max_at_k_in_order,
            out_shape=jax.ShapeDtypeStruct((rows, len(every)), dtype),
            **_constants(rewards, where, table, chosen),
        ),
    )


def _int32(k: jax.Array) -> jax.Array:
    """Any integer, such that one beyond every row stays beyond every row."""
    if jnp.iinfo(k.dtype).max > _LARGE:
        k = jnp.clip(k, 0, _LARGE)
    return k.astype(jnp.int32)


def _compute_dtype(rewards: jax.Array, dtype: Any) -> np.dtype[Any]:
    return np.dtype(np.float64 if np.float64 in (dtype, rewards.dtype) else np.float32)


def _plan(rewards: jax.Array, where: jax.Array | None, dtype: Any, *, uniform: bool) -> Plan | None:
    wide = _compute_dtype(rewards, dtype) == np.float64
    itemsize = max(rewards.dtype.itemsize, np.dtype(dtype).itemsize)
    return plan(rewards.shape[1], itemsize, wide=wide, masked=where is not None, uniform=uniform)


def _table(chosen: Plan, compute: np.dtype[Any]) -> jax.Array:
    return jnp.asarray(_factorials(tables.factorials_size(chosen.chunk * chosen.lanes), compute))


def _of_samples(chosen: Plan, table: jax.Array) -> jax.Array:
    """What the chain reads for each sample; anything where it reads nothing."""
    return jnp.asarray(_inverses(chosen.chunk, table.dtype)) if chosen.lanes > 1 else table


@lru_cache
def _factorials(size: int, compute: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.array(tables.factorials(size), compute)


@lru_cache
def _inverses(chunk: int, compute: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.array(tables.inverses(chunk), compute)


@lru_cache
def _ratios(n: int, k: int, lag: int, chosen: Plan, compute: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.array(tables.ratios(n, k, lag, chosen.chunk, chosen.lanes), compute)


def _constants(
    rewards: jax.Array, where: jax.Array | None, table: jax.Array, chosen: Plan
) -> dict[str, Any]:
    rows, n = rewards.shape
    return {
        "N": n,
        "TABLE_SIZE": table.shape[1],
        "MASKED": where is not None,
        "COUNT_ONLY": rewards.dtype == np.bool_,
        "CONTIGUOUS": chosen.lanes == 1,
        "PADDED": chosen.chunk * chosen.lanes > n,
        "CHUNK": chosen.chunk,
        "LANES": chosen.lanes,
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
