"""Launches: a kernel, its grid and its arguments, prepared for matrices of one form.

To prepare costs ten times what it costs to launch, so that who calls again keeps the launch: the
library a call's (`pkpo_kernels._calls`), `operators` a program's. Nothing here waits for a device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton

from pkpo_triton import kernel, long_rows, packed, packed_long, table_cache
from pkpo_triton.coefficients import (
    UNDERSIZED,
    Estimator,
    HostWeights,
    has_offset,
    host_weights,
    needs_range_scale,
)
from pkpo_triton.matrices import (
    constants,
    empty_result,
    packed_reads_mask,
    plan_max_at_k,
    plan_packed,
    plan_transform,
    readable,
    reads_all,
    strides,
)
from pkpo_triton.plan import LONGEST_ON_CHIP, OPTIONS, PackedPlan, Plan
from pkpo_triton.prepared import PreparedKernel, device_of
from pkpo_triton.tables import PackedWeights, packed_weights


class Launch(PreparedKernel):
    """A kernel that takes a matrix, prepared: all its arguments but the tensors of a call.

    Args:
        entry: the entry kernel, whose first arguments are rewards, where, k if it takes one, and
          the result.
        grid, arguments, constants: as for any kernel.
        empty: rewards → a tensor for the result.
        dynamic_k: the kernel gets a call's k, a tensor.
        k: what it gets else.
    """

    __slots__ = ("_dynamic_k", "_empty", "_k", "_takes_k")

    def __init__(
        self,
        entry: Any,
        grid: int,
        arguments: Sequence[Any],
        constants: dict[str, Any],
        empty: Callable[[torch.Tensor], torch.Tensor],
        *,
        dynamic_k: bool,
        k: torch.Tensor | None = None,
    ) -> None:
        super().__init__(entry, grid, arguments, constants)
        self._empty, self._dynamic_k, self._k = empty, dynamic_k, k
        self._takes_k = entry.arg_names[2] != "out_ptr"

    def __call__(self, rewards: torch.Tensor, where: torch.Tensor | None, k: Any) -> torch.Tensor:
        """Launch it for matrices of the form, on the device and the stream that it was prepared on:
        rewards, where and k as the kernel reads them → the result. A k of the host is known."""
        out = self._empty(rewards)
        if self._takes_k and not self._dynamic_k:
            k = self._k
        if not self.is_compiled:
            self.compile((rewards, where, k, out) if self._takes_k else (rewards, where, out))
            return out
        at = self.address_of
        of_where = None if where is None else at(where)
        if self._takes_k:
            self.launch((at(rewards), of_where, None if k is None else at(k), at(out)))
        else:
            self.launch((at(rewards), of_where, at(out)))
        return out


def transform(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    estimator: Estimator,
    *,
    scale: str,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Transform every row: rewards (rows, n) → (rows, n), detached.

    Args:
        rewards: (rows, n) floating, integer or bool, on a GPU, with any strides; not float64.
        k: an integer that n samples admit, or integers on the same device, () or (rows,), whose
          values may be anything.
        where: (rows, n) bool: which samples are part of their row; the others get 0.
        estimator: as `coefficients.Estimator` says.
        scale: "sum", or "mean" for values times the number of the row's samples.
        undersized: what rows get that do not admit their k: "zero", "nan", or "clip" for the
          largest k that they admit.
        dtype: of the result, not float64. Computed in float32.
    """
    rewards = rewards.detach()
    rest: Any = {"scale": scale, "undersized": undersized, "dtype": dtype}
    launch = prepared_transform(rewards, k, where, estimator, **rest)
    usual = plan_packed(rewards, k, where, estimator, undersized, dtype)
    if launch is None and usual is not None:
        assert where is not None  # all that it asks of a mask alone is how that lies
        where = where.clone(memory_format=torch.contiguous_format)
        launch = prepared_transform(rewards, k, where, estimator, **rest)
    if launch is None:
        chosen = plan_transform(rewards, k, where, estimator, dtype)
        if rewards.numel() == 0:
            return empty_result(rewards, dtype, chosen)
        if chosen is None:
            with device_of(rewards):
                return long_rows.transform_long(
                    rewards,
                    k,
                    where,
                    estimator,
                    **rest,
                    coefficients=table_cache.coefficients(estimator, rewards.device),
                    factorials=_factorials(rewards),
                )
        rewards, where, k = readable(rewards, where, k, chosen)
        launch = _launch_of_transform(rewards, k, where, estimator, chosen, **rest)
    with device_of(rewards):
        return launch(rewards, where, k)


