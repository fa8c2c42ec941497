"""The binomial ratios r_j = C(j − INDEX_SHIFT, k−1)/C(n, k) that weigh a sorted row's gaps.

They come from a table where the host knows them and a row lies in several threads; elsewhere they
are a running product downward from j = n−1: r_{j−1} = r_j · (j−INDEX_SHIFT−k+1) / (j−INDEX_SHIFT).
Single ones come from a table of factorials. What tables hold: `pkpo_triton.tables`.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.layout import over_threads
from pkpo_triton.lookup import look_up, look_up_samples, slot
from pkpo_triton.plan import MOST_THREADS_PER_ROW

# What is read in a kernel must be a constexpr.
MOST_THREADS = tl.constexpr(MOST_THREADS_PER_ROW)


class Sizes(NamedTuple):
    """What a row is sampled from. Where its k is not valid the formulas see n=2, k=1, and all
    weights are multiplied with k_is_valid."""

    n: Any  # () or (T,) the row's samples
    k: Any  # () or (T,)
    k_is_valid: Any  # () or (T,) 1.0 or 0.0


class Tables(NamedTuple):
    """Numbers in memory that no reward changes."""

    factorials_ptr: Any  # (2, factorials_size): see `ratio`
    factorials_size: Any
    samples_ptr: Any  # for a row's samples: see `Traits.READY`
    once: Any  # 1, which the compiler does not know: see `look_up`


class Traits(NamedTuple):
    """What a kernel is compiled for of an estimator; constants, to be bound as a `Layout` is."""

    READY: Any  # samples_ptr holds r_j; else 1/(j − INDEX_SHIFT), where threads need them
    INDEX_SHIFT: Any
    RANGE_SCALED: Any  # numbers may overflow on the way to values that do not
    NORMALIZED: Any


@triton.jit
def narrow_k(k):
    """Cut any integers to what 32 bits hold, such that one beyond every row stays so: (…) → (…)."""
    return tl.minimum(tl.maximum(k.to(tl.int64), 0), 1 << 30).to(tl.int32)


@triton.jit
def valid_sizes(n, k, requires_k_lt_n):
    """Tell whether rows of n samples admit their k, () or (T,): `Sizes`."""
    k_is_valid = (k >= 1) & (k <= n - requires_k_lt_n)
    as_factor = tl.where(k_is_valid, 1.0, 0.0).to(tl.float32)
    return Sizes(tl.where(k_is_valid, n, 2), tl.where(k_is_valid, k, 1), as_factor)


@triton.jit
def ratio(i, sizes, tables, layout: tl.constexpr):
    """Compute C(i, k−1)/C(n, k) for integers i ≤ n and 1 ≤ k ≤ n: (T,) → (T,); 0 for i < k−1.

    = k · i! (n−k)! / ((i−k+1)! n!) from a table of factorials j! = mantissa · 65536^exponent: first
    all mantissas, then all exponents.
    """
    every = tl.zeros([layout.THREADS], tl.int32)
    i, n, k = every + i, every + sizes.n, every + sizes.k
    rest = i - k + 1
    i_ptr = tables.factorials_ptr + tl.maximum(i, 0)
    rest_ptr = tables.factorials_ptr + tl.maximum(rest, 0)
    top_ptr, bottom_ptr = tables.factorials_ptr + (n - k), tables.factorials_ptr + n
    i_mantissa = tl.zeros([layout.THREADS], tl.float32)
    rest_mantissa, top, bottom, exponent = i_mantissa, i_mantissa, i_mantissa, i_mantissa
    # As `look_up` does, with all pointers in one loop: the mantissas; then on to the exponents.
    for _ in tl.range(tables.once):
        i_mantissa, rest_mantissa = tl.load(i_ptr), tl.load(rest_ptr)
        top, bottom = tl.load(top_ptr), tl.load(bottom_ptr)
        i_ptr += tables.factorials_size
        rest_ptr += tables.factorials_size
        top_ptr += tables.factorials_size
        bottom_ptr += tables.factorials_size
    for _ in tl.range(tables.once):
        exponent = (tl.load(i_ptr) - tl.load(rest_ptr)) + (tl.load(top_ptr) - tl.load(bottom_ptr))
        i_ptr += tables.factorials_size
        rest_ptr += tables.factorials_size
        top_ptr += tables.factorials_size
        bottom_ptr += tables.factorials_size
    product = k.to(tl.float32) * ((i_mantissa / rest_mantissa) * (top / bottom))
    half = half_power(exponent)
    # At k=1 exactly what an estimator's max coefficient may be, so that the two cancel.
    first = tl.div_rn(k.to(tl.float32), n.to(tl.float32))
    product = tl.where(k == 1, first, product * half * half)
    return tl.where(rest >= 0, product, 0.0)


@triton.jit
def half_power(exponent):
    """Raise 65536 to half of each exponent, a normal number wherever the ratio is one: (…) →
    (…)."""
    half = (tl.maximum(exponent, -15.0) * 8 + 127).to(tl.int32) << 23
    return half.to(tl.float32, bitcast=True)


@triton.jit
def chain_start(sizes, thread, tables, INDEX_SHIFT: tl.constexpr, layout: tl.constexpr):
    """Compute r_j for the last of a thread's samples that is valid, j being its number from 0: ()
    or (T,)."""
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    if layout.THREADS_PER_ROW == 1:
        n, k = sizes.n, sizes.k
        start = tl.div_rn(k.to(tl.float32), n.to(tl.float32))
        if INDEX_SHIFT == 1:
            start = start * ((n - k).to(tl.float32) / tl.maximum(n - 1, 1).to(tl.float32))
        return start
    else:
        last = thread % layout.THREADS_PER_ROW * S + (S - 1)
        return ratio(tl.minimum(last, sizes.n - 1) - INDEX_SHIFT, sizes, tables, layout)


@triton.jit
def inverses(tables, INDEX_SHIFT: tl.constexpr, layout: tl.constexpr):
    """Load 1/(j − INDEX_SHIFT) for a thread's samples, S × (T,), where they differ from thread to
    thread."""
    if layout.THREADS_PER_ROW == 1:
        return ()
    else:
        shifted = tables.samples_ptr + INDEX_SHIFT * layout.SAMPLES_PER_THREAD * MOST_THREADS
        return look_up_samples(shifted, tables.once, MOST_THREADS, layout)


@triton.jit
def chain_next(
    r, c: tl.constexpr, sizes, thread, inverse, INDEX_SHIFT: tl.constexpr, layout: tl.constexpr
):
    """Step from r of a thread's sample c to r of the one before: () or (T,) → the same."""
    first = thread % layout.THREADS_PER_ROW * layout.SAMPLES_PER_THREAD
    if layout.THREADS_PER_ROW == 1:
        before = r * ((c - INDEX_SHIFT + 1.0) - sizes.k.to(r.dtype)) * (1.0 / (c - INDEX_SHIFT))
    else:
        before = r * ((first + (1 - INDEX_SHIFT) - sizes.k).to(r.dtype) + c) * inverse[c]
    # Above the row's valid samples the product waits.
    return tl.where(first + c < sizes.n, before, r) if layout.PARTIAL else before


