"""How the rows of a packed kernel lie in threads and in shared memory, how they come and go, and
what the threads of a row tell each other.

T and C are those of `pkpo_triton.packed`. An address is one of shared memory unless it is called
otherwise.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.assembly import (
    from_lane_across,
    from_lane_before,
    get_four,
    load_four,
    made_anew,
    put_four,
    store_four,
)


class Tile(NamedTuple):
    """Constants: how a program's rows lie in threads and in shared memory. After every PERIOD some
    words are left free, so that neither what threads read of their own rows nor what they read
    along meets in a bank."""

    N_SAMPLES: Any  # of a row in global memory, a multiple of 4
    N: Any  # words of a row in shared memory, at least as many as its threads hold
    BITS: Any  # of an index in a row
    THREADS_PER_ROW: Any  # threads of a row, neighbours
    C: Any  # samples in each of them, a multiple of 4
    T: Any  # threads
    PERIOD: Any  # words: a row, or several
    FREE: Any  # words, four for each of a row's threads
    MASKED: Any  # samples may be left out
    DTYPE: Any  # of rewards and results in global memory
    BYTES: Any  # of one of these
    EXACT: Any  # rewards have no bit where the index in a key lies


class Block(NamedTuple):
    """A program's rows in global memory."""

    rewards_address: Any
    out_address: Any
    rows: Any  # how many there are
    thread: Any  # (T,)


