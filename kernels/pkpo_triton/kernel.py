"""The entry kernels: sort a row on chip, weigh its gaps, scan them, and put every value back.

The way of the data, in one launch:

    load → sort → gaps · weights → prefix sums → back to the samples' own offsets → store

Which rows lie in how many threads: the table of regimes in `pkpo_triton.plan.plan`; what S, T and a
tile are: `pkpo_triton.layout`. Results are functions of a reward's value alone, so that equal
rewards get equal bits.

What is not valid, because it is left out or because the row is shorter than its threads hold, takes
the value of the row's largest, so that the gaps above are 0. On the way NaN may change which
rewards a row seems to have, but no index leaves its row.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.binomial import (
    Sizes,
    Tables,
    Traits,
    chain_start,
    narrow_k,
    ratio_at,
    ratios,
    valid_sizes,
)
from pkpo_triton.estimator import (
    Weights,
    ends,
    estimator_weights,
    gaps_in_threads,
    offset_sum,
    prefix_sums,
    range_scale,
    std,
    times,
    values,
)
from pkpo_triton.few_levels import count_lower, find_two_values, order_by_count, row_ends
from pkpo_triton.layout import for_threads, layout_of, over_threads, thread_numbers, to_vectors
from pkpo_triton.lookup import find, take
from pkpo_triton.memory import block_of_rows, load, matrix_from_block, store
from pkpo_triton.sort import sort, sort_in_threads, unsort_in_threads


class Rows(NamedTuple):
    """A block of rows, loaded."""

    samples: Any  # S × (T,) what is not valid holds the row's largest
    irregular: Any  # (T,) NaN where a thread has a NaN or an infinity, else 0
    n: Any  # () or (T,) how many of a row's samples are valid
    thread: Any  # (T,) row · THREADS_PER_ROW + thread of the row
    where: Any  # a tile if MASKED


@triton.jit
def load_rows(rewards, where, block, layout: tl.constexpr):
    """Load a block: matrices → `Rows`."""
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    thread = thread_numbers(layout)
    tile = load(rewards, block, layout).to(tl.float32)
    valid_tile = 0
    if layout.MASKED:
        valid_tile = load(where, block, layout) != 0
        tile = tl.where(valid_tile, tile, 0.0)
    samples = to_vectors(tile, layout)
    n = tl.full([], S if layout.THREADS_PER_ROW == 1 else block.n_samples, tl.int32)
    if layout.PARTIAL:
        valid = _valid_samples(valid_tile, thread, block, layout)
        if layout.MASKED:
            n = _count_valid(valid, layout)
        samples = _fill(samples, valid, layout)
    irregular = tl.zeros([layout.THREADS], tl.float32)
    if rewards.ptr.dtype.element_ty.is_floating():
        # Before a network, which may drop a NaN. Of differences there are half as many, and to 8
        # samples a network begins with them. One that overflows makes its row NaN, too, as the
        # row's range does. What fills a row up is infinite only where one of its valid samples is.
        for c in tl.static_range(0, S, 2):
            irregular += (samples[c + 1] - samples[c] if c + 1 < S else samples[c]) * 0.0
    return Rows(samples, irregular, n, thread, valid_tile)


@triton.jit
def _valid_samples(valid_tile, thread, block, layout: tl.constexpr):
    """Tell which of a thread's samples are valid: a tile if MASKED → S × (T,)."""
    valid = ()
    if layout.MASKED:
        bits = to_vectors(valid_tile.to(tl.int8), layout)
        for c in tl.static_range(layout.SAMPLES_PER_THREAD):
            valid = valid + (bits[c] != 0,)
    else:
        V: tl.constexpr = layout.VECTOR
        STEP: tl.constexpr = layout.THREADS_PER_ROW * V
        first = thread % layout.THREADS_PER_ROW * V
        for c in tl.static_range(layout.SAMPLES_PER_THREAD):
            valid = valid + (first + (c // V * STEP + c % V) < block.n_samples,)
    return valid


@triton.jit
def _count_valid(valid, layout: tl.constexpr):
    """Count the valid samples of each row: S × (T,) → (T,)."""
    n = tl.zeros([layout.THREADS], tl.int32)
    for c in tl.static_range(layout.SAMPLES_PER_THREAD):
        n += valid[c].to(tl.int32)
    return over_threads(n, False, layout)


@triton.jit
def _fill(samples, valid, layout: tl.constexpr):
    """Give samples that are not valid the value of their row's largest, 0 where there is none:
    twice S × (T,) → S × (T,)."""
    INF: tl.constexpr = float("inf")
    largest = tl.full([layout.THREADS], -INF, tl.float32)
    for c in tl.static_range(layout.SAMPLES_PER_THREAD):
        largest = tl.maximum(largest, tl.where(valid[c], samples[c], -INF))
    largest = over_threads(largest, True, layout)
    largest = tl.where(largest > -INF, largest, 0.0)
    filled = ()
    for c in tl.static_range(layout.SAMPLES_PER_THREAD):
        filled = filled + (tl.where(valid[c], samples[c], largest),)
    return filled


@triton.jit
def load_k(k, k_ptr, block, K: tl.constexpr, layout: tl.constexpr):
    """Load the rows' k from where K says that it is: () or (T,)."""
    if K == "scalar":
        k = narrow_k(tl.load(k_ptr))
    if K == "row":
        row = tl.arange(0, layout.BLOCK_ROWS)
        k = tl.load(k_ptr + block.first_row + row, mask=row < block.rows_left, other=1)
        k = k.to(tl.int64)
        if layout.THREADS_PER_ROW > 1:
            k = for_threads(k[None, :, None, None], layout)
        k = narrow_k(k)
    return k


@triton.jit
def transform_by_counting(
    rows, low, high, sizes, start, weights, tables, out, block, traits: tl.constexpr,
    layout: tl.constexpr,
):  # fmt: skip
    """Store the values of rows of two values, low and high (T,): how many samples are the lower one
    tells all."""
    n_lower = count_lower(rows.samples, high, layout)
    step = ratio_at(n_lower, sizes, rows.thread, start, tables, traits, layout) * (high - low)
    scale, unscale = range_scale(low, high, traits.RANGE_SCALED)
    weights = times(weights, scale)
    offset = tl.zeros([layout.THREADS], tl.float32)
    if weights.has_offset != 0:
        distance = tl.abs(n_lower.to(tl.float32) - weights.origin)
        offset = (weights.offset + weights.slope * distance) * step
    deviation = high * 0.0
    if traits.NORMALIZED:
        ordered = order_by_count(n_lower, low, high, rows.thread, layout)
        deviation = std(ordered, high, sizes, rows.thread, tables, layout)
    of_each = values((step * 0.0, step), offset, high, deviation, weights, unscale, traits)
    placed = ()
    for c in tl.static_range(layout.SAMPLES_PER_THREAD):
        placed = placed + (tl.where(rows.samples[c] == high, of_each[1], of_each[0]),)
    store(placed, rows.where, out, block, layout)


@triton.jit
def transform_by_sorting(
    rows, sizes, start, weights, tables, out, block, traits: tl.constexpr, layout: tl.constexpr
):
    """Store the values of any rows."""
    if layout.THREADS_PER_ROW == 1:
        ordered, words = sort_in_threads(rows.samples, True, layout)
    else:
        ordered = sort(rows.samples, rows.thread, layout)
        found = find(rows.samples, ordered, rows.thread, layout)
    smallest, largest = ends(
        ordered[0], ordered[layout.SAMPLES_PER_THREAD - 1], rows.irregular, layout
    )
    gaps = gaps_in_threads(ordered, rows.thread, layout)
    ratio = ratios(sizes, rows.thread, start, tables, traits, layout)
    scale, unscale = range_scale(smallest, largest, traits.RANGE_SCALED)
    weights = times(weights, scale)
    offset = tl.zeros([layout.THREADS], tl.float32)
    if weights.has_offset != 0:
        offset = offset_sum(gaps, ratio, weights, rows.thread, layout)
    deviation = largest * 0.0
    if traits.NORMALIZED:
        deviation = std(ordered, largest, sizes, rows.thread, tables, layout)
    sums = prefix_sums(gaps, ratio, rows.thread, layout)
    if layout.THREADS_PER_ROW == 1:
        sums = unsort_in_threads(sums, words, layout)
    else:
        sums = take(sums, found, layout)
    placed = values(sums, offset, largest, deviation, weights, unscale, traits)
    store(placed, rows.where, out, block, layout)


# Another row stride, or a k at another address, is no other kernel.
_ANY_ALIGNMENT = ("rewards_stride_row", "where_stride_row", "out_stride_row")


@triton.jit(
    do_not_specialize=(
        *("factorials_size", "n_rows", "k", "requires_k_lt_n", "undersized", "by_mean"),
        *("has_offset", "counted_from_top"),
    ),
    do_not_specialize_on_alignment=(*_ANY_ALIGNMENT, "k_ptr"),
)
def transform_kernel(
    rewards_ptr, where_ptr, k_ptr, out_ptr, coefficients_ptr, factorials_ptr, samples_ptr,
    factorials_size, n_rows, n_samples, k, requires_k_lt_n, undersized, by_mean, has_offset,
    counted_from_top, rewards_stride_row, rewards_stride_sample, where_stride_row,
    where_stride_sample, out_stride_row, out_stride_sample,
    first_ratio: "fp64", max_coefficient: "fp64", gap: "fp64", offset: "fp64", slope: "fp64",
    K: tl.constexpr, MASKED: tl.constexpr, WEIGHTS: tl.constexpr, INDEX_SHIFT: tl.constexpr,
    RANGE_SCALED: tl.constexpr, NORMALIZED: tl.constexpr, IS_BOOL: tl.constexpr,
    CONTIGUOUS: tl.constexpr, PADDED: tl.constexpr, SAMPLES_PER_THREAD: tl.constexpr,
    THREADS_PER_ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr,
    WARP: tl.constexpr,
):  # fmt: skip
    """Transform one block of rows; the regimes: `pkpo_triton.plan.plan`.

    K says where k is: "int", the argument; "scalar", in memory for all rows; "row", one for each.
    With an int and no mask the estimator's weights come ready, and with them r_{n−1}
    (`first_ratio`); otherwise every row has its own, from coefficients (2, 13).
    WEIGHTS says what samples_ptr holds for each of a row's samples: "ready", its r_j; "chain",
    1/(j − INDEX_SHIFT), where that differs from thread to thread.
    The weights come in float64: read as float32, ptxas (12.8) spills 2 words at 4096 samples.
    undersized: an index into `coefficients.UNDERSIZED`. CONTIGUOUS: rows of exactly S samples, one
    after the other. The other constants: `layout.Layout`, `binomial.Traits`.
    """
    # The plan.
    UNIFORM: tl.constexpr = K == "int" and not MASKED
    layout: tl.constexpr = layout_of(
        SAMPLES_PER_THREAD, THREADS_PER_ROW, BLOCK_ROWS, VECTOR, WARP, CONTIGUOUS, PADDED, MASKED
    )
    traits: tl.constexpr = Traits(
        READY=WEIGHTS == "ready",
        INDEX_SHIFT=INDEX_SHIFT,
        RANGE_SCALED=RANGE_SCALED,
        NORMALIZED=NORMALIZED,
    )
    # The compiler does not know that there are rows: see `lookup.look_up`.
    tables = Tables(factorials_ptr, factorials_size, samples_ptr, (n_rows > 0).to(tl.int32))
    block = block_of_rows(n_rows, n_samples, layout)
    rewards = matrix_from_block(
        rewards_ptr, rewards_stride_row, rewards_stride_sample, block, CONTIGUOUS, layout
    )
    where = rewards
    if MASKED:
        where = matrix_from_block(
            where_ptr, where_stride_row, where_stride_sample, block, CONTIGUOUS, layout
        )
    out = matrix_from_block(out_ptr, out_stride_row, out_stride_sample, block, CONTIGUOUS, layout)

    rows = load_rows(rewards, where, block, layout)  # samples S × (T,), n () or (T,)

    # The estimator for each row's n and k.
    if UNIFORM:
        sizes = Sizes(rows.n, k, tl.full([], 1.0, tl.float32))  # ()
        max_coefficient = tl.full([], max_coefficient, tl.float32)  # ()
        gap = tl.full([], gap, tl.float32)  # ()
        offset = tl.full([], offset, tl.float32)  # ()
        slope = tl.full([], slope, tl.float32)  # ()
        if_invalid = tl.full([], 0.0, tl.float32)  # ()
        factor = tl.full([], 1.0, tl.float32)  # ()
    else:
        k = load_k(k, k_ptr, block, K, layout)  # () or (T,)
        k = tl.where(undersized == 2, tl.minimum(k, rows.n - requires_k_lt_n), k)  # () or (T,)
        sizes = valid_sizes(rows.n, k, requires_k_lt_n)  # () or (T,)
        # each () or (T,)
        max_coefficient, gap, offset, slope = estimator_weights(coefficients_ptr, sizes.n, sizes.k)
        is_zero = (sizes.k_is_valid > 0) | (undersized != 1)  # () or (T,)
        if_invalid = tl.where(is_zero, 0.0, float("nan")).to(tl.float32)  # () or (T,)
        factor = sizes.k_is_valid * tl.where(by_mean != 0, rows.n, 1).to(tl.float32)  # () or (T,)
    origin = (counted_from_top * (sizes.n - 1)).to(tl.float32)  # () or (T,)
    weights = Weights(max_coefficient, gap, offset, slope, origin, has_offset, if_invalid)
    weights = times(weights, factor)  # () or (T,)
    if traits.READY or (UNIFORM and THREADS_PER_ROW == 1):
        start = tl.full([], first_ratio, tl.float32)  # ()
    else:
        start = chain_start(sizes, rows.thread, tables, INDEX_SHIFT, layout)  # () or (T,)
        start = sizes.k_is_valid * start  # () or (T,)

    # Count, or sort.
    if IS_BOOL:
        low, high = row_ends(rows.samples, rows.irregular, layout)  # (T,)
        transform_by_counting(
            rows, low, high, sizes, start, weights, tables, out, block, traits, layout
        )
    elif SAMPLES_PER_THREAD > 8:
        never = block.rows_left < 0  # ()
        # (), (T,), (T,)
        counted, low, high = find_two_values(rows.samples, rows.irregular, never, layout)
        if counted:
            transform_by_counting(
                rows, low, high, sizes, start, weights, tables, out, block, traits, layout
            )
        else:
            transform_by_sorting(rows, sizes, start, weights, tables, out, block, traits, layout)
    else:
        transform_by_sorting(rows, sizes, start, weights, tables, out, block, traits, layout)


@triton.jit
def order(rows, never, IS_BOOL: tl.constexpr, layout: tl.constexpr):
    """Put rows in ascending order, by counting where they have two values: `Rows` → S × (T,)."""
    if IS_BOOL:
        return _order_two_values(rows, layout)
    elif layout.SAMPLES_PER_THREAD <= 8:
        return sort(rows.samples, rows.thread, layout)
    else:
        counted, _, _ = find_two_values(rows.samples, rows.irregular, never, layout)
        if counted:
            ordered = _order_two_values(rows, layout)
        else:
            ordered = sort(rows.samples, rows.thread, layout)
        return ordered


@triton.jit
def _order_two_values(rows, layout: tl.constexpr):
    """Put rows of two values in ascending order: `Rows` → S × (T,)."""
    low, high = row_ends(rows.samples, rows.irregular, layout)
    n_lower = count_lower(rows.samples, high, layout)
    return order_by_count(n_lower, low, high, rows.thread, layout)


@triton.jit(
    do_not_specialize=("factorials_size", "n_rows", "n_ks"),
    do_not_specialize_on_alignment=(*_ANY_ALIGNMENT[:2], "ks_ptr"),
)
def max_at_k_kernel(
    rewards_ptr, where_ptr, ks_ptr, out_ptr, factorials_ptr, samples_ptr, factorials_size,
    n_rows, n_samples, n_ks, rewards_stride_row, rewards_stride_sample, where_stride_row,
    where_stride_sample,
    MASKED: tl.constexpr, IS_BOOL: tl.constexpr, CONTIGUOUS: tl.constexpr, PADDED: tl.constexpr,
    SAMPLES_PER_THREAD: tl.constexpr, THREADS_PER_ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    VECTOR: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    """Compute the mean of the best of k for one block of rows and every k: (n_rows, n_ks), NaN
    where a row has fewer than k samples. The regimes: `pkpo_triton.plan.plan`."""
    # The plan.
    layout: tl.constexpr = layout_of(
        SAMPLES_PER_THREAD, THREADS_PER_ROW, BLOCK_ROWS, VECTOR, WARP, CONTIGUOUS, PADDED, MASKED
    )
    # Weights max_coefficient 1 and slope 1/k, with r_j of an index shift of 1.
    traits: tl.constexpr = Traits(READY=False, INDEX_SHIFT=1, RANGE_SCALED=False, NORMALIZED=False)
    # The compiler does not know that there are rows: see `lookup.look_up`.
    tables = Tables(factorials_ptr, factorials_size, samples_ptr, (n_rows > 0).to(tl.int32))
    block = block_of_rows(n_rows, n_samples, layout)
    rewards = matrix_from_block(
        rewards_ptr, rewards_stride_row, rewards_stride_sample, block, CONTIGUOUS, layout
    )
    where = rewards
    if MASKED:
        where = matrix_from_block(
            where_ptr, where_stride_row, where_stride_sample, block, CONTIGUOUS, layout
        )

    rows = load_rows(rewards, where, block, layout)  # samples S × (T,), n () or (T,)
    ordered = order(rows, block.rows_left < 0, IS_BOOL, layout)  # S × (T,)
    # (T,), (T,)
    _, largest = ends(ordered[0], ordered[SAMPLES_PER_THREAD - 1], rows.irregular, layout)

    gaps = gaps_in_threads(ordered, rows.thread, layout)  # S × (T,)
    zero = tl.zeros([layout.THREADS], tl.float32)  # (T,)
    thread = tl.arange(0, layout.THREADS)  # (T,)
    row = thread // THREADS_PER_ROW  # (T,)
    writes = (row < block.rows_left) & (thread % THREADS_PER_ROW == 0)  # (T,)
    for q in tl.range(n_ks):
        k = narrow_k(tl.load(ks_ptr + q))  # ()
        sizes = valid_sizes(rows.n, k, 0)  # () or (T,)
        start = sizes.k_is_valid * chain_start(sizes, rows.thread, tables, 1, layout)  # () or (T,)
        slope = 1 / sizes.k.to(tl.float32)  # () or (T,)
        weights = Weights(sizes.k_is_valid, zero, zero, slope, zero, 1, zero)  # () or (T,)
        ratio = ratios(sizes, rows.thread, start, tables, traits, layout)  # S × () or (T,)
        offset = offset_sum(gaps, ratio, weights, rows.thread, layout)  # (T,)
        best = (sizes.k_is_valid * largest - offset) + 0.0  # (T,)
        best = tl.where(sizes.k_is_valid > 0, best, float("nan"))  # (T,)
        out = out_ptr + (block.first_row + row) * n_ks + q  # (T,)
        tl.store(out, best.to(out_ptr.dtype.element_ty), mask=writes)
