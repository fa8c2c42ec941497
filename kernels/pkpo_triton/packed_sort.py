"""PTX that sorts a packed kernel's rows: a whole network in one piece, from keys to addresses.

Every thread sorts its own keys; neighbours merge theirs by shuffles. Rows in many threads: see
`pkpo_triton.packed_merges`. The networks: `pkpo_triton.networks`.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.assembly import integers
from pkpo_triton.networks import (
    ACROSS,
    COMPARE,
    bitonic_merge,
    merge_steps,
    padded,
    thread_network,
)


@triton.constexpr_function
def comparators(pairs):
    return [
        f"min.f32 lower, key{a}, key{b}; max.f32 key{b}, key{a}, key{b}; mov.b32 key{a}, lower;"
        for a, b in pairs
    ]


@triton.constexpr_function
def sign(lane, bit, other):
    """The sign bit of lanes whose numbers differ in two bits."""
    return (
        f"shr.b32 sign, {lane}, {bit}; shr.b32 upper, {lane}, {other};"
        " xor.b32 sign, sign, upper; shl.b32 sign, sign, 31;"
    )


@triton.constexpr_function
def negated(n, lane, bit, other):
    factor = f"{sign(lane, bit, other)} or.b32 sign, sign, 0x3F800000;"
    return [factor, *(f"mul.f32 key{i}, key{i}, sign;" for i in range(n))]


@triton.constexpr_function
def shuffled_merges(n, lanes, lane):
    """List what merges sorted lanes, each time twice as many, up to the merge in each lane: several
    times instructions. Their keys are negated as `networks.merge_steps` asks for in its first."""
    merges, lines = [], []
    # Of two samples a lane they compare once a level: there the merge in a lane would stand.
    for kind, a, b in merge_steps(2, lanes, 32)[1:]:
        if kind == COMPARE:
            merges.append(lines)
            lines = []
        elif kind == ACROSS:
            lines += [
                f"shfl.sync.bfly.b32 lower, key{i}, {1 << a}, 31, -1; neg.f32 lower, lower;"
                f" min.f32 key{i}, key{i}, lower;"
                for i in range(n)
            ]
        elif 1 << a < lanes:
            lines += negated(n, lane, a, b)
    return merges


@triton.constexpr_function
def _merged_pairs(n, lane):
    """Merge the sorted keys of two lanes. The lower keeps minima, the upper maxima: that takes two
    instructions, of which a lane executes one, where signs would take three."""
    lines = [f"setp.ne.b32 is_upper, {lane}, 0;"]
    for a in range(n // 2):
        pairs = (a, "upper"), (n - 1 - a, "lower")
        lines += [
            f"shfl.sync.bfly.b32 {other}, key{n - 1 - key}, 1, 31, -1;" for key, other in pairs
        ]
        for key, other in pairs:
            lines += [
                f"@!is_upper min.f32 key{key}, key{key}, {other};",
                f"@is_upper max.f32 key{key}, key{key}, {other};",
            ]
    return lines + comparators(bitonic_merge(n))


@triton.constexpr_function
def _sorted(n, lanes, keys, results):
    lane = f"${2 * n + 1}"
    steps = comparators(thread_network(n))
    if lanes == 2:
        steps += _merged_pairs(n, lane)
    elif lanes > 2:
        steps = negated(n, lane, 0, 1) + steps
        for merge in shuffled_merges(n, lanes, lane):
            steps += merge + comparators(bitonic_merge(n))
    declared = f".reg .pred is_upper; .reg .b32 lower, upper, sign, key<{n}>;"
    return "\n".join(["{", declared, *keys, *steps, *results, "}"])


# C results, C inputs, the address of the row, the lane. No output may lie where an input does
# that is still to be read.
@triton.constexpr_function
def _sorted_operands(n, of_input):
    return ",".join(["=&r"] * n + [of_input] * n + ["r", "r"])


@triton.jit
def _sort(given, row, lane, PTX: tl.constexpr, OPERANDS: tl.constexpr, C: tl.constexpr):
    """Sort rows by what PTX makes of them: C × (T,), twice (T,) → C × (T,) integers."""
    # Lanes shuffle, so it is no function of what each is given.
    return tl.inline_asm_elementwise(
        PTX, OPERANDS, given + (row, lane), integers(C), is_pure=False, pack=1
    )


@triton.constexpr_function
def _sorted_by_upper_bits(n, lanes):
    # A key's bits are the reward's where both the number and the register have a 1; where one of
    # them has, the index has. So it is made in one instruction, which Triton's operations are not.
    indices = padded(n * lanes)
    keys = [_lane_of_key(f"${2 * n + 1}", lanes, -indices)]
    keys += [
        f"lop3.b32 key{i}, ${n + i}, {-indices | _index_in_lane(i, lanes)}, upper, 0xE6;"
        for i in range(n)
    ]
    addresses = [_address(indices, f"key{i}", f"${i}", f"${2 * n}") for i in range(n)]
    return _sorted(n, lanes, keys, addresses)


@triton.constexpr_function
def _lane_of_key(lane, lanes, more):
    """The lane's part of the index, and more bits."""
    return f"mad.lo.s32 upper, {lane}, 4, {more};" if lanes > 1 else f"mov.b32 upper, {more};"


