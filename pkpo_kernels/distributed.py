"""Groups whose samples lie on several ranks (torch) or along a mesh axis (JAX): gather, transform
the whole, keep one's own part.

    from pkpo_kernels import distributed
    advantages = distributed.transform_groups(rewards, ids, k=8)    # on every rank its own (N,)
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels import groups as flat
from pkpo_kernels._entries import Entries, checked_k, k_on_host
from pkpo_kernels._ids import checked_ids, listed_ids
from pkpo_kernels.conversion import k_to_host, to_host
from pkpo_kernels.maths.weights import Array
from pkpo_kernels.validation import is_integer, library_of, shown

__all__ = ["transform_groups"]


def transform_groups(
    rewards: Array,
    groups: Any,
    k: Any,
    *,
    samples: Any = None,
    where: Any = None,
    process_group: Any = None,
    axis_name: Any = None,
    **options: Any,
) -> Array:
    """Transform flat rewards whose groups lie across ranks or devices, own entries (N,) → (N,), as
    `pk.transform_groups` does all of them on one.

    In torch every rank of the group calls it, with as many entries as it has, none among them; in
    JAX it is called inside `jax.shard_map`. Every rank gets what the whole batch gives its entries,
    to the bit: all compute the same.

    Args:
        rewards, groups, k, samples, where, options: as for `pk.transform_groups`. Ids are those of
          the whole batch; blocks of n run on from rank to rank. An integer k, and the options, are
          the same everywhere; the implementation is None, in torch "numpy" too.
        process_group: of torch.distributed; None for the default one. Rewards and ids go through
          one `all_gather_object`, by way of the host, and NumPy computes.
        axis_name: of the mesh axis, or axes, that entries are spread over, in JAX.

    Raises:
        RuntimeError: there is no process group, or not all ranks answered within its timeout.
        ValueError: this rank is no member of the process group.
        ValueError, TypeError: as `pk.transform_groups` does, on all ranks where it is so on one;
          ranks that differ in k or options.
    """
    if axis_name is not None or library_of(rewards) == "jax":
        if axis_name is None:
            raise ValueError(
                "axis_name must name the mesh axis that JAX's entries are spread over, inside"
                " jax.shard_map; got None"
            )
        return _along_axis(rewards, groups, k, samples, where, axis_name, options)
    return _over_ranks(rewards, groups, k, samples, where, process_group, options)


# ---- JAX ---------------------------------------------------------------------------------------


def _along_axis(
    rewards: Array,
    groups: Any,
    k: Any,
    samples: Any,
    where: Any,
    axis_name: Any,
    options: dict[str, Any],
) -> Array:
    from jax import lax

    def whole(argument: str, x: Any) -> Any:
        if x is None or is_integer(x) or (argument == "k" and np.ndim(x) == 0):
            return x
        if library_of(x) != "jax":
            raise TypeError(
                f"{argument} must be a JAX array of the device's own entries with axis_name;"
                f" got {type(x).__name__}"
            )
        return lax.all_gather(x, axis_name, tiled=True)

    everywhere = whole("rewards", rewards)
    n = rewards.shape[0]
    out = flat.transform_groups(
        everywhere,
        whole("groups", groups),
        whole("k", k),
        samples=whole("samples", samples),
        where=whole("where", where),
        **options,
    )
    return lax.dynamic_slice_in_dim(out, lax.axis_index(axis_name) * n, n)


# ---- torch -------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """What a rank has, as it goes through pickle."""

    rewards: NDArray[Any]
    where: NDArray[np.bool_] | None
    groups: Any
    samples: Any
    k: Any
    options: dict[str, Any]


def _over_ranks(
    rewards: Array,
    groups: Any,
    k: Any,
    samples: Any,
    where: Any,
    process_group: Any,
    options: dict[str, Any],
) -> Array:
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "distributed.transform_groups needs a process group: call"
            " torch.distributed.init_process_group first, or pass axis_name= in JAX"
        )
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        raise ValueError(
            "process_group must be a torch.distributed group that this rank is a member of, or"
            f" None; got {shown(process_group)} on rank {dist.get_rank()}"
        )
    entries: Entries | None = None
    part: _Part | Exception
    try:
        # Which of them are NaN counts once all are together.
        entries = Entries.of(rewards, where, nan="propagate")
        part = _part(entries, groups, k, samples, options)
    except Exception as error:
        # All ranks hear of it: none waits for one that has left.
        kind = ValueError if isinstance(error, ValueError) else TypeError
        part = kind(str(error))
    parts: list[Any] = [None] * dist.get_world_size(process_group)
    rank = dist.get_rank(process_group)
    try:
        dist.all_gather_object(parts, part, group=process_group)
    except RuntimeError as error:
        raise RuntimeError(
            f"not all {len(parts)} ranks took part in distributed.transform_groups, as rank {rank}"
            f" sees it: {error}"
        ) from error
    for of_rank, one in enumerate(parts):
        if isinstance(one, Exception):
            raise type(one)(f"on rank {of_rank}: {one}")
    assert entries is not None
    first = sum(len(one.rewards) for one in parts[:rank])
    own = _of_all(parts)[first : first + entries.n]
    if entries.library == "numpy":
        return own.astype(entries.dtype)
    return entries.from_host(own.copy()).to(entries.rewards.device)


def _part(entries: Entries, groups: Any, k: Any, samples: Any, options: dict[str, Any]) -> _Part:
    """Check a rank's arguments, and give them to NumPy."""
    if options.get("implementation") not in (None, "numpy"):
        raise ValueError(
            "implementation must be 'numpy' or None, since NumPy computes what was gathered;"
            f" got {shown(options['implementation'])}"
        )
    flat.transform_groups(entries.rewards[:0], [], 1, **options)  # for the options' errors
    # What is too large for any group is only known with those of all ranks.
    checked = checked_k(k, entries, most=int(np.iinfo(np.int32).max))
    for argument, ids in (("groups", groups), ("samples", samples)):
        if not (is_integer(ids) or ids is None):
            checked_ids(argument, ids, entries.rewards, traced=False)
    rewards = entries.rewards if entries.library == "numpy" else entries.on_host().rewards
    part = _Part(
        rewards,
        None if entries.kept is None else to_host(entries.kept),
        _portable(groups),
        _portable(samples),
        k_to_host(checked),
        options,
    )
    try:
        pickle.dumps(part)
    except Exception as error:
        raise TypeError(
            f"groups and samples must be ids that pickle can send to other ranks: {error}"
        ) from None
    return part


