"""The packed kernel, for what is usual on NVIDIA's GPUs: floats of 32 or 16 bits, whole rows one
after the other, one k for all. For all else there is `pkpo_triton.kernel`; which of the two it is,
`pkpo_triton.plan.packed_plan` says. Samples left out: see `pkpo_triton.packed_masked`; rows that do
not fill their threads: `pkpo_triton.packed_padded`.

A row lies in one thread, or in up to 32 neighbours. A key is a reward whose lowest bits are
replaced by its index in the row, so that minima and maxima sort both, and nothing is searched or
led back:

    rewards → shared memory → keys → networks → rewards by their indices → gaps · weights
            → prefix sums → shared memory, over the rewards → results

Rewards that differ in those bits alone, as none of 16 bits do, may come out in a wrong order. A gap
then is negative, which costs next to nothing to find; all rows of the program are sorted once more
by keys that are exact: see `_sort_exactly`. So is a program with a row that is not finite, or
almost as large as it gets. Programs whose rows all have few distinct values do not sort: see
`transform_by_levels`.

All ways add a row's weighted gaps in the same order: what a row becomes does not depend on the rows
beside it. Formulas and names: `pkpo_triton.coefficients`; weights: `pkpo_triton.packed_weights`.

T: the threads of a program, a warp, so that what they decide together takes no barrier. C: the
samples in each. Of a row in P threads, thread t has the quads (four neighbours) t, t + P, t + 2P, …
before it is sorted, and samples t·C … t·C + C − 1 of the sorted row after. W: the words of a
thread's mask. An address is one of shared memory unless it is called otherwise.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.assembly import (
    all_differ,
    from_lane_before,
    get_each,
    is_at_most,
    put,
    shared_memory,
)
from pkpo_triton.estimator import range_scale
from pkpo_triton.networks import padded
from pkpo_triton.packed_masked import clear_row, count_valid, fill_row, read_mask
from pkpo_triton.packed_padded import (
    load_row,
    loads_rows,
    pad_row,
    put_where,
    read_unpadded_row,
    write_unpadded_row,
)
from pkpo_triton.packed_sort import (
    addresses_of,
    sort_by_keys,
    sort_by_upper_bits,
    sort_to_keys,
)
from pkpo_triton.packed_tile import (
    Tile,
    address_of,
    any_thread,
    before_lane,
    block_of,
    copy_in,
    copy_out,
    over_lanes,
    read_row,
    reward_before,
    sum_of_row,
    wait_for_row,
)
from pkpo_triton.packed_weights import (
    GapWeights,
    gap_weight,
    offset_in_thread,
    offset_weight_at,
    row_weights,
    smallest_value,
    start_of_sums,
    sums_in_thread,
    values_of,
    weight_at,
)
from pkpo_triton.plan import samples_per_thread

# ---- Values ------------------------------------------------------------------------------------


@triton.jit
def put_values(
    addresses, ordered, largest, lane, weights, THREADS: tl.constexpr, tile: tl.constexpr
):
    """Write the values of sorted rows over their rewards: twice C × (T,), twice (T,). THREADS: so
    many of a row's write."""
    offset = tl.zeros([tile.T], tl.float32)
    if weights.has_offset != 0:
        offset = sum_of_row(offset_in_thread(ordered, lane, weights, tile), lane, tile)
    smallest = smallest_value(largest, offset, weights, tile)
    per_sum = gap_weight(weights, tile)
    in_thread = sums_in_thread(ordered, lane, weights, tile)
    start = start_of_sums(smallest, weights)
    before = before_lane(start, in_thread[tile.C - 1], per_sum, lane, tile)
    sums = ()
    for c in tl.static_range(tile.C):
        sums = sums + (tl.fma(per_sum, in_thread[c], before),)
    values = values_of(sums, smallest, weights, tile)
    for c in tl.static_range(tile.C):
        if THREADS < tile.THREADS_PER_ROW:
            put_where(lane < THREADS, addresses[c], values[c])
        else:
            put(addresses[c], values[c])


@triton.jit
def is_irregular(rewards, tile: tl.constexpr):
    """Tell where a thread has a NaN or an infinity, or where two neighbours' product overflows: C ×
    (T,) → (T,)."""
    products = rewards[0] * rewards[1]
    for c in tl.static_range(2, tile.C, 2):
        products = tl.fma(rewards[c], rewards[c + 1], products)
    return (tl.abs(products) < float("inf")) == 0


