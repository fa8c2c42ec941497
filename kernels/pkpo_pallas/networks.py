"""Sorting networks as passes over samples: which of them meet, and what is compared there.

A pass takes the samples in groups that fit in registers, and what it does in a group is a list of
comparators. Rows that fit in a group are sorted in one pass. Longer ones, padded to a power of
two, are sorted in runs as long as a group, and pairs of sorted runs are merged (bitonic merges) by
several passes.

A merge takes a rising run and a falling one: every other run is stored in falling order by the pass
that ends it. Samples are compared that lie span/2, span/4, … 1 apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# Comparators (a, b), a < b in the order that they make: the smaller to a.
Comparators = tuple[tuple[int, int], ...]

# The best network known for 16: 60 comparators (after Green 1969), where Batcher's has 63.
_SIXTEEN: Comparators = (
    *((0, 13), (1, 12), (2, 15), (3, 14), (4, 8), (5, 6), (7, 11), (9, 10)),
    *((0, 5), (1, 7), (2, 9), (3, 4), (6, 13), (8, 14), (10, 15), (11, 12)),
    *((0, 1), (2, 3), (4, 5), (6, 8), (7, 9), (10, 11), (12, 13), (14, 15)),
    *((0, 2), (1, 3), (4, 10), (5, 11), (6, 7), (8, 9), (12, 14), (13, 15)),
    *((1, 2), (3, 12), (4, 6), (5, 7), (8, 10), (9, 11), (13, 14)),
    *((1, 4), (2, 6), (5, 8), (7, 10), (9, 13), (11, 14)),
    *((2, 4), (3, 6), (9, 12), (11, 13)),
    *((3, 5), (6, 8), (7, 9), (10, 12)),
    *((3, 4), (5, 6), (7, 8), (9, 10), (11, 12)),
    *((6, 7), (8, 9)),
)


class Pass(NamedTuple):
    """Groups of samples, all with the same comparators.

    The samples of group number g are, in this order, start + stride · c for c < each, where
    start = (g // starts) · span + g % starts. They stay there; but of every second run of `falling`
    samples, where that is not 0, they are stored in reverse order, the run as a whole.
    """

    groups: int
    span: int
    starts: int
    stride: int
    each: int
    falling: int
    comparators: Comparators


class Bit(NamedTuple):
    """Where a comparator's decision is kept: the first of a word highest."""

    word: int
    bit: int
    closes: bool  # the last of its word


def packed(count: int, sizes: tuple[int, ...]) -> list[Bit]:
    """Place `count` decisions in words that hold, in turn, so many."""
    bits: list[Bit] = []
    word = 0
    while len(bits) < count:
        size = min(sizes[word % len(sizes)], count - len(bits))
        bits += [Bit(word, bit, bit == size - 1) for bit in range(size)]
        word += 1
    return bits


def words_for(count: int, sizes: tuple[int, ...]) -> int:
    """Count the words that `count` decisions take."""
    return sum(bit.closes for bit in packed(count, sizes))


def passes(n: int, group: int, run: int = 0, merged: int = 16) -> tuple[Pass, ...]:
    """List what sorts rows of padded(n, group) samples in groups of up to `group`, a power of two,
    and `merged` of a merge; the rest of it, where runs of `run` samples are sorted."""
    size = padded(n, group)
    width = min(size, group)
    falling = width if size > width else 0
    found = [] if run else [Pass(size // width, width, 1, 1, width, falling, sorting(width))]
    span = 2 * (run or width)
    while span <= size:
        found += _merge(size, span, min(group, merged))
        span *= 2
    return tuple(found)


def padded(n: int, group: int) -> int:
    """Count the samples that the network for rows of n samples takes."""
    return n if n <= group else 1 << (n - 1).bit_length()


def sorting(n: int) -> Comparators:
    """Build a network for n samples, the shorter of two. Comparators beyond n fall away: what is
    not there would be larger than all that is."""
    runs = [
        (first + a, first + b) for first in range(0, n, 16) for a, b in _SIXTEEN if first + b < n
    ]
    candidates = (tuple(_odd_even_merges(n, 1)), (*runs, *_odd_even_merges(n, 16)))
    return min(candidates, key=lambda comparators: len(comparators))


def _odd_even_merges(n: int, run: int) -> Iterator[tuple[int, int]]:
    """Batcher's merges of sorted runs of `run`, a power of two."""
    while run < n:
        distance = run
        while distance >= 1:
            for start in range(distance % run, n - distance, 2 * distance):
                for a in range(start, min(start + distance, n - distance)):
                    if a // (2 * run) == (a + distance) // (2 * run):
                        yield a, a + distance
            distance //= 2
        run *= 2


def _merge(size: int, span: int, most: int) -> Iterator[Pass]:
    """The passes that merge the halves of every `span` samples, one rising and one falling, about
    equally many steps each, in groups of up to `most`, as large as can be."""
    steps = span.bit_length() - 1
    count = -(-steps // (most.bit_length() - 1))
    done = 0
    for i in range(count):
        here = (steps - done) // (count - i)
        inner = span >> done  # what is merged by now lies in spans of this size
        stride = inner >> here
        each = min(most, size // stride)
        falling = span if i == count - 1 and span < size else 0
        comparators = tuple(halving(each, 1 << here))
        yield Pass(size // each, stride * each, stride, stride, each, falling, comparators)
        done += here


def halving(n: int, bitonic: int) -> Iterator[tuple[int, int]]:
    """Sort bitonic sequences, powers of two, that fill n."""
    distance = bitonic // 2
    while distance:
        for a in range(n):
            if not a & distance:
                yield a, a + distance
        distance //= 2
