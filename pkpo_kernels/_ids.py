"""Ids of groups and samples, from whatever users have to whole numbers, and where they put entries.

An entry is one element of a flat array, a sample one attempt (one entry or several), a group all
samples of a task.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels._tracing import is_traced
from pkpo_kernels.backends._segments import matrix_width
from pkpo_kernels.conversion import to_host
from pkpo_kernels.validation import (
    INTEGERS,
    Array,
    dtype_name,
    is_integer,
    library_of,
    shown,
)

# Whole numbers (N,) each that together tell ids apart, of the library of the rewards.
Ids = tuple[Array, ...]


def checked_ids(argument: str, ids: Any, rewards: Array, *, traced: bool) -> Ids:
    """Check ids of entries and number them: N hashables, or integers (N,) or (N, S), for rewards
    (N,) → their columns (N,), where the rewards are. `traced`: inside a program.

    Raises:
        ValueError: not N of them, or an id is None or NaN.
        TypeError: an id is not hashable, or a tensor; an array of anything but integers, strings
          and objects; other ids than integers inside a program.
    """
    library, of = library_of(rewards), library_of(ids)
    has_length = hasattr(ids, "__len__") if of is None else ids.ndim > 0
    if not has_length or isinstance(ids, (str, bytes, dict, set, frozenset)):
        raise TypeError(
            f"{argument} must be N hashable ids, or integers (N,) or (N, S); got {shown(ids)}"
        )
    if isinstance(ids, np.ma.MaskedArray) or (of is None and getattr(ids, "ndim", 1) != 1):
        kind = type(ids).__name__
        raise TypeError(
            f"{argument} must be N hashable ids, or integers (N,) or (N, S); got a {kind} of shape"
            f" {tuple(ids.shape)}: pass a column, or plain integers"
        )
    if of is not None and ids.ndim > 2:
        raise ValueError(
            f"{argument} must have one id for each reward, (N,) or (N, S);"
            f" got shape {tuple(ids.shape)}"
        )
    length = len(ids) if of is None else ids.shape[0]
    if length != rewards.shape[0]:
        raise ValueError(
            f"{argument} must have one id for each reward; got {length} for"
            f" {rewards.shape[0]} rewards"
        )
    if of != library and is_traced(ids):
        raise TypeError(
            f"{argument} must be of the same array library as rewards ({library}) inside a program;"
            f" got a {of} array"
        )
    if of is not None and dtype_name(ids.dtype) in INTEGERS:
        if of == library and of != "numpy":
            ids = ids.to(rewards.device) if of == "torch" else ids
            if ids.ndim == 2 and not ids.shape[1]:
                ids = ids.sum(1)  # rows of nothing are equal
            return (ids,) if ids.ndim == 1 else tuple(ids[:, i] for i in range(ids.shape[1]))
        return _to_device(_numbered_rows(argument, to_host(ids)), rewards)
    if of in ("torch", "jax") or (of == "numpy" and (ids.dtype.kind not in "OUST" or ids.ndim > 1)):
        raise TypeError(
            f"{argument} must be integers (N,) or (N, S), or N hashable ids; got an array of dtype"
            f" {dtype_name(ids.dtype)} and shape {tuple(ids.shape)}"
        )
    ids = listed_ids(ids)
    others = [one for one in ids if not is_integer(one)] if traced else []
    if others and library_of(others[0]) is None:
        raise TypeError(
            f"{argument} must be integers inside jax.jit, torch.compile and vmap, where others"
            f" would be constants of the program; got {shown(others[0])}: number them outside"
        )
    if traced and not others and all(-(1 << 63) <= int(one) < 1 << 63 for one in ids):
        return _to_device(np.array([int(one) for one in ids], np.int64), rewards)
    return _to_device(_numbered(argument, ids), rewards)


def listed_ids(ids: Any) -> Sequence[Any]:
    """List ids (N,), whatever holds them."""
    if isinstance(ids, (list, tuple)):  # which are not copied: that takes as long as hashing
        return ids
    values = getattr(ids, "tolist", getattr(ids, "to_pylist", lambda: list(ids)))
    found: list[Any] = values()
    return found


def _numbered_rows(argument: str, ids: NDArray[Any]) -> NDArray[np.int64]:
    """Number integers (N,) or rows of them (N, S) → (N,)."""
    if ids.ndim == 1:
        # Those that int64 lacks wrap around, and stay apart.
        return ids.astype(np.int64, copy=False)
    if not ids.shape[1]:
        return np.zeros(len(ids), np.int64)
    # The bytes of a row are an id as good as any.
    whole = np.ascontiguousarray(ids).view(np.dtype((np.void, ids.shape[1] * ids.itemsize)))
    return _numbered(argument, whole.reshape(-1).tolist())


def _to_device(numbers: NDArray[np.int64], rewards: Array) -> Ids:
    """Move numbers (N,) to where the rewards are."""
    library = library_of(rewards)
    if library == "torch":
        import torch

        # A copy: torch takes nothing that runs backwards, or must not be written.
        return (torch.from_numpy(np.array(numbers)).to(rewards.device, non_blocking=True),)
    if library == "jax":
        import jax.numpy as jnp

        # JAX's usual integers have 32 bits.
        if numbers.size and max(-int(numbers.min()), int(numbers.max())) >= 1 << 31:
            numbers = np.unique(numbers, return_inverse=True)[1].reshape(-1)
        return (jnp.asarray(numbers, jnp.int32),)
    return (numbers,)


def _numbered(argument: str, ids: Sequence[Any]) -> NDArray[np.int64]:
    """Number objects by first appearance: N → (N,)."""
    numbers: defaultdict[Any, int] = defaultdict(count().__next__)
    try:
        # One call that looks all up, and one that packs what it found, take three quarters of the
        # time of np.fromiter.
        found = itemgetter(*ids)(numbers) if ids else ()
        found = found if len(ids) != 1 else (found,)  # a single one comes bare
        codes = np.frombuffer(struct.pack(f"{len(ids)}q", *found), np.int64)
    except TypeError:
        at, one = next(((i, one) for i, one in enumerate(ids) if not _is_hashable(one)), (0, None))
        if one is None:  # what is wrong is how they compare
            raise
        raise TypeError(
            f"{argument} must be hashable ids; got {type(one).__name__} at {argument}[{at}]:"
            " pass integers (N, S) as an array, or tuples"
        ) from None
    kinds = set(map(type, numbers))
    if kinds <= {str, int, bytes}:
        return codes
    for kind in kinds:
        one = next(key for key in numbers if type(key) is kind)
        if library_of(one) in ("torch", "jax"):
            raise TypeError(
                f"{argument} must be ids; got a list of {library_of(one)} scalars, each of which"
                f" is an object of its own: pass them stacked, as one array"
            )
    for key in numbers:
        if _is_missing(key):
            at = next(i for i, one in enumerate(ids) if one is key)
            raise ValueError(
                f"{argument} must be ids, neither None nor NaN; got {key} at {argument}[{at}]"
            )
    return codes


def _is_missing(key: Any) -> bool:
    """Tell whether an id is None, NaN or something that equals nothing in another way."""
    try:
        return key is None or bool(key != key)
    except (TypeError, ValueError):  # pandas' NA
        return True


def _is_hashable(one: Any) -> bool:
    try:
        hash(one)
    except TypeError:
        return False
    return True


# ---- Where entries go ---------------------------------------------------------------------------


def sorted_by_id(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort entries by id, those of one as they come: (N,) → (N,) their order, (G + 1,) where each
    group starts in it, and N.

    >>> sorted_by_id(np.array([7, 3, 7]))
    (array([1, 0, 2]), array([0, 1, 3]))
    """
    if not len(ids):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    least, most = int(ids.min()), int(ids.max())
    if most - least < 1 << 32:
        # Of 16 bits NumPy has a stable radix sort, on any processor several times as fast as its
        # sorts by comparison.
        offsets: NDArray[Any] = np.empty(
            len(ids), np.uint16 if most - least < 1 << 16 else np.uint32
        )
        np.subtract(ids, least, out=offsets, casting="unsafe")
        order = offsets.astype(np.uint16, copy=False).argsort(kind="stable")
        if offsets.dtype == np.uint32:
            high = (offsets >> 16).astype(np.uint16)
            order = order.take(high.take(order).argsort(kind="stable"))
        in_order: NDArray[Any] = offsets.take(order)
    else:
        order = ids.argsort(kind="stable")
        in_order = ids.take(order)
    starts = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    return order, np.concatenate([[0], starts, [len(ids)]])