@triton.jit
def is_large(smallest, largest):
    """Tell where a row needs another scale than 1: twice (T,) → (T,)."""
    scale, _ = range_scale(smallest, largest, True)
    return scale != 1.0


# ---- Rows of few values ------------------------------------------------------------------------


@triton.jit
def transform_by_levels(rewards, own, weights, LEVELS: tl.constexpr, tile: tl.constexpr):
    """Write the values of rows of at most LEVELS distinct values, and tell whether all are: C ×
    (T,), (T,) → ().

    From one level to the next: how many samples lie below, and what the next level is, gives the
    next gap, its weight, and what all above are worth at least.
    """
    FAR: tl.constexpr = 2.0**120  # beyond every reward of rows that are not large
    smallest, largest = rewards[0], rewards[0]
    for c in tl.static_range(1, tile.C):
        smallest = tl.minimum(smallest, rewards[c])
        largest = tl.maximum(largest, rewards[c])
    smallest = over_lanes(smallest, "min", tile)
    largest = over_lanes(largest, "max", tile)
    zero = tl.zeros([tile.T], tl.float32)
    per_sum = gap_weight(weights, tile)
    # Where a row lies in several threads, sums begin anew in each: what is added up here too.
    before = start_of_sums(smallest_value(largest, zero, weights, tile), weights)
    sums = (before,) * tile.C
    total, offset, offset_before = zero, zero, zero
    last = tl.zeros([tile.T], tl.int32)
    level = smallest
    turns = tl.where(any_thread(is_large(smallest, largest)), LEVELS, 0)
    more = any_thread(level < largest)
    while more & (turns < LEVELS - 1):
        above = tl.full([tile.T], FAR, tl.float32)
        count = zero
        for c in tl.static_range(tile.C):
            is_below = is_at_most(rewards[c], level)
            above = tl.minimum(
                above, tl.fma(is_below, tl.full([tile.T], FAR, tl.float32), rewards[c])
            )
            count += is_below
        above = over_lanes(above, "min", tile)
        count = over_lanes(count, "sum", tile)
        goes_on = level < largest
        gap = tl.where(goes_on, above - level, 0.0)
        # Where a row is done, any weight will do.
        at = tl.minimum(count.to(tl.int32), tile.C * tile.THREADS_PER_ROW - 1)
        if tile.THREADS_PER_ROW > 1:
            begins = at // tile.C != last
            before = tl.where(begins, tl.fma(per_sum, total, before), before)
            total = tl.where(begins, 0.0, total)
            offset_before = tl.where(begins, offset_before + offset, offset_before)
            offset = tl.where(begins, 0.0, offset)
            last = at // tile.C
        total = tl.fma(weight_at(at, weights, tile), gap, total)
        if weights.has_offset != 0:
            offset = tl.fma(offset_weight_at(at, weights, tile), gap, offset)
        level = tl.where(goes_on, above, level)
        # The same, but known only with the total: compared before, while the weight is under way,
        # it would take predicates for all samples, which have to be kept in registers.
        reached = tl.fma(total, zero, level)
        sum_of_level = tl.fma(per_sum, total, before)
        higher = ()
        for c in tl.static_range(tile.C):
            higher = higher + (tl.where(rewards[c] >= reached, sum_of_level, sums[c]),)
        sums = higher
        more = any_thread(level < largest)
        turns += 1
    done = (more == 0) & (turns < LEVELS)
    if done:
        if tile.THREADS_PER_ROW > 1:
            offset = offset_before + offset
        value = smallest_value(largest, offset, weights, tile)
        write_unpadded_row(own, values_of(sums, value, weights, tile), tile)
    return done


# ---- Any rows ----------------------------------------------------------------------------------


