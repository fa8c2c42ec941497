"""Compile what `pkpo verify` or `bench.kernels` needs of the Triton kernels ahead of it, on all
processors at once.

    python -m bench.gpu_warm verify|kernels

They compile one kernel after another, for minutes on a machine whose cache of Triton is empty. Here
a first pass notes which are asked for and launches none; worker processes then compile them into
the cache.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from typing import Any

import triton

import pkpo_kernels as pk
from bench.kernels import KINDS, LENGTHS, made
from bench.libraries import Torch
from bench.shapes import K
from pkpo_kernels import selfcheck

# Module and name of a kernel, and what it is compiled for, in Triton's own words.
Wanted = tuple[str, str, str]


def verify() -> None:
    """Ask for what `pkpo verify` does."""
    for _ in selfcheck.verify(["triton"]):
        pass  # of results that nobody has computed


def kernels() -> None:
    """Ask for what the large matrices of `bench.kernels` need."""
    torch = Torch("cuda")
    normal = torch.xp.randn(1 << 20, device=torch.device)
    for n in LENGTHS:
        for kind in KINDS:
            rewards, where = made(torch, kind, normal[: len(normal) // n * n].reshape(-1, n))
            pk.transform(rewards, K, where=where, implementation="triton")


ASKS: dict[str, Callable[[], None]] = {"verify": verify, "kernels": kernels}


def wanted(ask: Callable[[], None]) -> list[Wanted]:
    """What is asked for, in its order."""
    found: dict[Wanted, None] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        found[fn.module, fn.name, compile["specialization_data"]] = None
        return True  # neither compiled nor launched

    triton.knobs.runtime.jit_cache_hook = note
    try:
        ask()
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    return list(found)


def compiled(one: Wanted) -> float:
    """Compile it into Triton's cache; → the seconds that took."""
    module, name, specialization = one
    start = time.perf_counter()
    getattr(import_module(module), name).preload(specialization)
    return time.perf_counter() - start


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in ASKS:
        sys.exit(f"one argument must say what to compile for: {' or '.join(ASKS)}")
    start = time.perf_counter()
    found = wanted(ASKS[sys.argv[1]])
    noted = time.perf_counter() - start
    # A process that has begun to use a GPU cannot be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        seconds = list(pool.map(compiled, found))
    print(
        f"{len(found)} kernels: noted in {noted:.0f} s, compiled in"
        f" {time.perf_counter() - start - noted:.0f} s, {sum(seconds):.0f} s of processors,"
        f" the longest {max(seconds):.0f} s"
    )


if __name__ == "__main__":
    main()
