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
from jax.experimental.pallas import tpu as pltpu

from pkpo_pallas.block import GROUP_SIZE, N_ROWS, Block, Rows, Tile, zeros
from pkpo_pallas.loops import Index, divided, each_row_block, each_sample
from pkpo_pallas.plan import LANES, PITCH, SUBLANES, TILE_ROWS

_LEFT_OUT, _NAN = 0x7FC0DEAD, 0x7FFF0000
# The upper half of a word.
_UPPER = -1 << 16
# Behind a row's samples: no finite reward is larger, and 0 times it is 0.
PADDING = float(np.finfo(np.float32).max)


# What takes of a column its own entries.
_OF_COLUMNS = lax.GatherDimensionNumbers(
    offset_dims=(),
    collapsed_slice_dims=(0,),
    start_index_map=(0,),
    operand_batching_dims=(1,),
    start_indices_batching_dims=(1,),
)
# A slab by its number: 8 samples of 128 rows, (8, 128).
SlabAt = Callable[[int], jax.Array]

# Where.


def block_rows(block: Block, g: Any, b: Any, together: int = 1) -> Any:
    """Slice the blocks of rewards and values: row block b of tile g, 128 rows, or as many times
    more of those that are taken together."""
    first = pl.multiple_of((g * SUBLANES + b * together) * LANES, LANES)
    rows = pl.ds(first, LANES * together)
    return (rows, slice(None)) if block.variant.plan.row_major else (slice(None), rows)


def slab_of(block: Block, g: Any, slab: Any, b: Any) -> Any:
    """Slice staging: 8 samples of row block b of tile g, (8, 128)."""
    first = (g * SUBLANES + b) * block.variant.pitch
    if block.variant.pitch == SUBLANES:
        first = pl.multiple_of(first, SUBLANES)
    return slab, pl.ds(first, SUBLANES), slice(None)