@triton.jit
def _transform_by_sorting(rewards, irregular, row, own, lane, weights, tile: tl.constexpr):
    """Write the values of any rows: C × (T,) and four (T,)."""
    if tile.EXACT:
        bits, ordered = (), ()
        for c in tl.static_range(tile.C):
            bits = bits + (rewards[c].to(tl.int32, bitcast=True),)
        keys = sort_to_keys(bits, row, lane, tile.C, tile.THREADS_PER_ROW)  # C × (T,)
        addresses = addresses_of(keys, row, tile.N, tile.C)  # C × (T,)
        for c in tl.static_range(tile.C):
            ordered = ordered + ((keys[c] & -tile.N).to(tl.float32, bitcast=True),)
    else:
        addresses = sort_by_upper_bits(rewards, row, lane, tile.C, tile.THREADS_PER_ROW)
        ordered = get_each(addresses, tile.C)  # C × (T,)
    largest = over_lanes(ordered[tile.C - 1], "max", tile)
    unusual = irregular | is_large(ordered[0], largest)  # one thread has the smallest
    if not tile.EXACT:
        signs = (ordered[0] - reward_before(ordered, lane, tile)).to(tl.int32, bitcast=True)
        for c in tl.static_range(1, tile.C):
            signs = signs | (ordered[c] - ordered[c - 1]).to(tl.int32, bitcast=True)
        unusual = unusual | (signs < 0)
    if any_thread(unusual):
        _transform_unusual(addresses, row, own, lane, weights, tile)
    else:
        wait_for_row(tile)
        put_values(addresses, ordered, largest, lane, weights, tile.THREADS_PER_ROW, tile)


@triton.jit
def _transform_unusual(addresses, row, own, lane, weights, tile: tl.constexpr):
    """Write the values of rows that are in order but for the lowest bits, or that are not finite,
    or large: C × (T,) and three (T,)."""
    # They are read again: kept until here, they would take registers in every program.
    if not tile.EXACT:
        addresses = _sort_exactly(get_each(addresses, tile.C), addresses, row, lane, tile)
    ordered = get_each(addresses, tile.C)
    smallest = over_lanes(ordered[0], "min", tile)
    largest = over_lanes(ordered[tile.C - 1], "max", tile)
    scale, unscale = range_scale(smallest, largest, True)
    # NaN where the range overflows, or where any sample is not finite, which the network may lose.
    irregular = (largest - smallest) * 0.0
    samples = read_row(own, tile)
    scaled = ()
    for c in tl.static_range(tile.C):
        irregular += samples[c] * 0.0
        scaled = scaled + (ordered[c] * scale,)
    irregular = over_lanes(irregular, "sum", tile)
    unscale += irregular
    wait_for_row(tile)
    # Where a NaN is lost another reward is there twice, and two threads write its value: NaN, so
    # that it does not matter which is the first.
    top = largest * scale + irregular
    put_values(addresses, scaled, top, lane, weights, tile.THREADS_PER_ROW, tile)
    wait_for_row(tile)
    values = read_row(own, tile)
    unscaled = ()
    for c in tl.static_range(tile.C):
        unscaled = unscaled + (values[c] * unscale,)
    write_unpadded_row(own, unscaled, tile)


@triton.jit
def _sort_exactly(nearly, addresses, row, lane, tile: tl.constexpr):
    """Sort rows that are in order but for the lowest bits: twice C × (T,), twice (T,) → addresses,
    C × (T,).

    Rewards with the same upper bits stand together now. A key is where their run begins, then the
    lowest bits, turned around where the reward is negative, then the address: small whole numbers,
    which lie in order as floats too. All that is lost of a NaN stays in its row.
    """
    SHIFT: tl.constexpr = 2 * tile.BITS + 2
    run = tl.zeros([tile.T], tl.int32)
    previous = run
    keys = ()
    for c in tl.static_range(tile.C):
        bits = nearly[c].to(tl.int32, bitcast=True)
        if c > 0:
            joins = ((bits ^ previous) & -tile.N) == 0
            run = tl.where(joins, run, c << SHIFT)
        lowest = (bits ^ (bits >> 31)) & (tile.N - 1)
        keys = keys + (run | ((lowest << (tile.BITS + 2)) + (addresses[c] - row)),)
        previous = bits
    if tile.THREADS_PER_ROW > 1:
        keys = _with_runs_of_row(keys, nearly, run, lane, SHIFT, tile)
    return sort_by_keys(keys, row, lane, tile.C, tile.THREADS_PER_ROW)


