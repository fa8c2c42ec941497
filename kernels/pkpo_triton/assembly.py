"""PTX for what Triton has no words for: a thread's own words of shared memory, wherever a number in
a register says; memory four words at a time; a whole network in one piece.

It is NVIDIA's alone, and Triton's interpreter has none. Triton does not look into it, so kernels
compile in a fraction of the time that they take in operations. What reads or writes memory that
changes is no pure function: such pieces stay in the order of the program.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.networks import ACROSS, COMPARE, merge_steps, thread_network


@triton.constexpr_function
def floats(n):
    """Give the types of n results."""
    return (tl.float32,) * n


# ---- Memory ------------------------------------------------------------------------------------


@triton.constexpr_function
def _variable(words):
    return f"{{ .shared .align 16 .b32 rows[{words}]; mov.u32 $0, rows; }}"


@triton.jit
def shared_memory(WORDS: tl.constexpr):
    """Set shared memory aside, which Triton does not know of: the address, (). Once in a kernel."""
    return tl.inline_asm_elementwise(
        _variable(WORDS), "=r,r", [tl.program_id(0)], tl.int32, is_pure=False, pack=1
    )


@triton.constexpr_function
def _read_each(n):
    return " ".join(f"ld.shared.f32 ${i}, [${n + i}];" for i in range(n))


@triton.constexpr_function
def _read_each_operands(n):
    return ",".join(["=&f"] * n + ["r"] * n)


@triton.jit
def get_each(addresses, N: tl.constexpr):
    """Read a word of shared memory for each address: N × (T,) → N × (T,)."""
    return tl.inline_asm_elementwise(
        _read_each(N), _read_each_operands(N), addresses, floats(N), is_pure=False, pack=1
    )


@triton.jit
def put(address, x):
    """Write a word of shared memory: twice (T,)."""
    tl.inline_asm_elementwise(
        "st.shared.f32 [$1], $2;", "=r,r,f", [address, x], tl.int32, is_pure=False, pack=1
    )


@triton.constexpr_function
def _read_four(space, offset):
    return f"ld.{space}.v4.f32 {{$0, $1, $2, $3}}, [$4+{offset}];"


@triton.constexpr_function
def _write_four(space, offset):
    return f"st.{space}.v4.f32 [$1+{offset}], {{$2, $3, $4, $5}};"


@triton.jit
def get_four(address, OFFSET: tl.constexpr):
    """Read four words of shared memory, OFFSET bytes behind an address: (T,) → 4 × (T,)."""
    return tl.inline_asm_elementwise(
        _read_four("shared", OFFSET), "=f,=f,=f,=f,r", [address], floats(4), is_pure=False, pack=1
    )


@triton.jit
def put_four(address, x, OFFSET: tl.constexpr):
    """Write four words of shared memory: (T,) and 4 × (T,)."""
    tl.inline_asm_elementwise(
        _write_four("shared", OFFSET), "=r,r,f,f,f,f", [address, x[0], x[1], x[2], x[3]], tl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


@triton.constexpr_function
def _read(offset):
    return f"ld.global.f32 $0, [$1+{offset}];"


@triton.jit
def load(address, OFFSET: tl.constexpr):
    """Read a word of global memory that the kernel does not write: (T,) → (T,)."""
    return tl.inline_asm_elementwise(
        _read(OFFSET), "=f,l", [address], tl.float32, is_pure=True, pack=1
    )


@triton.constexpr_function
def _read_samples(dtype, offset):
    if dtype == tl.float32:
        return _read_four("global", offset)
    pairs = f".reg .b32 lower, upper; ld.global.v2.b32 {{lower, upper}}, [$4+{offset}];"
    if dtype == tl.bfloat16:  # the upper half of a float32
        each = "shl.b32 $0, lower, 16; and.b32 $1, lower, -65536;"
        return f"{{ {pairs} {each} shl.b32 $2, upper, 16; and.b32 $3, upper, -65536; }}"
    each = "mov.b32 {half0, half1}, lower; mov.b32 {half2, half3}, upper;"
    each += " ".join(f"cvt.f32.f16 ${i}, half{i};" for i in range(4))
    return f"{{ .reg .b16 half<4>; {pairs} {each} }}"


@triton.constexpr_function
def _write_samples(dtype, offset):
    if dtype == tl.float32:
        return _write_four("global", offset)
    kind = "bf16x2" if dtype == tl.bfloat16 else "f16x2"
    pairs = f"cvt.rn.{kind}.f32 lower, $3, $2; cvt.rn.{kind}.f32 upper, $5, $4;"
    return (
        f"{{ .reg .b32 lower, upper; {pairs} st.global.v2.b32 [$1+{offset}], {{lower, upper}}; }}"
    )


@triton.jit
def load_four(address, OFFSET: tl.constexpr, DTYPE: tl.constexpr = tl.float32):
    """Read four numbers of global memory that the kernel does not write: () or (T,) → 4 of these,
    as float32."""
    return tl.inline_asm_elementwise(
        _read_samples(DTYPE, OFFSET), "=f,=f,=f,=f,l", [address], floats(4), is_pure=True, pack=1
    )


@triton.jit
def store_four(address, x, OFFSET: tl.constexpr, DTYPE: tl.constexpr):
    """Write four numbers of global memory, from float32: (T,) and 4 × (T,)."""
    tl.inline_asm_elementwise(
        _write_samples(DTYPE, OFFSET), "=r,l,f,f,f,f", [address, x[0], x[1], x[2], x[3]], tl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def made_anew(x):
    """Copy numbers so that no compiler knows that they are the same: (T,) → (T,)."""
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, False, 1)


# ---- Sorting -----------------------------------------------------------------------------------


@triton.constexpr_function
def integers(n):
    return (tl.int32,) * n


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
    """Merge sorted lanes, their keys negated as `networks.merge_steps` asks for in its first."""
    lines = []
    for kind, a, b in merge_steps(n, lanes, 32)[1:]:
        if kind == COMPARE:
            lines += comparators([(i, i + a) for i in range(n) if i // a % 2 == 0])
        elif kind == ACROSS:
            lines += [
                f"shfl.sync.bfly.b32 lower, key{i}, {1 << a}, 31, -1; neg.f32 lower, lower;"
                f" min.f32 key{i}, key{i}, lower;"
                for i in range(n)
            ]
        elif 1 << a < lanes:
            lines += negated(n, lane, a, b)
    return lines


@triton.constexpr_function
def _sorted(n, lanes, keys, results):
    steps = comparators(thread_network(n)) + shuffled_merges(n, lanes, f"${2 * n + 1}")
    declared = f".reg .b32 lower, upper, sign, key<{n}>;"
    return f"{{ {declared} {' '.join([*keys, *steps, *results])} }}"


# C results, C inputs, the address of the row, the lane. No output may lie where an input does
# that is still to be read.
@triton.constexpr_function
def _sorted_operands(n, of_input):
    return ",".join(["=&r"] * n + [of_input] * n + ["r", "r"])


@triton.constexpr_function
def _sorted_by_upper_bits(n, lanes):
    # With the mask in a register one instruction replaces a key's lowest bits; Triton's operations
    # become two.
    row, lane = f"${2 * n}", f"${2 * n + 1}"
    if lanes == 1:
        keys = [f"mov.b32 upper, {-n};"]
        keys += [f"lop3.b32 key{i}, ${n + i}, upper, {i}, 0xEA;" for i in range(n)]
    else:
        keys = [f"{_lane_of_key(lane)} mov.b32 upper, {-n * lanes};"]
        keys += [
            f"lop3.b32 key{i}, ${n + i}, upper, sign, 0x6A;"
            f" or.b32 key{i}, key{i}, {_index_in_lane(i, lanes)};"
            for i in range(n)
        ]
    addresses = [_address(n * lanes, f"key{i}", f"${i}", row) for i in range(n)]
    return _sorted(n, lanes, keys, addresses)


@triton.constexpr_function
def _lane_of_key(lane):
    """The lane's part of the index, and the sign that the first step of the merges asks for."""
    return f"{sign(lane, 0, 1)} mad.lo.u32 sign, {lane}, 4, sign;"


