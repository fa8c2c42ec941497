"""Sort a row in VMEM, weigh its gaps, scan them, and give every sample its value: one launch.

Which rows go which way: `pkpo_pallas.plan`, the table of regimes. The way of the data, where the
chip can gather and rows are short:

    copied in → sorted → gaps · weights → prefix scan → tables of prefix sums by reward
              → every sample looks its own reward up → copied out

where they are longer:

    copied in → runs of them sorted → these merged, keeping every decision → gaps · weights
              → prefix scan → the mergers undone, by the decisions → tables, one run after the other
              → every sample looks its own reward up in its run → copied out

and where the chip cannot gather:

    copied in → sorted, keeping every decision → gaps · weights → prefix scan
              → the comparators undone, by the decisions → copied out

Rewards of 16 bits take another way, as one fits into a word with the number of its sample:

    copied in → words sorted by their rewards → gaps · weights → prefix scan
              → words sorted by their samples → copied out

Rows of few distinct values are not sorted but counted, where a whole block consists of them:

    copied in → every distinct value, and how many samples are above it → what it gets → copied out
"""

from __future__ import annotations

from functools import partial
from typing import Any

from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import (
    NAN_OR_0,
    Block,
    Operands,
    Ref,
    Scratch,
    Tile,
    Variant,
    tile_of,
    zeros,
)
from pkpo_pallas.estimator import (
    in_work,
    max_at_k,
    scanning,
    to_work,
    weigh,
    weigh_segments,
)
from pkpo_pallas.layout import SlabAt, copy_in, copy_out, fill, pad, staged
from pkpo_pallas.levels import (
    by_levels,
    find_levels,
    give,
    given_by_level,
    look_for_few_levels,
    note_ends,
    weigh_levels,
)
from pkpo_pallas.lookup import end_tables, look_up, look_up_runs
from pkpo_pallas.loops import Index, each_sample, each_tile, isolated, without_carry
from pkpo_pallas.packed import sort_there_and_back
from pkpo_pallas.plan import SUBLANES
from pkpo_pallas.sort import read_rewards, sort_row, sort_runs, write_segments
from pkpo_pallas.undo import sort_and_decide, steps_of, undo, undo_whole


