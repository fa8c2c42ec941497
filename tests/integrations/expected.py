"""What every integration must give: each group by itself, from the float64 reference."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pkpo_kernels as pk


def expected(
    rewards: Any, groups: Sequence[Hashable], k: int, *, averaged: float | None = None
) -> NDArray[np.float64]:
    """Compute the advantages (N,) of flat rewards (N,) for a loss that averages over samples.

    A NaN is left out and gets 0, and so does a group of fewer than k others.

    Args:
        averaged: what the loss divides by, N unless it is given.
    """
    rewards = np.asarray(rewards, np.float64)
    valid = ~np.isnan(rewards)
    names = [str(group) for group in groups]
    present = {name for name, counts in zip(names, valid, strict=True) if counts}
    scale = (len(rewards) if averaged is None else averaged) / max(len(present), 1)
    out = np.zeros(len(rewards))
    for group in present:
        inside = np.array([name == group for name in names]) & valid
        if inside.sum() >= k:
            out[inside] = scale * pk.transform(rewards[inside], k, implementation="reference")
    return out


def assert_close(advantages: Any, wanted: NDArray[np.float64]) -> None:
    """Compare as the default estimator promises in float32: each relatively, and zeros exactly."""
    np.testing.assert_allclose(np.asarray(advantages, np.float64), wanted, rtol=5e-6, atol=0)
