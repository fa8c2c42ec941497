"""Rows sorted in registers, and what belongs to sorted samples back at their own offsets.

A row in one thread is sorted by a network that keeps its decisions, and goes back by taking them
in reverse. A row in several threads is sorted without keeping anything; its samples are looked up:
see `pkpo_triton.lookup`. The networks: `pkpo_triton.networks`.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.layout import stack, unstack
from pkpo_triton.networks import merge_steps, thread_steps


@triton.jit
def sort(samples, thread, layout: tl.constexpr):
    """Sort rows, S × (T,) → S × (T,) in ascending order, first by thread, then by sample."""
    if layout.THREADS_PER_ROW == 1:
        ordered, _ = sort_in_threads(samples, False, layout)
        return ordered
    else:
        sign = (1 - 2 * (thread & 1)).to(samples[0].dtype)
        negated = ()
        for c in tl.static_range(layout.SAMPLES_PER_THREAD):
            negated = negated + (samples[c] * sign,)
        negated, _ = sort_in_threads(negated, False, layout)
        merged = _merge(stack(negated, layout.SAMPLES_PER_THREAD, layout.THREADS), thread, layout)
        return unstack(merged, layout.SAMPLES_PER_THREAD, layout.THREADS)


@triton.jit
def sort_in_threads(samples, KEEP: tl.constexpr, layout: tl.constexpr):
    """Sort every thread's samples: S × (T,) → the same in ascending order and, to KEEP, the
    decisions that led there, words × (T,)."""
    STEPS: tl.constexpr = thread_steps(layout.SAMPLES_PER_THREAD)
    COUNT: tl.constexpr = len(STEPS)
    t = samples
    words = ()
    word = tl.zeros(t[0].shape, tl.uint32)
    for i in tl.static_range(COUNT):
        a = t[STEPS[i][0]]
        b = t[STEPS[i][1]]
        t = t[: STEPS[i][0]] + (tl.minimum(a, b),) + t[STEPS[i][0] + 1 :]
        t = t[: STEPS[i][1]] + (tl.maximum(a, b),) + t[STEPS[i][1] + 1 :]
        if KEEP:
            # 1 where they were swapped: a sign, which joins the word in one funnel shift.
            word = (word << 1) | ((b - a).to(tl.uint32, bitcast=True) >> 31)
            if STEPS[i][4]:
                words = words + (word,)
                word = tl.zeros(t[0].shape, tl.uint32)
    return t, words


@triton.jit
def unsort_in_threads(values, words, layout: tl.constexpr):
    """Lead what belongs to sorted samples back to the samples' own offsets: S × (T,) and the
    decisions, words × (T,) → S × (T,)."""
    STEPS: tl.constexpr = thread_steps(layout.SAMPLES_PER_THREAD)
    COUNT: tl.constexpr = len(STEPS)
    t = values
    for back in tl.static_range(COUNT):
        swapped = (words[STEPS[COUNT - 1 - back][2]] & STEPS[COUNT - 1 - back][3]) != 0
        a = t[STEPS[COUNT - 1 - back][0]]
        b = t[STEPS[COUNT - 1 - back][1]]
        t = (
            t[: STEPS[COUNT - 1 - back][0]]
            + (tl.where(swapped, b, a),)
            + t[STEPS[COUNT - 1 - back][0] + 1 : STEPS[COUNT - 1 - back][1]]
            + (tl.where(swapped, a, b),)
            + t[STEPS[COUNT - 1 - back][1] + 1 :]
        )
    return t


@triton.jit
def _merge(x, thread, layout: tl.constexpr):
    """Merge sorted threads, every other one negated: (S, T) → sorted rows (S, T)."""
    COMPARE: tl.constexpr = 0
    ACROSS: tl.constexpr = 1
    ACROSS_WARPS: tl.constexpr = 2
    STEPS: tl.constexpr = merge_steps(
        layout.SAMPLES_PER_THREAD, layout.THREADS_PER_ROW, layout.WARP
    )
    COUNT: tl.constexpr = len(STEPS)
    thread_of_row = thread % layout.THREADS_PER_ROW
    for i in tl.static_range(COUNT):
        if STEPS[i][0] == COMPARE:
            a, b = _halves(x, STEPS[i][1])
            x = _whole(tl.minimum(a, b), tl.maximum(a, b), STEPS[i][1])
        elif STEPS[i][0] == ACROSS:
            x = tl.minimum(x, -_from_partner(x, STEPS[i][1]))
        elif STEPS[i][0] == ACROSS_WARPS:
            x = tl.minimum(x, -_from_partner_in_another_warp(x, thread, STEPS[i][1]))
        else:
            x = _negate(x, thread_of_row, STEPS[i][1], STEPS[i][2])
    return x


@triton.jit
def _negate(x, thread_of_row, BIT: tl.constexpr, OTHER: tl.constexpr):
    """Change the sign in threads where two bits differ: (S, T) → (S, T)."""
    sign = 1 - 2 * (((thread_of_row >> BIT) ^ (thread_of_row >> OTHER)) & 1)
    return x * sign.to(x.dtype)[None, :]


@triton.jit
def _halves(x, DISTANCE: tl.constexpr):
    """Part the samples of every pair that lies so far apart: (S, T) → twice (S / 2, T)."""
    S: tl.constexpr = x.shape[0]
    T: tl.constexpr = x.shape[1]
    pairs = tl.reshape(x, [S // (2 * DISTANCE), 2, DISTANCE, T])
    a, b = tl.split(tl.permute(pairs, (0, 2, 3, 1)))
    return tl.reshape(a, [S // 2, T]), tl.reshape(b, [S // 2, T])


@triton.jit
def _whole(a, b, DISTANCE: tl.constexpr):
    """Join what `_halves` parts: twice (S / 2, T) → (S, T)."""
    S: tl.constexpr = 2 * a.shape[0]
    T: tl.constexpr = a.shape[1]
    pairs = tl.reshape(tl.join(a, b), [S // (2 * DISTANCE), DISTANCE, T, 2])
    return tl.reshape(tl.permute(pairs, (0, 3, 1, 2)), [S, T])


@triton.jit
def _from_partner(x, BIT: tl.constexpr):
    """Take what the thread holds whose number differs in one bit: (S, T) → (S, T), a shuffle for
    each of S."""
    S: tl.constexpr = x.shape[0]
    T: tl.constexpr = x.shape[1]
    pairs = tl.reshape(x.to(tl.int32, bitcast=True), [S, T // (2 << BIT), 2, 1 << BIT])
    # Integer sums wrap around: without one's own, exactly the other's is left.
    partner = tl.sum(pairs, axis=2, keep_dims=True) - pairs
    return tl.reshape(partner, [S, T]).to(x.dtype, bitcast=True)


@triton.jit
def _from_partner_in_another_warp(x, thread, BIT: tl.constexpr):
    """As `_from_partner`, by addresses: a sum would have all threads of a warp meet in one bank."""
    S: tl.constexpr = x.shape[0]
    T: tl.constexpr = x.shape[1]
    # Of one dimension, so that the compiler does not lay the tile out anew for every gather.
    partner = tl.arange(0, S)[:, None] * T + (thread ^ (1 << BIT))[None, :]
    return tl.reshape(tl.gather(tl.reshape(x, [S * T]), tl.reshape(partner, [S * T]), 0), [S, T])
