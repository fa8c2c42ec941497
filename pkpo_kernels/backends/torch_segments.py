"""Groups in one flat tensor, in plain torch operations: no value is looked at, and the host never
waits for a device."""

from collections.abc import Callable, Sequence

import torch

from pkpo_kernels.backends import _segments
from pkpo_kernels.backends._segments import Combine, Parts, Segments
from pkpo_kernels.maths.estimators import ESTIMATORS
from pkpo_kernels.maths.weights import Estimator


def transform(
    rewards: torch.Tensor,
    ids: Sequence[torch.Tensor],
    valid: torch.Tensor,
    k: torch.Tensor,
    *,
    estimator: Estimator,
    scale: str,
    factor: float,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Transform groups: rewards, ids, valid (N,), k () or (N,) → (N,) of dtype, detached:
    `_segments.transform`, times a factor."""
    compute = _transform_op if torch.compiler.is_compiling() else _transform
    of_name = estimator.name
    return compute(rewards.detach(), list(ids), valid, k, of_name, scale, factor, undersized, dtype)


def representatives(ids: Sequence[torch.Tensor], valid: torch.Tensor) -> torch.Tensor:
    """Find the entry that stands for a sample: see `_segments.representatives`."""
    compute = _representatives_op if torch.compiler.is_compiling() else _representatives
    return compute(list(ids), valid)


def _transform(
    rewards: torch.Tensor,
    ids: list[torch.Tensor],
    valid: torch.Tensor,
    k: torch.Tensor,
    estimator: str,
    scale: str,
    factor: float,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    compute = torch.float64 if torch.float64 in (dtype, rewards.dtype) else torch.float32
    keys = rewards.to(compute)
    out = _segments.transform(
        Primitives(keys),
        keys,
        ids,
        valid,
        k,
        limit=torch.finfo(compute).max,
        estimator=ESTIMATORS[estimator],
        scale=scale,
        undersized=undersized,
    )
    return (out * factor).to(dtype)


def _representatives(ids: list[torch.Tensor], valid: torch.Tensor) -> torch.Tensor:
    return _segments.representatives(Primitives(valid), ids, valid)


# To torch.compile they are operators, opaque and called as they are: Inductor breaks on scans over
# sorted indices (2.13: "vr must not be None for symbol indirect0").
_transform_op = torch.library.custom_op("pkpo::transform_segments", _transform, mutates_args=())
_representatives_op = torch.library.custom_op(
    "pkpo::representatives", _representatives, mutates_args=()
)


@_transform_op.register_fake
def _(
    rewards: torch.Tensor,
    ids: list[torch.Tensor],
    valid: torch.Tensor,
    k: torch.Tensor,
    estimator: str,
    scale: str,
    factor: float,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    return rewards.new_empty(rewards.shape, dtype=dtype)


@_representatives_op.register_fake
def _(ids: list[torch.Tensor], valid: torch.Tensor) -> torch.Tensor:
    return valid.new_empty(valid.shape, dtype=torch.int64)


def slots(
    ids: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[int, int]]:
    """Find where entries go in a matrix with a row for every group, for whose shape the host waits
    once: columns (N,) each, one entry at least → what `pkpo_kernels._ids.Slots` holds."""
    # On a GPU what counts is how many operations there are.
    ops = Primitives(ids[0])
    keys, order = ops.sort(ids)
    # searchsorted knows no longer integers without a sign.
    if len(keys) == 1 and (keys[0].dtype.is_signed or keys[0].dtype == torch.uint8):
        first = torch.searchsorted(keys[0], keys[0])
    else:
        first = _segments.segments_of(ops, keys).first
    column = ops.index - first
    row = torch.cumsum(column == 0, 0)  # from 1 on
    height, last_column = torch.stack([row[-1], column.amax()]).tolist()
    width = last_column + 1
    if height * width == column.shape[0]:
        return order, None, (height, width)
    width = _segments.matrix_width(width)
    return order, torch.add(column - width, row, alpha=width), (height, width)


class Primitives:
    """torch's part of `_segments.Primitives`, for tensors beside one (N,)."""

    xp = torch

    def __init__(self, like: torch.Tensor) -> None:
        self.index = torch.arange(like.shape[0], device=like.device)
        # Apple's GPUs have no float64.
        self.precise = torch.float32 if like.device.type == "mps" else torch.float64

    def floating(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.precise)

    def order_keys(self, keys: torch.Tensor) -> torch.Tensor:
        signed = keys.view(torch.int64 if keys.dtype == torch.float64 else torch.int32)
        # Of negative numbers all bits but the sign run the other way.
        return torch.where(signed < 0, signed ^ torch.iinfo(signed.dtype).max, signed)

    def sort(self, keys: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        *major, minor = keys
        in_order, order = torch.sort(minor, stable=True)
        if not major:
            return [in_order], order
        for key in reversed(major):
            _, again = torch.sort(key[order], stable=True)
            order = order[again]
        return [key[order] for key in keys], order

    def put_back(self, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        return torch.scatter(torch.zeros_like(x), 0, order, x)

    def segments(self, starts: torch.Tensor) -> Segments:
        # On a GPU a cummax goes through a vector in one block of threads.
        number = torch.cumsum(starts, 0)
        last = torch.searchsorted(number, number, right=True) - 1
        return Segments(torch.searchsorted(number, number), last)

    def scan(self, segments: Segments, parts: Parts, combine: Combine) -> Parts:
        return self._scan(parts, combine, 1, lambda d: self.index - d >= segments.first)

    def product_from_right(
        self, segments: Segments, numerators: torch.Tensor, denominators: torch.Tensor
    ) -> torch.Tensor:
        (product,) = self._scan(
            (numerators / denominators,),
            lambda behind, here: (behind[0] * here[0],),
            -1,
            lambda d: self.index + d < segments.last,
        )
        return product

    def _scan(
        self,
        parts: Parts,
        combine: Combine,
        direction: int,
        is_inside: Callable[[int], torch.Tensor],
    ) -> Parts:
        """Combine parts with all before them (direction 1) or behind them (−1), over distances that
        double, where one of that distance is inside the same segment."""
        distance = 1
        while distance < self.index.shape[0]:
            others = tuple(torch.roll(x, direction * distance, 0) for x in parts)
            inside = is_inside(distance)
            parts = tuple(
                torch.where(inside, both, own)
                for both, own in zip(combine(others, parts), parts, strict=True)
            )
            distance *= 2
        return parts
