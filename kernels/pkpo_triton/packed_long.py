"""The packed kernel for long rows of float32: that of `pkpo_triton.packed`, whose words and ways it
shares, with another sort.

The upper bits of a float would be too few for a key: the index takes eight and more, and most of
what is left tells magnitudes apart that are as good as equal in a row. So a key is a number in
fixed point, (reward − smallest) · steps / range, and below it the index. Only few of a row's
samples share a step with another. Where such stand in a wrong order a gap is negative. Then every
second pair of neighbours is put in order, then every other, and both again, at most PASSES times.
What is not in order after that, as with heavy tails, is sorted anew, exactly, by all bits of the
rewards: see `_sort_exactly`. So is a program with a row that is not finite, or almost as large as
it gets.

No input costs more than this: a sort, the passes, and two sorts more.

C is a multiple of eight, of which `_sort_exactly` keeps four words. A row of more than 2048 samples
lies in two warps; then T is 64, and threads wait for each other at barriers.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.assembly import (
    all_differ,
    get_each,
    put_four,
    shared_memory,
)
from pkpo_triton.estimator import range_scale
from pkpo_triton.networks import padded
from pkpo_triton.packed import (
    is_irregular,
    is_large,
    put_values,
    transform_by_levels,
)
from pkpo_triton.packed_masked import clear_row, count_valid, fill_row, read_mask
from pkpo_triton.packed_neighbours import get_half, is_descending, put_neighbours_in_order
from pkpo_triton.packed_padded import (
    get_in_order,
    load_row,
    pad_row,
    threads_in_order,
    write_unpadded_row,
)
from pkpo_triton.packed_sort import fixed_point_steps, sort_by_digits, sort_by_fixed_point
from pkpo_triton.packed_tile import (
    Tile,
    address_of,
    any_thread,
    block_of,
    copy_out,
    over_lanes,
    read_row,
    reward_before,
    wait_for_row,
    write_row,
)
from pkpo_triton.packed_weights import GapWeights, row_weights
from pkpo_triton.plan import samples_per_thread


@triton.jit
def _transform_by_sorting(
    rewards, irregular, row, own, lane, thread, buffer, weights, tile: tl.constexpr
):
    """Write the values of any rows: C × (T,), five (T,) and ()."""
    smallest, largest = _ends(rewards, tile)
    # Smaller ranges would need a larger scale than there is; all samples may share a step.
    scale = fixed_point_steps(tile.BITS) / tl.maximum(largest - smallest, 2.0**-100)
    # C × (T,)
    addresses = sort_by_fixed_point(rewards, smallest, scale, row, lane, buffer, tile)
    ordered = get_in_order(addresses, largest, lane, tile)  # C × (T,)
    signs = (ordered[0] - reward_before(ordered, lane, tile)).to(tl.int32, bitcast=True)
    for c in tl.static_range(1, tile.C):
        signs = signs | (ordered[c] - ordered[c - 1]).to(tl.int32, bitcast=True)
    special = any_thread(irregular | is_large(smallest, largest))
    if any_thread(signs < 0) | special:
        _transform_unusual(
            addresses, smallest, largest, special, row, own, lane, thread, buffer, weights, tile
        )
    else:
        wait_for_row(tile)
        put_values(addresses, ordered, largest, lane, weights, threads_in_order(tile), tile)


@triton.jit
def _ends(rewards, tile: tl.constexpr):
    """Find the ends of rows in any order: C × (T,) → two (T,)."""
    smallest, largest = rewards[0], rewards[0]
    for c in tl.static_range(1, tile.C):
        smallest = tl.minimum(smallest, rewards[c])
        largest = tl.maximum(largest, rewards[c])
    return over_lanes(smallest, "min", tile), over_lanes(largest, "max", tile)


@triton.jit
def _transform_unusual(
    addresses, smallest, largest, special, row, own, lane, thread, buffer, weights,
    tile: tl.constexpr,
):  # fmt: skip
    """Write the values of rows that are almost in order, or special, not finite or large: C × (T,),
    two (T,), (), four (T,) and ()."""
    PASSES: tl.constexpr = 3
    wrong = special == 0
    passes = 0
    while wrong & (passes < PASSES):
        # Rewards are read again: kept beside their addresses, they would take registers everywhere.
        both = put_neighbours_in_order(
            get_in_order(addresses, largest, lane, tile), addresses, lane, thread, buffer, tile
        )
        ordered, addresses = both[: tile.C], both[tile.C :]
        # Those of two threads have been put in order last.
        wrong = any_thread(is_descending(ordered, tile.C))
        passes += 1
    if wrong | special:
        _transform_exactly(smallest, largest, row, own, lane, thread, buffer, weights, tile)
    else:
        ordered = get_in_order(addresses, largest, lane, tile)
        put_values(addresses, ordered, largest, lane, weights, threads_in_order(tile), tile)


@triton.jit
def _transform_exactly(
    smallest, largest, row, own, lane, thread, buffer, weights, tile: tl.constexpr
):
    """Write the values of rows whatever they are: six (T,) and ()."""
    scale, unscale = range_scale(smallest, largest, True)
    # NaN where the range overflows, or where any sample is not finite.
    irregular = (largest - smallest) * 0.0
    samples = read_row(own, tile)
    scaled = ()
    for c in tl.static_range(tile.C):
        irregular += samples[c] * 0.0
        scaled = scaled + (samples[c] * scale,)
    unscale += over_lanes(irregular, "sum", tile)
    wait_for_row(tile)
    write_row(own, scaled, tile)
    addresses = _sort_exactly(row, own, lane, thread, buffer, tile)
    ordered = get_each(addresses, tile.C)
    # Padding may stand in front of samples that equal it.
    put_values(addresses, ordered, largest * scale, lane, weights, tile.THREADS_PER_ROW, tile)
    wait_for_row(tile)
    values = read_row(own, tile)
    unscaled = ()
    for c in tl.static_range(tile.C):
        unscaled = unscaled + (values[c] * unscale,)
    write_unpadded_row(own, unscaled, tile)


@triton.jit
def _sort_exactly(row, own, lane, thread, buffer, tile: tl.constexpr):
    """Sort rows by all bits of their rewards: four (T,) and () → addresses in ascending order, C ×
    (T,).

    By the lower half first; then by the upper, and by what the first has brought about where the
    upper halves are equal. A key holds the half, and where the sample stood before.
    """
    DIGIT: tl.constexpr = 16  # bits of a half
    # Half a word for each of a row's places, those of every thread four words further on.
    places = buffer + thread // tile.THREADS_PER_ROW * (2 * tile.N + 16 * tile.THREADS_PER_ROW)
    of_thread = places + lane * (2 * tile.C + 16)
    # Where a row's samples stand in it, in bytes, two in a word.
    offsets = ()
    for c in tl.static_range(0, tile.C, 2):
        offset = lane * 16 + (c // 4 * (16 * tile.THREADS_PER_ROW) + c % 4 * 4)
        offsets = offsets + (offset | (offset + 4) << 16,)
    for digit in tl.range(32 // DIGIT):
        rewards = get_each(_addresses(offsets, row, tile), tile.C)
        digits = ()
        for c in tl.static_range(tile.C):
            bits = rewards[c].to(tl.int32, bitcast=True)
            # In the order of whole numbers without a sign.
            bits = bits ^ ((bits >> 31) | -(2**31))
            digits = digits + ((bits >> (digit * DIGIT)) & ((1 << DIGIT) - 1),)
        before = sort_by_digits(digits, lane, buffer, tile)  # C × (T,)
        wait_for_row(tile)
        for i in tl.static_range(0, tile.C // 2, 4):
            words = ()
            for j in tl.static_range(4):
                words = words + (offsets[i + j].to(tl.float32, bitcast=True),)
            put_four(of_thread, words, 4 * i)
        wait_for_row(tile)
        offsets = ()
        for c in tl.static_range(0, tile.C, 2):
            at, next_at = _half_word(before[c], tile), _half_word(before[c + 1], tile)
            offsets = offsets + (get_half(places + at) | get_half(places + next_at) << 16,)
    return _addresses(offsets, row, tile)


@triton.jit
def _half_word(place, tile: tl.constexpr):
    """Find the half word of a place, as `sort_by_digits` counts, in bytes: (T,) → (T,)."""
    PLACES: tl.constexpr = padded(tile.C)
    return 2 * place + place // PLACES * (2 * (tile.C - PLACES) + 16)


@triton.jit
def _addresses(offsets, row, tile: tl.constexpr):
    """Take two offsets from every word: C / 2 × (T,) and (T,) → addresses, C × (T,)."""
    out = ()
    for i in tl.static_range(tile.C // 2):
        out = out + (row + (offsets[i] & 0xFFFF), row + (offsets[i] >> 16))
    return out


# ---- The kernel --------------------------------------------------------------------------------


@triton.jit(do_not_specialize=("n_rows", "has_offset"))
def packed_long_kernel(
    rewards_ptr, where_ptr, out_ptr, weights_ptr, n_rows, has_offset, max_coefficient: "fp32",
    N_SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr, THREADS_PER_ROW: tl.constexpr,
    LEVELS: tl.constexpr,
):  # fmt: skip
    """Transform one block of rows, as `packed.packed_kernel` does, of float32 in eight threads or
    more."""
    T: tl.constexpr = BLOCK_ROWS * THREADS_PER_ROW
    C: tl.constexpr = samples_per_thread(N_SAMPLES, THREADS_PER_ROW, True)
    N: tl.constexpr = C * THREADS_PER_ROW
    tile: tl.constexpr = Tile(
        N_SAMPLES=N_SAMPLES,
        N=N,
        BITS=padded(N).bit_length() - 1,
        THREADS_PER_ROW=THREADS_PER_ROW,
        C=C,
        T=T,
        PERIOD=N,
        FREE=0,  # eight threads read 32 words at a time
        MASKED=where_ptr is not None,
        DTYPE=tl.float32,
        BYTES=4,
        EXACT=False,
    )
    PLACES: tl.constexpr = BLOCK_ROWS * (N // 2 + 4 * THREADS_PER_ROW)
    thread = tl.arange(0, T)  # (T,)
    lane = thread % THREADS_PER_ROW  # (T,) of its row
    weights_address = weights_ptr.to(tl.int64)
    block = block_of(rewards_ptr, out_ptr, n_rows, thread, tile)
    # ()
    base = shared_memory(BLOCK_ROWS * N + PLACES)
    buffer = base + 4 * BLOCK_ROWS * N  # ()
    row = address_of(base, thread // THREADS_PER_ROW * N, tile)  # (T,)
    own = row + lane * 16  # (T,)

    if tile.MASKED:
        # Read here it is under way together with the rewards.
        mask = read_mask(where_ptr, block, lane, tile)  # W × (T,)
    rewards = load_row(own, lane, block, tile)  # C × (T,)
    if tile.MASKED:
        rewards = fill_row(own, rewards, mask, tile)  # C × (T,)
        weights = row_weights(weights_address, count_valid(mask, tile), has_offset)
    else:
        if N_SAMPLES < N:
            rewards = pad_row(own, rewards, lane, tile)  # C × (T,)
        else:
            wait_for_row(tile)
        offset_address = weights_address + 4 * N
        weights = GapWeights(weights_address, offset_address, max_coefficient, has_offset)
    irregular = is_irregular(rewards, tile)  # (T,)
    many = all_differ(rewards[: LEVELS + 1], LEVELS + 1) != 0  # (T,)
    counted = block.rows < 0  # (), false
    if not any_thread(irregular | many):
        counted = transform_by_levels(rewards, own, weights, LEVELS, tile)
    if not counted:
        _transform_by_sorting(rewards, irregular, row, own, lane, thread, buffer, weights, tile)

    if tile.MASKED:
        clear_row(own, mask, tile)

    copy_out(base, block, tile)
