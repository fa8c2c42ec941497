"""Rows too long to be sorted on chip: the library's sort, then one launch for all the rest.

One program takes a sorted row and walks along it, block by block: once for the row's offset, once
more for the prefix sums, whose values it writes straight to the samples' own offsets. What an
estimator is: see `coefficients`; what becomes of NaN, infinities and rewards that are very large:
see `estimator`. There a ratio r_j comes from its neighbour; here each stands alone, taken from a
table of factorials, so that an error does not grow along the row.

In the sort samples left out are +inf, or 2 among bools. They stand behind the row's n valid
samples, but for a NaN, and take the value of the largest of these, so that the gaps above are 0.
"""

# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from pkpo_triton.binomial import half_power, narrow_k, valid_sizes
from pkpo_triton.coefficients import UNDERSIZED, Estimator
from pkpo_triton.estimator import Weights, estimator_weights, range_scale, times
from pkpo_triton.plan import OPTIONS

BLOCK = 2048
WARPS = 8

# A k beyond the longest row, as good as any larger one.
MOST = 1 << 30


class Row(NamedTuple):
    """A sorted row in memory."""

    ptr: Any
    n_samples: Any
    high: Any  # its largest valid reward, or an infinity


class Ratio(NamedTuple):
    """What the ratios of a row have in common: see `_ratios`."""

    n: Any
    k: Any
    mantissa: Any
    exponent: Any
    at_k_1: Any
    factorials_ptr: Any
    factorials_size: Any


@triton.jit
def _factorial(i, factorials_ptr, factorials_size):
    """Load i! as mantissa and exponent, for whole numbers i ≥ 0: () or (BLOCK,) → two of them."""
    return tl.load(factorials_ptr + i), tl.load(factorials_ptr + factorials_size + i)


@triton.jit
def _common_ratio(sizes, factorials_ptr, factorials_size):
    """Compute what the ratios of a row have in common, times k_is_valid: `Ratio`, each ()."""
    over, over_exponent = _factorial(sizes.n - sizes.k, factorials_ptr, factorials_size)
    under, under_exponent = _factorial(sizes.n, factorials_ptr, factorials_size)
    k, n = sizes.k.to(tl.float32), sizes.n.to(tl.float32)
    mantissa = sizes.k_is_valid * k * tl.div_rn(over, under)
    # At k=1 exactly what an estimator's max coefficient may be, so that the two cancel.
    at_k_1 = sizes.k_is_valid * tl.div_rn(k, n)
    exponent = over_exponent - under_exponent
    return Ratio(sizes.n, sizes.k, mantissa, exponent, at_k_1, factorials_ptr, factorials_size)


@triton.jit
def _ratios(i, common):
    """Compute C(i, k−1) / C(n, k), times k_is_valid, for whole numbers i < n: (BLOCK,) → (BLOCK,);
    0 for i < k−1 and for i ≥ n.

    = k · i! (n−k)! / ((i−k+1)! n!) from a table of factorials, mantissa · 65536^exponent: first
    all mantissas, then all exponents.
    """
    k = common.k
    inside = (i >= k - 1) & (i < common.n)
    # The table reaches as far as the row does, and a block may reach further.
    i = tl.where(inside, i, k - 1)
    over, over_exponent = _factorial(i, common.factorials_ptr, common.factorials_size)
    under, under_exponent = _factorial(i - k + 1, common.factorials_ptr, common.factorials_size)
    half = half_power(common.exponent + (over_exponent - under_exponent))
    ratio = (over / under * common.mantissa) * half * half
    return tl.where(inside, tl.where(k == 1, common.at_k_1, ratio), 0.0)


@triton.jit
def _larger(a, b):
    """Take the larger of two."""
    return tl.maximum(a, b)


@triton.jit
def _rewards(row, i):
    """Load the rewards number i ≥ −1 of a sorted row, none above row.high; in front of the first
    stands the first, and row.high behind the last: (BLOCK,) → (BLOCK,)."""
    pointers, inside = row.ptr + tl.maximum(i, 0), i < row.n_samples
    if row.ptr.dtype.element_ty.is_floating():
        x = tl.load(pointers, mask=inside, other=float("inf"))
    else:
        x = tl.load(pointers, mask=inside, other=2)
    return tl.minimum(x.to(tl.float32), row.high)


