"""How rows of n samples are spread over threads: the one table of regimes."""

from __future__ import annotations

from typing import NamedTuple

# Rows longer than this are sorted by the library: see `long_rows`.
LONGEST_ON_CHIP = 1024


class Plan(NamedTuple):
    """Constants of a kernel for rows of n samples."""

    chunk: int  # samples in a thread
    lanes: int  # threads for a row
    block_rows: int
    num_warps: int
    vector: int  # neighbours that a thread reads at a time

    @property
    def threads(self) -> int:
        return self.block_rows * self.lanes


def plan(n: int, itemsize: int, wide: bool) -> Plan:
    """The plan for rows of n ≤ LONGEST_ON_CHIP samples.

    Args:
        n: samples in a row.
        itemsize: bytes of a reward in memory.
        wide: float64 inside, with twice the registers a sample.

    | n          | threads a row | samples a thread | why there (sm_90, float32, instructions a sample)
    | to 8       | 1             | n                | 4 rows a thread and 4 warps: 30 against 43 with 1
    | to 16      | 1             | n                | 2 rows a thread, 1 warp, no barrier: 39 against 41
    | to 64      | 1             | n                | 1 row a thread: 66 at 64, against 89 on 2 threads
    | beyond     | a power of 2  | 32               | 64 in a thread spill

    float64 takes two registers a sample: 16 samples on one thread, then 8 on each of several.
    """
    longest = 16 if wide else 64
    if n <= longest:
        rows_a_thread = 4 if n <= 8 else 2 if n <= 16 else 1
        warps = 4 if n <= 8 else 1
        if wide:
            rows_a_thread = max(1, rows_a_thread // 2)
        return Plan(n, 1, 32 * warps * rows_a_thread, warps, 1)
    chunk = 8 if wide else 32
    lanes = 2
    while lanes * chunk < n:
        lanes *= 2
    warps = max(1, lanes // 32)
    return Plan(chunk, lanes, 32 * warps // lanes, warps, max(1, min(chunk, 16 // itemsize)))
