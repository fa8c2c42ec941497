"""The packed kernel, for what is usual: float32, whole rows one after the other, weights that all
of them share, on NVIDIA's GPUs. For all else there is `pkpo_triton.kernel`; which of the two it is,
`pkpo_triton.plan.packed_plan` says.

A row lies in one thread, or in a few neighbours. A key is a reward whose lowest bits are replaced
by its index in the row, so that minima and maxima sort both, and nothing is searched or led back:

    rewards → shared memory → keys → networks → rewards by their indices → gaps · weights
            → prefix sums → shared memory, over the rewards → results

Rewards that differ in those bits alone may come out in a wrong order. A gap then is negative, which
costs next to nothing to find; all rows of the program are sorted once more by keys that are exact:
see `_sort_exactly`. So is a program with a row that is not finite, or almost as large as it gets.
Programs whose rows all have few distinct values do not sort: see `transform_by_levels`.

All ways add a row's weighted gaps in the same order: what a row becomes does not depend on the rows
beside it. Formulas and names: `pkpo_triton.coefficients`. The weights come ready for every gap,
r_j · gap and r_j · (offset + slope · |j − origin|): see `pkpo_triton.tables.gap_weights`.

T is the threads of a program: one warp, so that what they decide together takes no barrier. C is
the samples in each: of a row's the quads of neighbours by turns, and C in a row once it is sorted.
An address is one of shared memory unless it is called otherwise.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.assembly import (
    all_differ,
    from_lane_before,
    get_each,
    is_at_most,
    load,
    load_four,
    put,
    shared_memory,
    sort_by_keys,
    sort_by_upper_bits,
)
from pkpo_triton.estimator import range_scale
from pkpo_triton.packed_tile import (
    Block,
    Tile,
    address_of,
    any_thread,
    before_lane,
    copy_in,
    copy_out,
    ends_of_row,
    over_lanes,
    read_row,
    reward_before,
    sum_of_row,
    wait_for_row,
    write_row,
)


class GapWeights(NamedTuple):
    """An estimator's weights."""

    sums_address: Any  # in global memory: of each gap in what lies above it, (n,)
    offset_address: Any  # of each gap in the row offset, (n,)
    max_coefficient: Any
    has_offset: Any  # 0 where no gap weighs anything in the row offset


# ---- Values ------------------------------------------------------------------------------------


@triton.jit
def _smallest_value(largest, offset, weights):
    """Compute what the smallest of a row becomes, the largest reward's part less the row offset:
    twice (T,) → (T,)."""
    max_coefficient = tl.full(largest.shape, weights.max_coefficient, tl.float32)
    # Adding 0 turns a −0 into 0.
    return tl.fma(max_coefficient, largest, -offset) + 0.0


