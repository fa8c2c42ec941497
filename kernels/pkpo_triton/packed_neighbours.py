"""PTX for rows that are almost in order: see `pkpo_triton.packed_long`."""

# Triton compiles these functions; no type checker can check them.
# mypy: ignore-errors

import triton
import triton.language as tl

from pkpo_triton.assembly import floats, integers, test_operands


@triton.constexpr_function
def _barrier(threads):
    return "bar.warp.sync -1;" if threads == 32 else "bar.sync 0;"


@triton.constexpr_function
def _exchange_neighbours(a, b):
    return (
        f"setp.lt.f32 swaps, x{b}, x{a}; min.f32 lower, x{a}, x{b}; max.f32 x{b}, x{a}, x{b};"
        f" mov.b32 x{a}, lower; selp.b32 lower, at{b}, at{a}, swaps;"
        f" selp.b32 at{b}, at{a}, at{b}, swaps; mov.b32 at{a}, lower;"
    )


@triton.constexpr_function
def _neighbours_in_order(c, threads_per_row, threads):
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
        f" setp.ne.b32 swaps, {lane}, {threads_per_row - 1};"
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
