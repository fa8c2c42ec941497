"""The transforms in NumPy: one sort, one prefix scan, one scatter, in blocks that fit the cache.

Everything between the rewards and the results is float64; whether a row's range overflows is judged
in the precision of the rewards.

Rewards of up to 32 bits take a shortcut through the sort. As a float64 such a reward leaves its
last 29 mantissa bits 0; the sample's index in the block goes there, and one plain sort, which
NumPy vectorises, orders rewards and indices together. Among equal rewards the order is arbitrary,
and it may be: equal rewards get equal results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from math import isfinite
from os import cpu_count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.backends._rows import RANGE_SCALE
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.maths.weights import (
    LONGEST_KEPT,
    Estimator,
    GapWeights,
    clamp_k,
    host_weights,
)

Floats = NDArray[np.float64]

# Elements in a block, as measured: enough to keep several threads busy with NumPy's loops rather
# than the interpreter's, and few enough for a cache.
BLOCK_ELEMENTS = 1 << 17
# NumPy releases the interpreter lock in its loops, so blocks overlap; with more than a few threads
# they wait on each other.
MAX_THREADS = 4
INDEX_BITS = np.int64((1 << 29) - 1)
# Beyond all that 32 bits can hold, and with the same bits at 0.
BEYOND = 2.0**1000
LARGE = float(np.finfo(np.float64).max) * RANGE_SCALE


def transform_rows(
    rewards: NDArray[Any],
    k: int | NDArray[Any],
    where: NDArray[np.bool_] | None,
    *,
    estimator: Estimator,
    scale: str,
    undersized: str,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """Transform rows: rewards (rows, N), k an integer or (rows,), where (rows, N) or None →
    (rows, N) of dtype."""
    n_columns = rewards.shape[1]
    out = np.empty(rewards.shape, dtype)
    clip = undersized == "clip"
    blocks = _blocks(*rewards.shape)
    shared = None
    one_k = np.ndim(k) == 0
    if where is None and one_k and blocks:
        shared = _weights_of_all(estimator, n_columns, int(k), clip)
        if len(blocks) > 1:  # to multiply whole arrays is fastest
            shared = shared._replace(columns=np.tile(shared.columns, (blocks[0].stop, 1)))

    def transform_block(block: slice, buffers: _Buffers) -> None:
        mask = None if where is None else where[block]
        n = _group_sizes(n_columns, mask)
        ordered, indices = _sort(rewards[block], mask, buffers)
        if shared is not None:
            weights = shared
        else:
            of_rows = k if one_k else np.asarray(k)[block]
            weights = _weights(estimator, n_columns, n, of_rows, clip)
        nan_or_0, range_scale = _range(ordered, rewards.dtype)
        result = _transform(ordered, weights, estimator.normalized, nan_or_0, buffers.values)
        if range_scale is not None and not estimator.normalized:
            result /= range_scale
        if undersized == "nan":
            np.copyto(result, np.nan, where=~weights.of_gaps.k_is_valid[..., None])
        if scale == "mean":
            result *= np.asarray(n)[..., None]
        out_block = out[block]
        narrow = buffers.narrow[: len(ordered)]
        narrow[:] = result
        out_block.reshape(-1)[indices.reshape(-1)] = narrow.reshape(-1)
        if mask is not None:
            out_block[~mask] = 0

    _run(transform_block, blocks, n_columns, dtype)
    return out


def max_at_k_rows(
    rewards: NDArray[Any],
    ks: Sequence[int | NDArray[Any]],
    where: NDArray[np.bool_] | None,
    *,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """Estimate the best of each k: rewards (rows, N), each k an integer, where (rows, N) or None →
    (rows, len(ks)) of dtype."""
    rows, n_columns = rewards.shape
    out = np.empty((rows, len(ks)), dtype)

    def best_of_block(block: slice, buffers: _Buffers) -> None:
        mask = None if where is None else where[block]
        n = _group_sizes(n_columns, mask)
        ordered, _ = _sort(rewards[block], mask, buffers)
        nan_or_0, range_scale = _range(ordered, rewards.dtype)
        gaps = np.diff(ordered, axis=-1)
        for column, k in enumerate(ks):
            weights = host_weights(MAX_AT_K, n_columns, n, k)
            best = _row_offset(ordered, gaps, weights) + nan_or_0
            if range_scale is not None:
                best /= range_scale[:, 0]
            out[block, column] = np.where(weights.k_is_valid, best, np.nan)

    _run(best_of_block, _blocks(rows, n_columns), n_columns, dtype)
    return out


class _Weights(NamedTuple):
    """The weights of sorted rows."""

    of_gaps: GapWeights
    columns: Floats  # (1, N) or (rows, N) those of the prefix sum, behind a 0 for the row offset
    has_row_offset: bool


def _weights(
    estimator: Estimator, n_columns: int, n: int | NDArray[Any], k: int | NDArray[Any], clip: bool
) -> _Weights:
    """Weigh rows of n samples, n and k integers or (rows,)."""
    if clip:
        k = clamp_k(estimator, np.asarray(n), np.asarray(k), np)
    weights = host_weights(estimator, n_columns, n, k)
    gaps = np.atleast_2d(weights.gap)
    columns = np.zeros((len(gaps), n_columns))
    columns[:, 1:] = gaps
    return _Weights(weights, columns, bool(weights.max_coefficient.any() or weights.offset.any()))


def _weights_of_all(estimator: Estimator, n: int, k: int, clip: bool) -> _Weights:
    """Weigh rows of n samples, all with the same k: the latest are kept."""
    make = _kept_weights if n <= LONGEST_KEPT else _weights
    return make(estimator, n, n, k, clip)


_kept_weights = lru_cache(64)(_weights)


def _blocks(rows: int, n_columns: int) -> list[slice]:
    height = max(1, BLOCK_ELEMENTS // n_columns)
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]


class _Buffers:
    """A thread's own scratch, used again for every block: fresh memory costs more than the work."""

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.block_indices = np.arange(shape[0] * shape[1]).reshape(shape)  # only read
        self.keys = np.empty(shape)
        self.indices = np.empty(shape, np.int64)
        self.values = np.empty(shape)
        self.narrow = np.empty(shape, dtype)

    @classmethod
    def take(cls, shape: tuple[int, int], dtype: np.dtype[Any]) -> _Buffers:
        """Take scratch of a shape: what this thread gave back last, if it is of that shape."""
        # Nobody else has it meanwhile: a call in the middle of this one makes its own.
        kept: _Buffers | None = _scratch.__dict__.pop("latest", None)
        if kept is not None and kept.shape == shape and kept.dtype == dtype:
            return kept
        return cls(shape, dtype)

    def give_back(self) -> None:
        if self.keys.size <= BLOCK_ELEMENTS:
            _scratch.latest = self


