"""Rows of few distinct values, which need no sort: their values are found one after the other, from
the smallest up, each with how many samples lie above it, and a sample gets what its value gets.

That takes six to seven operations a level and a sample, whatever the length of a row, and is tried
where the first samples of a tile's rows have few distinct values. Rows of bool have two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import NAN_OR_0, Block, Rows, Tile, tile_of, zeros
from pkpo_pallas.estimator import max_at_k, values_of, weigh
from pkpo_pallas.layout import (
    entry_reached,
    level_of,
    read_sample,
    read_samples,
    rounded,
    rows_inside,
    slab_of,
    taken,
)
from pkpo_pallas.loops import Index, each_iteration, each_row_block, each_tile, without_carry
from pkpo_pallas.networks import sorting
from pkpo_pallas.plan import FEWER_LEVELS, LANES, MOST_LEVELS, PITCH, SUBLANES
from pkpo_pallas.sort import sorted_by

# The samples of a row: that of an index, (8, 128).
Row = Callable[[Index], Rows]

# The samples that tell whether a row may have few levels: many would show, in some of so many rows.
_LOOKED_AT = 16
# What is computed side by side.
_SIDE_BY_SIDE = 4
# What finds a row's smallest and largest sample, and 0, or NaN where one is not finite; its start.
_ENDS: tuple[tuple[Callable[..., jax.Array], float], ...] = (
    (lax.min, math.inf),
    (lax.max, -math.inf),
    (lax.mul, 0.0),
)


def by_levels(block: Block, few: Callable[[int], None], many: Callable[[], None]) -> None:
    """Run few(n_levels) where all rows of a block are known to have at most so many distinct
    values, else many()."""
    variant = block.variant
    if not variant.looked_for:
        # Of bool or short.
        few(*variant.handed_out) if variant.boolean else many()
        return
    n_levels = block.scratch.flags_ref[0]  # ()
    if FEWER_LEVELS in variant.handed_out:

        @pl.when(n_levels == FEWER_LEVELS)
        def of_fewer_levels() -> None:
            few(FEWER_LEVELS)

    if MOST_LEVELS in variant.handed_out:

        @pl.when(n_levels == MOST_LEVELS)
        def of_most_levels() -> None:
            few(MOST_LEVELS)

    @pl.when(n_levels == 0)
    def of_many_levels() -> None:
        many()


def note_ends(block: Block, slab: Any, b: Any, slabs: list[jax.Array]) -> None:
    """Note the ends of 128 rows while their samples are copied in, from this slab on: there
    computation waits for transposes. Slabs of (8, 128) → ends_ref."""
    ends_ref = block.scratch.ends_ref
    here = pl.ds(pl.multiple_of(b * SUBLANES, SUBLANES), SUBLANES)
    for number, (combine, start) in enumerate(_ENDS):
        before = jnp.where(slab == 0, start, ends_ref[number, here, :])
        ends_ref[number, here, :] = reduce(combine, slabs, before)


def look_for_few_levels(block: Block) -> None:
    """Tell up to how many distinct values all rows of a block have, where the first samples of a
    tile do not have more: flags_ref ← so many, or 0 where some have more, or may have."""
    flags_ref, more_ref = block.scratch.flags_ref, block.scratch.more_ref
    looked_for, handed_out = block.variant.looked_for, block.variant.handed_out
    flags_ref[0] = 0

    def look(n_found: int, n_levels: int) -> Any:
        more_ref[...] = zeros()
        each_tile(block, lambda g: find_levels(tile_of(block, g), n_found, n_levels))
        more = jnp.max(more_ref[...]) > 0  # ()
        flags_ref[0] = jnp.where(more, 0, min(n for n in handed_out if n >= n_levels))
        return more

    first = sorted_by(sorting(_LOOKED_AT), read_samples(tile_of(block, 0), 0, _LOOKED_AT))
    rises = sum(jnp.where(b > a, 1.0, 0.0) for a, b in pairwise(first))
    promising = jnp.max(jnp.where(rows_inside(block, 0), rises, 0.0)) < looked_for[-1]  # ()

    @pl.when(promising)
    def look_at_all_samples() -> None:
        more = look(0, FEWER_LEVELS)
        if MOST_LEVELS in looked_for:

            @pl.when(more)
            def look_for_more_levels() -> None:
                look(FEWER_LEVELS, MOST_LEVELS)


def find_levels(tile: Tile, n_found: int, n_levels: int) -> None:
    """Find a row's smallest distinct values, up to `n_levels` of which `n_found` are known, and how
    many samples are above each: levels_ref, given_ref ← these; where there are no more, the last of
    them again. more_ref ← 1 where a row has more. NAN_OR_0 ← NaN where one is not finite."""
    facts_ref, levels_ref, given_ref = tile.facts_ref, tile.levels_ref, tile.given_ref
    if tile.variant.boolean:
        facts_ref[NAN_OR_0] = zeros()
        n_above, _ = _above(tile, partial(read_sample, tile), zeros())
        levels_ref[level_of(0)], given_ref[level_of(0)] = zeros(), n_above
        levels_ref[level_of(1)] = jnp.where(n_above > 0, 1.0, 0.0)
        return

    def next_level(row: Row, number: Any) -> None:
        level = levels_ref[level_of(number - 1)]
        n_above, above = _above(tile, row, level)
        given_ref[level_of(number - 1)] = n_above
        levels_ref[level_of(number)] = jnp.where(above < jnp.inf, above, level)

    first = n_found
    if n_found == 0:
        low, high, nan_or_0 = _ends(tile)
        levels_ref[level_of(0)], levels_ref[level_of(MOST_LEVELS)] = low, high
        facts_ref[NAN_OR_0] = nan_or_0
        next_level(partial(_copied, tile), 1)
        first = 2

    def find(i: Any) -> None:
        next_level(lambda i: tile.copy_ref[i.value], first + i)

    lax.fori_loop(0, n_levels - first, without_carry(find), 0)
    last, largest = levels_ref[level_of(n_levels - 1)], levels_ref[level_of(MOST_LEVELS)]
    for number in range(n_levels, MOST_LEVELS):
        given_ref[level_of(number - 1)], levels_ref[level_of(number)] = zeros(), last
    # A row with an infinity, which is above all levels, is NaN, and needs no more of them.
    more = (largest > last) & (largest < jnp.inf) & rows_inside(tile.block, tile.index)
    more_ref = tile.block.scratch.more_ref
    more_ref[...] = jnp.maximum(more_ref[...], jnp.where(more, 1.0, 0.0))


def _copied(tile: Tile, i: Index) -> Rows:
    """Read sample i of every row, and copy it to where a register is loaded at once: from staging
    it takes three operations."""
    x = read_sample(tile, i)
    tile.copy_ref[i.value] = x
    return x


def _ends(tile: Tile) -> list[Rows]:
    """Find a row's smallest and largest sample, and 0, or NaN where one is not finite: (8, 128)
    each. Where the last is NaN the others may be anything."""
    combines = [combine for combine, _ in _ENDS]
    if tile.variant.notes_ends:
        ends_ref = tile.block.scratch.ends_ref
        samples = [pl.ds(s, SUBLANES, stride=SUBLANES) for s in range(SUBLANES)]
        noted = [[ends_ref[i, sample, :] for sample in samples] for i in range(len(_ENDS))]
        return list(map(reduce, combines, noted))

    def look(x: Rows, ends: list[Rows]) -> list[Rows]:
        return [combine(end, x) for combine, end in zip(combines, ends, strict=True)]

    start = [zeros() + number for _, number in _ENDS]
    parts = _each_sample(tile, partial(read_sample, tile), look, start)
    return list(map(reduce, combines, zip(*parts, strict=True)))


def _above(tile: Tile, row: Row, level: Rows) -> tuple[Rows, Rows]:
    """Count a row's samples above a level, and find the smallest of them: (8, 128) each."""

    one, nothing, none = zeros() + 1.0, zeros(), zeros() + jnp.inf

    def look(x: Rows, seen: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
        is_above = x > level
        n_above, smallest = seen
        smallest = lax.min(smallest, lax.select(is_above, x, none))
        return n_above + lax.select(is_above, one, nothing), smallest

    parts = _each_sample(tile, row, look, (zeros(), zeros() + jnp.inf))
    n_above, smallest = zip(*parts, strict=True)
    return reduce(lax.add, n_above), reduce(lax.min, smallest)


def _each_sample(
    tile: Tile, read: Callable[[Index], Rows], look: Callable[[Rows, Any], Any], start: Any
) -> tuple[Any, ...]:
    """Run look(x, carry) for all samples of a row, side by side: → the carries."""
    n, unrolled = tile.variant.n_samples, tile.variant.plan.unrolled
    if n >= 4 * unrolled:
        # 2 % fewer bundles at n = 128.
        unrolled *= 2

    def some(first: Any, count: int, carries: tuple[Any, ...]) -> tuple[Any, ...]:
        found = list(carries)
        for c in range(count):
            x = read(Index(first, c, unrolled))
            found[c % len(found)] = look(x, found[c % len(found)])
        return tuple(found)

    carries: tuple[Any, ...] = (start,) * min(_SIDE_BY_SIDE, unrolled)
    done: tuple[Any, ...] = each_iteration(unrolled, n, some, carries)
    return done


def weigh_levels(tile: Tile, n_levels: int) -> None:
    """Compute what each level of a row gets: levels_ref, given_ref → given_ref, or the best of each
    k."""
    n = tile.variant.n_samples
    levels = [tile.levels_ref[level_of(number)] for number in range(n_levels)]  # (8, 128) each
    ranks = [
        n - tile.given_ref[level_of(number)] for number in range(n_levels - 1)
    ]  # (8, 128) each

    def sorted_row(i: Index) -> Rows:
        sample = levels[-1]
        for level, rank in zip(levels[-2::-1], ranks[::-1], strict=True):
            sample = jnp.where(i.as_float < rank, level, sample)
        return sample

    sums: list[Rows] = []

    def scan(weights: Any, scale: Rows | None) -> Any:
        scanned, sums[:] = weights.scan_levels(levels, ranks, scale)
        return scanned

    if tile.variant.n_ks:
        max_at_k(tile, sorted_row, scan)
        return
    weigh(tile, 0, sorted_row, scan)
    for number, prefix_sum in enumerate(sums):
        value = values_of(tile.variant, prefix_sum, lambda name: tile.facts_ref[name])
        tile.given_ref[level_of(number)] = rounded(value) if tile.variant.plan.packs else value


def give(block: Block, n_levels: int, g: Any) -> None:
    """Give the samples of tile g, in the native layout, what their levels get."""
    slabs = block.variant.n_samples // SUBLANES

    def of_rows(b: Any) -> None:
        value_of = given_by_level(block, n_levels, g, b)

        def some(first: Any, count: int, carry: Any) -> Any:
            for c in range(count):
                here = slab_of(block, g, first + c, b)
                block.values_ref[here] = value_of(block.rewards_ref[here])
            return carry

        each_iteration(block.variant.plan.unrolled, slabs, some, 0)

    each_row_block(block, of_rows)


def given_by_level(block: Block, n_levels: int, g: Any, b: Any) -> Callable[[jax.Array], jax.Array]:
    """Read what the levels of 128 rows get: → what gives it to their samples, (8, 128) → the
    same."""

    tile = tile_of(block, g)
    first = b * PITCH
    if n_levels == SUBLANES and block.variant.plan.gathers:
        # As many as a register holds, on a chip that can gather.
        table = pl.ds(first, SUBLANES)
        keys, values = tile.levels_ref[table, :], tile.given_ref[table, :]  # (8, 128) each
        middle = tile.levels_ref[pl.ds(first + SUBLANES // 2, 1), :]  # (1, 128)
        return lambda x: taken(values, entry_reached(x, keys, middle))

    def spread(ref: Any) -> list[jax.Array]:
        parts = [ref[pl.ds(first + number, 1), :] for number in range(n_levels)]
        return [jnp.broadcast_to(part, (SUBLANES, LANES)) for part in parts]

    levels, given = spread(tile.levels_ref), spread(tile.given_ref)

    def value_of(x: jax.Array) -> jax.Array:
        value = given[0]
        for level, above in zip(levels, given[1:], strict=False):
            value = lax.select(x > level, above, value)
        return value

    return value_of
