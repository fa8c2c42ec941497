"""Checks on cases that are drawn: random shapes, masks, ks and options, and rows that are not
finite, or nearly so. Case i of a seed is the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.api import SCALES, UNDERSIZED
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.selfcheck.cases import Case
from pkpo_kernels.selfcheck.findings import Finding, Tally
from pkpo_kernels.selfcheck.subjects import (
    EVERYTHING,
    NORMALIZED,
    computes_float64,
    float64_allowed,
    largest_k,
)

RANDOM_CASES = 2
# Groups of so many samples, with this scale where the estimator has one: few programs to compile.
SPOILED_N = ((9, "sum"), (64, "mean"))
SPOILED_TOLERANCE = 5e-6
# What may happen to a group: a sample is not finite, two are too far apart, all are near the
# largest number.
HAZARDS = ("as drawn", "NaN", "inf", "-inf", "overflow", "large", "large, one sign")


def random_shapes(implementation: str, estimator: str, seed: int) -> Finding:
    """Compare the first drawn cases of a seed with the reference."""
    tally = random_shapes_tally(implementation, estimator)
    for index in range(RANDOM_CASES):
        drawn_case(seed, index, estimator).compare(tally)
    return tally.finding()


def random_shapes_tally(implementation: str, estimator: str) -> Tally:
    """Begin a finding of drawn cases, however many."""
    return Tally(implementation, estimator, "random shapes")


def rows_not_finite(implementation: str, estimator: str, seed: int) -> Finding:
    """Compare rows of every hazard with what the rules say of them."""
    tally = Tally(implementation, estimator, "rows that are not finite", SPOILED_TOLERANCE)
    with float64_allowed(tally.library):
        dtypes = ["float32", *(["float64"] if computes_float64(implementation) else [])]
        for n, scale in SPOILED_N:
            for dtype in dtypes:
                spoiled_case(seed, n, scale, estimator).compare(tally, dtype)
    return tally.finding()


@lru_cache(maxsize=64)
def drawn_case(seed: int, index: int, estimator: str) -> Case:
    """Draw case `index` of the seed, a different one for each estimator."""
    rng = np.random.default_rng((seed, index, EVERYTHING.index(estimator)))
    n = round(2 ** rng.uniform(1, 8.5))
    leading = tuple(rng.integers(1, 6, rng.integers(0, 3)).tolist())
    axis = int(rng.integers(0, len(leading) + 1))
    kinds: dict[str, Callable[[], NDArray[Any]]] = {
        "gaussian": lambda: rng.standard_normal((*leading, n)),
        "far from 0": lambda: rng.standard_normal((*leading, n)) + 100,
        "of many sizes": lambda: np.exp(4 * rng.standard_normal((*leading, n))),
        "five levels": lambda: rng.integers(-2, 3, (*leading, n)) / 2,
        "0/1": lambda: rng.integers(0, 2, (*leading, n)).astype(np.float64),
        "bool": lambda: rng.integers(0, 2, (*leading, n)).astype(np.bool_),
        "all equal": lambda: np.ones((*leading, n)) * rng.standard_normal((*leading, 1)),
    }
    kind = str(rng.choice(list(kinds)))
    rewards = kinds[kind]()
    if kind != "bool":
        rewards = rewards.astype(np.float32).astype(np.float64)
    masked = bool(rng.integers(0, 2))
    where = rng.random(rewards.shape) < rng.uniform(0.3, 1) if masked else None
    # Small ks are what people train with: each size of k as often as the others.
    share = rng.random(leading if rng.integers(0, 2) and estimator != MAX_AT_K.name else ())
    ks = (largest_k(estimator, n) ** share).round().astype(int)
    k = int(ks) if ks.ndim == 0 else ks
    options: dict[str, Any] = {"axis": axis}
    if estimator != MAX_AT_K.name:
        options["scale"] = "sum" if estimator in NORMALIZED else str(rng.choice(SCALES))
        options["undersized"] = str(rng.choice(UNDERSIZED))
    # In one of three half of the groups are not finite, or nearly so.
    hazards = np.asarray(rng.integers(0, len(HAZARDS), leading) * rng.integers(0, 2, leading))
    spoiled, large = None, None
    if kind != "bool" and rng.random() >= 2 / 3:
        rewards, spoiled, large = _with_hazards(rng, rewards, where, hazards)
    said = ", ".join(f"{name}={value!r}" for name, value in options.items())
    text = f"case {index} of seed {seed}: {leading} groups of n={n}, k={ks.tolist()}, {kind}"
    text += f"{', masked' if masked else ''}{', spoiled' if spoiled is not None else ''}, {said}"
    return Case.of(estimator, rewards, where, spoiled, large, k, options, text)


@lru_cache(maxsize=64)
def spoiled_case(seed: int, n: int, scale: str, estimator: str) -> Case:
    """Draw groups of n samples of every hazard, whole and with samples left out, each with a k."""
    rng = np.random.default_rng((seed, n))
    hazards = np.tile(np.arange(len(HAZARDS)), 4)
    gaussian, levels = rng.standard_normal((2, len(hazards) // 2, n))
    rewards = np.concatenate([gaussian, levels.round()]).astype(np.float32).astype(np.float64)
    where = rng.random(rewards.shape) < 0.7
    where[: len(HAZARDS)] = where[-len(HAZARDS) :] = True
    options: dict[str, Any] = {"axis": 1}
    k: Any = 2
    if estimator != MAX_AT_K.name:
        k = rng.integers(1, largest_k(estimator, n) + 1, len(hazards))
        options["scale"] = "sum" if estimator in NORMALIZED else scale
        options["undersized"] = UNDERSIZED[n % len(UNDERSIZED)]
    text = f"n={n}, {options}"
    rewards, spoiled, large = _with_hazards(rng, rewards, where, hazards)
    return Case.of(estimator, rewards, where, spoiled, large, k, options, text)


def _with_hazards(
    rng: np.random.Generator,
    rewards: NDArray[np.float64],
    where: NDArray[np.bool_] | None,
    hazards: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Let something happen to every group: rewards (..., n), where (..., n) or None, hazards (...),
    indices into HAZARDS → rewards, spoiled (..., n) and large (..., 1) of a case."""
    rewards, spoiled = rewards.copy(), np.zeros(rewards.shape)
    names = np.asarray(np.array(HAZARDS)[hazards])
    for group in np.ndindex(hazards.shape):
        row, name = rewards[group], names[group]
        valid = np.arange(len(row)) if where is None else np.flatnonzero(where[group])
        if name in ("NaN", "inf", "-inf"):
            # Wherever it is: a sample that is left out touches nothing.
            spoiled[group][rng.integers(len(row))] = float(name)
        elif name == "overflow" and len(valid) > 1:
            low, high = rng.choice(valid, 2, replace=False)
            spoiled[group][low], spoiled[group][high] = -1, 1
        elif name == "large":
            # Below 2, and so is the range: the power of two for it makes both finite.
            row *= 0.99 / max(1.0, np.abs(row).max())
        elif name == "large, one sign":
            row[:] = np.copysign(1.5 + 0.2 * row / max(1.0, np.abs(row).max()), row[0])
    large = np.char.startswith(names, "large")[..., None]
    return rewards.astype(np.float32).astype(np.float64), spoiled, large