_scratch = threading.local()


def _run(
    work: Callable[[slice, _Buffers], None],
    blocks: list[slice],
    n_columns: int,
    dtype: np.dtype[Any],
) -> None:
    if not blocks:
        return

    def share(blocks: list[slice]) -> None:
        buffers = _Buffers.take((blocks[0].stop - blocks[0].start, n_columns), dtype)
        # What overflows, underflows or is invalid has a documented result, and needs no warning.
        with np.errstate(all="ignore"):
            for block in blocks:
                work(block, buffers)
        buffers.give_back()

    threads = min(MAX_THREADS, cpu_count() or 1, len(blocks)) if len(blocks) > 1 else 1
    if threads > 1:
        _in_threads(share, [blocks[first::threads] for first in range(threads)])
    else:
        share(blocks)


def _in_threads(work: Callable[[list[slice]], None], shares: list[list[slice]]) -> None:
    """Work on each share in a thread of its own, and here on those that none can be had for.

    In atexit, and in a thread that has outlived the main one, no thread is started any more.
    """
    with ExitStack() as stack:
        futures = []
        with suppress(RuntimeError):
            # To import it for the first time is refused then, too.
            from concurrent.futures import ThreadPoolExecutor

            pool = stack.enter_context(ThreadPoolExecutor(len(shares)))
            for one in shares:
                futures.append(pool.submit(work, one))
        for one in shares[len(futures) :]:
            work(one)
        for future in futures:
            future.result()


def _group_sizes(n_columns: int, mask: NDArray[np.bool_] | None) -> int | NDArray[Any]:
    return n_columns if mask is None else mask.sum(-1)