def sample_of(tile: Tile, i: Index) -> Any:
    """Slice staging: sample i of all rows of a tile, (8, 128)."""
    slab, sample = i.split(SUBLANES)
    pitch = tile.variant.pitch
    start = tile.index * (SUBLANES * pitch) + sample
    return slab, pl.ds(start, SUBLANES, stride=pitch), slice(None)


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

    def put(b: Any, piece: jax.Array) -> None:
        slabs = [piece[i : i + SUBLANES] for i in range(0, piece.shape[0], SUBLANES)]
        for c, x in enumerate(slabs):
            staging_ref[slab_of(block, g, slab + c, b)] = x
        if note is not None:
            note(b, slabs)

    def of_rows(b: Any) -> None:
        piece = _as_float(refs.rewards_ref[block_rows(block, g, b)])
        if refs.where_ref is not None:
            piece = _marked(piece, refs.where_ref[block_rows(block, g, b)])
        put(b, piece.T if block.variant.plan.row_major else piece)

    def of_pairs(p: Any) -> None:
        words = pltpu.bitcast(refs.rewards_ref[block_rows(block, g, p, 2)], jnp.int32).T
        put(2 * p, lax.bitcast_convert_type(lax.shift_left(words, 16), jnp.float32))
        put(2 * p + 1, lax.bitcast_convert_type(words & _UPPER, jnp.float32))

    if block.variant.pairs_rows:
        each_row_block(block, of_pairs, count=SUBLANES // 2)
    else:
        each_row_block(block, of_rows)


def copy_out(block: Block, g: Any, values_at: Callable[[Any], SlabAt]) -> None:
    """Copy values of tile g to their block: values_at(row block), slabs → (samples, 1024)."""
    slabs = range(samples_out(block) // SUBLANES)

    def of_rows(b: Any) -> None:
        write_rows(block, [*map(values_at(b), slabs)], g, b)

    def of_pairs(p: Any) -> None:
        lower, upper = (jnp.concatenate([*map(values_at(b), slabs)]) for b in (2 * p, 2 * p + 1))
        # They have been rounded.
        lower, upper = (lax.bitcast_convert_type(it, jnp.int32) for it in (lower, upper))
        words = lax.shift_right_logical(lower, 16) | upper
        block.out_ref[block_rows(block, g, p, 2)] = pltpu.bitcast(words.T, jnp.bfloat16)

    if block.variant.pairs_rows:
        each_row_block(block, of_pairs, count=SUBLANES // 2)
    else:
        each_row_block(block, of_rows)


def staged(block: Block, slab: Any, g: Any, b: Any) -> SlabAt:
    """Read what is in staging, from this slab on, of row block b of tile g."""
    staging_ref = block.scratch.staging_ref
    return lambda c: staging_ref[slab_of(block, g, slab + c, b)]


def bits_of_values(values: jax.Array) -> jax.Array:
    """Round float32 to bfloat16: → its 16 bits, int32, of the same shape."""
    rounded = lax.bitcast_convert_type(values.astype(jnp.bfloat16), jnp.uint16)
    return rounded.astype(jnp.int32)


def rounded(values: jax.Array) -> jax.Array:
    """Round float32 to bfloat16, in float32 still: of any shape."""
    return lax.bitcast_convert_type(lax.shift_left(bits_of_values(values), 16), jnp.float32)


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
    sample: Rows = tile.block.rewards_ref[sample_of(tile, i)]
    return sample


def read_samples(tile: Tile, first: Any, count: int) -> list[Rows]:
    """Read `count` samples from `first` on, a multiple of 8: (8, 128) each."""
    slabs = pl.ds(divided(first, SUBLANES), -(-count // SUBLANES))
    by_sample = []
    for sample in range(SUBLANES):
        _, strided, _ = sample_of(tile, Index(0, sample))
        by_sample.append(tile.block.rewards_ref[slabs, strided, :])  # (slabs, 8, 128)
    return [by_sample[i % SUBLANES][i // SUBLANES] for i in range(count)]


def rows_inside(block: Block, g: Any) -> jax.Array:
    """Tell which rows of tile g there are: behind the last may be anything. (8, 128) bool."""
    first = (pl.program_id(0) * block.variant.plan.tiles + g) * TILE_ROWS
    sublane = lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 0)
    lane = lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1)
    row = sublane * LANES + lane
    if block.variant.pairs_rows:
        row = (sublane & ~1) * LANES + lane * 2 + (sublane & 1)
    return first + row < block.operands.integers_ref[N_ROWS]


def facts_of(tile: Tile, b: Any) -> Callable[[int], jax.Array]:
    """Read facts of 128 rows, once for each sample of a slab: (8, 128)."""
    facts_ref, shape = tile.facts_ref, (SUBLANES, LANES)
    return lambda name: jnp.broadcast_to(facts_ref[name, pl.ds(b, 1), :], shape)


def taken(table: jax.Array, entries: jax.Array) -> jax.Array:
    """Take for each of 128 rows its own entries of its column: (8, 128), (8, 128) → (8, 128)."""
    return lax.gather(
        table,
        entries[:, :, None],
        _OF_COLUMNS,
        (1, 1),
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )


def entry_reached(x: jax.Array, keys: jax.Array, middle: jax.Array) -> jax.Array:
    """Find the last entry of tables of 8 ascending keys that x reaches, or the first: rewards
    (8, 128), keys (8, 128), their fifth (1, 128) → (8, 128) int32."""
    # NaN compares false, and no sum of these leads out of a table.
    entry = jnp.where(x >= middle, 4, 0)
    for step in (2, 1):
        beyond = entry + step
        entry = lax.select(x >= taken(keys, beyond), beyond, entry)
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
        tile.block.rewards_ref[sample_of(tile, i)] = jnp.where(left_out, largest, x)
        return size + jnp.where(left_out, 0.0, 1.0)

    tile.facts_ref[GROUP_SIZE] = each_sample(unrolled, n, put, zeros())


def pad(tile: Tile) -> None:
    """Give what lies behind a row's samples a value that no finite reward exceeds; where they are
    sorted as words, none at all."""
    n, chosen = tile.variant.n_samples, tile.variant.plan
    padding = _filled((SUBLANES, LANES), _NAN) if chosen.packs else zeros() + PADDING
    for i in range(n, chosen.runs(n) * chosen.run if chosen.run else chosen.n_padded):
        tile.block.rewards_ref[sample_of(tile, Index(0, i))] = padding


def is_left_out(x: jax.Array) -> jax.Array:
    """Tell what is marked: float32 → bool, of any shape."""
    return lax.bitcast_convert_type(x, jnp.int32) == _LEFT_OUT


def _filled(shape: tuple[int, ...], bits: int) -> jax.Array:
    return lax.bitcast_convert_type(jnp.full(shape, bits, jnp.int32), jnp.float32)


def _marked(x: jax.Array, where: jax.Array) -> jax.Array:
    # No valid NaN is the one that marks what is left out.
    return jnp.where(_as_mask(where), jnp.where(x != x, jnp.nan, x), _filled(x.shape, _LEFT_OUT))


def _as_float(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.int32)
    return x.astype(jnp.float32)


def _as_mask(x: jax.Array) -> jax.Array:
    return x.astype(jnp.int32) != 0