def prepared_transform(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    estimator: Estimator,
    *,
    scale: str,
    undersized: str,
    dtype: torch.dtype,
) -> Launch | None:
    """Prepare `transform` for matrices of the form of these, on their device and its current
    stream; None where a call takes more than a launch."""
    usual = plan_packed(rewards, k, where, estimator, undersized, dtype)
    if usual is not None:
        if not packed_reads_mask(where):
            return None
        assert isinstance(k, int)
        with device_of(rewards):
            n, masked = rewards.shape[1], where is not None
            rules: Any = {"masked": masked, "scale": scale, "undersized": undersized}
            weights = packed_weights(estimator, n, k, slots=usual.slots(n), **rules)
            return _launch_of_packed(rewards, weights, usual)
    chosen = plan_transform(rewards, k, where, estimator, dtype)
    if chosen is None or rewards.numel() == 0:
        return None
    if not reads_all(rewards, where, k, chosen):
        return None
    rest: Any = {"scale": scale, "undersized": undersized, "dtype": dtype}
    return _launch_of_transform(rewards, k, where, estimator, chosen, **rest)


def _launch_of_transform(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    estimator: Estimator,
    chosen: Plan,
    *,
    scale: str,
    undersized: str,
    dtype: torch.dtype,
) -> Launch:
    """Put together what transforms rewards, one at least, that the kernel reads as they lie."""
    rows, n = rewards.shape
    static_k = k if isinstance(k, int) else None
    rest: Any = {"known_k": static_k is not None, "normalized": estimator.normalized}
    with device_of(rewards):
        device, factorials = rewards.device, _factorials(rewards)
        weights = HostWeights(0.0, 0.0, 0.0, 0.0, 0.0)
        coefficients = factorials  # a placeholder, never read
        if static_k is not None and where is None:
            weights = host_weights(estimator, n, static_k, scale=scale)
        else:
            coefficients = table_cache.coefficients(estimator, device)
        if chosen.weights == "ready":
            assert static_k is not None
            samples = table_cache.ratios(n, static_k, estimator.index_shift, chosen, device)
        else:
            samples = table_cache.chain(chosen, factorials)
    out = empty_result(rewards, dtype, chosen)
    empty: Callable[[torch.Tensor], torch.Tensor]
    if not rewards.is_contiguous():
        empty = functools.partial(empty_result, dtype=dtype, chosen=chosen)
    else:  # of as many dimensions as the rewards have, which the kernel does not see
        of_dtype = functools.partial(torch.empty_like, dtype=dtype)
        empty = torch.empty_like if dtype == rewards.dtype else of_dtype
    return Launch(
        kernel.transform_kernel,
        triton.cdiv(rows, chosen.block_rows),
        (
            coefficients,
            factorials,
            samples,
            factorials.shape[1],
            rows,
            n,
            static_k or 0,
            int(estimator.requires_k_lt_n),
            UNDERSIZED.index(undersized),
            int(scale == "mean"),
            int(has_offset(estimator, None if undersized == "clip" else static_k)),
            int(estimator.counted_from_top),
            *strides(rewards),
            *strides(where),
            *strides(out),
            *weights,
        ),
        {
            "K": "int" if isinstance(k, int) else "row" if k.ndim else "scalar",
            "MASKED": where is not None,
            "WEIGHTS": chosen.weights,
            "INDEX_SHIFT": estimator.index_shift,
            "RANGE_SCALED": needs_range_scale(estimator, scale=scale),
            "NORMALIZED": estimator.normalized,
            **constants((rewards, where, out), chosen, chosen.max_registers(**rest)),
        },
        empty,
        dynamic_k=static_k is None,
    )


