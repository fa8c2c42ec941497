"""The kernels as torch operators: launched at once in eager mode, opaque to torch.compile.

Nothing here waits for a device.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton

from pkpo_triton import kernels, long_rows, tables
from pkpo_triton.plan import LONGEST_ON_CHIP, OPTIONS, Plan, plan
from pkpo_triton.weights import UNDERSIZED, Weights


def transform(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    weights: Weights,
    *,
    by_mean: bool,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The transform of every row.

    Args:
        rewards: (rows, n) floating, integer or bool, on a GPU, with any strides.
        k: an integer within 1..n−spared, or integers on the same device, () or (rows,), whose
          values may be anything.
        where: (rows, n) bool: which samples are part of their row; the others get 0.
        weights: the estimator.
        by_mean: multiply by the number of the row's samples.
        undersized: what rows get that do not admit their k: "zero", "nan", or "clip" for the
          largest k that they admit.
        dtype: of the result. Computed in float64 where it or the rewards' is, else in float32.

    Returns:
        (rows, n), detached.
    """
    rewards = rewards.detach()
    arguments = (
        rewards,
        k if isinstance(k, int) else 0,
        None if isinstance(k, int) else k,
        where,
        list(weights.form),
        list(weights.form_at_1),
        [weights.lag, weights.mirror, weights.spared, int(weights.standardised)],
        by_mean,
        UNDERSIZED.index(undersized),
        dtype,
    )
    if torch.compiler.is_compiling():
        return _transform_op(*arguments)
    return _transform(*arguments)


