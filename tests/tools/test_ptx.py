"""The machine that executes PTX: what lanes do together, what it counts, what it refuses to run.

Kernels are written by hand here.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hand_written import OF_THREAD, kernel, run, words  # noqa: E402

from bench.ptx.instructions import UnknownInstructionError  # noqa: E402
from bench.ptx.launch import Launch  # noqa: E402
from bench.ptx.memory import Pointer  # noqa: E402
from bench.ptx.program import Program  # noqa: E402

# ---- Among lanes -------------------------------------------------------------------------------


def among_lanes(*text: str) -> list[int]:
    """What the 32 lanes of a warp have in %r9, where %r1 is the lane's number."""
    out = torch.zeros(32, dtype=torch.int32)
    launch = run([*OF_THREAD, *text, "st.global.b32 [%rd1], %r9;"], {"out": out})
    launch.faults.check()
    return out.tolist()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("bfly.b32 %r9, %r1, 1, 31, -1", [i ^ 1 for i in range(32)]),
        ("up.b32 %r9, %r1, 1, 0, -1", [max(i - 1, 0) for i in range(32)]),
        # In segments of 8 lanes: the mask is 32 − 8 in bits 8 to 12.
        ("up.b32 %r9, %r1, 2, 0x1800, -1", [i if i % 8 < 2 else i - 2 for i in range(32)]),
        ("down.b32 %r9, %r1, 1, 0x181f, -1", [i if i % 8 == 7 else i + 1 for i in range(32)]),
        ("idx.b32 %r9, %r1, 5, 31, -1", [5] * 32),
        ("idx.b32 %r9, %r1, 5, 0x181f, -1", [i // 8 * 8 + 5 for i in range(32)]),
    ],
)
def test_shuffles(text: str, want: list[int]) -> None:
    assert among_lanes(f"shfl.sync.{text};") == want


def test_a_shuffle_says_whether_there_is_such_a_lane() -> None:
    text = "shfl.sync.up.b32 %r8|%p1, %r1, 3, 0, -1;"
    assert among_lanes(text, "selp.b32 %r9, 1, 0, %p1;") == [0] * 3 + [1] * 29


@pytest.mark.parametrize(
    ("how", "want"),
    [("add.s32", sum(range(32))), ("max.s32", 31), ("min.u32", 0), ("or.b32", 31), ("xor.b32", 0)],
)
def test_reductions(how: str, want: int) -> None:
    assert among_lanes(f"redux.sync.{how} %r9, %r1, -1;") == [want] * 32


def test_registers_join_and_part() -> None:
    text = ["mov.b64 %rd5, {%r1, %r3};", "mov.b64 {%r8, %r9}, %rd5;", "add.s32 %r9, %r9, %r8;"]
    assert among_lanes(*text) == [32 + i for i in range(32)]
    text = ["mov.b32 {%rs1, %rs2}, 0x20001;", "mov.b32 %r9, {%rs2, %rs1};"]
    assert among_lanes(*text) == [0x10002] * 32


def test_guards_and_branches_choose_lanes() -> None:
    text = [
        *("mov.b32 %r9, 0;", "setp.lt.s32 %p1, %r1, 10;", "setp.lt.s32 %p2, %r1, 20;"),
        *("@%p1 add.s32 %r9, %r9, 1;", "@!%p1 add.s32 %r9, %r9, 2;"),
        *("@%p2 bra $L_end;", "add.s32 %r9, %r9, 100;", "$L_end:"),
    ]
    assert among_lanes(*text) == [1] * 10 + [2] * 10 + [102] * 12


