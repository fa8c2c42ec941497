"""What is under test: the implementations, each behind the same few words, and rewards for them.

Which ones, the environment says: see `SUBJECTS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# The kernels need processes of their own: `make test` runs the contract once more with
# TRITON_INTERPRET=1, with PALLAS_INTERPRET=1, and with TEST_DEVICE=ptx, where what Triton compiles
# for a GPU is executed on the CPU (bench.ptx); `make gpu-test` with TEST_DEVICE=cuda.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PALLAS_INTERPRETED = os.environ.get("PALLAS_INTERPRET") == "1"
_XLA_FLAGS = ["--xla_force_host_platform_device_count=8"]  # to shard over, on any CPU
# Most of what JAX takes is compilation, of programs that then run once: without fusion emitters, in
# 3/5 of the time. `make test-all` has them, as users do. JAX 0.11 no longer knows the flag.
_OLD_JAX = tuple(map(int, version("jax").split(".")[:2])) < (0, 11)
if _OLD_JAX and (PALLAS_INTERPRETED or not os.environ.get("XLA_AS_SHIPPED")):
    _XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
if PALLAS_INTERPRETED:
    _XLA_FLAGS.append("--xla_backend_optimization_level=0")
os.environ["XLA_FLAGS"] = " ".join((*_XLA_FLAGS, os.environ.get("XLA_FLAGS", "")))
_TESTED = os.environ.get("TEST_DEVICE", "cpu")
ON_PTX = _TESTED == "ptx"
# Where tensors are.
DEVICE = "cpu" if ON_PTX else _TESTED
TRITON_RUNS = INTERPRETED or ON_PTX or DEVICE == "cuda"

_SIMULATED_ROWS = 32


@dataclass(frozen=True)
class Subject:
    """One implementation as a user meets it: arrays of its library in and out."""

    id: str
    implementation: str
    kind: str
    # k given as an array of the library's, whose value nobody may read
    hidden_k: bool = False
    # torch as it runs where data must not be looked at: on a GPU, or under torch.compile
    branchless: bool = False
    # kernels that are interpreted, or executed instruction by instruction: small matrices
    interpreted: bool = INTERPRETED or ON_PTX
    # and of those the ones that are first compiled step by step: few different programs
    simulated: bool = False
    # JAX allowed to promote nothing, and with its own checks
    strict: bool = False
    # computes float64 rewards in float64; otherwise refuses them
    serves_float64: bool = True

    def array(self, values: Any, dtype: str | None = None) -> Any:
        values = np.asarray(values)
        if self.kind == "torch":
            import torch

            tensor = torch.from_numpy(np.array(values)).to(DEVICE)
            return tensor if dtype is None else tensor.to(getattr(torch, dtype))
        if self.kind == "jax":
            import jax.numpy as jnp

            if dtype == "int64":  # what JAX makes of it is its own affair
                return jnp.asarray(values.astype(dtype))
            return jnp.asarray(values, dtype)
        if dtype == "bfloat16":
            import ml_dtypes

            return values.astype(ml_dtypes.bfloat16)
        return values if dtype is None else values.astype(dtype)

    def k(self, k: Any) -> Any:
        return self.array(np.asarray(k)) if self.hidden_k else k

    def numpy(self, array: Any) -> np.ndarray[Any, Any]:
        """A result as float64, after checking its library."""
        if self.kind == "torch":
            import torch

            assert isinstance(array, torch.Tensor)
            return array.to(torch.float64).cpu().numpy()
        if self.kind == "jax":
            import jax

            assert isinstance(array, jax.Array)
        else:
            assert isinstance(array, np.ndarray | np.generic)
        return np.asarray(array).astype(np.float64)

    def transform(self, rewards: Any, k: Any, **options: Any) -> np.ndarray[Any, Any]:
        import pkpo_kernels as pk

        rows, rewards, k, options = self._repeated(rewards, k, options)
        out = pk.transform(rewards, self.k(k), implementation=self.implementation, **options)
        return self.numpy(out)[:rows]

    def max_at_k(self, rewards: Any, k: Any, **options: Any) -> np.ndarray[Any, Any]:
        import pkpo_kernels as pk

        rows, rewards, _, options = self._repeated(rewards, None, options)
        out = pk.max_at_k(rewards, self.k(k), implementation=self.implementation, **options)
        return self.numpy(out)[:rows] if rows else self.numpy(out)

    def _repeated(self, rewards: Any, k: Any, options: dict[str, Any]) -> Any:
        """The rows again and again, so that few different matrices have to be compiled for."""
        rows = rewards.shape[0] if self.simulated and rewards.ndim == 2 else 0
        if not 0 < rows < _SIMULATED_ROWS or "axis" in options:
            return None, rewards, k, options
        again = np.arange(_SIMULATED_ROWS) % rows
        if np.ndim(k) == 1:
            k = np.asarray(k)[again]
        if "where" in options:
            options = options | {"where": self.array(np.asarray(options["where"])[again])}
        return rows, self.array(np.asarray(rewards)[again]), k, options


_TRITON = (
    Subject("ptx" if ON_PTX else "triton", "triton", "torch", serves_float64=False),
    Subject(
        "ptx-hidden-k" if ON_PTX else "triton-hidden-k",
        "triton",
        "torch",
        hidden_k=True,
        serves_float64=False,
    ),
)
_PORTABLE = (
    Subject("reference", "reference", "numpy"),
    Subject("numpy", "numpy", "numpy"),
    Subject("torch", "torch", "torch"),
    Subject("torch-branchless", "torch", "torch", hidden_k=True, branchless=True),
    Subject("xla", "xla", "jax"),
    Subject("xla-traced", "xla", "jax", hidden_k=True),
    Subject("xla-strict", "xla", "jax", strict=True),
)
_PALLAS = (
    Subject(
        "pallas",
        "pallas_interpret",
        "jax",
        interpreted=True,
        simulated=True,
        serves_float64=False,
    ),
)
SUBJECTS = _TRITON if TRITON_RUNS else _PALLAS if PALLAS_INTERPRETED else _PORTABLE


@contextmanager
def strictly() -> Iterator[None]:
    """JAX without promotion of ranks and dtypes, and with its own checks."""
    import jax

    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.enable_checks(True),
    ):
        yield


def interpret_with(monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> None:
    """Memory that nobody has written reads as NaN, and what else is asked for."""
    from jax.experimental.pallas import tpu as pltpu

    from pkpo_kernels.backends import pallas

    chosen = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True, **parameters)
    monkeypatch.setattr(pallas, "INTERPRETED", pallas.Kernels(interpret=chosen))


def rewards_of_every_kind(
    rng: np.random.Generator, n: int, rows: int = 4
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(rows · 5, n): gaussian, tied, 0/1, constant, gaussian far from 0; exact in float32."""
    gaussian = rng.standard_normal((rows, n))
    kinds = (
        gaussian,
        rng.integers(-1, 2, (rows, n)).astype(float),
        rng.integers(0, 2, (rows, n)).astype(float),
        np.broadcast_to(rng.standard_normal((rows, 1)), (rows, n)),
        gaussian + 100,
    )
    return np.concatenate(kinds).astype(np.float32).astype(np.float64)
