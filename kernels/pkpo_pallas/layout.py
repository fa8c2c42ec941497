"""Where samples lie: in blocks, in staging, in tables; what is copied between them, and marks.

A tile is 1024 rows, and a register holds one sample of each, so that every comparator and every
step of a scan is elementwise. In staging, and in blocks of the native layout, samples lie in slabs:
registers of 8 samples of 128 rows. Sample i of 1024 rows is then every eighth of 64 rows of memory.

Samples that are left out are marked while they are copied in, by a NaN that no computation gives.
Before they are sorted they take the value of their row's largest, so that the gaps above are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import GROUP_SIZE, N_ROWS, Block, Rows, Tile, zeros
from pkpo_pallas.loops import Index, divided, each_row_block, each_sample
from pkpo_pallas.plan import LANES, PITCH, SUBLANES, TILE_ROWS

_LEFT_OUT = 0x7FC0DEAD
# Behind a row's samples: no finite reward is larger, and 0 times it is 0.
PADDING = float(np.finfo(np.float32).max)


# From rewards of 8 samples, (8, 128), to their values.
ValuesOf = Callable[[jax.Array], jax.Array]

# Where.


def block_rows(block: Block, g: Any, b: Any) -> Any:
    """Slice the blocks of rewards and values: row block b of tile g, 128 rows."""
    first = pl.multiple_of((g * SUBLANES + b) * LANES, LANES)
    rows = pl.ds(first, LANES)
    return (rows, slice(None)) if block.variant.plan.row_major else (slice(None), rows)


def slab_of(g: Any, slab: Any, b: Any) -> Any:
    """Slice staging: 8 samples of row block b of tile g, (8, 128)."""
    first = (g * SUBLANES + b) * SUBLANES
    return slab, pl.ds(pl.multiple_of(first, SUBLANES), SUBLANES), slice(None)


def sample_of(g: Any, i: Index) -> Any:
    """Slice staging: sample i of all rows of tile g, (8, 128)."""
    slab, sample = i.split(SUBLANES)
    start = g * (SUBLANES * SUBLANES) + sample
    return slab, pl.ds(start, SUBLANES, stride=SUBLANES), slice(None)


def entry_of(tile: Tile, i: Index, run: Any = 0) -> Any:
    """Slice tables: number i of a sorted run's samples that are kept, (8, 128). Of m tables table c
    has the numbers c, m + c, 2m + c, …"""
    n_tables = tile.variant.tables
    entry, table = i.split(n_tables)
    return run * n_tables + table, pl.ds(entry, SUBLANES, stride=PITCH), slice(None)


def level_of(number: Any) -> Any:
    """Slice a table of levels: one of all rows of a tile, (8, 128)."""
    return pl.ds(number, SUBLANES, stride=PITCH), slice(None)


# What is copied.


def copy_in(
    block: Block, slab: Any, g: Any, note: Callable[[Any, list[jax.Array]], None] | None
) -> None:
    """Copy a block's rewards of tile g to staging, from this slab on, marking what is left out:
    (samples, 1024) → (samples / 8, 64, 128); and note(row block, slabs) what passes."""
    refs, staging_ref = block.operands, block.scratch.staging_ref

    def of_rows(b: Any) -> None:
        piece = _as_float(refs.rewards_ref[block_rows(block, g, b)])
        if refs.where_ref is not None:
            piece = _marked(piece, refs.where_ref[block_rows(block, g, b)])
        piece = piece.T if block.variant.plan.row_major else piece
        slabs = [piece[i : i + SUBLANES] for i in range(0, piece.shape[0], SUBLANES)]
        for c, x in enumerate(slabs):
            staging_ref[slab_of(g, slab + c, b)] = x
        if note is not None:
            note(b, slabs)

    each_row_block(block, of_rows)


def copy_out(
    block: Block, slab: Any, g: Any, given: Callable[[Any], ValuesOf] | None = None
) -> None:
    """Copy the values of tile g to their block, from this slab on, or the values that rewards get
    by given(row block): (samples / 8, 64, 128) → (samples, 1024)."""
    each_row_block(
        block, lambda b: copy_rows_out(block, slab, g, b, given(b) if given else lambda x: x)
    )


def copy_rows_out(
    block: Block, slab: Any, g: Any, b: Any, values_of: ValuesOf = lambda x: x
) -> None:
    """Copy the values of 128 rows to their block, or those of rewards: (samples / 8, 8, 128) →
    (samples, 128)."""
    slabs = range(samples_out(block) // SUBLANES)
    staging_ref = block.scratch.staging_ref
    write_rows(block, [values_of(staging_ref[slab_of(g, slab + c, b)]) for c in slabs], g, b)


def write_rows(block: Block, slabs: list[jax.Array], g: Any, b: Any) -> None:
    """Write the values of 128 rows to their block, 0 for what is left out: slabs of (8, 128) →
    (samples, 128)."""
    values = jnp.concatenate(slabs)
    if block.variant.plan.row_major:
        values = values.T
    if block.operands.where_ref is not None:
        valid = _as_mask(block.operands.where_ref[block_rows(block, g, b)])
        values = jnp.where(valid, values, 0.0)
    block.out_ref[block_rows(block, g, b)] = values.astype(block.out_ref.dtype)


def samples_out(block: Block) -> int:
    """Count the samples of a row that go out at once."""
    size: int = block.out_ref.shape[1 if block.variant.plan.row_major else 0]
    return size


# What is read.


def read_sample(tile: Tile, i: Index) -> Rows:
    """Read sample i of every row: (8, 128)."""
    sample: Rows = tile.block.rewards_ref[sample_of(tile.index, i)]
    return sample


def read_samples(tile: Tile, first: Any, count: int) -> list[Rows]:
    """Read `count` samples from `first` on, a multiple of 8: (8, 128) each."""
    slabs = pl.ds(divided(first, SUBLANES), -(-count // SUBLANES))
    by_sample = []
    for sample in range(SUBLANES):
        start = tile.index * (SUBLANES * SUBLANES) + sample
        strided = pl.ds(start, SUBLANES, stride=SUBLANES)
        by_sample.append(tile.block.rewards_ref[slabs, strided, :])  # (slabs, 8, 128)
    return [by_sample[i % SUBLANES][i // SUBLANES] for i in range(count)]


def rows_inside(block: Block, g: Any) -> jax.Array:
    """Tell which rows of tile g there are: behind the last may be anything. (8, 128) bool."""
    first = (pl.program_id(0) * block.variant.plan.tiles + g) * TILE_ROWS
    sublane = lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 0)
    lane = lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1)
    return first + sublane * LANES + lane < block.operands.integers_ref[N_ROWS]


def facts_of(tile: Tile, b: Any) -> Callable[[int], jax.Array]:
    """Read facts of 128 rows, once for each sample of a slab: (8, 128)."""
    facts_ref, shape = tile.facts_ref, (SUBLANES, LANES)
    return lambda name: jnp.broadcast_to(facts_ref[name, pl.ds(b, 1), :], shape)


def taken(table: jax.Array, entries: jax.Array) -> jax.Array:
    """Take for each of 128 rows its own entries of its column: (8, 128), (8, 128) → (8, 128)."""
    return jnp.take_along_axis(table, entries, axis=0, mode="promise_in_bounds")


def entry_reached(x: jax.Array, keys: jax.Array, middle: jax.Array) -> jax.Array:
    """Find the last entry of tables of 8 ascending keys that x reaches, or the first: rewards
    (8, 128), keys (8, 128), their fifth (1, 128) → (8, 128) int32."""
    # NaN compares false, and no sum of these leads out of a table.
    entry = jnp.where(x >= middle, 4, 0)
    for step in (2, 1):
        entry = jnp.where(x >= taken(keys, entry + step), entry + step, entry)
    return entry


# What is left out.


def fill(tile: Tile) -> None:
    """Give samples that are left out the value of their row's largest. GROUP_SIZE ← how many are
    valid."""
    n, unrolled = tile.variant.n_samples, tile.variant.plan.unrolled

    def look(i: Index, high: Rows) -> Rows:
        # What is left out compares false.
        x = read_sample(tile, i)
        return jnp.where(x > high, x, high)

    high = each_sample(unrolled, n, look, zeros() - jnp.inf)
    largest = jnp.where(high > -jnp.inf, high, 0.0)

    def put(i: Index, size: Rows) -> Rows:
        x = read_sample(tile, i)
        left_out = is_left_out(x)
        tile.block.rewards_ref[sample_of(tile.index, i)] = jnp.where(left_out, largest, x)
        return size + jnp.where(left_out, 0.0, 1.0)

    tile.facts_ref[GROUP_SIZE] = each_sample(unrolled, n, put, zeros())


def pad(tile: Tile) -> None:
    """Give what lies behind a row's samples a value that no finite reward exceeds."""
    n, chosen = tile.variant.n_samples, tile.variant.plan
    for i in range(n, chosen.runs(n) * chosen.run if chosen.run else chosen.n_padded):
        tile.block.rewards_ref[sample_of(tile.index, Index(0, i))] = zeros() + PADDING


def is_left_out(x: jax.Array) -> jax.Array:
    """Tell what is marked: float32 → bool, of any shape."""
    return lax.bitcast_convert_type(x, jnp.int32) == _LEFT_OUT


def _left_out(shape: tuple[int, ...]) -> jax.Array:
    return lax.bitcast_convert_type(jnp.full(shape, _LEFT_OUT, jnp.int32), jnp.float32)


def _marked(x: jax.Array, where: jax.Array) -> jax.Array:
    # No valid NaN is the one that marks what is left out.
    return jnp.where(_as_mask(where), jnp.where(x != x, jnp.nan, x), _left_out(x.shape))


def _as_float(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.int32)
    return x.astype(jnp.float32)


def _as_mask(x: jax.Array) -> jax.Array:
    return x.astype(jnp.int32) != 0
