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

from pkpo_triton.assembly import floats, load, load_four
from pkpo_triton.packed_padded import threads_in_turn, write_unpadded_row
from pkpo_triton.packed_tile import (
    over_lanes,
    read_row,
    row_of_block,
    wait_for_row,
    write_row,
)

# ---- PTX ---------------------------------------------------------------------------------------


@triton.constexpr_function
def _for_valid(n, first, order, do):
    """Do something for each of n samples of a thread, whose mask begins at operand `first`, with
    `valid` saying whether it is: a byte of a word has a bit for the same sample of each of eight
    quads.

    In the order of the bits, for ptxas moves them into predicates seven at a time, but not where
    the same tests are made elsewhere: there the bytes are put in another order before.
    """
    words = range(-(-n // 32))
    lines = [".reg .pred valid;", f".reg .b32 bit, mask<{len(words)}>;"]
    lines += [f"prmt.b32 mask{word}, ${first + word}, 0, 0x{order};" for word in words]
    steps = [(c // 32, order[::-1].index(str(c % 4)), c) for c in range(n)]
    for word, byte, c in sorted(steps):
        lines.append(f"and.b32 bit, mask{word}, {1 << 8 * byte + c // 4 % 8};")
        lines.append(f"setp.ne.b32 valid, bit, 0; {do(c)};")
    return " ".join(lines)


@triton.constexpr_function
def _largest_valid(n):
    steps = _for_valid(n, n + 1, "3210", lambda c: f"@valid max.f32 $0, $0, ${c + 1}")
    return f"{{ mov.b32 $0, 0xFF800000; {steps} }}"


@triton.constexpr_function
def _replaced(n, order):
    value = 2 * n + -(-n // 32)
    steps = _for_valid(n, 2 * n, order, lambda c: f"selp.f32 ${c}, ${n + c}, ${value}, valid")
    return f"{{ {steps} }}"


@triton.constexpr_function
def _masked_operands(results, n):
    return ",".join(["=&f"] * results + ["f"] * n + ["r"] * -(-n // 32))


@triton.jit
def largest_valid(samples, mask, C: tl.constexpr):
    """Find the largest of a thread's valid samples, −∞ where there is none, without regard to NaNs:
    C × (T,) and the words of its mask, each (T,) → (T,)."""
    return tl.inline_asm_elementwise(
        _largest_valid(C), _masked_operands(1, C), samples + mask, tl.float32, is_pure=True, pack=1
    )


@triton.constexpr_function
def _replaced_operands(n):
    return _masked_operands(n, n) + ",f"


@triton.jit
def replace_left_out(samples, mask, value, ORDER: tl.constexpr, C: tl.constexpr):
    """Put a value in the place of a thread's samples that are left out: C × (T,), the words of its
    mask and the value, each (T,) → C × (T,)."""
    return tl.inline_asm_elementwise(
        _replaced(C, ORDER), _replaced_operands(C), samples + mask + (value,), floats(C),
        is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def count_bits(word):
    """Count the bits that are set: (T,) → (T,)."""
    return tl.inline_asm_elementwise(
        "popc.b32 $0, $1;", "=r,r", [word], tl.int32, is_pure=True, pack=1
    )


# ---- Rows --------------------------------------------------------------------------------------


@triton.jit
def read_mask(where_ptr, block, lane, tile: tl.constexpr):
    """Read each thread's part of the mask of its row, bytes that are 0 or 1: a pointer to the mask
    of all rows, `Block` and (T,) → W words, each (T,)."""
    QUADS: tl.constexpr = tile.C // 4
    BLOCK_ROWS: tl.constexpr = tile.T // tile.THREADS_PER_ROW
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + row_of_block(block, tile)  # (T,)
    address = where_ptr.to(tl.int64) + row * tile.N_SAMPLES + lane.to(tl.int64) * 4  # (T,)
    bytes_of_quads = ()
    if tile.THREADS_PER_ROW == 1 and tile.N_SAMPLES % 16 == 0:
        for four in tl.static_range(tile.N_SAMPLES // 16):
            bytes_of_quads = bytes_of_quads + load_four(address, 16 * four)
    else:
        for quad in tl.static_range(QUADS):
            if threads_in_turn(quad, tile) == tile.THREADS_PER_ROW:
                bytes_of_quads = bytes_of_quads + (load(address, 4 * tile.THREADS_PER_ROW * quad),)
            elif threads_in_turn(quad, tile) > 0:
                # A thread behind the row's end reads its last four, and leaves them out.
                behind = tl.maximum(lane - (threads_in_turn(quad, tile) - 1), 0)  # (T,)
                of_last = address - 4 * behind.to(tl.int64)
                read = load(of_last, 4 * tile.THREADS_PER_ROW * quad)
                bytes_of_quads = bytes_of_quads + (tl.where(behind == 0, read, 0.0),)
    mask = ()
    word = tl.zeros([tile.T], tl.int32)
    for quad in tl.static_range(QUADS):
        if quad < len(bytes_of_quads):
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
    cleared = replace_left_out(read_row(own, tile), mask, zero, "2103", tile.C)
    write_unpadded_row(own, cleared, tile)
