"""The mean over tasks with its intervals: how far it would move, had other tasks been drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Counts held at a time by the bootstrap: 8 MiB.
_COUNTS = 1 << 20
# Drawing one number of a multinomial costs about as much as drawing this many tasks.
_FEW = 8


@dataclass(frozen=True)
class AtK:
    """One k of an evaluation.

    Attributes:
        k: how many samples the policy gets.
        estimate: the mean over the tasks that have at least k samples; NaN where none has.
        bootstrap, normal: (low, high) of an interval, NaN below two tasks.
        tasks: how many tasks have at least k samples.
        too_small: how many have fewer, and are no part of the mean.
    """

    k: int
    estimate: float
    bootstrap: tuple[float, float]
    normal: tuple[float, float]
    tasks: int
    too_small: int


@dataclass(frozen=True)
class Difference(AtK):
    """The paired difference at one k: the mean over tasks of this run's value minus the other's.

    `tasks` counts the tasks that have at least k samples in both runs, `too_small` those that
    do not.
    """


def summarize(
    values: Floats, ks: Sequence[int], confidence: float, resamples: int, seed: int
) -> list[AtK]:
    """Average the tasks' estimates, with intervals: (tasks, columns) → an `AtK` a column.

    Args:
        values: (tasks, columns) each task's estimate; NaN where it has fewer samples than k.
        ks: (columns,) the k of each column.
        confidence, resamples, seed: as for `evaluate`. All columns share the draws.

    >>> row, = summarize(np.array([[0.0], [0.5], [1.0]]), [1], 0.95, resamples=100, seed=0)
    >>> row.estimate, row.tasks
    (0.5, 3)
    """
    present = ~np.isnan(values)
    filled = np.where(present, values, 0.0)
    if present.all():
        sums = _resampled_sums(filled, resamples, seed)
        counts = np.full(sums.shape, len(values))
    else:
        both = _resampled_sums(np.concatenate([filled, present], axis=1), resamples, seed)
        sums, counts = np.split(both, 2, axis=1)
    tail = (1 - confidence) / 2
    z = NormalDist().inv_cdf(1 - tail)
    rows = []
    for column, k in enumerate(ks):
        there = values[present[:, column], column]
        tasks, too_small = len(there), len(values) - len(there)
        estimate = float(there.mean()) if tasks else math.nan
        bootstrap = normal = (math.nan, math.nan)
        if tasks > 1:
            # A resample may hold none of the tasks that have k samples: it says nothing.
            held = counts[:, column] > 0
            means = sums[held, column] / counts[held, column]
            if len(means):
                low, high = np.quantile(means, [tail, 1 - tail])
                bootstrap = (float(low), float(high))
            half = z * float(there.std(ddof=1)) / math.sqrt(tasks)
            normal = (estimate - half, estimate + half)
        rows.append(AtK(k, estimate, bootstrap, normal, tasks, too_small))
    return rows


def _resampled_sums(table: Floats, resamples: int, seed: int) -> Floats:
    """Sum resampled rows: (tasks, columns) → (resamples, columns), each the sums of as many rows
    drawn with replacement."""
    rng = np.random.default_rng(seed)
    tasks = len(table)
    distinct, sizes = np.unique(table, axis=0, return_counts=True)
    # How often each distinct row is drawn is multinomial. With 0/1 rewards there are few of them,
    # and drawing those numbers is far cheaper than drawing tasks one by one.
    few = _FEW * len(distinct) <= tasks
    rows = distinct if few else table
    chunk = max(1, _COUNTS // len(rows))
    sums = np.empty((resamples, table.shape[1]))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        if few:
            drawn = rng.multinomial(tasks, sizes / tasks, size=size).astype(np.float64)
        else:
            drawn = np.empty((size, tasks))
            for resample in drawn:
                indices = rng.integers(0, tasks, tasks, dtype=np.int32)
                resample[:] = np.bincount(indices, minlength=tasks)
        sums[start : start + size] = drawn @ rows
    return sums
