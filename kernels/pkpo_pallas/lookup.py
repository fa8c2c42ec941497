"""Look every sample's own reward up in the tables of a sorted run.

A sample is looked up where it lies, in registers of 8 samples of 128 rows, as a table has 8
entries for 128 rows: a gather is then an operation within a register, for each row in its own
column. A value is a function of the reward, so no sample needs to know where it was sorted to.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import RANGE_SCALE, Block, Tile, tile_of, zeros
from pkpo_pallas.estimator import values_of
from pkpo_pallas.layout import (
    entry_of,
    entry_reached,
    facts_of,
    samples_out,
    slab_of,
    staged,
    taken,
    write_rows,
)
from pkpo_pallas.loops import Index, each_row_block, without_carry
from pkpo_pallas.plan import PITCH, SUBLANES
from pkpo_pallas.sort import smallest_of


def end_tables(block: Block) -> None:
    """Put behind a row's last sample, in the tables of rows of one run, what no reward reaches."""
    variant = block.variant
    for t in range(variant.plan.interleaved):
        tile = tile_of(block, 0, t)
        for i in range(-(-variant.n_samples // variant.ranks_apart), variant.tables * SUBLANES):
            tile.keys_ref[entry_of(tile, Index(0, i))] = zeros() + jnp.inf


def look_up(tile: Tile, run: Any = 0) -> None:
    """Look the samples of a run up: tables (tables, 8 · PITCH, 128), rewards → values, (samples of
    a run, 1024). Of the m tables the first tells which entry a reward belongs to, and the rest,
    which table; above the rank that is found there a value grows linearly."""
    block, variant, chosen = tile.block, tile.variant, tile.variant.plan
    tables = range(variant.tables)
    first_table = run * variant.tables
    interpolates = variant.ranks_apart > 1
    slabs_of_run = range(-(-min(variant.n_samples, chosen.run) // SUBLANES))
    # Rows that have to be transposed are, while the next ones are looked up.
    transposed = chosen.row_major and not chosen.chunked
    to_values = variant.native_layout or chosen.chunked or transposed

    def copy_staged(b: Any) -> None:
        slabs = range(samples_out(block) // SUBLANES)
        write_rows(block, [*map(staged(block, 0, tile.index, b), slabs)], tile.index, b)

    def of_rows(b: Any) -> None:
        if transposed:
            copy_staged(jnp.maximum(b - 1, 0))
        here = pl.ds(b * PITCH, SUBLANES)
        keys = [tile.keys_ref[first_table + c, here, :] for c in tables]  # (8, 128) each
        sums = [tile.sums_ref[c, here, :] for c in tables]  # (8, 128) each
        middle = tile.keys_ref[first_table, pl.ds(b * PITCH + 4, 1), :]  # (1, 128)
        slopes = []
        if interpolates:
            slopes = [block.operands.slopes_ref[pl.ds(c * SUBLANES, SUBLANES), :] for c in tables]

        fact = facts_of(tile, b)
        slabs = []
        for slab in slabs_of_run:
            here = slab_of(block, tile.index, run * len(slabs_of_run) + slab, b)
            x = block.rewards_ref[here]  # (8, 128)
            entry = entry_reached(x, keys[0], middle)
            found = taken(sums[0], entry)
            if interpolates:
                lower, slope = taken(keys[0], entry), taken(slopes[0], entry)
            for c in tables[1:]:
                key = taken(keys[c], entry)
                beyond = x >= key
                found = lax.select(beyond, taken(sums[c], entry), found)
                if interpolates:
                    lower = lax.select(beyond, key, lower)
                    slope = lax.select(beyond, taken(slopes[c], entry), slope)
            if interpolates:
                # As a scan goes on from there.
                gap = x - lower
                found = found + slope * (gap * fact(RANGE_SCALE) if variant.range_scaled else gap)
            values = values_of(variant, found, fact)
            if to_values:
                block.values_ref[here] = values
            slabs.append(values)
        if not to_values:
            behind = samples_out(block) // SUBLANES - len(slabs)
            write_rows(block, [*slabs, *[zeros()] * behind], tile.index, b)

    # Unrolled, 16 tables are too many for LLO's register allocation; of 8, at n = 128, all row
    # blocks at once take 6 % fewer bundles than one after the other.
    each_row_block(block, of_rows, 8 if len(tables) <= 8 else 1)
    if transposed:
        copy_staged(SUBLANES - 1)


def look_up_runs(tile: Tile) -> None:
    """Look the samples of all runs up: their prefix sums in work (padded, 8, 128) → values."""
    chosen = tile.variant.plan

    def of_run(run: Any) -> None:
        smallest = smallest_of(chosen, run)
        for i in range(chosen.run):
            tile.sums_ref[entry_of(tile, Index(0, i))] = tile.work_ref[smallest ^ i]
        look_up(tile, run)

    lax.fori_loop(0, chosen.runs(tile.variant.n_samples), without_carry(of_run), 0)
