"""The PTX that sorts rows in threads, alone: rows of zeros and ones, of few numbers and of many.
Run as test_packed.py is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from subjects import DEVICE, INTERPRETED, TRITON_RUNS

torch = pytest.importorskip("torch")
if not TRITON_RUNS or INTERPRETED:
    pytest.skip("needs TEST_DEVICE=ptx or cuda", allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from pkpo_triton.assembly import shared_memory  # noqa: E402
from pkpo_triton.networks import padded  # noqa: E402
from pkpo_triton.packed_sort import sort_by_digits, sort_by_keys  # noqa: E402
from pkpo_triton.packed_tile import Tile  # noqa: E402
from pkpo_triton.plan import OPTIONS  # noqa: E402


@triton.jit
def sort_kernel(keys_ptr, order_ptr, C: tl.constexpr, LANES: tl.constexpr):
    """Sort a warp's rows by keys whose lowest bits are offsets in bytes: (rows, LANES · C) → the
    offsets, both int32."""
    thread = tl.arange(0, 32)  # (T,)
    at = (tl.program_id(0) * 32 + thread) * C  # (T,)
    keys = ()
    for c in tl.static_range(C):
        keys = keys + (tl.load(keys_ptr + at + c),)  # noqa: RUF005
    order = sort_by_keys(keys, tl.zeros_like(thread), thread % LANES, C, LANES)  # C × (T,)
    for c in tl.static_range(C):
        tl.store(order_ptr + at + c, order[c])


@triton.jit
def sort_in_two_warps_kernel(digits_ptr, order_ptr, C: tl.constexpr):
    """Sort rows of 64 lanes by digits: (rows, 64 · C) → where they stood, in lanes of the next
    power of two, both int32."""
    tile: tl.constexpr = Tile(
        N_SAMPLES=64 * C, N=64 * C, BITS=None, THREADS_PER_ROW=64, C=C, T=64, PERIOD=None, FREE=0,
        MASKED=False, DTYPE=tl.float32, BYTES=4, EXACT=False,
    )  # fmt: skip
    thread = tl.arange(0, 64)  # (T,)
    at = (tl.program_id(0) * 64 + thread) * C  # (T,)
    digits = ()
    for c in tl.static_range(C):
        digits = digits + (tl.load(digits_ptr + at + c),)  # noqa: RUF005
    order = sort_by_digits(digits, thread, shared_memory(32 * C), tile)  # C × (T,)
    for c in tl.static_range(C):
        tl.store(order_ptr + at + c, order[c])


def rows_of(n: int, count: int, rng: np.random.Generator) -> Any:
    """Make rows (count, n), int32: of zeros and ones, of few numbers, and of many."""
    ones = rng.random((count, n)) < rng.random((count, 1))
    few, many = rng.integers(0, 4, (count, n)), rng.integers(0, 1 << 16, (count, n))
    return np.stack([ones, few, many])[np.arange(count) % 3, np.arange(count)].astype(np.int32)


CASES = [(4, 1), (12, 2), (32, 2), (4, 4), (20, 4), (8, 8), (24, 8), (4, 16), (12, 16), (8, 32)]


@pytest.mark.any_length
@pytest.mark.parametrize(
    "samples, lanes",
    [
        *CASES,
        *(
            pytest.param(c, 1 << bit, marks=pytest.mark.release)
            for c in range(4, 68, 4)
            for bit in range(6)
        ),
    ],
)
def test_lanes_of_a_warp_sort(samples: int, lanes: int, rng: np.random.Generator) -> None:
    n = samples * lanes
    rows = rows_of(n, 30 * (32 // lanes), rng)
    bits = padded(n).bit_length() + 1
    keys = rows << bits | 4 * np.arange(n, dtype=np.int32)
    got = torch.empty(keys.shape, dtype=torch.int32, device=DEVICE)
    sort_kernel[(30,)](
        torch.from_numpy(keys).to(DEVICE), got, samples, lanes, num_warps=1, **OPTIONS
    )
    np.testing.assert_array_equal(got.cpu(), np.sort(keys, 1) & (1 << bits) - 1)


@pytest.mark.any_length
@pytest.mark.parametrize("samples", [8, pytest.param(40, marks=pytest.mark.release)])
def test_lanes_of_two_warps_sort(samples: int, rng: np.random.Generator) -> None:
    rows = rows_of(64 * samples, 30, rng)
    got = torch.empty(rows.shape, dtype=torch.int32, device=DEVICE)
    sort_in_two_warps_kernel[(30,)](
        torch.from_numpy(rows).to(DEVICE), got, samples, num_warps=2, **OPTIONS
    )
    order = np.argsort(rows, 1, kind="stable")
    want = order // samples * padded(samples) + order % samples
    np.testing.assert_array_equal(got.cpu(), want)
