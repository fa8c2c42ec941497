"""From a sorted row to what each of its samples gets: row offset, factor, and the std of the best.

A row that holds a NaN or an infinity, or whose range overflows, is NaN: 0 times each of its samples
and 0 times its range are added to its row offset, and no other row is touched. On the way there
such a row may be sorted and looked up in any way, but only ever within its own tables.

Where an estimator's sums may exceed the range that they are made of, the weights of rows near the
largest float are scaled down by a power of two, and their values up again. Equal rewards get equal
bits: a gap of 0 adds nothing to a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pkpo_pallas.block import (
    FACTOR,
    NAN_OR_0,
    RANGE_SCALE,
    ROW_OFFSET,
    Ref,
    Rows,
    Tile,
    Variant,
    zeros,
)
from pkpo_pallas.layout import entry_of
from pkpo_pallas.loops import Index, divided, each_sample
from pkpo_pallas.plan import SUBLANES
from pkpo_pallas.running_weights import RunningWeights
from pkpo_pallas.sort import Segments, write_segments
from pkpo_pallas.weights import Destination, GivenWeights, Scanned, SortedRow

# Rows with larger rewards are scaled; what they are scaled by.
_LARGE, _RANGE_SCALE = 2.0**120, 2.0**-8

# What sums weighed gaps up, times a scale a row, (8, 128), where there is one.
Scan = Callable[[GivenWeights | RunningWeights, Rows | None], Scanned]


def weigh(tile: Tile, q: int, row: SortedRow, scan: Scan) -> Rows:
    """Weigh sorted rows, for max@k by its k number q: n samples (8, 128), and what sums their
    weighed gaps up → what the smallest reward gets, (8, 128). ROW_OFFSET ← the same, FACTOR ← what
    values are multiplied with."""
    variant = tile.variant
    weights = (GivenWeights if variant.k == "in_weights" else RunningWeights)(tile, q)
    scale = None
    if variant.range_scaled:
        n = variant.n_samples
        scale = _range_scale(row(Index(0, 0)), row(Index(0, n - 1)))
        tile.facts_ref[RANGE_SCALE] = scale
    if variant.has_factor:
        factor: Any = tile.group_size if variant.scale == "mean" else 1.0
        if scale is not None and variant.normalized:
            factor *= _inverse_std(tile, weights, row, scale)
        elif scale is not None:
            factor *= jnp.where(scale < 1, 1 / _RANGE_SCALE, 1.0)
        tile.facts_ref[FACTOR] = factor
    return _put_row_offset(tile, weights, scan(weights, scale), scale)


def scanning(row: SortedRow, destination: Destination | None = None) -> Scan:
    """Sum a row's weighed gaps up sample by sample: → what does it."""
    return lambda weights, scale: weights.scan(row, destination, scale)


def weigh_segments(tile: Tile, segments: Segments) -> None:
    """Weigh sorted rows whose segments are still to be computed → tables of the sorted row and of
    its prefix sums. ROW_OFFSET, FACTOR ← as `weigh`."""
    variant, destination = tile.variant, in_tables(tile)
    goes_once = variant.k == "in_weights" and not variant.range_scaled
    if not goes_once or variant.plan.unrolled == 1:
        # What is gone through more than once, or step by step, has to lie somewhere.
        write_segments(tile, segments)
        weigh(tile, 0, in_work(tile), scanning(in_work(tile), destination))
        return
    weights = GivenWeights(tile, 0)
    if variant.has_factor:
        tile.facts_ref[FACTOR] = tile.group_size
    _put_row_offset(tile, weights, weights.scan_segments(segments, destination), None)


def max_at_k(tile: Tile, row: SortedRow, scan: Scan) -> None:
    """Give the mean of the best of each k of sorted rows: n samples (8, 128), and what sums their
    weighed gaps up → (n_ks, 8, 128)."""
    for q in range(tile.variant.n_ks):
        best_ref: Ref = tile.block.out_ref.at[q, pl.ds(tile.index * SUBLANES, SUBLANES), :]
        best_ref[...] = weigh(tile, q, row, scan)


