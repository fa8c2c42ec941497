"""What is under test: the implementations, each behind the same few words, and rewards for them.

Which ones, the environment says: see `SUBJECTS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# The kernels need processes of their own: `make test` runs the contract once more with
# TRITON_INTERPRET=1 and PALLAS_INTERPRET=1, and with TEST_DEVICE=ptx, where what Triton compiles
# for a GPU is executed on the CPU (bench.ptx); `make gpu-test` with TEST_DEVICE=cuda.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PALLAS_INTERPRETED = os.environ.get("PALLAS_INTERPRET") == "1"
_XLA_FLAGS = ["--xla_force_host_platform_device_count=8"]  # to shard over, on any CPU
# Most of what JAX takes is compilation, of programs that then run once: without fusion emitters and
# optimization, in a sixth of the time. `make test-all` has them, as users do.
if PALLAS_INTERPRETED or not os.environ.get("XLA_AS_SHIPPED"):
    _XLA_FLAGS.append("--xla_backend_optimization_level=0")
    # JAX 0.11 no longer knows the flag.
    if tuple(map(int, version("jax").split(".")[:2])) < (0, 11):
        _XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join((*_XLA_FLAGS, os.environ.get("XLA_FLAGS", "")))
_TESTED = os.environ.get("TEST_DEVICE", "cpu")
ON_PTX = _TESTED == "ptx"
# Where tensors are.
DEVICE = "cpu" if ON_PTX else _TESTED
TRITON_RUNS = INTERPRETED or ON_PTX or DEVICE == "cuda"


class Numpy:
    """Arrays of NumPy, and what is special about them."""

    default_float = "float64"
    # an allocated array holds whatever lay there, until it is written
    leaves_memory_unwritten = True
    # numbers below the normal ones of float64 are no zeros
    keeps_subnormals = True

    def array(self, values: np.ndarray[Any, Any], dtype: str | None) -> Any:
        if dtype == "bfloat16":
            import ml_dtypes

            return values.astype(ml_dtypes.bfloat16)
        return values if dtype is None else values.astype(dtype)

    def float64(self, array: Any) -> np.ndarray[Any, Any]:
        assert isinstance(array, np.ndarray | np.generic)
        return np.asarray(array).astype(np.float64)

    def strided(self, values: np.ndarray[Any, Any]) -> Any:
        """Every other row of values (6, 24), every third sample: a view where there are any."""
        values.flags.writeable = False
        return values[::2, ::-3]


class Torch:
    """Tensors."""

    default_float = "torch.float32"
    leaves_memory_unwritten = True
    keeps_subnormals = True

    def array(self, values: np.ndarray[Any, Any], dtype: str | None) -> Any:
        import torch

        tensor = torch.from_numpy(np.array(values)).to(DEVICE)
        return tensor if dtype is None else tensor.to(getattr(torch, dtype))

    def float64(self, array: Any) -> np.ndarray[Any, Any]:
        import torch

        assert isinstance(array, torch.Tensor)
        return array.to(torch.float64).cpu().numpy()

    def strided(self, values: np.ndarray[Any, Any]) -> Any:
        return self.array(values, None)[::2].T[::3].T


class Jax:
    """Arrays of JAX."""

    default_float = "float32"
    leaves_memory_unwritten = False
    keeps_subnormals = False

    def array(self, values: np.ndarray[Any, Any], dtype: str | None) -> Any:
        import jax.numpy as jnp

        if dtype == "int64":  # what JAX makes of it is its own affair
            return jnp.asarray(values.astype(dtype))
        return jnp.asarray(values, dtype)

    def float64(self, array: Any) -> np.ndarray[Any, Any]:
        import jax

        assert isinstance(array, jax.Array)
        return np.asarray(array).astype(np.float64)

    def strided(self, values: np.ndarray[Any, Any]) -> Any:
        import jax
        from jax.experimental.layout import Format, Layout

        # JAX has no views, but samples may lie in memory before rows.
        array = self.array(values[::2, ::3], None)
        return jax.device_put(array, Format(Layout(major_to_minor=(1, 0)), array.sharding))


class Asked(NamedTuple):
    """How many cases of each test of the contract a subject is asked: in `make test` of an
    essential one, and of any other; in `make test-all` of any, those of `make test` perhaps among
    them. `make test-release` asks the rest."""

    essential: int
    others: int
    before_release: int


@dataclass(frozen=True)
class Subject:
    """One implementation as a user meets it, and what may be asked of it."""

    id: str
    implementation: str
    library: Numpy | Torch | Jax

    # ---- How it is called ----
    # k is an array of the library's, whose value nobody may read
    dynamic_k: bool = False
    # torch as it runs where data must not be looked at: on a GPU, or under torch.compile
    branchless: bool = False
    # JAX allowed to promote nothing, and with its own checks
    strict: bool = False

    # ---- What it promises ----
    # what the others are compared with
    is_oracle: bool = False
    # last bits depend on where in a row a sample stands
    adds_in_order_of_samples: bool = False
    # computes float64 rewards in float64; otherwise refuses them
    serves_float64: bool = True
    # the weights of one k for all rows are of float64, of a k a row of float32: last bits differ
    weighs_each_row_in_float32: bool = False
    # rounds results to bfloat16 towards 0
    cuts_off_bfloat16: bool = False

    # ---- What it does within seconds ----
    # None of one that is asked everything
    asked: Asked | None = None
    # every shape and every set of options is a program to compile …
    compiles_programs: bool = False
    # … operation by operation: few of them
    compiles_step_by_step: bool = False
    # (rows, samples) of a matrix of ordinary size
    matrix: tuple[int, int] = (700, 300)
    # (rows, samples) beyond what it takes in one block; None of one that goes row by row
    several_blocks: tuple[int, int] | None = (220, 64)
    # for how many samples, over all ks, it is asked for a row of
    samples_of_a_row: int = 1 << 20

    def array(self, values: Any, dtype: str | None = None) -> Any:
        return self.library.array(np.asarray(values), dtype)

    def k(self, k: Any) -> Any:
        return self.array(np.asarray(k)) if self.dynamic_k else k

    def numpy(self, array: Any) -> np.ndarray[Any, Any]:
        """A result as float64, after checking its library."""
        return self.library.float64(array)

    def some(self, ks: Sequence[int], n: int) -> Sequence[int]:
        """Those of ks that rows of n samples are asked for: evenly, the middle one among them."""
        step = -(-len(ks) // max(1, self.samples_of_a_row // n))
        return ks[len(ks) // 2 % step :: step] if step > 1 else ks

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

    def transform_groups(self, rewards: Any, groups: Any, k: Any, **options: Any) -> Any:
        """As NumPy has the arguments; k and ids are arrays of the library's, except blocks."""
        import pkpo_kernels as pk

        arrays = {
            name: self.array(options[name]) for name in ("where", "samples") if name in options
        }
        out = pk.transform_groups(
            self.array(rewards),
            groups if isinstance(groups, int) else self.array(groups),
            self.array(k) if self.dynamic_k or isinstance(k, np.ndarray) else k,
            implementation=self.implementation,
            **options | arrays,
        )
        assert str(out.dtype).removeprefix("torch.") == str(rewards.dtype)
        return self.numpy(out)

    def _repeated(self, rewards: Any, k: Any, options: dict[str, Any]) -> Any:
        """The rows again and again, so that few different matrices have to be compiled for."""
        rows = rewards.shape[0] if self.compiles_step_by_step and rewards.ndim == 2 else 0
        if not 0 < rows < _REPEATED_ROWS or "axis" in options:
            return None, rewards, k, options
        again = np.arange(_REPEATED_ROWS) % rows
        if np.ndim(k) == 1:
            k = np.asarray(k)[again]
        if "where" in options:
            options = options | {"where": self.array(np.asarray(options["where"])[again])}
        return rows, self.array(np.asarray(rewards)[again]), k, options


