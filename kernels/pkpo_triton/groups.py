"""Groups by ids on a GPU: what `group_kernels` needs, and its launches. The host waits for
nothing."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pkpo_triton import table_cache
from pkpo_triton.coefficients import UNDERSIZED, Estimator
from pkpo_triton.group_kernels import (
    BLOCK,
    BLOCK_OF_GROUP,
    MOST_PROGRAMS,
    STEP,
    WARPS,
    finish_kernel,
    insert_kernel,
    place_kernel,
    rank_kernel,
    scratch_size,
    table_size,
)
from pkpo_triton.long_rows import MOST
from pkpo_triton.matrices import runs_on
from pkpo_triton.operators import is_watched
from pkpo_triton.plan import LONGEST_ON_CHIP, OPTIONS
from pkpo_triton.prepared import PreparedKernel, device_of

# An entry is compared with all of its group: beyond so many entries, which may be one group, a sort
# by the library is faster.
MOST_ENTRIES = 1 << 18


def prepared_by_id(
    rewards: torch.Tensor,
    ids: torch.Tensor,
    where: torch.Tensor | None,
    k: int | torch.Tensor,
    estimator: Estimator,
    **options: Any,
) -> GroupLaunch | None:
    """Prepare the transform of entries of this form by their ids, on their device and its current
    stream: see `GroupLaunch`; None where it takes more than launches of kernels."""
    tensors = rewards, ids, *([] if where is None else [where])
    if (
        is_watched(rewards)
        or not 1 <= rewards.shape[0] <= MOST_ENTRIES
        or any(x.device != rewards.device or not x.is_contiguous() for x in tensors)
        or torch.float64 in (rewards.dtype, options["dtype"])
        or (isinstance(k, torch.Tensor) and k.ndim > 0)
        or runs_on() not in ("cuda", "")
    ):
        return None
    return GroupLaunch(rewards, ids, where, k, estimator, **options)


class GroupLaunch:
    """The launches for entries of one form, on the device and the stream that it was made on.

    Args:
        rewards: (N,) floating, integer or bool, contiguous, 1 ≤ N ≤ MOST_ENTRIES; not float64.
        ids: (N,) integers of at most 64 bits, contiguous: equal in a group.
        where: (N,) bool, contiguous: which entries are samples of their group; the others get 0.
        k: at least 1, or an integer on the device, (), whose value may be anything.
        estimator: as `coefficients.Estimator` says.
        scale: "sum", "mean" for values times a group's samples, "batch_mean" for N over the number
          of groups (and over a group's samples, where an estimator is a mean already), or a factor.
        undersized: what groups get that do not admit k: "zero", "nan" or "clip".
        drops_nan: a reward that is NaN is left out; else its group becomes NaN.
        dtype: of the result, not float64. Computed in float32.
    """

    __slots__ = ("_dtype", "_finish", "_insert", "_place", "_rank", "_scratch_size")

    def __init__(
        self,
        rewards: torch.Tensor,
        ids: torch.Tensor,
        where: torch.Tensor | None,
        k: int | torch.Tensor,
        estimator: Estimator,
        *,
        scale: str | float,
        undersized: str,
        drops_nan: bool,
        dtype: torch.dtype,
    ) -> None:
        n, device = rewards.shape[0], rewards.device
        size = table_size(n)
        self._scratch_size, self._dtype = scratch_size(n, size), dtype
        factorials = table_cache.factorials(max(n, LONGEST_ON_CHIP) + 1, device)
        of_entries: dict[str, Any] = {"BLOCK": BLOCK, "num_warps": WARPS, **OPTIONS}
        grid = triton.cdiv(n, BLOCK)
        constants = {
            "MASKED": where is not None,
            "DROPS_NAN": drops_nan and rewards.is_floating_point(),
            **of_entries,
        }
        self._insert = PreparedKernel(insert_kernel, grid, (n, size), constants)
        self._place = PreparedKernel(place_kernel, grid, (n, size), of_entries)
        self._rank = PreparedKernel(rank_kernel, grid, (n, size), {**of_entries, "STEP": STEP})
        by_group = scale == "batch_mean"
        self._finish = PreparedKernel(
            finish_kernel,
            min(n, MOST_PROGRAMS),
            (
                table_cache.coefficients(estimator, device),
                factorials,
                n,
                size,
                factorials.shape[1],
                min(k, MOST) if isinstance(k, int) else 0,
                int(estimator.requires_k_lt_n),
                UNDERSIZED.index(undersized),
                int(scale == "mean"),
                int(estimator.counted_from_top),
                int(by_group),
                int(by_group and estimator.normalized),
                float(n) if by_group else 1.0 if isinstance(scale, str) else scale,
            ),
            {
                "K": "int" if isinstance(k, int) else "scalar",
                "INDEX_SHIFT": estimator.index_shift,
                "NORMALIZED": estimator.normalized,
                "BLOCK": BLOCK_OF_GROUP,
                "num_warps": 1,
                **OPTIONS,
            },
        )

    def __call__(
        self,
        rewards: torch.Tensor,
        ids: torch.Tensor,
        where: torch.Tensor | None,
        k: torch.Tensor | None,
    ) -> torch.Tensor:
        """Transform entries: rewards, ids, where (N,), k () where it is not of the host → (N,)."""
        scratch = torch.zeros(self._scratch_size, dtype=torch.int32, device=rewards.device)
        out = torch.empty_like(rewards, dtype=self._dtype)
        if not self._finish.is_compiled:
            with device_of(rewards):
                self._insert.compile((rewards, ids, where, scratch, out))
                self._place.compile((rewards, scratch))
                self._rank.compile((scratch,))
                self._finish.compile((scratch, k, out))
            return out
        at = self._finish.address_of
        of_rewards, shared, result = at(rewards), at(scratch), at(out)
        of_where = None if where is None else at(where)
        self._insert.launch((of_rewards, at(ids), of_where, shared, result))
        self._place.launch((of_rewards, shared))
        self._rank.launch((shared,))
        self._finish.launch((shared, None if k is None else at(k), result))
        return out
