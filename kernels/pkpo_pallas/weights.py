"""Weigh the gaps of a sorted row and sum them up: with weights that come ready, or that are made
here from the row's own n and k.

What an estimator gives the i-th smallest of a row's rewards g_(1) ≤ … ≤ g_(n), with gaps
d_j = g_(j+1) − g_(j) and r_j = C(j − index_shift, k−1)/C(n, k), is

    max · g_(n) − Σ_j offset_j · d_j + Σ_{j<i} gap_j · d_j

    gap_j    = r_j · (gap_1 + gap_k·k + gap_n·n + gap_nn·n(n−1)) / D
    offset_j = r_j · (offset_1 + offset_k·k + (slope_1 + slope_n·n) · distance_j) / D
    max      = max_1 + max_k · k / (n · (n−1)^over_n_minus_1)
    D        = k^over_k · (n−k)^over_n_minus_k · (n−1)^over_n_minus_1

distance_j is n−1−j where the estimator is counted from the top, else j. Both kinds of weights have
the same methods. Where rows are scaled, their weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
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

# Beyond any row, and exact in float32: what a k may be cut to.
LARGEST_K = 1 << 24
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

        def iteration(first: Any, count: int, carry: _Sums) -> _Sums:
            return self._add(row, first, count, carry, destination, scale)

        smallest = row(Index(0, 0))
        # Below the smallest there is no gap: its weights are 0.
        start = _Sums(zeros(), zeros(), zeros())
        sums = each_iteration(self.tile.variant.plan.unrolled, self.n_samples, iteration, start)
        return Scanned(sums.previous, sums.offset, smallest)

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
            carry = self._add(row, first, count, carry, destination, None)
        return Scanned(carry.previous, carry.offset, smallest)

    def scan_levels(
        self, levels: list[Rows], ranks: list[Rows], scale: Rows | None
    ) -> tuple[Scanned, list[Rows]]:
        """Sum the weighed gaps of a row of few distinct values up: levels (8, 128), and how many
        samples reach to each but the last → what a scan finds, and the exclusive prefix sums of the
        levels."""
        gap_weights: list[Rows] = self._at(ranks, 0) if self.gaps_count else []
        sums = _sums_of_levels(levels, gap_weights, scale) if self.gaps_count else []
        if not self.tile.variant.offset_is_rare:
            offset_weights = self._at(ranks, self.first_offset)
            offset = _sums_of_levels(levels, offset_weights, scale)[-1]
            return Scanned(levels[-1], offset, levels[0]), sums
        facts_ref = self.tile.facts_ref
        facts_ref[OFFSET_SUM] = zeros()

        @pl.when(self.has_offset)
        def sum_offset() -> None:
            offset_weights = self._at(ranks, self.first_offset)
            facts_ref[OFFSET_SUM] = _sums_of_levels(levels, offset_weights, scale)[-1]

        return Scanned(levels[-1], facts_ref[OFFSET_SUM], levels[0]), sums

    def _at(self, ranks: list[Rows], section: int) -> list[Rows]:
        """Take the weights of the gaps above ranks from a section of the table: (8, 128) each."""
        unrolled = self.tile.variant.plan.unrolled
        found = [zeros()] * len(ranks)
        if not self.in_rows:

            def look(i: Index, found: list[Rows]) -> list[Rows]:
                weight = self._weight(section + i.value)
                return _chosen([rank == i.as_float for rank in ranks], [weight] * len(found), found)

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
            return _chosen(is_here, [taken(table, entry) for entry in entries], found)

        return each_sample(min(unrolled, SUBLANES), -(-self.n_samples // SUBLANES), take, found)

    def _add(
        self,
        row: SortedRow,
        first: Any,
        count: int,
        carry: _Sums,
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
                gap, previous = sample - previous, sample
                if scale is not None:
                    gap = gap * scale
                offset_apart = offset_apart + self._weight(self.first_offset + first + c) * gap
                if self.gaps_count:
                    gaps_apart = gaps_apart + self._weight(first + c) * gap
                if destination is not None:
                    prefix_sum = total + gaps_apart
                    destination.put_sample(i, sample)
                    destination.put_sum(i, prefix_sum)
            total, offset = total + gaps_apart, offset + offset_apart
        return _Sums(total, previous, offset)


class RunningWeights:
    """Weights from a running product, for the n and the k of each row.

    The chance of sample i, from 0, to be the best of k is C(i, k−1)/C(n, k); from the last one
    downward each is the one above times (i−k+1)/i.
    """

    def __init__(self, tile: Tile, q: int):
        variant, refs = tile.variant, tile.block.operands
        estimator = variant.estimator
        self.tile, self.n_samples, self.inverses_ref = tile, variant.n_samples, refs.inverses_ref
        self.index_shift, self.counted_from_top = estimator.index_shift, estimator.counted_from_top
        self.group_size = tile.group_size
        if variant.k == "per_row":
            k = refs.k_ref[pl.ds(tile.index * SUBLANES, SUBLANES), :]
            k = jnp.clip(k, 0, LARGEST_K).astype(jnp.float32)
        else:
            k = jnp.full((SUBLANES, LANES), refs.k_ref[q])
        largest_k = self.group_size - int(estimator.requires_k_lt_n)
        if variant.undersized == "clip":
            k = jnp.minimum(k, largest_k)
        k_is_valid = (k >= 1) & (k <= largest_k)
        # Where no k is valid the formulas see two samples and k=1, all weights times 0.
        n, k = jnp.where(k_is_valid, self.group_size, 2.0), jnp.where(k_is_valid, k, 1.0)
        valid = jnp.where(k_is_valid, 1.0, 0.0)
        self.n, self.k, self.k_is_1 = n, k, k == 1
        factors = _factors(estimator.coefficients, n, k)
        if estimator.coefficients_at_k_1 is not None:
            at_k_1 = _factors(estimator.coefficients_at_k_1, n, k)
            factors = _Factors(*map(partial(jnp.where, self.k_is_1), at_k_1, factors))
        self.factors = factors
        self.max_coefficient = factors.max_coefficient * valid
        self.start = valid * (k / n)
        self.otherwise = (
            jnp.where(k_is_valid, 0.0, jnp.nan) if variant.undersized == "nan" else zeros()
        )

    def chance(self, i: Index, chance: Rows) -> Rows:
        """Tell sample i's chance to be the best of k: (8, 128)."""
        if not self.tile.variant.masked:
            return chance
        return jnp.where(i.as_float < self.group_size, chance, 0.0)

    def after(self, i: Index, chance: Rows) -> Rows:
        """Go on to the sample below i: its chance, (8, 128)."""
        index = i.as_float
        ratio = jnp.maximum(index + 1 - self.k, 0.0) * self.inverses_ref[i.value]
        below = jnp.where(self.k_is_1, chance, chance * ratio)
        if not self.tile.variant.masked:
            return below
        # Above a row's valid samples nothing changes yet.
        return jnp.where(index < self.group_size, below, chance)

    def scan(self, row: SortedRow, destination: Destination | None, scale: Rows | None) -> Scanned:
        """Sum a sorted row's weighed gaps up: n samples (8, 128)."""
        gap, offset, slope, _ = self.factors
        if scale is not None:
            gap, offset, slope = (
                _sum_of_products((factor, scale)) for factor in (gap, offset, slope)
            )
        work_ref = self.tile.work_ref

        # Downward: the term of every gap goes to the sample at its lower end.
        def weigh(i: Index, carry: Any) -> Any:
            chance, chance_above, above, offsets = carry
            sample = row(i)
            term = (chance if self.index_shift else chance_above) * (above - sample)
            weight = _sum_of_products((1, offset), (slope, self._distance(i.as_float + 1)))
            offsets = offsets + _sum_of_products((weight, term))
            if destination is not None:
                destination.put_sample(i, sample)
                work_ref[i.value] = _sum_of_products((gap, term))
            return self.after(i, chance), chance, sample, offsets

        largest = row(Index(0, self.n_samples - 1))
        carry = (self.start, self.start, largest, zeros())
        _, _, smallest, offsets = self._each_sample(weigh, carry, down=True)
        if destination is not None:
            put_sum = destination.put_sum

            def add(i: Index, total: Rows) -> Rows:
                term = work_ref[i.value]
                put_sum(i, total)
                return total + term

            self._each_sample(add, zeros())
        return Scanned(largest, offsets, smallest)

    def scan_levels(
        self, levels: list[Rows], ranks: list[Rows], scale: Rows | None
    ) -> tuple[Scanned, list[Rows]]:
        """Sum the weighed gaps of a row of few distinct values up, as `GivenWeights` does."""
        gap, offset, slope, _ = self.factors

        # Downward: the gap above sample i is the one above rank i + 1.
        def look(i: Index, carry: Any) -> Any:
            chance, chance_above, found = carry
            ratio = chance if self.index_shift else chance_above
            is_here = [rank == i.as_float + 1 for rank in ranks]
            return self.after(i, chance), chance, _chosen(is_here, [ratio] * len(found), found)

        start = (self.start, self.start, [zeros()] * len(ranks))
        _, _, ratios = self._each_sample(look, start, down=True)
        gap_weights = [_sum_of_products((gap, ratio)) for ratio in ratios]
        offset_weights = [
            _sum_of_products((_sum_of_products((1, offset), (slope, self._distance(rank))), ratio))
            for rank, ratio in zip(ranks, ratios, strict=True)
        ]
        sums = _sums_of_levels(levels, gap_weights, scale)
        offset = _sums_of_levels(levels, offset_weights, scale)[-1]
        return Scanned(levels[-1], offset, levels[0]), sums

    def _distance(self, j: Any) -> Any:
        # Above a row's valid samples it is negative, and times a gap of 0.
        return self.n - 1 - j if self.counted_from_top else j

    def _each_sample(
        self, body: Callable[[Index, Any], Any], carry: Any, down: bool = False
    ) -> Any:
        unrolled = self.tile.variant.plan.unrolled
        return each_sample(unrolled, self.n_samples, body, carry, down=down)


