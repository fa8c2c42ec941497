"""The two functions of this package: from arrays to a launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pkpo_pallas.kernels import FACTS, LARGEST_K, Operands, Scratch, Variant, kernel
from pkpo_pallas.plan import LANES, PITCH, SUBLANES, TILE_ROWS, chip, plan, words
from pkpo_pallas.weights import Table, Weights

# Numbers of a table that scalar memory holds with room to spare.
_TABLE_SIZE = 1 << 15


def fits(n: int, interpret: Any = False) -> bool:
    """Whether rows of n samples are sorted on chip."""
    return n <= chip(bool(interpret)).longest


def transform(
    rewards: jax.Array,
    k: jax.Array | None,
    where: jax.Array | None,
    *,
    weights: Weights,
    table: Table | None,
    by_mean: bool,
    undersized: str,
    dtype: Any,
    interpret: Any = False,
) -> jax.Array:
    """An estimator's values, (rows, n)."""
    rows, n = rewards.shape
    chosen = plan(n, rows, chip(bool(interpret)), bool(interpret))
    variant = Variant(
        n=n,
        plan=chosen,
        as_it_lies=where is None
        and jnp.float32 == rewards.dtype == dtype
        and not (chosen.chunked or chosen.row_major)
        and n % SUBLANES == 0
        and chosen.samples == n
        and rows % LANES == 0,
        n_ks=0,
        masked=where is not None,
        counted=rewards.dtype == np.bool_,
        k="table" if table is not None else "row" if k is not None and k.ndim else "scalar",
        lag=weights.lag,
        mirror=weights.mirror,
        spared=weights.spared,
        standardised=weights.standardised,
        row_offset=weights.row_offset,
        by_mean=by_mean,
        undersized=undersized,
    )
    if table is not None:
        # All else is in the table.
        variant = variant._replace(lag=0, mirror=0, spared=0, undersized="zero")
        zero = jnp.zeros(1, jnp.float32)
        given = jnp.concatenate([zero, table.gap, zero, table.below, table.best])
        otherwise = jnp.where(table.admitted, 0.0, jnp.nan if undersized == "nan" else 0.0)
        scalars = jnp.stack([table.anchor, otherwise.astype(jnp.float32)])
        ready = {"table": given, "scalars": scalars}
    else:
        assert k is not None
        ready = {
            "k": _k_of_rows(k, rows) if k.ndim else _as_float(k)[None],
            "form": _form(weights),
        }
    return _launch(variant, rewards, where, ready, dtype, interpret)


