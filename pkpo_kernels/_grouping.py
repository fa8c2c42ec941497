"""How groups of a flat array are computed: as rows of matrices where their sizes are known, else as
segments of the array.

What lies on a CPU outside a program NumPy computes, which is several times as fast there and
compiles nothing. Contiguous blocks are a matrix as they lie. Kernels on a GPU group by one integer
an entry themselves, and blocks of which entries may be left out. NumPy takes the groups of each
size as a matrix, torch all groups as one, with a mask. JAX, whose programs are made for shapes, and
all that is traced, for which nobody knows the sizes, sort and scan the array as it is.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from pkpo_kernels import _by_kernels
from pkpo_kernels._entries import Entries, Rules, as_bool, k_on_host
from pkpo_kernels._ids import (
    Ids,
    Slots,
    by_size,
    checked_ids,
    numbered_columns,
    representatives,
    slots,
)
from pkpo_kernels._tracing import is_watched
from pkpo_kernels.api import transform as transform_matrix
from pkpo_kernels.backends import registry
from pkpo_kernels.conversion import as_dtype
from pkpo_kernels.maths.weights import Array
from pkpo_kernels.typing import EstimatorName, Scale
from pkpo_kernels.validation import checked_integer, dtype_name, is_integer, library_of

# A matrix with a row for every group may have so many elements for each entry, where one group is
# much larger than the others …
MOST_PADDING = 8
# … and a small one any number.
SMALL = 1 << 16


def transform(entries: Entries, groups: Any, samples: Any, k: Any, rules: Rules) -> Array:
    """Transform entries by blocks or by ids, of groups and of samples: k as checked → (N,)."""
    # For its errors.
    registry.choose(rules.implementation, entries.library, entries.rewards, traced=entries.traced)
    # A k of a tensor that is less than 1 has no slot to be cut to, and NumPy refuses it.
    host_knows_k = isinstance(k, int) or rules.undersized != "clip"
    if rules.implementation in (None, "numpy") and entries.on_cpu and host_knows_k:
        if rules.implementation is None and is_watched(entries.rewards):
            return of_library(entries, groups, samples, k, rules)
        rules, host = rules._replace(implementation="numpy"), entries.on_host()
        return entries.from_host(of_library(host, groups, samples, k_on_host(k), rules))
    return of_library(entries, groups, samples, k, rules)


def of_library(entries: Entries, groups: Any, samples: Any, k: Any, rules: Rules) -> Array:
    """Do the same where the entries are, by their own library."""
    block = checked_block(groups, entries)
    sharding = None if entries.library != "jax" else _segments("jax").sharding_of(entries.rewards)
    if block and samples is None and not _straddle(entries, block, k):
        return _in_blocks(entries, block, k, rules)
    entries, groups, samples, k = gathered(entries, groups, samples, k)
    ids = ids_of("groups", groups, entries)
    of_samples = None if samples is None else ids_of("samples", samples, entries)
    out = _by_ids(entries, ids, of_samples, k, rules)
    return out if sharding is None else _segments("jax").resharded(out, sharding)


def checked_block(groups: Any, entries: Entries) -> int:
    """Check the size of contiguous blocks: an integer that divides N; 0 for ids."""
    if not is_integer(groups):
        return 0
    block = checked_integer("groups", groups, least=1)
    if entries.n % block:
        raise ValueError(
            "groups, the size of contiguous blocks where it is an integer, must divide the number"
            f" of rewards, {entries.n}; got {block}"
        )
    return block


def ids_of(argument: str, ids: Any, entries: Entries) -> Ids:
    """Check ids of entries: N of any kind, or a block's size → columns (N,) each."""
    if is_integer(ids):
        return (_index(entries) // int(ids),)
    return checked_ids(argument, ids, entries.rewards, traced=entries.traced)


def standing(entries: Entries, groups: Ids, samples: Ids) -> Array:
    """Find the entry that stands for each sample, its last valid one: columns (N,) each → (N,) its
    index, −1 where it has none."""
    valid = _all(entries) if entries.valid is None else entries.valid
    if entries.library == "numpy":
        return representatives((*groups, *samples), valid)
    return _segments(entries.library).representatives((*groups, *samples), valid)


def _by_ids(entries: Entries, groups: Ids, samples: Ids | None, k: Any, rules: Rules) -> Array:
    """Transform groups of equal ids: columns (N,) each, k an integer, () or (N,) → (N,)."""
    if samples is not None:
        return _by_samples(entries, groups, samples, k, rules)
    library, named = entries.library, rules.implementation
    if library == "numpy":
        return _by_size(entries, groups, k, rules)
    of_kernels = named not in (None, "xla", "torch")
    if of_kernels and entries.traced:
        raise ValueError(
            f"implementation={named!r} cannot serve group ids inside a program, where nobody knows"
            " the groups' sizes; take None, or contiguous blocks, groups=n"
        )
    out = _by_kernels.transform(entries, groups[0], k, rules) if len(groups) == 1 else None
    if out is not None:
        return out
    if entries.n and not entries.traced and (of_kernels or library == "torch"):
        found = _slots(entries, groups)
        if of_kernels or math.prod(found.shape) <= max(MOST_PADDING * entries.n, SMALL):
            return _in_one_matrix(entries, found, k, rules)
    return _as_segments(entries, groups, k, rules)


def _by_samples(entries: Entries, groups: Ids, samples: Ids, k: Any, rules: Rules) -> Array:
    """Transform groups of samples that have several entries: columns (N,) each → (N,). One entry
    stands for each sample, and all that are kept get its result."""
    xp = registry.namespace(entries.library)
    if entries.library == "numpy" and not isinstance(k, int) and k.ndim:
        for index in by_size(numbered_columns(groups)):
            _k_of_rows(entries, k[index], None if entries.valid is None else entries.valid[index])
    last = standing(entries, groups, samples)
    stands = last == _index(entries, last.dtype)
    of_samples = entries._replace(kept=stands, valid=stands, drops_nan=False)
    out = _by_ids(of_samples, groups, None, k, rules)
    kept = last >= 0 if entries.kept is None else (last >= 0) & entries.kept
    return xp.where(kept, out[xp.clip(last, 0, None)], xp.zeros_like(out))


# ---- On several devices ------------------------------------------------------------------------


def _arrays(*values: Any) -> list[Any]:
    """Choose what may be spread over a mesh: JAX's arrays."""
    return [x for x in values if x is not None and library_of(x) == "jax" and x.ndim > 0]


def _straddle(entries: Entries, block: int, k: Any) -> bool:
    """Tell whether blocks of anything lie across devices."""
    if entries.library != "jax":
        return False
    segments = _segments("jax")
    spread = [(x, segments.sharding_of(x)) for x in _arrays(*entries[1:4], k)]
    return any(how is not None and segments.shard_size(x, how) % block for x, how in spread)


def gathered(entries: Entries, groups: Any, samples: Any, k: Any) -> tuple[Entries, Any, Any, Any]:
    """Give every device of a mesh all entries, ids and ks, where any are spread over it along
    Explicit axes."""
    if entries.library != "jax":
        return entries, groups, samples, k
    segments = _segments("jax")
    every = (*entries[1:4], groups, samples, k)
    arrays = _arrays(*every)
    sharding = next(filter(None, map(segments.sharding_of, arrays)), None)
    if sharding is None:
        return entries, groups, samples, k

    def gather(x: Any) -> Any:
        return segments.gathered(x, sharding) if any(x is one for one in arrays) else x

    rewards, kept, valid, groups, samples, k = map(gather, every)
    return entries._replace(rewards=rewards, kept=kept, valid=valid), groups, samples, k


# ---- As rows -----------------------------------------------------------------------------------


def _in_blocks(entries: Entries, n: int, k: Any, rules: Rules) -> Array:
    """Transform contiguous blocks of n entries: k an integer, () or (N,) → (N,)."""
    if entries.library == "numpy" and entries.valid is not None:
        # To the bit what a group gets alone: a mask adds up in another order.
        return _by_size(entries, (_index(entries) // n,), k, rules)
    of_kernels = _by_kernels.transform(entries, n, k, rules)
    if of_kernels is not None:
        return of_kernels
    shape = entries.n // n, n
    where = None if entries.valid is None else entries.valid.reshape(shape)
    k = _k_of_rows(entries, k if isinstance(k, int) or not k.shape else k.reshape(shape), where)
    out = _rows(entries, entries.rewards.reshape(shape), k, where, rules)
    return out.reshape(entries.n)


def _by_size(entries: Entries, ids: Ids, k: Any, rules: Rules) -> Array:
    """Transform groups in NumPy, those of a size together: columns (N,) each → (N,)."""
    at = None if entries.valid is None else np.flatnonzero(entries.valid)
    numbers = numbered_columns(ids)
    matrices = by_size(numbers if at is None else numbers[at])
    n_groups = sum(map(len, matrices))
    out = np.zeros(entries.n, entries.dtype)
    for index in matrices:
        index = index if at is None else at[index]
        of_rows = k if isinstance(k, int) else _k_of_rows(entries, k[index], None)
        rows = entries.rewards.take(index)
        out[index] = _rows(entries, rows, of_rows, None, rules, n_groups)
    return out


def _in_one_matrix(entries: Entries, found: Slots, k: Any, rules: Rules) -> Array:
    """Transform groups as rows of one matrix, k an integer, () or (N,) → (N,)."""
    order, slot, shape = found

    def scattered(values: Array, at: Array, size: int) -> Array:
        flat = xp.zeros(size, dtype=values.dtype, **entries.there)
        if entries.library == "torch":
            return flat.scatter_(0, at, values)
        return flat.at[at].set(values)

    def as_rows(values: Array) -> Array:
        flat = values[order]
        if slot is not None:
            flat = scattered(flat, slot, math.prod(shape))
        return flat.reshape(shape)

    xp = registry.namespace(entries.library)
    where = None
    if entries.valid is not None:
        where = as_rows(entries.valid)
    elif slot is not None:
        where = scattered(_all(entries), slot, math.prod(shape)).reshape(shape)
    k = _k_of_rows(entries, k if isinstance(k, int) or not k.shape else as_rows(k), where)
    out = _rows(entries, as_rows(entries.rewards), k, where, rules).reshape(-1)
    return scattered(out if slot is None else out[slot], order, entries.n)


def _slots(entries: Entries, ids: Ids) -> Slots:
    """Find where entries go in a matrix with a row for every group: columns (N,) each."""
    if entries.library == "torch" and entries.rewards.device.type != "cpu":
        return Slots(*_segments("torch").slots(ids))
    order, slot, shape = slots(numbered_columns([np.asarray(column) for column in ids]))
    xp = registry.namespace(entries.library)
    there = xp.from_numpy if entries.library == "torch" else xp.asarray
    return Slots(there(order), None if slot is None else there(slot), shape)


def _k_of_rows(entries: Entries, k: Any, where: Array | None) -> Any:
    """Find the k of each row: an integer, () or the k of each of its samples (G, n) → the same, or
    (G,), 0 where it varies and the host cannot see it."""
    if isinstance(k, int) or len(k.shape) < 2:
        return k
    xp = registry.namespace(entries.library)
    if entries.library == "torch":
        k = k.to(xp.int64)
    lowest, highest = k, k
    if where is not None:
        info = xp.iinfo(k.dtype)
        lowest = xp.where(where, k, xp.full_like(k, info.max))
        highest = xp.where(where, k, xp.full_like(k, info.min))
    least, most = xp.amin(lowest, -1), xp.amax(highest, -1)
    varies = least < most
    if entries.library != "numpy" and not entries.on_cpu:
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
    rules: Rules,
    n_groups: int | None = None,
) -> Array:
    """Transform rows (G, n), k an integer, () or (G,), where (G, n) → the same, in the entries'
    dtype; `n_groups` where there are more than these."""
    xp = registry.namespace(entries.library)
    estimator, scale, undersized, implementation = rules
    host_knows_k = isinstance(k, int) or entries.library == "numpy"
    if where is None and undersized != "clip" and host_knows_k:
        # With a mask no k is an error: each row has its own way out.
        most = k if isinstance(k, int) else np.max(k, initial=1)
        where = as_bool(xp.ones_like(rows)) if most > estimator.largest_k(rows.shape[1]) else None
    if where is None and n_groups is None:
        rules = rules.of_equal_groups()
        scale = rules.scale
    if scale not in ("sum", "mean") and dtype_name(rows.dtype) in ("float16", "bfloat16"):
        rows = as_dtype(rows, xp.float32)  # so that the result is rounded to it once
    of_rows: Scale = "mean" if scale == "mean" else "sum"
    if entries.library != "numpy":
        out = transform_matrix(
            rows,
            k,
            where=where,
            estimator=cast(EstimatorName, estimator.name),
            scale=of_rows,
            undersized=undersized,
            implementation=implementation,
        )
        return _scaled(entries, out, rows, where, rules, n_groups)
    # All is checked, and there may be as many matrices as there are sizes of groups.
    backend = registry.choose(implementation, "numpy", rows).backend
    dtype = rows.dtype if rows.dtype.kind == "f" else np.float64
    out = backend.transform_rows(
        rows, k, where, estimator=estimator, scale=of_rows, undersized=undersized, dtype=dtype
    )
    with np.errstate(all="ignore"):  # what overflows or underflows has a documented result
        return _scaled(entries, out, rows, where, rules, n_groups)


def _scaled(
    entries: Entries,
    out: Array,
    rows: Array,
    where: Array | None,
    rules: Rules,
    n_groups: Any,
) -> Array:
    """Scale results of rows (G, n) to what the loss needs, in the entries' dtype."""
    xp, scale = registry.namespace(entries.library), rules.scale
    if isinstance(scale, float):
        out = out * scale
    elif scale == "batch_mean":
        if n_groups is None:
            n_groups = rows.shape[0] if where is None else xp.sum(where.any(-1), dtype=out.dtype)
        # At least one, for what has none.
        n_groups = max(1, n_groups) if isinstance(n_groups, int) else xp.clip(n_groups, 1, None)
        out = out * (entries.n / n_groups)
        if rules.estimator.normalized:
            sizes: Any = rows.shape[1]
            if where is not None:
                sizes = as_dtype(xp.clip(where.sum(-1), 1, None), out.dtype)[:, None]
            out = out / sizes
    return as_dtype(out, entries.dtype)


# ---- As segments -------------------------------------------------------------------------------


def _as_segments(entries: Entries, ids: Ids, k: Any, rules: Rules) -> Array:
    """Transform groups where they lie, no value looked at: columns (N,) each → (N,)."""
    xp = registry.namespace(entries.library)
    if isinstance(k, int):
        k = xp.full((), k, **entries.there)
    named = isinstance(rules.scale, str)
    return _segments(entries.library).transform(
        entries.rewards,
        ids,
        _all(entries) if entries.valid is None else entries.valid,
        k,
        estimator=rules.estimator,
        scale=rules.scale if named else "sum",
        factor=1.0 if named else rules.scale,
        undersized=rules.undersized,
        dtype=entries.dtype,
    )


def _segments(library: str) -> Any:
    if library == "torch":
        from pkpo_kernels.backends import torch_segments

        return torch_segments
    from pkpo_kernels.backends import jax_segments

    return jax_segments


def _index(entries: Entries, dtype: Any = None) -> Array:
    """Number the entries: (N,) 0..N−1."""
    xp = registry.namespace(entries.library)
    return xp.arange(entries.n, dtype=dtype, **entries.there)


def _all(entries: Entries) -> Array:
    """Say that all entries are valid: (N,) bool."""
    xp = registry.namespace(entries.library)
    return as_bool(xp.ones_like(entries.rewards))