def kernel(variant: Variant, operands: Operands, out_ref: Ref, scratch: Scratch) -> None:
    """Transform a block of rows, or give the best of each k: rewards (n, BLOCK_ROWS), or
    (BLOCK_ROWS, n), → values of the same shape, or (n_ks, BLOCK_ROWS / 128, 128), where BLOCK_ROWS
    is 1024 · tiles.

    A grid step is a block of short rows, which is copied in, computed and copied out. Of long ones
    it is a chunk of 128 samples of a tile, of grid (tiles, 2, chunks): in phase 0 chunks are copied
    in, and behind the last all is computed; in phase 1 they are copied out.
    """
    block = Block(variant, operands, out_ref, scratch)
    if not variant.plan.chunked:
        if not variant.native_layout:
            each_tile(block, lambda g: copy_block_in(block, 0, g))
        compute_block(block)
        return
    grid_phase, chunk = pl.program_id(1), pl.program_id(2)  # (), ()
    slab = chunk * (variant.plan.chunk // SUBLANES)  # ()

    @pl.when(grid_phase == 0)
    def copy_chunk_in() -> None:
        copy_block_in(block, slab, 0)

        @pl.when(chunk == pl.num_programs(2) - 1)
        def compute_tile() -> None:
            compute_block(block)

    if not variant.n_ks:

        @pl.when(grid_phase == 1)
        def copy_chunk_out() -> None:
            by_levels(
                block,
                lambda n_levels: copy_levels_out(block, n_levels, slab, 0),
                lambda: copy_out(block, 0, partial(staged, block, slab, 0)),
            )


def copy_block_in(block: Block, slab: Any, g: Any) -> None:
    """Copy rewards of tile g in, from this slab on."""
    copy_in(block, slab, g, partial(note_ends, block, slab) if block.variant.notes_ends else None)


def compute_block(block: Block) -> None:
    """Compute the values of a block: rewards (n_padded, BLOCK_ROWS) → values, by few levels where
    all of its rows have so few, and else by sorting them."""
    variant = block.variant
    if variant.masked:
        each_tile(block, lambda g: fill(tile_of(block, g)))
    if block.scratch.keys_ref is not None and variant.plan.one_run:
        end_tables(block)
    if variant.looked_for:
        look_for_few_levels(block)
    by_levels(block, partial(count_rows, block), partial(sort_rows, block))


def count_rows(block: Block, n_levels: int) -> None:
    """Compute rows of few distinct values, tile by tile: rewards (n, BLOCK_ROWS) → what each level
    gets, and where rows are short, the values, copied out."""
    variant = block.variant

    def of_tile(g: Any) -> None:
        tile = tile_of(block, g)
        if variant.boolean:
            find_levels(tile, 0, n_levels)
        weigh_levels(tile, n_levels)
        if not (variant.n_ks or variant.plan.chunked):
            copy_levels_out(block, n_levels, 0, g)

    each_tile(block, of_tile)


def copy_levels_out(block: Block, n_levels: int, slab: Any, g: Any) -> None:
    """Give the samples of tile g what their levels get, and copy these values to their block, from
    this slab on."""
    if block.variant.native_layout:
        give(block, n_levels, g)
    else:

        def given_at(b: Any) -> SlabAt:
            rewards, value_of = staged(block, slab, g, b), given_by_level(block, n_levels, g, b)
            return lambda c: value_of(rewards(c))

        copy_out(block, g, given_at)


def sort_rows(block: Block) -> None:
    """Compute rows by sorting them, some tiles interleaved: where one waits, another goes on.
    Rewards (n, BLOCK_ROWS) → values, copied out."""
    chosen = block.variant.plan
    n_tiles = chosen.interleaved

    def of_tiles(first: Any) -> None:
        tiles = [tile_of(block, first * n_tiles + t, t) for t in range(n_tiles)]
        for tile in tiles:
            tile.facts_ref[NAN_OR_0] = zeros()
            pad(tile)
        if chosen.one_run:
            sort_and_look_up(tiles)
            return
        for tile in tiles:
            compute = sort_there_and_back if chosen.packs else sort_and_undo
            compute(tile)
            copy_tile_out(tile)

    if chosen.tiles == n_tiles:
        of_tiles(0)
    else:
        lax.fori_loop(0, chosen.tiles // n_tiles, without_carry(of_tiles), 0)


def sort_and_look_up(tiles: list[Tile]) -> None:
    """Compute rows of one run: rewards (n_padded, 1024) → values, copied out."""
    block = tiles[0].block
    n_ks = block.variant.n_ks
    sorted_tiles = list(tiles)

    def sort() -> None:
        for t, tile in enumerate(tiles):
            segments, sorted_tiles[t] = sort_row(tile)
            compute = write_segments if n_ks else weigh_segments
            compute(sorted_tiles[t], segments)

    isolated(block, sort)
    for tile in sorted_tiles:
        if n_ks:
            max_at_k(tile, in_work(tile), scanning(in_work(tile)))
        else:
            look_up(tile)


def sort_and_undo(tile: Tile) -> None:
    """Compute rows of several runs, or where the chip cannot gather: rewards (n_padded, 1024) →
    values."""
    several_runs = tile.variant.plan.run > 0
    steps = steps_of(tile, [tile.work_ref, *(tile.block.scratch.buffers_refs or ())])
    one_step = len(steps) == 1 and not several_runs
    if several_runs:
        sort_runs(tile, partial(read_rewards, tile))
    done = sort_and_decide(tile, steps)
    if tile.variant.n_ks:
        max_at_k(done, in_work(done), scanning(in_work(done)))
        return

    def weigh_row() -> None:
        weigh(done, 0, in_work(done), scanning(in_work(done), to_work(done)))
        # Behind the row's samples may have come one that is as large as what was behind them.
        n, n_behind = tile.variant.n_samples, tile.variant.plan.n_padded - tile.variant.n_samples
        last = done.work_ref[n - 1]

        def put(i: Index, carry: Any) -> Any:
            done.work_ref[n + i.value] = last
            return carry

        each_sample(tile.variant.plan.unrolled, n_behind, put, 0)
        if one_step:
            # Here what is in registers may stay there.
            undo_whole(tile, steps[0])

    isolated(tile.block, weigh_row)
    if not one_step:
        undo(tile, steps)
    if several_runs:
        look_up_runs(tile)


def copy_tile_out(tile: Tile) -> None:
    """Copy a tile's values to their block, unless they are there, or go out in chunks."""
    variant = tile.variant
    if not (variant.n_ks or variant.native_layout or variant.plan.chunked):
        copy_out(tile.block, tile.index, partial(staged, tile.block, 0, tile.index))
