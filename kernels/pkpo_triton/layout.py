"""How a block of rows lies in a program's threads, and how values move between them.

A row of n samples lies in THREADS_PER_ROW threads, SAMPLES_PER_THREAD samples in each. In shapes
here and in all of the kernels

    S    SAMPLES_PER_THREAD, one row's samples in one thread
    T    THREADS = BLOCK_ROWS · THREADS_PER_ROW, a program's threads
    (T,) a vector: one value a thread
    S × (T,)  a tuple of S vectors: a block of rows

A tile is a block of rows as it lies in memory: see `pkpo_triton.memory`.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.networks import padded


class Layout(NamedTuple):
    """Constants of a compiled kernel. Whoever binds one says `layout: tl.constexpr = …`: in a plain
    assignment Triton makes tensors of them."""

    SAMPLES_PER_THREAD: Any
    THREADS_PER_ROW: Any
    BLOCK_ROWS: Any
    THREADS: Any  # BLOCK_ROWS · THREADS_PER_ROW
    VECTOR: Any  # neighbours that a thread reads at a time
    WARP: Any  # threads that run in step
    FLAT: Any  # whole rows of a power of two, one after the other: a tile is a single line
    PADDED: Any  # rows have fewer samples than their threads hold
    MASKED: Any  # samples may be left out
    PARTIAL: Any  # MASKED or PADDED: some of what threads hold is not valid


@triton.constexpr_function
def layout_of(
    SAMPLES_PER_THREAD, THREADS_PER_ROW, BLOCK_ROWS, VECTOR, WARP, CONTIGUOUS, PADDED, MASKED
):
    """Make the layout of an entry kernel's constants; CONTIGUOUS: rows one after the other."""
    fields = Layout(
        SAMPLES_PER_THREAD=SAMPLES_PER_THREAD,
        THREADS_PER_ROW=THREADS_PER_ROW,
        BLOCK_ROWS=BLOCK_ROWS,
        THREADS=BLOCK_ROWS * THREADS_PER_ROW,
        VECTOR=VECTOR,
        WARP=WARP,
        FLAT=CONTIGUOUS and padded(SAMPLES_PER_THREAD) == SAMPLES_PER_THREAD,
        PADDED=PADDED,
        MASKED=MASKED,
        PARTIAL=MASKED or PADDED,
    )
    # Of plain numbers Triton makes tensors; its interpreter takes no others.
    return fields if triton.knobs.runtime.interpret else Layout(*map(tl.constexpr, fields))


@triton.jit
def unstack(x, N: tl.constexpr, T: tl.constexpr):
    """Cut (N, T) into N × (T,)."""
    if N == 1:
        return (tl.reshape(x, [T]),)
    else:
        # Off the highest bit of the sample's number: every thread keeps what it holds.
        first, second = tl.split(tl.permute(tl.reshape(x, [2, N // 2, T]), (1, 2, 0)))
        return unstack(first, N // 2, T) + unstack(second, N // 2, T)


@triton.jit
def stack(vectors, N: tl.constexpr, T: tl.constexpr):
    """Join N × (T,) into (N, T)."""
    if N == 1:
        return tl.reshape(vectors[0], [1, T])
    else:
        first, second = stack(vectors[: N // 2], N // 2, T), stack(vectors[N // 2 :], N // 2, T)
        return tl.reshape(tl.permute(tl.join(first, second), (2, 0, 1)), [N, T])


@triton.jit
def to_vectors(tile, layout: tl.constexpr):
    """Cut a tile into S × (T,)."""
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    if layout.THREADS_PER_ROW == 1:
        tile = tl.trans(tl.reshape(tile, [layout.THREADS, padded(S)]))
        return unstack(tile, padded(S), layout.THREADS)[:S]
    else:
        tile = tl.reshape(tl.permute(tile, (2, 3, 1, 0)), [S, layout.THREADS])
        return unstack(tile, S, layout.THREADS)


@triton.jit
def to_tile(vectors, layout: tl.constexpr):
    """Join S × (T,) into a tile."""
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    if layout.THREADS_PER_ROW == 1:
        filled = vectors + (vectors[0],) * (padded(S) - S)
        tile = tl.trans(stack(filled, padded(S), layout.BLOCK_ROWS))
        return tl.reshape(tile, [layout.BLOCK_ROWS * S]) if layout.FLAT else tile
    else:
        tile = stack(vectors, S, layout.THREADS)
        tile = tl.reshape(
            tile, [S // layout.VECTOR, layout.VECTOR, layout.BLOCK_ROWS, layout.THREADS_PER_ROW]
        )
        return tl.permute(tile, (3, 2, 0, 1))


@triton.jit
def for_threads(tile, layout: tl.constexpr):
    """Spread what depends on row and thread alone, (THREADS_PER_ROW or 1, BLOCK_ROWS or 1, 1, 1),
    to (T,).

    It takes the way of the rewards, so that the compiler sees the same layout and converts nothing.
    """
    vectors: tl.constexpr = layout.SAMPLES_PER_THREAD // layout.VECTOR
    tile = tl.broadcast_to(
        tile, [layout.THREADS_PER_ROW, layout.BLOCK_ROWS, vectors, layout.VECTOR]
    )
    return to_vectors(tile, layout)[0]


@triton.jit
def thread_numbers(layout: tl.constexpr):
    """Number the threads, row · THREADS_PER_ROW + thread of the row: (T,); 0 where a thread has a
    row of its own, where it is not used."""
    if layout.THREADS_PER_ROW == 1:
        return tl.zeros([layout.BLOCK_ROWS], tl.int32)
    else:
        threads = tl.arange(0, layout.THREADS_PER_ROW)[:, None, None, None]
        rows = tl.arange(0, layout.BLOCK_ROWS)[None, :, None, None]
        return for_threads(rows * layout.THREADS_PER_ROW + threads, layout)


@triton.jit
def over_threads(x, MAX: tl.constexpr, layout: tl.constexpr):
    """Add up, or take the largest, over the threads of every row: (T,) → (T,), in each of them."""
    if layout.THREADS_PER_ROW > 1:
        rows = tl.reshape(x, [layout.BLOCK_ROWS, layout.THREADS_PER_ROW])
        joined = tl.max(rows, 1, keep_dims=True) if MAX else tl.sum(rows, 1, keep_dims=True)
        spread = tl.broadcast_to(joined, [layout.BLOCK_ROWS, layout.THREADS_PER_ROW])
        x = tl.reshape(spread, [layout.THREADS])
    return x


@triton.jit
def from_previous_thread(x, first, thread, layout: tl.constexpr):
    """Take what the thread in front holds, `first` in a row's first: (T,) → (T,)."""
    previous = tl.gather(x, tl.maximum(thread - 1, 0), 0)
    return tl.where(thread % layout.THREADS_PER_ROW == 0, first, previous)