def by_size(ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Collect groups of one size: (N,) → for each size n the indices of its groups' entries, (G_n,
    n).

    >>> by_size(np.array([7, 3, 7]))
    [array([[1]]), array([[0, 2]])]
    """
    order, edges = sorted_by_id(ids)
    sizes = np.diff(edges)
    found = []
    for n in np.flatnonzero(np.bincount(sizes)):
        starts = edges[:-1][sizes == n]
        found.append(
            order.reshape(-1, n)
            if len(starts) * n == len(order)
            else order[starts[:, None] + np.arange(n)]
        )
    return found


class Slots(NamedTuple):
    """Where entries go in a matrix with a row for every group: the one that had index order[i]
    before to slot[i] of the flattened matrix, or to i where there is no slot."""

    order: Array  # (N,), group by group, those of one as they come
    slot: Array | None  # (N,), None where all groups are of one size
    shape: tuple[int, int]


def slots(ids: NDArray[np.int64]) -> Slots:
    """Find where entries go: (N,).

    >>> slots(np.array([7, 3, 7]))
    Slots(order=array([1, 0, 2]), slot=array([0, 2, 3]), shape=(2, 2))
    """
    order, edges = sorted_by_id(ids)
    sizes = np.diff(edges)
    height, width = len(sizes), int(sizes.max(initial=0))
    if height * width == len(ids):
        return Slots(order, None, (height, width))
    width = matrix_width(width)
    slot = np.arange(len(ids)) + np.repeat(np.arange(height) * width - edges[:-1], sizes)
    return Slots(order, slot, (height, width))


def numbered_columns(ids: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Number rows of integers: columns (N,) each → (N,), as they are where there is one column."""
    numbers, *columns = ids
    for column in columns:
        _, one = np.unique(column, return_inverse=True)
        _, both = np.unique(numbers, return_inverse=True)
        _, numbers = np.unique(both * len(one) + one, return_inverse=True)
    return numbers.astype(np.int64, copy=False)


def representatives(
    ids: Sequence[NDArray[np.int64]], valid: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Find the entry that stands for a sample: ids (N,) each, equal among the entries of one
    sample, valid (N,) → (N,) the index of its last valid entry, −1 where it has none.

    >>> representatives([np.array([5, 5, 6, 6])], np.array([True, True, True, False]))
    array([1, 1, 2, 2])
    """
    _, codes = np.unique(numbered_columns(ids), return_inverse=True)
    last = np.full(len(valid), -1, np.int64)
    entries = np.flatnonzero(valid)
    last[codes[entries]] = entries  # of several the last is kept
    return last[codes]
