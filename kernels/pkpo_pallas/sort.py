"""Sort rows in VMEM by their values alone: groups in registers, and merges of sorted runs.

What a merge does first is computed for the samples of one segment alone, from the halves that it
merges, so that the sorted row need not lie anywhere: whoever scans it computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import NAN_OR_0, Ref, Rows, Tile, zeros
from pkpo_pallas.layout import PADDING, entry_of, read_samples
from pkpo_pallas.loops import Index, isolated, without_carry
from pkpo_pallas.networks import Comparators, halving, sorting
from pkpo_pallas.plan import LANES, SUBLANES, Plan

# A sorted row, as what computes its segments, which are of one size; behind its samples comes what
# is larger than all.
Segments = Sequence[Callable[[], list[Rows]]]

# What reads samples of every row: how many from a first one on, a multiple of 8, → (8, 128) each.
Read = Callable[[Any, int], list[Rows]]

# Products that are formed side by side, so that one need not wait for the other.
_N_PRODUCTS = 4


def sort_row(tile: Tile) -> tuple[Segments, Tile]:
    """Sort rows of one run: rewards (padded, 1024) → their segments, and the tile with memory for
    more, which these are not computed from."""
    chosen, read = tile.variant.plan, partial(read_rewards, tile)
    size, width = chosen.n_padded, min(chosen.n_padded, chosen.group)
    if size == width:
        return [lambda: _sorted_group(read, 0, width)], tile
    source = tile.work_ref

    def sort_group(group: Any) -> None:
        here = pl.ds(group * width, width)
        source[here] = stacked(_sorted_group(read, group * width, width))

    # Two groups an iteration, of which one goes on where the other waits: 2 % fewer bundles at n =
    # 64.
    unroll = 2 if chosen.unrolled > 1 else 1
    lax.fori_loop(0, size // width, without_carry(sort_group), 0, unroll=unroll)

    def merged(source: Ref, span: int, first: int) -> list[Rows]:
        return _merged(source[pl.ds(first // span * span, span)], first % span, width)

    span = 2 * width
    tile = tile._replace(work_ref=tile.ping_pong_ref)
    while span < size:
        write_segments(tile, [partial(merged, source, span, i) for i in range(0, size, width)])
        source, tile = tile.work_ref, tile._replace(work_ref=source)
        span *= 2
    return [partial(merged, source, span, first) for first in range(0, size, width)], tile


def write_segments(tile: Tile, segments: Segments) -> None:
    """Compute a sorted row and write it to work: segments → (padded, 8, 128)."""

    def write(number: int) -> None:
        values = segments[number]()
        tile.work_ref[pl.ds(number * len(values), len(values))] = stacked(values)

    if len(segments) == 1:
        write(0)
        return
    for number in range(len(segments)):
        isolated(tile.block, partial(write, number))


def sort_runs(tile: Tile, read: Read) -> None:
    """Sort the runs of longer rows: what is read, (padded, 1024), → work, and where samples are
    looked up, the tables of all runs."""
    variant, chosen = tile.variant, tile.variant.plan
    width, run_ref = chosen.group, tile.ping_pong_ref

    def sort_run(run: Any) -> None:
        first = run * chosen.run
        smallest = smallest_of(chosen, run)

        def put(values: list[Rows], start: int) -> None:
            for c, value in enumerate(sorted_by(tuple(halving(width, width)), values)):
                tile.work_ref[smallest ^ (start + c)] = value
                if tile.keys_ref is not None:
                    tile.keys_ref[entry_of(tile, Index(0, start + c), run)] = value

        run_ref[...] = stacked(_sorted_group(read, first, width))
        # A sample meets its mirror image while its half is still in registers.
        upper = _sorted_group(read, first + width, width)
        for c, value in enumerate(upper):
            mirrored = run_ref[width - 1 - c]
            run_ref[width - 1 - c] = lax.min(value, mirrored)
            upper[c] = lax.max(value, mirrored)
        put(upper, width)
        put(unstacked(run_ref[...]), 0)

    n_runs = chosen.runs(variant.n_samples)
    lax.fori_loop(0, n_runs, without_carry(sort_run), 0)
    behind = chosen.n_padded - n_runs * chosen.run
    if behind:
        padding = jnp.full((behind, SUBLANES, LANES), PADDING)
        tile.work_ref[pl.ds(n_runs * chosen.run, behind)] = padding
    if tile.keys_ref is not None:
        # As behind a row's last sample, so that the largest float is not looked up there.
        for i in range(variant.n_samples - (n_runs - 1) * chosen.run, chosen.run):
            tile.keys_ref[entry_of(tile, Index(0, i), n_runs - 1)] = zeros() + jnp.inf


def smallest_of(chosen: Plan, run: Any) -> Any:
    """Tell where the smallest of a sorted run lies in work: every second run falls, for its merger,
    and the one of rank i lies at the exclusive or with i."""
    return run * chosen.run + (run & 1) * (chosen.run - 1)


def note_not_finite(tile: Tile, values: list[Rows]) -> None:
    """Look for what is not finite among values of (8, 128): 0 times all of them is then NaN.
    NAN_OR_0 ← NaN."""
    products = [x * 0.0 for x in values[:_N_PRODUCTS]]
    for i, x in enumerate(values[_N_PRODUCTS:]):
        products[i % _N_PRODUCTS] *= x
    tile.facts_ref[NAN_OR_0] = math.prod(products, start=tile.facts_ref[NAN_OR_0])


def read_rewards(tile: Tile, first: Any, count: int) -> list[Rows]:
    """Read `count` samples from `first` on, and note what is not finite: (8, 128) each."""
    rewards = read_samples(tile, first, count)
    note_not_finite(tile, rewards)
    return rewards


def _sorted_group(read: Read, first: Any, width: int) -> list[Rows]:
    return sorted_by(sorting(width), read(first, width))


def stacked(values: list[Rows]) -> jax.Array:
    """Stack registers: (8, 128) each → (count, 8, 128); traced sooner than by jnp.stack."""
    return lax.concatenate([lax.expand_dims(value, (0,)) for value in values], 0)


def unstacked(values: jax.Array) -> list[Rows]:
    """Take registers apart: (count, 8, 128) → (8, 128) each."""
    return [lax.index_in_dim(values, c, keepdims=False) for c in range(values.shape[0])]


def sorted_by(comparators: Comparators, values: list[Rows]) -> list[Rows]:
    """Sort values of (8, 128) by comparators."""
    values = list(values)
    for a, b in comparators:
        values[a], values[b] = lax.min(values[a], values[b]), lax.max(values[a], values[b])
    return values


def _merged(halves: jax.Array, first: int, width: int) -> list[Rows]:
    """Merge sorted halves, but only `width` samples from `first` on: (span, 8, 128) → (8, 128)
    each. What the first steps make of these is computed for them alone, and the rest is a matter
    of their own."""
    span, samples = halves.shape[0], unstacked(halves)
    # First a sample meets its mirror image, then what lies so far apart.
    distances = [span - 1, *(span >> i for i in range(2, (span // width).bit_length()))]

    def after(steps: int, i: int) -> Rows:
        if not steps:
            return samples[i]
        other = i ^ distances[steps - 1]
        pair = after(steps - 1, i), after(steps - 1, other)
        return lax.min(*pair) if i < other else lax.max(*pair)

    values = [after(len(distances), first + c) for c in range(width)]
    return sorted_by(tuple(halving(width, width)), values)
