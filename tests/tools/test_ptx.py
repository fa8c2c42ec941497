"""The machine that executes PTX: what lanes do together, each fault that it finds, what it counts.

Kernels are written by hand here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hand_written import kernel, run  # noqa: E402

from bench.ptx.instructions import UnknownInstructionError  # noqa: E402
from bench.ptx.launch import Launch  # noqa: E402
from bench.ptx.memory import Pointer, PtxError  # noqa: E402
from bench.ptx.program import Program  # noqa: E402

# ---- Among lanes -------------------------------------------------------------------------------

# %rd1: where this thread's word of `out` lies.
OF_THREAD = [
    "mov.u32 %r1, %tid.x;",
    "mov.u32 %r2, %ctaid.x;",
    "mov.u32 %r3, %ntid.x;",
    "mad.lo.s32 %r4, %r2, %r3, %r1;",
    "ld.param.u64 %rd0, [out];",
    "mad.wide.u32 %rd1, %r4, 4, %rd0;",
]


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


# ---- Faults ------------------------------------------------------------------------------------


def words(count: int) -> Any:
    return torch.zeros(count, dtype=torch.int32)


def faults(text: Sequence[str], tensors: dict[str, Any], **options: Any) -> set[str]:
    return run([*OF_THREAD, *text], tensors, **options).faults.kinds


def test_a_clean_kernel_has_none() -> None:
    text = ["st.global.b32 [%rd1], %r4;"]
    out = words(128)
    launch = run([*OF_THREAD, *text], {"out": out}, grid=2, threads=64)
    launch.faults.check()
    assert out.tolist() == list(range(128))


def test_an_access_outside_of_every_element() -> None:
    assert faults(["st.global.b32 [%rd1+4], %r1;"], {"out": words(32)}) >= {"out of bounds"}
    assert faults(["st.global.b32 [%rd1+-4], %r1;"], {"out": words(32)}) >= {"out of bounds"}
    assert "out of bounds" in faults(["ld.global.b32 %r9, [%rd1+4];"], {"out": words(32)})
    text = ["ld.shared.b32 %r9, [%r1+1000];"]
    assert "out of bounds" in faults(["mov.b32 %r1, 0;", *text], {"out": words(32)}, shared=1000)


def test_gaps_between_rows_are_no_elements() -> None:
    gapped = torch.zeros(8, 8, dtype=torch.int32)[:, :4]
    assert "out of bounds" in faults(["st.global.b32 [%rd1], %r1;"], {"out": gapped})


def test_a_fault_names_line_and_thread() -> None:
    text = [".loc 1 12 0 // kernels.py:12:5 @[ kernels.py:40:9 ]", "st.global.b32 [%rd1+4], %r1;"]
    launch = run([*OF_THREAD, *text], {"out": words(32)})
    message = r"(?s)out of bounds, 1 times: line 12 .*\[%rd1\+4\].*at kernels.py:12:5 @\[ kern.*"
    with pytest.raises(PtxError, match=message + "thread 31 of CTA 0, byte 128"):
        launch.faults.check()


def test_misalignment() -> None:
    text = ["st.global.v2.b32 [%rd1], {%r1, %r1};"]
    assert "misaligned" in faults(text, {"out": words(33)})


def test_shared_memory_that_nobody_wrote() -> None:
    text = ["mul.lo.s32 %r5, %r1, 4;", "ld.shared.b32 %r9, [%r5];", "st.global.b32 [%rd1], %r9;"]
    assert faults(text, {"out": words(32)}, shared=128) == {"uninitialised"}


def test_variables_in_shared_memory_have_places_of_their_own() -> None:
    out = words(32)
    text = [
        *OF_THREAD,
        *("mul.lo.s32 %r5, %r1, 4;", "add.s32 %r6, %r1, 100;", "mov.u32 %r7, global_smem;"),
        "{ .shared .align 16 .b32 rows[32]; mov.u32 %r8, rows; st.shared.b32 [rows+0], 7; }",
        "{ .shared .align 4 .b32 rows[32]; mov.u32 %r9, rows; st.shared.b32 [rows], 8; }",
        # A launch's own memory lies behind; the second variable is the last in front of it.
        *("add.s32 %r10, %r7, %r5;", "st.shared.b32 [%r10], %r6;", "ld.shared.b32 %r11, [%r10];"),
        *("bar.sync 0;", "ld.shared.b32 %r12, [%r8];", "ld.shared.b32 %r13, [%r9];"),
        *("add.s32 %r11, %r11, %r12;", "add.s32 %r11, %r11, %r13;"),
        "st.global.b32 [%rd1], %r11;",
    ]
    run(text, {"out": out}, shared=128).faults.check()
    assert out.tolist() == [100 + i + 7 + 8 for i in range(32)]
    assert run(text, {"out": out}, shared=64).faults.kinds == {"out of bounds"}


ROUND = [  # each thread writes its word of shared memory and reads that of another
    "mul.lo.s32 %r5, %r1, 4;",
    "st.shared.b32 [%r5], %r1;",
    "{barrier}",
    "xor.b32 %r6, %r5, {other};",
    "ld.shared.b32 %r9, [%r6];",
    "st.global.b32 [%rd1], %r9;",
]


@pytest.mark.parametrize("order", ["lockstep", "random"])
@pytest.mark.parametrize(
    ("barrier", "other", "want"),
    [
        ("bar.sync 0;", 128, set()),
        ("", 128, {"race"}),
        ("bar.warp.sync -1;", 128, {"race"}),
        ("bar.sync 0;", 4, set()),
        ("bar.warp.sync -1;", 4, set()),
        ("", 4, {"race in a warp"}),
    ],
)
def test_races_in_shared_memory(barrier: str, other: int, want: set[str], order: str) -> None:
    text = [line.format(barrier=barrier, other=other) for line in ROUND]
    if order == "random" and "race" in want:
        want = want | {"uninitialised"}  # the other warp may not have been there yet
        assert faults(text, {"out": words(64)}, threads=64, shared=256, order=order) & want
        return
    assert faults(text, {"out": words(64)}, threads=64, shared=256, order=order) == want
    loose = faults(text, {"out": words(64)}, threads=64, shared=256, order=order, strict=False)
    assert loose == want - {"race in a warp"}


def test_a_write_after_another_warp_has_read() -> None:
    text = [
        *("mul.lo.s32 %r5, %r1, 4;", "st.shared.b32 [%r5], %r1;", "bar.sync 0;"),
        *("xor.b32 %r6, %r5, 128;", "ld.shared.b32 %r9, [%r6];", "{}", "mov.b32 %r7, 99;"),
        *("st.shared.b32 [%r5], %r7;", "st.global.b32 [%rd1], %r9;"),
    ]
    for barrier, want in (("bar.sync 0;", set()), ("", {"race"})):
        lines = [line.format(barrier) for line in text]
        assert faults(lines, {"out": words(64)}, threads=64, shared=256) == want


def test_races_between_ctas() -> None:
    assert faults(["st.global.b32 [%rd0], %r2;"], {"out": words(1)}, grid=2) >= {"race"}
    # All write the same: no order makes a difference.
    text = ["mov.b32 %r9, 5;", "st.global.b32 [%rd0], %r9;"]
    assert not faults(text, {"out": words(1)}, grid=2, threads=64)


@pytest.mark.parametrize(
    "text",
    [
        # Words of the next CTA are read, and written by it after a barrier of its own.
        [
            *("setp.lt.s32 %p1, %r4, 96;", "@%p1 ld.global.b32 %r8, [%rd1+128];"),
            *("bar.sync 0;", "st.global.b32 [%rd1], %r4;"),
        ],
        # All read a word, and one of another CTA writes it.
        [
            *("ld.global.b32 %r9, [%rd0];", "bar.sync 0;", "add.s32 %r9, %r9, 1;"),
            *("setp.eq.s32 %p1, %r4, 32;", "@%p1 st.global.b32 [%rd0], %r9;"),
        ],
        # All write the same, and then one of them something else.
        [
            *("mov.b32 %r9, 1;", "st.global.b32 [%rd0], %r9;", "setp.eq.s32 %p1, %r4, 63;"),
            *("mov.b32 %r9, 2;", "@%p1 st.global.b32 [%rd0], %r9;"),
        ],
    ],
)
def test_races_that_a_barrier_does_not_end(text: list[str]) -> None:
    assert "race" in faults(text, {"out": words(128)}, grid=4)


def test_races_among_the_lanes_of_a_warp() -> None:
    partner = ["xor.b32 %r5, %r4, 1;", "mad.wide.u32 %rd2, %r5, 4, %rd0;"]
    twice = [*partner, "st.global.b32 [%rd1], %r1;", "{}", "st.global.b32 [%rd2], %r2;"]
    read_first = [
        *("ld.global.b32 %r9, [%rd0];", "{}", "setp.eq.s32 %p1, %r1, 31;"),
        "@%p1 st.global.b32 [%rd0], %r1;",
    ]
    for text in (twice, read_first):
        for barrier, want in (("bar.warp.sync -1;", False), ("", True)):
            found = faults([line.format(barrier) for line in text], {"out": words(32)})
            assert ("race in a warp" in found) == want
            assert "race" not in found


def test_an_access_belongs_to_its_own_argument() -> None:
    memory = words(64)
    both = {"out": memory[:32], "behind": memory[32:]}
    assert "out of bounds" in faults(["ld.global.b32 %r9, [%rd1+128];"], both)
    assert not faults(["st.global.b32 [%rd1], %r1;"], both)
    # A part of another argument, which nobody writes to, is written whole.
    assert not faults(["st.global.b32 [%rd1], %r1;"], {"out": memory[8:40], "all": memory})


def test_guards_hold_back_returns_and_barriers() -> None:
    text = [
        *("mov.b32 %r9, 1;", "setp.lt.s32 %p1, %r1, 4;", "@%p1 ret;"),
        *("mov.b32 %r9, 2;", "st.global.b32 [%rd1], %r9;"),
    ]
    out = words(32)
    launch = run([*OF_THREAD, *text], {"out": out})
    assert out.tolist() == [0] * 4 + [2] * 28
    assert launch.faults.kinds == {"partly written"}
    text = ["setp.lt.s32 %p1, %r1, 32;", "@%p1 bar.sync 0;"]
    assert faults(text, {"out": words(0)}, threads=64) == {"deadlock"}


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


def test_lanes_that_write_different_values_at_once() -> None:
    assert faults(["st.global.b32 [%rd0], %r1;"], {"out": words(1)}) >= {"race"}


@pytest.mark.parametrize(
    "text", ["bar.sync 0;", "shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;", "bar.warp.sync -1;"]
)
def test_what_only_a_part_of_a_warp_reaches(text: str) -> None:
    lines = ["setp.lt.s32 %p1, %r1, 7;", "@%p1 bra $L_over;", text, "$L_over:", "bar.sync 0;"]
    assert faults(lines, {"out": words(0)}) >= {"partial warp"}


def test_a_lane_that_the_mask_leaves_out() -> None:
    assert faults(["shfl.sync.bfly.b32 %r9, %r1, 1, 31, 1;"], {"out": words(0)}) == {"missing lane"}


def test_a_barrier_that_a_warp_never_reaches() -> None:
    text = ["setp.lt.s32 %p1, %r1, 32;", "@%p1 bra $L_over;", "bar.sync 0;", "$L_over:"]
    assert faults(text, {"out": words(0)}, threads=64) == {"deadlock"}


def test_a_result_that_is_partly_written() -> None:
    text = ["setp.lt.s32 %p1, %r1, 31;", "@%p1 st.global.b32 [%rd1], %r1;"]
    assert faults(text, {"out": words(32)}) == {"partly written"}


def test_registers_are_garbage_until_they_are_written() -> None:
    text = [*OF_THREAD, "st.global.b32 [%rd1], %r40;"]
    found = []
    for seed in (0, 1):
        out = words(32)
        run(text, {"out": out}, seed=seed)
        found.append(out.tolist())
    assert len(set(found[0])) > 16 and found[0] != found[1]


def test_warps_run_in_the_order_of_the_seed() -> None:
    # The last to write says in which order they came; all read the clock of another warp.
    text = [line.format(barrier="", other=128) for line in ROUND]
    results = set()
    for seed in range(8):
        out = words(64)
        run([*OF_THREAD, *text], {"out": out}, threads=64, shared=256, order="random", seed=seed)
        results.add((out[0].item() == 32, out[32].item() == 0))
    assert {(True, False), (False, True)} <= results


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
