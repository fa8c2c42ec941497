"""The Triton kernels, for JAX arrays on NVIDIA GPUs, through jax-triton.

The compiler cannot divide a kernel's rows over devices as it divides operations: arrays that are
sharded along Auto axes under jit are gathered first, so call it inside `jax.shard_map`.
"""

# Triton has no types, so its decorator makes every kernel an untyped function.
# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-incomplete-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import inspect
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
from pkpo_triton import coefficients, tables
from pkpo_triton.kernel import max_at_k_kernel, transform_kernel
from pkpo_triton.packed import packed_kernel
from pkpo_triton.packed_long import packed_long_kernel
from pkpo_triton.plan import OPTIONS, PackedPlan, Plan, packed_plan, plan
from pkpo_triton.tables import PackedWeights, has_packed_weights, packed_weights

from pkpo_kernels.maths.weights import Estimator, GapWeights

# From 0.4 on jax-triton takes apart what a kernel is compiled with and its constants, and calls
# the result's shape and dtype its type.
_TAKES_OPTIONS = "backend_options" in inspect.signature(jax_triton.triton_call).parameters
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


@triton.jit
def _packed_in_order(
    rewards_ptr, where_ptr, weights_ptr, rows_plus_1, has_offset_plus_2, max_coefficient, out_ptr,
    N_SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr, THREADS_PER_ROW: tl.constexpr,
    LEVELS: tl.constexpr, MASKED: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Call `packed_kernel` or `packed_long_kernel`."""
    entry: tl.constexpr = packed_long_kernel if LONG else packed_kernel
    entry(
        rewards_ptr=rewards_ptr,
        where_ptr=_bytes(where_ptr) if MASKED else None,
        out_ptr=out_ptr,
        weights_ptr=weights_ptr,
        n_rows=rows_plus_1 - 1,
        has_offset=has_offset_plus_2 - 2,
        max_coefficient=max_coefficient,
        N_SAMPLES=N_SAMPLES,
        BLOCK_ROWS=BLOCK_ROWS,
        THREADS_PER_ROW=THREADS_PER_ROW,
        LEVELS=LEVELS,
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
    rules: dict[str, Any] = {"masked": where is not None, "undersized": undersized}
    if isinstance(k, int) and rewards.dtype == dtype and has_packed_weights(estimator, **rules):
        packed = _packed_plan(rewards, where, k)
        if packed is not None:
            rules |= {"slots": packed.slots(n), "scale": scale}
            weights_of_k = packed_weights(estimator, n, k, **rules)
            return _packed_rows(rewards, where, weights_of_k, packed)
    static_k, dynamic_k = (k, None) if isinstance(k, int) else (None, k)
    uniform = static_k is not None and where is None
    chosen = _plan(rewards, where, dtype, uniform=uniform and not estimator.normalized)
    assert chosen is not None
    table = _table(chosen)
    if chosen.weights == "ready":
        assert static_k is not None
        of_samples = jnp.asarray(_ratios(n, static_k, estimator.index_shift, chosen))
    else:
        of_samples = _of_samples(chosen, table)
    kind = "int" if dynamic_k is None else "row" if dynamic_k.ndim else "scalar"
    numbers = coefficients.HostWeights(0.0, 0.0, 0.0, 0.0, 0.0)
    if static_k is not None and where is None:
        numbers = coefficients.host_weights(estimator, n, static_k, scale=scale)
    has_offset = coefficients.has_offset(estimator, None if undersized == "clip" else static_k)
    return _triton_call(
        rewards,
        rewards if where is None else where,
        rewards if dynamic_k is None else dynamic_k,
        jnp.asarray(np.array(coefficients.both_coefficients(estimator), np.float32)),
        table,
        of_samples,
        rows + 1,
        (static_k or 0) + 2,
        estimator.requires_k_lt_n + 2,
        coefficients.UNDERSIZED.index(undersized) + 2,
        (scale == "mean") + 2,
        has_offset + 2,
        estimator.counted_from_top + 2,
        -numbers.first_ratio,
        numbers.max_coefficient,
        -numbers.gap,
        -numbers.offset,
        -numbers.slope,
        kernel=_transform_in_order,
        result=jax.ShapeDtypeStruct((rows, n), dtype),
        K=kind,
        WEIGHTS=chosen.weights,
        INDEX_SHIFT=estimator.index_shift,
        RANGE_SCALED=coefficients.needs_range_scale(estimator, scale=scale),
        NORMALIZED=estimator.normalized,
        max_registers=chosen.max_registers(
            known_k=static_k is not None, normalized=estimator.normalized
        ),
        **_constants(rewards, where, table, chosen),
    )


def _packed_rows(
    rewards: jax.Array, where: jax.Array | None, weights: PackedWeights, chosen: PackedPlan
) -> jax.Array:
    """Transform rows by the packed kernel: rewards (rows, N), where (rows, N) or None → (rows,
    N)."""
    rows, n = rewards.shape
    return _triton_call(
        rewards,
        rewards if where is None else where,
        jnp.asarray(_packed_table(weights)),
        rows + 1,
        weights.has_offset + 2,
        weights.max_coefficient,
        kernel=_packed_in_order,
        result=jax.ShapeDtypeStruct((rows, n), rewards.dtype),
        N_SAMPLES=n,
        BLOCK_ROWS=chosen.block_rows,
        THREADS_PER_ROW=chosen.threads_per_row,
        LEVELS=chosen.levels,
        MASKED=where is not None,
        LONG=chosen.is_long,
        grid=(-(-rows // chosen.block_rows),),
        num_warps=chosen.num_warps,
        max_registers=chosen.max_registers,
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
    chosen = _plan(rewards, where, dtype, uniform=False)
    assert chosen is not None
    table = _table(chosen)
    every = [jnp.int32(k) if isinstance(k, int) else _int32(k) for k in ks]
    return _triton_call(
        rewards,
        rewards if where is None else where,
        jnp.stack(every),
        table,
        _of_samples(chosen, table),
        rows + 1,
        len(every) + 1,
        kernel=_max_at_k_in_order,
        result=jax.ShapeDtypeStruct((rows, len(every)), dtype),
        **_constants(rewards, where, table, chosen),
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


def _packed_plan(rewards: jax.Array, where: jax.Array | None, k: int) -> PackedPlan | None:
    # JAX's arrays are whole and aligned, and jax-triton is asked for NVIDIA's GPUs alone.
    usual = rewards.dtype in (np.float32, jnp.bfloat16, np.float16)
    backend = "" if triton.knobs.runtime.interpret else "cuda"
    rest: Any = {"itemsize": rewards.dtype.itemsize, "masked": where is not None, "k": k}
    return packed_plan(rewards.shape[1], usual=usual, backend=backend, **rest)


def _table(chosen: Plan) -> jax.Array:
    return jnp.asarray(_factorials(tables.factorials_size(chosen.samples)))


def _of_samples(chosen: Plan, table: jax.Array) -> jax.Array:
    """Get what a running product reads for each sample; a placeholder where it reads nothing."""
    if chosen.threads_per_row == 1:
        return table
    return jnp.asarray(_inverses(chosen.samples_per_thread))


@lru_cache
def _factorials(size: int) -> np.ndarray[Any, Any]:
    return np.array(tables.factorials(size), np.float32)


@lru_cache
def _packed_table(weights: PackedWeights) -> np.ndarray[Any, Any]:
    return np.array(getattr(tables, weights.table)(*weights.arguments), np.float32)


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
    }


def _triton_call(
    *args: Any, result: Any, max_registers: int | None = None, **named: Any
) -> jax.Array:
    """Have jax-triton, whichever it is, launch a kernel as `pkpo_triton` compiles it. Before 0.4
    there is no way to ask for fewer registers."""
    if _TAKES_OPTIONS:
        options = OPTIONS | {"maxnreg": max_registers}
        named |= {"out_type": result, "backend_options": options}
    else:
        named |= {"out_shape": result, **OPTIONS}
    out: jax.Array = jax_triton.triton_call(*args, num_stages=1, **named)
    # Inside shard_map a result differs between devices where an operand does; jax-triton does not
    # say so of a kernel's.
    operands = [x for x in args if isinstance(x, jax.Array)]
    axes = frozenset[Any]().union(*map(_axes_it_varies_over, operands)) - _axes_it_varies_over(out)
    varying: Callable[..., jax.Array] = lax.pcast
    return varying(out, tuple(axes), to="varying") if axes else out


def _axes_it_varies_over(x: jax.Array) -> frozenset[Any]:
    # Under its name of JAX 0.10 and newer, and of the older ones.
    kind = getattr(jax.typeof(x), "manual_axis_type", jax.typeof(x))
    return frozenset(getattr(kind, "varying", getattr(kind, "vma", ())))
