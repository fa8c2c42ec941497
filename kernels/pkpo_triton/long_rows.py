"""Rows too long to be sorted on chip: the library's sort, then one launch for all the rest.

One program takes a sorted row and walks along it, block by block: once for the row's constant, once
more for the prefix scan, whose values it writes straight to the samples' own places. What an
estimator is, and what becomes of NaN, infinities and rewards that are very large: see `kernels`.
There a weight comes from its neighbour; here each stands alone, taken from a table of factorials,
so that an error does not grow along the row.

In the sort samples left out are +inf. They stand behind the row's own n samples, but for a NaN, and
take the value of the largest of these, so that the gaps above are 0.

bool rewards are not sorted: they are read once to be counted, and once more to get their values.
"""

# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from pkpo_triton.kernels import _quotient, _range_scale, _scalars
from pkpo_triton.plan import OPTIONS

BLOCK = 2048
WARPS = 8

UNDERSIZED_NAN = 1

# A k beyond the longest row, as good as any larger one.
MOST = 1 << 30


@triton.jit
def _factorial(i, table_ptr, table_size):
    """i! as mantissa and exponent, for whole numbers i ≥ 0."""
    return tl.load(table_ptr + i), tl.load(table_ptr + table_size + i)


@triton.jit
def _lead(n, k, live, table_ptr, table_size):
    """What the weights of a row have in common, times `live`: see `_ratios`."""
    over, over_exponent = _factorial(n - k, table_ptr, table_size)
    under, under_exponent = _factorial(n, table_ptr, table_size)
    mantissa = live.to(over.dtype) * k.to(over.dtype) * _quotient(over, under)
    # At k=1 exactly what an estimator's anchor may be, so that the two cancel.
    first = live * _quotient(k.to(live.dtype), n.to(live.dtype))
    return mantissa, over_exponent - under_exponent, first


