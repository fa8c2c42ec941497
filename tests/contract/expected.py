"""What the contract compares with: enumeration and the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

import pkpo_kernels as pk

ESTIMATORS = tuple(pk.ESTIMATORS)
OFFSET_BLIND = ("sloo_minus_one", "centered", "passk_training")


def admitted_ks(estimator: str, ks: Any, n: int) -> list[int]:
    return [k for k in ks if k <= pk.ESTIMATORS[estimator].largest_k(n)]


def expected(rewards: Any, k: Any, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(pk.transform(rewards, k, implementation="reference", **options))
