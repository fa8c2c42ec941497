"""The packed kernel on rewards of 16 bits, whose keys are exact.

Run with TEST_DEVICE=ptx, or with TEST_DEVICE=cuda on a GPU: see test_packed.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from subjects import DEVICE, INTERPRETED, TRITON_RUNS

import pkpo_kernels as pk

torch = pytest.importorskip("torch")
if not TRITON_RUNS or INTERPRETED:
    pytest.skip("needs TEST_DEVICE=ptx or cuda", allow_module_level=True)

from test_packed import PACKED_N, launched, misleading  # noqa: E402

DTYPES = ["bfloat16", "float16"]
LONG_N = (320, 512, 1500, 2048)
# A kernel for every length has to be compiled: of the shortest, in `make test`.
CASES = [
    pytest.param(n, dtype, marks=[pytest.mark.slow] * (n > 16) + also)
    for n in PACKED_N + LONG_N
    for dtype, also in (("bfloat16", []), ("float16", [pytest.mark.costly("ptx")]))
]


def assert_right(rewards: Any, k: int, where: Any = None, **options: Any) -> None:
    """Values that are rounded once, and the same bits for equal rewards: rewards (rows, n)."""
    on_device = None if where is None else where.to(DEVICE)
    options["undersized"] = "nan"
    got = pk.transform(
        rewards.to(DEVICE), k, where=on_device, implementation="triton", **options
    ).cpu()
    assert got.dtype == rewards.dtype
    valid = torch.ones_like(rewards, dtype=torch.bool) if where is None else where
    clean = torch.where(valid, rewards, 0).double()
    want = pk.transform(clean, k, where=where, implementation="torch", **options)
    # A range may overflow in float32, though not in float64.
    highest = torch.where(valid, clean, -torch.inf).amax(1).float()
    lowest = torch.where(valid, clean, torch.inf).amin(1).float()
    overflows = (highest - lowest).isinf() & valid.any(1) & clean.isfinite().all(1)
    want = torch.where(valid & overflows[:, None], torch.nan, want)
    limits = torch.finfo(rewards.dtype)
    size = want.abs().amax(1, keepdim=True).clamp(max=limits.max)
    right = (got.double() - want).abs() <= 0.51 * limits.eps * want.abs() + 2e-6 * size + 1e-41
    right |= (got.double() - want).abs() <= limits.tiny * limits.eps
    right |= got.isinf() & (want.abs() > limits.max * (1 - limits.eps))
    right |= got.isnan() & want.isnan()
    assert right.all(), (rewards[~right.all(1)], got[~right.all(1)], want[~right.all(1)])
    assert (got[~valid] == 0).all()
    same = (rewards[:, :, None] == rewards[:, None]) & valid[:, :, None] & valid[:, None]
    bits = got.view(torch.int16)
    assert (~same | (bits[:, :, None] == bits[:, None])).all()


@pytest.mark.parametrize("n, dtype", CASES)
def test_rows_that_mislead(n: int, dtype: str, rng: np.random.Generator) -> None:
    with launched() as kernels:
        for values in misleading(n, 37, rng).values():
            rewards = torch.from_numpy(values).to(getattr(torch, dtype))
            assert_right(rewards, 2)  # every gap weighs something
    assert set(kernels) == {"packed_kernel"}


@pytest.mark.parametrize("n, dtype", CASES)
def test_rows_of_some_samples(n: int, dtype: str, rng: np.random.Generator) -> None:
    kinds = misleading(n, 37, rng)
    for name in ("normal", "quarters", "not finite", "2 levels", "mixed", "range overflows"):
        where = torch.from_numpy(rng.random((37, n)) < rng.random((37, 1)))
        rewards = torch.from_numpy(kinds[name]).to(getattr(torch, dtype))
        assert_right(rewards, 2, where)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "estimator",
    ["s", *(pytest.param(name, marks=pytest.mark.costly("ptx")) for name in ("sloo", "centered"))],
)
def test_other_estimators(dtype: str, estimator: str, rng: np.random.Generator) -> None:
    kinds = misleading(16, 5, rng)
    names = ("normal", "uniform", "quarters", "3 levels", "constant", "not finite")
    rewards = torch.from_numpy(np.concatenate([kinds[name] for name in names]))
    for k in (1, 8, 15):
        of_dtype = rewards.to(getattr(torch, dtype))
        assert_right(of_dtype, k, estimator=estimator, scale="mean")
        assert_right(of_dtype, k, rewards > -1, estimator=estimator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 31, 33, 100])
def test_any_number_of_rows(rows: int, dtype: str, rng: np.random.Generator) -> None:
    rewards = torch.from_numpy(rng.standard_normal((rows, 16))).to(getattr(torch, dtype))
    assert_right(rewards, 2)