def _sort(
    rewards: NDArray[Any], mask: NDArray[np.bool_] | None, buffers: _Buffers
) -> tuple[Floats, NDArray[np.int64]]:
    """→ the rewards in ascending order as float64, and each one's index in the flattened block.

    Samples that the mask leaves out come first and take the value of the smallest that it keeps.
    NaN comes last.
    """
    height, n_columns = rewards.shape
    keys, block_indices = buffers.keys[:height], buffers.block_indices[:height]
    packs = _packs(rewards)
    keys[:] = rewards
    if mask is not None:
        keys[~mask] = -BEYOND if packs else -np.inf
    if packs:
        # One sum finds what is not finite, and cannot overflow: these are numbers of 32 bits.
        if not isfinite(np.add.reduce(keys, None)):
            # As good as NaN: no range with it is finite in 32 bits.
            keys[~np.isfinite(keys)] = BEYOND
        packed, indices = keys.view(np.int64), buffers.indices[:height]
        packed |= block_indices
        keys.sort(-1)
        np.bitwise_and(packed, INDEX_BITS, out=indices)
        packed ^= indices
    else:
        order = np.argsort(keys, -1)
        indices = order + block_indices[:, :1]
        keys = keys.reshape(-1)[indices]
    if mask is not None:
        left_out = (~mask).sum(-1, keepdims=True)
        smallest = np.take_along_axis(keys, np.minimum(left_out, n_columns - 1), -1)
        np.copyto(keys, smallest, where=np.arange(n_columns) < left_out)
    return keys, indices


def _packs(rewards: NDArray[Any]) -> bool:
    """Whether an index fits into the bits that a reward leaves 0 in float64."""
    return bool(np.can_cast(rewards.dtype, np.float32) and rewards.size <= INDEX_BITS)


def _range(ordered: Floats, dtype: np.dtype[Any]) -> tuple[NDArray[Any], Floats | None]:
    """Scale large rows (rows, N) down, in place → what makes NaN of rows whose range is not finite
    in the rewards' precision, else 0 (rows,), and range_scale (rows, 1), None where all are 1."""
    smallest, largest = ordered[:, 0], ordered[:, -1]
    # NaN and infinities come to the ends. Adding 0 also turns a −0 into 0.
    if dtype != np.float64:
        # float64 has room for whatever these become.
        return 0.0 * (largest.astype(np.float32) - smallest.astype(np.float32)), None
    nan_or_0 = 0.0 * (largest - smallest)
    is_large = np.maximum(-smallest, largest) > LARGE
    if not is_large.any():
        return nan_or_0, None
    range_scale = np.where(is_large, RANGE_SCALE, 1.0)[:, None]
    ordered *= range_scale
    return nan_or_0, range_scale


def _transform(
    ordered: Floats, weights: _Weights, normalized: bool, nan_or_0: NDArray[Any], buffer: Floats
) -> Floats:
    """Transform sorted rows: (rows, N), nan_or_0 (rows,) → values in that order."""
    out = buffer[: len(ordered)]
    # One long subtraction instead of many short ones; what it puts at the rows' starts is replaced
    # by their row offsets.
    flat = ordered.reshape(-1)
    np.subtract(flat[1:], flat[:-1], out=out.reshape(-1)[1:])
    gaps = out[:, 1:]
    row_offset = nan_or_0
    if weights.has_row_offset:
        row_offset = _row_offset(ordered, gaps, weights.of_gaps) + nan_or_0
    std = _std(ordered, gaps, weights.of_gaps) if normalized else None
    out[:, 0] = 0
    out *= weights.columns[: len(out)]
    out[:, 0] = row_offset
    np.add.accumulate(out, -1, out=out)
    if std is not None:
        out /= np.where(std > 0, std, np.inf)[:, None]
    return out


def _row_offset(ordered: Floats, gaps: Floats, weights: GapWeights) -> Floats:
    """What an estimator gives a row's smallest reward (rows,)."""
    return weights.max_coefficient * ordered[:, -1] - _row_sum(gaps, weights.offset)


def _std(ordered: Floats, gaps: Floats, weights: GapWeights) -> Floats:
    """The std of the best of k (rows,), exactly 0 where only equal rewards can be it."""
    largest = ordered[:, -1]
    # How far the mean of the best lies below the largest: measured from there, an offset drops out.
    deviation_top = _row_sum(gaps, weights.best_offset)
    chance = np.broadcast_to(weights.best, gaps.shape)
    from_largest = ordered[:, :-1] - largest[:, None]
    deviation = np.where(chance > 0, from_largest + deviation_top[:, None], 0)
    # Squares of deviations relative to the largest one neither overflow nor vanish.
    unit = np.maximum(np.abs(deviation).max(-1, initial=0), np.abs(deviation_top))
    unit = np.where(unit > 0, unit, 1)
    deviation /= unit[:, None]
    variance = np.einsum("rj,rj,rj->r", chance, deviation, deviation)
    return unit * np.sqrt(variance + weights.best_of_max * (deviation_top / unit) ** 2)


def _row_sum(gaps: Floats, weights: Floats) -> Floats:
    """Σ_j weights_j · gaps_j (rows,), weights (N−1,) or (rows, N−1)."""
    return np.einsum("rj,rj->r", gaps, np.broadcast_to(weights, gaps.shape))
