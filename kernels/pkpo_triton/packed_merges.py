"""PTX that sorts rows in several threads, as many as shuffles alone would be slow for.

Each thread sorts its C keys; neighbours merge theirs by shuffles, up to SHUFFLED of them, as in
`pkpo_triton.packed_sort`; then groups of twice as many lanes, and so on. Before samples of one
lane, a bitonic merge compares those of two, the same two lanes for each sample. For that the keys
are laid out anew, through shared memory: a thread of a group of G lanes reads a few neighbours of
every lane's, compares what lies in different lanes, and writes back what it has read; then all
lanes read their own again. That is two writes and two reads of a key, up to four keys at a time,
whatever G is. By shuffles it would be three instructions for each bit of G.

V neighbours of a lane, a vector, are read and written at a time. Vector r of lane l lies at number
r · (G + 1) + l, so that neither lanes that write theirs nor threads that read along meet in a bank.
Of the upper half of the lanes a thread reads the vectors from the other end: as if their samples
stood in descending order, which makes them a bitonic sequence with those of the lower half. So all
samples ascend, and no comparison depends on the lane.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import math

import triton
import triton.language as tl

from pkpo_triton.assembly import floats, integers, test_operands
from pkpo_triton.networks import bitonic_merge, padded, thread_network
from pkpo_triton.packed_sort import comparators, shuffled_merges, sign

# Up to so many lanes shuffles move no more through the same pipe than shared memory would.
SHUFFLED = 4


@triton.constexpr_function
def exchange_words(c, threads, lanes):
    """How many words of shared memory a sort exchanges keys through."""
    groups = [2 * SHUFFLED << level for level in range((lanes // SHUFFLED).bit_length() - 1)]
    return max([threads // group * c * (group + 1) for group in groups], default=0)


@triton.constexpr_function
def _merge_between_lanes(group, words, vectors):
    """Pairs (a, b) of keys in a thread that holds `words` neighbours of every lane: number
    (l · vectors + j) · words + e is lane l's."""

    def at(lane, j, e):
        return (lane * vectors + j) * words + e

    keys = [(j, e) for j in range(vectors) for e in range(words)]
    # The upper half lies the other way around.
    pairs = [
        (at(lane, j, e), at(group - 1 - lane, j, words - 1 - e))
        for lane in range(group // 2)
        for j, e in keys
    ]
    distance = group // 4
    while distance:
        pairs += [
            (at(lane, j, e), at(lane + distance, j, e))
            for lane in range(group)
            if not lane & distance
            for j, e in keys
        ]
        distance //= 2
    return pairs


@triton.constexpr_function
def _barrier(threads):
    return "bar.warp.sync -1;" if threads == 32 else "bar.sync 0;"


@triton.constexpr_function
def _access(what, words, first, base, offset):
    keys = ", ".join(f"key{first + i}" for i in range(words))
    vector = f".v{words}" if words > 1 else ""
    keys = f"{{{keys}}}" if words > 1 else keys
    address = f"[{base}+{offset}]"
    operands = f"{keys}, {address}" if what == "ld" else f"{address}, {keys}"
    return f"{what}.shared{vector}.b32 {operands};"


@triton.constexpr_function
def _exchanged_merge(c, group, thread, buffer, barrier, is_read):
    """Merge the sorted halves of groups of lanes, up to the merge in each lane: instructions.
    is_read: others may still be reading the buffer."""
    words = math.gcd(4, c // group)  # V
    vectors = c // (group * words)  # of each lane in a thread
    step = (group + 1) * words * 4  # bytes from r to r + 1
    place = (
        f"shr.b32 below, {thread}, {group.bit_length() - 1};"
        f" mad.lo.u32 below, below, {c * (group + 1) * 4}, {buffer};"
        f" and.b32 member, {thread}, {group - 1};"
        f" mad.lo.u32 own, member, {4 * words}, below;"
        f" xor.b32 above, member, {group - 1};"
        f" mad.lo.u32 above, above, {step}, below; mad.lo.u32 below, member, {step}, below;"
    )
    of_lane = [(words * r, "own", r * step) for r in range(c // words)]
    of_group = []
    for lane in range(group):
        base = "below" if lane < group // 2 else "above"
        for j in range(vectors):
            r = group * (j if base == "below" else vectors - 1 - j)
            first = (lane * vectors + j) * words
            of_group.append((first, base, r * step + lane * 4 * words))
    return [
        place,
        *([barrier] if is_read else []),
        *(_access("st", words, *at) for at in of_lane),
        barrier,
        *(_access("ld", words, *at) for at in of_group),
        *comparators(_merge_between_lanes(group, words, vectors)),
        *(_access("st", words, *at) for at in of_group),
        barrier,
        *(_access("ld", words, *at) for at in of_lane),
    ]


@triton.constexpr_function
def _merged(merges, n):
    """Merge lanes by merges up to the one in each lane, which ends all of them. That is there once:
    warps wait for instructions that have to be fetched."""
    lines = ["mov.u32 level, 0;", "MERGE:"]
    for level, merge in enumerate(merges[:-1]):
        lines += [f"setp.ne.u32 other, level, {level}; @other bra NEXT{level};", *merge]
        lines += ["bra.uni IN_LANES;", f"NEXT{level}:"]
    lines += [*merges[-1], "IN_LANES:", *comparators(bitonic_merge(n)), "add.u32 level, level, 1;"]
    return [*lines, f"setp.lt.u32 other, level, {len(merges)}; @other bra MERGE;"]


@triton.constexpr_function
def _sorted(c, lanes, threads, keys, results, is_read):
    """Sort rows: of lines that make keys, those that make results of them. The operands that follow
    the c results and the c inputs are lane, thread and buffer, which others may still be reading if
    is_read."""
    lane, thread, buffer = (f"${2 * c + i}" for i in range(3))
    barrier = _barrier(threads)
    merges = shuffled_merges(c, min(lanes, SHUFFLED), lane)
    group = 2 * SHUFFLED
    while group <= lanes:
        merges.append(_exchanged_merge(c, group, thread, buffer, barrier, is_read))
        is_read = True
        group *= 2
    declared = (
        ".reg .pred other; .reg .b32 level, lower, upper, sign, member, own, below, above,"
        f" key<{c}>;"
    )
    lines = [declared, *keys, *comparators(thread_network(c)), *_merged(merges, c)]
    return "\n".join(["{", *lines, *results, "}"])


@triton.constexpr_function
def _operands(c, of_input, more):
    return ",".join(["=&r"] * c + [of_input] * c + list(more))


# ---- By fixed-point numbers --------------------------------------------------------------------


@triton.constexpr_function
def fixed_point_steps(bits):
    """How many steps of a key a row's range is divided into. A key is a positive float by its bits:
    what is left of its 31 bits, less 1/128 so that it is finite whatever is rounded."""
    return 2.0 ** (31 - bits) * 127 / 128


@triton.constexpr_function
def _sorted_by_fixed_point(c, lanes, threads):
    n = padded(c * lanes)
    lane, smallest, scale, row = (f"${2 * c + i}" for i in (0, 3, 4, 5))
    # From 2^23 on, which these bits are, a float's lowest bit is worth 1.
    keys = [f"{sign(lane, 0, 1)} mad.lo.u32 sign, {lane}, 4, sign; mov.b32 upper, 0x4B000000;"]
    keys += [
        f"sub.f32 key{i}, ${c + i}, {smallest}; fma.rn.f32 key{i}, key{i}, {scale}, upper;"
        f" shl.b32 key{i}, key{i}, {n.bit_length() - 1};"
        f" lop3.b32 key{i}, key{i}, sign, {i // 4 * 4 * lanes + i % 4}, 0xFE;"
        for i in range(c)
    ]
    addresses = [
        f"and.b32 key{i}, key{i}, {n - 1}; mad.lo.s32 ${i}, key{i}, 4, {row};" for i in range(c)
    ]
    return _sorted(c, lanes, threads, keys, addresses, is_read=False)


@triton.jit
def sort_by_fixed_point(rewards, smallest, scale, row, lane, thread, buffer, tile: tl.constexpr):
    """Sort rows in shared memory by (reward − smallest) · scale, rounded to whole numbers from 0 to
    `fixed_point_steps`, and by their indices where those are equal: C × (T,), five (T,) and () →
    addresses in ascending order, C × (T,).

    A NaN's may be lost, and another be there twice.
    """
    return tl.inline_asm_elementwise(
        _sorted_by_fixed_point(tile.C, tile.THREADS_PER_ROW, tile.T),
        _operands(tile.C, "f", "rrrffr"),
        rewards + (lane, thread, buffer, smallest, scale, row),
        integers(tile.C), is_pure=False, pack=1,
    )  # fmt: skip


# ---- By digits ---------------------------------------------------------------------------------


@triton.constexpr_function
def _sorted_by_digits(c, lanes, threads):
    n, lane = padded(c) * lanes, f"${2 * c}"
    keys = [f"{sign(lane, 0, 1)} mad.lo.u32 sign, {lane}, {padded(c)}, sign;"]
    keys += [
        f"shl.b32 key{i}, ${c + i}, {n.bit_length() - 1}; lop3.b32 key{i}, key{i}, sign, {i}, 0xFE;"
        for i in range(c)
    ]
    numbers = [f"and.b32 ${i}, key{i}, {n - 1};" for i in range(c)]
    return _sorted(c, lanes, threads, keys, numbers, is_read=True)


@triton.jit
def sort_by_digits(digits, lane, thread, buffer, tile: tl.constexpr):
    """Sort rows by whole numbers from 0 on, below 2^31 / N, and by where they stand where those are
    equal: C × (T,), two (T,) and () → where they stood, in ascending order, C × (T,): sample c of
    a lane at lane · P + c, P the next power of two."""
    return tl.inline_asm_elementwise(
        _sorted_by_digits(tile.C, tile.THREADS_PER_ROW, tile.T), _operands(tile.C, "r", "rrr"),
        digits + (lane, thread, buffer), integers(tile.C), is_pure=False, pack=1,
    )  # fmt: skip


# ---- Of what is almost in order ----------------------------------------------------------------


@triton.constexpr_function
def _exchange_neighbours(a, b):
    return (
        f"setp.lt.f32 swaps, x{b}, x{a}; min.f32 lower, x{a}, x{b}; max.f32 x{b}, x{a}, x{b};"
        f" mov.b32 x{a}, lower; selp.b32 lower, at{b}, at{a}, swaps;"
        f" selp.b32 at{b}, at{a}, at{b}, swaps; mov.b32 at{a}, lower;"
    )


@triton.constexpr_function
def _neighbours_in_order(c, lanes, threads):
    lane, thread, buffer = (f"${4 * c + i}" for i in range(3))
    last, barrier = c - 1, _barrier(threads)
    lines = [f"mov.b32 x{i}, ${2 * c + i}; mov.b32 at{i}, ${3 * c + i};" for i in range(c)]
    lines += [_exchange_neighbours(i, i + 1) for i in range(0, c, 2)]
    lines += [
        barrier,  # others may still be reading
        f"mad.lo.u32 lower, {thread}, 16, {buffer};"
        f" st.shared.v4.b32 [lower], {{x0, at0, x{last}, at{last}}};",
        barrier,
        # The first has none in front, and the last none behind: these read their own.
        f"max.u32 lower, {thread}, 1; mad.lo.u32 lower, lower, 16, {buffer};"
        " ld.shared.v2.b32 {x_before, at_before}, [lower+-8];"
        f" min.u32 lower, {thread}, {threads - 2}; mad.lo.u32 lower, lower, 16, {buffer};"
        " ld.shared.v2.b32 {x_after, at_after}, [lower+16];",
    ]
    lines += [_exchange_neighbours(i, i + 1) for i in range(1, last, 2)]
    lines += [
        f"setp.ne.b32 swaps, {lane}, 0; setp.lt.and.f32 swaps, x0, x_before, swaps;"
        " selp.b32 x0, x_before, x0, swaps; selp.b32 at0, at_before, at0, swaps;"
        f" setp.ne.b32 swaps, {lane}, {lanes - 1};"
        f" setp.lt.and.f32 swaps, x_after, x{last}, swaps;"
        f" selp.b32 x{last}, x_after, x{last}, swaps; selp.b32 at{last}, at_after, at{last}, swaps;"
    ]
    lines += [f"mov.b32 ${i}, x{i}; mov.b32 ${c + i}, at{i};" for i in range(c)]
    declared = (
        f".reg .pred swaps; .reg .b32 lower, x_before, at_before, x_after, at_after, x<{c}>,"
        f" at<{c}>;"
    )
    return f"{{ {declared} {' '.join(lines)} }}"


@triton.constexpr_function
def _neighbours_operands(c):
    return ",".join(["=&f"] * c + ["=&r"] * c + ["f"] * c + ["r"] * (c + 3))


@triton.constexpr_function
def _neighbours_types(c):
    return floats(c) + integers(c)


@triton.jit
def put_neighbours_in_order(ordered, addresses, lane, thread, buffer, tile: tl.constexpr):
    """Put neighbours in order, those that begin at an even number and then the others: twice C ×
    (T,), two (T,) and () → the same, 2 · C × (T,)."""
    return tl.inline_asm_elementwise(
        _neighbours_in_order(tile.C, tile.THREADS_PER_ROW, tile.T), _neighbours_operands(tile.C),
        ordered + addresses + (lane, thread, buffer), _neighbours_types(tile.C), is_pure=False,
        pack=1,
    )  # fmt: skip


@triton.jit
def get_half(address):
    """Read half a word of shared memory: (T,) → (T,), a whole number without a sign."""
    return tl.inline_asm_elementwise(
        "{ .reg .b16 half; ld.shared.u16 half, [$1]; cvt.u32.u16 $0, half; }", "=r,r", [address],
        tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.constexpr_function
def _is_descending(n):
    tests = [f"setp.lt.or.f32 falls, ${c + 1}, ${c}, falls;" for c in range(1, n)]
    return (
        "{ .reg .pred falls; setp.ne.s32 falls, 0, 0;"
        f" {' '.join(tests)} selp.b32 $0, 1, 0, falls; }}"
    )


@triton.jit
def is_descending(x, N: tl.constexpr):
    """Tell whether any of N numbers is smaller than the one before: N × (T,) → (T,)."""
    return tl.inline_asm_elementwise(
        _is_descending(N), test_operands(N), x, tl.int32, is_pure=True, pack=1
    )
