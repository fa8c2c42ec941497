"""What a packed kernel weighs the gaps of its rows with, and how values come of them.

Whole rows share their weights, which come ready for every gap, r_j · gap and
r_j · (offset + slope · |j − origin|): see `pkpo_triton.tables.gap_weights`.

Where samples are left out, rows of any number m of valid ones share the numerator of
r_j = C(j − shift, k−1) / C(m, k), which does not depend on m. The rest is a factor, which waits for
each m beside the other numbers that depend on it: see `pkpo_triton.tables.row_weights`. Both are
scaled by a power of two, so that neither leaves float32; above a row's samples their product may,
where gaps are 0. No r_j is above 1, so that is where it ends, at no cost.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pkpo_triton.assembly import load, load_four, made_anew, times_to_1
from pkpo_triton.packed_tile import reward_before


class GapWeights(NamedTuple):
    """An estimator's weights for whole rows."""

    sums_address: Any  # in global memory, in slots: of each gap in what lies above it
    offset_address: Any  # of each gap in the row offset
    max_coefficient: Any
    has_offset: Any  # 0 where no gap weighs anything in the row offset


class RowWeights(NamedTuple):
    """An estimator's weights for rows of some valid samples each."""

    sums_address: Any  # (T,) in global memory, in slots: r_j for each gap but for the factor
    offset_address: Any  # (T,) of what r_j is multiplied with in the row offset at j=0, and what
    # is added to that from gap to gap
    max_coefficient: Any  # (T,)
    has_offset: Any  # 0 where no gap weighs anything in the row offset
    factor: Any  # (T,)
    gap: Any  # (T,)


@triton.jit
def row_weights(address, n, has_offset):
    """Find the weights of rows of n valid samples, (T,), in a table at an address: `RowWeights`."""
    of_row = address + n.to(tl.int64) * 32
    first, factor, gap, max_coefficient = load_four(of_row, 0)
    sums_address = address + first.to(tl.int32).to(tl.int64) * 4
    return RowWeights(sums_address, of_row + 16, max_coefficient, has_offset, factor, gap)


# ---- A gap's weights ---------------------------------------------------------------------------


@triton.jit
def _slot(at, tile: tl.constexpr):
    """Find where the weight of the gap below a sample is, in slots: its number (T,) → (T,)."""
    if tile.THREADS_PER_ROW == 1:
        return at
    else:
        in_thread = at % tile.C
        quad = in_thread // 4 * tile.THREADS_PER_ROW + at // tile.C
        return quad * 4 + in_thread % 4


@triton.jit
def weight_at(at, weights, tile: tl.constexpr):
    """Weigh the gap below a sample in the sums: its number (T,) → (T,)."""
    weight = load(weights.sums_address + _slot(at, tile).to(tl.int64) * 4, 0)
    return times_to_1(weight, weights.factor) if tile.MASKED else weight


@triton.jit
def offset_weight_at(at, weights, tile: tl.constexpr):
    """Weigh the gap below a sample in the row offset: its number (T,) → (T,)."""
    if tile.MASKED:
        start, step = _offset_line(at // tile.C, weights, tile)
        factor = tl.fma(step, (at % tile.C).to(tl.float32), start)
        return weight_at(at, weights, tile) * factor
    else:
        return load(weights.offset_address + _slot(at, tile).to(tl.int64) * 4, 0)


@triton.jit
def _offset_line(lane, weights, tile: tl.constexpr):
    """Find what r_j is multiplied with in the row offset at a lane's first sample, and what is
    added to that from gap to gap: (T,) → twice (T,)."""
    start = load(weights.offset_address, 0)
    step = load(weights.offset_address, 4)
    return tl.fma(step, (lane * tile.C).to(tl.float32), start), step


# ---- All of a thread's gaps --------------------------------------------------------------------


@triton.jit
def sums_in_thread(ordered, lane, weights, tile: tl.constexpr):
    """Add up a thread's weighted gaps, from its first sample on: C × (T,) and (T,) → C × (T,)."""
    return _added_up(ordered, lane, weights.sums_address, weights, False, tile)


@triton.jit
def offset_in_thread(ordered, lane, weights, tile: tl.constexpr):
    """Add up what a thread's gaps take from the row offset: C × (T,) and (T,) → (T,)."""
    if tile.MASKED:
        sums = _added_up(ordered, lane, weights.sums_address, weights, True, tile)
    else:
        sums = _added_up(ordered, lane, weights.offset_address, weights, False, tile)
    return sums[tile.C - 1]


@triton.jit
def _added_up(ordered, lane, address, weights, ON_LINE: tl.constexpr, tile: tl.constexpr):
    """Add up a thread's gaps, each weighed by a number of a table: C × (T,), (T,) and where the
    row's are → C × (T,). ON_LINE: and by where it stands, for the row offset."""
    total = tl.zeros([tile.T], tl.float32)
    previous = reward_before(ordered, lane, tile)
    if tile.THREADS_PER_ROW > 1:
        address += lane.to(tl.int64) * 16
    if ON_LINE:
        start, step = _offset_line(lane, weights, tile)
    sums = ()
    for quad in tl.static_range(tile.C // 4):
        of_gaps = load_four(address, 16 * tile.THREADS_PER_ROW * quad)  # 4 × () or (T,)
        for i in tl.static_range(4):
            # In front of a row's first sample there is no gap.
            if 4 * quad + i > 0 or tile.THREADS_PER_ROW > 1:
                weight = (
                    of_gaps[i]
                    if tile.MASKED or tile.THREADS_PER_ROW > 1
                    else tl.full([tile.T], of_gaps[i], tl.float32)
                )
                if tile.MASKED:
                    weight = times_to_1(weight, weights.factor)
                if ON_LINE:
                    weight *= tl.fma(step, tl.full([tile.T], 4 * quad + i, tl.float32), start)
                total = tl.fma(weight, ordered[4 * quad + i] - previous, total)
            previous = ordered[4 * quad + i]
            sums = sums + (total,)
    return sums


# ---- Values ------------------------------------------------------------------------------------


@triton.jit
def smallest_value(largest, offset, weights, tile: tl.constexpr):
    """Compute what the smallest of a row becomes, the largest reward's part less the row offset:
    twice (T,) → (T,)."""
    max_coefficient = (
        weights.max_coefficient
        if tile.MASKED
        else tl.full(largest.shape, weights.max_coefficient, tl.float32)
    )
    # Adding 0 turns a −0 into 0.
    return tl.fma(max_coefficient, largest, -offset) + 0.0


@triton.jit
def start_of_sums(smallest, weights):
    """Choose what a row's sums start from, so that values come of them: what its smallest becomes,
    or 0 if that takes a row offset, which rows that are counted know last: (T,) → (T,)."""
    return tl.where(weights.has_offset != 0, 0.0, smallest)


@triton.jit
def gap_weight(weights, tile: tl.constexpr):
    """Tell what sums of weighted gaps are multiplied with: (T,)."""
    return weights.gap if tile.MASKED else tl.full([tile.T], 1.0, tl.float32)


@triton.jit
def values_of(sums, smallest, weights, tile: tl.constexpr):
    """Compute what samples become from sums that start where `start_of_sums` says: C × (T,) and
    (T,) → C × (T,)."""
    if weights.has_offset != 0:
        # Made here, so that LLVM (Triton 3.6) does not add it in every row and choose afterwards,
        # which costs an instruction a sample.
        smallest = made_anew(smallest)
        values = ()
        for c in tl.static_range(tile.C):
            values = values + (sums[c] + smallest,)
        sums = values
    return sums
