"""Rows of two distinct values: not sorted but counted, where a whole block consists of them."""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.estimator import ends
from pkpo_triton.layout import over_threads


@triton.jit
def row_ends(samples, irregular, layout: tl.constexpr):
    """Find the smallest and the largest of rows in any order: S × (T,) → two (T,). As
    `estimator.ends`."""
    low = samples[0]
    high = samples[0]
    for c in tl.static_range(1, layout.SAMPLES_PER_THREAD):
        low = tl.minimum(low, samples[c])
        high = tl.maximum(high, samples[c])
    return ends(low, high, irregular, layout)


@triton.jit
def find_two_values(samples, irregular, never, layout: tl.constexpr):
    """Tell whether every row of the block has at most two distinct values, and these: S × (T,) and
    (T,) → () and two (T,). `never` is false, which the compiler does not know."""
    has_two = never
    low, high = samples[0], samples[0]
    if may_have_two_values(samples):
        low, high = row_ends(samples, irregular, layout)
        has_two = has_two_values(samples, low, high, layout)
    return has_two, low, high


@triton.jit
def may_have_two_values(samples):
    """Tell whether in no row of the block the first three samples of a thread differ from each
    other: S × (T,) → ()."""
    a, b, c = samples[0], samples[1], samples[2]
    three = (a != b) & (b != c) & (a != c)
    return tl.max(three.to(tl.int32), 0) == 0


@triton.jit
def has_two_values(samples, low, high, layout: tl.constexpr):
    """Tell whether every row of the block consists of its smallest and its largest reward, and its
    largest is not NaN: S × (T,) and two (T,) → ()."""
    third = tl.zeros(samples[0].shape, tl.int32)
    for c in tl.static_range(layout.SAMPLES_PER_THREAD):
        third = tl.where((samples[c] == low) | (samples[c] == high), third, 1)
    return tl.max(third, 0) == 0


@triton.jit
def count_lower(samples, high, layout: tl.constexpr):
    """Count a row's samples that are not its largest: S × (T,) and (T,) → (T,)."""
    count = tl.zeros([layout.THREADS], tl.int32)
    for c in tl.static_range(layout.SAMPLES_PER_THREAD):
        count += tl.where(samples[c] == high, 1, 0)
    every: tl.constexpr = layout.SAMPLES_PER_THREAD * layout.THREADS_PER_ROW
    return every - over_threads(count, False, layout)


@triton.jit
def order_by_count(n_lower, low, high, thread, layout: tl.constexpr):
    """Put rows of two values in ascending order: three (T,) → S × (T,)."""
    first = n_lower - thread % layout.THREADS_PER_ROW * layout.SAMPLES_PER_THREAD
    ordered = ()
    for c in tl.static_range(layout.SAMPLES_PER_THREAD):
        ordered = ordered + (tl.where(c >= first, high, low),)
    return ordered
