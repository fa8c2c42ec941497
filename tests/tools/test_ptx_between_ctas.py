"""The machine that executes PTX: atomic accesses, and CTAs that wait for each other."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from hand_written import OF_THREAD, run, words

from bench.ptx import launch as machine
from bench.ptx.instructions import UnknownInstructionError

# Each CTA writes its threads' numbers, waits for all, and each thread reads what the thread in its
# place of the next CTA has written: {after} of 64 threads.
ALL_THEN_NEXT = """
st.global.b32 [%rd1], %r4;
{before}
ld.param.u64 %rd3, [arrived];
setp.eq.s32 %p1, %r1, 0;
@!%p1 bra $L_there;
mov.b32 %r5, 1;
{arrive} [%rd3], %r5;
$L_wait:
{poll} %r6, [%rd3];
setp.lt.s32 %p2, %r6, 4;
@%p2 bra $L_wait;
$L_there:
{after}
add.s32 %r7, %r4, 64;
and.b32 %r7, %r7, 255;
mad.wide.u32 %rd4, %r7, 4, %rd0;
ld.global.b32 %r8, [%rd4];
ld.param.u64 %rd5, [read];
mad.wide.u32 %rd6, %r4, 4, %rd5;
st.global.b32 [%rd6], %r8;
"""
RIGHT = {
    "before": "bar.sync 0;",
    "arrive": "atom.global.gpu.release.add.u32 %r6,",
    "poll": "ld.global.gpu.acquire.b32",
    "after": "bar.sync 0;",
}


def all_then_next(seed: int, **changes: str) -> tuple[set[str], list[int]]:
    tensors = {"out": words(256), "arrived": words(1), "read": words(256)}
    text = ALL_THEN_NEXT.format(**RIGHT | changes).strip().splitlines()
    rest: Any = {"order": "random", "seed": seed, "cooperative": True}
    launch = run([*OF_THREAD, *text], tensors, grid=4, threads=64, **rest)
    return launch.faults.kinds, tensors["read"].tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("arrive", [RIGHT["arrive"], "red.global.gpu.release.add.u32"])
def test_ctas_that_have_waited_for_each_other_do_not_race(seed: int, arrive: str) -> None:
    faults, read = all_then_next(seed, arrive=arrive)
    assert not faults
    assert read == [(i + 64) % 256 for i in range(256)]


@pytest.mark.parametrize(
    "changes",
    [
        {"before": ""},
        {"before": "bar.sync 0;\nld.global.b32 %r9, [%rd1];"},  # who waits may write there
        # So may who changed it meanwhile.
        {"before": "bar.sync 0;\natom.global.gpu.relaxed.exch.b32 %r9, [%rd1], %r4;"},
        {"after": ""},
        {"arrive": "atom.global.gpu.relaxed.add.u32 %r6,"},
        {"poll": "ld.global.b32"},
    ],
    ids=str,
)
def test_a_wait_that_lacks_a_part_is_none(changes: dict[str, str]) -> None:
    assert all_then_next(0, **changes)[0] & {"race"}


def test_who_waits_for_what_never_comes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MOST_STEPS", 1000)
    assert "endless" in all_then_next(0, arrive="atom.global.gpu.release.exch.b32 %r6,")[0]


@pytest.mark.parametrize(
    ("atom", "want", "left"),
    [
        ("add.u32 %r9, [%rd3], %r4;", [i * (i - 1) // 2 for i in range(64)], 64 * 63 // 2),
        ("exch.b32 %r9, [%rd3], %r4;", [0, *range(63)], 63),
        # Who finds another number than its own leaves it there.
        ("cas.b32 %r9, [%rd3], %r4, %r5;", list(range(64)), 64),
        ("cas.b32 %r9, [%rd3], %r5, %r4;", [0] * 64, 0),
    ],
)
def test_every_thread_has_a_turn(atom: str, want: list[int], left: int) -> None:
    tensors = {"out": words(64), "word": words(1)}
    text = ["ld.param.u64 %rd3, [word];", "add.s32 %r5, %r4, 1;"]
    text += [f"atom.global.relaxed.gpu.{atom}", "st.global.b32 [%rd1], %r9;"]
    run([*OF_THREAD, *text], tensors, grid=2).faults.check()
    assert tensors["out"].tolist() == want
    assert tensors["word"].item() == left


def test_words_of_64_bits() -> None:
    tensors = {"out": words(64)}
    text = [
        *("shr.u32 %r5, %r4, 1;", "mad.wide.u32 %rd2, %r5, 8, %rd0;", "mov.b64 %rd3, 0x100000002;"),
        "atom.global.gpu.acq_rel.add.u64 %rd4, [%rd2], %rd3;",
    ]
    run([*OF_THREAD, *text], tensors, threads=64).faults.check()
    assert tensors["out"].tolist() == [4, 2] * 32


@pytest.mark.parametrize("other", ["ld.global.b32 %r9, [%rd0];", "st.global.b32 [%rd0], %r4;"])
def test_atomic_accesses_race_with_others(other: str) -> None:
    tensors = {"out": words(1)}
    for text in ([f"@%p1 {other}", "@!%p1 {}"], ["@!%p1 {}", f"@%p1 {other}"]):
        atom = "atom.global.relaxed.gpu.add.u32 %r8, [%rd0], %r4;"
        lines = ["setp.eq.s32 %p1, %r2, 0;", *(line.format(atom) for line in text)]
        assert "race" in run([*OF_THREAD, *lines], tensors, grid=2).faults.kinds


def test_an_address_that_is_no_elements() -> None:
    text = ["atom.global.relaxed.gpu.add.u32 %r8, [%rd0+4], %r4;"]
    assert run([*OF_THREAD, *text], {"out": words(1)}).faults.kinds == {"out of bounds"}


@pytest.mark.parametrize(
    "opcode",
    ["atom.shared.add.u32", "atom.global.gpu.relaxed.inc.u32", "atom.global.cta.relaxed.add.u32"],
)
def test_atomic_accesses_that_are_not_known(opcode: str) -> None:
    with pytest.raises(UnknownInstructionError):
        run([*OF_THREAD, f"{opcode} %r8, [%rd0], %r4;"], {"out": words(32)})
