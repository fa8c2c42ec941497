"""Groups in one flat tensor, in plain torch operations: no value is looked at, and torch.compile,
torch.func.vmap and fake tensors can follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pkpo_kernels.backends import _segments
from pkpo_kernels.backends._segments import Segments
from pkpo_kernels.maths.weights import Estimator


def transform(
    rewards: torch.Tensor,
    ids: Sequence[torch.Tensor],
    counted: torch.Tensor,
    k: torch.Tensor,
    *,
    estimator: Estimator,
    scale: str,
    factor: float,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Transform groups: rewards, ids, counted (N,), k () or (N,) → (N,) of dtype, detached:
    `_segments.transform`, times a factor."""
    compute = torch.float64 if torch.float64 in (dtype, rewards.dtype) else torch.float32
    keys = rewards.detach().to(compute)
    out = _segments.transform(
        Primitives(keys),
        keys,
        ids,
        counted,
        k,
        limit=torch.finfo(compute).max,
        estimator=estimator,
        scale=scale,
        undersized=undersized,
    )
    return (out * factor).to(dtype)


def representatives(ids: Sequence[torch.Tensor], valid: torch.Tensor) -> torch.Tensor:
    """Find the entry that stands for a sample: see `_segments.representatives`."""
    return _segments.representatives(Primitives(valid), ids, valid)


def positions(ids: Sequence[torch.Tensor]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Find where in a matrix with a row for every group its entries go: columns (N,) each → (N,)
    indices of the flattened matrix, and its shape, for which the host waits once."""
    ops = Primitives(ids[0])
    keys, order = ops.sort(ids)
    first, _ = _segments.segments_of(ops, keys)
    column = ops.index - first
    row = torch.cumsum(column == 0, 0) - 1
    height, width = torch.stack([row[-1], column.amax()]).add(1).tolist()
    return ops.put_back(row * width + column, order), (height, width)


class Primitives:
    """torch's part of `_segments.Primitives`, for tensors beside one (N,)."""

    xp = torch

    def __init__(self, like: torch.Tensor) -> None:
        self.index = torch.arange(like.shape[0], device=like.device)
        # Apple's GPUs have no float64.
        self.precise = torch.float32 if like.device.type == "mps" else torch.float64

    def floating(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.precise)

    def sort(self, keys: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        *major, minor = keys
        _, order = torch.sort(minor, stable=True)
        for key in reversed(major):
            _, again = torch.sort(key[order], stable=True)
            order = order[again]
        return [key[order] for key in keys], order

    def running_max(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cummax(x, 0).values

    def put_back(self, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        return torch.scatter(torch.zeros_like(x), 0, order, x)

    def sums(self, segments: Segments, *terms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._scan(segments, x, torch.add) for x in terms)

    def largest(self, segments: Segments, x: torch.Tensor) -> torch.Tensor:
        return self._scan(segments, x, torch.maximum)[segments.last]

    def _scan(
        self,
        segments: Segments,
        x: torch.Tensor,
        combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Combine x (N,) with all before it in its segment, in steps that double."""
        distance = 1
        while distance < x.shape[0]:
            before = torch.roll(x, distance, 0)
            is_inside = self.index - distance >= segments.first
            x = torch.where(is_inside, combine(x, before), x)
            distance *= 2
        return x

    def product_from_right(
        self, segments: Segments, numerators: torch.Tensor, denominators: torch.Tensor
    ) -> torch.Tensor:
        product = numerators / denominators
        distance = 1
        while distance < product.shape[0]:
            behind = torch.roll(product, -distance, 0)
            is_inside = self.index + distance < segments.last
            product = torch.where(is_inside, product * behind, product)
            distance *= 2
        return product
