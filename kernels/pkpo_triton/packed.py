"""The packed kernel, for what is usual: float32, whole rows one after the other, weights that all
of them share, on NVIDIA's GPUs. For all else there is `pkpo_triton.kernel`; which of the two it is,
`pkpo_triton.plan.packed_plan` says.

A row lies in one thread. A key is a reward whose lowest bits are replaced by its index in the row,
so that one network of minima and maxima sorts both, and nothing is searched or led back:

    rewards → shared memory → keys → network → rewards by their indices → gaps · weights
            → prefix sums → shared memory, over the rewards → results

Rewards that differ in those bits alone may come out in a wrong order. A gap then is negative, which
costs next to nothing to find; all rows of the program are sorted once more by keys that are exact:
see `_sort_exactly`. So is a program with a row that is not finite, or almost as large as it gets.
Programs whose rows all have few distinct values do not sort: see `_transform_by_levels`.

All ways add a row's weighted gaps in the same order: what a row becomes does not depend on the rows
beside it. Formulas and names: `pkpo_triton.coefficients`. The weights come ready for every gap,
r_j · gap and r_j · (offset + slope · |j − origin|): see `pkpo_triton.tables.gap_weights`.

T, the threads, is the rows of a program: one warp, so that what they decide together takes no
barrier. An address is one of shared memory unless it is called otherwise.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.assembly import (
    all_differ,
    get_each,
    get_four,
    is_at_most,
    load,
    load_four,
    put,
    put_four,
    shared_memory,
    sort_by_keys,
    sort_by_upper_bits,
    store_four,
)
from pkpo_triton.estimator import range_scale


class Tile(NamedTuple):
    """Constants: how a program's rows lie in shared memory. Four words are left free after every
    PERIOD, so that neither what threads read of their own rows nor what they read along meets in a
    bank."""

    N: Any  # samples in a row, a power of two
    BITS: Any  # of an index in a row
    T: Any  # threads, and rows
    PERIOD: Any  # words: a row, or several
    STEP: Any  # bytes from what all threads read along, four words each, to what they read next
    WORDS: Any  # of all


class GapWeights(NamedTuple):
    """An estimator's weights."""

    sums_address: Any  # in global memory: of each gap in what lies above it, (n,)
    offset_address: Any  # of each gap in the row offset, (n,)
    max_coefficient: Any
    has_offset: Any  # 0 where no gap weighs anything in the row offset


class Block(NamedTuple):
    """A program's rows in global memory."""

    rewards_address: Any
    out_address: Any
    left: Any  # samples, at most T · N
    thread: Any  # (T,)


