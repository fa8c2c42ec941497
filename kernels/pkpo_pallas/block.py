"""What a kernel is compiled for, what it is given, and what it works on: a block, tile by tile."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from pkpo_pallas.plan import (
    FEWER_LEVELS,
    LANES,
    MOST_LEVELS,
    PITCH,
    SHORTEST_COUNTED,
    SUBLANES,
    Plan,
)

# A reference to memory on the chip, for which JAX has no public type; None where there is none.
Ref = Any
# A number a row: (8, 128), row 128 · sublane + lane of its tile.
Rows = jax.Array

# What is known of a tile's rows, by its index in `Scratch.facts_ref`: what the smallest reward
# gets; what values are multiplied with; how many samples are valid; 0, or NaN where one is not
# finite; what gaps are multiplied with; and what is summed up of a row offset.
ROW_OFFSET, FACTOR, GROUP_SIZE, NAN_OR_0, RANGE_SCALE, OFFSET_SUM = range(6)
N_FACTS = 6

# Of the integers that come with a launch.
ONE, N_ROWS, HAS_OFFSET = range(3)


class Variant(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        n_samples: of a row; n.
        plan: see `pkpo_pallas.plan`.
        native_layout: blocks are (n / 8, 64 · tiles, 128), as float32 (n, rows) lies in memory
          where n is a multiple of 8: see `Scratch.staging_ref`.
        n_ks: 0 for a transform; for max@k, how many ks.
        masked: samples may be left out.
        boolean: the rewards are bool, and no row is sorted.
        k: "in_weights", all rows share n and k, and the weights come ready; "scalar", all rows
          share k; "per_row", each has its own.
        estimator: see `pkpo_pallas.launch.transform`; None where its weights come ready.
        normalized: values are divided by the std of the best of k.
        range_scaled: large rows are scaled, since what is added to the row offset may exceed the
          value, or 1 / std be below the smallest float. The best of k does neither.
        scale: "sum" or "mean", which is times the size of the row's group.
        undersized: "zero", "nan" or "clip".
    """

    n_samples: int
    plan: Plan
    native_layout: bool
    n_ks: int
    masked: bool
    boolean: bool
    k: Literal["in_weights", "scalar", "per_row"]
    estimator: Any
    normalized: bool
    range_scaled: bool
    scale: str
    undersized: str

    @property
    def weights_in_rows(self) -> bool:
        """Tell whether ready weights lie in rows of 128 of the same, which one load spreads over a
        register. Those of many ks would take much memory; so would any on chips that cannot gather,
        which have little: 16.1 of 16 MiB at n = 1024."""
        return self.k == "in_weights" and not self.n_ks and self.plan.gathers

    @property
    def looked_for(self) -> tuple[int, ...]:
        """List up to how many distinct values of rows are looked for, one after the other. Short
        rows are sorted sooner than more than four levels are found: at n = 64, with delays, in 1146
        cycles for 1228, at 128 in 4356 for 2997."""
        if self.boolean or self.n_samples < SHORTEST_COUNTED:
            return ()
        if self.plan.n_padded <= 2 * self.plan.group:
            return (FEWER_LEVELS,)
        return FEWER_LEVELS, MOST_LEVELS

    @property
    def handed_out(self) -> tuple[int, ...]:
        """List of up to how many levels values are given. Where rows are transposed computation
        waits anyway."""
        if self.boolean:
            return (2,)
        return self.looked_for if self.n_samples < LANES else self.looked_for[-1:]

    @property
    def notes_ends(self) -> bool:
        """Tell whether the ends of rows are found while these are transposed."""
        return self.plan.row_major and not (self.masked or self.boolean)

    @property
    def pitch(self) -> int:
        """Count the sublanes of memory from one row block of a slab to the next."""
        return SUBLANES if self.native_layout else PITCH

    @property
    def pairs_rows(self) -> bool:
        """Tell whether two rows of 16 bits are copied in and out as one of 32. Row 128 · 2b +
        2 · lane + i of a tile, i < 2, is then in row block 2b + i."""
        in_order = self.masked or self.k == "per_row" or self.n_ks
        return self.plan.packs and self.plan.row_major and not in_order

    @property
    def offset_is_rare(self) -> bool:
        """Tell whether rows have an offset for a k of 1 alone, if at all."""
        return self.k == "in_weights" and not (self.n_ks or self.range_scaled)

    @property
    def ranks_apart(self) -> int:
        """Tell which ranks of a sorted run its tables hold: all, or every other one. A value is
        linear between neighbouring ranks, and where all rows share its slopes these are ready; in
        the shortest rows they would cost more than they save."""
        chosen = self.plan
        looks_up = self.weights_in_rows and chosen.one_run and chosen.looks_up
        return 2 if looks_up and chosen.n_padded > chosen.group else 1

    @property
    def tables(self) -> int:
        """Count the tables that a run is kept in."""
        return -(-self.plan.run // (SUBLANES * self.ranks_apart))

    @property
    def has_factor(self) -> bool:
        """Tell whether values are multiplied with something."""
        return self.range_scaled or self.scale == "mean"


class Operands(NamedTuple):
    """What a kernel reads; None where its variant has no use for it.

    Attributes:
        rewards_ref, where_ref: (n, rows) blocks, samples major, or (rows, n) ones.
        integers_ref: (3,) the number 1, which the compiler does not know, the number of rows, and
          whether ready weights give row offsets.
        k_ref: (n_ks or 1,) whole numbers in float32; or (8 · tiles, 128) in int32, one a row.
        weights_ref: gap, offset and, where values are normalized, best, n numbers each, in rows of
          128 of the same; for max@k the offset of each k, (n_ks · n,).
        slopes_ref: (8 · tables, 128): by how much values grow above the ranks of the tables; None
          where they hold all.
        scalars_ref: the max coefficient, and what is added to every value, 0 or NaN; for each k of
          max@k.
        inverses_ref: (n,) 0, then 1/j.
    """

    rewards_ref: Ref
    where_ref: Ref
    integers_ref: Ref
    k_ref: Ref
    weights_ref: Ref
    slopes_ref: Ref
    scalars_ref: Ref
    inverses_ref: Ref


class Scratch(NamedTuple):
    """Memory of a kernel.

    Attributes:
        staging_ref: (samples / 8, tiles · 64, 128): slab of 8 samples, tile, 128 rows, sample of
          the slab; the rewards, and in the end the values, but where these go out as they are
          found. None where the blocks have the native layout, which is this one.
        work_ref: (interleaved tiles, samples, 8, 128): what is sorted and scanned; of all tiles
          where few levels are looked for, in a copy of their samples.
        buffers_refs: as many more of (samples, 8, 128) as passes may have memory of their own; None
          where they have none.
        ping_pong_ref: (samples of a run, 8, 128), for merges that go to and fro.
        keys_ref, sums_ref: (interleaved tiles, tables, 8 · PITCH, 128): the sorted runs, and the
          exclusive prefix sums of one run; None where none is looked up. Where rewards are packed,
          no keys, and the sums of a row, (interleaved tiles, samples, 8, 128).
        decisions_ref: (words, 8, 128) int32, None where none are kept.
        facts_ref: (tiles, N_FACTS, 8, 128).
        levels_ref: (tiles, 8 · PITCH, 128): a table of a row's distinct values, from the smallest
          up, and its largest; None where they are not looked for.
        given_ref: the same of how many samples are above each, and then, of what each gets.
        more_ref: (8, 128): 1 where rows have more distinct values than were found.
        ends_ref: (3, 64, 128): what is noted of rows while they are copied in, once for each sample
          of a slab.
        flags_ref: (1,) int32: of up to how many levels the block's rows are; 0 for many.
    """

    staging_ref: Ref
    work_ref: Ref
    buffers_refs: Any
    ping_pong_ref: Ref
    keys_ref: Ref
    sums_ref: Ref
    decisions_ref: Ref
    facts_ref: Ref
    levels_ref: Ref
    given_ref: Ref
    more_ref: Ref
    ends_ref: Ref
    flags_ref: Ref


class Block(NamedTuple):
    """A grid step's rows: tiles of 1024, worked on one after the other."""

    variant: Variant
    operands: Operands
    out_ref: Ref
    scratch: Scratch

    @property
    def rewards_ref(self) -> Ref:
        """Tell where rewards are, laid out as in staging: such blocks need no copy."""
        native = self.variant.native_layout
        return self.operands.rewards_ref if native else self.scratch.staging_ref

    @property
    def values_ref(self) -> Ref:
        """Tell where values go, in the same layout."""
        return self.out_ref if self.variant.native_layout else self.scratch.staging_ref


class Tile(NamedTuple):
    """1024 rows: number `index` of their block, and its memory among tiles that are interleaved."""

    block: Block
    index: Any
    work_ref: Ref
    ping_pong_ref: Ref
    keys_ref: Ref
    sums_ref: Ref
    facts_ref: Ref
    copy_ref: Ref
    levels_ref: Ref
    given_ref: Ref

    @property
    def variant(self) -> Variant:
        """Tell what the kernel is compiled for."""
        return self.block.variant

    @property
    def group_size(self) -> Rows:
        """Count the valid samples of every row: (8, 128)."""
        if self.variant.masked:
            sizes: Rows = self.facts_ref[GROUP_SIZE]  # (8, 128)
            return sizes
        return zeros() + float(self.variant.n_samples)


def tile_of(block: Block, index: Any, t: int = 0) -> Tile:
    """Take tile number `index` of a block, with the memory of number t of interleaved tiles."""
    scratch = block.scratch
    counts = scratch.levels_ref is not None
    return Tile(
        block=block,
        index=index,
        work_ref=scratch.work_ref.at[t],
        ping_pong_ref=scratch.ping_pong_ref,
        keys_ref=None if scratch.keys_ref is None else scratch.keys_ref.at[t],
        sums_ref=None if scratch.sums_ref is None else scratch.sums_ref.at[t],
        facts_ref=scratch.facts_ref.at[index],
        copy_ref=scratch.work_ref.at[index] if counts else None,
        levels_ref=scratch.levels_ref.at[index] if counts else None,
        given_ref=scratch.given_ref.at[index] if counts else None,
    )


def zeros() -> Rows:
    """Make a register of zeros: (8, 128)."""
    return jnp.zeros((SUBLANES, LANES), jnp.float32)
