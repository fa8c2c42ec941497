"""PTX that sorts a packed kernel's rows: a whole network in one piece, from keys to addresses.

Every thread sorts its own C keys by a short list of comparators: see `pkpo_triton.networks`. Then a
row's threads, its lanes, merge what they have: two at a time, then four, and so on, by bitonic
merges. Such a merge compares keys whose numbers in the row differ in one bit, from its topmost bit
to the lowest. Upper bits are the lane's number, of a key's number in its lane the two lowest bits
are A and B, and those above say which quad:

    row     lane bits …  quad …  B  A

Lanes do not compare, they exchange. A bit of the lane's number changes places with A or B: every
lane gives half of its keys, those with a 1 there, to the lane whose number differs in the bit, and
then has both keys of every pair. That is half a shuffle for a key, and the same registers in all
lanes. But which half a lane is to give depends on the lane. So the comparison that a bit decided
last before it leaves is a *falling* one: it puts the larger key first in the lanes that have the
bit which comes. It takes three instructions for a pair, others two.

A merge of 2^g lanes exchanges g + 1 times:

    the topmost bit takes A's place: every key meets its mirror image, so nothing has to fall
    the other lane bits take B's, one after the other
    (the quads: nothing leaves the lane, each of its four sequences is bitonic)
    what was B takes B's, and what was A as well; in the last merge A's, where it was at first

After a merge what is in A is in B, and the other way around: registers change places. Bits leave
for other lanes than they came from; that the last merge leaves lanes in order decides in which
order their bits take part: the last first, then the others from the top.

Up to eight lanes the merges stand there one after the other, which saves an instruction or two a
key; of more they are a loop, for warps wait for instructions that have to be fetched. What 64
lanes, two warps, exchange in their last merge goes through shared memory.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import math

import triton
import triton.language as tl

from pkpo_triton.assembly import integers
from pkpo_triton.networks import bitonic_merge, padded, thread_network

# ---- What all sorts share ----------------------------------------------------------------------


@triton.constexpr_function
def _comparators(pairs):
    """Put the smaller key of each pair into the first: instructions."""
    return [
        f"min.f32 lower, key{a}, key{b}; max.f32 key{b}, key{a}, key{b}; mov.b32 key{a}, lower;"
        for a, b in pairs
    ]


@triton.constexpr_function
def _falling_comparators(pairs, lane, bit):
    """Put the smaller key of each pair into the first, in lanes whose number has a bit into the
    second: instructions, three a pair."""
    return [
        f"and.b32 lower, {lane}, {bit}; setp.ne.u32 falls, lower, 0;",
        *(
            f"setp.lt.xor.f32 stays, key{a}, key{b}, falls; selp.f32 lower, key{a}, key{b}, stays;"
            f" selp.f32 key{b}, key{b}, key{a}, stays; mov.b32 key{a}, lower;"
            for a, b in pairs
        ),
    ]


@triton.constexpr_function
def _exchange(keys, across):
    """Exchange keys with the lane whose number differs in the bits `across`: instructions."""
    return [f"shfl.sync.bfly.b32 key{i}, key{i}, {across}, 31, -1;" for i in keys]


@triton.constexpr_function
def _exchange_through_memory(keys, across, lane, buffer):
    """Exchange keys between 64 lanes, which lie in two warps: instructions. Others may still be
    reading the buffer."""
    words = math.gcd(4, len(keys))
    # The same key of all lanes takes 256 bytes.
    vectors = [
        (f"+{256 * at}]", ", ".join(f"key{i}" for i in keys[at : at + words]))
        for at in range(0, len(keys), words)
    ]
    return [
        f"mad.lo.u32 upper, {lane}, {4 * words}, {buffer}; xor.b32 lower, {lane}, {across};"
        f" mad.lo.u32 lower, lower, {4 * words}, {buffer};",
        "bar.sync 0;",
        *(f"st.shared.v{words}.b32 [upper{at}, {{{vector}}};" for at, vector in vectors),
        "bar.sync 0;",
        *(f"ld.shared.v{words}.b32 {{{vector}}}, [lower{at};" for at, vector in vectors),
    ]


@triton.constexpr_function
def _swapped_comparators(c):
    """Compare what differs in B, and let A and B change places: instructions."""
    return [
        f"min.f32 lower, key{i}, key{i + 2}; max.f32 upper, key{i}, key{i + 2};"
        f" min.f32 key{i + 2}, key{i + 1}, key{i + 3}; max.f32 key{i + 3}, key{i + 1}, key{i + 3};"
        f" mov.b32 key{i}, lower; mov.b32 key{i + 1}, upper;"
        for i in range(0, c, 4)
    ]


@triton.constexpr_function
def _merged(c, threads_per_row, lane, buffer):
    """Merge a row's sorted lanes: instructions. Of a key's number bit 0 is A, bit 1 is B."""
    odd = range(1, c, 2)
    mirrored = [(i, c - 1 - i) for i in range(0, c, 2)]
    pairs = [(i, i + 2) for i in range(c) if not i & 2]
    within = [(4 * a + i, 4 * b + i) for a, b in bitonic_merge(c // 4) for i in range(4)]
    last = threads_per_row // 2  # the last merge's topmost bit
    bits = [last >> i for i in range(1, threads_per_row.bit_length() - 1)]  # those of the others

    def chained(bit):
        return [
            *_falling_comparators(pairs, lane, bit),
            *_exchange([b for _, b in pairs], bit),
        ]

    def merge(topmost, across, chain):
        return [
            *_exchange(odd, across),
            *_comparators(mirrored),
            *chain,
            *_comparators(within),
            *chained(topmost),
            *_swapped_comparators(c),
        ]

    lines = []
    if threads_per_row <= 8:
        for i, topmost in enumerate(bits):
            chain = [line for bit in bits[:i] for line in chained(bit)]
            lines += merge(topmost, sum(bits[: i + 1]), chain)
    else:
        chain = [
            f"mov.u32 bit, {bits[0]}; setp.eq.u32 done, bit, topmost; @done bra WITHIN;",
            '.pragma "nounroll";',
            "CHAIN:",
            *chained("bit"),
            "shr.u32 bit, bit, 1; setp.ne.u32 done, bit, topmost; @done bra CHAIN;",
            "WITHIN:",
        ]
        lines += [
            f"mov.u32 topmost, {bits[0]}; mov.u32 across, topmost;",
            '.pragma "nounroll";',
            "MERGE:",
            *merge("topmost", "across", chain),
            "shr.u32 topmost, topmost, 1; or.b32 across, across, topmost;"
            " setp.ne.u32 done, topmost, 0; @done bra MERGE;",
        ]

    def exchange(across):
        if threads_per_row <= 32:
            return _exchange(odd, across)
        return _exchange_through_memory(odd, across, lane, buffer)

    lines += [*exchange(threads_per_row - 1), *_falling_comparators(mirrored, lane, last)]
    lines += [line for bit in bits for line in chained(bit)]
    lines += [*_comparators(within), *_comparators(pairs), *exchange(last)]
    return lines + _comparators([(i, i + 1) for i in range(0, c, 2)])


@triton.constexpr_function
def _sorted(c, threads_per_row, keys, result, lane, buffer=None):
    """Sort rows: instructions. Of lines that make the keys and of a function that makes result i of
    the name of a key."""
    lines = [*keys, *_comparators(thread_network(c))]
    if threads_per_row > 1:
        lines += _merged(c, threads_per_row, lane, buffer)
    results = [result(i, f"key{i}") for i in range(c)]
    declared = (
        f".reg .pred falls, stays, done; .reg .b32 lower, upper, bit, topmost, across, key<{c}>;"
    )
    return "\n".join(["{", declared, *lines, *results, "}"])


# C results, C inputs, and what else there is. No output may lie where an input does that
# is still to be read.
@triton.constexpr_function
def _operands(c, of_input, more):
    return ",".join(["=&r"] * c + [of_input] * c + list(more))


@triton.constexpr_function
def _address(indices, key, address, row):
    # Of Triton's operations three would come.
    return f"and.b32 {address}, {key}, {indices - 1}; mad.lo.s32 {address}, {address}, 4, {row};"


# ---- By bits of rewards ------------------------------------------------------------------------


@triton.jit
def _sort(given, row, lane, PTX: tl.constexpr, OPERANDS: tl.constexpr, C: tl.constexpr):
    """Sort rows by what PTX makes of them: C × (T,), twice (T,) → C × (T,) integers."""
    # Lanes shuffle, so it is no function of what each is given.
    return tl.inline_asm_elementwise(
        PTX, OPERANDS, given + (row, lane), integers(C), is_pure=False, pack=1
    )


@triton.constexpr_function
def _sorted_by_upper_bits(c, threads_per_row):
    # A key's bits are the reward's where both the number and the register have a 1; where one of
    # them has, the index has. So it is made in one instruction, which Triton's operations are not.
    indices, row, lane = padded(c * threads_per_row), f"${2 * c}", f"${2 * c + 1}"
    keys = [_lane_of_key(lane, threads_per_row, -indices)]
    keys += [
        f"lop3.b32 key{i}, ${c + i}, {-indices | _index_in_lane(i, threads_per_row)}, upper, 0xE6;"
        for i in range(c)
    ]
    return _sorted(
        c, threads_per_row, keys, lambda i, key: _address(indices, key, f"${i}", row), lane
    )


@triton.constexpr_function
def _lane_of_key(lane, threads_per_row, more):
    """The lane's part of the index, and more bits."""
    return (
        f"mad.lo.s32 upper, {lane}, 4, {more};"
        if threads_per_row > 1
        else f"mov.b32 upper, {more};"
    )


