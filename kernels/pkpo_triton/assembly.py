"""PTX for what Triton has no words for: a thread's own words of shared memory, wherever a number in
a register says; memory four words at a time.

It is NVIDIA's alone, and Triton's interpreter has none. Triton does not look into it, so kernels
compile in a fraction of the time that they take in operations. What reads or writes memory that
changes is no pure function: such pieces stay in the order of the program.
"""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.constexpr_function
def floats(n):
    """Give the types of n results."""
    return (tl.float32,) * n


@triton.constexpr_function
def integers(n):
    """Give the types of n results."""
    return (tl.int32,) * n


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
    """Copy numbers of 32 bits so that no compiler knows that they are the same: (T,) → (T,)."""
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, False, 1)


# ---- Between lanes -------------------------------------------------------------------------------


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
