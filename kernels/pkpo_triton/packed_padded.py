"""Rows of a packed kernel whose threads hold more than they have: they are padded.

A row in one thread fills it. Of several threads each holds the same multiple of four, in
`pkpo_triton.packed_long` of eight, together perhaps more than the row has. The
padding, in registers and in shared memory, is the row's largest sample: it sorts to the end, where
the gaps are 0, and rows of few values stay rows of few values. Nothing of it is copied out. Where
samples are left out, it counts as left out, too: see `packed_masked`.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.assembly import floats, get_each, get_four, load_four, put_four
from pkpo_triton.packed_tile import over_lanes, row_of_block, wait_for_row

# ---- Before they are sorted --------------------------------------------------------------------


@triton.constexpr_function
def threads_in_turn(quad, tile):
    """How many of a row's threads find four samples of it in a turn; the others are behind its
    end."""
    left = tile.N_SAMPLES // 4 - quad * tile.THREADS_PER_ROW
    return max(0, min(left, tile.THREADS_PER_ROW))


@triton.jit
def _read_quads(address, lane, STEP: tl.constexpr, LOADS: tl.constexpr, tile: tl.constexpr):
    """Read each thread's samples, STEP bytes from one quad to the next, from global memory if
    LOADS, else from shared; behind the end of its row others of its own: twice (T,) → C × (T,)."""
    rewards = ()
    for quad in tl.static_range(tile.C // 4):
        if threads_in_turn(quad, tile) == tile.THREADS_PER_ROW:
            if LOADS:
                rewards = rewards + load_four(address, STEP * quad, tile.DTYPE)
            else:
                rewards = rewards + get_four(address, STEP * quad)
        elif threads_in_turn(quad, tile) > 0:
            turn = tl.where(lane < threads_in_turn(quad, tile), quad, quad - 1)  # (T,)
            at = address + (STEP * turn).to(address.dtype)  # (T,)
            rewards = rewards + (load_four(at, 0, tile.DTYPE) if LOADS else get_four(at, 0))
        else:
            rewards = rewards + rewards[4 * quad - 4 :]
    return rewards


@triton.jit
def read_unpadded_row(own, lane, tile: tl.constexpr):
    """Read each thread's samples, behind the end of its row others of its own: twice (T,) → C ×
    (T,)."""
    return _read_quads(own, lane, 16 * tile.THREADS_PER_ROW, False, tile)


@triton.jit
def write_unpadded_row(own, values, tile: tl.constexpr):
    """Write each thread's samples, but for what nobody copies out: (T,) and C × (T,)."""
    for quad in tl.static_range(tile.C // 4):
        if threads_in_turn(quad, tile) > 0:
            put_four(own, values[4 * quad : 4 * quad + 4], 16 * tile.THREADS_PER_ROW * quad)


@triton.constexpr_function
def loads_rows(tile):
    """Whether threads load their own samples, which eight of a row read 128 bytes at a time (of 16
    bits 64), as fast as a copy into shared memory, from which they would be read again. Four take
    longer, but where a mask has a row written anew, they save more."""
    enough = 4 if tile.MASKED else 8
    return enough <= tile.THREADS_PER_ROW


@triton.jit
def load_row(own, lane, block, tile: tl.constexpr):
    """Load each thread's samples from global memory, as `read_unpadded_row`, and write them to
    shared memory, unless they are to be filled; threads have to wait for each other before they
    read others': two (T,) and `Block` → C × (T,)."""
    in_block = row_of_block(block, tile) * (tile.BYTES * tile.N_SAMPLES)  # (T,)
    in_block += lane * (4 * tile.BYTES)  # (T,)
    address = block.rewards_address + in_block.to(tl.int64)  # (T,)
    rewards = _read_quads(address, lane, 4 * tile.BYTES * tile.THREADS_PER_ROW, True, tile)
    if not tile.MASKED:
        write_unpadded_row(own, rewards, tile)
    return rewards


@triton.jit
def pad_row(own, rewards, lane, tile: tl.constexpr):
    """Pad rows with their largest sample, also in shared memory: (T,), C × (T,) and (T,) → C ×
    (T,)."""
    largest = rewards[0]
    for c in tl.static_range(1, tile.C):
        if threads_in_turn(c // 4, tile) > 0:
            largest = tl.maximum(largest, rewards[c])
    largest = over_lanes(largest, "max", tile)
    padded = ()
    for quad in tl.static_range(tile.C // 4):
        if threads_in_turn(quad, tile) == tile.THREADS_PER_ROW:
            padded = padded + rewards[4 * quad : 4 * quad + 4]
        else:
            is_there = lane < threads_in_turn(quad, tile)  # (T,)
            for i in tl.static_range(4):
                padded = padded + (tl.where(is_there, rewards[4 * quad + i], largest),)
            put_four(own, padded[4 * quad :], 16 * tile.THREADS_PER_ROW * quad)
    wait_for_row(tile)
    return padded


# ---- Once they are sorted ----------------------------------------------------------------------


@triton.constexpr_function
def threads_in_order(tile):
    """How many of a row's threads hold any of it once it is sorted; the others hold padding."""
    return -(-tile.N_SAMPLES // tile.C)


@triton.constexpr_function
def _read_each_or(n):
    reads = (
        f"mov.b32 ${i}, ${2 * n + 1}; @reads ld.shared.f32 ${i}, [${n + i}];" for i in range(n)
    )
    return f"{{ .reg .pred reads; setp.ne.b32 reads, ${2 * n}, 0; {' '.join(reads)} }}"


@triton.constexpr_function
def _read_each_or_operands(n):
    return ",".join(["=&f"] * n + ["r"] * (n + 1) + ["f"])


@triton.jit
def get_in_order(addresses, largest, lane, tile: tl.constexpr):
    """Read rows that are sorted by numbers in fixed point: addresses, C × (T,), their largest and
    lane, (T,) → C × (T,).

    The padding comes behind all samples, which have lower indices where they equal it. To read it
    from shared memory would take turns: threads would all want the same bank.
    """
    if threads_in_order(tile) == tile.THREADS_PER_ROW:
        return get_each(addresses, tile.C)
    else:
        reads = (lane < threads_in_order(tile)).to(tl.int32)  # (T,)
        return tl.inline_asm_elementwise(
            _read_each_or(tile.C), _read_each_or_operands(tile.C), addresses + (reads, largest),
            floats(tile.C), is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def put_where(writes, address, x):
    """Write a word of shared memory where a thread is told to: three (T,)."""
    tl.inline_asm_elementwise(
        "{ .reg .pred writes; setp.ne.b32 writes, $1, 0; @writes st.shared.f32 [$2], $3; }",
        "=r,r,r,f", [writes.to(tl.int32), address, x], tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
