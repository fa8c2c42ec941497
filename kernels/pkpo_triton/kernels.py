"""Sort a row on chip, weigh its gaps, scan them, and put every value back: one launch.

A row of n samples lies in LANES threads, CHUNK samples in each. A vector here is one value a
thread, of shape (T,) with T = BLOCK_ROWS · LANES threads; a tuple of CHUNK vectors is a block of
rows. The way of the data:

    load → sort → gaps · weights → prefix scan → back to the samples' own places → store

A row in one thread is sorted by a network that keeps its decisions, and goes back by taking them
in reverse. A row in several threads is sorted without keeping anything: results are functions of
the reward's value alone, so every sample looks its own reward up in the sorted row, by halving.

What an estimator gives the i-th smallest of a row's rewards g_(1) ≤ … ≤ g_(n), with gaps
d_j = g_(j+1) − g_(j), is

    anchor · g_(n) − Σ_j (below + slope · |j − mirror·(n−1)|) · r_j · d_j + gap · Σ_{j<i} r_j · d_j

where r_j = C(j−LAG, k−1) / C(n, k). These scalars are all that a kernel knows of an estimator. r_j
comes from a table where the host knows it and a row lies in several threads; elsewhere it is a
running product downward from j = n−1: r_{j−1} = r_j · (j−LAG−k+1) / (j−LAG).

Rows of two different rewards are not sorted but counted, where a whole block consists of them.
A row with a NaN or an infinity, or whose range overflows, becomes NaN through what is added to its
largest: 0·x for each of its rewards, and 0·(largest − smallest). On the way NaN may change which
rewards such a row seems to have, but no index leaves its row.
What is not a row's own, because it is left out or because the row is shorter than its threads
hold, takes the value of its largest, so that the gaps above are 0. Equal rewards get equal bits:
a gap of 0 adds nothing to a sum, and equal rewards are found in the same place.
"""

# Triton compiles these functions; to a type checker they are no Python.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.networks import chunk_steps, merge_steps, padded