@triton.constexpr_function
def _index_in_lane(i, lanes):
    return i // 4 * 4 * lanes + i % 4


@triton.constexpr_function
def _address(samples, key, address, row):
    # Of Triton's operations three would come.
    return f"and.b32 {address}, {key}, {samples - 1}; mad.lo.s32 {address}, {address}, 4, {row};"


@triton.jit
def sort_by_upper_bits(rewards, row, lane, C: tl.constexpr, THREADS_PER_ROW: tl.constexpr):
    """Sort rows of C · THREADS_PER_ROW words in shared memory by all but their lowest bits, as many
    as an index has, and by their indices where those are equal: C × (T,), twice (T,) → addresses in
    ascending order, C × (T,).

    A key is a reward with its index in the lowest bits. A NaN's may be lost, and another be there
    twice.
    """
    return tl.inline_asm_elementwise(
        _sorted_by_upper_bits(C, THREADS_PER_ROW), _sorted_operands(C, "f"), rewards + (row, lane),
        integers(C), is_pure=False, pack=1,
    )  # fmt: skip


@triton.constexpr_function
def _sorted_to_keys(n, lanes):
    # What is 0 may be added to, in one instruction where the lane has a part in it.
    keys = [_lane_of_key(f"${2 * n + 1}") if lanes > 1 else "mov.b32 sign, 0;"]
    keys += [
        f"add.s32 key{i}, ${n + i}, sign; add.s32 key{i}, key{i}, {_index_in_lane(i, lanes)};"
        for i in range(n)
    ]
    return _sorted(n, lanes, keys, [f"mov.b32 ${i}, key{i};" for i in range(n)])


