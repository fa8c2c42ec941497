"""The implementations under test, each behind the same few words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# The kernels need processes of their own: `make test` runs the contract once more with
# TRITON_INTERPRET=1 and once with PALLAS_INTERPRET=1, and `make gpu-test` with TEST_DEVICE=cuda.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PALLAS_INTERPRETED = os.environ.get("PALLAS_INTERPRET") == "1"
if PALLAS_INTERPRETED:
    # Most of what Pallas's interpreter takes is compilation, of programs that then run once.
    quickly = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    os.environ.setdefault("XLA_FLAGS", quickly)
DEVICE = os.environ.get("TEST_DEVICE", "cpu")


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
    # kernels that are interpreted: small matrices
    interpreted: bool = INTERPRETED
    # and of those the ones that are first compiled step by step: few different programs
    simulated: bool = False

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

        out = pk.transform(rewards, self.k(k), implementation=self.implementation, **options)
        return self.numpy(out)

    def max_at_k(self, rewards: Any, k: Any, **options: Any) -> np.ndarray[Any, Any]:
        import pkpo_kernels as pk

        out = pk.max_at_k(rewards, self.k(k), implementation=self.implementation, **options)
        return self.numpy(out)


_TRITON = (
    Subject("triton", "triton", "torch"),
    Subject("triton-hidden-k", "triton", "torch", hidden_k=True),
)
_PORTABLE = (
    Subject("reference", "reference", "numpy"),
    Subject("numpy", "numpy", "numpy"),
    Subject("torch", "torch", "torch"),
    Subject("torch-branchless", "torch", "torch", hidden_k=True, branchless=True),
    Subject("xla", "xla", "jax"),
    Subject("xla-traced", "xla", "jax", hidden_k=True),
)
_PALLAS = (Subject("pallas", "pallas_interpret", "jax", interpreted=True, simulated=True),)
SUBJECTS = (
    _TRITON if INTERPRETED or DEVICE == "cuda" else _PALLAS if PALLAS_INTERPRETED else _PORTABLE
)


@pytest.fixture(params=SUBJECTS, ids=lambda subject: subject.id, scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    chosen: Subject = request.param
    if not chosen.branchless:
        yield chosen
        return
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        yield chosen


@pytest.fixture(autouse=PALLAS_INTERPRETED)
def without_races(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the interpreter of Pallas does is watched for races."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call
    from races import Races

    interpret_with(monkeypatch)
    monkeypatch.setattr(interpret_pallas_call, "RaceDetectionState", Races)
    Races.found.clear()
    yield
    assert not Races.found


def interpret_with(monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> None:
    """Memory that nobody has written reads as NaN, and what else is asked for."""
    from jax.experimental.pallas import tpu as pltpu

    from pkpo_kernels import fused_pallas, interpreted_pallas

    chosen = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True, **parameters)
    for name in ("transform_rows", "max_at_k_rows"):
        function = partial(getattr(fused_pallas, name), interpret=chosen)
        monkeypatch.setattr(interpreted_pallas, name, function)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250520)


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
