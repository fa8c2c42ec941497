"""Tiles: a block of rows as it lies in memory, loaded and stored.

A tile's shape is

    (BLOCK_ROWS · S,)                                        where a layout is FLAT
    (BLOCK_ROWS, S up to a power of two)                     with one thread a row
    (THREADS_PER_ROW, BLOCK_ROWS, S / VECTOR, VECTOR)        with several

the last so that every thread reads VECTOR neighbours at a time, and what it reads is what it sorts.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.layout import to_tile
from pkpo_triton.networks import padded


class Block(NamedTuple):
    """The rows of a program."""

    first_row: Any  # 64 bits
    rows_left: Any  # of the matrix, from first_row on, at most BLOCK_ROWS
    n_samples: Any  # columns of the matrix


class Matrix(NamedTuple):
    """A matrix in memory, from a block's first row on."""

    ptr: Any
    stride_row: Any
    stride_sample: Any


@triton.jit
def block_of_rows(n_rows, n_samples, layout: tl.constexpr):
    """Find this program's rows: a `Block`."""
    if layout.THREADS_PER_ROW > 1:
        # No change: it tells the compiler that VECTOR divides it.
        n_samples = n_samples // layout.VECTOR * layout.VECTOR
    first_row = tl.program_id(0).to(tl.int64) * layout.BLOCK_ROWS
    rows_left = tl.minimum(n_rows - first_row, layout.BLOCK_ROWS).to(tl.int32)
    return Block(first_row, rows_left, n_samples)


@triton.jit
def matrix_from_block(
    ptr, stride_row, stride_sample, block, CONTIGUOUS: tl.constexpr, layout: tl.constexpr
):
    """Find a block in a matrix: a `Matrix`. CONTIGUOUS: rows of S samples, one after the other."""
    if CONTIGUOUS:
        stride_row, stride_sample = layout.SAMPLES_PER_THREAD, 1
    elif layout.THREADS_PER_ROW > 1:
        # No change: it tells the compiler that VECTOR divides it.
        stride_row = stride_row // layout.VECTOR * layout.VECTOR
    return Matrix(ptr + block.first_row * stride_row, stride_row, stride_sample)


@triton.jit
def load(matrix, block, layout: tl.constexpr):
    """Load a tile, 0 where there is nothing."""
    pointers = matrix.ptr + _offsets(matrix, layout)
    if layout.THREADS_PER_ROW > 1:
        return tl.load(pointers, mask=_is_inside(block, layout), other=0)
    else:
        return _load_whole(pointers, block, layout)


@triton.jit
def store(vectors, valid, matrix, block, layout: tl.constexpr):
    """Store S × (T,) as a tile, 0 for samples left out; valid a tile if MASKED."""
    pointers = matrix.ptr + _offsets(matrix, layout)
    tile = to_tile(vectors, layout)
    if layout.MASKED:
        tile = tl.where(valid, tile, 0.0)
    tile = tile.to(pointers.dtype.element_ty)
    if layout.THREADS_PER_ROW > 1:
        tl.store(pointers, tile, mask=_is_inside(block, layout))
    else:
        _store_whole(pointers, tile, block, layout)


@triton.jit
def _offsets(matrix, layout: tl.constexpr):
    """Lay a block's samples out in memory, from its beginning on: a tile."""
    if layout.FLAT:
        return tl.arange(0, layout.BLOCK_ROWS * layout.SAMPLES_PER_THREAD)
    else:
        # Added up in 64 bits, what differs from sample to sample of a thread is an instruction's
        # immediate offset.
        rows, samples = _rows_and_samples(tl.int64, layout)
        return rows * matrix.stride_row + samples * matrix.stride_sample


@triton.jit
def _rows_and_samples(INT: tl.constexpr, layout: tl.constexpr):
    """Number a tile's rows and samples: two tensors that broadcast to a tile."""
    if layout.THREADS_PER_ROW == 1:
        rows = tl.arange(0, layout.BLOCK_ROWS).to(INT)[:, None]
        samples = tl.arange(0, padded(layout.SAMPLES_PER_THREAD)).to(INT)[None, :]
    else:
        # Vectors of neighbours that lie one after the other go to neighbouring threads.
        rows = tl.arange(0, layout.BLOCK_ROWS).to(INT)[None, :, None, None]
        threads = tl.arange(0, layout.THREADS_PER_ROW).to(INT)[:, None, None, None]
        vectors = tl.arange(0, layout.SAMPLES_PER_THREAD // layout.VECTOR).to(INT)
        vectors = vectors[None, None, :, None]
        neighbours = tl.arange(0, layout.VECTOR).to(INT)[None, None, None, :]
        step: tl.constexpr = layout.THREADS_PER_ROW * layout.VECTOR
        samples = threads * layout.VECTOR + vectors * step + neighbours
    return rows, samples


@triton.jit
def _is_inside(block, layout: tl.constexpr):
    """Tell which of a tile's samples the matrix has: a tile."""
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    if layout.FLAT:
        return tl.arange(0, layout.BLOCK_ROWS * S) < block.rows_left * S
    else:
        rows, samples = _rows_and_samples(tl.int32, layout)
        if layout.THREADS_PER_ROW == 1:
            return (rows < block.rows_left) & (samples < S)
        elif layout.PADDED:
            return (rows < block.rows_left) & (samples < block.n_samples)
        else:
            return tl.broadcast_to(
                rows < block.rows_left,
                [layout.THREADS_PER_ROW, layout.BLOCK_ROWS, S // layout.VECTOR, layout.VECTOR],
            )


@triton.jit
def _load_whole(pointers, block, layout: tl.constexpr):
    """Load a tile of rows in one thread each. Every block but the last is full, and needs no
    masks."""
    if layout.FLAT and block.rows_left == layout.BLOCK_ROWS:
        x = tl.load(pointers)
    else:
        x = _load_inside(pointers, block, layout)
    return x


@triton.jit
def _load_inside(pointers, block, layout: tl.constexpr):
    """Load a tile, 0 where there is nothing."""
    return tl.load(pointers, mask=_is_inside(block, layout), other=0)


@triton.jit
def _store_whole(pointers, tile, block, layout: tl.constexpr):
    """Store a tile of rows in one thread each, full blocks without masks.

    One of two loops runs, once: see `lookup.look_up`. With branches in their place rows of 32
    samples compile in 11 s for sm_90 instead of 8 s (Triton 3.6); of loads they do not.
    """
    STEP: tl.constexpr = layout.BLOCK_ROWS * layout.SAMPLES_PER_THREAD
    full = 0
    if layout.FLAT:
        full = (block.rows_left == layout.BLOCK_ROWS).to(tl.int32)
        whole = pointers
        for _ in tl.range(full):
            tl.store(whole, tile)
            whole += STEP
    for _ in tl.range(1 - full):
        _store_inside(pointers, tile, block, layout)
        pointers += STEP


@triton.jit
def _store_inside(pointers, tile, block, layout: tl.constexpr):
    """Store a tile where the matrix has it."""
    tl.store(pointers, tile, mask=_is_inside(block, layout))
