"""How rows of n samples are worked on: the one table of regimes, and the memory they take.

| n                      | how                                        | in memory
| to 127                 | sorted in VMEM, one launch                 | (n, rows): samples major
| 128, 256, … to 1024    | the same, in chunks of 128 samples         | (rows, n): row major
| others to 1024         | the same                                   | (n, rows)
| more                   | sorted by XLA, then one launch for the scan | (n, rows)

XLA lays (rows, n) out in the way that pads less: with n on sublanes, in eights, or on lanes, where
a whole number of 128 fits. The kernel takes what is there, and turns the latter in VMEM.

VMEM of the smallest chip that is served (v4: 16 MiB a core), for a tile of 1024 rows, with
P = padded(n), 4 KiB a sample, and the decisions of the P=1024 network, 26400, packed 32 in a word:

    input and output blocks, two of each      4 · 128 · 4 KiB =  2.0 MiB   (chunks of 128 samples)
    the rewards, and what is sorted           2 · P · 4 KiB   =  8.0 MiB   at n = 1024
    decisions                                                    3.3 MiB   at n = 1024
                                                                13.3 MiB
    at n = 2048 it would be                                     26   MiB
"""

from __future__ import annotations

from typing import NamedTuple

from pkpo_pallas.networks import padded, passes, words_for

# Rows longer than this are sorted by XLA: see `long_rows`.
LONGEST_ON_CHIP = 1024

VMEM_BYTES = 16 << 20

# Rows of no more are looked up. What that takes grows with their length, and what undoing the
# comparators takes, with its logarithm squared.
LONGEST_LOOKED_UP = 128
# Sublanes from one row block to the next in a table: where it is a multiple of 8, what is stored or
# loaded at once lies in one bank, and takes two turns.
PITCH = 9

# Samples that registers hold with room to work: there are 64.
GROUP = 32
UNROLLED = 32

# Decisions in a word, in turn. A bundle stores one word and has four other operations: few in each
# keep both busy. Where rows are long, memory comes first.
FEW_DECISIONS, MANY_DECISIONS = (2, 1), (32,)

SUBLANES, LANES = 8, 128
# Rows of a tile: a register holds one sample of each.
TILE_ROWS = SUBLANES * LANES
# Elements that a grid step of short rows takes, so that a step's cost of its own (a third of a
# microsecond) and the two questions asked of a block are shared by many tiles.
BLOCK_ELEMENTS = 1 << 17


class Plan(NamedTuple):
    """Constants of a kernel for rows of n samples."""

    samples: int  # P: what the network sorts
    group: int  # samples that are in registers at one time
    unrolled: int  # samples that a turn of a scan takes
    chunked: bool
    row_major: bool
    tiles: int  # of a grid step
    pack: tuple[int, ...]  # decisions in a word, in turn
    tables: int  # 0 where comparators are undone
    abreast: int  # tiles that are worked on together

    @property
    def looked_up(self) -> bool:
        return self.tables > 0


def fits(n: int) -> bool:
    """Whether rows of n samples are sorted on chip."""
    return n <= LONGEST_ON_CHIP


def plan(n: int, rows: int, interpreted: bool = False, gathers: bool = True) -> Plan:
    """The plan for `rows` rows of n samples that fit, on a chip that gathers from sublanes or not.

    Interpreted, every access is a call, which has to be compiled and made: loops keep them few for
    short rows, and large groups for long ones.
    """
    looked_up = gathers and n <= LONGEST_LOOKED_UP
    group, unrolled = GROUP, UNROLLED
    if interpreted:
        unrolled = 1
        if not looked_up:
            group = 8 if n <= 512 else 16
    samples = padded(n, group)
    tables = -(-samples // SUBLANES) if looked_up else 0
    if n >= LANES:
        pack = FEW_DECISIONS if n <= LANES else MANY_DECISIONS
        return Plan(samples, group, unrolled, True, n % LANES == 0, 1, pack, tables, 1)
    tiles = max(1, min(BLOCK_ELEMENTS // (TILE_ROWS * max(n, 8)), -(-rows // TILE_ROWS)))
    abreast = 2 if looked_up and samples <= GROUP and tiles > 1 else 1
    tiles -= tiles % abreast
    return Plan(samples, group, unrolled, False, False, tiles, FEW_DECISIONS, tables, abreast)


def words(n: int, chosen: Plan) -> int:
    """How many words the decisions of a tile take."""
    every = passes(n, chosen.group)
    return sum(p.groups * words_for(len(p.comparators), chosen.pack) for p in every)
