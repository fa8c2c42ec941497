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

from pkpo_triton.networks import thread_network


@triton.constexpr_function
def _floats(n):
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
        _read_each(N), _read_each_operands(N), addresses, _floats(N), is_pure=False, pack=1
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
        _read_four("shared", OFFSET), "=f,=f,=f,=f,r", [address], _floats(4), is_pure=False, pack=1
    )


@triton.jit
def put_four(address, x, OFFSET: tl.constexpr):
    """Write four words of shared memory: (T,) and 4 × (T,)."""
    tl.inline_asm_elementwise(
        _write_four("shared", OFFSET), "=r,r,f,f,f,f", [address, x[0], x[1], x[2], x[3]], tl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def load(address):
    """Read a word of a table: (T,) → (T,)."""
    return tl.inline_asm_elementwise(
        "ld.global.f32 $0, [$1];", "=f,l", [address], tl.float32, is_pure=True, pack=1
    )


@triton.jit
def load_four(address, OFFSET: tl.constexpr):
    """Read four words of global memory that the kernel does not write: () or (T,) → 4 of these."""
    return tl.inline_asm_elementwise(
        _read_four("global", OFFSET), "=f,=f,=f,=f,l", [address], _floats(4), is_pure=True, pack=1
    )


@triton.jit
def store_four(address, x, OFFSET: tl.constexpr):
    """Write four words of global memory: (T,) and 4 × (T,)."""
    tl.inline_asm_elementwise(
        _write_four("global", OFFSET), "=r,l,f,f,f,f", [address, x[0], x[1], x[2], x[3]], tl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


# ---- Sorting -----------------------------------------------------------------------------------


@triton.constexpr_function
def _integers(n):
    return (tl.int32,) * n


@triton.constexpr_function
def _sorted(n, keys, addresses):
    comparators = [
        f"min.f32 lower, key{a}, key{b}; max.f32 key{b}, key{a}, key{b}; mov.b32 key{a}, lower;"
        for a, b in thread_network(n)
    ]
    declared = f".reg .b32 lower, upper, key<{n}>;"
    return f"{{ {declared} {' '.join([*keys, *comparators, *addresses])} }}"


# N addresses, N inputs, the address of the row. No output may lie where an input does that is still
# to be read.
@triton.constexpr_function
def _sorted_operands(n, of_input):
    return ",".join(["=&r"] * n + [of_input] * n + ["r"])


@triton.constexpr_function
def _sorted_by_upper_bits(n):
    # With the mask in a register one instruction replaces a key's lowest bits; Triton's operations
    # become two. As an address becomes three of them instead of two.
    keys = [f"mov.b32 upper, {-n};"]
    keys += [f"lop3.b32 key{i}, ${n + i}, upper, {i}, 0xEA;" for i in range(n)]
    addresses = [
        f"and.b32 key{i}, key{i}, {n - 1}; mad.lo.s32 ${i}, key{i}, 4, ${2 * n};" for i in range(n)
    ]
    return _sorted(n, keys, addresses)


@triton.jit
def sort_by_upper_bits(rewards, row, N: tl.constexpr):
    """Sort rows of N words in shared memory by all but the lowest log2 N bits, and by their indices
    where those are equal: N × (T,), (T,) → addresses in ascending order, N × (T,).

    A key is a reward with its index in the lowest bits. A NaN's may be lost, and another be there
    twice.
    """
    return tl.inline_asm_elementwise(
        _sorted_by_upper_bits(N), _sorted_operands(N, "f"), rewards + (row,), _integers(N),
        is_pure=True, pack=1,
    )  # fmt: skip


@triton.constexpr_function
def _sorted_by_keys(n):
    keys = [f"mov.b32 key{i}, ${n + i};" for i in range(n)]
    addresses = [
        f"and.b32 key{i}, key{i}, {4 * n - 1}; add.s32 ${i}, key{i}, ${2 * n};" for i in range(n)
    ]
    return _sorted(n, keys, addresses)


@triton.jit
def sort_by_keys(keys, row, N: tl.constexpr):
    """Sort rows of N words in shared memory by keys, positive numbers that hold a word's offset in
    bytes in their lowest bits: N × (T,), (T,) → addresses in ascending order, N × (T,)."""
    return tl.inline_asm_elementwise(
        _sorted_by_keys(N), _sorted_operands(N, "r"), keys + (row,), _integers(N),
        is_pure=True, pack=1,
    )  # fmt: skip


# ---- Comparing ---------------------------------------------------------------------------------


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
def _all_differ_operands(n):
    return ",".join(["=r"] + ["f"] * n)


@triton.jit
def all_differ(x, N: tl.constexpr):
    """Tell whether N numbers differ from each other: N × (T,) → (T,). Triton has no chain of
    comparisons."""
    return tl.inline_asm_elementwise(
        _all_differ(N), _all_differ_operands(N), x, tl.int32, is_pure=True, pack=1
    )