@triton.constexpr_function
def _index_in_lane(i, lanes):
    return i // 4 * 4 * lanes + i % 4


@triton.constexpr_function
def _address(indices, key, address, row):
    # Of Triton's operations three would come.
    return f"and.b32 {address}, {key}, {indices - 1}; mad.lo.s32 {address}, {address}, 4, {row};"


@triton.jit
def sort_by_upper_bits(rewards, row, lane, C: tl.constexpr, THREADS_PER_ROW: tl.constexpr):
    """Sort rows of C · THREADS_PER_ROW words in shared memory by all but their lowest bits, as many
    as an index has, and by their indices where those are equal: C × (T,), twice (T,) → addresses in
    ascending order, C × (T,).

    A key is a reward with its index in the lowest bits. A NaN's may be lost, and another be there
    twice.
    """
    PTX: tl.constexpr = _sorted_by_upper_bits(C, THREADS_PER_ROW)
    return _sort(rewards, row, lane, PTX, _sorted_operands(C, "f"), C)


@triton.constexpr_function
def _sorted_to_keys(n, lanes):
    keys = [_lane_of_key(f"${2 * n + 1}", lanes, 0)]
    keys += [
        f"lop3.b32 key{i}, ${n + i}, {_index_in_lane(i, lanes)}, upper, 0xFE;" for i in range(n)
    ]
    return _sorted(n, lanes, keys, [f"mov.b32 ${i}, key{i};" for i in range(n)])


@triton.jit
def sort_to_keys(bits, row, lane, C: tl.constexpr, THREADS_PER_ROW: tl.constexpr):
    """Sort rows as `sort_by_upper_bits`, of rewards whose lowest bits are 0: C × (T,) integers,
    twice (T,) → keys in ascending order, C × (T,)."""
    PTX: tl.constexpr = _sorted_to_keys(C, THREADS_PER_ROW)
    return _sort(bits, row, lane, PTX, _sorted_operands(C, "r"), C)


@triton.constexpr_function
def _addresses(samples, n):
    return " ".join(_address(samples, f"${n + i}", f"${i}", f"${2 * n}") for i in range(n))


@triton.constexpr_function
def _addresses_operands(n):
    return ",".join(["=&r"] * n + ["r"] * (n + 1))


@triton.jit
def addresses_of(keys, row, N: tl.constexpr, C: tl.constexpr):
    """Find what keys belong to in rows of N words of shared memory: C × (T,), (T,) → C × (T,)."""
    return tl.inline_asm_elementwise(
        _addresses(N, C), _addresses_operands(C), keys + (row,), integers(C), is_pure=True, pack=1
    )


@triton.constexpr_function
def _sorted_by_keys(n, lanes):
    keys = [f"mov.b32 key{i}, ${n + i};" for i in range(n)]
    addresses = [
        f"and.b32 key{i}, key{i}, {4 * padded(n * lanes) - 1}; add.s32 ${i}, key{i}, ${2 * n};"
        for i in range(n)
    ]
    return _sorted(n, lanes, keys, addresses)


@triton.jit
def sort_by_keys(keys, row, lane, C: tl.constexpr, THREADS_PER_ROW: tl.constexpr):
    """Sort rows of C · THREADS_PER_ROW words in shared memory by keys, positive numbers that hold a
    word's offset in bytes in their lowest bits: C × (T,), twice (T,) → addresses in ascending
    order, C × (T,)."""
    PTX: tl.constexpr = _sorted_by_keys(C, THREADS_PER_ROW)
    return _sort(keys, row, lane, PTX, _sorted_operands(C, "r"), C)