@triton.constexpr_function
def _index_in_lane(i, threads_per_row):
    return i // 4 * 4 * threads_per_row + i % 4


@triton.jit
def sort_by_upper_bits(rewards, row, lane, C: tl.constexpr, THREADS_PER_ROW: tl.constexpr):
    """Sort rows of C · THREADS_PER_ROW words in shared memory by all but their lowest bits, as many
    as an index has, and by their indices where those are equal: C × (T,), twice (T,) → addresses in
    ascending order, C × (T,).

    A key is a reward with its index in the lowest bits. A NaN's may be lost, and another be there
    twice.
    """
    PTX: tl.constexpr = _sorted_by_upper_bits(C, THREADS_PER_ROW)
    return _sort(rewards, row, lane, PTX, _operands(C, "f", "rr"), C)


@triton.constexpr_function
def _sorted_to_keys(c, threads_per_row):
    lane = f"${2 * c + 1}"
    keys = [_lane_of_key(lane, threads_per_row, 0)]
    keys += [
        f"lop3.b32 key{i}, ${c + i}, {_index_in_lane(i, threads_per_row)}, upper, 0xFE;"
        for i in range(c)
    ]
    return _sorted(c, threads_per_row, keys, lambda i, key: f"mov.b32 ${i}, {key};", lane)