@triton.jit
def _with_runs_of_row(keys, nearly, last, lane, SHIFT: tl.constexpr, tile: tl.constexpr):
    """Count from the row's beginning where runs begin, in keys that count from the thread's: twice
    C × (T,), and the number of each thread's last run, (T,) → C × (T,). A thread's first run may
    have begun in another."""
    before = from_lane_before(nearly[tile.C - 1]).to(tl.int32, bitcast=True)
    joins = ((before ^ nearly[0].to(tl.int32, bitcast=True)) & -tile.N) == 0
    joins = joins & (lane > 0)
    own = lane * tile.C << SHIFT
    first = own
    for _ in tl.static_range(tile.THREADS_PER_ROW - 1):
        first = tl.where(joins, from_lane_before(tl.where(last == 0, first, own + last)), own)
    out = ()
    for c in tl.static_range(tile.C):
        out = out + (keys[c] + tl.where(keys[c] < (1 << SHIFT), first, own),)
    return out


# ---- The kernel --------------------------------------------------------------------------------


@triton.jit(do_not_specialize=("n_rows", "has_offset"))
def packed_kernel(
    rewards_ptr, where_ptr, out_ptr, weights_ptr, n_rows, has_offset, max_coefficient: "fp32",
    N_SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr, THREADS_PER_ROW: tl.constexpr,
    LEVELS: tl.constexpr,
):  # fmt: skip
    """Transform one block of rows: (n_rows, N_SAMPLES) → the same, both float32, bfloat16 or
    float16, where (n_rows, N_SAMPLES) bytes or None, all at multiples of 16 bytes. The regimes:
    `pkpo_triton.plan.packed_plan`.

    The weights are those of `tables.gap_weights`, with a mask those of
    `tables.row_weights`, whose rows have their own max_coefficient.
    LEVELS: so many distinct values rows may have to be counted.
    """
    T: tl.constexpr = BLOCK_ROWS * THREADS_PER_ROW
    C: tl.constexpr = samples_per_thread(N_SAMPLES, THREADS_PER_ROW, False)
    N: tl.constexpr = padded(C * THREADS_PER_ROW)
    PERIOD: tl.constexpr = N if N > 32 else 32  # there are 32 banks
    tile: tl.constexpr = Tile(
        N_SAMPLES=N_SAMPLES,
        N=N,
        BITS=N.bit_length() - 1,
        THREADS_PER_ROW=THREADS_PER_ROW,
        C=C,
        T=T,
        PERIOD=PERIOD,
        FREE=4 * THREADS_PER_ROW,
        MASKED=where_ptr is not None,
        DTYPE=rewards_ptr.dtype.element_ty,
        BYTES=rewards_ptr.dtype.element_ty.primitive_bitwidth // 8,
        EXACT=rewards_ptr.dtype.element_ty.primitive_bitwidth == 16,
    )
    thread = tl.arange(0, T)  # (T,)
    lane = thread % THREADS_PER_ROW  # (T,) of its row
    weights_address = weights_ptr.to(tl.int64)
    block = block_of(rewards_ptr, out_ptr, n_rows, thread, tile)
    base = shared_memory(BLOCK_ROWS * N + BLOCK_ROWS * N // PERIOD * (4 * THREADS_PER_ROW))  # ()
    row = address_of(base, thread // THREADS_PER_ROW * N, tile)  # (T,)
    own = row + lane * 16  # (T,)
    if tile.MASKED:
        # Read here it is under way together with the rewards.
        mask = read_mask(where_ptr, block, lane, tile)  # W × (T,)
    if loads_rows(tile):
        rewards = load_row(own, lane, block, tile)  # C × (T,)
    else:
        copy_in(base, block, tile)
        rewards = read_unpadded_row(own, lane, tile)  # C × (T,)
    if tile.MASKED:
        rewards = fill_row(own, rewards, mask, tile)  # C × (T,)
        weights = row_weights(weights_address, count_valid(mask, tile), has_offset)
    else:
        if N_SAMPLES < C * THREADS_PER_ROW:
            rewards = pad_row(own, rewards, lane, tile)  # C × (T,)
        elif loads_rows(tile):
            wait_for_row(tile)
        offset_address = weights_address + 4 * C * THREADS_PER_ROW
        weights = GapWeights(weights_address, offset_address, max_coefficient, has_offset)
    irregular = is_irregular(rewards, tile)  # (T,)
    many = all_differ(rewards[: LEVELS + 1], LEVELS + 1) != 0  # (T,)
    counted = block.rows < 0  # (), false
    if not any_thread(irregular | many):
        counted = transform_by_levels(rewards, own, weights, LEVELS, tile)
    if not counted:
        _transform_by_sorting(rewards, irregular, row, own, lane, weights, tile)
    if tile.MASKED:
        clear_row(own, mask, tile)

    copy_out(base, block, tile)
