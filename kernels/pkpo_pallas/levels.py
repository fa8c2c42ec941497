"""Rows of at most two distinct values, which need no sort: what the sorted row is follows from a
count, and what a sample gets, from its value.

They are looked for where rows are long enough, and taken this way where a whole block consists of
them; rows of bool always are. A sample is looked at where it lies, in slabs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import (
    GROUP_SIZE,
    HIGHEST,
    LOWEST,
    N_LOWEST,
    NAN_OR_0,
    SUM_AT_HIGHEST,
    Block,
    Rows,
    Tile,
    tile_of,
    zeros,
)
from pkpo_pallas.estimator import max_at_k, values_of, weigh
from pkpo_pallas.layout import (
    each_slab,
    facts_of,
    is_left_out,
    read_sample,
    row_block_inside,
    rows_inside,
)
from pkpo_pallas.loops import Index, each_row_block, each_tile
from pkpo_pallas.plan import LANES, SUBLANES


def look_for_few_levels(block: Block) -> None:
    """Tell whether all rows of a block have at most two distinct values. flags_ref ← 0 or 1."""
    variant, scratch = block.variant, block.scratch
    scratch.flags_ref[0] = 0

    def look_at_all_samples() -> None:
        scratch.n_between_ref[...] = zeros()
        each_tile(block, lambda g: find_levels(tile_of(block, g)))
        few_levels = jnp.max(scratch.n_between_ref[...]) == 0
        scratch.flags_ref[0] = few_levels.astype(jnp.int32)

    if variant.masked:
        # Where some are left out, the first three say nothing.
        look_at_all_samples()
        return

    def three_values(g: Any, found: Rows) -> Rows:
        tile = tile_of(block, g)
        a, b, c = (read_sample(tile, Index(0, i)) for i in range(3))
        distinct = (a != b) & (b != c) & (a != c)
        return jnp.maximum(found, jnp.where(rows_inside(block, g) & distinct, 1.0, 0.0))

    # Of rows with many distinct values the first three samples say so.
    found = lax.fori_loop(0, variant.plan.tiles, three_values, zeros())
    pl.when(jnp.max(found) == 0)(look_at_all_samples)


def find_levels(tile: Tile) -> None:
    """Find a row's smallest and largest value, how many samples have the former, and how many are
    valid. LOWEST, HIGHEST, N_LOWEST, GROUP_SIZE ← these; n_between_ref += how many are neither:
    those between, and NaN."""
    variant, facts_ref = tile.variant, tile.facts_ref

    def of_rows(b: Any) -> None:
        def widen(slot: Any, x: jax.Array, ends: Any) -> Any:
            # What is left out is a NaN, and compares false.
            low, high = ends
            return jnp.where(x < low, x, low), jnp.where(x > high, x, high)

        low, high = zeros(), zeros() + 1.0
        if not variant.boolean:
            low, high = each_slab(tile, b, widen, (zeros() + jnp.inf, zeros() - jnp.inf))
            low, high = _of_samples(jnp.min, low), _of_samples(jnp.max, high)

        def look(slot: Any, x: jax.Array, seen: Any) -> Any:
            between, n_lowest, size = seen
            is_lowest = x == low
            left_out = is_left_out(x)
            if not variant.boolean:
                is_end = is_lowest | (x == high)
                if variant.masked or variant.n_samples % SUBLANES:
                    is_end = is_end | left_out
                between = between + jnp.where(is_end, 0.0, 1.0)
            if variant.masked:
                size = size + jnp.where(left_out, 0.0, 1.0)
            return between, n_lowest + jnp.where(is_lowest, 1.0, 0.0), size

        between, n_lowest, size = each_slab(tile, b, look, (zeros(), zeros(), zeros()))
        if not variant.boolean:
            inside = row_block_inside(tile.block, tile.index, b)
            tile.block.scratch.n_between_ref[...] += jnp.where(inside, between, 0.0)
        found = {LOWEST: low, HIGHEST: high, N_LOWEST: _of_samples(jnp.sum, n_lowest)}
        if variant.masked:
            found[GROUP_SIZE] = _of_samples(jnp.sum, size)
        for name, value in found.items():
            facts_ref[name, pl.ds(b, 1), :] = value[:1]

    each_row_block(tile.block, of_rows, _row_blocks_at_once(variant.n_samples))


def give_by_level(tile: Tile) -> None:
    """Give rows of two distinct values theirs: LOWEST, HIGHEST, N_LOWEST, rewards → values, or the
    best of each k."""
    facts_ref = tile.facts_ref
    low, high, n_lowest = facts_ref[LOWEST], facts_ref[HIGHEST], facts_ref[N_LOWEST]
    # An infinity would be a level, but makes the range infinite.
    facts_ref[NAN_OR_0] = zeros()

    def sorted_row(i: Index) -> Rows:
        return jnp.where(i.as_float < n_lowest, low, high)

    if tile.variant.n_ks:
        max_at_k(tile, sorted_row)
        return
    _, facts_ref[SUM_AT_HIGHEST] = weigh(tile, 0, sorted_row)

    def of_rows(b: Any) -> None:
        fact = facts_of(tile, b)
        of_lowest = values_of(tile.variant, zeros(), fact)
        of_highest = values_of(tile.variant, fact(SUM_AT_HIGHEST), fact)

        def put(slot: Any, x: jax.Array, carry: Any) -> Any:
            tile.block.values_ref[slot] = jnp.where(x > fact(LOWEST), of_highest, of_lowest)
            return carry

        each_slab(tile, b, put, 0)

    each_row_block(tile.block, of_rows, _row_blocks_at_once(tile.variant.n_samples))


def _row_blocks_at_once(n_samples: int) -> int:
    """Choose how many an iteration over slabs takes. All 8 would save 24 % of the bundles of
    rows of 128, 12 % of 256 and 1 % of 1024; long blocks of code take LLO long to schedule: the
    compiler takes 10.0, 12.3 and 15.4 s then, of 7.8, 9.6 and 13.1."""
    return 8 if n_samples <= 64 else 2 if n_samples <= 256 else 1


def _of_samples(reduce: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    """Reduce to one number for each of 128 rows, once for each sample of a slab: (8, 128) →
    (8, 128)."""
    return jnp.broadcast_to(reduce(x, axis=0, keepdims=True), (SUBLANES, LANES))