@triton.jit
def sort_to_keys(bits, row, lane, C: tl.constexpr, THREADS_PER_ROW: tl.constexpr):
    """Sort rows as `sort_by_upper_bits`, of rewards whose lowest bits are 0: C × (T,) integers,
    twice (T,) → keys in ascending order, C × (T,)."""
    PTX: tl.constexpr = _sorted_to_keys(C, THREADS_PER_ROW)
    return _sort(bits, row, lane, PTX, _operands(C, "r", "rr"), C)


@triton.constexpr_function
def _addresses(samples, n):
    return " ".join(_address(samples, f"${n + i}", f"${i}", f"${2 * n}") for i in range(n))


@triton.jit
def addresses_of(keys, row, N: tl.constexpr, C: tl.constexpr):
    """Find what keys belong to in rows of N words of shared memory: C × (T,), (T,) → C × (T,)."""
    return tl.inline_asm_elementwise(
        _addresses(N, C), _operands(C, "r", "r"), keys + (row,), integers(C), is_pure=True, pack=1
    )


@triton.constexpr_function
def _sorted_by_keys(c, threads_per_row):
    offsets, row, lane = 4 * padded(c * threads_per_row), f"${2 * c}", f"${2 * c + 1}"
    keys = [f"mov.b32 key{i}, ${c + i};" for i in range(c)]
    return _sorted(
        c,
        threads_per_row,
        keys,
        lambda i, key: f"and.b32 ${i}, {key}, {offsets - 1}; add.s32 ${i}, ${i}, {row};",
        lane,
    )


