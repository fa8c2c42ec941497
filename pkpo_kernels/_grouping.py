"""How groups of a flat array are computed: as rows of matrices where their sizes are known, else as
segments of the array.

Contiguous blocks are a matrix as they lie. NumPy takes the groups of each size as a matrix, torch
all groups as one, with a mask. JAX, whose programs are made for shapes, and all that is traced, for
which nobody knows the sizes, sort and scan the array as it is.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from pkpo_kernels._entries import Entries, Options
from pkpo_kernels._ids import (
    Ids,
    by_size,
    numbered_columns,
    positions,
    representatives,
)
from pkpo_kernels.api import transform
from pkpo_kernels.backends import registry
from pkpo_kernels.maths.weights import Array
from pkpo_kernels.typing import EstimatorName
from pkpo_kernels.validation import dtype_name

# A matrix with a row for every group may have so many elements for each entry, where one group is
# much larger than the others …
MOST_PADDING = 8
# … and a small one any number.
SMALL = 1 << 16


def in_blocks(entries: Entries, n: int, k: Any, options: Options) -> Array:
    """Transform contiguous blocks of n entries: k an integer, () or (N,) → (N,)."""
    if entries.library == "numpy" and entries.valid is not None:
        return _by_size(entries, (_index(entries) // n,), k, options)
    shape = entries.n // n, n
    where = None if entries.valid is None else entries.valid.reshape(shape)
    k = _k_of_rows(entries, k if isinstance(k, int) or not k.shape else k.reshape(shape), where)
    out = _rows(entries, entries.rewards.reshape(shape), k, where, options)
    return out.reshape(entries.n)


def by_samples(entries: Entries, groups: Ids, samples: Ids, k: Any, options: Options) -> Array:
    """Transform groups of samples that have several entries: the last valid entry of each stands
    for it, and all that are kept get its result."""
    xp = registry.namespace(entries.library)
    valid = _all(entries) if entries.valid is None else entries.valid
    if entries.library == "numpy":
        last = representatives((*groups, *samples), valid)
    else:
        last = _segments(entries.library).representatives((*groups, *samples), valid)
    out = by_ids(entries._replace(valid=last == _index(entries)), groups, k, options)
    kept = last >= 0 if entries.kept is None else (last >= 0) & entries.kept
    return xp.where(kept, out[xp.clip(last, 0, None)], xp.zeros_like(out))


def by_ids(entries: Entries, ids: Ids, k: Any, options: Options) -> Array:
    """Transform groups of equal ids: columns (N,) each, k an integer, () or (N,) → (N,)."""
    library, named = entries.library, options.implementation
    if library == "numpy":
        return _by_size(entries, ids, k, options)
    registry.choose(named, library, entries.rewards)
    of_kernels = named not in (None, "xla", "torch")
    if of_kernels and entries.traced:
        raise ValueError(
            f"implementation={named!r} cannot serve group ids inside a program, where nobody knows"
            " the groups' sizes; take None, or contiguous blocks, groups=n"
        )
    if entries.n and not entries.traced and (of_kernels or library == "torch"):
        position, shape = _positions(entries, ids)
        if of_kernels or shape[0] * shape[1] <= max(MOST_PADDING * entries.n, SMALL):
            return _in_one_matrix(entries, position, shape, k, options)
    return _as_segments(entries, ids, k, options)


# ---- As rows -----------------------------------------------------------------------------------


def _by_size(entries: Entries, ids: Ids, k: Any, options: Options) -> Array:
    """Transform groups in NumPy, those of a size together."""
    counted = None if entries.valid is None else np.flatnonzero(entries.valid)
    numbers = numbered_columns(ids)
    matrices = by_size(numbers if counted is None else numbers[counted])
    groups = sum(map(len, matrices))
    out = np.zeros(entries.n, entries.dtype)
    for index in matrices:
        index = index if counted is None else counted[index]
        of_rows = k if isinstance(k, int) else _k_of_rows(entries, k[index], None)
        out[index] = _rows(entries, entries.rewards[index], of_rows, None, options, groups)
    return out


def _in_one_matrix(
    entries: Entries, position: Array, shape: tuple[int, int], k: Any, options: Options
) -> Array:
    """Transform groups as rows of one matrix, whose elements they have at position (N,)."""

    def as_rows(values: Array) -> Array:
        flat = xp.zeros(shape[0] * shape[1], dtype=values.dtype, **there)
        if entries.library == "torch":
            return flat.scatter_(0, position, values).reshape(shape)
        return flat.at[position].set(values).reshape(shape)

    xp = registry.namespace(entries.library)
    there = {"device": entries.rewards.device} if entries.library == "torch" else {}
    where = None
    if entries.valid is not None or shape[0] * shape[1] > entries.n:
        where = as_rows(_all(entries) if entries.valid is None else entries.valid)
    k = _k_of_rows(entries, k if isinstance(k, int) or not k.shape else as_rows(k), where)
    return _rows(entries, as_rows(entries.rewards), k, where, options).reshape(-1)[position]


def _positions(entries: Entries, ids: Ids) -> tuple[Array, tuple[int, int]]:
    """Find where in a matrix with a row for every group its entries go: columns (N,) each → (N,),
    and the matrix's shape."""
    if entries.library == "torch" and entries.rewards.device.type != "cpu":
        return _segments("torch").positions(ids)
    at, shape = positions(numbered_columns([np.asarray(column) for column in ids]))
    xp = registry.namespace(entries.library)
    return xp.asarray(at), shape


