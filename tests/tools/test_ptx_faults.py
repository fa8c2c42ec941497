"""The machine that executes PTX: each fault that it finds, in kernels written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hand_written import OF_THREAD, run, words  # noqa: E402

from bench.ptx.memory import PtxError  # noqa: E402


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
