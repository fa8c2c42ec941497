"""The Triton kernels, compiled ahead of time for GPUs that are not here: nothing is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from pkpo_triton.variants import PATHS, Variant, long_row_variants, shipped, transform_variant
from triton.backends.compiler import GPUTarget

from bench import gpu_static
from bench.shapes import MEASURED_N

SM_90 = GPUTarget("cuda", 90, 32)
# Shared memory that a program may use.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (SM_90, 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}
OTHERS = [target for target in TARGETS if target != "sm_90"]
RECORD = Path(gpu_static.__file__).parent / "results" / "gpu-static-sm_90.json"
# May grow by so much before somebody has to look.
GROWTH = 1.05
TARGET_INSTRUCTIONS = {8: 30, 16: 40, 32: 55, 64: 75, 128: 130, 256: 200}
TWO_LEVEL_INSTRUCTIONS = 35
BUDGETED_N = tuple(n for n in MEASURED_N if n <= 1024)


def on(target: str) -> list[Any]:
    """What ships, but for what the budgets below compile. Every variant is compiled for sm_90, and
    of those that are not long every other one for one of the others; `make gpu-compile` does the
    rest."""
    variants = list(shipped(TARGETS[target][0].warp_size))
    budgeted = {transform_variant(n).name for n in BUDGETED_N if target == "sm_90"}

    def in_every_run(number: int, variant: Variant) -> bool:
        if target == "sm_90":
            return True
        return variant.n <= 256 and number % (2 * len(OTHERS)) == OTHERS.index(target)

    return [
        pytest.param(
            target,
            variant,
            id=f"{target} {variant.name}",
            marks=() if in_every_run(number, variant) else pytest.mark.release,
        )
        for number, variant in enumerate(variants)
        if variant.name not in budgeted
    ]


@pytest.mark.parametrize("target, variant", [one for target in TARGETS for one in on(target)])
def test_what_ships_compiles_without_spilling(target: str, variant: Variant) -> None:
    chip, shared = TARGETS[target]
    usage = gpu_static.compile_variant(variant, chip).usage
    assert usage.spilled_words == 0
    assert usage.shared_bytes <= shared


@pytest.mark.parametrize("variant", list(long_row_variants()), ids=lambda variant: variant.name)
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_of_long_rows_compile(target: str, variant: Variant) -> None:
    chip, shared = TARGETS[target]
    # Their loops may keep a few words in memory.
    usage = gpu_static.compile_variant(variant, chip).usage
    assert usage.spilled_words <= 8
    assert usage.shared_bytes <= shared


@pytest.mark.parametrize("n", BUDGETED_N)
def test_instructions_stay_within_their_budget(n: int) -> None:
    variant = transform_variant(n)
    compiled = gpu_static.compile_variant(variant, SM_90)
    assert compiled.usage.spilled_words == 0
    figures = gpu_static.count(compiled, PATHS)
    general = gpu_static.PerElement.of(figures.on("general"), variant).instructions
    assert general <= TARGET_INSTRUCTIONS.get(n, general)
    recorded = {row["n"]: row for row in json.loads(RECORD.read_text())["rows"] if _plain(row)}
    assert general <= GROWTH * recorded[n]["general"]["instructions"]
    if n > 8:
        counted = gpu_static.PerElement.of(figures.on("two_levels"), variant).instructions
        assert counted <= TWO_LEVEL_INSTRUCTIONS


def _plain(row: dict[str, object]) -> bool:
    n = row["n"]
    return row["kernel"] == f"n={n} float32"