@triton.jit
def _sums_in_thread(ordered, lane, address, tile: tl.constexpr):
    """Add up a thread's weighted gaps, from its first sample on: C × (T,), (T,) and where the row's
    weights are in global memory → C × (T,)."""
    total = tl.zeros([tile.T], tl.float32)
    previous = reward_before(ordered, lane, tile)
    if tile.THREADS_PER_ROW > 1:
        address += lane.to(tl.int64) * (4 * tile.C)
    sums = ()
    for quad in tl.static_range(tile.C // 4):
        of_gaps = load_four(address, 16 * quad)  # 4 × () or (T,)
        for i in tl.static_range(4):
            # In front of a row's first sample there is no gap.
            if 4 * quad + i > 0 or tile.THREADS_PER_ROW > 1:
                weight = (
                    of_gaps[i]
                    if tile.THREADS_PER_ROW > 1
                    else tl.full([tile.T], of_gaps[i], tl.float32)
                )
                total = tl.fma(weight, ordered[4 * quad + i] - previous, total)
            previous = ordered[4 * quad + i]
            sums = sums + (total,)
    return sums


@triton.jit
def put_values(addresses, ordered, largest, lane, weights, tile: tl.constexpr):
    """Write the values of sorted rows over their rewards: twice C × (T,), twice (T,)."""
    offset = tl.zeros([tile.T], tl.float32)
    if weights.has_offset != 0:
        in_thread = _sums_in_thread(ordered, lane, weights.offset_address, tile)
        offset = sum_of_row(in_thread[tile.C - 1], lane, tile)
    smallest = _smallest_value(largest, offset, weights)
    sums = _sums_in_thread(ordered, lane, weights.sums_address, tile)
    if tile.THREADS_PER_ROW > 1:
        before = before_lane(sums[tile.C - 1], lane, tile)
        for c in tl.static_range(tile.C):
            put(addresses[c], (before + sums[c]) + smallest)
    else:
        for c in tl.static_range(tile.C):
            put(addresses[c], sums[c] + smallest)


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
    sums = (tl.zeros([tile.T], tl.float32),) * tile.C
    total = tl.zeros([tile.T], tl.float32)
    offset = tl.zeros([tile.T], tl.float32)
    # Where a row lies in several threads, sums begin anew in each: what is added up here too.
    before, offset_before = total, offset
    last = tl.zeros([tile.T], tl.int32)
    level = smallest
    turns = tl.where(any_thread(is_large(smallest, largest)), LEVELS, 0)
    more = any_thread(level < largest)
    while more & (turns < LEVELS - 1):
        above = tl.full([tile.T], FAR, tl.float32)
        count = tl.zeros([tile.T], tl.float32)
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
        at = tl.minimum(count.to(tl.int32), tile.N - 1)
        if tile.THREADS_PER_ROW > 1:
            begins = at // tile.C != last
            before = tl.where(begins, before + total, before)
            total = tl.where(begins, 0.0, total)
            offset_before = tl.where(begins, offset_before + offset, offset_before)
            offset = tl.where(begins, 0.0, offset)
            last = at // tile.C
        at = at.to(tl.int64) * 4
        total = tl.fma(load(weights.sums_address + at), gap, total)
        if weights.has_offset != 0:
            offset = tl.fma(load(weights.offset_address + at), gap, offset)
        level = tl.where(goes_on, above, level)
        # The same, but known only with the total: compared before, while the weight is under way,
        # it would take predicates for all samples, which have to be kept in registers.
        reached = tl.fma(total, tl.zeros([tile.T], tl.float32), level)
        sum_of_level = before + total if tile.THREADS_PER_ROW > 1 else total
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
        value = _smallest_value(largest, offset, weights)
        values = ()
        for c in tl.static_range(tile.C):
            values = values + (sums[c] + value,)
        write_row(own, values, tile)
    return done


# ---- Any rows ----------------------------------------------------------------------------------


@triton.jit
def _transform_by_sorting(rewards, irregular, row, own, lane, weights, tile: tl.constexpr):
    """Write the values of any rows: C × (T,) and four (T,)."""
    addresses = sort_by_upper_bits(rewards, row, lane, tile.C, tile.THREADS_PER_ROW)  # C × (T,)
    ordered = get_each(addresses, tile.C)  # C × (T,)
    signs = (ordered[0] - reward_before(ordered, lane, tile)).to(tl.int32, bitcast=True)
    for c in tl.static_range(1, tile.C):
        signs = signs | (ordered[c] - ordered[c - 1]).to(tl.int32, bitcast=True)
    smallest, largest = ends_of_row(ordered, tile)
    unusual = (signs < 0) | irregular | is_large(smallest, largest)
    if any_thread(unusual):
        _transform_unusual(addresses, row, own, lane, weights, tile)
    else:
        wait_for_row(tile)
        put_values(addresses, ordered, largest, lane, weights, tile)


@triton.jit
def _transform_unusual(addresses, row, own, lane, weights, tile: tl.constexpr):
    """Write the values of rows that are in order but for the lowest bits, or that are not finite,
    or large: C × (T,) and three (T,)."""
    # They are read again: kept until here, they would take registers in every program.
    addresses = _sort_exactly(get_each(addresses, tile.C), addresses, row, lane, tile)
    ordered = get_each(addresses, tile.C)
    smallest, largest = ends_of_row(ordered, tile)
    scale, unscale = range_scale(smallest, largest, True)
    # NaN where the range overflows, or where any sample is not finite, which the network may lose.
    irregular = (largest - smallest) * 0.0
    samples = read_row(own, tile)
    scaled = ()
    for c in tl.static_range(tile.C):
        irregular += samples[c] * 0.0
        scaled = scaled + (ordered[c] * scale,)
    unscale += over_lanes(irregular, "sum", tile)
    wait_for_row(tile)
    put_values(addresses, scaled, largest * scale, lane, weights, tile)
    wait_for_row(tile)
    values = read_row(own, tile)
    unscaled = ()
    for c in tl.static_range(tile.C):
        unscaled = unscaled + (values[c] * unscale,)
    write_row(own, unscaled, tile)


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
    rewards_ptr, out_ptr, weights_ptr, n_rows, has_offset, max_coefficient: "fp32",
    N: tl.constexpr, BLOCK_ROWS: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Transform one block of rows: (n_rows, N) → (n_rows, N), both float32 and at multiples of 16
    bytes, with weights (2, N). The regimes: `pkpo_triton.plan.packed_plan`.

    LEVELS: so many distinct values rows may have to be counted.
    """
    THREADS_PER_ROW: tl.constexpr = 32 // BLOCK_ROWS
    PERIOD: tl.constexpr = N if N > 32 else 32  # there are 32 banks
    tile: tl.constexpr = Tile(
        N=N,
        BITS=N.bit_length() - 1,
        THREADS_PER_ROW=THREADS_PER_ROW,
        C=N // THREADS_PER_ROW,
        T=32,
        PERIOD=PERIOD,
        FREE=4 * THREADS_PER_ROW,
    )
    thread = tl.arange(0, 32)  # (T,)
    lane = thread % THREADS_PER_ROW  # (T,) of its row
    weights_address = weights_ptr.to(tl.int64)
    weights = GapWeights(weights_address, weights_address + 4 * N, max_coefficient, has_offset)
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    block = Block(
        rewards_address=rewards_ptr.to(tl.int64) + first_row * (4 * N),
        out_address=out_ptr.to(tl.int64) + first_row * (4 * N),
        left=tl.minimum(n_rows - first_row, BLOCK_ROWS).to(tl.int32) * N,
        thread=thread,
    )
    base = shared_memory(BLOCK_ROWS * N + BLOCK_ROWS * N // PERIOD * (4 * THREADS_PER_ROW))  # ()
    row = address_of(base, thread // THREADS_PER_ROW * N, tile)  # (T,)
    own = row + lane * 16  # (T,)
    is_full = block.left == BLOCK_ROWS * N  # ()
    if is_full:
        copy_in(base, block, True, tile)
    else:
        copy_in(base, block, False, tile)
    tl.debug_barrier()

    rewards = read_row(own, tile)  # C × (T,)
    irregular = is_irregular(rewards, tile)  # (T,)
    many = all_differ(rewards[: LEVELS + 1], LEVELS + 1) != 0  # (T,)
    counted = block.left < 0  # (), false
    if not any_thread(irregular | many):
        counted = transform_by_levels(rewards, own, weights, LEVELS, tile)
    if not counted:
        _transform_by_sorting(rewards, irregular, row, own, lane, weights, tile)

    tl.debug_barrier()
    if is_full:
        copy_out(base, block, True, tile)
    else:
        copy_out(base, block, False, tile)