def max_at_k(
    rewards: jax.Array,
    ks: Any,
    where: jax.Array | None,
    *,
    weights: Weights,
    tables: Sequence[Table] | None,
    dtype: Any,
    interpret: Any = False,
) -> jax.Array:
    """The mean of the best of k for each k, (rows, number of ks); NaN where a row has fewer samples
    than k."""
    rows, n = rewards.shape
    chosen = plan(n, rows, chip(bool(interpret)), bool(interpret))
    count = len(tables) if tables is not None else ks.shape[0]
    at_once = max(1, _TABLE_SIZE // n)
    if count > at_once:
        parts = [
            max_at_k(
                rewards,
                None if ks is None else ks[first : first + at_once],
                where,
                weights=weights,
                tables=None if tables is None else tables[first : first + at_once],
                dtype=dtype,
                interpret=interpret,
            )
            for first in range(0, count, at_once)
        ]
        return jnp.concatenate(parts, -1)
    variant = Variant(
        n=n,
        plan=chosen,
        as_it_lies=False,
        n_ks=count,
        masked=where is not None,
        counted=rewards.dtype == np.bool_,
        k="table" if tables is not None else "scalar",
        lag=weights.lag,
        mirror=weights.mirror,
        spared=weights.spared,
        standardised=False,
        row_offset=weights.row_offset,
        by_mean=False,
        undersized="nan",
    )
    if tables is not None:
        zero = jnp.zeros(1, jnp.float32)
        below = [part for table in tables for part in (zero, table.below)]
        scalars = [
            part
            for table in tables
            for part in (table.anchor, jnp.where(table.admitted, 0.0, jnp.nan))
        ]
        ready = {
            "table": jnp.concatenate(below),
            "scalars": jnp.stack(scalars).astype(jnp.float32),
        }
    else:
        ready = {"k": _as_float(ks), "form": _form(weights)}
    return _launch(variant, rewards, where, ready, dtype, interpret)


def _as_float(k: jax.Array) -> jax.Array:
    most = int(np.iinfo(k.dtype).max)
    return jnp.clip(k, 0, min(LARGEST_K, most)).astype(jnp.float32)


def _form(weights: Weights) -> jax.Array:
    return jnp.asarray([*weights.form, *weights.form_at_1], jnp.float32)


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
    rows, n = rewards.shape
    chosen = variant.plan
    # Mosaic has no bool in memory, and only these floats.
    if rewards.dtype == np.bool_:
        rewards = rewards.astype(jnp.int8)
    elif rewards.dtype not in (jnp.float32, jnp.bfloat16):
        rewards = rewards.astype(jnp.float32)
    kept = jnp.dtype(dtype)
    if variant.n_ks or kept not in (jnp.float32, jnp.bfloat16):
        kept = jnp.dtype(jnp.float32)
    if where is not None:
        where = where.astype(jnp.int8)

    unit = SUBLANES * max(4 // x.dtype.itemsize for x in (rewards, where) if x is not None)
    unit = max(unit, SUBLANES * 4 // kept.itemsize)
    block_rows = chosen.tiles * TILE_ROWS
    semantics: Any = ("parallel", "arbitrary", "arbitrary") if chosen.chunked else ("parallel",)
    blocks = -(-rows // block_rows)
    if chosen.chunked:
        chunks = -(-n // LANES)
        samples = chunks * LANES
        grid: tuple[int, ...] = (blocks, 1 if variant.n_ks else 2, chunks)
        last = chunks - 1
        chunk = (block_rows, LANES) if chosen.row_major else (LANES, block_rows)

        def block(of_phase: Callable[[Any, Any], Any]) -> pl.BlockSpec:
            def place(i: Any, phase: Any, c: Any) -> tuple[Any, Any]:
                return (i, of_phase(phase, c)) if chosen.row_major else (of_phase(phase, c), i)

            return pl.BlockSpec(chunk, place)

        # While values are copied out nothing new is fetched, and while rewards are copied in
        # nothing is written.
        block_in = block(lambda phase, c: lax.select(phase == 0, c, last))
        block_where = block(lambda phase, c: c)
        block_out = block(lambda phase, c: lax.select(phase == 0, 0, c))
    else:
        samples = -(-n // unit) * unit
        grid = (blocks,)
        if chosen.row_major:
            block_in = pl.BlockSpec((block_rows, n), lambda i: (i, 0))
        else:
            block_in = pl.BlockSpec((samples, block_rows), lambda i: (0, i))
        block_where = block_out = block_in
    shape: tuple[int, ...] = (rows, n)
    if variant.as_it_lies:
        # Tile for tile: to the compiler no more than another name.
        rewards = rewards.T.reshape(n // SUBLANES, SUBLANES, rows // LANES, LANES)
        shape = (n // SUBLANES, rows // LANES * SUBLANES, LANES)
        rewards = rewards.swapaxes(1, 2).reshape(shape)
        block_in = block_out = pl.BlockSpec(
            (n // SUBLANES, block_rows // LANES * SUBLANES, LANES), lambda i: (0, i, 0)
        )
    elif not chosen.row_major:
        rewards, where = rewards.T, None if where is None else where.T
        shape = (n, rows)
    if variant.n_ks:
        row_blocks = -(-rows // LANES)
        shape = (variant.n_ks, row_blocks, LANES)
        block_out = pl.BlockSpec(
            (variant.n_ks, chosen.tiles * SUBLANES, LANES), lambda i, *_: (0, i, 0)
        )
    samples = max(samples, -(-chosen.samples // SUBLANES) * SUBLANES)

    running = variant.k != "table"
    operands = Operands(
        rewards=rewards,
        where=where,
        integers=jnp.asarray([1, rows], jnp.int32),
        k=ready.get("k"),
        table=ready.get("table"),
        scalars=ready.get("scalars"),
        form=ready.get("form"),
        inverses=jnp.asarray(_inverses(n)) if running else None,
    )
    operands = alike(operands)
    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    specs = Operands(
        rewards=block_in,
        where=None if where is None else block_where,
        integers=scalar,
        k=None
        if operands.k is None
        else pl.BlockSpec((chosen.tiles * SUBLANES, LANES), lambda i, *_: (i, 0))
        if variant.k == "row"
        else scalar,
        table=None if operands.table is None else scalar,
        scalars=None if operands.scalars is None else scalar,
        form=scalar if running else None,
        inverses=scalar if running else None,
    )
    tile = (SUBLANES, LANES)
    float32, int32 = jnp.float32, jnp.int32
    sorts = not variant.counted and not variant.n_ks
    looks_up = sorts and chosen.run > 0
    sums = (chosen.abreast, chosen.tables, SUBLANES * PITCH, LANES)
    keys = (chosen.abreast, chosen.tables * (chosen.runs(n) if looks_up else 1), *sums[2:])
    spare = chosen.run if not variant.counted and chosen.run > chosen.group else 0
    scratch = Scratch(
        raw=None
        if variant.as_it_lies
        else pltpu.VMEM((samples // SUBLANES, chosen.tiles * SUBLANES**2, LANES), float32),
        work=pltpu.VMEM((chosen.abreast, samples, *tile), float32),
        spare=pltpu.VMEM((spare, *tile), float32) if spare else None,
        keys=pltpu.VMEM(keys, float32) if looks_up else None,
        sums=pltpu.VMEM(sums, float32) if looks_up else None,
        decisions=pltpu.VMEM((max(1, words(n, chosen)), *tile), int32)
        if sorts and not chosen.whole
        else None,
        facts=pltpu.VMEM((chosen.tiles, FACTS, *tile), float32),
        noted=pltpu.VMEM(tile, float32),
        flags=pltpu.SMEM((1,), int32),
    )
    out = pl.pallas_call(
        partial(kernel, variant),
        out_shape=shape_like(shape, kept, operands.rewards),
        grid=grid,
        in_specs=(specs,),
        out_specs=block_out,
        scratch_shapes=(scratch,),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=semantics,
            vmem_limit_bytes=chosen.vmem_bytes,
        ),
        interpret=interpret,
    )(operands)
    if variant.n_ks:
        out = out.reshape(variant.n_ks, -1)[:, :rows].T
    elif variant.as_it_lies:
        out = out.reshape(n // SUBLANES, rows // LANES, SUBLANES, LANES).swapaxes(1, 2)
        out = out.reshape(n, rows).T
    elif not chosen.row_major:
        out = out.T
    return out.astype(dtype)


def _inverses(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    places = np.arange(n, dtype=np.float64)
    return np.where(places > 0, 1 / np.maximum(places, 1), 0).astype(np.float32)


def alike(operands: Any) -> Any:
    """Arrays that inside shard_map all differ between devices where one of them does."""
    axes = frozenset[Any]().union(*map(_axes_it_varies_over, jax.tree.leaves(operands)))
    varying: Callable[..., jax.Array] = lax.pcast

    def of_all_axes(x: jax.Array) -> jax.Array:
        missing = tuple(axes - _axes_it_varies_over(x))
        return varying(x, missing, to="varying") if missing else x

    return jax.tree.map(of_all_axes, operands) if axes else operands


def shape_like(shape: tuple[int, ...], dtype: Any, x: jax.Array) -> jax.ShapeDtypeStruct:
    """The shape of an output that differs between devices where x does."""
    if not _axes_it_varies_over(x):
        return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]
    kind = jax.typeof(x)
    # Under its name of JAX 0.10 and newer, or of the older ones.
    name = "manual_axis_type" if hasattr(kind, "manual_axis_type") else "vma"
    make: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct
    return make(shape, dtype, **{name: getattr(kind, name)})


def _axes_it_varies_over(x: jax.Array) -> frozenset[Any]:
    kind = jax.typeof(x)
    kind = getattr(kind, "manual_axis_type", kind)
    return frozenset(getattr(kind, "varying", getattr(kind, "vma", ())))