@triton.jit
def sort_by_keys(keys, row, lane, C: tl.constexpr, THREADS_PER_ROW: tl.constexpr):
    """Sort rows of C · THREADS_PER_ROW words in shared memory by keys, positive numbers that hold a
    word's offset in bytes in their lowest bits: C × (T,), twice (T,) → addresses in ascending
    order, C × (T,)."""
    PTX: tl.constexpr = _sorted_by_keys(C, THREADS_PER_ROW)
    return _sort(keys, row, lane, PTX, _operands(C, "r", "rr"), C)


# ---- By fixed-point numbers --------------------------------------------------------------------


@triton.constexpr_function
def fixed_point_steps(bits):
    """How many steps of a key a row's range is divided into. A key is a positive float by its bits:
    what is left of its 31 bits, less 1/128 so that it is finite whatever is rounded."""
    return 2.0 ** (31 - bits) * 127 / 128


@triton.constexpr_function
def _sorted_by_fixed_point(c, threads_per_row):
    lane, buffer, smallest, scale, row, one = (f"${2 * c + i}" for i in range(6))
    indices = padded(c * threads_per_row)
    # From 2^23 on, which these bits are, a float's lowest bit is worth 1. Indices are added on the
    # FMA pipe, which has less to do than the ALU, where sums without a product go.
    keys = [f"shl.b32 lower, {lane}, 2; mov.b32 upper, 0x4B000000;"]
    keys += [
        f"sub.f32 key{i}, ${c + i}, {smallest}; fma.rn.f32 key{i}, key{i}, {scale}, upper;"
        f" mad.lo.u32 key{i}, key{i}, {indices}, lower;"
        f" mad.lo.u32 key{i}, key{i}, {one}, {_index_in_lane(i, threads_per_row)};"
        for i in range(c)
    ]
    return _sorted(
        c, threads_per_row, keys, lambda i, key: _address(indices, key, f"${i}", row), lane, buffer
    )


@triton.jit
def sort_by_fixed_point(rewards, smallest, scale, row, lane, buffer, tile: tl.constexpr):
    """Sort rows in shared memory by (reward − smallest) · scale, rounded to whole numbers from 0 to
    `fixed_point_steps`, and by their indices where those are equal: C × (T,), four (T,) and () →
    addresses in ascending order, C × (T,).

    A NaN's may be lost, and another be there twice.
    """
    # 1, which no compiler knows: `_sorted_by_fixed_point` multiplies with it.
    one = (row >= 0).to(tl.int32)
    return tl.inline_asm_elementwise(
        _sorted_by_fixed_point(tile.C, tile.THREADS_PER_ROW), _operands(tile.C, "f", "rrffrr"),
        rewards + (lane, buffer, smallest, scale, row, one), integers(tile.C), is_pure=False,
        pack=1,
    )  # fmt: skip


# ---- By digits ---------------------------------------------------------------------------------


@triton.constexpr_function
def _sorted_by_digits(c, threads_per_row):
    n, lane, buffer = padded(c) * threads_per_row, f"${2 * c}", f"${2 * c + 1}"
    keys = [f"mul.lo.u32 upper, {lane}, {padded(c)};"]
    keys += [
        f"shl.b32 key{i}, ${c + i}, {n.bit_length() - 1};"
        f" lop3.b32 key{i}, key{i}, upper, {i}, 0xFE;"
        for i in range(c)
    ]
    return _sorted(
        c, threads_per_row, keys, lambda i, key: f"and.b32 ${i}, {key}, {n - 1};", lane, buffer
    )


@triton.jit
def sort_by_digits(digits, lane, buffer, tile: tl.constexpr):
    """Sort rows by whole numbers from 0 on, below 2^31 / N, and by where they stand where those are
    equal: C × (T,), (T,) and () → where they stood, in ascending order, C × (T,): sample c of a
    lane at lane · P + c, P the next power of two."""
    return tl.inline_asm_elementwise(
        _sorted_by_digits(tile.C, tile.THREADS_PER_ROW), _operands(tile.C, "r", "rr"),
        digits + (lane, buffer), integers(tile.C), is_pure=False, pack=1,
    )  # fmt: skip