@triton.jit
def _unstack(x, N: tl.constexpr, T: tl.constexpr):
    """(N, T) → a tuple of N vectors."""
    if N == 1:
        return (tl.reshape(x, [T]),)
    else:
        # Off the highest bit of the sample's number: every thread keeps what it holds.
        first, second = tl.split(tl.permute(tl.reshape(x, [2, N // 2, T]), (1, 2, 0)))
        return _unstack(first, N // 2, T) + _unstack(second, N // 2, T)


@triton.jit
def _stack(t, N: tl.constexpr, T: tl.constexpr):
    """A tuple of N vectors → (N, T)."""
    if N == 1:
        return tl.reshape(t[0], [1, T])
    else:
        halves = tl.join(_stack(t[: N // 2], N // 2, T), _stack(t[N // 2 :], N // 2, T))
        return tl.reshape(tl.permute(halves, (2, 0, 1)), [N, T])


@triton.jit
def _of_partner(x, BIT: tl.constexpr):
    """(M, T): what the thread holds whose lane differs in one bit. A shuffle for each of M."""
    M: tl.constexpr = x.shape[0]
    T: tl.constexpr = x.shape[1]
    if x.dtype.primitive_bitwidth == 64:
        bits = x.to(tl.int64, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True)
    pairs = tl.reshape(bits, [M, T // (2 << BIT), 2, 1 << BIT])
    # Integer sums wrap around: without one's own, exactly the other's is left.
    partner = tl.sum(pairs, axis=2, keep_dims=True) - pairs
    return tl.reshape(partner, [M, T]).to(x.dtype, bitcast=True)


@triton.jit
def _of_partner_in_another_warp(x, thread, BIT: tl.constexpr):
    """As `_of_partner`, by addresses: a sum would have all lanes of a warp meet in one bank."""
    M: tl.constexpr = x.shape[0]
    T: tl.constexpr = x.shape[1]
    # Of one dimension, so that the compiler does not lay the tile out anew for every gather.
    partner = tl.arange(0, M)[:, None] * T + (thread ^ (1 << BIT))[None, :]
    return tl.reshape(tl.gather(tl.reshape(x, [M * T]), tl.reshape(partner, [M * T]), 0), [M, T])


@triton.jit
def _halves(x, DISTANCE: tl.constexpr):
    """(M, T) → the samples of every pair that lies so far apart, twice (M / 2, T)."""
    M: tl.constexpr = x.shape[0]
    T: tl.constexpr = x.shape[1]
    pairs = tl.reshape(x, [M // (2 * DISTANCE), 2, DISTANCE, T])
    a, b = tl.split(tl.permute(pairs, (0, 2, 3, 1)))
    return tl.reshape(a, [M // 2, T]), tl.reshape(b, [M // 2, T])


@triton.jit
def _whole(a, b, DISTANCE: tl.constexpr):
    """The inverse of `_halves`."""
    M: tl.constexpr = 2 * a.shape[0]
    T: tl.constexpr = a.shape[1]
    pairs = tl.reshape(tl.join(a, b), [M // (2 * DISTANCE), DISTANCE, T, 2])
    return tl.reshape(tl.permute(pairs, (0, 3, 1, 2)), [M, T])


@triton.jit
def _over_lanes(x, MAX: tl.constexpr, LANES: tl.constexpr, T: tl.constexpr):
    """The sum or the maximum over the lanes of every row, in each of them."""
    if LANES > 1:
        rows = tl.reshape(x, [T // LANES, LANES])
        joined = tl.max(rows, 1, keep_dims=True) if MAX else tl.sum(rows, 1, keep_dims=True)
        x = tl.reshape(tl.broadcast_to(joined, [T // LANES, LANES]), [T])
    return x


@triton.jit
def _of_lane_in_front(x, first, thread, LANES: tl.constexpr):
    """What the lane in front holds; `first` for a row's first."""
    in_front = tl.gather(x, tl.maximum(thread - 1, 0), 0)
    return tl.where(thread % LANES == 0, first, in_front)


@triton.jit
def _decision(difference):
    """1 where a difference is negative: its sign, which joins a word in one funnel shift."""
    if difference.dtype.primitive_bitwidth == 64:
        return (difference.to(tl.uint64, bitcast=True) >> 63).to(tl.uint32)
    else:
        return difference.to(tl.uint32, bitcast=True) >> 31


@triton.jit
def _sort_chunks(t, CHUNK: tl.constexpr, KEEP: tl.constexpr):
    """Every thread's samples in ascending order and, to KEEP, the decisions that led there, in
    words."""
    STEPS: tl.constexpr = chunk_steps(CHUNK)
    COUNT: tl.constexpr = len(STEPS)
    words = ()
    word = tl.zeros(t[0].shape, tl.uint32)
    for i in tl.static_range(COUNT):
        a = t[STEPS[i][0]]
        b = t[STEPS[i][1]]
        t = t[: STEPS[i][0]] + (tl.minimum(a, b),) + t[STEPS[i][0] + 1 :]
        t = t[: STEPS[i][1]] + (tl.maximum(a, b),) + t[STEPS[i][1] + 1 :]
        if KEEP:
            word = (word << 1) | _decision(b - a)
            if STEPS[i][4]:
                words = words + (word,)
                word = tl.zeros(t[0].shape, tl.uint32)
    return t, words


@triton.jit
def _unsort_chunks(t, words, CHUNK: tl.constexpr):
    """What belongs to the sorted samples → to the samples' own places."""
    STEPS: tl.constexpr = chunk_steps(CHUNK)
    COUNT: tl.constexpr = len(STEPS)
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
def _turned(x, lane, BIT: tl.constexpr, OTHER: tl.constexpr):
    sign = 1 - 2 * (((lane >> BIT) ^ (lane >> OTHER)) & 1)
    return x * sign.to(x.dtype)[None, :]


@triton.jit
def _merge(x, thread, LANES: tl.constexpr, WARP: tl.constexpr):
    """(CHUNK, T) sorted chunks, every other one turned → sorted rows."""
    COMPARE: tl.constexpr = 0
    ACROSS: tl.constexpr = 1
    ACROSS_WARPS: tl.constexpr = 2
    STEPS: tl.constexpr = merge_steps(x.shape[0], LANES, WARP)
    COUNT: tl.constexpr = len(STEPS)
    lane = thread % LANES
    for i in tl.static_range(COUNT):
        if STEPS[i][0] == COMPARE:
            a, b = _halves(x, STEPS[i][1])
            x = _whole(tl.minimum(a, b), tl.maximum(a, b), STEPS[i][1])
        elif STEPS[i][0] == ACROSS:
            x = tl.minimum(x, -_of_partner(x, STEPS[i][1]))
        elif STEPS[i][0] == ACROSS_WARPS:
            x = tl.minimum(x, -_of_partner_in_another_warp(x, thread, STEPS[i][1]))
        else:
            x = _turned(x, lane, STEPS[i][1], STEPS[i][2])
    return x


@triton.jit
def _sort(t, thread, CHUNK: tl.constexpr, LANES: tl.constexpr, WARP: tl.constexpr, T: tl.constexpr):
    """The rows in ascending order."""
    if LANES == 1:
        t, _ = _sort_chunks(t, CHUNK, False)
        return t
    else:
        sign = (1 - 2 * (thread & 1)).to(t[0].dtype)
        turned = ()
        for c in tl.static_range(CHUNK):
            turned = turned + (t[c] * sign,)
        t, _ = _sort_chunks(turned, CHUNK, False)
        return _unstack(_merge(_stack(t, CHUNK, T), thread, LANES, WARP), CHUNK, T)


@triton.jit
def _flat(t, CHUNK: tl.constexpr, T: tl.constexpr):
    """A tuple of CHUNK vectors → (CHUNK · T,), whose place c·T + thread is sample c's."""
    return tl.reshape(_stack(t, CHUNK, T), [CHUNK * T])


@triton.jit
def _find(t, ordered, thread, CHUNK: tl.constexpr, LANES: tl.constexpr, T: tl.constexpr):
    """Where in `_flat(ordered)` each sample's own reward stands first: (CHUNK · T,).

    A row's sample in place lane·CHUNK + c of its order lies at c·T + lane from the row's first
    thread on. The bits of that place are found one by one, the highest first: a bit is 1 where the
    last sample of the half beneath is still smaller. Neighbouring rows lie in other banks.
    """
    x, keys = _flat(t, CHUNK, T), _flat(ordered, CHUNK, T)
    first = (thread - thread % LANES)[None, :]
    at = tl.reshape(tl.broadcast_to(first, [CHUNK, T]), [CHUNK * T])
    for bit in tl.static_range(LANES.bit_length() - 1):
        # The last of a thread's samples alone: a gather stores all of what it reads from.
        probe = at + ((LANES >> (bit + 1)) - 1)
        at = tl.where(tl.gather(ordered[CHUNK - 1], probe, 0) < x, at + (LANES >> (bit + 1)), at)
    for bit in tl.static_range(CHUNK.bit_length() - 1):
        probe = at + ((CHUNK >> (bit + 1)) - 1) * T
        at = tl.where(tl.gather(keys, probe, 0) < x, at + (CHUNK >> (bit + 1)) * T, at)
    return at


@triton.jit
def _look_up(pointers, once):
    """What lies there. Pointers that a loop carries, and be it once, the compiler takes as they
    are; for computed ones it walks all that hangs together with them, which is the network."""
    value = tl.zeros(pointers.shape, pointers.dtype.element_ty)
    for _ in tl.range(once):
        value = tl.load(pointers)
        pointers += 16  # so that they stay as aligned as they are
    return value


@triton.jit
def _quotient(a, b):
    """a / b, correctly rounded."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def _ratio(i, n, k, table_ptr, table_size, once, T: tl.constexpr):
    """C(i, k−1) / C(n, k) for integers i ≤ n and 1 ≤ k ≤ n, a vector; 0 for i < k−1.

    = k · i! (n−k)! / ((i−k+1)! n!) from a table of factorials j! = mantissa · 65536^exponent: first
    all mantissas, then all exponents.
    """
    DTYPE: tl.constexpr = table_ptr.dtype.element_ty
    every = tl.zeros([T], tl.int32)
    i, n, k = every + i, every + n, every + k
    rest = i - k + 1
    inside = rest >= 0
    i_ptr, rest_ptr = table_ptr + tl.maximum(i, 0), table_ptr + tl.maximum(rest, 0)
    top_ptr, bottom_ptr = table_ptr + (n - k), table_ptr + n
    i_mantissa = tl.zeros([T], DTYPE)
    rest_mantissa, top, bottom, exponent = i_mantissa, i_mantissa, i_mantissa, i_mantissa
    # As `_look_up` does, with all pointers in one loop: the mantissas; then on to the exponents.
    for _ in tl.range(once):
        i_mantissa, rest_mantissa = tl.load(i_ptr), tl.load(rest_ptr)
        top, bottom = tl.load(top_ptr), tl.load(bottom_ptr)
        i_ptr += table_size
        rest_ptr += table_size
        top_ptr += table_size
        bottom_ptr += table_size
    for _ in tl.range(once):
        exponent = (tl.load(i_ptr) - tl.load(rest_ptr)) + (tl.load(top_ptr) - tl.load(bottom_ptr))
        i_ptr += table_size
        rest_ptr += table_size
        top_ptr += table_size
        bottom_ptr += table_size
    ratio = k.to(DTYPE) * ((i_mantissa / rest_mantissa) * (top / bottom))
    # Half the power of 2, which is a normal number wherever the ratio is one.
    if tl.float64 == DTYPE:
        half = (tl.maximum(exponent, -127.0) * 8 + 1023).to(tl.int64) << 52
    else:
        half = (tl.maximum(exponent, -15.0) * 8 + 127).to(tl.int32) << 23
    half = half.to(DTYPE, bitcast=True)
    # At k=1 exactly what an estimator's anchor may be, so that the two cancel.
    ratio = tl.where(k == 1, _quotient(k.to(DTYPE), n.to(DTYPE)), ratio * half * half)
    return tl.where(inside, ratio, 0.0)


@triton.jit
def _scalars(form_ptr, n, k, DTYPE: tl.constexpr):
    """An estimator's anchor, gap, below and slope for rows of n samples: see
    `pkpo_triton.weights.Weights`."""
    first = k == 1
    f = ()
    for i in tl.static_range(13):
        f = f + (tl.where(first, tl.load(form_ptr + 13 + i), tl.load(form_ptr + i)).to(DTYPE),)
    n, k = n.to(DTYPE), k.to(DTYPE)
    others, rest = tl.maximum(n - 1, 1), tl.maximum(n - k, 1)
    under = (1 + f[0] * (k - 1)) * (1 + f[1] * (rest - 1)) * (1 + f[2] * (others - 1))
    gap = (f[3] + f[4] * k + f[5] * n + f[6] * (n * (n - 1))) / under
    below = (f[7] + f[8] * k) / under
    slope = (f[9] + f[10] * n) / under
    anchor = f[11] + f[12] * _quotient(k, n * (1 + f[2] * (others - 1)))
    return anchor, gap, below, slope


@triton.jit
def _chain_start(
    n, k, lane, table_ptr, table_size, once, LAG: tl.constexpr, CHUNK: tl.constexpr,
    LANES: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """r_j at the last of a thread's samples that is its row's own, j being its place from 0."""
    DTYPE: tl.constexpr = table_ptr.dtype.element_ty
    if LANES == 1:
        start = _quotient(k.to(DTYPE), n.to(DTYPE))
        if LAG == 1:
            start = start * ((n - k).to(DTYPE) / tl.maximum(n - 1, 1).to(DTYPE))
        return start
    else:
        last = tl.minimum(lane * CHUNK + (CHUNK - 1), n - 1)
        return _ratio(last - LAG, n, k, table_ptr, table_size, once, T)


@triton.jit
def _slot(lane, block, neighbour, STRIDE: tl.constexpr):
    """Where a table of `weights.in_slots` holds the number of a thread's sample
    4 · block + neighbour: a thread reads four at a time, and the next thread the next four."""
    return (block * STRIDE + lane) * 4 + neighbour


@triton.jit
def _of_samples(
    table_ptr, once, STRIDE: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """A table's numbers for a thread's samples, the same in every row: a tuple of vectors."""
    # In the shape of a tile of rewards, so that the compiler gives it the same layout.
    lanes = tl.arange(0, LANES)[:, None, None, None]
    blocks = tl.arange(0, CHUNK // 4)[None, None, :, None]
    neighbours = tl.arange(0, 4)[None, None, None, :]
    pointers = table_ptr + _slot(lanes, blocks, neighbours, STRIDE)
    pointers = tl.broadcast_to(pointers, [LANES, T // LANES, CHUNK // 4, 4])
    return _to_vectors(_look_up(pointers, once), CHUNK, LANES, T)


@triton.jit
def _inverses(
    sample_ptr, once, LAG: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr, T: tl.constexpr
):
    """1/(j − LAG) for a thread's samples, where they differ from thread to thread."""
    if LANES == 1:
        return ()
    else:
        return _of_samples(sample_ptr + LAG * CHUNK * 256, once, 256, CHUNK, LANES, T)


@triton.jit
def _chain_next(
    r, c: tl.constexpr, n, k, lane, inverses, LAG: tl.constexpr, CHUNK: tl.constexpr,
    LANES: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """r of the sample in place c of its thread → r of the one beneath."""
    if LANES == 1:
        beneath = r * ((c - LAG + 1.0) - k.to(r.dtype)) * (1.0 / (c - LAG))
    else:
        first = (lane * CHUNK + (1 - LAG) - k).to(r.dtype)
        beneath = r * (first + c) * inverses[c]
    # Above its row's own samples the run waits.
    return tl.where(lane * CHUNK + c < n, beneath, r) if PARTIAL else beneath


@triton.jit
def _constant(
    terms, lane, below, slope, middle, CHUNK: tl.constexpr, LANES: tl.constexpr, T: tl.constexpr
):
    """Sorted rows' r_j · d_j → Σ (below + slope · |j − middle|) · r_j · d_j of each."""
    constant = tl.zeros_like(terms[0])
    place = (lane * CHUNK).to(constant.dtype)
    for c in tl.static_range(CHUNK):
        constant += (below + slope * tl.abs(place + c - middle)) * terms[c]
    return _over_lanes(constant, False, LANES, T)


@triton.jit
def _weights(
    n, k, thread, start, sample_ptr, once, WEIGHTS: tl.constexpr, LAG: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr, PARTIAL: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """r of a thread's samples, a tuple of vectors; where a thread has a row of its own, that of its
    first is without meaning, as is the gap."""
    if WEIGHTS == "ready":
        return _of_samples(sample_ptr, once, LANES, CHUNK, LANES, T)
    else:
        FIRST: tl.constexpr = 1 if LANES == 1 else 0
        lane = thread % LANES
        inverses = _inverses(sample_ptr, once, LAG, CHUNK, LANES, T)
        r = start
        weights = (r,)
        for back in tl.static_range(CHUNK - 1):
            if CHUNK - 1 - back > FIRST:
                r = _chain_next(
                    r, CHUNK - 1 - back, n, k, lane, inverses, LAG, CHUNK, LANES, PARTIAL
                )  # fmt: skip
            weights = (r,) + weights
        return weights


@triton.jit
def _terms(
    t, n, k, thread, start, sample_ptr, once, WEIGHTS: tl.constexpr, LAG: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr, PARTIAL: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Sorted rows → r_j · d_j for each sample and the one beneath."""
    weights = _weights(
        n, k, thread, start, sample_ptr, once, WEIGHTS, LAG, CHUNK, LANES, PARTIAL, T
    )
    if LANES == 1:
        terms = (tl.zeros([T], t[0].dtype),)
    else:
        terms = (weights[0] * (t[0] - _of_lane_in_front(t[CHUNK - 1], t[0], thread, LANES)),)
    for c in tl.static_range(1, CHUNK):
        terms = terms + (weights[c] * (t[c] - t[c - 1]),)
    return terms


@triton.jit
def _weight_at(
    place, n, k, thread, start, sample_ptr, once, WEIGHTS: tl.constexpr, LAG: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr, PARTIAL: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """r of the one sample in that place of each row, counted from 0: `_terms` for a single gap."""
    if WEIGHTS == "ready":
        # A row with a NaN may seem to have no largest.
        lane, c = place // CHUNK % LANES, place % CHUNK
        return _look_up(sample_ptr + _slot(lane, c // 4, c % 4, LANES), once)
    else:
        weights = _weights(
            n, k, thread, start, sample_ptr, once, WEIGHTS, LAG, CHUNK, LANES, PARTIAL, T
        )
        own = place - thread % LANES * CHUNK
        weight = tl.zeros([T], sample_ptr.dtype.element_ty)
        for c in tl.static_range(CHUNK):
            weight = tl.where(own == c, weights[c], weight)
        return _over_lanes(weight, False, LANES, T)


@triton.jit
def _sums(terms, thread, CHUNK: tl.constexpr, LANES: tl.constexpr, T: tl.constexpr):
    """What each of the sorted samples has beneath it: Σ r_j d_j."""
    total = terms[0]
    sums = (total,)
    for c in tl.static_range(1, CHUNK):
        total = total + terms[c]
        sums = sums + (total,)
    if LANES > 1:
        through = tl.cumsum(tl.reshape(total, [T // LANES, LANES]), 1)
        base = _of_lane_in_front(tl.reshape(through, [T]), 0.0, thread, LANES)
        local = sums
        sums = ()
        for c in tl.static_range(CHUNK):
            sums = sums + (base + local[c],)
    return sums


@triton.jit
def _spread(
    t, largest, n, k, thread, live, table_ptr, table_size, sample_ptr, once,
    CHUNK: tl.constexpr, LANES: tl.constexpr, PARTIAL: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Sorted rows → the deviation of the best of k, exactly 0 where only equals can be it."""
    DTYPE: tl.constexpr = sample_ptr.dtype.element_ty
    # The chance to be the best of k, of the sample in place j from 0, is C(j, k−1) / C(n, k).
    lane = thread % LANES
    top = live * _chain_start(n, k, lane, table_ptr, table_size, once, 0, CHUNK, LANES, T)
    inverses = _inverses(sample_ptr, once, 0, CHUNK, LANES, T)
    # How far the mean of the best lies below the largest: measured from there, an offset drops out.
    lead = tl.zeros([T], DTYPE)
    unit = tl.zeros([T], DTYPE)
    spread = tl.zeros([T], DTYPE)
    for turn in tl.static_range(3):
        chance = top
        for back in tl.static_range(CHUNK):
            own = chance > 0
            if PARTIAL:
                own = own & (lane * CHUNK + (CHUNK - 1 - back) < n)
            apart = largest - t[CHUNK - 1 - back]
            deviation = tl.where(own, lead - apart, 0.0)
            if turn == 0:
                lead += tl.where(own, chance * apart, 0.0)
            elif turn == 1:
                unit = tl.maximum(unit, tl.abs(deviation))
            else:
                # Relative to the largest, squares neither overflow nor vanish.
                deviation = deviation / tl.where(unit > 0, unit, 1.0)
                spread += chance * (deviation * deviation)
            if back < CHUNK - 1:
                chance = _chain_next(
                    chance, CHUNK - 1 - back, n, k, lane, inverses, 0, CHUNK, LANES, PARTIAL
                )  # fmt: skip
        if turn == 0:
            lead = _over_lanes(lead, False, LANES, T)
        elif turn == 1:
            unit = _over_lanes(unit, True, LANES, T)
    return unit * tl.sqrt(_over_lanes(spread, False, LANES, T))


@triton.jit
def _places(
    stride_row, stride_sample, FLAT: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Where a block's samples lie from the block's beginning on, in the shape of a tile.

    FLAT: (BLOCK_ROWS · CHUNK,). One thread a row: (BLOCK_ROWS, padded CHUNK). Several:
    (LANES, BLOCK_ROWS, CHUNK / VECTOR, VECTOR), so that every thread reads VECTOR neighbours at a
    time, and what it reads is what it sorts.
    """
    if FLAT:
        return tl.arange(0, BLOCK_ROWS * CHUNK)
    else:
        # Added up in 64 bits, what differs from sample to sample of a thread is an instruction's
        # immediate offset.
        rows, samples = _rows_and_samples(tl.int64, CHUNK, LANES, BLOCK_ROWS, VECTOR)
        return rows * stride_row + samples * stride_sample


@triton.jit
def _rows_and_samples(
    INT: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    if LANES == 1:
        rows = tl.arange(0, BLOCK_ROWS).to(INT)[:, None]
        samples = tl.arange(0, padded(CHUNK)).to(INT)[None, :]
    else:
        rows = tl.arange(0, BLOCK_ROWS).to(INT)[None, :, None, None]
        lanes = tl.arange(0, LANES).to(INT)[:, None, None, None]
        blocks = tl.arange(0, CHUNK // VECTOR).to(INT)[None, None, :, None]
        neighbours = tl.arange(0, VECTOR).to(INT)[None, None, None, :]
        samples = lanes * VECTOR + blocks * (LANES * VECTOR) + neighbours
    return rows, samples


@triton.jit
def _inside(
    rows_left, n_samples, FLAT: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
    LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Which places of a tile there are."""
    if FLAT:
        return tl.arange(0, BLOCK_ROWS * CHUNK) < rows_left * CHUNK
    else:
        rows, samples = _rows_and_samples(tl.int32, CHUNK, LANES, BLOCK_ROWS, VECTOR)
        if LANES == 1:
            return (rows < rows_left) & (samples < CHUNK)
        elif PADDED:
            return (rows < rows_left) & (samples < n_samples)
        else:
            return tl.broadcast_to(rows < rows_left, [LANES, BLOCK_ROWS, CHUNK // VECTOR, VECTOR])


@triton.jit
def _load(
    block_ptr, stride_row, stride_sample, rows_left, n_samples, FLAT: tl.constexpr,
    PADDED: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """A tile, 0 where there is nothing."""
    pointers = block_ptr + _places(
        stride_row, stride_sample, FLAT, CHUNK, LANES, BLOCK_ROWS, VECTOR
    )  # fmt: skip
    if LANES > 1:
        inside = _inside(
            rows_left, n_samples, FLAT, PADDED, CHUNK, LANES, BLOCK_ROWS, VECTOR
        )  # fmt: skip
        return tl.load(pointers, mask=inside, other=0)
    else:
        return _load_whole(pointers, rows_left, FLAT, CHUNK, BLOCK_ROWS)


@triton.jit
def _load_whole(
    pointers, rows_left, FLAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK_ROWS: tl.constexpr
):  # fmt: skip
    """Every block but the last is full, and needs no masks. One of two loops runs, once: with
    pointers that a loop carries, the compiler does not walk the whole network for this access."""
    x = tl.zeros(pointers.shape, pointers.dtype.element_ty)
    full = 0
    if FLAT:
        full = (rows_left == BLOCK_ROWS).to(tl.int32)
        whole = pointers
        for _ in tl.range(full):
            x = tl.load(whole)
            whole += BLOCK_ROWS * CHUNK
    for _ in tl.range(1 - full):
        x = _load_inside(pointers, rows_left, FLAT, CHUNK, BLOCK_ROWS)
        pointers += BLOCK_ROWS * CHUNK
    return x


@triton.jit
def _load_inside(
    pointers, rows_left, FLAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK_ROWS: tl.constexpr
):  # fmt: skip
    inside = _inside(rows_left, CHUNK, FLAT, False, CHUNK, 1, BLOCK_ROWS, 1)
    return tl.load(pointers, mask=inside, other=0)


@triton.jit
def _store(
    t, valid, block_ptr, stride_row, stride_sample, rows_left, n_samples, FLAT: tl.constexpr,
    PADDED: tl.constexpr, MASKED: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Vectors → a tile in memory, 0 for samples left out."""
    pointers = block_ptr + _places(
        stride_row, stride_sample, FLAT, CHUNK, LANES, BLOCK_ROWS, VECTOR
    )  # fmt: skip
    tile = _from_vectors(t, FLAT, CHUNK, LANES, BLOCK_ROWS, VECTOR)
    if MASKED:
        tile = tl.where(valid, tile, 0.0)
    tile = tile.to(pointers.dtype.element_ty)
    if LANES > 1:
        inside = _inside(
            rows_left, n_samples, FLAT, PADDED, CHUNK, LANES, BLOCK_ROWS, VECTOR
        )  # fmt: skip
        tl.store(pointers, tile, mask=inside)
    else:
        _store_whole(pointers, tile, rows_left, FLAT, CHUNK, BLOCK_ROWS)


@triton.jit
def _store_whole(
    pointers, tile, rows_left, FLAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK_ROWS: tl.constexpr
):  # fmt: skip
    """As `_load_whole` does."""
    full = 0
    if FLAT:
        full = (rows_left == BLOCK_ROWS).to(tl.int32)
        whole = pointers
        for _ in tl.range(full):
            tl.store(whole, tile)
            whole += BLOCK_ROWS * CHUNK
    for _ in tl.range(1 - full):
        _store_inside(pointers, tile, rows_left, FLAT, CHUNK, BLOCK_ROWS)
        pointers += BLOCK_ROWS * CHUNK


@triton.jit
def _store_inside(
    pointers, tile, rows_left, FLAT: tl.constexpr, CHUNK: tl.constexpr, BLOCK_ROWS: tl.constexpr
):  # fmt: skip
    inside = _inside(rows_left, CHUNK, FLAT, False, CHUNK, 1, BLOCK_ROWS, 1)
    tl.store(pointers, tile, mask=inside)


@triton.jit
def _to_vectors(x, CHUNK: tl.constexpr, LANES: tl.constexpr, T: tl.constexpr):
    if LANES == 1:
        x = tl.trans(tl.reshape(x, [T, padded(CHUNK)]))
        return _unstack(x, padded(CHUNK), T)[:CHUNK]
    else:
        return _unstack(tl.reshape(tl.permute(x, (2, 3, 1, 0)), [CHUNK, T]), CHUNK, T)


@triton.jit
def _from_vectors(
    t, FLAT: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    if LANES == 1:
        filled = t + (t[0],) * (padded(CHUNK) - CHUNK)
        tile = tl.trans(_stack(filled, padded(CHUNK), BLOCK_ROWS))
        return tl.reshape(tile, [BLOCK_ROWS * CHUNK]) if FLAT else tile
    else:
        tile = _stack(t, CHUNK, BLOCK_ROWS * LANES)
        tile = tl.reshape(tile, [CHUNK // VECTOR, VECTOR, BLOCK_ROWS, LANES])
        return tl.permute(tile, (3, 2, 0, 1))


@triton.jit
def _own(
    valid, thread, n_samples, PADDED: tl.constexpr, MASKED: tl.constexpr, CHUNK: tl.constexpr,
    LANES: tl.constexpr, VECTOR: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Which of a thread's samples are its row's own: a tuple of vectors, empty if all are."""
    own = ()
    if MASKED:
        bits = _to_vectors(valid.to(tl.int8), CHUNK, LANES, T)
        for c in tl.static_range(CHUNK):
            own = own + (bits[c] != 0,)
    elif PADDED:
        first = thread % LANES * VECTOR
        for c in tl.static_range(CHUNK):
            own = own + (first + (c // VECTOR * (LANES * VECTOR) + c % VECTOR) < n_samples,)
    return own


@triton.jit
def _for_threads(
    tile, CHUNK: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr
):
    """What depends on row and lane alone, (LANES or 1, BLOCK_ROWS or 1, 1, 1) → a vector.

    It takes the way of the rewards, so that the compiler sees the same layout and converts nothing.
    """
    tile = tl.broadcast_to(tile, [LANES, BLOCK_ROWS, CHUNK // VECTOR, VECTOR])
    return _to_vectors(tile, CHUNK, LANES, BLOCK_ROWS * LANES)[0]


@triton.jit
def _thread(
    CHUNK: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr
):
    """Every thread's number, row · LANES + lane; 0 where a thread has a row of its own, and nobody
    asks."""
    if LANES == 1:
        return tl.zeros([BLOCK_ROWS], tl.int32)
    else:
        lanes = tl.arange(0, LANES)[:, None, None, None]
        rows = tl.arange(0, BLOCK_ROWS)[None, :, None, None]
        return _for_threads(rows * LANES + lanes, CHUNK, LANES, BLOCK_ROWS, VECTOR)


@triton.jit
def _group(
    own, n_samples, MASKED: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """How many samples a row has: a number, or a vector where they are masked."""
    group = tl.full([], CHUNK if LANES == 1 else n_samples, tl.int32)
    if MASKED:
        group = tl.zeros([T], tl.int32)
        for c in tl.static_range(CHUNK):
            group += own[c].to(tl.int32)
        group = _over_lanes(group, False, LANES, T)
    return group


@triton.jit
def _irregular(x, CHUNK: tl.constexpr, FLOATING: tl.constexpr):
    """Σ 0·x over a thread's samples: NaN where one is NaN or infinite, else 0. What fills a row up
    is infinite only where one of its own is. Taken before a network, which may drop a NaN."""
    irregular = tl.zeros(x[0].shape, x[0].dtype)
    if FLOATING:
        for c in tl.static_range(CHUNK):
            irregular += x[c] * 0.0
    return irregular


@triton.jit
def _ends(low, high, irregular, LANES: tl.constexpr, T: tl.constexpr):
    """Smallest and largest of what the lanes of every row hold; the largest is NaN where the row
    has a NaN or an infinity, or where its range overflows."""
    if LANES > 1:
        # A maximum over lanes drops a NaN, but never an infinity.
        high = tl.where(irregular == 0, high, float("inf"))
    else:
        high += irregular
    low, high = -_over_lanes(-low, True, LANES, T), _over_lanes(high, True, LANES, T)
    return low, high + (high - low) * 0.0


@triton.jit
def _may_have_two_levels(t, CHUNK: tl.constexpr):
    """Whether in no row of the block the first three samples of a thread differ from each other."""
    three = (t[0] != t[1]) & (t[1] != t[2]) & (t[0] != t[2])
    return tl.max(three.to(tl.int32), 0) == 0


@triton.jit
def _fill(t, own, CHUNK: tl.constexpr, LANES: tl.constexpr, T: tl.constexpr):
    """Samples that are not the row's own take the value of its largest, 0 where there is none."""
    INF: tl.constexpr = float("inf")
    largest = tl.full([T], -INF, t[0].dtype)
    for c in tl.static_range(CHUNK):
        largest = tl.maximum(largest, tl.where(own[c], t[c], -INF))
    largest = _over_lanes(largest, True, LANES, T)
    largest = tl.where(largest > -INF, largest, 0.0)
    filled = ()
    for c in tl.static_range(CHUNK):
        filled = filled + (tl.where(own[c], t[c], largest),)
    return filled


@triton.jit
def _range(t, irregular, CHUNK: tl.constexpr, LANES: tl.constexpr, T: tl.constexpr):
    """`_ends` of rows in any order."""
    low = t[0]
    high = t[0]
    for c in tl.static_range(1, CHUNK):
        low = tl.minimum(low, t[c])
        high = tl.maximum(high, t[c])
    return _ends(low, high, irregular, LANES, T)


@triton.jit
def _range_scale(low, high, SCALED: tl.constexpr):
    """What a row's estimator is multiplied with, so that nothing overflows on the way to its
    values, and what these are: 1 but for rewards almost as large as they get. There it is 2^−24 and
    2^24, which outweighs the length of any row; less would lose what is small in such a row."""
    if SCALED:
        LARGE: tl.constexpr = 2.0**900 if low.dtype == tl.float64 else 2.0**100
        large = tl.maximum(tl.abs(low), tl.abs(high)) > LARGE
        scale = tl.where(large, 2.0**-24, 1.0).to(low.dtype)
        unscale = tl.where(large, 2.0**24, 1.0).to(low.dtype)
    else:
        scale = tl.full([], 1.0, low.dtype)
        unscale = scale
    return scale, unscale


@triton.jit
def _has_two_levels(t, low, high, CHUNK: tl.constexpr):
    """Whether every row of the block consists of its smallest and its largest reward, and its
    largest is not NaN."""
    third = tl.zeros(t[0].shape, tl.int32)
    for c in tl.static_range(CHUNK):
        third = tl.where((t[c] == low) | (t[c] == high), third, 1)
    return tl.max(third, 0) == 0


@triton.jit
def _number_of_lower(t, high, CHUNK: tl.constexpr, LANES: tl.constexpr, T: tl.constexpr):
    """How many of a row's samples are not its largest."""
    count = tl.zeros([T], tl.int32)
    for c in tl.static_range(CHUNK):
        count += tl.where(t[c] == high, 1, 0)
    return CHUNK * LANES - _over_lanes(count, False, LANES, T)


@triton.jit
def _ordered_by_count(lower, low, high, thread, CHUNK: tl.constexpr, LANES: tl.constexpr):
    """Rows of two levels in ascending order."""
    first = lower - thread % LANES * CHUNK
    ordered = ()
    for c in tl.static_range(CHUNK):
        ordered = ordered + (tl.where(c >= first, high, low),)
    return ordered


@triton.jit
def _values(
    sums, constant, largest, spread, anchor, gap, otherwise, unscale, SCALED: tl.constexpr,
    STANDARDISED: tl.constexpr,
):  # fmt: skip
    """What samples have beneath them → the estimator's values, both tuples."""
    # Adding 0 turns a −0 into 0.
    smallest = (anchor * largest - constant) + 0.0 + otherwise
    divisor = tl.where(spread > 0, spread, float("inf"))
    values = ()
    for c in tl.static_range(len(sums)):
        value = gap * sums[c] + smallest
        if STANDARDISED:
            value = value / divisor
        values = values + (value * unscale if SCALED else value,)
    return values


@triton.jit
def _by_counting(
    t, low, high, n, k, thread, live, start, below, slope, middle, has_constant, table_ptr,
    table_size, sample_ptr, once, anchor, gap, otherwise, valid, out_ptr, out_row, out_sample,
    rows_left, n_samples, WEIGHTS: tl.constexpr, LAG: tl.constexpr, SCALED: tl.constexpr,
    FLAT: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr, STANDARDISED: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Store the outcome for rows of two levels: how many samples are the lower one tells all."""
    T: tl.constexpr = BLOCK_ROWS * LANES
    lower = _number_of_lower(t, high, CHUNK, LANES, T)
    weight = _weight_at(
        lower, n, k, thread, start, sample_ptr, once, WEIGHTS, LAG, CHUNK, LANES,
        MASKED or PADDED, T,
    )  # fmt: skip
    step = weight * (high - low)
    scale, unscale = _range_scale(low, high, SCALED)
    anchor, gap, below, slope = anchor * scale, gap * scale, below * scale, slope * scale
    constant = tl.zeros([T], table_ptr.dtype.element_ty)
    if has_constant != 0:
        constant = (below + slope * tl.abs(lower.to(constant.dtype) - middle)) * step
    spread = high * 0.0
    if STANDARDISED:
        ordered = _ordered_by_count(lower, low, high, thread, CHUNK, LANES)
        spread = _spread(
            ordered, high, n, k, thread, live, table_ptr, table_size, sample_ptr, once, CHUNK,
            LANES, MASKED or PADDED, T,
        )  # fmt: skip
    bottom = _values(
        (step * 0.0, step), constant, high, spread, anchor, gap, otherwise, unscale, SCALED,
        STANDARDISED,
    )  # fmt: skip
    out = ()
    for c in tl.static_range(CHUNK):
        out = out + (tl.where(t[c] == high, bottom[1], bottom[0]),)
    _store(
        out, valid, out_ptr, out_row, out_sample, rows_left, n_samples, FLAT, PADDED, MASKED,
        CHUNK, LANES, BLOCK_ROWS, VECTOR,
    )  # fmt: skip


@triton.jit
def _by_sorting(
    t, irregular, n, k, thread, live, start, below, slope, middle, has_constant, table_ptr,
    table_size, sample_ptr, once, anchor, gap, otherwise, valid, out_ptr, out_row, out_sample,
    rows_left, n_samples, WEIGHTS: tl.constexpr, LAG: tl.constexpr, SCALED: tl.constexpr,
    FLAT: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr, STANDARDISED: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr,
    WARP: tl.constexpr,
):  # fmt: skip
    """Store the outcome for any rows."""
    T: tl.constexpr = BLOCK_ROWS * LANES
    if LANES == 1:
        ordered, words = _sort_chunks(t, CHUNK, True)
    else:
        ordered = _sort(t, thread, CHUNK, LANES, WARP, T)
        at = _find(t, ordered, thread, CHUNK, LANES, T)
    smallest, largest = _ends(ordered[0], ordered[CHUNK - 1], irregular, LANES, T)
    terms = _terms(
        ordered, n, k, thread, start, sample_ptr, once, WEIGHTS, LAG, CHUNK, LANES,
        MASKED or PADDED, T,
    )  # fmt: skip
    scale, unscale = _range_scale(smallest, largest, SCALED)
    anchor, gap, below, slope = anchor * scale, gap * scale, below * scale, slope * scale
    constant = tl.zeros([T], table_ptr.dtype.element_ty)
    if has_constant != 0:
        constant = _constant(terms, thread % LANES, below, slope, middle, CHUNK, LANES, T)
    spread = largest * 0.0
    if STANDARDISED:
        spread = _spread(
            ordered, largest, n, k, thread, live, table_ptr, table_size, sample_ptr, once, CHUNK,
            LANES, MASKED or PADDED, T,
        )  # fmt: skip
    placed = _sums(terms, thread, CHUNK, LANES, T)
    if LANES == 1:
        placed = _unsort_chunks(placed, words, CHUNK)
    else:
        found = tl.gather(_flat(placed, CHUNK, T), at, 0)
        placed = _unstack(tl.reshape(found, [CHUNK, T]), CHUNK, T)
    out = _values(
        placed, constant, largest, spread, anchor, gap, otherwise, unscale, SCALED, STANDARDISED
    )
    _store(
        out, valid, out_ptr, out_row, out_sample, rows_left, n_samples, FLAT, PADDED, MASKED,
        CHUNK, LANES, BLOCK_ROWS, VECTOR,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=(
        *("table_size", "n_rows", "k", "spared", "undersized", "by_mean", "has_constant"),
        "mirror",
    )
)
def transform_kernel(
    rewards_ptr, where_ptr, k_ptr, out_ptr, form_ptr, table_ptr, sample_ptr, table_size,
    n_rows, n_samples, k, spared, undersized, by_mean, has_constant, mirror,
    rewards_row, rewards_sample, where_row, where_sample, out_row, out_sample,
    first: "fp64", anchor: "fp64", gap: "fp64", below: "fp64", slope: "fp64",
    K: tl.constexpr, MASKED: tl.constexpr, WEIGHTS: tl.constexpr, LAG: tl.constexpr,
    SCALED: tl.constexpr, STANDARDISED: tl.constexpr,
    COUNT_ONLY: tl.constexpr, CONTIGUOUS: tl.constexpr, PADDED: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr, VECTOR: tl.constexpr,
    WARP: tl.constexpr,
):  # fmt: skip
    """One block of rows.

    K says where k is: "int", the argument; "scalar", in memory for all rows; "row", one for each.
    With an int and no mask the estimator's scalars come ready, and with them r_{n−1} (`first`);
    otherwise every row has its own.
    WEIGHTS says what sample_ptr holds for each of a row's samples: "ready", its r_j; "chain",
    1/(j − LAG), where that differs from thread to thread.
    undersized: 0 zero, 1 NaN, 2 clip. SCALED: a value is not a product alone, see
    `Weights.needs_range_scale`. COUNT_ONLY: bool rewards.
    CONTIGUOUS: rows of exactly CHUNK samples, one after the other. PADDED: rows of n_samples, fewer
    than their threads hold. WARP: threads that run in step.
    """
    DTYPE: tl.constexpr = table_ptr.dtype.element_ty
    T: tl.constexpr = BLOCK_ROWS * LANES
    UNIFORM: tl.constexpr = K == "int" and not MASKED
    PARTIAL: tl.constexpr = MASKED or PADDED
    FLAT: tl.constexpr = CONTIGUOUS and padded(CHUNK) == CHUNK
    if CONTIGUOUS:
        rewards_row, rewards_sample = CHUNK, 1
        where_row, where_sample = CHUNK, 1
        out_row, out_sample = CHUNK, 1
    elif LANES > 1:
        # As they are, but so that the compiler sees it.
        rewards_row, where_row = rewards_row // VECTOR * VECTOR, where_row // VECTOR * VECTOR
        out_row, n_samples = out_row // VECTOR * VECTOR, n_samples // VECTOR * VECTOR

    # Always 1, which the compiler does not know: see `_look_up`.
    once = (n_rows > 0).to(tl.int32)

    # Load.
    block = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    rows_left = tl.minimum(n_rows - block, BLOCK_ROWS).to(tl.int32)
    thread = _thread(CHUNK, LANES, BLOCK_ROWS, VECTOR)
    rewards_ptr += block * rewards_row
    out_ptr += block * out_row
    x = _load(
        rewards_ptr, rewards_row, rewards_sample, rows_left, n_samples, FLAT, PADDED, CHUNK,
        LANES, BLOCK_ROWS, VECTOR,
    ).to(DTYPE)  # fmt: skip
    valid = 0
    if MASKED:
        valid = _load(
            where_ptr + block * where_row, where_row, where_sample, rows_left, n_samples, FLAT,
            PADDED, CHUNK, LANES, BLOCK_ROWS, VECTOR,
        ) != 0  # fmt: skip
        x = tl.where(valid, x, 0.0)
    t = _to_vectors(x, CHUNK, LANES, T)
    own = _own(valid, thread, n_samples, PADDED, MASKED, CHUNK, LANES, VECTOR, T)

    # The group, its k, and the estimator for it.
    group = _group(own, n_samples, MASKED, CHUNK, LANES, T)
    if K == "scalar":
        k = tl.minimum(tl.maximum(tl.load(k_ptr).to(tl.int64), 0), 1 << 30).to(tl.int32)
    if K == "row":
        row = tl.arange(0, BLOCK_ROWS)
        k = tl.load(k_ptr + block + row, mask=row < rows_left, other=1).to(tl.int64)
        if LANES > 1:
            k = _for_threads(k[None, :, None, None], CHUNK, LANES, BLOCK_ROWS, VECTOR)
        k = tl.minimum(tl.maximum(k, 0), 1 << 30).to(tl.int32)
    n = group
    live = tl.full([], 1.0, DTYPE)
    otherwise = tl.full([], 0.0, DTYPE)
    if UNIFORM:
        anchor, gap = tl.full([], anchor, DTYPE), tl.full([], gap, DTYPE)
        below, slope = tl.full([], below, DTYPE), tl.full([], slope, DTYPE)
    else:
        k = tl.where(undersized == 2, tl.minimum(k, group - spared), k)
        admitted = (k >= 1) & (k <= group - spared)
        # Where no k is admitted the formulas see two samples and k=1; what they give is not used.
        n, k = tl.where(admitted, group, 2), tl.where(admitted, k, 1)
        live = tl.where(admitted, 1.0, 0.0).to(DTYPE)
        anchor, gap, below, slope = _scalars(form_ptr, n, k, DTYPE)
        times = live * tl.where(by_mean != 0, group, 1).to(DTYPE)
        anchor, gap, below, slope = anchor * times, gap * times, below * times, slope * times
        otherwise = tl.where(admitted | (undersized != 1), 0.0, float("nan")).to(DTYPE)
    middle = (mirror * (n - 1)).to(DTYPE)
    if WEIGHTS == "ready" or (UNIFORM and LANES == 1):
        start = tl.full([], first, DTYPE)
    else:
        start = live * _chain_start(
            n, k, thread % LANES, table_ptr, table_size, once, LAG, CHUNK, LANES, T
        )  # fmt: skip

    # What is not the row's own takes the value of its largest.
    if PARTIAL:
        t = _fill(t, own, CHUNK, LANES, T)
    irregular = _irregular(t, CHUNK, rewards_ptr.dtype.element_ty.is_floating())

    counted = rows_left < 0  # never
    low, high = t[0], t[0]
    if COUNT_ONLY:
        low, high = _range(t, irregular, CHUNK, LANES, T)
        _by_counting(
            t, low, high, n, k, thread, live, start, below, slope, middle, has_constant,
            table_ptr, table_size, sample_ptr, once, anchor, gap, otherwise, valid, out_ptr,
            out_row, out_sample, rows_left, n_samples, WEIGHTS, LAG, SCALED, FLAT, PADDED, MASKED,
            STANDARDISED, CHUNK, LANES, BLOCK_ROWS, VECTOR,
        )  # fmt: skip
    elif CHUNK > 8:
        if _may_have_two_levels(t, CHUNK):
            low, high = _range(t, irregular, CHUNK, LANES, T)
            counted = _has_two_levels(t, low, high, CHUNK)
        if counted:
            _by_counting(
                t, low, high, n, k, thread, live, start, below, slope, middle, has_constant,
                table_ptr, table_size, sample_ptr, once, anchor, gap, otherwise, valid, out_ptr,
                out_row, out_sample, rows_left, n_samples, WEIGHTS, LAG, SCALED, FLAT, PADDED,
                MASKED, STANDARDISED, CHUNK, LANES, BLOCK_ROWS, VECTOR,
            )  # fmt: skip
        else:
            _by_sorting(
                t, irregular, n, k, thread, live, start, below, slope, middle, has_constant,
                table_ptr, table_size, sample_ptr, once, anchor, gap, otherwise, valid, out_ptr,
                out_row, out_sample, rows_left, n_samples, WEIGHTS, LAG, SCALED, FLAT, PADDED,
                MASKED, STANDARDISED, CHUNK, LANES, BLOCK_ROWS, VECTOR, WARP,
            )  # fmt: skip
    else:
        _by_sorting(
            t, irregular, n, k, thread, live, start, below, slope, middle, has_constant,
            table_ptr, table_size, sample_ptr, once, anchor, gap, otherwise, valid, out_ptr,
            out_row, out_sample, rows_left, n_samples, WEIGHTS, LAG, SCALED, FLAT, PADDED, MASKED,
            STANDARDISED, CHUNK, LANES, BLOCK_ROWS, VECTOR, WARP,
        )  # fmt: skip


@triton.jit
def _counted(t, irregular, thread, CHUNK: tl.constexpr, LANES: tl.constexpr, T: tl.constexpr):
    low, high = _range(t, irregular, CHUNK, LANES, T)
    lower = _number_of_lower(t, high, CHUNK, LANES, T)
    return _ordered_by_count(lower, low, high, thread, CHUNK, LANES)


@triton.jit
def _in_order(
    t, irregular, thread, counted, CHUNK: tl.constexpr, LANES: tl.constexpr, WARP: tl.constexpr,
    T: tl.constexpr, COUNT_ONLY: tl.constexpr,
):  # fmt: skip
    """The rows in ascending order, by counting where they have two levels."""
    if COUNT_ONLY:
        return _counted(t, irregular, thread, CHUNK, LANES, T)
    elif CHUNK <= 8:
        return _sort(t, thread, CHUNK, LANES, WARP, T)
    else:
        if counted:
            ordered = _counted(t, irregular, thread, CHUNK, LANES, T)
        else:
            ordered = _sort(t, thread, CHUNK, LANES, WARP, T)
        return ordered


@triton.jit(do_not_specialize=("table_size", "n_rows", "n_ks"))
def max_at_k_kernel(
    rewards_ptr, where_ptr, ks_ptr, out_ptr, table_ptr, sample_ptr, table_size,
    n_rows, n_samples, n_ks, rewards_row, rewards_sample, where_row, where_sample,
    MASKED: tl.constexpr, COUNT_ONLY: tl.constexpr, CONTIGUOUS: tl.constexpr,
    PADDED: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    VECTOR: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    """The mean of the best of k for one block of rows and every k: (n_rows, n_ks), NaN where a row
    has fewer than k samples."""
    DTYPE: tl.constexpr = table_ptr.dtype.element_ty
    T: tl.constexpr = BLOCK_ROWS * LANES
    FLAT: tl.constexpr = CONTIGUOUS and padded(CHUNK) == CHUNK
    PARTIAL: tl.constexpr = MASKED or PADDED
    if CONTIGUOUS:
        rewards_row, rewards_sample = CHUNK, 1
        where_row, where_sample = CHUNK, 1
    elif LANES > 1:
        rewards_row, where_row = rewards_row // VECTOR * VECTOR, where_row // VECTOR * VECTOR
        n_samples = n_samples // VECTOR * VECTOR
    once = (n_rows > 0).to(tl.int32)
    block = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    rows_left = tl.minimum(n_rows - block, BLOCK_ROWS).to(tl.int32)
    thread = _thread(CHUNK, LANES, BLOCK_ROWS, VECTOR)
    x = _load(
        rewards_ptr + block * rewards_row, rewards_row, rewards_sample, rows_left, n_samples,
        FLAT, PADDED, CHUNK, LANES, BLOCK_ROWS, VECTOR,
    ).to(DTYPE)  # fmt: skip
    valid = 0
    if MASKED:
        valid = _load(
            where_ptr + block * where_row, where_row, where_sample, rows_left, n_samples, FLAT,
            PADDED, CHUNK, LANES, BLOCK_ROWS, VECTOR,
        ) != 0  # fmt: skip
        x = tl.where(valid, x, 0.0)
    t = _to_vectors(x, CHUNK, LANES, T)
    own = _own(valid, thread, n_samples, PADDED, MASKED, CHUNK, LANES, VECTOR, T)
    group = _group(own, n_samples, MASKED, CHUNK, LANES, T)
    if PARTIAL:
        t = _fill(t, own, CHUNK, LANES, T)
    irregular = _irregular(t, CHUNK, rewards_ptr.dtype.element_ty.is_floating())
    counted = rows_left < 0  # never
    if CHUNK > 8 and not COUNT_ONLY:
        if _may_have_two_levels(t, CHUNK):
            low, high = _range(t, irregular, CHUNK, LANES, T)
            counted = _has_two_levels(t, low, high, CHUNK)
    t = _in_order(t, irregular, thread, counted, CHUNK, LANES, WARP, T, COUNT_ONLY)
    unused, largest = _ends(t[0], t[CHUNK - 1], irregular, LANES, T)

    zero = tl.zeros([T], DTYPE)
    for q in tl.range(n_ks):
        k = tl.minimum(tl.maximum(tl.load(ks_ptr + q).to(tl.int64), 0), 1 << 30).to(tl.int32)
        admitted = (k >= 1) & (k <= group)
        n, k = tl.where(admitted, group, 2), tl.where(admitted, k, 1)
        live = tl.where(admitted, 1.0, 0.0).to(DTYPE)
        start = live * _chain_start(
            n, k, thread % LANES, table_ptr, table_size, once, 1, CHUNK, LANES, T
        )  # fmt: skip
        slope = 1 / k.to(DTYPE)
        terms = _terms(
            t, n, k, thread, start, sample_ptr, once, "chain", 1, CHUNK, LANES, PARTIAL, T
        )
        constant = _constant(terms, thread % LANES, zero, slope, zero, CHUNK, LANES, T)
        best = (live * largest - constant) + 0.0
        best = tl.where(live > 0, best, float("nan"))
        row = tl.arange(0, T) // LANES
        tl.store(
            out_ptr + (block + row) * n_ks + q,
            best.to(out_ptr.dtype.element_ty),
            mask=(row < rows_left) & (tl.arange(0, T) % LANES == 0),
        )