def _k_of_rows(entries: Entries, k: Any, where: Array | None) -> Any:
    """Find the k of each row: an integer, () or the k of each of its samples (G, n) → the same, or
    (G,), 0 where it varies and the host cannot see it."""
    if isinstance(k, int) or len(k.shape) < 2:
        return k
    xp = registry.namespace(entries.library)
    if entries.library == "torch":
        k = k.to(xp.int64)
    info = xp.iinfo(k.dtype)
    least = xp.amin(k if where is None else xp.where(where, k, info.max), -1)
    most = xp.amax(k if where is None else xp.where(where, k, info.min), -1)
    varies = least < most
    on_host = entries.library == "numpy" or (
        entries.library == "torch" and k.device.type == "cpu" and not entries.traced
    )
    if not on_host:
        return xp.where(varies, 0, most)
    if varies.any():
        row = int(varies.nonzero()[0][0])
        raise ValueError(
            "k must not vary within a group; got"
            f" k={int(least[row])} and k={int(most[row])} in one of them"
        )
    # A row without valid samples has no k, and any will do.
    return xp.clip(most, 1, None) if entries.library == "numpy" else most


def _rows(
    entries: Entries,
    rows: Array,
    k: Any,
    where: Array | None,
    options: Options,
    groups: int | None = None,
) -> Array:
    """Transform rows (G, n), k an integer, () or (G,), where (G, n) → the same, in the entries'
    dtype; `groups` where there are more than these."""
    xp = registry.namespace(entries.library)
    estimator, scale, undersized, implementation = options
    if (
        where is None
        and undersized != "clip"
        and (isinstance(k, int) or entries.library == "numpy")
    ):
        # With a mask no k is an error: each row has its own way out.
        too_large = np.max(k, initial=1) > estimator.largest_k(rows.shape[1])
        where = xp.ones_like(rows) == 1 if too_large else None
    if scale not in ("sum", "mean") and dtype_name(rows.dtype) in ("float16", "bfloat16"):
        rows = _cast(rows, xp.float32)  # so that the result is rounded to it once
    out = transform(
        rows,
        k,
        where=where,
        estimator=cast(EstimatorName, estimator.name),
        scale="mean" if scale == "mean" else "sum",
        undersized=undersized,
        implementation=implementation,
    )
    if isinstance(scale, float):
        out = out * scale
    elif scale == "batch_mean":
        sizes: Any = rows.shape[1]
        if groups is None:
            groups = max(1, rows.shape[0])
            if where is not None:
                sizes = _cast(where.sum(-1), out.dtype)[:, None]
                groups = xp.clip((sizes > 0).sum(), 1, None)
        out = out * (entries.n / groups)
        if estimator.normalized:
            out = out / sizes if where is None else out / xp.clip(sizes, 1, None)
    return _cast(out, entries.dtype)


# ---- As segments -------------------------------------------------------------------------------


def _as_segments(entries: Entries, ids: Ids, k: Any, options: Options) -> Array:
    """Transform groups where they lie, no value looked at."""
    xp = registry.namespace(entries.library)
    if isinstance(k, int):
        there = {"device": entries.rewards.device} if entries.library == "torch" else {}
        k = xp.full((), k, **there)
    named = isinstance(options.scale, str)
    return _segments(entries.library).transform(
        entries.rewards,
        ids,
        _all(entries) if entries.valid is None else entries.valid,
        k,
        estimator=options.estimator,
        scale=options.scale if named else "sum",
        factor=1.0 if named else options.scale,
        undersized=options.undersized,
        dtype=entries.dtype,
    )


def _segments(library: str) -> Any:
    if library == "torch":
        from pkpo_kernels.backends import torch_segments

        return torch_segments
    from pkpo_kernels.backends import jax_segments

    return jax_segments


def _index(entries: Entries) -> Array:
    xp = registry.namespace(entries.library)
    there = {"device": entries.rewards.device} if entries.library == "torch" else {}
    return xp.arange(entries.n, **there)


def _all(entries: Entries) -> Array:
    """Say that all entries are valid: (N,) bool."""
    xp = registry.namespace(entries.library)
    return xp.ones_like(entries.rewards) == 1


def _cast(x: Array, dtype: Any) -> Array:
    return x.to(dtype) if hasattr(x, "new_full") else x.astype(dtype)