@triton.jit
def sort_to_keys(bits, row, lane, C: tl.constexpr, THREADS_PER_ROW: tl.constexpr):
    """Sort rows as `sort_by_upper_bits`, of rewards whose lowest bits are 0: C × (T,) integers,
    twice (T,) → keys in ascending order, C × (T,)."""
    return tl.inline_asm_elementwise(
        _sorted_to_keys(C, THREADS_PER_ROW), _sorted_operands(C, "r"), bits + (row, lane),
        integers(C), is_pure=True, pack=1,
    )  # fmt: skip


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
    if lanes > 1:
        keys += negated(n, f"${2 * n + 1}", 0, 1)
    addresses = [
        f"and.b32 key{i}, key{i}, {4 * n * lanes - 1}; add.s32 ${i}, key{i}, ${2 * n};"
        for i in range(n)
    ]
    return _sorted(n, lanes, keys, addresses)


@triton.jit
def sort_by_keys(keys, row, lane, C: tl.constexpr, THREADS_PER_ROW: tl.constexpr):
    """Sort rows of C · THREADS_PER_ROW words in shared memory by keys, positive numbers that hold a
    word's offset in bytes in their lowest bits: C × (T,), twice (T,) → addresses in ascending
    order, C × (T,)."""
    return tl.inline_asm_elementwise(
        _sorted_by_keys(C, THREADS_PER_ROW), _sorted_operands(C, "r"), keys + (row, lane),
        integers(C), is_pure=False, pack=1,
    )  # fmt: skip


@triton.constexpr_function
def _shuffle(how, number, clamp):
    return f"shfl.sync.{how}.b32 $0, $1, {number}, {clamp}, -1;"


@triton.jit
def from_lane_across(x, BITS: tl.constexpr):
    """Take what the lane holds whose number differs in these bits: (T,) → (T,)."""
    return tl.inline_asm_elementwise(
        _shuffle("bfly", BITS, 31), "=r,r", [x.to(tl.int32, bitcast=True)], tl.int32,
        is_pure=False, pack=1,
    ).to(x.dtype, bitcast=True)  # fmt: skip


@triton.jit
def from_lane_before(x):
    """Take what the lane in front holds; the first its own: (T,) → (T,)."""
    return tl.inline_asm_elementwise(
        _shuffle("up", 1, 0), "=r,r", [x.to(tl.int32, bitcast=True)], tl.int32,
        is_pure=False, pack=1,
    ).to(x.dtype, bitcast=True)  # fmt: skip


# ---- Arithmetic --------------------------------------------------------------------------------


@triton.jit
def times_to_1(x, factor):
    """Multiply what is not negative, where 1 is the most that may come of it: twice (T,) → (T,)."""
    return tl.inline_asm_elementwise(
        "mul.sat.f32 $0, $1, $2;", "=f,f,f", [x, factor], tl.float32, is_pure=True, pack=1
    )


@triton.jit
def is_at_most(x, limit):
    """Compare: twice (T,) → (T,), 1.0 or 0.0."""
    return tl.inline_asm_elementwise(
        "set.le.f32.f32 $0, $1, $2;", "=f,f,f", [x, limit], tl.float32, is_pure=True, pack=1
    )


@triton.constexpr_function
def _all_differ(n):
    pairs = [(a, b) for b in range(2, n + 1) for a in range(1, b)]
    tests = [f"setp.neu.and.f32 differ, ${a}, ${b}, differ;" for a, b in pairs]
    return (
        "{ .reg .pred differ; setp.eq.s32 differ, 0, 0;"
        f" {' '.join(tests)} selp.b32 $0, 1, 0, differ; }}"
    )


@triton.constexpr_function
def test_operands(n):
    return ",".join(["=r"] + ["f"] * n)


@triton.jit
def all_differ(x, N: tl.constexpr):
    """Tell whether N numbers differ from each other: N × (T,) → (T,). Triton has no chain of
    comparisons."""
    return tl.inline_asm_elementwise(
        _all_differ(N), test_operands(N), x, tl.int32, is_pure=True, pack=1
    )