def _portable(ids: Any) -> Any:
    """Make ids what they are on every rank, whatever held them: an array, a list, or a block."""
    if ids is None or is_integer(ids):
        return ids
    if library_of(ids) is None:
        return listed_ids(ids)
    ids = to_host(ids)
    return ids[:, 0] if ids.ndim == 2 and ids.shape[1] == 1 else ids


def _of_all(parts: Sequence[_Part]) -> NDArray[Any]:
    """Transform the entries of all ranks, one behind the other."""
    options = parts[0].options
    for rank, one in enumerate(parts):
        for name in sorted({*options, *one.options}):
            if options.get(name) != one.options.get(name):
                raise ValueError(
                    f"{name} must be the same on all ranks; got {options.get(name)!r} on rank 0 and"
                    f" {one.options.get(name)!r} on rank {rank}"
                )
    sizes = [len(one.rewards) for one in parts]
    where = None
    if any(one.where is not None for one in parts):
        where = np.concatenate(
            [
                np.ones(n, bool) if one.where is None else one.where
                for one, n in zip(parts, sizes, strict=True)
            ]
        )
    k = _joined_ks([one.k for one in parts], sizes)
    out = flat.transform_groups(
        np.concatenate([one.rewards for one in parts if len(one.rewards)] or [parts[0].rewards]),
        _joined("groups", [one.groups for one in parts]),
        k_on_host(k),
        samples=_joined("samples", [one.samples for one in parts]),
        where=where,
        **options,
    )
    # A k of a tensor that is less than 1 has nothing to be cut to.
    return np.where(np.asarray(k) < 1, 0, out) if options.get("undersized") == "clip" else out


def _joined(argument: str, ids: Sequence[Any]) -> Any:
    """Put ids of ranks one behind the other; blocks of n are the same everywhere."""
    if any(one is None or is_integer(one) for one in ids):
        if any(one is not None and not is_integer(one) for one in ids) or len(set(ids)) > 1:
            kinds = [one if is_integer(one) else type(one).__name__ for one in ids]
            raise ValueError(f"{argument} must be of one kind on all ranks; got {kinds}")
        return ids[0]
    some = [one for one in ids if len(one)]
    columns = {one.shape[1:] for one in some if isinstance(one, np.ndarray)}
    if len(columns) > 1:
        shapes = [tuple(np.shape(one)) for one in ids]
        raise ValueError(f"{argument} must have as many columns on all ranks; got {shapes}")
    dtypes = {one.dtype if isinstance(one, np.ndarray) else None for one in some}
    if len(dtypes) == 1 and None not in dtypes:
        return np.concatenate(some)
    return list(chain.from_iterable(map(_listed, some)))


def _listed(ids: Any) -> list[Any]:
    if isinstance(ids, np.ndarray):
        return ids.tolist() if ids.ndim == 1 else list(map(tuple, ids.tolist()))
    return list(ids)


def _joined_ks(ks: Sequence[Any], sizes: Sequence[int]) -> Any:
    if all(isinstance(k, int) for k in ks):
        if len(set(ks)) > 1:
            raise ValueError(f"k must be the same on all ranks, or one for each entry; got {ks}")
        return ks[0]
    return np.concatenate([np.broadcast_to(k, n) for k, n in zip(ks, sizes, strict=True)])