@triton.jit
def _ratios(i, n, k, lead, table_ptr, table_size, DTYPE: tl.constexpr):
    """live · C(i, k−1) / C(n, k) for whole numbers i < n; 0 for i < k−1 and for i ≥ n.

    = live · k · i! (n−k)! / ((i−k+1)! n!) from a table of factorials, mantissa · 65536^exponent:
    first all mantissas, then all exponents.
    """
    mantissa, exponent, first = lead
    inside = (i >= k - 1) & (i < n)
    # The table reaches as far as the row does, and a block may reach further.
    i = tl.where(inside, i, k - 1)
    over, over_exponent = _factorial(i, table_ptr, table_size)
    under, under_exponent = _factorial(i - k + 1, table_ptr, table_size)
    exponent += over_exponent - under_exponent
    # Half the power of 2, which is a normal number wherever the ratio is one.
    if over.dtype == tl.float64:
        half = tl.maximum(exponent, -127.0) * 8 + 1023
        half = (half.to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        half = tl.maximum(exponent, -15.0) * 8 + 127
        half = (half.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    ratio = ((over / under * mantissa) * half * half).to(DTYPE)
    return tl.where(inside, tl.where(k == 1, first, ratio), 0.0)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _values(ordered_ptr, p, n_samples, high):
    """Rewards at places p ≥ −1 of a sorted row, none above high; before the first is the first."""
    x = tl.load(ordered_ptr + tl.maximum(p, 0), mask=p < n_samples, other=float("inf"))
    return tl.minimum(x.to(high.dtype), high)


@triton.jit
def _gaps(ordered_ptr, p, n_samples, high):
    return _values(ordered_ptr, p, n_samples, high) - _values(ordered_ptr, p - 1, n_samples, high)


@triton.jit
def _estimator(
    group, k, k_ptr, row, form_ptr, spared, undersized, by_mean, K: tl.constexpr,
    MAX_AT_K: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A row's n and k, whether it admits them (1 or 0), and the estimator for them."""
    zero = tl.full([], 0.0, DTYPE)
    if K == "int":
        k = tl.full([], k, tl.int32)
    else:
        if K == "row":
            k_ptr += row
        k = tl.minimum(tl.maximum(tl.load(k_ptr).to(tl.int64), 0), 1 << 30).to(tl.int32)
    if undersized == 2:
        k = tl.minimum(k, group - spared)
    admitted = (k >= 1) & (k <= group - spared)
    live = tl.where(admitted, zero + 1, zero)
    # Where no k is admitted the formulas see two samples and k=1, all weights times 0.
    n, k = tl.where(admitted, group, 2), tl.where(admitted, k, 1)
    if MAX_AT_K:
        anchor, gap, below, slope = live, zero, zero, live / k.to(DTYPE)
    else:
        anchor, gap, below, slope = _scalars(form_ptr, n, k, DTYPE)
        times = live * tl.where(by_mean != 0, group, 1).to(DTYPE)
        anchor, gap, below, slope = anchor * times, gap * times, below * times, slope * times
    return n, k, live, anchor, gap, below, slope


@triton.jit(do_not_specialize=["table_size", "n_samples", "k"])
def _counted_row_kernel(
    rewards_ptr, where_ptr, k_ptr, out_ptr, form_ptr, table_ptr, table_size, n_samples, k, spared,
    undersized, by_mean, mirror, rewards_row, rewards_sample, where_row, where_sample, out_row,
    K: tl.constexpr, MASKED: tl.constexpr, MAX_AT_K: tl.constexpr, LAG: tl.constexpr,
    STANDARDISED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of zeros and ones; the arguments are those of `_row_kernel`."""
    row = tl.program_id(0).to(tl.int64)
    rewards_ptr += row * rewards_row
    if MASKED:
        where_ptr += row * where_row
    every = tl.arange(0, BLOCK)
    zero = tl.full([], 0.0, DTYPE)
    nothing = tl.full([], 0.0, tl.float64)

    group = tl.full([], 0, tl.int32)
    ones = tl.full([], 0, tl.int32)
    for start in tl.range(0, n_samples, BLOCK):
        p = (start + every).to(tl.int64)
        own = p < n_samples
        if MASKED:
            own = tl.load(where_ptr + p * where_sample, mask=own, other=0) != 0
        group += tl.sum(own.to(tl.int32), 0)
        ones += tl.sum(tl.load(rewards_ptr + p * rewards_sample, mask=own, other=0).to(tl.int32), 0)
    lower = group - ones
    n, k, live, anchor, gap, below, slope = _estimator(
        group, k, k_ptr, row, form_ptr, spared, undersized, by_mean, K, MAX_AT_K, DTYPE
    )  # fmt: skip
    lead = _lead(n, k, live, table_ptr, table_size)
    otherwise = tl.where((live > 0) | (undersized != 1), 0.0, float("nan")).to(DTYPE)

    # The chances that the best of k is a zero, and a one.
    worst, best = nothing, nothing
    if MAX_AT_K or STANDARDISED:
        for start in tl.range(0, n_samples, BLOCK):
            p = start + every
            chance = _ratios(p, n, k, lead, table_ptr, table_size, DTYPE)
            worst += tl.sum(tl.where(p < lower, chance, 0.0), 0).to(tl.float64)
            best += tl.sum(tl.where(p >= lower, chance, 0.0), 0).to(tl.float64)
    if MAX_AT_K:
        tl.store(out_ptr + row * out_row, best.to(DTYPE) + otherwise)
    else:
        # The only gap there is, if there is one.
        weight = _ratios(lower - LAG, n, k, lead, table_ptr, table_size, DTYPE)
        step = tl.where((lower > 0) & (ones > 0), weight, zero)
        middle = (mirror * (n - 1)).to(DTYPE)
        constant = (below + slope * tl.abs(lower.to(DTYPE) - middle)) * step
        largest = tl.where(ones > 0, zero + 1, zero)
        # Adding 0 turns a −0 into 0.
        of_zero = (anchor * largest - constant) + 0.0 + otherwise
        of_one = gap * step + of_zero
        if STANDARDISED:
            spread = tl.sqrt(worst * best * best + best * worst * worst).to(DTYPE)
            divisor = tl.where(spread > 0, spread, float("inf"))
            of_zero, of_one = of_zero / divisor, of_one / divisor
        out_ptr += row * out_row
        for start in tl.range(0, n_samples, BLOCK):
            p = (start + every).to(tl.int64)
            inside = p < n_samples
            x = tl.load(rewards_ptr + p * rewards_sample, mask=inside, other=0)
            value = tl.where(x != 0, of_one, of_zero)
            if MASKED:
                own = tl.load(where_ptr + p * where_sample, mask=inside, other=0)
                value = tl.where(own != 0, value, 0.0)
            tl.store(out_ptr + p, value, mask=inside)


@triton.jit(do_not_specialize=["table_size", "n_samples", "k"])
def _row_kernel(
    ordered_ptr, places_ptr, where_ptr, group_ptr, k_ptr, out_ptr, form_ptr, table_ptr, table_size,
    n_samples, k, spared, undersized, by_mean, mirror, where_row, where_sample, out_row,
    K: tl.constexpr, MASKED: tl.constexpr, MAX_AT_K: tl.constexpr, LAG: tl.constexpr,
    STANDARDISED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row; DTYPE is what to compute in.

    K says where k is: "int", the argument; "scalar", in memory for all rows; "row", one for each.
    undersized: 0 zero, 1 NaN, 2 clip. MAX_AT_K: a single number for the row, and no form is read.
    """
    row = tl.program_id(0).to(tl.int64)
    ordered_ptr += row * n_samples
    every = tl.arange(0, BLOCK)
    zero = tl.full([], 0.0, DTYPE)
    # What is summed up over blocks: rounding there would add up along a row of a million.
    nothing = tl.full([], 0.0, tl.float64)

    group = tl.full([], n_samples, tl.int32)
    if MASKED:
        group = tl.load(group_ptr + row).to(tl.int32)
    n, k, live, anchor, gap, below, slope = _estimator(
        group, k, k_ptr, row, form_ptr, spared, undersized, by_mean, K, MAX_AT_K, DTYPE
    )  # fmt: skip
    middle = (mirror * (n - 1)).to(DTYPE)
    lead = _lead(n, k, live, table_ptr, table_size)

    low = tl.load(ordered_ptr).to(DTYPE)
    high = tl.load(ordered_ptr + tl.maximum(group - 1, 0)).to(DTYPE)
    # NaN comes last in a sort, behind what is left out too, and infinities come first and last.
    last = tl.load(ordered_ptr + n_samples - 1).to(DTYPE)
    largest = tl.where(last == last, high + (high - low) * 0.0, last)
    scale, unscale = _range_scale(low, high, True)
    anchor, gap, below, slope = anchor * scale, gap * scale, below * scale, slope * scale

    # The row's constant; the mean of the best of k, measured from the largest so that an offset
    # drops out; how far down it can lie.
    constant, mean, reach = nothing, nothing, zero
    if STANDARDISED or ((below != 0) | (slope != 0)):
        for start in tl.range(0, n_samples, BLOCK):
            p = start + every
            ratio = _ratios(p - LAG, n, k, lead, table_ptr, table_size, DTYPE)
            weight = ratio * (below + slope * tl.abs(p.to(DTYPE) - middle))
            gaps = _gaps(ordered_ptr, p, n_samples, high)
            constant += tl.sum(weight * gaps, 0).to(tl.float64)
            if STANDARDISED:
                chance = _ratios(p, n, k, lead, table_ptr, table_size, DTYPE)
                apart = largest - _values(ordered_ptr, p, n_samples, high)
                mean += tl.sum(chance * apart, 0).to(tl.float64)
                reach = tl.maximum(reach, tl.max(tl.where(chance > 0, apart, 0.0), 0))
    otherwise = tl.where((live > 0) | (undersized != 1), 0.0, float("nan")).to(DTYPE)
    # Adding 0 turns a −0 into 0.
    smallest = (anchor * largest - constant.to(DTYPE)) + 0.0 + otherwise

    divisor = zero + 1
    if STANDARDISED:
        down = mean.to(DTYPE)
        # The largest deviation: relative to it, squares neither overflow nor vanish.
        unit = tl.maximum(down, reach - down)
        inverse = tl.where(unit > 0, 1 / tl.where(unit > 0, unit, 1.0), zero)
        variance = nothing
        for start in tl.range(0, n_samples, BLOCK):
            p = start + every
            chance = _ratios(p, n, k, lead, table_ptr, table_size, DTYPE)
            apart = largest - _values(ordered_ptr, p, n_samples, high)
            deviation = tl.where(chance > 0, (down - apart) * inverse, 0.0)
            variance += tl.sum(chance * deviation * deviation, 0).to(tl.float64)
        spread = unit * tl.sqrt(variance).to(DTYPE)
        divisor = tl.where(spread > 0, spread, float("inf"))

    if MAX_AT_K:
        tl.store(out_ptr + row * out_row, smallest * unscale)
    else:
        places_ptr += row * n_samples
        out_ptr += row * out_row
        beneath = nothing  # the sum over all blocks before
        level = zero  # what the sample before has beneath it
        for start in tl.range(0, n_samples, BLOCK):
            p = start + every
            inside = p < n_samples
            ratio = _ratios(p - LAG, n, k, lead, table_ptr, table_size, DTYPE)
            gaps = _gaps(ordered_ptr, p, n_samples, high)
            terms = ratio * gaps
            sums = beneath.to(DTYPE) + tl.cumsum(terms, 0)
            beneath += tl.sum(terms, 0).to(tl.float64)
            # A parallel scan may add in another order from sample to sample. Where there is no gap,
            # carry the sum on; the true sums never fall, so a running maximum does it.
            sums = tl.where(gaps > 0, tl.maximum(sums, level), level)
            sums = tl.associative_scan(sums, 0, _larger)
            level = tl.max(sums, 0)
            value = gap * sums + smallest
            if STANDARDISED:
                value = value / divisor
            value = value * unscale
            place = tl.load(places_ptr + p, mask=inside, other=0)
            if MASKED:
                own = tl.load(where_ptr + row * where_row + place * where_sample, mask=inside)
                value = tl.where(own != 0, value, 0.0)
            tl.store(out_ptr + place, value, mask=inside)


def transform_long(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    *,
    form: torch.Tensor,
    lag: int,
    mirror: int,
    spared: int,
    standardised: bool,
    by_mean: bool,
    undersized: int,
    table: torch.Tensor,
    dtype: torch.dtype,
    block: int = BLOCK,
) -> torch.Tensor:
    """The estimator's values, (rows, N); nothing is read on the host.

    Args:
        rewards: (rows, N).
        k: an integer, or () or (rows,) integers on the device.
        where: (rows, N) bool, or None.
        form, lag, mirror, spared, standardised: the estimator; form is (2, 13).
        by_mean: values times the size of the row's group.
        undersized: 0 zero, 1 NaN, 2 clip.
        table: (2, N + 1 or more), mantissas and exponents of the factorials from 0! on, in float64
            or in what is computed in.
        dtype: of the values.
        block: samples that a program takes at a time, a power of two.
    """
    out = torch.empty(rewards.shape, dtype=dtype, device=rewards.device)
    compute = _compute_dtype(rewards, dtype)
    _launch(
        _arranged(rewards, where, compute), where, k, out, form, table,
        spared=spared, undersized=undersized, by_mean=int(by_mean), mirror=mirror, MAX_AT_K=False,
        LAG=lag, STANDARDISED=standardised, compute=compute, block=block,
    )  # fmt: skip
    return out


def max_at_k_long(
    rewards: torch.Tensor,
    ks: Sequence[int | torch.Tensor],
    where: torch.Tensor | None,
    *,
    table: torch.Tensor,
    dtype: torch.dtype,
    block: int = BLOCK,
) -> torch.Tensor:
    """max@k of (rows, N) rewards for each k, an integer or a () tensor: (rows, len(ks)), from one
    sort; NaN where the row has fewer samples than k. The rest is as in `transform_long`."""
    out = torch.empty((rewards.shape[0], len(ks)), dtype=dtype, device=rewards.device)
    compute = _compute_dtype(rewards, dtype)
    arranged = _arranged(rewards, where, compute)
    for column, k in enumerate(ks):
        _launch(
            arranged, where, k, out[:, column], None, table,
            spared=0, undersized=UNDERSIZED_NAN, by_mean=0, mirror=0, MAX_AT_K=True,
            LAG=1, STANDARDISED=False, compute=compute, block=block,
        )  # fmt: skip
    return out


def _compute_dtype(rewards: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in (dtype, rewards.dtype) else torch.float32


class _Sorted(NamedTuple):
    ordered: torch.Tensor  # (rows, N) keys in ascending order
    places: torch.Tensor  # where they stood
    group: torch.Tensor | None  # (rows,) how many samples each row has of its own


def _arranged(
    rewards: torch.Tensor, where: torch.Tensor | None, compute: torch.dtype
) -> torch.Tensor | _Sorted:
    """What a kernel takes: bool rewards as they are, others sorted."""
    keys = rewards.detach()
    if keys.dtype == torch.bool:
        return keys
    # Short floats sort in fewer passes, and in the same order.
    if keys.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        keys = keys.to(compute)
    group = None
    if where is not None:
        keys, group = torch.where(where, keys, float("inf")), where.sum(-1)
    ordered, places = torch.sort(keys.contiguous(), dim=-1)
    return _Sorted(ordered, places, group)


def _launch(
    arranged: torch.Tensor | _Sorted,
    where: torch.Tensor | None,
    k: int | torch.Tensor,
    out: torch.Tensor,
    form: torch.Tensor | None,
    table: torch.Tensor,
    *,
    compute: torch.dtype,
    block: int,
    **constants: Any,
) -> None:
    rows, n_samples = (arranged.ordered if isinstance(arranged, _Sorted) else arranged).shape
    kind, number, k_tensor = "int", 0, None
    if isinstance(k, torch.Tensor):
        kind, k_tensor = "row" if k.ndim else "scalar", k.contiguous()
    else:
        number = min(max(k, 0), MOST)
    mask = None if where is None else where.view(torch.uint8)
    if isinstance(arranged, _Sorted):
        kernel: Any = _row_kernel
        read: tuple[Any, ...] = (arranged.ordered, arranged.places, mask, arranged.group)
    else:
        kernel, read = _counted_row_kernel, (arranged.view(torch.uint8), mask)
        constants["rewards_row"], constants["rewards_sample"] = arranged.stride()
    kernel[(rows,)](
        *read,
        k_tensor,
        out,
        form,
        table,
        table_size=table.shape[-1],
        n_samples=n_samples,
        k=number,
        where_row=0 if where is None else where.stride(0),
        where_sample=0 if where is None else where.stride(1),
        out_row=out.stride(0),
        K=kind,
        MASKED=where is not None,
        DTYPE=tl.float64 if compute == torch.float64 else tl.float32,
        BLOCK=block,
        num_warps=max(1, min(WARPS, block // 256)),
        **OPTIONS,
        **constants,
    )
