"""What stands in for jax-triton: it runs the kernels, interpreted, on the CPU.

That wants a process with TRITON_INTERPRET=1: `make test` starts one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pkpo_kernels import backends
from pkpo_kernels.backends import registry

# Triton's interpreter is one for all threads, and every device has a thread of its own.
_ONE_AT_A_TIME = threading.Lock()


def run_interpreted(
    *args: Any,
    kernel: Any,
    out_shape: Any,
    grid: Any,
    num_warps: int,
    num_stages: int,
    enable_fp_fusion: bool,
    **meta: Any,
) -> Any:
    """What jax_triton.triton_call does: arrays and numbers in their places, outputs behind them."""
    import jax
    import torch

    arrays = [i for i, arg in enumerate(args) if not isinstance(arg, int | float)]

    def on_host(*values: Any) -> Any:
        every: list[Any] = list(args)
        for i, value in zip(arrays, values, strict=True):
            every[i] = torch.from_numpy(np.array(value))
        out = torch.from_numpy(np.empty(out_shape.shape, out_shape.dtype))
        with _ONE_AT_A_TIME:
            kernel[grid](*every, out, **meta)
        return out.numpy()

    # A number that is 1 is a constant, for which another kernel is compiled.
    assert not any(isinstance(arg, int) and arg == 1 for arg in args)
    # Like triton_call it neither differentiates nor batches.
    return jax.pure_callback(on_host, out_shape, *(args[i] for i in arrays))


@pytest.fixture
def jax_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = ModuleType("jax_triton")
    module.triton_call = run_interpreted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jax_triton", module)
    monkeypatch.delitem(sys.modules, "pkpo_kernels.backends.jax_triton", raising=False)
    # A package keeps its modules as attributes too.
    monkeypatch.delattr(backends, "jax_triton", raising=False)
    yield module
    sys.modules.pop("pkpo_kernels.backends.jax_triton", None)
    vars(backends).pop("jax_triton", None)


@pytest.fixture
def on_gpu(jax_triton: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's programs are made as CUDA's."""
    from jax import lax

    real = lax.platform_dependent

    def platform_dependent(*args: Any, cuda: Any, default: Any) -> Any:
        return real(*args, cpu=cuda, default=default)

    monkeypatch.setattr(lax, "platform_dependent", platform_dependent)
    entry = registry.IMPLEMENTATIONS["triton_jax"]
    table = {
        **registry.IMPLEMENTATIONS,
        "triton_jax": replace(entry, requires=(), unsupported=lambda rewards: None),
    }
    monkeypatch.setattr(registry, "IMPLEMENTATIONS", table)
