"""The packed kernel of long rows of float32, which lie in many threads, on rows that take every way
through it. Run as test_packed.py is.
"""

from __future__ import annotations

import numpy as np
import pytest
from subjects import INTERPRETED, TRITON_RUNS

pytest.importorskip("torch")
if not TRITON_RUNS or INTERPRETED:
    pytest.skip("needs TEST_DEVICE=ptx or cuda", allow_module_level=True)

from test_packed import (
    PLAN,
    TINY,
    Rows,
    assert_right,
    launched,
    misleading,
    transformed,
)

LONG_N = (164, 300, 384, 512, 640, 1000, 1024, 2048, 3000, 4096)
# A kernel for every length has to be compiled; each has the same ways, but that rows of 4096 lie in
# two warps, and those of no power of two are padded, of 300 far enough for idle threads.
WHEN = {164: pytest.mark.slow, 300: pytest.mark.slow, 512: (), 4096: pytest.mark.slow}
LENGTHS = [pytest.param(n, marks=WHEN.get(n, pytest.mark.release)) for n in LONG_N]


def rows_of_program(n: int) -> int:
    rows: int = PLAN(n).block_rows
    return rows


def crowded(n: int, rows: int, rng: np.random.Generator) -> dict[str, Rows]:
    """Rewards (rows, n) many of which share a step of their row's range, in any order."""
    normal = rng.standard_normal((rows, n))
    shuffled = rng.permuted(np.tile(np.arange(n), (rows, 1)), axis=1)
    far = np.where(shuffled == 0, 1.0, 0.0)
    kinds = {
        "heavier tails": np.exp(4 * normal),
        "of all magnitudes": normal * 10.0 ** rng.integers(-30, 8, (rows, n)),
        "one is far above": np.where(far, 1e6, 1 + shuffled * 2.0**-23),
        "one is far below": np.where(far, -1e6, shuffled * 2.0**-30),
        "one is far from what is subnormal": np.where(far, 1.0, shuffled * TINY),
        "few share a step": np.where(far, 2.0**10, normal),
        "range is subnormal": shuffled * TINY,
        "range is five floats": 1 + (shuffled % 6) * 2.0**-23,
        "around 0, of both signs": np.where(far, 1.0, (shuffled - n // 2) * TINY),
    }
    return {name: x.astype(np.float32) for name, x in kinds.items()}


def test_rows_of_a_multiple_of_four_are_packed() -> None:
    assert [n for n in range(257, 8193) if PLAN(n)] == list(range(260, 4097, 4))


@pytest.mark.any_length
@pytest.mark.parametrize("n", LENGTHS)
def test_what_shares_a_step_is_put_in_order(n: int, rng: np.random.Generator) -> None:
    # A program of each kind, and one that is almost empty.
    kinds = list(crowded(n, rows_of_program(n), rng).values())
    with launched() as kernels:
        assert_right(np.concatenate([*kinds, kinds[0][:1]]), 2)  # every gap weighs something
    assert kernels == ["packed_long_kernel"]


@pytest.mark.slow
@pytest.mark.parametrize("n", LONG_N)
def test_rows_that_mislead(n: int, rng: np.random.Generator) -> None:
    for rewards in misleading(n, 2 * rows_of_program(n) + 1, rng).values():
        assert_right(rewards, 2)


@pytest.mark.slow
@pytest.mark.parametrize("n", LONG_N)
@pytest.mark.parametrize("estimator", ["s", "sloo", "centered"])
def test_other_estimators(n: int, estimator: str, rng: np.random.Generator) -> None:
    kinds = misleading(n, 1, rng) | crowded(n, 1, rng)
    large = ("large", "overflow", "mixed")
    rows = [x for name, x in kinds.items() if not any(word in name for word in large)]
    for k in (1, n // 2, n - 1):
        assert_right(np.concatenate(rows), k, estimator=estimator, scale="mean")


@pytest.mark.slow
@pytest.mark.parametrize("n", LONG_N)
def test_no_row_sees_what_is_beside_it(n: int, rng: np.random.Generator) -> None:
    """To the bit: alone in a program of its kind a row goes another way than among others."""
    kinds = misleading(n, 1, rng) | crowded(n, 1, rng)
    mixed = np.concatenate(list(kinds.values()))
    among = transformed(mixed, 3, estimator="sloo")
    for row, beside_others in zip(mixed, among, strict=True):
        np.testing.assert_array_equal(transformed(row[None], 3, estimator="sloo")[0], beside_others)


@pytest.mark.slow
@pytest.mark.parametrize("n", LONG_N)
def test_ties_across_threads(n: int, rng: np.random.Generator) -> None:
    """Of every length that ends or begins in another thread, warp or half of a row."""
    ordered = np.sort(rng.standard_normal(n))
    rows = []
    for length in sorted({2, 3, 63, 64, 65, 129, n // 2, n // 2 + 1, n - 65, n - 1}):
        for first in sorted({0, 1, 62, 64, n // 2 - 1, n - length}):
            if first + length <= n:
                tied = ordered.copy()
                tied[first : first + length] = ordered[first]
                rows.append(rng.permutation(tied))
    assert_right(np.stack(rows).astype(np.float32), 2)
