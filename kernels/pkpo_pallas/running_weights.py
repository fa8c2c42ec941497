"""Weights that are made on the way, from the n and the k of each row.

What an estimator gives the i-th smallest of a row's rewards: `pkpo_pallas.weights`, with

    gap_j    = r_j · (gap_1 + gap_k·k + gap_n·n + gap_nn·n(n−1)) / D
    offset_j = r_j · (offset_1 + offset_k·k + (slope_1 + slope_n·n) · distance_j) / D
    max      = max_1 + max_k · k / (n · (n−1)^over_n_minus_1)
    D        = k^over_k · (n−k)^over_n_minus_k · (n−1)^over_n_minus_1

where distance_j is n−1−j if the estimator is counted from the top, else j. Where rows are scaled,
their weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pkpo_pallas.block import Rows, Tile, zeros
from pkpo_pallas.loops import Index, each_sample
from pkpo_pallas.plan import LANES, SUBLANES
from pkpo_pallas.weights import (
    Destination,
    Scanned,
    SortedRow,
    selected,
    sum_of_products,
    sums_of_levels,
)

# Beyond any row, and exact in float32: what a k may be cut to.
LARGEST_K = 1 << 24


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
                sum_of_products((factor, scale)) for factor in (gap, offset, slope)
            )
        work_ref = self.tile.work_ref

        # Downward: the term of every gap goes to the sample at its lower end.
        def weigh(i: Index, carry: Any) -> Any:
            chance, chance_above, above, offsets = carry
            sample = row(i)
            term = (chance if self.index_shift else chance_above) * (above - sample)
            weight = sum_of_products((1, offset), (slope, self._distance(i.as_float + 1)))
            offsets = offsets + sum_of_products((weight, term))
            if destination is not None:
                destination.put_sample(i, sample)
                work_ref[i.value] = sum_of_products((gap, term))
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
            return self.after(i, chance), chance, selected(is_here, [ratio] * len(found), found)

        start = (self.start, self.start, [zeros()] * len(ranks))
        _, _, ratios = self._each_sample(look, start, down=True)
        gap_weights = [sum_of_products((gap, ratio)) for ratio in ratios]
        offset_weights = [
            sum_of_products((sum_of_products((1, offset), (slope, self._distance(rank))), ratio))
            for rank, ratio in zip(ranks, ratios, strict=True)
        ]
        sums = sums_of_levels(levels, gap_weights, scale)
        offset = sums_of_levels(levels, offset_weights, scale)[-1]
        return Scanned(levels[-1], offset, levels[0]), sums

    def _distance(self, j: Any) -> Any:
        # Above a row's valid samples it is negative, and times a gap of 0.
        return self.n - 1 - j if self.counted_from_top else j

    def _each_sample(
        self, body: Callable[[Index, Any], Any], carry: Any, down: bool = False
    ) -> Any:
        unrolled = self.tile.variant.plan.unrolled
        return each_sample(unrolled, self.n_samples, body, carry, down=down)


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
        gap=sum_of_products(
            (
                sum_of_products((c.gap_1, 1), (c.gap_k, k), (c.gap_n, n), (c.gap_nn, n * (n - 1))),
                times,
            )
        ),
        offset=sum_of_products((sum_of_products((c.offset_1, 1), (c.offset_k, k)), times)),
        slope=sum_of_products((sum_of_products((c.slope_1, 1), (c.slope_n, n)), times)),
        max_coefficient=sum_of_products(
            (c.max_1, 1), (c.max_k, k / (n * n_minus_1 if c.over_n_minus_1 else n))
        ),
    )
