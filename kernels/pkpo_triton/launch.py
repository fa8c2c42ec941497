"""The kernels as torch operators: launched at once in eager mode, opaque to torch.compile.

Nothing here waits for a device.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
import triton

from pkpo_triton import kernel, long_rows, packed_launch, table_cache
from pkpo_triton.coefficients import (
    UNDERSIZED,
    Estimator,
    HostWeights,
    has_offset,
    host_weights,
    needs_range_scale,
)
from pkpo_triton.plan import LONGEST_ON_CHIP, OPTIONS, Plan, plan


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
    if not torch.compiler.is_compiling():
        return _transform(rewards, k, where, estimator, scale, undersized, dtype)
    # An operator takes no object, but lists of numbers: the estimator is put together again in it.
    return _transform_op(
        rewards,
        k if isinstance(k, int) else 0,
        None if isinstance(k, int) else k,
        where,
        list(estimator.coefficients),
        list(estimator.coefficients_at_k_1 or ()),
        estimator.index_shift,
        estimator.counted_from_top,
        estimator.requires_k_lt_n,
        estimator.normalized,
        scale,
        undersized,
        dtype,
    )


def max_at_k(
    rewards: torch.Tensor,
    ks: Sequence[int | torch.Tensor],
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Compute the mean of the best of k: rewards (rows, n), every k an integer or a () tensor,
    where (rows, n) bool or None → (rows, len(ks)); NaN where a row has fewer than k samples."""
    rewards = rewards.detach()
    if torch.compiler.is_compiling():
        return _max_at_k_op(rewards, _on_device(ks, rewards.device), where, dtype)
    return _max_at_k(rewards, _on_device(ks, rewards.device), where, dtype)


