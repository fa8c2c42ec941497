"""The mean over tasks with its intervals: how far it would move, had other tasks been drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Counts held at a time by the bootstrap: 8 MiB.
_COUNTS = 1 << 20
# Drawing one number of a multinomial costs about as much as drawing this many tasks.
_FEW = 8
# With more distinct rows than this not every one is drawn: drawing a row of 150000 tasks takes tens
# of seconds, and moves an interval by less than the choice of its 10000 resamples does.
MOST_DRAWN = 2048
# Of those the rows that are: the ones farthest from the mean.
FARTHEST = 256


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
) -> tuple[list[AtK], str]:
    """Average the tasks' estimates, with intervals: (tasks, columns) → an `AtK` a column, and how
    tasks were resampled, in words.

    Args:
        values: (tasks, columns) each task's estimate; NaN where it has fewer samples than k.
        ks: (columns,) the k of each column.
        confidence, resamples, seed: as for `evaluate`. All columns share the draws.

    >>> (row,), how = summarize(np.array([[0.0], [0.5], [1.0]]), [1], 0.95, resamples=100, seed=0)
    >>> row.estimate, row.tasks, how
    (0.5, 3, '100 resamples of all tasks')
    """
    present = ~np.isnan(values)
    filled = np.where(present, values, 0.0)
    if present.all():
        sums, how = _resampled_sums(filled, resamples, seed)
        counts = np.full(sums.shape, len(values))
    else:
        both, how = _resampled_sums(np.concatenate([filled, present], axis=1), resamples, seed)
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
    return rows, how


def _resampled_sums(table: Floats, resamples: int, seed: int) -> tuple[Floats, str]:
    """Sum resampled rows: (tasks, columns) → (resamples, columns), each the sums of as many rows
    drawn with replacement, of many distinct rows all but the farthest by their normal limit; and
    which of both it was, in words."""
    rng = np.random.default_rng(seed)
    tasks = len(table)
    first, sizes = _distinct_rows(table)
    if len(first) > MOST_DRAWN:
        how = (
            f"{resamples} resamples: the {FARTHEST} tasks farthest from the mean drawn one by one,"
        )
        how += f" the sum of the other {tasks - FARTHEST} by its normal limit"
        return _sums_with_normal_rest(table, resamples, rng), how
    # How often each distinct row is drawn is multinomial. With 0/1 rewards there are few of them,
    # and drawing those numbers is far cheaper than drawing tasks one by one.
    few = _FEW * len(first) <= tasks
    rows = table[first] if few else table
    sums = np.empty((resamples, table.shape[1]))
    for start, end in _chunks(resamples, len(rows)):
        if few:
            drawn = rng.multinomial(tasks, sizes / tasks, size=end - start).astype(np.float64)
        else:
            drawn = np.empty((end - start, tasks))
            for resample in drawn:
                indices = rng.integers(0, tasks, tasks, dtype=np.int32)
                resample[:] = np.bincount(indices, minlength=tasks)
        sums[start:end] = drawn @ rows
    return sums, f"{resamples} resamples of all tasks"


def _distinct_rows(table: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find distinct rows: (tasks, columns) → (distinct,) where each is first, and how often."""
    # Sorting one number for each row is an order of magnitude faster than sorting rows. Columns are
    # added one by one, so that equal rows give equal numbers.
    weights = (np.random.default_rng(0).random(table.shape[1]) + 0.5).tolist()
    number = np.zeros(len(table))
    for column, weight in zip(table.T, weights, strict=True):
        number += weight * column
    _, first, sizes = np.unique(number, return_index=True, return_counts=True)
    return first, sizes


def _sums_with_normal_rest(table: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Sum resampled rows as `_resampled_sums`: the FARTHEST rows are drawn, and the sum of the
    others is normal, given how many of them are drawn. What keeps a sum of many draws from being
    normal is few rows far from the rest."""
    tasks = len(table)
    deviation = np.zeros(tasks)
    for column in table.T:
        spread = column.std()
        if spread > 0:
            np.maximum(deviation, np.abs(column - column.mean()) / spread, out=deviation)
    is_far = np.zeros(tasks, bool)
    is_far[np.argpartition(deviation, -FARTHEST)[-FARTHEST:]] = True
    far, rest = table[is_far], table[~is_far]
    center, spread = rest.mean(axis=0), rest.std(axis=0)
    scaled = (rest - center) / np.where(spread > 0, spread, 1)
    levels, axes = np.linalg.eigh(scaled.T @ scaled / len(rest))
    root = (np.sqrt(np.maximum(levels, 0)) * axes).T * spread
    chances = np.full(FARTHEST + 1, 1 / tasks)
    chances[-1] = len(rest) / tasks
    sums = np.empty((resamples, table.shape[1]))
    for start, end in _chunks(resamples, FARTHEST):
        drawn = rng.multinomial(tasks, chances, size=end - start).astype(np.float64)
        noise = rng.standard_normal((end - start, len(root))) @ root
        among = drawn[:, FARTHEST:]
        sums[start:end] = drawn[:, :FARTHEST] @ far + among * center + np.sqrt(among) * noise
    return sums


def _chunks(resamples: int, rows: int) -> Iterator[tuple[int, int]]:
    """Split resamples into pieces that hold at most _COUNTS counts of rows."""
    size = max(1, _COUNTS // rows)
    for start in range(0, resamples, size):
        yield start, min(start + size, resamples)