def max_at_k(
    rewards: torch.Tensor,
    ks: Sequence[int | torch.Tensor],
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """rewards (rows, n), every k an integer or a () tensor, where (rows, n) bool or None →
    (rows, len(ks)), the mean of the best of k; NaN where a row has fewer than k samples."""
    rewards = rewards.detach()
    if torch.compiler.is_compiling():
        return _max_at_k_op(rewards, _on_device(ks, rewards.device), where, dtype)
    return _max_at_k(rewards, _on_device(ks, rewards.device), where, dtype)


def _transform(
    rewards: torch.Tensor,
    k: int,
    hidden_k: torch.Tensor | None,
    where: torch.Tensor | None,
    form: Sequence[int],
    form_at_1: Sequence[int],
    traits: Sequence[int],
    by_mean: bool,
    undersized: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    lag, mirror, spared, standardised = traits
    weights = Weights(form, form_at_1, lag, mirror, spared, bool(standardised))
    rows, n = rewards.shape
    compute = _compute_dtype(rewards, dtype)
    uniform = hidden_k is None and where is None
    chosen = _plan(rewards, where, dtype, uniform=uniform and not standardised)
    out = _empty_result(rewards, dtype)
    if out.numel() == 0:
        return out
    with _device_of(rewards):
        table = tables.factorials(max(n, LONGEST_ON_CHIP) + 1, rewards.device, compute)
        if chosen is None:
            forms = tables.forms((tuple(form), tuple(form_at_1)), rewards.device, compute)
            return long_rows.transform_long(
                rewards,
                k if hidden_k is None else hidden_k,
                where,
                form=forms,
                lag=lag,
                mirror=mirror,
                spared=spared,
                standardised=weights.standardised,
                by_mean=by_mean,
                undersized=undersized,
                table=table,
                dtype=dtype,
            )
        count_only = rewards.dtype == torch.bool
        rewards, where = _readable(rewards, where, chosen)
        kind = "int" if hidden_k is None else "row" if hidden_k.ndim else "scalar"
        anchor, gap, below, slope, first = 0.0, 0.0, 0.0, 0.0, 0.0
        if uniform:
            times = n if by_mean else 1
            anchor, gap, below, slope = (times * x for x in weights.scalars(n, k))
            first = k / n * ((n - k) / max(n - 1, 1) if lag else 1.0)
        forms = table
        if not uniform:
            forms = tables.forms((tuple(form), tuple(form_at_1)), rewards.device, compute)
        if chosen.weights == "ready":
            of_samples = tables.ratios(n, k, lag, chosen, rewards.device, compute)
        elif chosen.lanes > 1:
            of_samples = tables.inverses(chosen.chunk, rewards.device, compute)
        else:
            of_samples = table
        known_k = k if kind == "int" and UNDERSIZED[undersized] != "clip" else None
        written = out
        if not _read_as_it_lies(out, chosen):
            written = torch.empty((rows, n), dtype=dtype, device=rewards.device)
        kernels.transform_kernel[(triton.cdiv(rows, chosen.block_rows),)](
            rewards,
            where,
            hidden_k,
            written,
            forms,
            table,
            of_samples,
            table.shape[1],
            rows,
            n,
            k,
            spared,
            undersized,
            int(by_mean),
            int(weights.has_constant(known_k)),
            mirror,
            *_strides(rewards, chosen),
            *_strides(where, chosen),
            *_strides(written, chosen),
            first,
            anchor,
            gap,
            below,
            slope,
            K=kind,
            MASKED=where is not None,
            WEIGHTS=chosen.weights,
            LAG=lag,
            SCALED=weights.needs_range_scale(by_mean=by_mean),
            STANDARDISED=weights.standardised,
            **_constants(count_only, n, (rewards, where, written), chosen),
        )
    return out if written is out else out.copy_(written)


def _max_at_k(
    rewards: torch.Tensor, ks: torch.Tensor, where: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    rows, n = rewards.shape
    compute = _compute_dtype(rewards, dtype)
    chosen = _plan(rewards, where, dtype, uniform=False)
    out = torch.empty((rows, ks.shape[0]), dtype=dtype, device=rewards.device)
    if out.numel() == 0:
        return out
    with _device_of(rewards):
        table = tables.factorials(max(n, LONGEST_ON_CHIP) + 1, rewards.device, compute)
        if chosen is None:
            return long_rows.max_at_k_long(
                rewards, list(ks.unbind()), where, table=table, dtype=dtype
            )
        count_only = rewards.dtype == torch.bool
        rewards, where = _readable(rewards, where, chosen)
        kernels.max_at_k_kernel[(triton.cdiv(rows, chosen.block_rows),)](
            rewards,
            where,
            ks,
            out,
            table,
            tables.inverses(chosen.chunk, rewards.device, compute) if chosen.lanes > 1 else table,
            table.shape[1],
            rows,
            n,
            ks.shape[0],
            *_strides(rewards, chosen),
            *_strides(where, chosen),
            MASKED=where is not None,
            **_constants(count_only, n, (rewards, where), chosen),
        )
    return out


def _compute_dtype(rewards: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in (rewards.dtype, dtype) else torch.float32


def _plan(
    rewards: torch.Tensor, where: torch.Tensor | None, dtype: torch.dtype, *, uniform: bool
) -> Plan | None:
    """None for rows that the library sorts."""
    wide = _compute_dtype(rewards, dtype) == torch.float64
    itemsize = max(rewards.element_size(), dtype.itemsize)
    return plan(
        rewards.shape[1],
        itemsize,
        wide=wide,
        masked=where is not None,
        uniform=uniform,
        warp=_warp(),
    )


@functools.cache
def _warp() -> int:
    """Threads that run in step on the GPUs here."""
    if not torch.cuda.is_available():  # where kernels are interpreted
        return 32
    return int(triton.runtime.driver.active.get_current_target().warp_size)


def _empty_result(rewards: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In the layout of the rewards where they lie by samples: both are read and written along."""
    rows, n = rewards.shape
    if rewards.stride(0) == 1 and rewards.stride(1) == rows:
        return torch.empty((n, rows), dtype=dtype, device=rewards.device).t()
    return torch.empty((rows, n), dtype=dtype, device=rewards.device)


def _readable(
    rewards: torch.Tensor, where: torch.Tensor | None, chosen: Plan
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the kernel can read: bytes for bools, and what reaches it in whole sectors."""
    if rewards.dtype == torch.bool:
        rewards = rewards.view(torch.uint8)
    if where is not None:
        where = where.view(torch.uint8)
    if not _read_as_it_lies(rewards, chosen):
        rewards = rewards.contiguous()
    if where is not None and not _read_as_it_lies(where, chosen):
        where = where.contiguous()
    return rewards, where


def _read_as_it_lies(x: torch.Tensor, chosen: Plan) -> bool:
    """Whether that is as fast as a copy: not where a program has few rows, and they are no
    neighbours in memory."""
    return chosen.block_rows >= 8 or x.stride(1) == 1


def _vector(matrices: Sequence[torch.Tensor], chosen: Plan) -> int:
    """Neighbours that a thread can read at a time."""
    vector = chosen.vector
    for x in matrices:
        # What Triton knows of a pointer is whether 16 divides it.
        if x.stride(1) != 1 or x.data_ptr() % 16:
            return 1
        while x.shape[0] > 1 and x.stride(0) % vector:
            vector //= 2
    return vector


def _strides(x: torch.Tensor | None, chosen: Plan) -> tuple[int, int]:
    if x is None:
        return 0, 0
    # The stride of a single row is anyone's guess, and would mean another kernel.
    return (x.stride(0) if x.shape[0] > 1 else x.shape[1]), x.stride(1)


def _constants(
    count_only: bool, n: int, matrices: Sequence[torch.Tensor | None], chosen: Plan
) -> dict[str, Any]:
    given = [matrix for matrix in matrices if matrix is not None]
    return {
        "COUNT_ONLY": count_only,
        "CONTIGUOUS": chosen.lanes == 1 and all(matrix.is_contiguous() for matrix in given),
        "PADDED": chosen.chunk * chosen.lanes > n,
        "CHUNK": chosen.chunk,
        "LANES": chosen.lanes,
        "BLOCK_ROWS": chosen.block_rows,
        "VECTOR": _vector(given, chosen),
        "WARP": chosen.warp,
        "num_warps": chosen.num_warps,
        "num_stages": 1,
        **OPTIONS,
    }


def _on_device(ks: Sequence[int | torch.Tensor], device: torch.device) -> torch.Tensor:
    """All ks as one int64 tensor, without waiting: numbers are filled in on the device."""
    return torch.stack(
        [
            k.to(device=device, dtype=torch.int64)
            if isinstance(k, torch.Tensor)
            else torch.full((), k, dtype=torch.int64, device=device)
            for k in ks
        ]
    )


def _device_of(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Kernels run on the tensor's own device, whichever is the current one."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


_transform_op = torch.library.custom_op("pkpo_triton::transform", mutates_args=())(_transform)
_max_at_k_op = torch.library.custom_op("pkpo_triton::max_at_k", mutates_args=())(_max_at_k)


@_transform_op.register_fake
def _(
    rewards: torch.Tensor,
    k: int,
    hidden_k: torch.Tensor | None,
    where: torch.Tensor | None,
    form: Sequence[int],
    form_at_1: Sequence[int],
    traits: Sequence[int],
    by_mean: bool,
    undersized: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return _empty_result(rewards, dtype)


@_max_at_k_op.register_fake
def _(
    rewards: torch.Tensor, ks: torch.Tensor, where: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    return torch.empty((rewards.shape[0], ks.shape[0]), dtype=dtype, device=rewards.device)
