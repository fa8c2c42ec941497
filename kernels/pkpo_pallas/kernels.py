"""Sort a row in VMEM, weigh its gaps, scan them, and give every sample its value: one launch.

A tile is 1024 rows, and a register holds one sample of each, so that every comparator and every
step of a scan is elementwise. The way of the data, where the chip can gather and rows are short:

    copied in → sorted → gaps · weights → prefix scan → tables of what lies beneath which reward
              → every sample looks its own reward up → copied out

where they are longer:

    copied in → runs of them sorted → these merged, keeping every decision → gaps · weights
              → prefix scan → the mergers undone, by the decisions → tables, one run after the other
              → every sample looks its own reward up in its run → copied out

and where the chip cannot gather:

    copied in → sorted, keeping every decision → gaps · weights → prefix scan
              → the comparators undone, by the decisions → copied out

A sample is looked up where it lies, in registers of 8 samples of 128 rows, as a table has 8
entries for 128 rows: a gather is then an operation within a register, for each row in its own
column. An outcome is a function of the reward, so no sample needs to know where it was sorted to.

What an estimator gives the i-th smallest of a row's rewards g_(1) ≤ … ≤ g_(n), with gaps
d_j = g_(j+1) − g_(j), is

    anchor · g_(n) − Σ_j below_j · d_j + Σ_{j<i} gap_j · d_j

The weights are those of a table where all rows share n and k. Otherwise they are made here, from
the row's own n and k: r_j = C(j−lag, k−1) / C(n, k) is a running product downward, and an estimator
is a few numbers (see `pkpo_pallas.weights`).

Rows of two different rewards are not sorted but counted, where a whole block consists of them.
Samples that are left out take the value of its largest, so that the gaps above are 0. Equal rewards
get equal bits: a gap of 0 adds nothing to a sum.

A row that holds a NaN or an infinity, or whose range overflows, is NaN: 0 times each of its samples
and 0 times its range are added to what its smallest gets, and no other row is touched. On the way
there such a row may be sorted and looked up in any way, but only ever within its own tables. Where
an estimator's sums may exceed the range that they are made of, rows near the largest float are
scaled down by a power of two, and their outcomes up again: see `_range_scale`.

The compiler takes whatever stands in one block of code as a whole: it would keep in registers what
one phase stores and the next one loads, and spill it. Phases are therefore loops of their own, some
of a single turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.networks import (
    Comparators,
    Pass,
    halving,
    packed,
    passes,
    sorting,
    words_for,
)
from pkpo_pallas.plan import LANES, PITCH, RUN_GROUPS, SUBLANES, TILE_ROWS, Plan

# A reference to memory on the chip, for which JAX has no public type; None where there is none.
Ref = Any
# A number a row: (8, 128), row 128 · sublane + lane of its tile.
Rows = jax.Array
# A sorted row, as what computes its pieces, which are of one size; behind its samples comes what is
# larger than all.
Pieces = Sequence[Callable[[], list[Rows]]]
# What takes a sample of a sorted row, and what it has beneath it.
Keep = Callable[["_Number", Rows | None, Rows | None], None]

# Beyond any row, and exact in float32: what a k may be cut to.
LARGEST_K = 1 << 24
# Samples that are left out, while they are copied in: a NaN that no computation gives.
_LEFT_OUT = 0x7FC0DEAD
# Rows of fewer samples are sorted as fast as they are looked at.
_SHORTEST_COUNTED = 17
# Partial sums of a scan are this long, so that one need not wait for all before it.
_SUMMED_APART = 8
# Products that are formed side by side, for the same reason.
_MULTIPLIED_APART = 4
# Behind a row's samples: no finite reward is larger, and 0 times it is 0.
_PADDING = float(np.finfo(np.float32).max)
# Rows with larger rewards are scaled; what they are scaled by.
_LARGE, _RANGE_SCALE = 2.0**120, 2.0**-8

# What is known of a tile's rows, by its place in memory: what the smallest reward gets, and what
# outcomes are multiplied with; how many samples are valid; 0, or NaN where one is not finite; and
# of rows of two levels, what the upper one gets, the levels, and how many have the lower one.
SMALLEST, FACTOR, SIZE, NAN_OR_0, AT_TOP, LOWEST, HIGHEST, LOWS = range(8)
FACTS = 8

# Of the integers that come with a launch.
ONE, N_ROWS = range(2)


class Variant(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        n: samples of a row.
        plan: see `pkpo_pallas.plan`.
        as_it_lies: blocks are (n / 8, 64 · tiles, 128), as float32 (n, rows) lies in memory
          where n is a multiple of 8: see `Scratch.raw`.
        n_ks: 0 for a transform; for max@k, how many ks.
        masked: samples may be left out.
        counted: the rewards are bool, and no row is sorted.
        k: "table", all rows share n and k, and the weights come ready; "scalar", all rows share k;
          "row", each has its own.
        lag, mirror, spared, standardised: the estimator: see `pkpo_pallas.weights`.
        row_offset: what a row's smallest reward gets is not 0.
        by_mean: values times the size of the row's group.
        undersized: "zero", "nan" or "clip".
    """

    n: int
    plan: Plan
    as_it_lies: bool
    n_ks: int
    masked: bool
    counted: bool
    k: str
    lag: int
    mirror: int
    spared: int
    standardised: bool
    row_offset: bool
    by_mean: bool
    undersized: str

    @property
    def range_scaled(self) -> bool:
        """Whether large rows are scaled: what is added to the row offset may exceed the outcome,
        or 1 / a deviation be below the smallest float. The best of k does neither."""
        return not self.n_ks and (self.row_offset or self.standardised)

    @property
    def multiplied(self) -> bool:
        """Whether outcomes have a factor."""
        return self.range_scaled or self.by_mean


class Operands(NamedTuple):
    """What a kernel reads; None where its variant has no use for it.

    Attributes:
        rewards, where: (n, rows) blocks, samples major, or (rows, n) ones.
        integers: (2,) the number 1, which the compiler does not know, and the number of rows.
        k: (n_ks or 1,) whole numbers in float32; or (8 · tiles, 128) in int32, one a row.
        table: gap, below, best, n numbers each; for max@k the below of each k.
        scalars: the anchor, and what is added to every value, 0 or NaN; for each k of max@k.
        form: (26,) the numbers of an estimator for k ≥ 2, and for k = 1.
        inverses: (n,) 0, then 1/p.
    """

    rewards: Ref
    where: Ref
    integers: Ref
    k: Ref
    table: Ref
    scalars: Ref
    form: Ref
    inverses: Ref