def _transform(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    estimator: Estimator,
    scale: str,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    _check_dtypes(rewards, dtype)
    rows, n = rewards.shape
    static_k = k if isinstance(k, int) else None
    uniform = static_k is not None and where is None
    if isinstance(k, int) and where is None and not estimator.normalized:
        packed_for = packed_launch.plan_packed(rewards, dtype, _backend())
        if packed_for is not None:
            with _device_of(rewards):
                return packed_launch.transform_packed(rewards, k, estimator, scale, packed_for)
    chosen = _plan(rewards, where, dtype, uniform=uniform and not estimator.normalized)
    out = _empty_result(rewards, dtype)
    if out.numel() == 0:
        return out
    with _device_of(rewards):
        device = rewards.device
        factorials = table_cache.factorials(max(n, LONGEST_ON_CHIP) + 1, device)
        if chosen is None:
            coefficients = table_cache.coefficients(estimator, device)
            return long_rows.transform_long(
                rewards,
                k,
                where,
                estimator,
                scale=scale,
                undersized=undersized,
                dtype=dtype,
                coefficients=coefficients,
                factorials=factorials,
            )
        is_bool = rewards.dtype == torch.bool
        rewards, where = _readable(rewards, where, chosen)
        weights = HostWeights(0.0, 0.0, 0.0, 0.0, 0.0)
        coefficients = factorials  # a placeholder, never read
        if uniform:
            assert static_k is not None
            weights = host_weights(estimator, n, static_k, scale=scale)
        else:
            coefficients = table_cache.coefficients(estimator, device)
        if chosen.weights == "ready":
            assert static_k is not None
            samples = table_cache.ratios(n, static_k, estimator.index_shift, chosen, device)
        else:
            samples = _chain_table(chosen, factorials)
        written = out
        if not _is_read_in_place(out, chosen):
            written = torch.empty((rows, n), dtype=dtype, device=device)
        kernel.transform_kernel[(triton.cdiv(rows, chosen.block_rows),)](
            rewards,
            where,
            None if isinstance(k, int) else k,
            written,
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
            *_strides(rewards),
            *_strides(where),
            *_strides(written),
            *weights,
            K="int" if isinstance(k, int) else "row" if k.ndim else "scalar",
            MASKED=where is not None,
            WEIGHTS=chosen.weights,
            INDEX_SHIFT=estimator.index_shift,
            RANGE_SCALED=needs_range_scale(estimator, scale=scale),
            NORMALIZED=estimator.normalized,
            **_constants(is_bool, n, (rewards, where, written), chosen),
        )
    return out if written is out else out.copy_(written)


def _max_at_k(
    rewards: torch.Tensor, ks: torch.Tensor, where: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    _check_dtypes(rewards, dtype)
    rows, n = rewards.shape
    chosen = _plan(rewards, where, dtype, uniform=False)
    out = torch.empty((rows, ks.shape[0]), dtype=dtype, device=rewards.device)
    if out.numel() == 0:
        return out
    with _device_of(rewards):
        factorials = table_cache.factorials(max(n, LONGEST_ON_CHIP) + 1, rewards.device)
        if chosen is None:
            return long_rows.max_at_k_long(rewards, ks, where, dtype=dtype, factorials=factorials)
        is_bool = rewards.dtype == torch.bool
        rewards, where = _readable(rewards, where, chosen)
        kernel.max_at_k_kernel[(triton.cdiv(rows, chosen.block_rows),)](
            rewards,
            where,
            ks,
            out,
            factorials,
            _chain_table(chosen, factorials),
            factorials.shape[1],
            rows,
            n,
            ks.shape[0],
            *_strides(rewards),
            *_strides(where),
            MASKED=where is not None,
            **_constants(is_bool, n, (rewards, where), chosen),
        )
    return out


def _check_dtypes(rewards: torch.Tensor, dtype: torch.dtype) -> None:
    if torch.float64 in (rewards.dtype, dtype):
        raise ValueError("rewards and dtype must not be float64: the kernels compute in float32")


def _plan(
    rewards: torch.Tensor, where: torch.Tensor | None, dtype: torch.dtype, *, uniform: bool
) -> Plan | None:
    """Plan a kernel, None for rows that the library sorts."""
    itemsize = max(rewards.element_size(), dtype.itemsize)
    return plan(rewards.shape[1], itemsize, masked=where is not None, uniform=uniform, warp=_warp())


def _chain_table(chosen: Plan, unread: torch.Tensor) -> torch.Tensor:
    """Get what a running product reads for each sample; a placeholder where it reads nothing."""
    if chosen.threads_per_row == 1:
        return unread
    return table_cache.inverses(chosen.samples_per_thread, unread.device)


@functools.cache
def _backend() -> str:
    """Ask Triton what it compiles for here; "" where it interprets."""
    if triton.knobs.runtime.interpret:
        return ""
    return str(triton.runtime.driver.active.get_current_target().backend)


@functools.cache
def _warp() -> int:
    """Ask how many threads run in step on the GPUs here."""
    if not torch.cuda.is_available():  # where kernels are interpreted
        return 32
    return int(triton.runtime.driver.active.get_current_target().warp_size)


def _empty_result(rewards: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Make room for (rows, n), in the layout of the rewards where they lie by samples: both are
    read and written along."""
    rows, n = rewards.shape
    if rewards.stride(0) == 1 and rewards.stride(1) == rows:
        return torch.empty((n, rows), dtype=dtype, device=rewards.device).t()
    return torch.empty((rows, n), dtype=dtype, device=rewards.device)


def _readable(
    rewards: torch.Tensor, where: torch.Tensor | None, chosen: Plan
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Give the kernel what it can read: bytes for bools, and what reaches it in whole sectors."""
    if rewards.dtype == torch.bool:
        rewards = rewards.view(torch.uint8)
    if where is not None:
        where = where.view(torch.uint8)
    if not _is_read_in_place(rewards, chosen):
        rewards = rewards.contiguous()
    if where is not None and not _is_read_in_place(where, chosen):
        where = where.contiguous()
    return rewards, where


def _is_read_in_place(x: torch.Tensor, chosen: Plan) -> bool:
    """Tell whether that is as fast as a copy: not where a program has few rows, and they are no
    neighbours in memory."""
    return chosen.block_rows >= 8 or x.stride(1) == 1


def _vector(matrices: Sequence[torch.Tensor], chosen: Plan) -> int:
    """Count the neighbours that a thread can read at a time."""
    vector = chosen.vector
    for x in matrices:
        # What Triton knows of a pointer is whether 16 divides it.
        if x.stride(1) != 1 or x.data_ptr() % 16:
            return 1
        while x.shape[0] > 1 and x.stride(0) % vector:
            vector //= 2
    return vector


def _strides(x: torch.Tensor | None) -> tuple[int, int]:
    if x is None:
        return 0, 0
    # The stride of a single row is arbitrary, and would mean another kernel.
    return (x.stride(0) if x.shape[0] > 1 else x.shape[1]), x.stride(1)


def _constants(
    is_bool: bool, n: int, matrices: Sequence[torch.Tensor | None], chosen: Plan
) -> dict[str, Any]:
    given = [matrix for matrix in matrices if matrix is not None]
    return {
        "IS_BOOL": is_bool,
        "CONTIGUOUS": chosen.threads_per_row == 1
        and all(matrix.is_contiguous() for matrix in given),
        "PADDED": chosen.samples > n,
        "SAMPLES_PER_THREAD": chosen.samples_per_thread,
        "THREADS_PER_ROW": chosen.threads_per_row,
        "BLOCK_ROWS": chosen.block_rows,
        "VECTOR": _vector(given, chosen),
        "WARP": chosen.warp,
        "num_warps": chosen.num_warps,
        "num_stages": 1,
        **OPTIONS,
    }


def _on_device(ks: Sequence[int | torch.Tensor], device: torch.device) -> torch.Tensor:
    """Gather all ks in one int64 tensor (len(ks),), without waiting: numbers are filled in on the
    device."""
    return torch.stack(
        [
            k.to(device=device, dtype=torch.int64)
            if isinstance(k, torch.Tensor)
            else torch.full((), k, dtype=torch.int64, device=device)
            for k in ks
        ]
    )


def _device_of(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Have kernels run on the tensor's own device, whichever is the current one."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


@torch.library.custom_op("pkpo_triton::transform", mutates_args=())
def _transform_op(
    rewards: torch.Tensor,
    k: int,
    dynamic_k: torch.Tensor | None,
    where: torch.Tensor | None,
    coefficients: Sequence[int],
    coefficients_at_k_1: Sequence[int],
    index_shift: int,
    counted_from_top: bool,
    requires_k_lt_n: bool,
    normalized: bool,
    scale: str,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    estimator: Any = SimpleNamespace(
        coefficients=coefficients,
        coefficients_at_k_1=coefficients_at_k_1 or None,
        index_shift=index_shift,
        counted_from_top=counted_from_top,
        requires_k_lt_n=requires_k_lt_n,
        normalized=normalized,
    )
    either_k = k if dynamic_k is None else dynamic_k
    return _transform(rewards, either_k, where, estimator, scale, undersized, dtype)


@_transform_op.register_fake
def _(
    rewards: torch.Tensor,
    k: int,
    dynamic_k: torch.Tensor | None,
    where: torch.Tensor | None,
    coefficients: Sequence[int],
    coefficients_at_k_1: Sequence[int],
    index_shift: int,
    counted_from_top: bool,
    requires_k_lt_n: bool,
    normalized: bool,
    scale: str,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    return _empty_result(rewards, dtype)


_max_at_k_op = torch.library.custom_op("pkpo_triton::max_at_k", mutates_args=())(_max_at_k)


@_max_at_k_op.register_fake
def _(
    rewards: torch.Tensor, ks: torch.Tensor, where: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    return torch.empty((rewards.shape[0], ks.shape[0]), dtype=dtype, device=rewards.device)
