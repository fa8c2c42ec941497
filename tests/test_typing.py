"""What a user's type checker says of calls: mypy in strict mode, with torch and JAX and without."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import pkpo_kernels as pk
from pkpo_kernels import typing
from pkpo_kernels.backends import registry

ROOT = Path(__file__).parent.parent

NUMPY = """
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import pkpo_kernels as pk
from pkpo_kernels import schedules
from pkpo_kernels.typing import ImplementationName

single = np.zeros((2, 3), np.float32)
double = np.zeros((2, 3))
where = np.ones((2, 3), np.bool_)

assert_type(pk.transform(single, 2), NDArray[np.float32])
assert_type(pk.transform(double, 2, where=where, estimator="sloo"), NDArray[np.float64])
assert_type(pk.transform(double > 0, 2, scale="mean", axis=0), NDArray[np.float64])
assert_type(pk.transform(np.arange(6), [2]), NDArray[np.float64])
assert_type(pk.transform(single.astype(np.int8), np.array([1, 2])), NDArray[np.float64])
assert_type(pk.transform([0, 1, 1], np.int32(2)), NDArray[np.float64])
assert_type(pk.transform([[True, False], [True, True]], 2), NDArray[np.float64])
assert_type(pk.transform([[[0.5, 1]]], 2, where=[[[True, False]]]), NDArray[np.float64])
assert_type(pk.transform((0.0, 1.0), 1, undersized="clip"), NDArray[np.float64])
assert_type(pk.max_at_k(single, [1, 2]), NDArray[np.float32])
assert_type(pk.max_at_k([[0, 1]], 2, implementation="reference"), NDArray[np.float64])
assert_type(pk.pass_at_k(10, 3, 2), float)
assert_type(pk.pass_at_k(10, 3, [1, 2]), NDArray[np.float64])
assert_type(pk.pass_at_k(np.array([4, 5]), 3, 2), NDArray[np.float64])
assert_type(schedules.linear(8, 1, 100)(3), int)
assert_type(pk.transform(single, schedules.linear(8, 1, 100)(3)), NDArray[np.float32])
assert_type(pk.available_implementations(), dict[ImplementationName, str | None])
for name in pk.ESTIMATORS:
    pk.transform(single, 2, estimator=name)
for implementation in pk.available_implementations():
    pk.transform(single, 2, implementation=implementation)
pk.evaluate([[0, 1]], range(1, 3), metric="pass@k")
"""

WRONG = """
import numpy as np
import pkpo_kernels as pk
from pkpo_kernels import schedules

x = np.zeros((2, 3))
pk.transform(x, 2, estimator="slo")  # wrong
pk.transform(x, 2, scale="max")  # wrong
pk.transform(x, 2, undersized="drop")  # wrong
pk.transform(x, 2, implementation="cuda")  # wrong
pk.transform(x, "two")  # wrong
pk.transform(x, 2.5)  # wrong
pk.transform(x, 2, where=x)  # wrong
pk.transform("abc", 2)  # wrong
pk.transform([["a"]], 2)  # wrong
pk.transform([0.5, None], 2)  # wrong
pk.transform(x * 1j, 2)  # wrong
pk.transform(x)  # wrong
pk.max_at_k(x, "two")  # wrong
pk.max_at_k(x, 2, implementation="cuda")  # wrong
pk.pass_at_k(10, 3, "two")  # wrong
pk.evaluate([[0, 1]], 1, metric="pass")  # wrong
pk.evaluate([[0, 1]], "one")  # wrong
schedules.linear(8, 1, 100)("3")  # wrong
"""

TORCH = """
from typing import assert_type

import torch

import pkpo_kernels as pk
from pkpo_kernels import schedules

x = torch.zeros(2, 3)
assert_type(pk.transform(x, 2), torch.Tensor)
assert_type(pk.transform(x, torch.tensor([1, 2]), where=x > 0), torch.Tensor)
assert_type(pk.transform(x, [1, 2], estimator="s"), torch.Tensor)
assert_type(pk.max_at_k(x, [1, 2]), torch.Tensor)
assert_type(pk.transform(x, schedules.linear(8, 1, 100)(torch.tensor(3))), torch.Tensor)
pk.transform(x, "two")  # wrong
pk.transform(x, 2, implementation="cuda")  # wrong
pk.transform(x, 2, where="all")  # wrong
"""

JAX = """
from typing import assert_type

import jax
import jax.numpy as jnp

import pkpo_kernels as pk
from pkpo_kernels import schedules

x = jnp.zeros((2, 3))
assert_type(pk.transform(x, 2), jax.Array)
assert_type(pk.transform(x, jnp.asarray([1, 2]), where=x > 0), jax.Array)
assert_type(pk.max_at_k(x, [1, 2]), jax.Array)
assert_type(pk.transform(x, schedules.linear(8, 1, 100)(jnp.asarray(3))), jax.Array)
pk.transform(x, "two")  # wrong
pk.transform(x, 2, scale="max")  # wrong


@jax.jit
def step(rewards: jax.Array, k: jax.Array) -> jax.Array:
    return pk.transform(rewards, k)
"""

# As where they are not installed.
WITHOUT = """
[mypy]
strict = True
mypy_path = {root}:{root}/kernels
explicit_package_bases = True
[mypy-torch.*,jax.*,triton.*,jax_triton.*,pkpo_triton.*,pkpo_pallas.*,pkpo_kernels.fused_*]
follow_imports = skip
ignore_missing_imports = True
[mypy-pkpo_kernels.*]
ignore_errors = True
"""
WITH = """
[mypy]
strict = True
mypy_path = {root}:{root}/kernels
explicit_package_bases = True
[mypy-pkpo_kernels.*,pkpo_triton.*,pkpo_pallas.*]
ignore_errors = True
[mypy-triton.*,jax_triton.*]
ignore_missing_imports = True
"""


def check(folder: Path, config: str, **sources: str) -> None:
    """mypy finds something where these sources say so, and nowhere else."""
    (folder / "mypy.ini").write_text(config.format(root=ROOT))
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    # NumPy's stubs take mypy most of its time, and stay the same from run to run.
    cache = ROOT / ".mypy_cache" / f"calls-{len(sources)}"
    out = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", str(cache)]
        + [f"{name}.py" for name in sources],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    found = re.findall(r"^(\w+)\.py:(\d+): error: ", out.stdout, re.M)
    assert out.returncode == (1 if found else 0), out.stdout + out.stderr
    wrong = [
        (name, number)
        for name, source in sources.items()
        for number, line in enumerate(source.splitlines(), 1)
        if line.endswith("  # wrong")
    ]
    assert sorted((name, int(line)) for name, line in found) == sorted(wrong), out.stdout


@pytest.mark.slow
def test_calls_are_checked_without_torch_and_jax(tmp_path: Path) -> None:
    check(tmp_path, WITHOUT, numpy_calls=NUMPY, wrong=WRONG)


@pytest.mark.release  # mypy reads torch and JAX
def test_calls_are_checked_with_torch_and_jax(tmp_path: Path) -> None:
    check(tmp_path, WITH, numpy_calls=NUMPY, wrong=WRONG, torch_calls=TORCH, jax_calls=JAX)


def test_the_literals_are_the_names() -> None:
    assert get_args(typing.EstimatorName) == tuple(pk.ESTIMATORS)
    assert get_args(typing.ImplementationName) == tuple(registry.IMPLEMENTATIONS)
