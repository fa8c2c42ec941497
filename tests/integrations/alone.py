"""What the trainers' tests expect: the float64 reference on each group alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pkpo_kernels as pk


def each_group_alone(
    rewards: Sequence[float | None],
    groups: Sequence[Hashable],
    k: int,
    *,
    samples: Sequence[Hashable] | None = None,
    valid: Sequence[Any] | None = None,
    estimator: Any = "sloo_minus_one",
) -> NDArray[np.float64]:
    """Transform flat rewards by the reference, (N,) → (N,), for a loss that averages over entries.

    Entries of one sample come in order: the last valid one has its reward. None and NaN are no
    rewards.
    """
    scores = np.array([np.nan if reward is None else reward for reward in rewards], np.float64)
    kept = np.ones(len(scores), bool) if valid is None else np.array(valid, bool)
    names = list(range(len(scores))) if samples is None else samples
    last: dict[Hashable, dict[Hashable, int]] = {}
    for i in np.flatnonzero(kept & ~np.isnan(scores)).tolist():
        last.setdefault(groups[i], {})[names[i]] = i
    out = np.zeros(len(scores))
    for group, entries in last.items():
        if len(entries) < k:
            continue
        own = scores[list(entries.values())]
        results = pk.transform(own, k, estimator=estimator, implementation="reference")
        of_sample = dict(zip(entries, results * len(scores) / len(last), strict=True))
        for i in np.flatnonzero(kept).tolist():
            if groups[i] == group:
                out[i] = of_sample.get(names[i], 0.0)
    return out


def assert_close(advantages: Any, wanted: NDArray[np.float64]) -> None:
    """Compare as the default estimator promises in float32: each relatively, and zeros exactly."""
    np.testing.assert_allclose(np.asarray(advantages, np.float64), wanted, rtol=5e-6, atol=0)
