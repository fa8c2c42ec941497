"""The array libraries that are measured: how each makes a matrix, and waits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import pkpo_kernels as pk

Array = Any  # of the library
Call = Callable[[Array], Array]  # (rows, n) → (rows, n)
# More matrices than this are never made: tiny ones may stay in the cache.
MOST_BUFFERS = 64


class Library:
    """NumPy on the CPU, and what the other libraries do in their own ways on their devices."""

    name = "numpy"
    # device → the implementations that may serve it, the default first
    implementations: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("numpy",)}
    xp: Any = np  # its array functions

    def __init__(self, device: str) -> None:
        self.device = device

    def served(self) -> list[str]:
        """Name the implementations of pkpo_kernels that can be used here, the default first."""
        reasons: dict[Any, str | None] = pk.available_implementations()
        return [name for name in self.implementations[self.device] if reasons[name] is None]

    def transform(self, implementation: Any, k: int) -> Call:
        """Bind pk.transform to an implementation and to k."""
        return partial(pk.transform, k=k, implementation=implementation)

    def jitted(self, call: Callable[..., Array]) -> Callable[..., Array]:
        """Compile a call, where the library's users do."""
        return call

    def array(self, values: NDArray[Any]) -> Array:
        """Copy an array to the device."""
        return np.array(values)

    def matrix(self, block: NDArray[Any], rows: int) -> Array:
        """Repeat a block of rows (some, n) to a matrix (rows, n) in new memory."""
        return self.xp.tile(self.array(block), (-(-rows // len(block)), 1))[:rows]

    def buffers(self, block: NDArray[Any], rows: int, cache_bytes: int = 0) -> list[Array]:
        """Make matrices (rows, n) of repeated blocks: two, or more where they fit into the
        cache."""
        count = max(2, min(MOST_BUFFERS, -(-4 * cache_bytes // (rows * block[0].nbytes))))
        return [self.matrix(block, rows) for _ in range(count)]

    def wait(self, result: Array) -> None:
        """Return when the result is there."""

    def release(self) -> None:
        """Give back cached memory and compiled programs."""


class Torch(Library):
    """torch on the CPU or on a GPU."""

    name = "torch"
    implementations: ClassVar = {"cpu": ("torch",), "cuda": ("triton", "torch")}

    def __init__(self, device: str) -> None:
        import torch

        super().__init__(device)
        self.xp = torch

    def array(self, values: NDArray[Any]) -> Array:
        return self.xp.tensor(values, device=self.device)

    def wait(self, result: Array) -> None:
        if self.device == "cuda":
            self.xp.cuda.synchronize()

    def release(self) -> None:
        self.xp.compiler.reset()
        if self.device == "cuda":
            self.xp.cuda.empty_cache()


class Jax(Library):
    """JAX on the device that it takes by itself."""

    name = "jax"
    implementations: ClassVar = {
        "cpu": ("xla",),
        "cuda": ("triton_jax", "xla"),
        "tpu": ("pallas", "xla"),
    }

    def __init__(self, device: str) -> None:
        import jax

        super().__init__(device)
        self.jax, self.xp = jax, jax.numpy
        found = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if found != device:
            raise RuntimeError(f"JAX runs on {found} here")

    def jitted(self, call: Callable[..., Array]) -> Callable[..., Array]:
        return self.jax.jit(call)

    def array(self, values: NDArray[Any]) -> Array:
        # A copy of JAX's own: on CPUs it may take in a NumPy array without one.
        return self.xp.array(values, copy=True)

    def wait(self, result: Array) -> None:
        result.block_until_ready()

    def release(self) -> None:
        self.jax.clear_caches()  # type: ignore[no-untyped-call]


def opened(device: str) -> list[Library]:
    """Open the libraries that can be used with a device, and say which cannot, and why."""
    if device == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # torch and JAX share the GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    libraries: list[Library] = []
    for library in (Torch, Jax, Library):
        if device in library.implementations:
            try:
                libraries.append(library(device))
            except (ImportError, RuntimeError) as error:
                print(f"{library.name} is left out: {error}", file=sys.stderr)
    return libraries