class Scratch(NamedTuple):
    """Memory of a kernel.

    Attributes:
        raw: (samples / 8, tiles · 64, 128): slab of 8 samples, tile, 128 rows, sample of the slab;
          the rewards, and in the end the values, but where these go out as they are found. None
          where the blocks are laid out so.
        work: (tiles abreast, samples, 8, 128): what is sorted and scanned.
        spare: (samples of a run, 8, 128), for merges that go to and fro.
        keys, sums: (tiles abreast, tables, 8 · PITCH, 128): the sorted runs, and what each sample
          of one run has beneath it; None where none is looked up.
        decisions: (words, 8, 128) int32, None where none are kept.
        facts: (tiles, FACTS, 8, 128).
        noted: (8, 128): how many samples are none of the two levels of their row.
        flags: (1,) int32: whether all rows of the block have two levels.
    """

    raw: Ref
    work: Ref
    spare: Ref
    keys: Ref
    sums: Ref
    decisions: Ref
    facts: Ref
    noted: Ref
    flags: Ref


def when(condition: str, holds: Any) -> Callable[[Callable[[], None]], None]:
    """pl.when, by a name under which `bench.tpu_static` decides what it counts."""
    del condition
    return pl.when(holds)


def kernel(variant: Variant, operands: Operands, out_ref: Ref, scratch: Scratch) -> None:
    """A grid step: a block of short rows, or a chunk of samples of a tile of long ones."""
    block = _Block(variant, operands, out_ref, scratch)
    if not variant.plan.chunked:
        if not variant.as_it_lies:
            block.each_tile(lambda g: block.copy_in(0, g))
        block.compute()
        return
    phase, chunk = pl.program_id(1), pl.program_id(2)
    slab = chunk * (LANES // SUBLANES)

    @when("copies in", phase == 0)
    def _() -> None:
        block.copy_in(slab, 0)

        @when("last chunk", chunk == pl.num_programs(2) - 1)
        def _() -> None:
            block.compute()

    if not variant.n_ks:

        @when("copies out", phase == 1)
        def _() -> None:
            block.copy_out(slab, 0)


class _Block:
    """A block of tiles, which are worked on one at a time."""

    def __init__(self, variant: Variant, operands: Operands, out_ref: Ref, scratch: Scratch):
        self.variant = variant
        self.operands = operands
        self.out_ref = out_ref
        self.scratch = scratch
        self.n = variant.n
        self.tiles = variant.plan.tiles
        # Blocks as the array lies in memory need no copy.
        as_it_lies = variant.as_it_lies
        self.rewards = operands.rewards if as_it_lies else scratch.raw
        self.values = out_ref if as_it_lies else scratch.raw

    @property
    def out_samples(self) -> int:
        """Samples of a row that go out at once."""
        size: int = self.out_ref.shape[1 if self.variant.plan.row_major else 0]
        return size

    def each_tile(self, body: Callable[[Any], None]) -> None:
        if self.tiles == 1:
            body(0)
        else:
            lax.fori_loop(0, self.tiles, _without_carry(body), 0)

    def apart(self, body: Callable[[], None]) -> None:
        """A phase of its own."""
        lax.fori_loop(0, self.operands.integers[ONE], _without_carry(lambda _: body()), 0)

    def apart_with(self, body: Callable[[Any], Any], carry: Any) -> Any:
        """One that makes something of what it is given."""
        return lax.fori_loop(0, self.operands.integers[ONE], lambda _, carry: body(carry), carry)

    # Between a block and its tiles.

    def each_row_block(self, body: Callable[[Any], None], unroll: int = SUBLANES) -> None:
        """For every 128 rows of a tile."""
        unroll = unroll if self.variant.plan.unrolled > 1 else 1
        lax.fori_loop(0, SUBLANES, _without_carry(body), 0, unroll=unroll)

    @property
    def row_blocks_at_once(self) -> int:
        """How many a turn takes that goes over levels: long blocks of code take long to compile."""
        return 8 if self.n <= 64 else 2 if self.n <= 256 else 1

    def place(self, g: Any, b: Any) -> Any:
        """Where 128 rows lie in the blocks of rewards and values."""
        first = pl.multiple_of((g * SUBLANES + b) * LANES, LANES)
        rows = pl.ds(first, LANES)
        return (rows, slice(None)) if self.variant.plan.row_major else (slice(None), rows)

    def copy_in(self, slab: Any, g: Any) -> None:
        """A block, its first sample being that of this slab → raw."""
        refs = self.operands

        def of_rows(b: Any) -> None:
            piece = _as_float(refs.rewards[self.place(g, b)])
            if refs.where is not None:
                piece = _marked(piece, refs.where[self.place(g, b)])
            piece = piece.T if self.variant.plan.row_major else piece
            for c in range(piece.shape[0] // SUBLANES):
                place = self.slab_in_raw(g, slab + c, b)
                self.scratch.raw[place] = piece[c * SUBLANES : (c + 1) * SUBLANES]

        self.each_row_block(of_rows)

    def note(self, total: jax.Array, g: Any, b: Any) -> None:
        """Adds up what is seen of 128 rows; what lies behind the last row may be anything."""
        first = (pl.program_id(0) * self.tiles + g) * TILE_ROWS + b * LANES
        row = first + lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1)
        inside = row < self.operands.integers[N_ROWS]
        self.scratch.noted[...] += jnp.where(inside, total, 0.0)

    def copy_out(self, slab: Any, g: Any) -> None:
        """raw → a block, its first sample being that of this slab."""

        self.each_row_block(lambda b: self.copy_out_rows(slab, g, b))

    def copy_out_rows(self, slab: Any, g: Any, b: Any) -> None:
        slabs = range(self.out_samples // SUBLANES)
        self.put_out([self.scratch.raw[self.slab_in_raw(g, slab + c, b)] for c in slabs], g, b)

    def put_out(self, slabs: list[jax.Array], g: Any, b: Any) -> None:
        """The samples of 128 rows, in eights."""
        values = jnp.concatenate(slabs)
        if self.variant.plan.row_major:
            values = values.T
        if self.operands.where is not None:
            own = _as_mask(self.operands.where[self.place(g, b)])
            values = jnp.where(own, values, 0.0)
        self.out_ref[self.place(g, b)] = values.astype(self.out_ref.dtype)

    def slab_in_raw(self, g: Any, slab: Any, b: Any) -> Any:
        """Where 8 samples of 128 rows lie."""
        first = (g * SUBLANES + b) * SUBLANES
        return slab, pl.ds(pl.multiple_of(first, SUBLANES), SUBLANES), slice(None)

    # What a block is like.

    def _look_for_two_levels(self) -> None:
        """flags ← whether all rows have two levels."""
        self.scratch.flags[0] = 0

        def look_at_all() -> None:
            self.scratch.noted[...] = _zero()
            self.each_tile(lambda g: _Tile(self, g).find_levels())
            two_levels = jnp.max(self.scratch.noted[...]) == 0
            self.scratch.flags[0] = two_levels.astype(jnp.int32)

        if self.variant.masked:
            # Where some are left out, the first three say nothing.
            look_at_all()
            return

        def three_levels(g: Any, found: Rows) -> Rows:
            tile = _Tile(self, g)
            a, b, c = (tile.reward(_Number(0, i)) for i in range(3))
            apart = (a != b) & (b != c) & (a != c)
            return jnp.maximum(found, jnp.where(self._inside(g) & apart, 1.0, 0.0))

        # Of rows with many levels the first three samples say so.
        found = lax.fori_loop(0, self.tiles, three_levels, _zero())
        when("perhaps two levels", jnp.max(found) == 0)(look_at_all)

    def _inside(self, g: Any) -> jax.Array:
        first = (pl.program_id(0) * self.tiles + g) * TILE_ROWS
        sublane = lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 0)
        lane = lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1)
        return first + sublane * LANES + lane < self.operands.integers[N_ROWS]

    def compute(self) -> None:
        if self.variant.counted:
            self._count_all()
            return
        if self.variant.plan.whole and not self.variant.n_ks:
            self._end_tables()
        if self.n < _SHORTEST_COUNTED:
            self._sort_all()
            return
        self._look_for_two_levels()
        two_levels = self.scratch.flags[0] > 0
        when("two levels", two_levels)(self._count_all)
        when("many levels", jnp.logical_not(two_levels))(self._sort_all)

    def _count_all(self) -> None:
        def of_tile(g: Any) -> None:
            tile = _Tile(self, g)
            if self.variant.counted:
                tile.find_levels()
            tile.by_counting()
            self._copy_out_tile(g)

        self.each_tile(of_tile)

    def _sort_all(self) -> None:
        """All tiles, some of them abreast: where one waits, another goes on."""
        abreast = self.variant.plan.abreast

        def of_tiles(first: Any) -> None:
            tiles = [_Tile(self, first * abreast + t, t) for t in range(abreast)]
            for tile in tiles:
                tile.fill()
            self._sort(tiles)

        if self.tiles == abreast:
            of_tiles(0)
        else:
            lax.fori_loop(0, self.tiles // abreast, _without_carry(of_tiles), 0)

    def _sort(self, tiles: list[_Tile]) -> None:
        if not self.variant.plan.whole:
            for tile in tiles:
                tile.by_undoing()
                self._copy_out_tile(tile.g)
            return

        def sort() -> None:
            for tile in tiles:
                pieces = tile.sort()
                if self.variant.n_ks:
                    tile.put_in_work(pieces)
                else:
                    tile.weigh(0, keep=tile.in_tables, pieces=pieces)

        def look_up() -> None:
            for tile in tiles:
                tile.look_up()

        self.apart(sort)
        if self.variant.n_ks:
            for tile in tiles:
                tile.best_of_each()
        else:
            self.apart(look_up)

    def _copy_out_tile(self, g: Any) -> None:
        # Chunks are copied out in a phase of their own.
        if not (self.variant.n_ks or self.variant.as_it_lies or self.variant.plan.chunked):
            self.copy_out(0, g)

    def _end_tables(self) -> None:
        """Behind a row's last sample the tables have what no reward reaches."""
        chosen = self.variant.plan
        for t in range(chosen.abreast):
            tile = _Tile(self, 0, t)
            for i in range(self.n, chosen.tables * SUBLANES):
                tile.keys[tile.in_table(_Number(0, i))] = _zero() + jnp.inf


class _Tile:
    """A tile of 1024 rows: number g of its block, and number t of those that are worked on."""

    def __init__(self, block: _Block, g: Any, t: int = 0):
        self.block = block
        self.g = g
        self.variant = block.variant
        self.operands = block.operands
        self.n = block.n
        scratch = block.scratch
        self.work = scratch.work.at[t]
        self.facts = scratch.facts.at[g]
        if scratch.keys is not None:
            self.keys, self.sums = scratch.keys.at[t], scratch.sums.at[t]

    def in_raw(self, i: _Number) -> Any:
        """Where sample i of 1024 rows lies: in every eighth of 64 rows of memory."""
        slab, sample = i.split(SUBLANES)
        start = self.g * (SUBLANES * SUBLANES) + sample
        return slab, pl.ds(start, SUBLANES, stride=SUBLANES), slice(None)

    def in_table(self, i: _Number, run: Any = 0) -> Any:
        """Where sample i of a sorted run lies in its tables: of m tables table c has the samples
        c, m + c, 2m + c, …"""
        tables = self.variant.plan.tables
        entry, table = i.split(tables)
        return run * tables + table, pl.ds(entry, SUBLANES, stride=PITCH), slice(None)

    def reward(self, i: _Number) -> Rows:
        return self.block.rewards[self.in_raw(i)]

    def each(self, body: Callable[[_Number, Any], Any], carry: Any, *, down: bool = False) -> Any:
        return _each(self.variant.plan.unrolled, self.n, body, carry, down=down)

    def each_slab(self, b: Any, body: Callable[[Any, jax.Array, Any], Any], carry: Any) -> Any:
        """body(place, x, carry) for 8 samples of 128 rows after the other; behind the last x is as
        if left out."""
        behind = self.n % SUBLANES

        def some(first: Any, count: int, carry: Any) -> Any:
            for c in range(count):
                place = self.block.slab_in_raw(self.g, first + c, b)
                x = self.block.rewards[place]
                if behind:
                    sample = lax.broadcasted_iota(jnp.int32, x.shape, 0) + (first + c) * SUBLANES
                    x = jnp.where(sample < self.n, x, _left_out(x.shape))
                carry = body(place, x, carry)
            return carry

        return _slabs(self.variant.plan.unrolled, -(-self.n // SUBLANES), some, carry)

    def facts_of(self, b: Any) -> Callable[[int], jax.Array]:
        """The facts of 128 rows, once for each sample of a slab."""
        return lambda name: jnp.broadcast_to(self.facts[name, pl.ds(b, 1), :], (SUBLANES, LANES))

    @property
    def size(self) -> Rows:
        """How many samples of its own a row has."""
        return self.facts[SIZE] if self.variant.masked else _zero() + float(self.n)

    # Before.

    def fill(self) -> None:
        """What is left out takes the value of its row's largest; behind a row's samples the network
        finds what no finite reward exceeds."""
        self.facts[NAN_OR_0] = _zero()
        if self.variant.masked:

            def look(i: _Number, high: Rows) -> Rows:
                # What is left out compares false.
                x = self.reward(i)
                return jnp.where(x > high, x, high)

            high = self.each(look, _zero() - jnp.inf)
            largest = jnp.where(high > -jnp.inf, high, 0.0)

            def put(i: _Number, size: Rows) -> Rows:
                x = self.reward(i)
                left_out = _is_left_out(x)
                self.block.rewards[self.in_raw(i)] = jnp.where(left_out, largest, x)
                return size + jnp.where(left_out, 0.0, 1.0)

            self.facts[SIZE] = self.each(put, _zero())
        chosen = self.variant.plan
        for i in range(self.n, chosen.runs(self.n) * chosen.run if chosen.run else chosen.samples):
            self.block.rewards[self.in_raw(_Number(0, i))] = _zero() + _PADDING

    def see(self, values: list[Rows]) -> None:
        """NAN_OR_0 ← NaN where one of these is not finite: 0 times all of them is then NaN."""
        products = [x * 0.0 for x in values[:_MULTIPLIED_APART]]
        for i, x in enumerate(values[_MULTIPLIED_APART:]):
            products[i % _MULTIPLIED_APART] *= x
        self.facts[NAN_OR_0] = math.prod(products, start=self.facts[NAN_OR_0])

    # Rows of two levels.

    def find_levels(self) -> None:
        """LOWEST, HIGHEST, LOWS, SIZE ← a row's levels, how many samples have the lower one, and
        how many are valid. Notes how many are neither: those between, and NaN."""
        counted, masked = self.variant.counted, self.variant.masked

        def of_rows(b: Any) -> None:
            def widen(place: Any, x: jax.Array, levels: Any) -> Any:
                # What is left out is a NaN, and compares false.
                low, high = levels
                return jnp.where(x < low, x, low), jnp.where(x > high, x, high)

            low, high = _zero(), _zero() + 1.0
            if not counted:
                low, high = self.each_slab(b, widen, (_zero() + jnp.inf, _zero() - jnp.inf))
                low, high = _of_samples(jnp.min, low), _of_samples(jnp.max, high)

            def look(place: Any, x: jax.Array, seen: Any) -> Any:
                neither, lows, size = seen
                lower = x == low
                left_out = _is_left_out(x)
                if not counted:
                    of_levels = lower | (x == high)
                    if masked or self.n % SUBLANES:
                        of_levels = of_levels | left_out
                    neither = neither + jnp.where(of_levels, 0.0, 1.0)
                if masked:
                    size = size + jnp.where(left_out, 0.0, 1.0)
                return neither, lows + jnp.where(lower, 1.0, 0.0), size

            neither, lows, size = self.each_slab(b, look, (_zero(), _zero(), _zero()))
            if not counted:
                self.block.note(neither, self.g, b)
            found = {LOWEST: low, HIGHEST: high, LOWS: _of_samples(jnp.sum, lows)}
            if self.variant.masked:
                found[SIZE] = _of_samples(jnp.sum, size)
            for name, value in found.items():
                self.facts[name, pl.ds(b, 1), :] = value[:1]

        self.block.each_row_block(of_rows, self.block.row_blocks_at_once)

    def by_counting(self) -> None:
        """What the sorted row is follows from a count, and what a sample gets, from its level."""
        low, high, lows = self.facts[LOWEST], self.facts[HIGHEST], self.facts[LOWS]
        # An infinity would be a level, but makes the range infinite.
        self.facts[NAN_OR_0] = _zero()

        def level(i: _Number) -> Rows:
            return jnp.where(i.as_float < lows, low, high)

        if self.variant.n_ks:
            self.best_of_each(level)
            return
        _, self.facts[AT_TOP] = self.weigh(0, row=level)

        def of_rows(b: Any) -> None:
            fact = self.facts_of(b)
            at_bottom, at_top = self._outcome(_zero(), fact), self._outcome(fact(AT_TOP), fact)

            def put(place: Any, x: jax.Array, carry: Any) -> Any:
                self.block.values[place] = jnp.where(x > fact(LOWEST), at_top, at_bottom)
                return carry

            self.each_slab(b, put, 0)

        self.block.each_row_block(of_rows, self.block.row_blocks_at_once)

    # Sorting, where every sample then looks itself up.

    def sort(self) -> Pieces:
        """The sorted row, whose pieces are what is left to be computed."""
        chosen = self.variant.plan
        size, width = chosen.samples, min(chosen.samples, chosen.group)
        if size == width:
            return [lambda: self._sorted_group(0, width)]

        def sort_group(group: Any) -> None:
            here = pl.ds(group * width, width)
            self.work[here] = jnp.stack(self._sorted_group(group * width, width))

        # Two groups a turn, of which one goes on where the other waits.
        unroll = 2 if chosen.unrolled > 1 else 1
        lax.fori_loop(0, size // width, _without_carry(sort_group), 0, unroll=unroll)

        def merged(source: Ref, span: int, first: int) -> list[Rows]:
            return _merged(source[pl.ds(first // span * span, span)], first % span, width)

        span = 2 * width
        source, self.work = self.work, self.block.scratch.spare
        while span < size:
            self.put_in_work([partial(merged, source, span, i) for i in range(0, size, width)])
            source, self.work = self.work, source
            span *= 2
        return [partial(merged, source, span, first) for first in range(0, size, width)]

    def put_in_work(self, pieces: Pieces) -> None:
        def put(number: int) -> None:
            values = pieces[number]()
            self.work[pl.ds(number * len(values), len(values))] = jnp.stack(values)

        if len(pieces) == 1:
            put(0)
            return
        for number in range(len(pieces)):
            self.block.apart(partial(put, number))

    def sort_runs(self) -> None:
        """work ← the sorted runs of a row; keys ← the same."""
        chosen = self.variant.plan
        width, spare = chosen.group, self.block.scratch.spare

        def sort_run(run: Any) -> None:
            first = run * chosen.run

            def sort_group(group: Any) -> None:
                given = first + group * width
                values = self._sorted_group(given, width)
                spare[pl.ds(group * width, width)] = jnp.stack(values)

            def merge(start: int) -> None:
                merged = _merged(spare[...], start, width)
                self.work[pl.ds(first + start, width)] = jnp.stack(merged)
                if not self.variant.n_ks:
                    for c, value in enumerate(merged):
                        self.keys[self.in_table(_Number(0, start + c), run)] = value

            unroll = RUN_GROUPS if chosen.unrolled > 1 else 1
            lax.fori_loop(0, RUN_GROUPS, _without_carry(sort_group), 0, unroll=unroll)
            for start in range(0, chosen.run, width):
                self.block.apart(partial(merge, start))

        runs = chosen.runs(self.n)
        lax.fori_loop(0, runs, _without_carry(sort_run), 0)
        behind = chosen.samples - runs * chosen.run
        if behind:
            tile = (behind, SUBLANES, LANES)
            self.work[pl.ds(runs * chosen.run, behind)] = jnp.full(tile, _PADDING)
        if not self.variant.n_ks:
            # As behind a row's last sample, so that the largest float is not looked up there.
            for i in range(self.n - (runs - 1) * chosen.run, chosen.run):
                self.keys[self.in_table(_Number(0, i), runs - 1)] = _zero() + jnp.inf

    def _sorted_group(self, first: Any, width: int) -> list[Rows]:
        rewards = self._rewards(first, width)
        self.see(rewards)
        return _sorted(sorting(width), rewards)

    def _rewards(self, first: Any, count: int) -> list[Rows]:
        """`count` samples from `first` on, a multiple of 8."""
        slabs = -(-count // SUBLANES)
        some = pl.ds(_divided(first, SUBLANES), slabs)
        by_place = []
        for place in range(SUBLANES):
            start = self.g * (SUBLANES * SUBLANES) + place
            by_place.append(self.block.rewards[some, pl.ds(start, SUBLANES, stride=SUBLANES), :])
        return [by_place[i % SUBLANES][i // SUBLANES] for i in range(count)]

    def look_up(self, run: Any = 0) -> None:
        """The tables of a run → the values of its samples: a function of their rewards. Of the m
        tables the first tells which entry a reward belongs to, and the rest, which table."""
        chosen = self.variant.plan
        tables = range(chosen.tables)
        in_keys = run * chosen.tables
        slabs_of_run = range(-(-min(self.n, chosen.run) // SUBLANES))
        # Rows that have to be turned are turned while the next ones are looked up.
        turned = chosen.row_major and not chosen.chunked
        to_values = self.variant.as_it_lies or chosen.chunked or turned

        def of_rows(b: Any) -> None:
            if turned:
                self.block.copy_out_rows(0, self.g, jnp.maximum(b - 1, 0))
            here = pl.ds(b * PITCH, SUBLANES)
            keys = [self.keys[in_keys + c, here, :] for c in tables]
            sums = [self.sums[c, here, :] for c in tables]
            middle = self.keys[in_keys, pl.ds(b * PITCH + 4, 1), :]

            fact = self.facts_of(b)
            slabs = []
            for slab in slabs_of_run:
                place = self.block.slab_in_raw(self.g, run * len(slabs_of_run) + slab, b)
                x = self.block.rewards[place]
                # NaN compares false, and no sum of these leads out of a table.
                entry = jnp.where(x >= middle, 4, 0)
                for step in (2, 1):
                    entry = jnp.where(x >= _taken(keys[0], entry + step), entry + step, entry)
                found = _taken(sums[0], entry)
                for c in tables[1:]:
                    beyond = x >= _taken(keys[c], entry)
                    found = jnp.where(beyond, _taken(sums[c], entry), found)
                values = self._outcome(found, fact)
                if to_values:
                    self.block.values[place] = values
                slabs.append(values)
            if not to_values:
                behind = self.block.out_samples // SUBLANES - len(slabs)
                self.block.put_out([*slabs, *[_zero()] * behind], self.g, b)

        self.block.each_row_block(of_rows, 8 if len(tables) <= 8 else 1)
        if turned:
            self.block.copy_out_rows(0, self.g, SUBLANES - 1)

    def look_up_runs(self) -> None:
        """work: what the samples of sorted runs have beneath them → the values."""
        chosen = self.variant.plan

        def of_run(run: Any) -> None:
            def copy() -> None:
                for i in range(chosen.run):
                    self.sums[self.in_table(_Number(0, i))] = self.work[run * chosen.run + i]

            self.block.apart(copy)
            self.block.apart(lambda: self.look_up(run))

        lax.fori_loop(0, chosen.runs(self.n), _without_carry(of_run), 0)

    # Sorting, where the comparators are then undone.

    def by_undoing(self) -> None:
        """Sort, weigh, and put back."""
        chosen = self.variant.plan
        all_passes = passes(self.n, chosen.group, chosen.run)
        starts = [0]
        for p in all_passes:
            starts.append(starts[-1] + p.groups * self._words(p))
        keep = not self.variant.n_ks
        given = None if chosen.run else all_passes[0]

        # The groups of a turn are loaded before one is stored: otherwise they wait for each other,
        # as the compiler cannot tell that they have no sample in common.
        def forward(p: Pass, start: int, groups: list[_Number]) -> None:
            values = [self._load(p, group, from_rewards=p is given) for group in groups]
            for group, of_group in zip(groups, values, strict=True):
                self._compare(p, of_group, start + group.number * self._words(p) if keep else None)
            for group, of_group in zip(groups, values, strict=True):
                self._store(p, group, of_group)

        def backward(p: Pass, start: int, groups: list[_Number]) -> None:
            values = [self._load(p, group) for group in groups]
            for group, of_group in zip(groups, values, strict=True):
                self._undo(p, of_group, start + group.number * self._words(p))
            for group, of_group in zip(groups, values, strict=True):
                self._store(p, group, of_group, to_values=p is given)

        if chosen.run:
            self.sort_runs()
        steps = list(zip(all_passes, starts, strict=False))
        for p, start in steps:
            self._each_group(p, partial(forward, p, start))
        if not keep:
            self.best_of_each()
            return
        if len(steps) == 1 and not chosen.run:

            def weigh_and_undo() -> None:
                self.weigh(0, keep=self.in_work)
                backward(*steps[0], [_Number(0, 0)])

            # Here what is in registers may stay there.
            self.block.apart(weigh_and_undo)
        else:
            self.block.apart(lambda: _nothing(self.weigh(0, keep=self.in_work)))
            for p, start in reversed(steps):
                self._each_group(p, partial(backward, p, start))
        if chosen.run:
            self.look_up_runs()

    def _each_group(self, p: Pass, body: Callable[[list[_Number]], None]) -> None:
        # A turn takes as many small groups as one large one has samples.
        large = self.variant.plan.group if self.variant.plan.unrolled > 1 else 1
        together = min(max(1, large // p.samples), p.groups)
        if together == p.groups:
            self.block.apart(lambda: body([_Number(0, i) for i in range(together)]))
            return

        def turn(first: Any) -> None:
            body([_Number(first * together, i, together) for i in range(together)])

        lax.fori_loop(0, p.groups // together, _without_carry(turn), 0)

    def _words(self, p: Pass) -> int:
        """How many words the decisions of one group take."""
        return words_for(len(p.comparators), self.variant.plan.pack)

    def _load(self, p: Pass, group: _Number, *, from_rewards: bool = False) -> list[Rows]:
        if from_rewards:
            first = group.number * p.samples
            rewards = [self.reward(_Number(first, c, p.samples)) for c in range(p.samples)]
            self.see(rewards)
            return rewards
        loaded = [self.work[places] for places in _places(p, group)]
        return [samples[c] for samples in loaded for c in range(p.each)]

    def _store(
        self, p: Pass, group: _Number, values: list[Rows], *, to_values: bool = False
    ) -> None:
        if to_values:
            for c, beneath in enumerate(values):
                self.give(_Number(group.number * p.samples, c, p.samples), beneath)
            return
        for i, places in enumerate(_places(p, group)):
            self.work[places] = jnp.stack(values[i * p.each : (i + 1) * p.each])

    def _compare(self, p: Pass, values: list[Rows], word_at: Any) -> None:
        """Sort a group, and keep which comparators swapped."""
        word = jnp.zeros((SUBLANES, LANES), jnp.int32)
        bits = packed(len(p.comparators), self.variant.plan.pack)
        for (a, b), (number, bit, closes) in zip(p.comparators, bits, strict=True):
            low, high = values[a], values[b]
            values[a], values[b] = jnp.minimum(low, high), jnp.maximum(low, high)
            if word_at is None:
                continue
            if closes and not bit:
                # Alone in its word: a sign will do.
                word = _bits(high - low)
            else:
                swapped = jnp.where(low > high, jnp.int32(_place(bit)), 0)
                word = word | swapped if bit else swapped
            if closes:
                self.block.scratch.decisions[word_at + number] = word

    def _undo(self, p: Pass, values: list[Rows], word_at: Any) -> None:
        """The same comparators backwards, on what belongs to the samples."""
        word = jnp.zeros((SUBLANES, LANES), jnp.int32)
        bits = packed(len(p.comparators), self.variant.plan.pack)
        backwards = zip(reversed(p.comparators), reversed(bits), strict=True)
        for (a, b), (number, bit, closes) in backwards:
            if closes:
                word = self.block.scratch.decisions[word_at + number]
            swapped = (word & jnp.int32(_place(bit))) != 0 if bit else word < 0
            values[a], values[b] = (
                jnp.where(swapped, values[b], values[a]),
                jnp.where(swapped, values[a], values[b]),
            )

    # Weights.

    def weigh(
        self,
        q: int,
        *,
        row: Callable[[_Number], Rows] | None = None,
        keep: Keep | None = None,
        pieces: Pieces | None = None,
    ) -> tuple[Rows, Rows]:
        """What the smallest of a sorted row gets, and what the largest has beneath it, Σ gap_j d_j.
        SMALLEST ← the former, FACTOR ← what outcomes are multiplied with.

        The row is that in work unless another is given, or its pieces. `keep` gets every sample,
        and what it has beneath it, at one time or at two.
        """
        row = row or (lambda i: self.work[i.number])
        variant = self.variant
        known = variant.k == "table"
        at_once = known and not variant.range_scaled and variant.plan.unrolled > 1
        if pieces and not at_once:
            # What is gone through more than once, or step by step, has to lie somewhere.
            self.put_in_work(pieces)
            pieces = None
        weights = _Known(self, q, pieces) if known else _Running(self, q)
        scale = None
        if variant.range_scaled:
            scale = _range_scale(row(_Number(0, 0)), row(_Number(0, self.n - 1)))
        if variant.multiplied:
            factor = self.size if variant.by_mean else 1.0
            if scale is not None and variant.standardised:
                factor *= self._inverse_spread(weights, row, scale)
            elif scale is not None:
                factor *= jnp.where(scale < 1, 1 / _RANGE_SCALE, 1.0)
            self.facts[FACTOR] = factor
        constant, total, smallest, largest = weights.scan(row, keep, scale)
        top = largest if scale is None else largest * scale
        # Adding 0 turns a −0 into 0.
        offset = (weights.anchor * top - constant) + 0.0 + weights.otherwise
        offset = offset + (self.facts[NAN_OR_0] + (largest - smallest) * 0.0)
        self.facts[SMALLEST] = offset
        return offset, total

    def _inverse_spread(
        self, weights: _Known | _Running, row: Callable[[_Number], Rows], scale: Rows
    ) -> Rows:
        """1 / the deviation of the best of k, scaled; 0 where only equal rewards can be it."""

        largest = row(_Number(0, self.n - 1))

        # How far the mean of the best lies below the largest: measured from there, an offset drops
        # out; and how far down the best can lie.
        def look(i: _Number, carry: Any) -> Any:
            state, lead, reach = carry
            chance = weights.chance(i, state)
            apart = largest - row(i)
            reach = jnp.where(chance > 0, jnp.maximum(reach, apart), reach)
            return weights.after(i, state), lead + chance * apart, reach

        _, lead, reach = self.each(look, (weights.top, _zero(), _zero()), down=True)
        # Relative to the largest deviation, squares neither overflow nor vanish; where its inverse
        # might, one that is large enough will do.
        unit = jnp.minimum(jnp.maximum(lead, reach - lead), _LARGE)
        per_unit = jnp.where(unit > 0, 1 / jnp.where(unit > 0, unit, 1.0), 0.0)

        def square(i: _Number, carry: Any) -> Any:
            state, variance = carry
            chance = weights.chance(i, state)
            deviation = (lead - (largest - row(i))) * per_unit
            square = jnp.where(chance > 0, chance * (deviation * deviation), 0.0)
            return weights.after(i, state), variance + square

        _, variance = self.each(square, (weights.top, _zero()), down=True)
        spread = (unit * scale) * jnp.sqrt(variance)
        return jnp.where(spread > 0, 1 / jnp.where(spread > 0, spread, 1.0), 0.0)

    # After.

    def in_work(self, i: _Number, own: Rows | None, beneath: Rows | None) -> None:
        if beneath is not None:
            self.work[i.number] = beneath

    def in_tables(self, i: _Number, own: Rows | None, beneath: Rows | None) -> None:
        if own is not None:
            self.keys[self.in_table(i)] = own
        if beneath is not None:
            self.sums[self.in_table(i)] = beneath

    def give(self, i: _Number, beneath: Rows) -> None:
        """What a sample gets that has this much beneath it."""
        self.block.values[self.in_raw(i)] = self._outcome(beneath, lambda name: self.facts[name])

    def _outcome(self, beneath: jax.Array, fact: Callable[[int], jax.Array]) -> jax.Array:
        values = beneath + fact(SMALLEST)
        return values * fact(FACTOR) if self.variant.multiplied else values

    def best_ref(self, q: int) -> Ref:
        return self.block.out_ref.at[q, pl.ds(self.g * SUBLANES, SUBLANES), :]

    def best_of_each(self, row: Callable[[_Number], Rows] | None = None) -> None:
        for q in range(self.variant.n_ks):
            self.best_ref(q)[...], _ = self.weigh(q, row=row)


class _Known:
    """Weights from a table. A row in pieces is scanned while these are in registers."""

    top = None

    def __init__(self, tile: _Tile, q: int, pieces: Pieces | None):
        refs, self.n, self.unrolled = tile.operands, tile.n, tile.variant.plan.unrolled
        self.samples, self.pieces = tile.variant.plan.samples, pieces
        self.block = tile.block
        self.anchor, self.otherwise = refs.scalars[2 * q], refs.scalars[2 * q + 1]
        self.table = refs.table
        self.scanned = not tile.variant.n_ks
        self.below_at = self.n if self.scanned else q * self.n

    def chance(self, i: _Number, state: None) -> Rows:
        return jnp.full((SUBLANES, LANES), self.table[2 * self.n + i.number])

    def after(self, i: _Number, state: None) -> None:
        return None

    def scan(
        self, row: Callable[[_Number], Rows], keep: Keep | None, scale: Rows | None
    ) -> tuple[Rows, Rows, Rows, Rows]:
        """Σ below_j d_j and Σ gap_j d_j, scaled; the row's smallest and largest."""

        def slab(first: Any, count: int, carry: Any, values: list[Rows] | None = None) -> Any:
            base, under, constant, smallest = carry
            if values and first == 0:
                smallest = values[0]
            for start in range(0, count, _SUMMED_APART):
                above, below = _zero(), _zero()
                for c in range(start, min(start + _SUMMED_APART, count)):
                    i = _Number(first, c, self.unrolled)
                    own = values[c] if values else row(i)
                    gap, under = own - under, own
                    if scale is not None:
                        gap = gap * scale
                    below = below + self.table[self.below_at + first + c] * gap
                    if self.scanned:
                        above = above + self.table[first + c] * gap
                    if keep is not None:
                        keep(i, own, base + above)
                base, constant = base + above, constant + below
            return base, under, constant, smallest

        def of_piece(first: int, piece: Callable[[], list[Rows]], carry: Any) -> Any:
            values = piece()
            return slab(first, min(len(values), self.n - first), carry, values)

        # Below the smallest there is no gap: its weights are 0.
        smallest = _zero() if self.pieces else row(_Number(0, 0))
        carry = (_zero(), _zero(), _zero(), smallest)
        if not self.pieces:
            carry = _slabs(self.unrolled, self.n, slab, carry)
        elif len(self.pieces) == 1:
            carry = of_piece(0, self.pieces[0], carry)
        else:
            width = self.samples // len(self.pieces)
            for first, piece in zip(range(0, self.n, width), self.pieces, strict=False):
                carry = self.block.apart_with(partial(of_piece, first, piece), carry)
        total, largest, constant, smallest = carry
        return constant, total, smallest, largest


class _Running:
    """Weights from a running product, for the n and the k of each row.

    The chance of place p, from 0, to be the best of k is C(p, k−1) / C(n, k) = r_{p+lag}; from the
    last place downward each is the one above times (p−k+1)/p.
    """

    def __init__(self, tile: _Tile, q: int):
        variant, refs = tile.variant, tile.operands
        self.each = tile.each
        self.n, self.work, self.inverses = tile.n, tile.work, refs.inverses
        self.lag, self.scanned, self.masked = variant.lag, not variant.n_ks, variant.masked
        self.size = tile.size
        if variant.k == "row":
            k = refs.k[pl.ds(tile.g * SUBLANES, SUBLANES), :]
            k = jnp.clip(k, 0, LARGEST_K).astype(jnp.float32)
        else:
            k = jnp.full((SUBLANES, LANES), refs.k[q])
        if variant.undersized == "clip":
            k = jnp.minimum(k, self.size - variant.spared)
        admitted = (k >= 1) & (k <= self.size - variant.spared)
        # Where no k is admitted the formulas see two samples and k=1, all weights times 0.
        n, k = jnp.where(admitted, self.size, 2.0), jnp.where(admitted, k, 1.0)
        live = jnp.where(admitted, 1.0, 0.0)
        self.k, self.first = k, k == 1
        f = [jnp.where(self.first, refs.form[13 + i], refs.form[i]) for i in range(13)]
        others, rest = jnp.maximum(n - 1, 1.0), jnp.maximum(n - k, 1.0)
        under = (1 + f[0] * (k - 1)) * (1 + f[1] * (rest - 1)) * (1 + f[2] * (others - 1))
        times = 1 / under
        self.gap = (f[3] + f[4] * k + f[5] * n + f[6] * (n * (n - 1))) * times
        self.below = (f[7] + f[8] * k) * times
        self.slope = (f[9] + f[10] * n) * times
        self.middle = variant.mirror * (n - 1)
        anchor = f[11] + f[12] * (k / (n * (1 + f[2] * (others - 1))))
        self.anchor = anchor * live
        self.top = live * (k / n)
        self.otherwise = (
            jnp.where(admitted, 0.0, jnp.nan) if variant.undersized == "nan" else _zero()
        )

    def chance(self, i: _Number, chance: Rows) -> Rows:
        return jnp.where(i.as_float < self.size, chance, 0.0) if self.masked else chance

    def after(self, i: _Number, chance: Rows) -> Rows:
        """The chance of the place below place i."""
        place = i.as_float
        ratio = jnp.maximum(place + 1 - self.k, 0.0) * self.inverses[i.number]
        below = jnp.where(self.first, chance, chance * ratio)
        # Above a row's own samples nothing changes yet.
        return jnp.where(place < self.size, below, chance) if self.masked else below

    def scan(
        self, row: Callable[[_Number], Rows], keep: Keep | None, scale: Rows | None
    ) -> tuple[Rows, Rows, Rows, Rows]:
        """Σ below_j d_j and Σ gap_j d_j, scaled; the row's smallest and largest."""
        gap_weight, below, slope = self.gap, self.below, self.slope
        if scale is not None:
            gap_weight, below, slope = gap_weight * scale, below * scale, slope * scale

        # Downward: the term of every gap goes to the place at its lower end.
        def weigh(i: _Number, carry: Any) -> Any:
            chance, chance_above, above, constant, total = carry
            own = row(i)
            term = (chance if self.lag else chance_above) * (above - own)
            weight = below + slope * jnp.abs(i.as_float + 1 - self.middle)
            constant = constant + weight * term
            if keep is not None:
                keep(i, own, None)
                self.work[i.number] = gap_weight * term
            elif self.scanned:
                total = total + gap_weight * term
            return self.after(i, chance), chance, own, constant, total

        largest = row(_Number(0, self.n - 1))
        start = (self.top, self.top, largest, _zero(), _zero())
        _, _, smallest, constant, total = self.each(weigh, start, down=True)
        if keep is None:
            return constant, total, smallest, largest

        def add(i: _Number, total: Rows) -> Rows:
            term = self.work[i.number]
            keep(i, None, total)
            return total + term

        return constant, self.each(add, _zero()), smallest, largest


class _Number(NamedTuple):
    """Of a sample, or of a group of samples: first + offset."""

    first: Any
    offset: int
    step: int = 1  # first is a multiple of it

    @property
    def number(self) -> Any:
        return self.first + self.offset

    def split(self, size: int) -> tuple[Any, Any]:
        """number // size and number % size, with as little arithmetic as can be."""
        if isinstance(self.first, int):
            return divmod(self.number, size)
        if self.step % size == 0:
            return _divided(self.first, size) + self.offset // size, self.offset % size
        if size % self.step == 0 and self.offset < self.step:
            return _divided(self.first, size), _remainder(self.first, size) + self.offset
        return _divided(self.number, size), _remainder(self.number, size)

    @property
    def as_float(self) -> Any:
        if isinstance(self.first, int):
            return float(self.number)
        return jnp.full((SUBLANES, LANES), self.number).astype(jnp.float32)


def _slabs(
    unrolled: int,
    n: int,
    body: Callable[[Any, int, Any], Any],
    carry: Any,
    *,
    down: bool = False,
) -> Any:
    """body(first, count, carry) for one run of up to `unrolled` after the other."""
    full, rest = divmod(n, unrolled)

    def turn(i: Any, carry: Any) -> Any:
        return body((full - 1 - i if down else i) * unrolled, unrolled, carry)

    if rest and down:
        carry = body(full * unrolled, rest, carry)
    if full == 1:
        carry = body(0, unrolled, carry)
    elif full:
        carry = lax.fori_loop(0, full, turn, carry)
    if rest and not down:
        carry = body(full * unrolled, rest, carry)
    return carry


def _each(
    unrolled: int, n: int, body: Callable[[_Number, Any], Any], carry: Any, *, down: bool = False
) -> Any:
    """body(sample, carry) for one sample after the other."""

    def slab(first: Any, count: int, carry: Any) -> Any:
        for c in range(count - 1, -1, -1) if down else range(count):
            carry = body(_Number(first, c, unrolled), carry)
        return carry

    return _slabs(unrolled, n, slab, carry, down=down)


def _places(p: Pass, group: _Number) -> list[Any]:
    """The samples of a group, as one or two strided slices."""
    span, in_span = group.split(p.starts)
    base = span * p.span
    start = base + in_span
    places = [_slice(start, p)]
    if p.mirrored:
        mirrored = 2 * base + p.span - 1 - start - (p.each - 1) * p.stride
        places.append(_slice(mirrored, p))
    return places


def _slice(start: Any, p: Pass) -> Any:
    return pl.ds(start, p.each) if p.stride == 1 else pl.ds(start, p.each, stride=p.stride)


def _without_carry(body: Callable[[Any], None]) -> Callable[[Any, Any], Any]:
    def turn(i: Any, carry: Any) -> Any:
        body(i)
        return carry

    return turn


def _sorted(comparators: Comparators, values: list[Rows]) -> list[Rows]:
    values = list(values)
    for a, b in comparators:
        values[a], values[b] = jnp.minimum(values[a], values[b]), jnp.maximum(values[a], values[b])
    return values


def _merged(halves: jax.Array, first: int, width: int) -> list[Rows]:
    """`width` samples, from `first` on, of merged halves: what its first steps make of them is
    computed for them alone, and the rest is a matter of their own."""
    span = halves.shape[0]
    # First a sample meets its mirror image, then what lies so far apart.
    distances = [span - 1, *(span >> i for i in range(2, (span // width).bit_length()))]

    def after(steps: int, i: int) -> Rows:
        if not steps:
            return halves[i]
        other = i ^ distances[steps - 1]
        pair = after(steps - 1, i), after(steps - 1, other)
        return jnp.minimum(*pair) if i < other else jnp.maximum(*pair)

    return _sorted(tuple(halving(width)), [after(len(distances), first + c) for c in range(width)])


def _taken(table: jax.Array, entries: jax.Array) -> jax.Array:
    """For each of 128 rows its own entries of its column, (8, 128) of each."""
    return jnp.take_along_axis(table, entries, axis=0, mode="promise_in_bounds")


def _nothing(_: Any) -> None:
    return None


def _zero() -> Rows:
    return jnp.zeros((SUBLANES, LANES), jnp.float32)


def _divided(x: Any, size: int) -> Any:
    """x // size for x ≥ 0: JAX's own would mind negative numbers."""
    if isinstance(x, int):
        return x // size
    if size & (size - 1):
        return lax.div(x, size)
    return lax.shift_right_logical(x, size.bit_length() - 1)


def _remainder(x: Any, size: int) -> Any:
    """x % size, likewise."""
    return lax.rem(x, size) if size & (size - 1) else x & (size - 1)


def _of_samples(reduce: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    """One number for each of 128 rows, once for each sample of a slab."""
    return jnp.broadcast_to(reduce(x, axis=0, keepdims=True), (SUBLANES, LANES))


def _place(bit: int) -> int:
    """The bit of a word, the highest being number 0."""
    return 1 << 31 - bit if bit else -(1 << 31)


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _as_float(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.int32)
    return x.astype(jnp.float32)


def _as_mask(x: jax.Array) -> jax.Array:
    return x.astype(jnp.int32) != 0


def _left_out(shape: tuple[int, ...]) -> jax.Array:
    return lax.bitcast_convert_type(jnp.full(shape, _LEFT_OUT, jnp.int32), jnp.float32)


def _marked(x: jax.Array, where: jax.Array) -> jax.Array:
    # No valid NaN is the one that marks what is left out.
    return jnp.where(_as_mask(where), jnp.where(x != x, jnp.nan, x), _left_out(x.shape))


def _is_left_out(x: jax.Array) -> jax.Array:
    return _bits(x) == _LEFT_OUT


def _range_scale(smallest: Rows, largest: Rows) -> Rows:
    """What a row's weights are multiplied with: a power of two, 1 for all but the largest."""
    large = jnp.maximum(-smallest, largest) > _LARGE
    return jnp.where(large, _RANGE_SCALE, 1.0)