@triton.jit
def address_of(base, sample, tile: tl.constexpr):
    """Find words by their number in the block, N to a row: () and (T,) → (T,)."""
    return base + 4 * (sample + sample // tile.PERIOD * tile.FREE)


@triton.constexpr_function
def offset_of_step(step, tile):
    """The bytes from what all threads read along first, four words each, to what they read in a
    later step."""
    words = 4 * tile.T * step
    return 4 * (words + words // tile.PERIOD * tile.FREE)


@triton.jit
def any_thread(x):
    """Tell whether any thread says so: (T,) → ()."""
    return tl.max(x.to(tl.int32), 0) != 0


# ---- In and out --------------------------------------------------------------------------------


@triton.jit
def block_of(rewards_ptr, out_ptr, n_rows, thread, tile: tl.constexpr):
    """Find a program's rows: pointers, () and (T,) → `Block`."""
    BLOCK_ROWS: tl.constexpr = tile.T // tile.THREADS_PER_ROW
    block = tl.program_id(0)  # ()
    behind = block.to(tl.int64) * (BLOCK_ROWS * tile.BYTES * tile.N_SAMPLES)
    # In as few bits as there are: it is computed anew wherever it is asked for.
    rows = tl.minimum(n_rows - block.to(n_rows.dtype) * BLOCK_ROWS, BLOCK_ROWS)  # ()
    return Block(
        rewards_address=rewards_ptr.to(tl.int64) + behind,
        out_address=out_ptr.to(tl.int64) + behind,
        rows=rows.to(tl.int32),
        thread=thread,
    )


@triton.jit
def row_of_block(block, tile: tl.constexpr):
    """Find which row of a block a thread's is, behind the last the last again: `Block` → (T,)."""
    return tl.minimum(block.thread // tile.THREADS_PER_ROW, block.rows - 1)


@triton.jit
def copy_in(base, block, tile: tl.constexpr):
    """Copy a block into shared memory, and wait for all of it."""
    if block.rows == tile.T // tile.THREADS_PER_ROW:
        _copy_in(base, block, True, tile)
    else:
        _copy_in(base, block, False, tile)
    tl.debug_barrier()


@triton.jit
def copy_out(base, block, tile: tl.constexpr):
    """Copy a block out of shared memory, once all of it is there."""
    tl.debug_barrier()
    if block.rows == tile.T // tile.THREADS_PER_ROW:
        _copy_out(base, block, True, tile)
    else:
        _copy_out(base, block, False, tile)


@triton.constexpr_function
def _steps(tile):
    """The steps in which all threads copy a full block, four samples each."""
    return -(-tile.N_SAMPLES // (4 * tile.THREADS_PER_ROW))


@triton.constexpr_function
def _is_whole(step, tile):
    """Whether there are samples for all threads in a step of these."""
    return 4 * tile.THREADS_PER_ROW * (step + 1) <= tile.N_SAMPLES


@triton.jit
def _copy_in(base, block, FULL: tl.constexpr, tile: tl.constexpr):
    """Copy a block into shared memory; behind its end, its last four samples again."""
    along = address_of(base, 4 * block.thread, tile)  # (T,)
    for step in tl.static_range(_steps(tile)):
        sample = 4 * (block.thread + tile.T * step)  # (T,)
        if FULL and _is_whole(step, tile):
            address = block.rewards_address + block.thread.to(tl.int64) * (4 * tile.BYTES)
            x = load_four(address, 4 * tile.BYTES * tile.T * step, tile.DTYPE)  # 4 × (T,)
        else:
            of_block = tl.minimum(sample, block.rows * tile.N_SAMPLES - 4)  # (T,)
            address = block.rewards_address + of_block.to(tl.int64) * tile.BYTES
            x = load_four(address, 0, tile.DTYPE)  # 4 × (T,)
        if tile.N_SAMPLES == tile.N:
            put_four(along, x, offset_of_step(step, tile))
        else:
            if not _is_whole(step, tile):
                sample = tl.minimum(sample, tile.T // tile.THREADS_PER_ROW * tile.N_SAMPLES - 4)
            put_four(_address_of_sample(base, sample, tile), x, 0)


@triton.jit
def _copy_out(base, block, FULL: tl.constexpr, tile: tl.constexpr):
    """Copy a block out of shared memory; behind its end, its last four samples again."""
    thread = block.thread
    if tile.N_SAMPLES < tile.N:
        # So that addresses are not kept in registers since the way in.
        thread = made_anew(thread)
    along = address_of(base, 4 * thread, tile)  # (T,)
    for step in tl.static_range(_steps(tile)):
        sample = 4 * (thread + tile.T * step)  # (T,)
        if FULL and _is_whole(step, tile):
            if tile.N_SAMPLES == tile.N:
                x = get_four(along, offset_of_step(step, tile))  # 4 × (T,)
            else:
                x = get_four(_address_of_sample(base, sample, tile), 0)  # 4 × (T,)
            address = block.out_address + thread.to(tl.int64) * (4 * tile.BYTES)
            store_four(address, x, 4 * tile.BYTES * tile.T * step, tile.DTYPE)
        else:
            sample = tl.minimum(sample, block.rows * tile.N_SAMPLES - 4)  # (T,)
            x = get_four(_address_of_sample(base, sample, tile), 0)  # 4 × (T,)
            address = block.out_address + sample.to(tl.int64) * tile.BYTES
            store_four(address, x, 0, tile.DTYPE)


@triton.jit
def _address_of_sample(base, sample, tile: tl.constexpr):
    """Find samples by their number in the block, N_SAMPLES to a row: () and (T,) → (T,)."""
    if tile.N_SAMPLES < tile.N:
        sample += sample // tile.N_SAMPLES * (tile.N - tile.N_SAMPLES)
    return address_of(base, sample, tile)


@triton.jit
def read_row(own, tile: tl.constexpr):
    """Read each thread's samples: (T,) → C × (T,)."""
    rewards = ()
    for quad in tl.static_range(tile.C // 4):
        rewards = rewards + get_four(own, 16 * tile.THREADS_PER_ROW * quad)
    return rewards


@triton.jit
def write_row(own, values, tile: tl.constexpr):
    """Write each thread's samples: (T,) and C × (T,)."""
    for quad in tl.static_range(tile.C // 4):
        put_four(own, values[4 * quad : 4 * quad + 4], 16 * tile.THREADS_PER_ROW * quad)


# ---- Over the threads of a row -----------------------------------------------------------------


@triton.jit
def over_lanes(x, HOW: tl.constexpr, tile: tl.constexpr):
    """Join what a row's threads hold, in each of them: (T,) → (T,)."""
    if tile.THREADS_PER_ROW > 32:  # all that there are
        joined = tl.max(x, 0) if HOW == "max" else tl.min(x, 0) if HOW == "min" else tl.sum(x, 0)
        x = tl.full([tile.T], joined, x.dtype)
    else:
        for bit in tl.static_range(tile.THREADS_PER_ROW.bit_length() - 1):
            other = from_lane_across(x, 1 << bit)
            if HOW == "max":
                x = tl.maximum(x, other)
            elif HOW == "min":
                x = tl.minimum(x, other)
            else:
                x = x + other
    return x


@triton.jit
def from_thread_before(x, tile: tl.constexpr):
    """Take what the thread in front holds, in another warp perhaps: (T,) → (T,)."""
    if tile.THREADS_PER_ROW > 32:
        return tl.gather(x, tl.maximum(tl.arange(0, tile.T) - 1, 0), 0)
    else:
        return from_lane_before(x)


@triton.jit
def wait_for_row(tile: tl.constexpr):
    """Wait until all threads of a row have read, or written, what others write, or read."""
    if tile.THREADS_PER_ROW > 1:
        tl.debug_barrier()


@triton.jit
def before_lane(start, total, factor, lane, tile: tl.constexpr):
    """Add up, one after the other, what a row's threads in front hold, times a factor, to what it
    starts with: three (T,) → (T,)."""
    # Of a row in a warp.
    LANES: tl.constexpr = tile.THREADS_PER_ROW if tile.THREADS_PER_ROW < 32 else 32
    first = start  # what is in front of a warp's first
    before = first
    for warp in tl.static_range(tile.THREADS_PER_ROW // LANES):
        if warp > 0:
            behind = tl.fma(factor, total, before)
            in_front = tl.sum(tl.where(lane == warp * LANES - 1, behind, 0.0), 0)
            first = tl.where(lane // LANES == warp, in_front, first)
            before = tl.where(lane // LANES == warp, in_front, before)
        for _ in tl.static_range(LANES - 1):
            # A lane's sum does not change any more after as many steps as there are lanes in front.
            behind = tl.fma(factor, total, before)
            before = tl.where(lane % LANES == 0, first, from_lane_before(behind))
    return before


@triton.jit
def sum_of_row(total, lane, tile: tl.constexpr):
    """Add up, one after the other, what a row's threads hold, in each of them: (T,) → (T,)."""
    if tile.THREADS_PER_ROW > 1:
        zero = tl.zeros([tile.T], tl.float32)
        total = before_lane(zero, total, zero + 1.0, lane, tile) + total
    if tile.THREADS_PER_ROW > 32:
        last = tl.sum(tl.where(lane == tile.THREADS_PER_ROW - 1, total, 0.0), 0)
        total = tl.full([tile.T], last, tl.float32)
    else:
        for bit in tl.static_range(tile.THREADS_PER_ROW.bit_length() - 1):
            # The last lane's.
            other = from_lane_across(total, 1 << bit)
            total = tl.where((lane >> bit) & 1 == 0, other, total)
    return total


@triton.jit
def reward_before(ordered, lane, tile: tl.constexpr):
    """Take the reward in front of a thread's first, in a row's first thread itself: C × (T,) →
    (T,)."""
    previous = ordered[0]
    if tile.THREADS_PER_ROW > 1:
        previous = tl.where(lane == 0, previous, from_thread_before(ordered[tile.C - 1], tile))
    return previous