@triton.jit
def _gaps(row, i):
    """Compute the gaps between the rewards number i of a sorted row and those in front: (BLOCK,) →
    (BLOCK,)."""
    return _rewards(row, i) - _rewards(row, i - 1)


class Rules(NamedTuple):
    """How a row is transformed, as numbers."""

    requires_k_lt_n: Any
    undersized: Any  # an index into `coefficients.UNDERSIZED`
    by_mean: Any
    counted_from_top: Any


class Kind(NamedTuple):
    """What a kernel is compiled for; constants, to be bound as a `layout.Layout` is."""

    MASKED: Any
    MAX_AT_K: Any  # a single number for the row, and no coefficients are read
    INDEX_SHIFT: Any
    NORMALIZED: Any
    BLOCK: Any


@triton.jit
def load_k(k, k_ptr, K: tl.constexpr):
    """Load k from where K says that it is: "int", the argument; else in memory → ()."""
    if K == "int":
        return tl.full([], k, tl.int32)
    else:
        return narrow_k(tl.load(k_ptr))


@triton.jit
def finish_row(
    ordered_ptr, offsets_ptr, out_ptr, where_ptr, where_stride, n_samples, n_valid, k, factor,
    rules, coefficients_ptr, factorials_ptr, factorials_size, kind: tl.constexpr,
):  # fmt: skip
    """Store the values of one sorted row (n_samples,), times a factor, at its samples' offsets,
    BLOCK at a time."""
    every = tl.arange(0, kind.BLOCK)  # (BLOCK,)
    zero = tl.full([], 0.0, tl.float32)  # ()
    # What is summed up over blocks: rounding there would add up along a row of a million.
    nothing = tl.full([], 0.0, tl.float64)  # ()

    # The estimator for the row's n and k.
    if rules.undersized == 2:
        k = tl.minimum(k, n_valid - rules.requires_k_lt_n)  # ()
    sizes = valid_sizes(n_valid, k, rules.requires_k_lt_n)  # ()
    is_zero = (sizes.k_is_valid > 0) | (rules.undersized != 1)  # ()
    if_invalid = tl.where(is_zero, 0.0, float("nan")).to(tl.float32)  # ()
    origin = (rules.counted_from_top * (sizes.n - 1)).to(tl.float32)  # ()
    if kind.MAX_AT_K:
        slope = 1 / sizes.k.to(tl.float32)  # ()
        weights = Weights(zero + 1, zero, zero, slope, origin, 1, if_invalid)  # ()
        weights = times(weights, sizes.k_is_valid)  # ()
    else:
        max_coefficient, gap, offset, slope = estimator_weights(
            coefficients_ptr, sizes.n, sizes.k
        )  # ()
        weights = Weights(max_coefficient, gap, offset, slope, origin, 1, if_invalid)  # ()
        by_size = tl.where(rules.by_mean != 0, n_valid, 1).to(tl.float32)  # ()
        weights = times(weights, sizes.k_is_valid * by_size)  # ()
    common = _common_ratio(sizes, factorials_ptr, factorials_size)  # ()

    low = tl.load(ordered_ptr).to(tl.float32)  # ()
    high = tl.load(ordered_ptr + tl.maximum(n_valid - 1, 0)).to(tl.float32)  # ()
    row = Row(ordered_ptr, n_samples, high)
    # NaN comes last in a sort, behind what is left out too, and infinities come first and last.
    last = tl.load(ordered_ptr + n_samples - 1).to(tl.float32)  # ()
    largest = tl.where(last == last, high + (high - low) * 0.0, last)  # ()
    scale, unscale = range_scale(low, high, True)  # ()
    weights = times(weights, scale)  # ()

    # The row's offset; the mean of the best of k, measured down from the largest so that a common
    # offset drops out; how far down it can lie.
    offset_sum, mean, reach = nothing, nothing, zero  # ()
    if kind.NORMALIZED or ((weights.offset != 0) | (weights.slope != 0)):
        for start in tl.range(0, n_samples, kind.BLOCK):
            i = start + every  # (BLOCK,)
            ratios = _ratios(i - kind.INDEX_SHIFT, common)  # (BLOCK,)
            distance = tl.abs(i.to(tl.float32) - weights.origin)  # (BLOCK,)
            terms = ratios * (weights.offset + weights.slope * distance) * _gaps(row, i)  # (BLOCK,)
            offset_sum += tl.sum(terms, 0).to(tl.float64)  # ()
            if kind.NORMALIZED:
                chance = _ratios(i, common)  # (BLOCK,)
                below = largest - _rewards(row, i)  # (BLOCK,)
                mean += tl.sum(chance * below, 0).to(tl.float64)  # ()
                reach = tl.maximum(reach, tl.max(tl.where(chance > 0, below, 0.0), 0))  # ()
    # Adding 0 turns a −0 into 0.
    smallest = weights.max_coefficient * largest - offset_sum.to(tl.float32)  # ()
    smallest = smallest + 0.0 + weights.if_invalid  # ()

    divisor = zero + 1  # ()
    if kind.NORMALIZED:
        mean_below = mean.to(tl.float32)  # ()
        # The largest deviation: relative to it, squares neither overflow nor vanish.
        unit = tl.maximum(mean_below, reach - mean_below)  # ()
        divided_by = tl.where(unit > 0, unit, 1.0)  # () whose inverse may be infinite
        variance = nothing  # ()
        for start in tl.range(0, n_samples, kind.BLOCK):
            i = start + every  # (BLOCK,)
            chance = _ratios(i, common)  # (BLOCK,)
            below = largest - _rewards(row, i)  # (BLOCK,)
            relative = (mean_below - below) / divided_by  # (BLOCK,)
            relative = tl.where(chance > 0, relative, 0.0)  # (BLOCK,)
            variance += tl.sum(chance * relative * relative, 0).to(tl.float64)  # ()
        std = unit * tl.sqrt(variance).to(tl.float32)  # ()
        divisor = tl.where(std > 0, std, float("inf"))  # ()

    if kind.MAX_AT_K:
        tl.store(out_ptr, smallest * unscale)
    else:
        before = nothing  # () the sum over all blocks before
        level = zero  # () the prefix sum of the sample before
        for start in tl.range(0, n_samples, kind.BLOCK):
            i = start + every  # (BLOCK,)
            inside = i < n_samples  # (BLOCK,)
            gaps = _gaps(row, i)  # (BLOCK,)
            terms = _ratios(i - kind.INDEX_SHIFT, common) * gaps  # (BLOCK,)
            sums = before.to(tl.float32) + tl.cumsum(terms, 0)  # (BLOCK,)
            before += tl.sum(terms, 0).to(tl.float64)  # ()
            # A parallel scan may add in another order from sample to sample. Where there is no gap,
            # carry the sum on; the true sums never fall, so a running maximum does it.
            sums = tl.where(gaps > 0, tl.maximum(sums, level), level)  # (BLOCK,)
            sums = tl.associative_scan(sums, 0, _larger)  # (BLOCK,)
            level = tl.max(sums, 0)  # ()
            value = weights.gap * sums + smallest  # (BLOCK,)
            if kind.NORMALIZED:
                value = value / divisor  # (BLOCK,)
            value = value * unscale * factor  # (BLOCK,)
            offsets = tl.load(offsets_ptr + i, mask=inside, other=0)  # (BLOCK,)
            if kind.MASKED:
                valid = tl.load(where_ptr + offsets * where_stride, mask=inside)
                value = tl.where(valid != 0, value, 0.0)  # (BLOCK,)
            tl.store(out_ptr + offsets, value, mask=inside)


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
        k=min(max(k, 0), MOST) if isinstance(k, int) else 0,
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