def section_size(variant: Variant) -> int:
    """Count the numbers of a section of a table of weights, one for each sample: in rows they fill
    registers of 8."""
    n = variant.n_samples
    return -(-n // SUBLANES) * SUBLANES if variant.weights_in_rows else n


def _sums_of_levels(levels: list[Rows], weights: list[Any], scale: Rows | None) -> list[Rows]:
    """Sum weighed gaps between levels up: (8, 128) each → the exclusive prefix sums."""
    sums = [zeros()]
    for (lower, upper), weight in zip(pairwise(levels), weights, strict=True):
        gap = upper - lower if scale is None else (upper - lower) * scale
        sums.append(sums[-1] + _sum_of_products((weight, gap)))
    return sums


def _chosen(conditions: list[Any], values: list[Any], others: list[Rows]) -> list[Rows]:
    return [jnp.where(*each) for each in zip(conditions, values, others, strict=True)]


class _Factors(NamedTuple):
    """What a row's weights share: numbers, or (8, 128) each."""

    gap: Any  # times r_j
    offset: Any  # times r_j
    slope: Any  # times r_j and the distance
    max_coefficient: Any


def _factors(coefficients: Any, n: Rows, k: Rows) -> _Factors:
    c = coefficients
    n_minus_1, n_minus_k = jnp.maximum(n - 1, 1.0), jnp.maximum(n - k, 1.0)
    divisors = [
        divisor
        for applies, divisor in (
            (c.over_k, k),
            (c.over_n_minus_k, n_minus_k),
            (c.over_n_minus_1, n_minus_1),
        )
        if applies
    ]
    times = 1 / math.prod(divisors[1:], start=divisors[0]) if divisors else 1
    return _Factors(
        gap=_sum_of_products(
            (
                _sum_of_products((c.gap_1, 1), (c.gap_k, k), (c.gap_n, n), (c.gap_nn, n * (n - 1))),
                times,
            )
        ),
        offset=_sum_of_products((_sum_of_products((c.offset_1, 1), (c.offset_k, k)), times)),
        slope=_sum_of_products((_sum_of_products((c.slope_1, 1), (c.slope_n, n)), times)),
        max_coefficient=_sum_of_products(
            (c.max_1, 1), (c.max_k, k / (n * n_minus_1 if c.over_n_minus_1 else n))
        ),
    )


def _sum_of_products(*pairs: tuple[Any, Any]) -> Any:
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