@triton.jit
def _address(base, sample, tile: tl.constexpr):
    """Find samples by their number in the block: () and (T,) → (T,)."""
    return base + 4 * (sample + sample // tile.PERIOD * 4)


@triton.jit
def _any(x):
    """Tell whether any thread says so: (T,) → ()."""
    return tl.max(x.to(tl.int32), 0) != 0


# ---- In and out --------------------------------------------------------------------------------


@triton.jit
def _copy_in(base, block, FULL: tl.constexpr, tile: tl.constexpr):
    """Copy a block into shared memory; behind its end, its last four samples again."""
    along = _address(base, 4 * block.thread, tile)  # (T,)
    for step in tl.static_range(tile.N // 4):
        if FULL:
            x = load_four(
                block.rewards_address + block.thread.to(tl.int64) * 16, 16 * tile.T * step
            )  # 4 × (T,)
        else:
            sample = tl.minimum(4 * (block.thread + tile.T * step), block.left - 4)  # (T,)
            x = load_four(block.rewards_address + sample.to(tl.int64) * 4, 0)  # 4 × (T,)
        put_four(along, x, tile.STEP * step)


@triton.jit
def _copy_out(base, block, FULL: tl.constexpr, tile: tl.constexpr):
    """Copy a block out of shared memory; behind its end, its last four samples again."""
    along = _address(base, 4 * block.thread, tile)  # (T,)
    for step in tl.static_range(tile.N // 4):
        if FULL:
            x = get_four(along, tile.STEP * step)  # 4 × (T,)
            store_four(block.out_address + block.thread.to(tl.int64) * 16, x, 16 * tile.T * step)
        else:
            sample = tl.minimum(4 * (block.thread + tile.T * step), block.left - 4)  # (T,)
            x = get_four(_address(base, sample, tile), 0)  # 4 × (T,)
            store_four(block.out_address + sample.to(tl.int64) * 4, x, 0)


@triton.jit
def _read_row(row, tile: tl.constexpr):
    """Read each thread's row in the order of its samples: (T,) → N × (T,)."""
    rewards = ()
    for quad in tl.static_range(tile.N // 4):
        rewards = rewards + get_four(row, 16 * quad)
    return rewards


@triton.jit
def _write_row(row, values, tile: tl.constexpr):
    """Write each thread's row: (T,) and N × (T,)."""
    for quad in tl.static_range(tile.N // 4):
        put_four(row, values[4 * quad : 4 * quad + 4], 16 * quad)


# ---- Values ------------------------------------------------------------------------------------


@triton.jit
def _smallest_value(largest, offset, weights):
    """Compute what the smallest of a row becomes, the largest reward's part less the row offset:
    twice (T,) → (T,)."""
    max_coefficient = tl.full(largest.shape, weights.max_coefficient, tl.float32)
    # Adding 0 turns a −0 into 0.
    return tl.fma(max_coefficient, largest, -offset) + 0.0


@triton.jit
def _put_values(addresses, ordered, weights, tile: tl.constexpr):
    """Write the values of sorted rows over their rewards: twice N × (T,)."""
    offset = tl.zeros([tile.T], tl.float32)
    if weights.has_offset != 0:
        for quad in tl.static_range(tile.N // 4):
            of_gaps = load_four(weights.offset_address, 16 * quad)  # 4 × ()
            for i in tl.static_range(1 if quad == 0 else 0, 4):
                gap = ordered[4 * quad + i] - ordered[4 * quad + i - 1]
                offset = tl.fma(tl.full([tile.T], of_gaps[i], tl.float32), gap, offset)
    smallest = _smallest_value(ordered[tile.N - 1], offset, weights)
    put(addresses[0], smallest)
    total = tl.zeros([tile.T], tl.float32)
    for quad in tl.static_range(tile.N // 4):
        of_gaps = load_four(weights.sums_address, 16 * quad)  # 4 × ()
        for i in tl.static_range(1 if quad == 0 else 0, 4):
            gap = ordered[4 * quad + i] - ordered[4 * quad + i - 1]
            total = tl.fma(tl.full([tile.T], of_gaps[i], tl.float32), gap, total)
            put(addresses[4 * quad + i], total + smallest)


@triton.jit
def _is_irregular(rewards, tile: tl.constexpr):
    """Tell where a row has a NaN or an infinity, or where two neighbours' product overflows: N ×
    (T,) → (T,)."""
    products = rewards[0] * rewards[1]
    for c in tl.static_range(2, tile.N, 2):
        products = tl.fma(rewards[c], rewards[c + 1], products)
    return (tl.abs(products) < float("inf")) == 0


@triton.jit
def _is_large(smallest, largest):
    """Tell where a row needs another scale than 1: twice (T,) → (T,)."""
    scale, _ = range_scale(smallest, largest, True)
    return scale != 1.0


# ---- Rows of few values ------------------------------------------------------------------------


@triton.jit
def _transform_by_levels(rewards, row, weights, LEVELS: tl.constexpr, tile: tl.constexpr):
    """Write the values of rows of at most LEVELS distinct values, and tell whether all are: N ×
    (T,), (T,) → ().

    From one level to the next: how many samples lie below, and what the next level is, gives the
    next gap, its weight, and what all above are worth at least.
    """
    FAR: tl.constexpr = 2.0**120  # beyond every reward of rows that are not large
    smallest, largest = rewards[0], rewards[0]
    for c in tl.static_range(1, tile.N):
        smallest = tl.minimum(smallest, rewards[c])
        largest = tl.maximum(largest, rewards[c])
    sums = (tl.zeros([tile.T], tl.float32),) * tile.N
    total = tl.zeros([tile.T], tl.float32)
    offset = tl.zeros([tile.T], tl.float32)
    level = smallest
    turns = tl.where(_any(_is_large(smallest, largest)), LEVELS, 0)
    more = _any(level < largest)
    while more & (turns < LEVELS - 1):
        above = tl.full([tile.T], FAR, tl.float32)
        count = tl.zeros([tile.T], tl.float32)
        for c in tl.static_range(tile.N):
            is_below = is_at_most(rewards[c], level)
            above = tl.minimum(
                above, tl.fma(is_below, tl.full([tile.T], FAR, tl.float32), rewards[c])
            )
            count += is_below
        goes_on = level < largest
        gap = tl.where(goes_on, above - level, 0.0)
        # Where a row is done, any weight will do.
        at = tl.minimum(count.to(tl.int32), tile.N - 1).to(tl.int64) * 4
        total = tl.fma(load(weights.sums_address + at), gap, total)
        if weights.has_offset != 0:
            offset = tl.fma(load(weights.offset_address + at), gap, offset)
        level = tl.where(goes_on, above, level)
        # The same, but known only with the total: compared before, while the weight is under way,
        # it would take predicates for all samples, which have to be kept in registers.
        reached = tl.fma(total, tl.zeros([tile.T], tl.float32), level)
        higher = ()
        for c in tl.static_range(tile.N):
            higher = higher + (tl.where(rewards[c] >= reached, total, sums[c]),)
        sums = higher
        more = _any(level < largest)
        turns += 1
    done = (more == 0) & (turns < LEVELS)
    if done:
        value = _smallest_value(largest, offset, weights)
        values = ()
        for c in tl.static_range(tile.N):
            values = values + (sums[c] + value,)
        _write_row(row, values, tile)
    return done


# ---- Any rows ----------------------------------------------------------------------------------


@triton.jit
def _transform_by_sorting(rewards, irregular, row, weights, tile: tl.constexpr):
    """Write the values of any rows: N × (T,) and twice (T,)."""
    addresses = sort_by_upper_bits(rewards, row, tile.N)  # N × (T,)
    ordered = get_each(addresses, tile.N)  # N × (T,)
    signs = (ordered[1] - ordered[0]).to(tl.int32, bitcast=True)
    for c in tl.static_range(2, tile.N):
        signs = signs | (ordered[c] - ordered[c - 1]).to(tl.int32, bitcast=True)
    unusual = (signs < 0) | irregular | _is_large(ordered[0], ordered[tile.N - 1])
    if _any(unusual):
        _transform_unusual(addresses, row, weights, tile)
    else:
        _put_values(addresses, ordered, weights, tile)


@triton.jit
def _transform_unusual(addresses, row, weights, tile: tl.constexpr):
    """Write the values of rows that are in order but for the lowest bits, or that are not finite,
    or large: N × (T,), (T,)."""
    # They are read again: kept until here, they would take registers in every program.
    addresses = _sort_exactly(get_each(addresses, tile.N), addresses, row, tile)
    ordered = get_each(addresses, tile.N)
    scale, unscale = range_scale(ordered[0], ordered[tile.N - 1], True)
    # NaN where the range overflows, or where any sample is not finite, which the network may lose.
    unscale += (ordered[tile.N - 1] - ordered[0]) * 0.0
    samples = _read_row(row, tile)
    scaled = ()
    for c in tl.static_range(tile.N):
        unscale += samples[c] * 0.0
        scaled = scaled + (ordered[c] * scale,)
    # Weights of 0 do no harm, and with a branch here 64 samples do not fit into the registers.
    weights = GapWeights(weights.sums_address, weights.offset_address, weights.max_coefficient, 1)
    _put_values(addresses, scaled, weights, tile)
    values = _read_row(row, tile)
    unscaled = ()
    for c in tl.static_range(tile.N):
        unscaled = unscaled + (values[c] * unscale,)
    _write_row(row, unscaled, tile)


@triton.jit
def _sort_exactly(nearly, addresses, row, tile: tl.constexpr):
    """Sort rows that are in order but for the lowest bits: twice N × (T,), (T,) → addresses, N ×
    (T,).

    Rewards with the same upper bits stand together now. A key is where their run begins, then the
    lowest bits, turned around where the reward is negative, then the address: small whole numbers,
    which lie in order as floats too. All that is lost of a NaN stays in its row.
    """
    run = tl.zeros([tile.T], tl.int32)
    previous = run
    keys = ()
    for c in tl.static_range(tile.N):
        bits = nearly[c].to(tl.int32, bitcast=True)
        if c > 0:
            joins = ((bits ^ previous) & -tile.N) == 0
            run = tl.where(joins, run, c << (2 * tile.BITS + 2))
        lowest = (bits ^ (bits >> 31)) & (tile.N - 1)
        keys = keys + (run | ((lowest << (tile.BITS + 2)) + (addresses[c] - row)),)
        previous = bits
    return sort_by_keys(keys, row, tile.N)


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
    PERIOD: tl.constexpr = N if N > 32 else 32  # there are 32 banks
    tile: tl.constexpr = Tile(
        N=N,
        BITS=N.bit_length() - 1,
        T=BLOCK_ROWS,
        PERIOD=PERIOD,
        STEP=4 * (4 * BLOCK_ROWS + 4 * (4 * BLOCK_ROWS // PERIOD)),
        WORDS=BLOCK_ROWS * N + 4 * (BLOCK_ROWS * N // PERIOD),
    )
    weights_address = weights_ptr.to(tl.int64)
    weights = GapWeights(weights_address, weights_address + 4 * N, max_coefficient, has_offset)
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    block = Block(
        rewards_address=rewards_ptr.to(tl.int64) + first_row * (4 * N),
        out_address=out_ptr.to(tl.int64) + first_row * (4 * N),
        left=tl.minimum(n_rows - first_row, BLOCK_ROWS).to(tl.int32) * N,
        thread=tl.arange(0, BLOCK_ROWS),
    )
    base = shared_memory(tile.WORDS)  # ()
    row = _address(base, block.thread * N, tile)  # (T,)
    is_full = block.left == BLOCK_ROWS * N  # ()
    if is_full:
        _copy_in(base, block, True, tile)
    else:
        _copy_in(base, block, False, tile)
    tl.debug_barrier()

    rewards = _read_row(row, tile)  # N × (T,)
    irregular = _is_irregular(rewards, tile)  # (T,)
    many = all_differ(rewards[: LEVELS + 1], LEVELS + 1) != 0  # (T,)
    counted = block.left < 0  # (), false
    if not _any(irregular | many):
        counted = _transform_by_levels(rewards, row, weights, LEVELS, tile)
    if not counted:
        _transform_by_sorting(rewards, irregular, row, weights, tile)

    tl.debug_barrier()
    if is_full:
        _copy_out(base, block, True, tile)
    else:
        _copy_out(base, block, False, tile)
