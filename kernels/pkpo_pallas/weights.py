"""Weigh the gaps of a sorted row and sum them up, with weights that come ready.

What an estimator gives the i-th smallest of a row's rewards g_(1) ≤ … ≤ g_(n), with gaps
d_j = g_(j+1) − g_(j) and r_j = C(j − index_shift, k−1)/C(n, k), is

    max · g_(n) − Σ_j offset_j · d_j + Σ_{j<i} gap_j · d_j

Weights that are made on the way, `pkpo_pallas.running_weights`, have the same methods.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import HAS_OFFSET, OFFSET_SUM, Rows, Tile, Variant, zeros
from pkpo_pallas.layout import taken
from pkpo_pallas.loops import Index, each_iteration, each_sample
from pkpo_pallas.plan import LANES, SUBLANES
from pkpo_pallas.sort import Segments

# Partial sums of a scan are this long, so that one need not wait for all before it.
_SUMMED_APART = 8

# A sorted row: the sample of an index, (8, 128).
SortedRow = Callable[[Index], Rows]


class Destination(NamedTuple):
    """Where a scan puts the samples of a sorted row, and their exclusive prefix sums."""

    put_sample: Callable[[Index, Rows], None]
    put_sum: Callable[[Index, Rows], None]


class Scanned(NamedTuple):
    """What a scan finds: (8, 128) each."""

    largest: Rows
    offset: Rows  # Σ offset_j d_j
    smallest: Rows


class _Sums(NamedTuple):
    """How far a scan is: (8, 128) each."""

    total: Rows  # Σ gap_j d_j
    previous: Rows  # sample
    offset: Rows  # Σ offset_j d_j


class _Summed(NamedTuple):
    """Which weighed gaps are summed up."""

    gaps: bool
    offsets: bool


class GivenWeights:
    """Weights of a table, for rows that share n and k."""

    # The state that `chance` takes, which a table has no use for.
    start = None

    def __init__(self, tile: Tile, q: int):
        refs, self.tile = tile.block.operands, tile
        self.n_samples = tile.variant.n_samples
        self.max_coefficient = refs.scalars_ref[2 * q]
        self.otherwise = refs.scalars_ref[2 * q + 1]
        self.weights_ref, self.in_rows = refs.weights_ref, tile.variant.weights_in_rows
        self.has_offset = refs.integers_ref[HAS_OFFSET] > 0
        self.gaps_count = not tile.variant.n_ks
        self.section = section_size(tile.variant)
        self.first_offset = self.section if self.gaps_count else q * self.section

    def chance(self, i: Index, state: None) -> Rows:
        """Read sample i's chance to be the best of k: (8, 128)."""
        return jnp.broadcast_to(self._weight(2 * self.section + i.value), (SUBLANES, LANES))

    def _weight(self, number: Any) -> Any:
        """Read a weight: a number, or once for each row, (8, 128)."""
        if not self.in_rows:
            return self.weights_ref[number]
        return jnp.broadcast_to(self.weights_ref[pl.ds(number, 1), :], (SUBLANES, LANES))

    def after(self, i: Index, state: None) -> None:
        """Go on to the sample below."""
        return None

    def scan(self, row: SortedRow, destination: Destination | None, scale: Rows | None) -> Scanned:
        """Sum a sorted row's weighed gaps up: n samples (8, 128)."""
        unrolled, smallest = self.tile.variant.plan.unrolled, row(Index(0, 0))

        def sums(of: _Summed, destination: Destination | None) -> _Sums:
            def iteration(first: Any, count: int, carry: _Sums) -> _Sums:
                return self._add(row, first, count, carry, of, destination, scale)

            # Below the smallest there is no gap: its weights are 0.
            start = _Sums(zeros(), zeros(), zeros())
            found: _Sums = each_iteration(unrolled, self.n_samples, iteration, start)
            return found

        if not self.tile.variant.offset_is_rare:
            found = sums(_Summed(self.gaps_count, True), destination)
            return Scanned(found.previous, found.offset, smallest)
        # Before sums take the place of the row.
        offset = self._rare_offset(lambda: sums(_Summed(False, True), None).offset)
        return Scanned(sums(_Summed(True, False), destination).previous, offset, smallest)

    def scan_segments(self, segments: Segments, destination: Destination) -> Scanned:
        """Sum a sorted row's weighed gaps up while its segments are in registers."""
        carry, smallest = _Sums(zeros(), zeros(), zeros()), zeros()
        width = self.tile.variant.plan.n_padded // len(segments)
        for first, segment in zip(range(0, self.n_samples, width), segments, strict=False):
            values = segment()
            if first == 0:
                smallest = values[0]

            def row(i: Index, values: list[Rows] = values) -> Rows:
                return values[i.offset]

            count = min(width, self.n_samples - first)
            carry = self._add(row, first, count, carry, _Summed(True, True), destination, None)
        return Scanned(carry.previous, carry.offset, smallest)

    def scan_levels(
        self, levels: list[Rows], ranks: list[Rows], scale: Rows | None
    ) -> tuple[Scanned, list[Rows]]:
        """Sum the weighed gaps of a row of few distinct values up: levels (8, 128), and how many
        samples reach to each but the last → what a scan finds, and the exclusive prefix sums of the
        levels."""
        gap_weights: list[Rows] = self._at(ranks, 0) if self.gaps_count else []
        sums = sums_of_levels(levels, gap_weights, scale) if self.gaps_count else []

        def offset() -> Rows:
            offset_weights = self._at(ranks, self.first_offset)
            return sums_of_levels(levels, offset_weights, scale)[-1]

        is_rare = self.tile.variant.offset_is_rare
        return Scanned(
            levels[-1], self._rare_offset(offset) if is_rare else offset(), levels[0]
        ), sums

    def _rare_offset(self, sum_up: Callable[[], Rows]) -> Rows:
        """Sum the weighed gaps of a row offset up where there are weights that are not 0."""
        facts_ref = self.tile.facts_ref
        facts_ref[OFFSET_SUM] = zeros()

        @pl.when(self.has_offset)
        def sum_offset() -> None:
            facts_ref[OFFSET_SUM] = sum_up()

        found: Rows = facts_ref[OFFSET_SUM]
        return found

    def _at(self, ranks: list[Rows], section: int) -> list[Rows]:
        """Take the weights of the gaps above ranks from a section of the table: (8, 128) each."""
        unrolled = self.tile.variant.plan.unrolled
        found = [zeros()] * len(ranks)
        if not self.in_rows:

            def look(i: Index, found: list[Rows]) -> list[Rows]:
                weight = self._weight(section + i.value)
                return selected(
                    [rank == i.as_float for rank in ranks], [weight] * len(found), found
                )

            return each_sample(unrolled, self.n_samples, look, found)
        # Registers hold eight, for the chip to gather from.
        numbers = [rank.astype(jnp.int32) for rank in ranks]
        entries = [number & (SUBLANES - 1) for number in numbers]
        registers = [lax.shift_right_logical(number, 3) for number in numbers]

        def take(i: Index, found: list[Rows]) -> list[Rows]:
            first: Any = section + i.value * SUBLANES
            if not isinstance(first, int):
                first = pl.multiple_of(first, SUBLANES)
            table = self.weights_ref[pl.ds(first, SUBLANES), :]
            is_here = [register == i.value for register in registers]
            return selected(is_here, [taken(table, entry) for entry in entries], found)

        return each_sample(min(unrolled, SUBLANES), -(-self.n_samples // SUBLANES), take, found)

    def _add(
        self,
        row: SortedRow,
        first: Any,
        count: int,
        carry: _Sums,
        of: _Summed,
        destination: Destination | None,
        scale: Rows | None,
    ) -> _Sums:
        """Add the gaps below samples first, first + 1, …"""
        total, previous, offset = carry
        for start in range(0, count, _SUMMED_APART):
            gaps_apart, offset_apart = zeros(), zeros()
            for c in range(start, min(start + _SUMMED_APART, count)):
                i = Index(first, c, self.tile.variant.plan.unrolled)
                sample = row(i)
                gap, previous = lax.sub(sample, previous), sample
                if scale is not None:
                    gap = gap * scale
                if of.offsets:
                    weight = self._weight(self.first_offset + first + c)
                    offset_apart = lax.add(offset_apart, weight * gap)
                if of.gaps:
                    gaps_apart = lax.add(gaps_apart, self._weight(first + c) * gap)
                if destination is not None:
                    prefix_sum = lax.add(total, gaps_apart)
                    destination.put_sample(i, sample)
                    destination.put_sum(i, prefix_sum)
            total, offset = total + gaps_apart, offset + offset_apart
        return _Sums(total, previous, offset)


def section_size(variant: Variant) -> int:
    """Count the numbers of a section of a table of weights, one for each sample: in rows they fill
    registers of 8."""
    n = variant.n_samples
    return -(-n // SUBLANES) * SUBLANES if variant.weights_in_rows else n


def sums_of_levels(levels: list[Rows], weights: list[Any], scale: Rows | None) -> list[Rows]:
    """Sum weighed gaps between levels up: (8, 128) each → the exclusive prefix sums."""
    sums = [zeros()]
    for (lower, upper), weight in zip(pairwise(levels), weights, strict=True):
        gap = upper - lower if scale is None else (upper - lower) * scale
        sums.append(sums[-1] + sum_of_products((weight, gap)))
    return sums


def selected(conditions: list[Any], values: list[Any], others: list[Rows]) -> list[Rows]:
    return [jnp.where(*each) for each in zip(conditions, values, others, strict=True)]


def sum_of_products(*pairs: tuple[Any, Any]) -> Any:
    """Sum products up, numbers or (8, 128). The coefficients are constants of the kernel: a term
    that is 0 is left out, and a factor that is 1."""
    total: Any = 0.0
    for pair in pairs:
        if any(_is(x, 0) for x in pair):
            continue
        product: Any = 1.0
        for x in pair:
            product = product if _is(x, 1) else x if _is(product, 1) else product * x
        total = product if _is(total, 0) else total + product
    return total


def _is(x: Any, number: int) -> bool:
    return isinstance(x, (int, float)) and x == number
