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

Rows of two distinct values are not sorted but counted, where a whole block consists of them.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import Block, Operands, Ref, Scratch, Tile, Variant, tile_of
from pkpo_pallas.estimator import in_work, max_at_k, to_work, weigh, weigh_segments
from pkpo_pallas.layout import copy_in, copy_out, fill
from pkpo_pallas.levels import find_levels, give_by_level, look_for_few_levels
from pkpo_pallas.lookup import end_tables, look_up, look_up_runs
from pkpo_pallas.loops import Index, each_tile, isolated, without_carry
from pkpo_pallas.plan import LANES, SUBLANES
from pkpo_pallas.sort import sort_row, sort_runs, write_segments
from pkpo_pallas.undo import sort_and_decide, steps_of, undo, undo_group

# Rows of fewer samples are sorted as fast as they are looked at.
_SHORTEST_COUNTED = 17


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
            each_tile(block, lambda g: copy_in(block, 0, g))
        compute_block(block)
        return
    grid_phase, chunk = pl.program_id(1), pl.program_id(2)  # (), ()
    slab = chunk * (LANES // SUBLANES)  # ()

    @pl.when(grid_phase == 0)
    def copy_chunk_in() -> None:
        copy_in(block, slab, 0)

        @pl.when(chunk == pl.num_programs(2) - 1)
        def compute_tile() -> None:
            compute_block(block)

    if not variant.n_ks:

        @pl.when(grid_phase == 1)
        def copy_chunk_out() -> None:
            copy_out(block, slab, 0)


def compute_block(block: Block) -> None:
    """Compute the values of a block: rewards (n_padded, BLOCK_ROWS) → values, by few levels where
    all of its rows have so few, and else by sorting them."""
    variant = block.variant
    if variant.boolean:
        count_rows(block)
        return
    if variant.plan.one_run and not variant.n_ks:
        end_tables(block)
    if variant.n_samples < _SHORTEST_COUNTED:
        sort_rows(block)
        return
    look_for_few_levels(block)
    few_levels = block.scratch.flags_ref[0] > 0  # ()

    @pl.when(few_levels)
    def count_few_levels() -> None:
        count_rows(block)

    @pl.when(jnp.logical_not(few_levels))
    def sort_many_levels() -> None:
        sort_rows(block)


def count_rows(block: Block) -> None:
    """Compute rows of two distinct values, tile by tile: rewards (n, BLOCK_ROWS) → values, copied
    out."""

    def of_tile(g: Any) -> None:
        tile = tile_of(block, g)
        if block.variant.boolean:
            find_levels(tile)
        give_by_level(tile)
        copy_tile_out(tile)

    each_tile(block, of_tile)


def sort_rows(block: Block) -> None:
    """Compute rows by sorting them, some tiles interleaved: where one waits, another goes on.
    Rewards (n, BLOCK_ROWS) → values, copied out."""
    chosen = block.variant.plan
    n_tiles = chosen.interleaved

    def of_tiles(first: Any) -> None:
        tiles = [tile_of(block, first * n_tiles + t, t) for t in range(n_tiles)]
        for tile in tiles:
            fill(tile)
        if chosen.one_run:
            sort_and_look_up(tiles)
            return
        for tile in tiles:
            sort_and_undo(tile)
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
            max_at_k(tile, in_work(tile))
        else:
            look_up(tile)


def sort_and_undo(tile: Tile) -> None:
    """Compute rows of several runs, or where the chip cannot gather: rewards (n_padded, 1024) →
    values."""
    several_runs, steps = tile.variant.plan.run > 0, steps_of(tile)
    one_step = len(steps) == 1 and not several_runs
    if several_runs:
        sort_runs(tile)
    sort_and_decide(tile, steps)
    if tile.variant.n_ks:
        max_at_k(tile, in_work(tile))
        return

    def weigh_row() -> None:
        weigh(tile, 0, in_work(tile), to_work(tile))
        if one_step:
            # Here what is in registers may stay there.
            undo_group(tile, steps[0], Index(0, 0))

    isolated(tile.block, weigh_row)
    if not one_step:
        undo(tile, steps)
    if several_runs:
        look_up_runs(tile)


def copy_tile_out(tile: Tile) -> None:
    """Copy a tile's values to their block, unless they are there, or go out in chunks."""
    variant = tile.variant
    if not (variant.n_ks or variant.native_layout or variant.plan.chunked):
        copy_out(tile.block, 0, tile.index)
