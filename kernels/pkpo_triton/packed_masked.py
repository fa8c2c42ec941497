"""Samples that are left out of a packed kernel's rows.

A left-out sample takes the value of the row's largest valid one, in registers and in shared memory:
it sorts to the end, where the gaps are 0, and rows of few values stay rows of few values. In the
end it gets 0, whatever it holds. What the number of valid samples changes: see `packed_weights`.

A thread's mask is a bit a sample, in a word for every eight quads: the four bytes of the first, and
those of the others shifted by a bit each.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.assembly import (
    count_bits,
    largest_valid,
    load,
    load_four,
    replace_left_out,
)
from pkpo_triton.packed_tile import over_lanes, read_row, wait_for_row, write_row


@triton.jit
def read_mask(address, lane, tile: tl.constexpr):
    """Read each thread's part of the mask of its row, whose bytes, 0 or 1, lie at a global address:
    twice (T,) → W words, each (T,)."""
    address += lane.to(tl.int64) * 4
    QUADS: tl.constexpr = tile.C // 4
    bytes_of_quads = ()
    if tile.THREADS_PER_ROW == 1:
        for four in tl.static_range(QUADS // 4):
            bytes_of_quads = bytes_of_quads + load_four(address, 16 * four)
    else:
        for quad in tl.static_range(QUADS):
            bytes_of_quads = bytes_of_quads + (load(address, 4 * tile.THREADS_PER_ROW * quad),)
    mask = ()
    word = tl.zeros([tile.T], tl.int32)
    for quad in tl.static_range(QUADS):
        word += bytes_of_quads[quad].to(tl.int32, bitcast=True) << quad % 8
        if quad % 8 == 7 or quad == QUADS - 1:
            mask = mask + (word,)
            word = tl.zeros([tile.T], tl.int32)
    return mask


@triton.jit
def count_valid(mask, tile: tl.constexpr):
    """Count the valid samples of each row: W × (T,) → (T,)."""
    n = tl.zeros([tile.T], tl.int32)
    for word in tl.static_range(len(mask)):
        n += count_bits(mask[word])
    return over_lanes(n, "sum", tile)


@triton.jit
def fill_row(own, rewards, mask, tile: tl.constexpr):
    """Give samples that are left out the value of their row's largest, 0 where there is none, and
    write the row: (T,), C × (T,), W × (T,) → C × (T,)."""
    largest = over_lanes(largest_valid(rewards, mask, tile.C), "max", tile)
    largest = tl.where(largest > float("-inf"), largest, 0.0)
    filled = replace_left_out(rewards, mask, largest, "0123", tile.C)
    write_row(own, filled, tile)
    wait_for_row(tile)
    return filled


@triton.jit
def clear_row(own, mask, tile: tl.constexpr):
    """Write 0 for samples that are left out: (T,) and W × (T,)."""
    wait_for_row(tile)
    zero = tl.zeros([tile.T], tl.float32)
    write_row(own, replace_left_out(read_row(own, tile), mask, zero, "2103", tile.C), tile)