def _launch_of_packed(rewards: torch.Tensor, weights: PackedWeights, chosen: PackedPlan) -> Launch:
    """Put together what transforms rewards, one at least, by the packed kernel."""
    rows, n = rewards.shape
    of_gaps = table_cache.packed(weights, rewards.device)
    return Launch(
        packed_long.packed_long_kernel if chosen.is_long else packed.packed_kernel,
        triton.cdiv(rows, chosen.block_rows),
        (of_gaps, rows, int(weights.has_offset), weights.max_coefficient),
        {
            "N_SAMPLES": n,
            "BLOCK_ROWS": chosen.block_rows,
            "THREADS_PER_ROW": chosen.threads_per_row,
            "LEVELS": chosen.levels,
            "num_warps": chosen.num_warps,
            "maxnreg": chosen.max_registers,
            "num_stages": 1,
            **OPTIONS,
        },
        torch.empty_like,
        dynamic_k=False,
    )


def max_at_k(
    rewards: torch.Tensor,
    ks: Sequence[int] | torch.Tensor,
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Compute the mean of the best of k: rewards (rows, n), integers or int64 on the device
    (number of ks,), where (rows, n) bool or None → (rows, number of ks); NaN where a row has fewer
    than k samples."""
    rewards = rewards.detach()
    chosen = plan_max_at_k(rewards, where, dtype)
    if rewards.numel() == 0:
        return torch.empty((rewards.shape[0], len(ks)), dtype=dtype, device=rewards.device)
    if chosen is None:
        with device_of(rewards):
            if not isinstance(ks, torch.Tensor):
                ks = table_cache.whole_numbers(tuple(ks), rewards.device)
            return long_rows.max_at_k_long(
                rewards, ks, where, dtype=dtype, factorials=_factorials(rewards)
            )
    rewards, where, ks = readable(rewards, where, ks, chosen)
    launch = _launch_of_max_at_k(rewards, ks, where, chosen, dtype=dtype)
    with device_of(rewards):
        return launch(rewards, where, ks)


def prepared_max_at_k(
    rewards: torch.Tensor,
    ks: Sequence[int] | torch.Tensor,
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
    shape: Sequence[int] | None = None,
) -> Launch | None:
    """Prepare `max_at_k` for matrices of the form of these, on their device and its current stream,
    for a result of another shape if one is given; None where a call takes more than a launch."""
    chosen = plan_max_at_k(rewards, where, dtype)
    if chosen is None or rewards.numel() == 0:
        return None
    if not reads_all(rewards, where, ks, chosen):
        return None
    return _launch_of_max_at_k(rewards, ks, where, chosen, dtype=dtype, shape=shape)


def _launch_of_max_at_k(
    rewards: torch.Tensor,
    ks: Sequence[int] | torch.Tensor,
    where: torch.Tensor | None,
    chosen: Plan,
    *,
    dtype: torch.dtype,
    shape: Sequence[int] | None = None,
) -> Launch:
    """Put together what estimates the best of k of rewards, one at least, that the kernel reads as
    they lie."""
    rows, n = rewards.shape
    shape = (rows, len(ks)) if shape is None else shape
    device = rewards.device
    with device_of(rewards):
        factorials = _factorials(rewards)
        samples = table_cache.chain(chosen, factorials)
        static_ks = None
        if not isinstance(ks, torch.Tensor):
            static_ks = table_cache.whole_numbers(tuple(ks), device)
    return Launch(
        kernel.max_at_k_kernel,
        triton.cdiv(rows, chosen.block_rows),
        (
            factorials,
            samples,
            factorials.shape[1],
            rows,
            n,
            len(ks),
            *strides(rewards),
            *strides(where),
        ),
        {"MASKED": where is not None, **constants((rewards, where), chosen)},
        lambda rewards: torch.empty(shape, dtype=dtype, device=device),
        dynamic_k=static_ks is None,
        k=static_ks,
    )


def _factorials(rewards: torch.Tensor) -> torch.Tensor:
    return table_cache.factorials(max(rewards.shape[1], LONGEST_ON_CHIP) + 1, rewards.device)
