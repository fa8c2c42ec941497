"""How rows of n samples are worked on: the one table of regimes, and the memory they take.

| n                      | sorted                         | a sample finds its value by  | as
| to 127                 | in VMEM, one launch            | looking its reward up        | (n, rows)
| 128                    | the same                       | the same                     | (rows, n)
| 256, 384, … to longest | in VMEM, chunks of samples     | undoing the mergers of runs, | (rows, n)
|                        |                                | and looking it up in its run |
| others to longest      | the same                       | the same                     | (n, rows)
| 65 to longest, of 16   | in VMEM, as words of a reward  | sorting the words again, by  | as above
| bits there and back    | and its sample's number        | sample                       |
| more                   | by XLA; a launch for the scan  | XLA's second sort            | (n, rows)

Chips that cannot gather from sublanes undo all comparators, of short rows too. float16 has no place
in Mosaic's memory, and is float32 here.

XLA lays (rows, n) out in the way that pads less: with n on sublanes, in eights, or on lanes, where
a whole number of 128 fits. The kernel takes what is there, and transposes the latter in VMEM. Three
units share a chunk's transposes, and the more of them, the less a unit waits for its first and its
last: where there is memory for them, chunks have 256 samples, which come and go in 2048 cycles, for
2508 in two chunks of 128. Two rows of 16 bits are transposed as one of 32.

Blocks of rows of at most eight distinct values are not sorted, where rows are long enough.

What bundles, spills and seconds of compilation a choice costs is, here and in the other files, from
schedules of the compiler for v5e (libtpu 0.0.42), for 1024 rows of float32: `bench/tpu_static.py`.

VMEM for a tile of 1024 rows, with P = padded(n) and 4 KiB a sample, in MiB; decisions are packed up
to 32 in a word, one word a group of 16:

                                                          P = 1024    2048    4096
    input and output blocks, two of each, 256 samples          4.0     4.0     4.0
    the rewards, 9/8, and what is sorted: 17/8 · P · 4 KiB     8.5    17.0    34.0
    tables of the sorted runs: 9/8 · P · 4 KiB, and 0.3        4.8     9.3    18.3
    decisions of their mergers                                 2.8     7.0    16.0
    weights, in rows of 128                                    1.0     2.0     4.0
                                                              21.1    39.3    76.3
    with buffers: one a pass, else one of P · 4 KiB       40: 61.1  8: 47.3 16: 92.3
    words of 16 bits: blocks 2.0, no tables or decisions,
    the sums beside what is sorted                            15.5    29.0    56.0
    without tables or weights, blocks of 128 samples:
    decisions of all comparators                              14.5
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from pkpo_pallas.networks import Pass, padded, passes, words_for

# In rows of no more every sample is looked up. What that takes grows with their length, and what
# undoing the comparators takes, with its logarithm squared.
LONGEST_LOOKED_UP = 128
# Samples of longer ones are looked up in the sorted run that they are part of, of so many groups:
# the least operations.
RUN_GROUPS = 2
# Sublanes from one row block to the next in a table: where it is a multiple of 8, what is stored or
# loaded at once lies in one bank, and takes two turns (8 for 9: 10 % more bundles at n = 8, 7 % at
# 32, 3 % at 128).
PITCH = 9

# Samples that registers hold with room to work: there are 64. Of a merge that keeps its decisions,
# fewer: of 32 spills would eat up what a pass less saves.
GROUP = 32
DECIDED_GROUP = 16
UNROLLED = 32

# Rows of fewer samples are sorted as fast as they are looked at; of longer ones so many distinct
# values are looked for, and then so many.
SHORTEST_COUNTED = 17
FEWER_LEVELS, MOST_LEVELS = 4, 8

# Shorter rows of 16 bits are sorted like others: words would take 1258 cycles for 1192 at n = 64,
# and 3494 for 4216 at 128.
SHORTEST_PACKED = 65

# Decisions in a word, in turn. A bundle stores one word and has four other operations: few in each
# keep both busy. Where rows are long, memory comes first.
FEW_DECISIONS, MANY_DECISIONS = (2, 1), (32,)

SUBLANES, LANES = 8, 128
# Rows of a tile: a register holds one sample of each.
TILE_ROWS = SUBLANES * LANES
# Elements that a grid step of short rows takes, so that a step's cost of its own (a third of a
# microsecond) and the question asked of a block are shared by many tiles; and the bytes of
# VMEM for each (most for bools in rows of 8, which are laid out as if there were 32).
BLOCK_ELEMENTS = 1 << 18
BYTES_PER_ELEMENT = 72


# What a tile of long rows takes beside what grows with their padded length: blocks, masks, weights,
# and registers that are spilled.
OTHER_BYTES = 6 << 20


class Chip(NamedTuple):
    """What a kernel may use."""

    gathers: bool  # from sublanes, in one operation
    vmem_bytes: int
    longest: int  # row that is sorted in VMEM


# VMEM of a core: 16 MiB to v4, 64 MiB of v5p and v7x, 128 MiB of v5e and v6e.
OLD = Chip(gathers=False, vmem_bytes=16 << 20, longest=1024)
ANY = Chip(gathers=True, vmem_bytes=48 << 20, longest=2048)
LARGE = Chip(gathers=True, vmem_bytes=96 << 20, longest=4096)
# Longer rows take minutes in the interpreter.
INTERPRETER = ANY._replace(longest=1024)
_CHIPS = {
    "TPU v2": OLD,
    "TPU v3": OLD,
    "TPU v4": OLD,
    "TPU v4 lite": OLD,
    "TPU v5 lite": LARGE,
    "TPU v5e": LARGE,
    "TPU v6 lite": LARGE,
    "TPU v6e": LARGE,
}


def chip(interpreted: bool = False) -> Chip:
    """Tell the chip that a program is traced for: that of the abstract mesh in force
    (`jax.sharding.use_abstract_mesh`), else the first at hand; where there is none, what all have
    since v5."""
    meant = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if meant is not None:
        return _CHIPS.get(meant.device_kind, ANY)
    if interpreted:
        return INTERPRETER
    if jax.default_backend() != "tpu":
        return ANY
    return _CHIPS.get(jax.devices()[0].device_kind, ANY)


class Plan(NamedTuple):
    """Constants of a kernel for rows of n samples."""

    gathers: bool  # the chip does, from sublanes
    packs: bool  # a reward and its sample are one word, sorted there and back

    n_padded: int  # P: samples that the network sorts
    group: int  # samples that are in registers at one time
    unrolled: int  # samples that an iteration of a scan takes
    chunk: int  # samples of long rows that a grid step copies; 0 where rows are short
    row_major: bool
    tiles: int  # of a grid step
    pack: tuple[int, ...]  # decisions in a word, in turn
    run: int  # samples whose values are looked up in one place; 0 where none are
    interleaved: int  # tiles that are worked on together
    vmem_bytes: int
    buffers: int  # that passes take turns in writing to, beside the one that they begin with
    inputs_stay: bool  # there is one for each pass

    @property
    def chunked(self) -> bool:
        """Tell whether rows are copied in chunks."""
        return self.chunk > 0

    @property
    def one_run(self) -> bool:
        """Tell whether a row is one run, and no comparator is undone."""
        return self.run == self.n_padded

    @property
    def looks_up(self) -> bool:
        """Tell whether samples look their rewards up in sorted runs."""
        return self.run > 0 and not self.packs

    def recomputed(self, network: Pass) -> int:
        """Count the comparators of a group whose decisions need not be kept: where what a pass
        loads stays, those of its first level, one for every two samples."""
        return network.each // 2 if self.inputs_stay else 0

    def runs(self, n: int) -> int:
        """Count the runs that have samples of rows of n; of words all, as the rest has samples of
        its own."""
        return -(-(self.n_padded if self.packs else n) // self.run)


def plan(
    n: int, rows: int, chip: Chip = ANY, interpreted: bool = False, narrow: bool = False
) -> Plan:
    """Plan a kernel for `rows` rows of n ≤ chip.longest samples, whose rewards and values are
    narrow where they have 16 bits.

    Interpreted, every access is a call, which has to be compiled and made: loops and small groups
    leave few of them to be compiled, large groups few to be made.
    """
    packs = narrow and n >= SHORTEST_PACKED
    in_runs = chip.gathers or packs
    one_run = in_runs and n <= LONGEST_LOOKED_UP and not packs
    chunked = n > LANES
    wide = n % (2 * LANES) == 0 and chip.vmem_bytes > OLD.vmem_bytes
    chunk = LANES * (1 + wide) if chunked else 0
    group = GROUP
    if interpreted and not one_run:
        group = GROUP // 2 if in_runs else GROUP // 4
    n_padded = padded(n, group)
    run = 0 if not in_runs else n_padded if one_run else RUN_GROUPS * group
    elements = BLOCK_ELEMENTS
    while elements * BYTES_PER_ELEMENT > chip.vmem_bytes:
        elements //= 2
    tiles = max(1, min(elements // (TILE_ROWS * max(n, 8)), -(-rows // TILE_ROWS)))
    tiles = 1 if n >= LANES else tiles
    interleaved = 2 if one_run and n_padded <= GROUP and tiles > 1 else 1
    chosen = Plan(
        gathers=chip.gathers,
        packs=packs,
        n_padded=n_padded,
        group=group,
        unrolled=1 if interpreted else UNROLLED,
        chunk=chunk,
        row_major=n % LANES == 0,
        tiles=tiles - tiles % interleaved,
        pack=MANY_DECISIONS if chunked else FEW_DECISIONS,
        run=run,
        interleaved=interleaved,
        vmem_bytes=chip.vmem_bytes,
        buffers=0,
        inputs_stay=False,
    )
    return chosen if one_run or packs else _with_buffers(n, chosen)


def _with_buffers(n: int, chosen: Plan) -> Plan:
    """Plan for the buffers that there is room for: one for each pass, so that what it loads stays;
    one in all; or none."""
    bytes_of_sample = 4 * TILE_ROWS
    size = chosen.n_padded * bytes_of_sample
    tables = 9 * size // 8 if chosen.run else 0
    taken = 17 * size // 8 + tables + words(n, chosen) * bytes_of_sample + OTHER_BYTES
    room = (chosen.vmem_bytes - taken) // size
    most = len(passes_of(n, chosen))
    if room >= most:
        # Those of whole groups that are sorted have other levels.
        return chosen._replace(buffers=most, inputs_stay=chosen.run > 0)
    return chosen._replace(buffers=max(0, min(1, room)))


def words(n: int, chosen: Plan) -> int:
    """Count the words that the decisions of a tile take, for rows of n samples."""
    return sum(
        p.groups * words_for(len(p.comparators) - chosen.recomputed(p), chosen.pack)
        for p in passes_of(n, chosen)
    )


def passes_of(n: int, chosen: Plan) -> tuple[Pass, ...]:
    """List the passes that sort rows of n samples, or merge their sorted runs."""
    merged = chosen.group if chosen.packs else DECIDED_GROUP
    return passes(n, chosen.group, chosen.run, merged)
