"""Look-ups by a sample's value: its own reward in the sorted row, its entry in a table."""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.layout import stack, to_vectors, unstack


@triton.jit
def find(samples, ordered, thread, layout: tl.constexpr):
    """Find where each sample's reward stands first in the sorted row: both S × (T,) → (S · T,),
    offsets into S · T.

    A row's sample number `thread of the row` · S + c in ascending order lies c·T + thread of the
    row behind the row's first thread. The bits of that offset are found one by one, the highest
    first: a bit is 1 where the last sample of the half below is still smaller. Neighbouring rows
    lie in other banks.
    """
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    T: tl.constexpr = layout.THREADS
    x, keys = _flatten(samples, layout), _flatten(ordered, layout)
    first = (thread - thread % layout.THREADS_PER_ROW)[None, :]
    at = tl.reshape(tl.broadcast_to(first, [S, T]), [S * T])
    for bit in tl.static_range(layout.THREADS_PER_ROW.bit_length() - 1):
        # The last of a thread's samples alone: a gather stores all of what it reads from.
        probe = at + ((layout.THREADS_PER_ROW >> (bit + 1)) - 1)
        above = at + (layout.THREADS_PER_ROW >> (bit + 1))
        at = tl.where(tl.gather(ordered[S - 1], probe, 0) < x, above, at)
    for bit in tl.static_range(S.bit_length() - 1):
        probe = at + ((S >> (bit + 1)) - 1) * T
        at = tl.where(tl.gather(keys, probe, 0) < x, at + (S >> (bit + 1)) * T, at)
    return at


@triton.jit
def take(values, offsets, layout: tl.constexpr):
    """Take values where `find` has found rewards: S × (T,), (S · T,) → S × (T,)."""
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    T: tl.constexpr = layout.THREADS
    return unstack(tl.reshape(tl.gather(_flatten(values, layout), offsets, 0), [S, T]), S, T)


@triton.jit
def _flatten(vectors, layout: tl.constexpr):
    """Join S × (T,) into (S · T,): offset c·T + thread is sample c's."""
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    return tl.reshape(stack(vectors, S, layout.THREADS), [S * layout.THREADS])


@triton.jit
def look_up(pointers, once):
    """Load a tensor of pointers: (…) → (…).

    Triton's pass TritonGPUCoalesce takes pointers that a loop carries, even one that runs once, as
    they are; for computed ones it walks all that hangs together with them, which is the network.
    Rows of 1024 samples compile in 12 s for sm_90, without this loop in 18 s (Triton 3.6).
    """
    value = tl.zeros(pointers.shape, pointers.dtype.element_ty)
    for _ in tl.range(once):
        value = tl.load(pointers)
        pointers += 16  # so that they stay as aligned as they are
    return value


@triton.jit
def slot(thread_of_row, block, neighbour, THREADS: tl.constexpr):
    """Find where a table of `tables.in_slots` holds the number of a thread's sample
    4 · block + neighbour: a thread reads four at a time, and the next thread the next four."""
    return (block * THREADS + thread_of_row) * 4 + neighbour


@triton.jit
def look_up_samples(table_ptr, once, THREADS: tl.constexpr, layout: tl.constexpr):
    """Load a table's numbers for a thread's samples, the same in every row: S × (T,). The table is
    laid out for rows in THREADS threads."""
    # In the shape of a tile of rewards, so that the compiler gives it the same layout.
    blocks: tl.constexpr = layout.SAMPLES_PER_THREAD // 4
    threads_of_row = tl.arange(0, layout.THREADS_PER_ROW)[:, None, None, None]
    block = tl.arange(0, blocks)[None, None, :, None]
    neighbour = tl.arange(0, 4)[None, None, None, :]
    pointers = table_ptr + slot(threads_of_row, block, neighbour, THREADS)
    pointers = tl.broadcast_to(pointers, [layout.THREADS_PER_ROW, layout.BLOCK_ROWS, blocks, 4])
    return to_vectors(look_up(pointers, once), layout)
