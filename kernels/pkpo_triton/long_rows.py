"""Rows too long to be sorted on chip: the library's sort, then one launch for all the rest, a
program a row: see `sorted_row`."""

# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from pkpo_triton.coefficients import UNDERSIZED, Estimator
from pkpo_triton.plan import OPTIONS
from pkpo_triton.sorted_row import MOST_K, Kind, Rules, finish_row, load_k

BLOCK = 2048
WARPS = 8


@triton.jit(do_not_specialize=["factorials_size", "n_samples", "k"])
def row_kernel(
    ordered_ptr, offsets_ptr, where_ptr, n_ptr, k_ptr, out_ptr, coefficients_ptr, factorials_ptr,
    factorials_size, n_samples, k, requires_k_lt_n, undersized, by_mean, counted_from_top,
    where_stride_row, where_stride_sample, out_stride_row,
    K: tl.constexpr, MASKED: tl.constexpr, MAX_AT_K: tl.constexpr, INDEX_SHIFT: tl.constexpr,
    NORMALIZED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Finish one sorted row (n_samples,). K says where k is: "int", the argument; "scalar", in
    memory for all rows; "row", one for each."""
    kind: tl.constexpr = Kind(MASKED, MAX_AT_K, INDEX_SHIFT, NORMALIZED, BLOCK)
    row_number = tl.program_id(0).to(tl.int64)  # ()
    n_valid = tl.full([], n_samples, tl.int32)  # ()
    if MASKED:
        n_valid = tl.load(n_ptr + row_number).to(tl.int32)  # ()
        where_ptr += row_number * where_stride_row
    if K == "row":
        k_ptr += row_number
    finish_row(
        ordered_ptr + row_number * n_samples,
        offsets_ptr + row_number * n_samples,
        out_ptr + row_number * out_stride_row,
        where_ptr,
        where_stride_sample,
        n_samples,
        n_valid,
        load_k(k, k_ptr, K),
        1.0,
        Rules(requires_k_lt_n, undersized, by_mean, counted_from_top),
        coefficients_ptr,
        factorials_ptr,
        factorials_size,
        kind,
    )


def transform_long(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    estimator: Estimator,
    *,
    scale: str,
    undersized: str,
    dtype: torch.dtype,
    coefficients: torch.Tensor,
    factorials: torch.Tensor,
) -> torch.Tensor:
    """Transform long rows: (rows, N) → (rows, N); nothing is read on the host.

    The first arguments are those of `launch.transform`.

    Args:
        coefficients: the estimator's, (2, 13), on the device.
        factorials: (2, N + 1 or more), mantissas and exponents from 0! on, on the device.
    """
    out = torch.empty(rewards.shape, dtype=dtype, device=rewards.device)
    _launch(
        _sorted(rewards, where), where, k, out, coefficients, factorials,
        requires_k_lt_n=int(estimator.requires_k_lt_n),
        undersized=UNDERSIZED.index(undersized),
        by_mean=int(scale == "mean"),
        counted_from_top=int(estimator.counted_from_top),
        MAX_AT_K=False,
        INDEX_SHIFT=estimator.index_shift,
        NORMALIZED=estimator.normalized,
    )  # fmt: skip
    return out


def max_at_k_long(
    rewards: torch.Tensor,
    ks: torch.Tensor,
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
    factorials: torch.Tensor,
) -> torch.Tensor:
    """Compute max@k of long rows for each of several k, from one sort: (rows, N), (number of ks,)
    → (rows, number of ks); NaN where the row has fewer samples than k."""
    out = torch.empty((rewards.shape[0], len(ks)), dtype=dtype, device=rewards.device)
    arranged = _sorted(rewards, where)
    for column, k in enumerate(ks.unbind()):
        _launch(
            arranged, where, k, out[:, column], None, factorials,
            requires_k_lt_n=0,
            undersized=UNDERSIZED.index("nan"),
            by_mean=0,
            counted_from_top=0,
            MAX_AT_K=True,
            INDEX_SHIFT=1,
            NORMALIZED=False,
        )  # fmt: skip
    return out


class Sorted(NamedTuple):
    ordered: torch.Tensor  # (rows, N) in ascending order
    offsets: torch.Tensor  # (rows, N) where they stood
    n: torch.Tensor | None  # (rows,) how many samples of each row are valid, None for N


def _sorted(rewards: torch.Tensor, where: torch.Tensor | None) -> Sorted:
    """Sort rows (rows, N) by the library."""
    keys = rewards.detach()
    left_out: float = float("inf")
    if keys.dtype == torch.bool:
        keys, left_out = keys.view(torch.uint8), 2
    elif keys.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        keys = keys.to(torch.float32)
    n = None
    if where is not None:
        keys, n = torch.where(where, keys, left_out), where.sum(-1)
    # What is short sorts in fewer passes, and in the same order.
    ordered, offsets = torch.sort(keys.contiguous(), dim=-1)
    return Sorted(ordered, offsets, n)


def _launch(
    arranged: Sorted,
    where: torch.Tensor | None,
    k: int | torch.Tensor,
    out: torch.Tensor,
    coefficients: torch.Tensor | None,
    factorials: torch.Tensor,
    **operands: Any,
) -> None:
    rows, n_samples = arranged.ordered.shape
    dynamic_k = k.contiguous() if isinstance(k, torch.Tensor) else None
    row_kernel[(rows,)](
        arranged.ordered,
        arranged.offsets,
        None if where is None else where.view(torch.uint8),
        arranged.n,
        dynamic_k,
        out,
        coefficients,
        factorials,
        factorials_size=factorials.shape[-1],
        n_samples=n_samples,
        k=min(max(k, 0), MOST_K) if isinstance(k, int) else 0,
        where_stride_row=0 if where is None else where.stride(0),
        where_stride_sample=0 if where is None else where.stride(1),
        out_stride_row=out.stride(0),
        K="int" if dynamic_k is None else "row" if dynamic_k.ndim else "scalar",
        MASKED=where is not None,
        BLOCK=BLOCK,
        num_warps=WARPS,
        **OPTIONS,
        **operands,
    )