def test_loops_end_for_each_lane_on_its_own() -> None:
    text = [
        *("mov.b32 %r9, 0;", "mov.b32 %r8, %r1;", "$L_loop:", "setp.eq.b32 %p1, %r8, 0;"),
        *("@%p1 bra $L_end;", "add.s32 %r9, %r9, %r8;", "sub.s32 %r8, %r8, 1;", "bra $L_loop;"),
        "$L_end:",
    ]
    assert among_lanes(*text) == [i * (i + 1) // 2 for i in range(32)]


def test_names_of_inline_assembly_are_its_own() -> None:
    text = [
        "mov.b32 %r9, 1;",
        "{ .reg .b32 %r9, t; mov.b32 t, 5; { .reg .b64 t; mov.b64 t, 6; } add.s32 %r9, t, 1; }",
        "{ .reg .b32 t; .reg .pred p; setp.gt.s32 p, %r1, 3; mov.b32 t, 7; @p mov.b32 %r9, t; }",
    ]
    assert among_lanes(*text) == [1] * 4 + [7] * 28


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_go_to_shared_memory_and_back(count: int, turned: bool) -> None:
    # Lane i gives the address of row i: 16 bytes, 8 halves.
    names = "{" + ", ".join(f"%r{20 + place}" for place in range(count)) + "}"
    trans = ".trans" if turned else ""
    text = [*OF_THREAD, "mul.lo.s32 %r5, %r1, 16;", "mov.b32 %r6, 0x10000;"]
    # Each half is the number 2·(lane + 32·matrix), and one more in the upper half.
    for place in range(count):
        text.append(f"mad.lo.s32 %r{20 + place}, %r1, 0x20002, {64 * place * 0x10001};")
        text.append(f"add.s32 %r{20 + place}, %r{20 + place}, %r6;")
    text.append(f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r5], {names};")
    text += ["bar.warp.sync -1;", "mul.lo.s32 %r7, %r1, 4;"]
    words = []
    for place in range(count):
        text.append(f"ld.shared.b32 %r9, [%r7+{128 * place}];")
        words.append(torch.zeros(32, dtype=torch.int32))
        text.append(f"st.global.b32 [%rd1+{128 * place}], %r9;")
    text.append(f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {names}, [%r5];")
    for place in range(count):
        text.append(f"st.global.b32 [%rd1+{128 * (count + place)}], %r{20 + place};")
    out = torch.zeros(2, count, 32, dtype=torch.int32)
    run(text, {"out": out}, shared=512).faults.check()
    halves = np.arange(64 * count).reshape(count, 8, 8)  # matrix, row, column as lanes hold them
    stored = out[0].numpy().view(np.uint16).reshape(count, 8, 8)
    np.testing.assert_array_equal(stored, halves.swapaxes(1, 2) if turned else halves)
    np.testing.assert_array_equal(out[1].numpy().view(np.uint16).reshape(count, 8, 8), halves)


# ---- Counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "vector", "wavefronts", "least"),
    [(4, 1, 1, 1), (8, 1, 2, 1), (128, 1, 32, 1), (132, 1, 1, 1), (0, 1, 1, 1), (16, 4, 4, 4)],
)
def test_bank_conflicts(stride: int, vector: int, wavefronts: int, least: int) -> None:
    names = "{%r10, %r11, %r12, %r13}" if vector == 4 else "%r10"
    kind_ = "v4.b32" if vector == 4 else "b32"
    text = [f"mul.lo.s32 %r5, %r1, {stride};", f"ld.shared.{kind_} {names}, [%r5];"]
    launch = run([*OF_THREAD, *text], {"out": words(0)}, shared=32 * 132)
    assert launch.counts.wavefronts.sum() == wavefronts
    assert launch.counts.least_wavefronts.sum() == least


@pytest.mark.parametrize(("stride", "sectors"), [(4, 4), (8, 8), (32, 32), (0, 1)])
def test_sectors(stride: int, sectors: int) -> None:
    memory = torch.zeros(512, dtype=torch.int32)
    skip = -memory.data_ptr() % 32 // 4
    text = ["ld.param.u64 %rd0, [out];", "mov.u32 %r1, %tid.x;"]
    text += [f"mad.wide.u32 %rd1, %r1, {stride}, %rd0;", "ld.global.b32 %r9, [%rd1];"]
    launch = run(text, {"out": memory[skip : skip + 260]})
    assert launch.counts.sectors.sum() == sectors
    assert launch.counts.bytes.sum() == 128


@pytest.mark.parametrize(
    ("stride", "vector", "wavefronts"), [(4, 1, 1), (128, 1, 32), (16, 4, 4), (128, 4, 32)]
)
def test_lines_of_global_memory(stride: int, vector: int, wavefronts: int) -> None:
    # On a GPU it would begin with a line.
    memory = torch.zeros(2048, dtype=torch.int32)
    skip = (64 - memory.data_ptr()) % 128 // 4
    loaded = "v4.b32 {%r10, %r11, %r12, %r13}" if vector == 4 else "b32 %r10"
    text = ["ld.param.u64 %rd0, [out];", "mov.u32 %r1, %tid.x;"]
    text += [f"mad.wide.u32 %rd1, %r1, {stride}, %rd0;", f"ld.global.{loaded}, [%rd1];"]
    launch = run(text, {"out": memory[skip : skip + 1024]})
    assert launch.counts.global_wavefronts.sum() == wavefronts


@pytest.mark.parametrize(("kind_", "want"), [("s8", -56), ("u8", 200)])
def test_a_signed_byte_is_widened(kind_: str, want: int) -> None:
    text = [*OF_THREAD, f"ld.global.{kind_} %r9, [%rd1];", "st.global.b32 [%rd1], %r9;"]
    out = torch.full((32,), 200, dtype=torch.int32)
    run(text, {"out": out}).faults.check()
    assert set(out.tolist()) == {want}


def test_figures_an_element() -> None:
    text = [
        *OF_THREAD,
        *("setp.lt.s32 %p1, %r1, 40;", "@%p1 bra $L_over;", "add.s32 %r1, %r1, 0;", "$L_over:"),
        *("shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;", "bar.sync 0;", "st.global.b32 [%rd1], %r9;"),
    ]
    launch = run(text, {"out": words(128)}, grid=2, threads=64)
    launch.faults.check()
    counts = launch.counts
    assert (counts.branches, counts.diverged, counts.barriers) == (4, 2, 2)
    figures = counts.per_element(elements=128, ctas=2)
    # 6 + 2, the add for half of the warps, 3, and ret.
    assert figures.instructions == 8 + 0.5 + 3 + 1
    assert (figures.shuffles, figures.barriers) == (1, 1)
    assert (figures.stored, figures.least_stored) == (4, 4)


def test_addresses_far_away_are_those_of_a_small_tensor() -> None:
    # CTA 2^26 of 32 threads, 4 bytes each: 2^33 bytes from where the pointer says.
    out, far = words(32), 1 << 26
    program = kernel([*OF_THREAD, "st.global.b32 [%rd1], %r1;"], {"out": out})
    pointer = Pointer("out", out, out.data_ptr() - far * 32 * 4)
    # %r4, the index, is a word of 32 bits, unsigned in mad.wide.u32: 2^31 still fits.
    launch = Launch(program, 1, [pointer], 0, first_cta=far)
    launch.faults.check()
    assert out.tolist() == list(range(32))
    pointer = pointer._replace(address=pointer.address - far * 128)
    launch = Launch(program, 1, [pointer], 0, first_cta=2 * far)
    assert launch.faults.kinds == {"out of bounds"}


# ---- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("bar.sync 1;", "bar.sync 0, 64;", "bar.red.popc.u32 %r9, 0, %p1;", "bar.warp.sync 1;"),
        *(
            "setp.lt.and.s32 %p1|%p2, %r1, 3, %p3;",
            "$L_a: $L_a:",
            "ld.volatile.global.b32 %r9, [0];",
            "{ .shared .b32 one; }",
        ),
    ],
)
def test_what_would_be_taken_for_something_else_raises(text: str) -> None:
    with pytest.raises(UnknownInstructionError, match="line"):
        kernel([text], {})


@pytest.mark.parametrize(
    ("ptx", "message"),
    [
        ("", "one kernel .*; got 0"),
        (".entry a() .reqntid 32 { ret; }\n.entry b() .reqntid 32 { ret; }", "got 2"),
        (".entry a() { ret; }", "whole warps along x; got None"),
        (".entry a() .reqntid 32, 4 { ret; }", r"got \.reqntid 32, 4"),
        (".entry a() .reqntid 48 { ret; }", r"got \.reqntid 48"),
    ],
)
def test_a_text_that_is_no_kernel_of_ours(ptx: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Program(ptx)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order must be 'lockstep' or 'random'; got 'rondom'"):
        run(["ret;"], {}, order="rondom")
