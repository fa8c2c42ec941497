"""The Triton kernels, compiled ahead of time for GPUs that are not here, and what they cost."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

pytest.importorskip("triton")

import torch
from pkpo_triton import groups

import pkpo_kernels as pk
from bench import gpu_static
from bench.ptx.driver import TARGETS, Device
from bench.ptx.usage import usage_of
from bench.records import RESULTS, read_table
from bench.shapes import MEASURED_N
from bench.variants import KINDS, Variant, long_rows, shipped

RECORD = RESULTS / "gpu-static-sm_90.csv"
# These may grow by so much before somebody has to look.
BUDGETED = ("instructions", "alu", "shuffles", "wavefronts", "loaded", "stored")
GROWTH = 1.05
TARGET_INSTRUCTIONS = {8: 30, 16: 26, 32: 27, 64: 36, 128: 46, 256: 63, 512: 85, 1024: 104}
TARGET_INSTRUCTIONS |= {2048: 115, 4096: 140}
TWO_VALUE_INSTRUCTIONS = 28
# n, dtype, with a mask, and the most instructions of normal rewards: a mask costs 6 or 7.
OTHER_PACKED = (
    (12, "float32", False, 39),
    (16, "float32", True, 33),
    (16, "bfloat16", False, 25),
    (24, "float32", True, 50),
    (32, "float32", True, 33),
    (32, "float16", False, 28),
    (64, "float32", True, 43),
    (64, "bfloat16", True, 45),
    (100, "float32", False, 62),
    (100, "float32", True, 66),
    (128, "float32", True, 53),
    (256, "float32", True, 72),
    (256, "bfloat16", False, 59),
    (512, "float32", True, 94),
    (512, "bfloat16", False, 77),
    (1000, "float32", False, 110),
)
# Of rows that a packed kernel sorts twice, the most that it does.
WORST_INSTRUCTIONS = {16: 52, 32: 58, 64: 83, 128: 107}
# Of rows that a long one sorts three times, and of shared memory.
WORST_OF_LONG = {
    256: (210, 130),
    512: (260, 130),
    1024: (315, 130),
    2048: (338, 130),
    4096: (406, 136),
}
BUDGETED_N = tuple(sorted({n for n in MEASURED_N if n <= 4096} | set(WORST_OF_LONG)))

# What runs when: on one processor everything for sm_90 takes six minutes, and for all targets more
# than twenty. In `make test` the budget of rows of 16, and these:
IN_EVERY_RUN = {
    "sm_90": "n=16 float32, where",
    "gfx942": "max@k n=32 float32, where",
}
# For sm_90 these wait for `make test-release`, as all else does for other targets: others of the
# same regime take their part in `make test-all`.
LIKE_OTHERS = (
    "n=32 float32, where, k row, passk_training",
    "n=24 float32",
    "n=40 float32",
    "n=300 float32",
    "n=1000 float32",
    "n=102 float32",
    "n=1002 float32",
    "n=26 bfloat16, where",
    "n=26 float16, where",
    "n=128 float32, where",
    "n=256 float32, where",
    "n=512 float32, where",
    "n=64 bfloat16, where",
    "n=64 float16, where",
    "n=102 float16",
    "n=102 bfloat16",
    "n=32 float16",
    "n=128 bfloat16",
    "n=128 float16",
    "n=512 bfloat16",
    "n=512 float16",
    "n=128 float32, k scalar",
    "n=4096 float32, where, sloo",
    "n=8192 float32",
    "n=128 float32, where, k row, passk_training",
    "max@k n=128 float32, where",
)


def when(target: str, name: str) -> Any:
    if IN_EVERY_RUN.get(target) == name:
        return ()
    if target == "sm_90" and name not in LIKE_OTHERS:
        return pytest.mark.slow
    return pytest.mark.release


def on(target: str) -> list[Any]:
    """What ships, but for what the budgets below compile."""
    budgeted = [Variant(n) for n in BUDGETED_N if target == "sm_90"]
    return params(target, [variant for variant in shipped() if variant not in budgeted])


def params(target: str, variants: Iterable[Variant]) -> list[Any]:
    return [
        pytest.param(
            target, variant, id=f"{target} {variant.name}", marks=when(target, variant.name)
        )
        for variant in variants
    ]


def test_what_runs_when_is_there() -> None:
    names = {variant.name for variant in shipped()}
    assert names.issuperset([*IN_EVERY_RUN.values(), *LIKE_OTHERS])


@pytest.mark.parametrize("target, variant", [one for target in TARGETS for one in on(target)])
def test_what_ships_compiles(target: str, variant: Variant) -> None:
    kernel = gpu_static.compile_alone(variant, target)[0]
    usage = usage_of(kernel)
    # With as few registers as a plan asks for, some words are kept in memory; else none.
    most = 18 if re.search(r"\.entry packed_", kernel.assembly) else 48
    assert usage.spilled_words <= (most if ".maxnreg" in kernel.assembly else 0)
    assert usage.shared_bytes <= TARGETS[target][1]


@pytest.mark.parametrize(
    "target, variant", [one for target in TARGETS for one in params(target, long_rows())]
)
def test_kernels_of_long_rows_compile(target: str, variant: Variant) -> None:
    usage = usage_of(gpu_static.compile_alone(variant, target)[0])
    # Their loops may keep a few words in memory.
    assert usage.spilled_words <= 8
    assert usage.shared_bytes <= TARGETS[target][1]


@pytest.mark.parametrize(
    "target",
    [
        "sm_90",
        *(pytest.param(other, marks=pytest.mark.release) for other in ("sm_80", "sm_100")),
    ],
)
@pytest.mark.parametrize(
    "estimator", ["sloo_minus_one", pytest.param("passk_training", marks=pytest.mark.slow)]
)
def test_programs_that_wait_for_each_other_run_at_once(target: str, estimator: Any) -> None:
    ids = torch.zeros(64, dtype=torch.int64)
    with Device(target, executes=False) as device:
        pk.transform_groups(ids.float(), ids, 2, estimator=estimator, implementation="triton")
    (kernel,) = device.kernels
    assert kernel.cooperative
    usage = usage_of(kernel)
    assert usage.spilled_words == 0
    # Of a multiprocessor, as far as all GPUs have so much.
    assert groups.PROGRAMS_OF_ONE <= 16
    assert groups.PROGRAMS_OF_ONE * 32 * kernel.num_warps * usage.registers <= 1 << 16
    assert groups.PROGRAMS_OF_ONE * (usage.shared_bytes + 1024) <= 64 * 1024


@pytest.mark.parametrize(
    "n, dtype, masked, most",
    [
        pytest.param(*case, marks=pytest.mark.slow if case[0] <= 32 else pytest.mark.release)
        for case in OTHER_PACKED
    ],
)
def test_packed_rows_of_other_kinds(n: int, dtype: str, masked: bool, most: int) -> None:
    row = gpu_static.measure(Variant(n, dtype, masked), "sm_90")
    assert row.spilled_words <= (6 if masked and n >= 256 else 2)
    assert row.normal is not None and row.normal.instructions <= most


@pytest.mark.parametrize(
    "n",
    [
        16,
        *(pytest.param(n, marks=pytest.mark.slow) for n in BUDGETED_N if n != 16 and n <= 128),
        *(pytest.param(n, marks=pytest.mark.release) for n in BUDGETED_N if n > 128),
    ],
)
def test_figures_stay_within_their_budget(n: int) -> None:
    row = gpu_static.measure(Variant(n), "sm_90")
    recorded = {row["kernel"]: row for row in read_table(RECORD)}
    assert row.spilled_words <= int(recorded[row.kernel]["spilled_words"])
    for kind in KINDS:
        for name in BUDGETED:
            limit = GROWTH * float(recorded[row.kernel][f"{kind}_{name}"] or "inf")
            assert getattr(getattr(row, kind), name) <= limit, (kind, name)
    assert row.normal is not None and row.two_values is not None and row.near_ties is not None
    assert row.normal.instructions <= TARGET_INSTRUCTIONS.get(n, row.normal.instructions)
    assert row.near_ties.instructions <= WORST_INSTRUCTIONS.get(n, row.near_ties.instructions)
    if n > 8:
        assert row.two_values.instructions <= TWO_VALUE_INSTRUCTIONS


@pytest.mark.release
@pytest.mark.parametrize("n", WORST_OF_LONG)
def test_no_rows_cost_more_than_the_worst(n: int) -> None:
    """All but one share a step of their row's range, in any order."""
    crowded = torch.rand(16, n, generator=torch.Generator().manual_seed(0))
    crowded[:, 0] = 1e8
    launched = gpu_static.execute(Variant(n), crowded, "sm_90")
    figures = gpu_static.figures_of(launched, crowded.numel())
    instructions, wavefronts = WORST_OF_LONG[n]
    assert figures.instructions <= instructions
    assert figures.wavefronts <= wavefronts
