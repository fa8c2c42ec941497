"""Sorting networks, as data that a kernel unrolls.

A row lies in one thread or several, as many samples in each. It is sorted in four kinds of step:

    COMPARE, distance  samples of every thread that far apart: the smaller to the front
    ACROSS, bit        every sample, and the same one of the thread whose number in the row differs
                       in that bit
    ACROSS_WARPS, bit  the same where that thread lies in another warp, which no shuffle reaches
    NEGATE, bit, other threads where these two bits differ change the sign of their samples

Every thread first sorts its own samples, by a short list of comparators (a, b); then sorted runs
are merged pair by pair, all samples in one step (bitonic merges). A bitonic merge wants one run of
the two descending: with the sign of its samples changed, every comparison is an ascending one.
Of two threads the lower keeps the smaller sample; with the sign of the upper changed, both do.

Where decisions are kept, what a comparator found ("swapped" or not) is a bit; bits are packed into
words, newest lowest.
"""

from __future__ import annotations

from typing import Any

import triton

COMPARE, ACROSS, ACROSS_WARPS, NEGATE = 0, 1, 2, 3

# A bit that is 0 in every thread's number.
NO_BIT = 30

# Decisions in a word: ptxas moves up to 24 bits of a register into predicates, 7 at a time (12.8).
WORD_BITS = 24

# Triton calls these while it compiles; Python calls them as they are.


@triton.constexpr_function  # type: ignore[untyped-decorator]
def sort_sixteen() -> Any:
    """List the best network known for 16: 60 comparators (Green 1969), where Batcher's has 63."""
    layers = (
        ((0, 13), (1, 12), (2, 15), (3, 14), (4, 8), (5, 6), (7, 11), (9, 10)),
        ((0, 5), (1, 7), (2, 9), (3, 4), (6, 13), (8, 14), (10, 15), (11, 12)),
        ((0, 1), (2, 3), (4, 5), (6, 8), (7, 9), (10, 11), (12, 13), (14, 15)),
        ((0, 2), (1, 3), (4, 10), (5, 11), (6, 7), (8, 9), (12, 14), (13, 15)),
        ((1, 2), (3, 12), (4, 6), (5, 7), (8, 10), (9, 11), (13, 14)),
        ((1, 4), (2, 6), (5, 8), (7, 10), (9, 13), (11, 14)),
        ((2, 4), (3, 6), (9, 12), (11, 13)),
        ((3, 5), (6, 8), (7, 9), (10, 12)),
        ((3, 4), (5, 6), (7, 8), (9, 10), (11, 12)),
        ((6, 7), (8, 9)),
    )
    return [pair for layer in layers for pair in layer]


@triton.constexpr_function  # type: ignore[untyped-decorator]
def odd_even_merges(n: Any, run: Any) -> Any:
    """List Batcher's odd-even merges of sorted runs of `run`, a power of two: comparators (a,
    b)."""
    pairs = []
    while run < n:
        distance = run
        while distance >= 1:
            for start in range(distance % run, n - distance, 2 * distance):
                for a in range(start, min(start + distance, n - distance)):
                    if a // (2 * run) == (a + distance) // (2 * run):
                        pairs.append((a, a + distance))
            distance //= 2
        run *= 2
    return pairs


@triton.constexpr_function  # type: ignore[untyped-decorator]
def thread_network(n: Any) -> Any:
    """List a network for any n, the shorter of two: comparators (a, b) with a < b.

    Comparators beyond n fall away: what is not there would be larger than all that is.
    """
    runs = [
        (first + a, first + b)
        for first in range(0, n, 16)
        for a, b in sort_sixteen()
        if first + b < n
    ]
    return min(odd_even_merges(n, 1), runs + odd_even_merges(n, 16), key=len)


@triton.constexpr_function  # type: ignore[untyped-decorator]
def bitonic_merge(n: Any) -> Any:
    """List a network for samples of any n that rise and then fall, wherever one begins in that
    circle: comparators (a, b). Half of them end below the others, and both halves are bitonic
    again; what is left of an odd length is sorted."""
    pairs, run = [], n
    while run % 2 == 0:
        run //= 2
        pairs += [(a, a + run) for a in range(n) if a // run % 2 == 0]
    return pairs + [
        (first + a, first + b) for first in range(0, n, run) for a, b in thread_network(run)
    ]


@triton.constexpr_function  # type: ignore[untyped-decorator]
def thread_steps(n: Any) -> Any:
    """List `thread_network` with what keeps its decisions: a tuple of (a, b, word, mask, closes):
    the word and the bit of the comparator's decision, and whether it is the word's last.
    """
    pairs = thread_network(n)
    steps = []
    for number, pair in enumerate(pairs):
        word = number // WORD_BITS
        newest = min(len(pairs), (word + 1) * WORD_BITS) - 1
        steps.append((*pair, word, 1 << (newest - number), number == newest))
    return tuple(steps)


@triton.constexpr_function  # type: ignore[untyped-decorator]
def merge_steps(samples_per_thread: Any, threads_per_row: Any, warp: Any) -> Any:
    """List what merges a row's sorted threads: sample c of thread p ends as number
    p · samples_per_thread + c.

    Args:
        samples_per_thread, threads_per_row: powers of two.
        warp: neighbouring threads that run in step, a power of two.

    Returns:
        A tuple of (kind, a, b).
    """
    steps: list[tuple[int, int, int]] = []
    for level in range(threads_per_row.bit_length() - 1):
        steps.append((NEGATE, level + 1, NO_BIT))
        for bit in range(level, -1, -1):
            steps.append((ACROSS if 1 << bit < warp else ACROSS_WARPS, bit, 0))
            steps.append((NEGATE, bit, bit - 1 if bit else NO_BIT))
        distance = samples_per_thread // 2
        while distance >= 1:
            steps.append((COMPARE, distance, 0))
            distance //= 2
    return tuple(steps)


@triton.constexpr_function  # type: ignore[untyped-decorator]
def padded(n: Any) -> Any:
    """Round n up to a power of two."""
    return 1 << (n - 1).bit_length()
