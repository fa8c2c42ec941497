"""Entries with ids, and what kernels that group them must give, beside NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from subjects import DEVICE, TRITON_RUNS

import pkpo_kernels as pk
from pkpo_kernels import _calls

torch = pytest.importorskip("torch")
if not TRITON_RUNS:
    reason = "needs TRITON_INTERPRET=1, or TEST_DEVICE=ptx or cuda"
    pytest.skip(reason, allow_module_level=True)

Flat = np.ndarray[Any, np.dtype[Any]]

RNG = np.random.default_rng(3)
N = 150
IDS = RNG.integers(0, 9, N)
IDS[:40] = 100  # more than a program has at a time
REWARDS = RNG.standard_normal(N).astype(np.float32)
REWARDS[20:60] = RNG.integers(0, 2, 40)


@pytest.fixture(autouse=True)
def of_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is grouped by the library."""

    def of_library(*_: Any) -> None:
        raise AssertionError("the library has grouped")

    monkeypatch.setattr("pkpo_kernels._grouping._slots", of_library)
    _calls.forget()


def transformed(rewards: Flat, ids: Flat, k: Any, **options: Any) -> Flat:
    where = options.pop("where", None)
    if where is not None:
        options["where"] = torch.from_numpy(where).to(DEVICE)
    tensors = (torch.from_numpy(np.array(x)).to(DEVICE) for x in (rewards, ids))
    got = pk.transform_groups(*tensors, k, implementation="triton", **options)
    return np.asarray(got.cpu())


def check(rewards: Flat, ids: Flat, k: Any, **options: Any) -> Flat:
    """Every result is within what the contract allows."""
    got = transformed(rewards, ids, k, **options)
    of_host = int(k) if isinstance(k, torch.Tensor) else k
    with np.errstate(all="ignore"):
        exact = rewards.astype(np.float64)
        want = pk.transform_groups(exact, ids, of_host, implementation="numpy", **options)
    unit = np.zeros_like(want)
    for one in np.unique(ids):
        members = ids == one
        both = np.concatenate([exact[members], want[members]])
        unit[members] = np.abs(both[np.isfinite(both)]).max(initial=0)
    allowed = 2e-6 * unit
    if options.get("estimator") in (None, "sloo_minus_one") and of_host >= 2:
        allowed = 5e-6 * np.abs(want)
    off = np.abs(got.astype(np.float64) - want) <= allowed + 1e-38
    assert (off | (np.isnan(got) & np.isnan(want))).all(), (got, want)
    return got