_REPEATED_ROWS = 32

_KERNELS_OF_TRITON = Subject(
    "ptx" if ON_PTX else "triton",
    "triton",
    Torch(),
    serves_float64=False,
    cuts_off_bfloat16=INTERPRETED,
    matrix=(700, 300) if DEVICE == "cuda" else (20, 300),
    several_blocks=(2200, 512) if DEVICE == "cuda" else (41, 512),
    samples_of_a_row=1 << 20 if DEVICE == "cuda" else 4000,
    asked=None if DEVICE == "cuda" else Asked(2, 1, 7) if ON_PTX else Asked(1, 0, 3),
)
_TRITON = (
    _KERNELS_OF_TRITON,
    replace(
        _KERNELS_OF_TRITON,
        id=f"{_KERNELS_OF_TRITON.id}-hidden-k",
        dynamic_k=True,
        asked=None if DEVICE == "cuda" else Asked(1, 0, 0),
    ),
)
_PORTABLE = (
    Subject(
        "reference",
        "reference",
        Numpy(),
        is_oracle=True,
        adds_in_order_of_samples=True,
        matrix=(2, 300),
        several_blocks=None,
    ),
    Subject("numpy", "numpy", Numpy()),
    Subject("torch", "torch", Torch()),
    Subject("torch-branchless", "torch", Torch(), dynamic_k=True, branchless=True),
    Subject("xla", "xla", Jax(), compiles_programs=True, asked=Asked(2, 1, 7)),
    Subject(
        "xla-traced", "xla", Jax(), compiles_programs=True, dynamic_k=True, asked=Asked(1, 0, 3)
    ),
    Subject("xla-strict", "xla", Jax(), compiles_programs=True, strict=True, asked=Asked(0, 0, 1)),
)
_PALLAS = (
    Subject(
        "pallas",
        "pallas_interpret",
        Jax(),
        serves_float64=False,
        weighs_each_row_in_float32=True,
        compiles_programs=True,
        compiles_step_by_step=True,
        asked=Asked(1, 0, 2),
        matrix=(20, 40),
        several_blocks=(2200, 20),
        samples_of_a_row=500,
    ),
)
# Those that this process is about.
SUBJECTS = ((_TRITON if TRITON_RUNS else ()) + (_PALLAS if PALLAS_INTERPRETED else ())) or _PORTABLE


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


def same(got: Any, want: Any, tolerance: float = 5e-6) -> None:
    """Compare two arrays of any library on the CPU, by NumPy, which compiles nothing."""
    assert got.dtype == want.dtype and got.shape == want.shape
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
