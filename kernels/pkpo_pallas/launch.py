"""The two functions of this package: from arrays to a launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pkpo_pallas.block import N_FACTS, Operands, Scratch, Variant
from pkpo_pallas.kernel import kernel
from pkpo_pallas.plan import LANES, PITCH, SUBLANES, TILE_ROWS, chip, plan, words
from pkpo_pallas.running_weights import LARGEST_K
from pkpo_pallas.varying import alike, shape_like
from pkpo_pallas.weights import section_size

# Numbers of given weights that scalar memory holds with room to spare.
_WEIGHTS_SIZE = 1 << 15


def fits(n: int, interpret: Any = False) -> bool:
    """Tell whether rows of n samples are sorted on chip."""
    return n <= chip(bool(interpret)).longest


def transform(
    rewards: jax.Array,
    k: jax.Array | None,
    where: jax.Array | None,
    estimator: Any,
    *,
    weights: Any,
    scale: str,
    undersized: str,
    dtype: Any,
    interpret: Any = False,
) -> jax.Array:
    """Transform rewards (rows, n) by an estimator, for a k () or (rows,): → (rows, n).

    Args:
        rewards: bool, integers or floats.
        k: whole numbers; not used where weights are given.
        where: (rows, n) bool, or None where all samples are valid.
        estimator: hashable, with the mathematics as attributes: `coefficients`, a named tuple of
          numbers over_k, over_n_minus_k, over_n_minus_1, gap_1, gap_k, gap_n, gap_nn, offset_1,
          offset_k, slope_1, slope_n, max_1, max_k, which `pkpo_pallas.running_weights` explains;
          `coefficients_at_k_1`, the same for k = 1, or None where they do not differ;
          `index_shift`, 0 or 1; `counted_from_top`, `requires_k_lt_n`, `normalized`.
        weights: None; or, for rows that share n and k, the estimator's, as arrays k_is_valid (1,)
          bool, max_coefficient (1,), offset, gap, best (1, n−1), best_of_max (1,), all 0 where the
          k is not valid.
        scale: "sum", or "mean", which is times the size of each row's group.
        undersized: what rows get whose k is not valid: "zero", "nan", or "clip", the result of the
          largest k that is; with given weights "clip" is whoever makes them's business.
        dtype: of the result.
        interpret: False, or the parameters of Pallas's interpreter.
    """
    rows, n = rewards.shape
    narrow = jnp.bfloat16 == rewards.dtype == dtype
    chosen = plan(n, rows, chip(bool(interpret)), bool(interpret), narrow)
    given = weights is not None
    variant = Variant(
        n_samples=n,
        plan=chosen,
        native_layout=where is None
        and jnp.float32 == rewards.dtype == dtype
        and not (chosen.chunked or chosen.row_major)
        and n % SUBLANES == 0
        and chosen.n_padded == n
        and rows % LANES == 0,
        n_ks=0,
        masked=where is not None,
        boolean=rewards.dtype == np.bool_,
        k="in_weights" if given else "per_row" if k is not None and k.ndim else "scalar",
        # What is in the weights need not be compiled once more for each estimator.
        estimator=None if given else estimator,
        normalized=estimator.normalized,
        range_scaled=estimator.normalized or _has_row_offset(estimator.coefficients),
        scale=scale,
        undersized="zero" if given else undersized,
    )
    ready: dict[str, jax.Array] = {}
    if given:
        zero = jnp.zeros(1, jnp.float32)
        gap, offset, best, best_of_max = (
            jnp.asarray(x, jnp.float32).reshape(-1)
            for x in (weights.gap, weights.offset, weights.best, weights.best_of_max)
        )
        sections = [(zero, gap), (zero, offset), *[(best, best_of_max)] * variant.normalized]
        numbers = jnp.concatenate(sections[0])
        behind = section_size(variant) - n
        table = jnp.concatenate([jnp.pad(jnp.concatenate(it), (0, behind)) for it in sections])
        ready["weights_ref"] = _in_rows(table) if variant.weights_in_rows else table
        if variant.ranks_apart > 1:
            # Number i of what tables hold is entry i // tables of table i % tables.
            above = variant.ranks_apart * np.arange(variant.tables * SUBLANES) + 1
            slopes = jnp.where(above < n, numbers[np.minimum(above, n - 1)], 0.0)
            ready["slopes_ref"] = _in_rows(slopes.reshape(SUBLANES, -1).T.reshape(-1))
        ready["has_offset"] = jnp.any(weights.offset != 0).astype(jnp.int32)
        ready["scalars_ref"] = _scalars([weights], jnp.nan if undersized == "nan" else 0.0)
    else:
        assert k is not None
        ready["has_offset"] = jnp.int32(1)
        ready["k_ref"] = _k_of_rows(k, rows) if k.ndim else _as_float(k)[None]
    return _launch(variant, rewards, where, ready, dtype, interpret)


def max_at_k(
    rewards: jax.Array,
    ks: jax.Array | None,
    where: jax.Array | None,
    estimator: Any,
    *,
    weights: Sequence[Any] | None,
    dtype: Any,
    interpret: Any = False,
) -> jax.Array:
    """Give the mean of the best of k of rewards (rows, n) for each k, (n_ks,): → (rows, n_ks); NaN
    where a row has fewer samples than k.

    Args: as those of `transform`, with max@k as the estimator; weights are None or one for each k.
    """
    rows, n = rewards.shape
    n_ks = len(weights) if weights is not None else ks.shape[0] if ks is not None else 0
    at_once = max(1, _WEIGHTS_SIZE // n)
    if n_ks > at_once:
        parts = [
            max_at_k(
                rewards,
                None if ks is None else ks[first : first + at_once],
                where,
                estimator,
                weights=None if weights is None else weights[first : first + at_once],
                dtype=dtype,
                interpret=interpret,
            )
            for first in range(0, n_ks, at_once)
        ]
        return jnp.concatenate(parts, -1)
    variant = Variant(
        n_samples=n,
        plan=plan(n, rows, chip(bool(interpret)), bool(interpret)),
        native_layout=False,
        n_ks=n_ks,
        masked=where is not None,
        boolean=rewards.dtype == np.bool_,
        k="in_weights" if weights is not None else "scalar",
        estimator=None if weights is not None else estimator,
        normalized=False,
        range_scaled=False,
        scale="sum",
        undersized="nan",
    )
    if weights is not None:
        zero = jnp.zeros((1, 1), jnp.float32)
        offsets = [part for one in weights for part in (zero, jnp.asarray(one.offset, jnp.float32))]
        ready = {
            "weights_ref": jnp.concatenate(offsets, -1).reshape(-1),
            "scalars_ref": _scalars(weights, jnp.nan),
        }
    else:
        assert ks is not None
        ready = {"k_ref": _as_float(ks)}
    ready["has_offset"] = jnp.int32(1)
    return _launch(variant, rewards, where, ready, dtype, interpret)


def _has_row_offset(coefficients: Any) -> bool:
    # For k = 1 it is no larger than the values are.
    c = coefficients
    return any((c.offset_1, c.offset_k, c.slope_1, c.slope_n, c.max_1, c.max_k))


def _in_rows(numbers: jax.Array) -> jax.Array:
    """(numbers,) → (numbers, 128)."""
    return jnp.broadcast_to(numbers[:, None], (numbers.size, LANES))


def _scalars(weights: Sequence[Any], undersized: float) -> jax.Array:
    """The max coefficient, and what is added to every value, one after the other."""
    scalars = [
        part
        for one in weights
        for part in (one.max_coefficient, jnp.where(one.k_is_valid, 0.0, undersized))
    ]
    return jnp.concatenate([jnp.asarray(part, jnp.float32) for part in scalars])


def _as_float(k: jax.Array) -> jax.Array:
    most = int(np.iinfo(k.dtype).max)
    return jnp.clip(k, 0, min(LARGEST_K, most)).astype(jnp.float32)


def _k_of_rows(k: jax.Array, rows: int) -> jax.Array:
    """(rows,) → (row blocks, 128), of int32: what is so already needs no pass of its own."""
    if k.dtype != np.int32:
        k = jnp.clip(k, 0, min(LARGEST_K, int(np.iinfo(k.dtype).max))).astype(jnp.int32)
    return jnp.pad(k, (0, -rows % LANES)).reshape(-1, LANES)


@partial(jax.jit, static_argnames=("variant", "dtype", "interpret"))
def _launch(
    variant: Variant,
    rewards: jax.Array,
    where: jax.Array | None,
    ready: dict[str, jax.Array],
    dtype: Any,
    interpret: Any,
) -> jax.Array:
    """Launch the kernel: rewards (rows, n) → (rows, n), or (rows, n_ks)."""
    rows, n = rewards.shape
    chosen = variant.plan
    # Mosaic has no bool in memory, and only these floats.
    if rewards.dtype == np.bool_:
        rewards = rewards.astype(jnp.int8)
    elif rewards.dtype not in (jnp.float32, jnp.bfloat16):
        rewards = rewards.astype(jnp.float32)
    result_dtype = jnp.dtype(dtype)
    if variant.n_ks or result_dtype not in (jnp.float32, jnp.bfloat16):
        result_dtype = jnp.dtype(jnp.float32)
    if where is not None:
        where = where.astype(jnp.int8)

    unit = SUBLANES * max(4 // x.dtype.itemsize for x in (rewards, where) if x is not None)
    blocks = _blocks(variant, rows, max(unit, SUBLANES * 4 // result_dtype.itemsize))
    operands = Operands(
        rewards_ref=_to_layout(variant, rewards),
        where_ref=None if where is None else _to_layout(variant, where),
        integers_ref=jnp.stack([jnp.int32(1), jnp.int32(rows), ready["has_offset"]]),
        k_ref=ready.get("k_ref"),
        weights_ref=ready.get("weights_ref"),
        slopes_ref=ready.get("slopes_ref"),
        scalars_ref=ready.get("scalars_ref"),
        inverses_ref=None if variant.k == "in_weights" else jnp.asarray(_inverses(n)),
    )
    operands = alike(operands)
    # The rest are few numbers, unless it is one for each row, or a row of each.
    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    specs = Operands(*(None if x is None else scalar for x in operands))._replace(
        rewards_ref=blocks.rewards, where_ref=None if where is None else blocks.where
    )
    if variant.k == "per_row":
        k_block = pl.BlockSpec((chosen.tiles * SUBLANES, LANES), lambda i, *_: (i, 0))
        specs = specs._replace(k_ref=k_block)
    if variant.weights_in_rows:
        specs = specs._replace(
            weights_ref=_whole(operands.weights_ref),
            slopes_ref=None if operands.slopes_ref is None else _whole(operands.slopes_ref),
        )
    semantics: Any = ("parallel", "arbitrary", "arbitrary") if chosen.chunked else ("parallel",)
    call = pl.pallas_call(
        partial(kernel, variant),
        out_shape=shape_like(blocks.out_shape, result_dtype, operands.rewards_ref),
        grid=blocks.grid,
        in_specs=(specs,),
        out_specs=blocks.out,
        scratch_shapes=(_scratch(variant, blocks.n_samples),),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=semantics,
            vmem_limit_bytes=chosen.vmem_bytes,
        ),
        interpret=interpret,
    )
    # With 64 bits Python's numbers would be int64 and float64, which Mosaic does not lower.
    with jax.enable_x64(False):
        out = call(operands)
    return _from_layout(variant, out, rows).astype(dtype)


def _whole(x: jax.Array) -> pl.BlockSpec:
    """Take all of a matrix in every grid step: it is fetched once."""
    return pl.BlockSpec(x.shape, lambda *_: (0, 0), pipeline_mode=pl.Buffered(1))


class _Blocks(NamedTuple):
    """What a grid step reads and writes."""

    grid: tuple[int, ...]
    rewards: pl.BlockSpec
    where: pl.BlockSpec
    out: pl.BlockSpec
    out_shape: tuple[int, ...]
    n_samples: int  # of a row in staging


def _blocks(variant: Variant, rows: int, unit: int) -> _Blocks:
    """Cut arrays into blocks: rows of n samples, which are laid out in whole units."""
    n, chosen = variant.n_samples, variant.plan
    block_rows = chosen.tiles * TILE_ROWS
    n_blocks = -(-rows // block_rows)
    grid: tuple[int, ...]
    out_shape: tuple[int, ...] = (rows, n) if chosen.row_major else (n, rows)
    if chosen.chunked:
        chunks = -(-n // chosen.chunk)
        n_samples, last = chunks * chosen.chunk, chunks - 1
        grid = (n_blocks, 1 if variant.n_ks else 2, chunks)
        shape = (block_rows, chosen.chunk) if chosen.row_major else (chosen.chunk, block_rows)

        def chunk(of_phase: Callable[[Any, Any], Any]) -> pl.BlockSpec:
            def index(i: Any, phase: Any, c: Any) -> tuple[Any, Any]:
                return (i, of_phase(phase, c)) if chosen.row_major else (of_phase(phase, c), i)

            return pl.BlockSpec(shape, index)

        # While values are copied out nothing new is fetched, and while rewards are copied in
        # nothing is written.
        rewards = chunk(lambda phase, c: lax.select(phase == 0, c, last))
        where = chunk(lambda phase, c: c)
        out = chunk(lambda phase, c: lax.select(phase == 0, 0, c))
    else:
        n_samples = -(-n // unit) * unit
        grid = (n_blocks,)
        if chosen.row_major:
            rewards = pl.BlockSpec((block_rows, n), lambda i: (i, 0))
        else:
            rewards = pl.BlockSpec((n_samples, block_rows), lambda i: (0, i))
        where = out = rewards
    if variant.native_layout:
        out_shape = _native_shape(n, rows)
        rewards = out = pl.BlockSpec(_native_shape(n, block_rows), lambda i: (0, i, 0))
    if variant.n_ks:
        out_shape = (variant.n_ks, -(-rows // LANES), LANES)
        shape_out = (variant.n_ks, chosen.tiles * SUBLANES, LANES)
        out = pl.BlockSpec(shape_out, lambda i, *_: (0, i, 0))
    n_samples = max(n_samples, -(-chosen.n_padded // SUBLANES) * SUBLANES)
    return _Blocks(grid, rewards, where, out, out_shape, n_samples)


def _native_shape(n: int, rows: int) -> tuple[int, int, int]:
    return n // SUBLANES, rows // LANES * SUBLANES, LANES


def _to_layout(variant: Variant, x: jax.Array) -> jax.Array:
    """Lay rows out as the kernel takes them: (rows, n) → (n, rows), or the same tile for tile."""
    rows, n = x.shape
    if variant.native_layout:
        # To the compiler no more than another name.
        x = x.T.reshape(n // SUBLANES, SUBLANES, rows // LANES, LANES)
        return x.swapaxes(1, 2).reshape(_native_shape(n, rows))
    return x if variant.plan.row_major else x.T


def _from_layout(variant: Variant, out: jax.Array, rows: int) -> jax.Array:
    """Lay a result out as its caller takes it: → (rows, n), or (rows, n_ks)."""
    n = variant.n_samples
    if variant.n_ks:
        return out.reshape(variant.n_ks, -1)[:, :rows].T
    if variant.native_layout:
        out = out.reshape(n // SUBLANES, rows // LANES, SUBLANES, LANES).swapaxes(1, 2)
        return out.reshape(n, rows).T
    return out if variant.plan.row_major else out.T


def _scratch(variant: Variant, n_samples: int) -> Scratch:
    """Ask for a kernel's memory, for rows of n_samples in staging."""
    chosen, n = variant.plan, variant.n_samples
    tile = (SUBLANES, LANES)
    float32, int32 = jnp.float32, jnp.int32
    sorts = not variant.boolean and not variant.n_ks
    looks_up = sorts and chosen.looks_up
    tables = (SUBLANES * PITCH, LANES)
    keys = (chosen.interleaved, variant.tables * chosen.runs(n), *tables) if looks_up else None
    sums = (chosen.interleaved, variant.tables, *tables) if looks_up else None
    if chosen.packs:
        sums = (1, chosen.n_padded, *tile)
    merges = not variant.boolean and chosen.run > chosen.group
    ping_pong = chosen.run if chosen.one_run else chosen.group
    staging = (n_samples // SUBLANES, chosen.tiles * SUBLANES * variant.pitch, LANES)
    buffers = (pltpu.VMEM((chosen.n_padded, *tile), float32),) * chosen.buffers
    counts = variant.boolean or bool(variant.looked_for)
    n_copies = chosen.tiles if counts and not variant.boolean else chosen.interleaved
    levels = (chosen.tiles, SUBLANES * PITCH, LANES)
    decides = sorts and not (chosen.one_run or chosen.packs)
    return Scratch(
        staging_ref=None if variant.native_layout else pltpu.VMEM(staging, float32),
        work_ref=pltpu.VMEM((n_copies, n_samples, *tile), float32),
        buffers_refs=None if variant.boolean else buffers or None,
        ping_pong_ref=pltpu.VMEM((ping_pong, *tile), float32) if merges else None,
        keys_ref=None if keys is None else pltpu.VMEM(keys, float32),
        sums_ref=None if sums is None else pltpu.VMEM(sums, float32),
        decisions_ref=pltpu.VMEM((max(1, words(n, chosen)), *tile), int32) if decides else None,
        facts_ref=pltpu.VMEM((chosen.tiles, N_FACTS, *tile), float32),
        levels_ref=pltpu.VMEM(levels, float32) if counts else None,
        given_ref=pltpu.VMEM(levels, float32) if counts else None,
        more_ref=pltpu.VMEM(tile, float32),
        ends_ref=pltpu.VMEM((3, SUBLANES**2, LANES), float32) if variant.notes_ends else None,
        flags_ref=pltpu.SMEM((1,), int32),
    )


def _inverses(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    numbers = np.arange(n, dtype=np.float64)
    return np.where(numbers > 0, 1 / np.maximum(numbers, 1), 0).astype(np.float32)