@triton.jit
def ratios(sizes, thread, start, tables, traits: tl.constexpr, layout: tl.constexpr):
    """Compute r_j of a thread's samples, S × (T,), from r at its last valid one; where a thread has
    a row of its own that of its first is without meaning, as is the gap."""
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    if traits.READY:
        return look_up_samples(tables.samples_ptr, tables.once, layout.THREADS_PER_ROW, layout)
    else:
        FIRST: tl.constexpr = 1 if layout.THREADS_PER_ROW == 1 else 0
        inverse = inverses(tables, traits.INDEX_SHIFT, layout)
        r = start
        out = (r,)
        for back in tl.static_range(S - 1):
            if S - 1 - back > FIRST:
                r = chain_next(r, S - 1 - back, sizes, thread, inverse, traits.INDEX_SHIFT, layout)
            out = (r,) + out
        return out


@triton.jit
def ratio_at(number, sizes, thread, start, tables, traits: tl.constexpr, layout: tl.constexpr):
    """Compute r_j for one sample of each row, by its number j: (T,) → (T,)."""
    S: tl.constexpr = layout.SAMPLES_PER_THREAD
    if traits.READY:
        # A row with a NaN may seem to have no largest.
        thread_of_row, c = number // S % layout.THREADS_PER_ROW, number % S
        offset = slot(thread_of_row, c // 4, c % 4, layout.THREADS_PER_ROW)
        return look_up(tables.samples_ptr + offset, tables.once)
    else:
        weights = ratios(sizes, thread, start, tables, traits, layout)
        c_of_number = number - thread % layout.THREADS_PER_ROW * S
        weight = tl.zeros([layout.THREADS], tl.float32)
        for c in tl.static_range(S):
            weight = tl.where(c_of_number == c, weights[c], weight)
        return over_threads(weight, False, layout)
