# Triton has no types, so its decorator makes every kernel an untyped function.
# mypy: disallow-untyped-decorators=False
"""Two other ways to sort rows in Triton, to set the kernels of pkpo_triton beside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from pkpo_triton.plan import OPTIONS
from torch._inductor.runtime import triton_helpers

from bench.shapes import MEASURED_N
from bench.variants import Variant

SORT_N = tuple(n for n in MEASURED_N if n <= 4096)


@triton.jit(do_not_specialize=("n_rows",))
def sort_scan_scatter(
    x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    w_ptr: tl.tensor,
    n_rows: tl.tensor,
    N: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """The whole transform as one writes it with Triton's library: tl.sort, tl.cumsum, a scatter.

    tl.sort carries no payload, so key and place share an int64. The sum of w[j] (s[j] − s[j−1]) is
    rearranged to use no neighbour, which Triton has no cheap way to; it cancels, but counts least.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    places = tl.arange(0, N)
    inside = rows[:, None] < n_rows
    starts = rows[:, None].to(tl.int64) * N
    x = tl.load(x_ptr + starts + places[None, :], mask=inside, other=0.0)

    bits = x.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as an integer, ordered as the floats are
    pairs = tl.sort((ordered.to(tl.int64) << 32) | places[None, :].to(tl.int64), 1)
    place = (pairs & 0xFFFFFFFF).to(tl.int32)
    ordered = (pairs >> 32).to(tl.int32)
    s = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)

    w = tl.load(w_ptr + places)
    fall = w - tl.load(w_ptr + places + 1)  # of the weight to the next; the table ends with a 0
    terms = fall[None, :] * s
    out = tl.cumsum(terms, 1) - terms + w[None, :] * s
    tl.store(out_ptr + starts + place, out, mask=inside)


@triton.jit
def inductor_sort(
    x_ptr: tl.tensor,
    values_ptr: tl.tensor,
    places_ptr: tl.tensor,
    ROWS: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """What Inductor generates for torch.sort of (rows, N), line by line but for a hint to caches,
    without any transform.

    Below a warp's width it masks the samples, from there on it does not; a number of rows that
    every block divides is not masked.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    place = tl.arange(0, N)[None, :]
    count = N
    if N < 32:
        x = tl.load(x_ptr + (place + N * row), place < count, other=0.0)
    else:
        x = tl.load(x_ptr + (place + N * row), None)
    keys = tl.broadcast_to(x, [ROWS, N])
    indices = tl.broadcast_to(place.to(tl.int16), [ROWS, N])
    if N < 32:
        keys, indices = triton_helpers.sort_with_index(keys, indices, count, 1)
        tl.store(values_ptr + (place + N * row), keys, place < count)
        tl.store(places_ptr + (place + N * row), indices.to(tl.int64), place < count)
    else:
        keys, indices = triton_helpers.sort_with_index(keys, indices, None, 1)
        tl.store(values_ptr + (place + N * row), keys, None)
        tl.store(places_ptr + (place + N * row), indices.to(tl.int64), None)


def sort_baseline(n: int) -> Variant:
    """32 elements a thread: of 4 to 32, what counts fewest, give or take one in a hundred."""
    name = "tl.sort on int64 + scan + scatter"
    return _variant(name, sort_scan_scatter, n, rows=4096 // n, num_warps=4)


# n → rows a program, and warps: of the configurations that Inductor (torch 2.13) itself tries with
# many rows, the one that counts fewest an element. It tries 1, 8, 32 and 128 rows of up to 4096
# elements with 2 warps, and nothing else than these from 256 on.
INDUCTOR = {8: (128, 2), 16: (32, 2), 32: (32, 2), 64: (32, 2), 128: (8, 2), 256: (4, 1)}


def inductor_baseline(n: int) -> Variant:
    rows, num_warps = INDUCTOR[n]
    return _variant("Inductor's sort_with_index, alone", inductor_sort, n, rows, num_warps)


_TYPES = {"places_ptr": "*i64", "n_rows": "i32", "N": "constexpr", "ROWS": "constexpr"}


def _variant(name: str, kernel: Any, n: int, rows: int, num_warps: int) -> Variant:
    """Describe one of the kernels above, for so many rows of n samples a program."""
    signature = {argument: _TYPES.get(argument, "*fp32") for argument in kernel.arg_names}
    pointers = tuple(argument for argument, of in signature.items() if of.startswith("*"))
    constants = {"N": n, "ROWS": rows}
    return Variant(name, kernel, signature, constants, pointers, num_warps, n, elements=rows * n)


def every_baseline() -> Iterator[Variant]:
    yield from map(sort_baseline, SORT_N)
    # Above 512 samples Inductor generates no sort: it calls ATen's.
    yield from map(inductor_baseline, INDUCTOR)


def launch_baseline(variant: Variant, rewards: torch.Tensor) -> None:
    """Launch as many programs as the rewards (rows, n) take."""
    out: list[Any] = [torch.empty_like(rewards)]
    if variant.kernel is sort_scan_scatter:
        out += [torch.rand(variant.n + 1), len(rewards)]
    else:
        out += [torch.empty_like(rewards, dtype=torch.int64)]
    options = {"num_warps": variant.num_warps, "num_stages": 1, **OPTIONS}
    grid = (rewards.numel() // variant.elements,)
    variant.kernel[grid](rewards, *out, **variant.constants, **options)


KERNELS = (sort_scan_scatter, inductor_sort)
