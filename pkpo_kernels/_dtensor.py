"""torch's DTensors: rows that lie whole on some rank are computed there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from pkpo_kernels.maths.weights import Array
from pkpo_kernels.validation import checked_axis

Compute = Callable[[Array, Any, Array], Array]


def is_dtensor(x: Any) -> bool:
    """Tell whether this is a DTensor, without importing what makes them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def on_every_rank(
    compute: Compute, rewards: Any, k: Any, where: Any, axis: int, *, reduces: bool
) -> Any:
    """Compute a DTensor (..., n), every rank the rows that it has → a DTensor placed alike.

    Args:
        compute: (rewards, k, where), local → the shape of the rewards or, where it `reduces`, their
          leading shape, and for several ks an axis of those.
        rewards: sharded along any axis but that of the samples, or replicated.
        k: an integer or several, or a () tensor; for one a row a DTensor placed like the rows.
        where: a DTensor placed like the rewards, or None.
        axis: of the samples.

    Raises:
        ValueError: the samples of a group lie on several ranks, or where or k lies in another way
            or has another shape: on all ranks alike.
        TypeError: where or a k for each row is no DTensor.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    axis = checked_axis(axis, rewards.shape)
    mesh, placements = rewards.device_mesh, tuple(rewards.placements)
    if any(one.is_partial() or one.is_shard(axis) for one in placements):
        raise ValueError(
            "rewards must have all samples of a group on one rank; got a DTensor with its samples"
            f" along axis {axis} and placements {placements}: redistribute it, with"
            " rewards.redistribute(placements=…), to Replicate() or to Shard of another axis"
        )
    # Of the rows alone, without the axis of the samples.
    of_rows = tuple(
        Shard(one.dim - (one.dim > axis)) if one.is_shard() else one for one in placements
    )
    leading = (*rewards.shape[:axis], *rewards.shape[axis + 1 :])
    local_k = k
    several = isinstance(k, (list, tuple)) or getattr(k, "ndim", 0) > 0
    if several and not reduces:
        local_k = _local("k", k, of_rows, "the rows of rewards")
        _check_shape("k", k, leading, "the rows of rewards")
    elif is_dtensor(k):
        local_k = _local("k", k, (Replicate(),) * len(placements), "what all ranks share")
    local_where = where
    if where is not None:
        local_where = _local("where", where, placements, "rewards")
        _check_shape("where", where, rewards.shape, "rewards")
    out = compute(rewards.to_local(), local_k, local_where)
    whole = out.new_empty(
        (*leading, *out.shape[len(leading) :]) if reduces else rewards.shape, device="meta"
    )
    return DTensor.from_local(
        out.contiguous(),
        mesh,
        of_rows if reduces else placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def _local(argument: str, x: Any, placements: tuple[Any, ...], beside: str) -> Array:
    """Take a rank's part of what must lie like something else."""
    if not is_dtensor(x):
        raise TypeError(
            f"{argument} must be a DTensor placed like {beside}; got a {type(x).__name__}:"
            " torch.distributed.tensor.distribute_tensor makes one"
        )
    if tuple(x.placements) != placements:
        raise ValueError(
            f"{argument} must be placed like {beside}, {placements}; got {tuple(x.placements)}"
        )
    return x.to_local()


def _check_shape(argument: str, x: Any, shape: Sequence[int], beside: str) -> None:
    """Check the whole of a DTensor: what one rank alone refuses leaves the others waiting."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(
            f"{argument} must have the shape of {beside}, {tuple(shape)}; got {tuple(x.shape)}"
        )
