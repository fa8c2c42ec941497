"""How rows of n samples are spread over threads: the one table of regimes."""

from __future__ import annotations

from typing import NamedTuple

# Rows longer than this are sorted by the library: see `long_rows`. Sixteen threads a row would do
# in registers what eight do, but take Triton a minute to compile, and some spill.
LONGEST_ON_CHIP = 256


class Plan(NamedTuple):
    """Constants of a kernel for rows of n samples."""

    chunk: int  # samples in a thread
    lanes: int  # threads for a row
    block_rows: int
    num_warps: int
    vector: int  # neighbours that a thread reads at a time


def plan(n: int, itemsize: int, wide: bool) -> Plan | None:
    """The plan for rows of n samples, None for those that the library sorts.

    Args:
        n: samples in a row.
        itemsize: bytes of a reward in memory.
        wide: float64 inside, with twice the registers a sample.

    | n        | threads a row | samples a thread | why (instructions a sample, sm_90, float32)
    | to 8     | 1             | n                | 4 rows a thread share weights; 4 warps
    | to 16    | 1             | n                | 2 rows a thread, 1 warp: 39; 4 warps: 40
    | to 64    | 1             | n                | 66 at 64, where 2 threads a row take 89
    | 128, 256 | 4, 8          | 32               | 64 samples in a thread would spill
    | others   |               |                  | the library's sort, then one fused kernel

    float64: to 8 samples on one thread, then 8 on each of 2 or 4, then the library's sort.
    """
    if n <= (8 if wide else 64):
        warps = 4 if n <= 8 else 1
        rows_a_thread = 4 if n <= 8 else 2 if n <= 16 else 1
        if wide:
            rows_a_thread = max(1, rows_a_thread // 2)
        return Plan(n, 1, 32 * warps * rows_a_thread, warps, 1)
    chunk = 8 if wide else 32
    lanes = n // chunk
    if n > (32 if wide else LONGEST_ON_CHIP) or lanes * chunk != n or lanes & (lanes - 1):
        return None
    return Plan(chunk, lanes, 32 // lanes, 1, max(1, min(chunk, 16 // itemsize)))