def values_of(
    variant: Variant, prefix_sum: jax.Array, fact: Callable[[int], jax.Array]
) -> jax.Array:
    """Give samples their values: exclusive prefix sums (8, 128), facts of the same rows →
    (8, 128)."""
    values = prefix_sum + fact(ROW_OFFSET)
    return values * fact(FACTOR) if variant.has_factor else values


def in_work(tile: Tile) -> SortedRow:
    """Take a sorted row from work."""
    return lambda i: tile.work_ref[i.value]


def to_work(tile: Tile) -> Destination:
    """Keep prefix sums in work, in place of the sorted row."""

    def put_sum(i: Index, prefix_sum: Rows) -> None:
        tile.work_ref[i.value] = prefix_sum

    return Destination(lambda i, sample: None, put_sum)


def in_tables(tile: Tile) -> Destination:
    """Keep a sorted row and its prefix sums in tables, or those of even ranks."""
    return Destination(partial(_put, tile, tile.keys_ref), partial(_put, tile, tile.sums_ref))


def _put(tile: Tile, table_ref: Ref, i: Index, x: Rows) -> None:
    if tile.variant.ranks_apart == 2:
        if isinstance(i.first, int) or i.step % 2 == 0:
            if i.offset % 2:
                return
            i = Index(divided(i.first, 2), i.offset // 2, max(1, i.step // 2))
        else:
            # The even rank comes behind the odd one, and stays.
            i = Index(divided(i.value + 1, 2), 0)
    table_ref[entry_of(tile, i)] = x


def _put_row_offset(
    tile: Tile, weights: GivenWeights | RunningWeights, scanned: Scanned, scale: Rows | None
) -> Rows:
    largest = scanned.largest if scale is None else scanned.largest * scale
    # Adding 0 turns a −0 into 0.
    offset = (weights.max_coefficient * largest - scanned.offset) + 0.0 + weights.otherwise
    nan_or_0 = tile.facts_ref[NAN_OR_0] + (scanned.largest - scanned.smallest) * 0.0
    offset = offset + nan_or_0
    tile.facts_ref[ROW_OFFSET] = offset
    return offset


def _inverse_std(
    tile: Tile, weights: GivenWeights | RunningWeights, row: SortedRow, scale: Rows
) -> Rows:
    """Divide 1 by the std of the best of k, scaled: (8, 128); 0 where only equal rewards can be
    it."""
    n, unrolled = tile.variant.n_samples, tile.variant.plan.unrolled
    largest = row(Index(0, n - 1))

    # How far the mean of the best lies below the largest: measured from there, an offset drops
    # out; and how far down the best can lie.
    def look(i: Index, carry: Any) -> Any:
        state, lead, reach = carry
        chance = weights.chance(i, state)
        below = largest - row(i)
        reach = jnp.where(chance > 0, jnp.maximum(reach, below), reach)
        return weights.after(i, state), lead + chance * below, reach

    start = (weights.start, zeros(), zeros())
    _, lead, reach = each_sample(unrolled, n, look, start, down=True)
    # Relative to the largest deviation, squares neither overflow nor vanish; where its inverse
    # might, one that is large enough will do.
    unit = jnp.minimum(jnp.maximum(lead, reach - lead), _LARGE)
    per_unit = jnp.where(unit > 0, 1 / jnp.where(unit > 0, unit, 1.0), 0.0)

    def square(i: Index, carry: Any) -> Any:
        state, variance = carry
        chance = weights.chance(i, state)
        deviation = (lead - (largest - row(i))) * per_unit
        square = jnp.where(chance > 0, chance * (deviation * deviation), 0.0)
        return weights.after(i, state), variance + square

    _, variance = each_sample(unrolled, n, square, (weights.start, zeros()), down=True)
    std = (unit * scale) * jnp.sqrt(variance)
    return jnp.where(std > 0, 1 / jnp.where(std > 0, std, 1.0), 0.0)


def _range_scale(smallest: Rows, largest: Rows) -> Rows:
    """Choose what a row's weights are multiplied with: a power of two, 1 but for large rows."""
    large = jnp.maximum(-smallest, largest) > _LARGE
    return jnp.where(large, _RANGE_SCALE, 1.0)
