"""The mean over tasks with its intervals: how far it would move, had other tasks been drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.validation import listed

Floats = NDArray[np.float64]
Limits = tuple[float, float]

# Between which estimates lie.
PROPORTION: Limits = (0.0, 1.0)
DIFFERENCE: Limits = (-1.0, 1.0)
ANY: Limits = (-math.inf, math.inf)
# Of equal estimates: they are rounded.
_NO_WIDTH = 1e-12

# Counts held at a time by the bootstrap: 8 MiB.
_COUNTS = 1 << 20
# Drawing one number of a multinomial costs about as much as drawing this many tasks.
_FEW = 8
# With more tasks than this, and of them more that differ, not every one is drawn: to draw 150000
# takes half a minute, and moves an interval by less than the choice of its 10000 resamples does.
MOST_TASKS, MOST_DISTINCT = 2048, 512
# Those that are drawn then: the ones farthest from the mean.
FARTHEST = 256


@dataclass(frozen=True)
class AtK:
    """One k of an evaluation.

    Attributes:
        k: how many samples the policy gets.
        estimate: the mean over the tasks that have at least k samples; NaN where none has.
        bootstrap, normal: (low, high) of an interval, NaN below two tasks; of pass@k and pass^k
            within [0, 1], where either may be Wilson's: see `evaluate`.
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
    values: Floats,
    ks: Sequence[int],
    confidence: float,
    resamples: int,
    seed: int,
    limits: Sequence[Limits],
) -> tuple[list[AtK], tuple[str, ...]]:
    """Average the tasks' estimates, with intervals: (tasks, columns) → an `AtK` a column, and how
    the intervals were found, in sentences.

    Args:
        values: (tasks, columns) each task's estimate; NaN where it has fewer samples than k.
        ks: (columns,) the k of each column.
        confidence, resamples, seed: as for `evaluate`. All columns share the draws.
        limits: (columns,) between which each column's estimates lie: PROPORTION, DIFFERENCE of
          two, or ANY.

    >>> values = np.array([[0.0], [0.5], [1.0]])
    >>> (row,), (how,) = summarize(values, [1], 0.9, resamples=100, seed=0, limits=[PROPORTION])
    >>> row.estimate, row.tasks, how
    (0.5, 3, 'bootstrap: 100 resamples of all tasks')
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
    # Not of 1 - tail, which is 1 where the confidence is next to it.
    z = -NormalDist().inv_cdf(tail)
    rows = []
    replaced: dict[str, list[str]] = {}
    alike: dict[str, None] = {}
    for column, (k, (least, most)) in enumerate(zip(ks, limits, strict=True)):
        there = values[present[:, column], column]
        tasks, too_small = len(there), len(values) - len(there)
        estimate = float(there.mean()) if tasks else math.nan
        ends = dict.fromkeys(("bootstrap", "normal"), (math.nan, math.nan))
        if tasks > 1:
            # A resample may hold none of the tasks that have k samples: it says nothing.
            held = counts[:, column] > 0
            means = np.clip(sums[held, column] / counts[held, column], least, most)
            if len(means):
                low, high = np.quantile(means, [tail, 1 - tail])
                ends["bootstrap"] = (float(low), float(high))
            half = z * float(there.std(ddof=1)) / math.sqrt(tasks)
            ends["normal"] = (estimate - half, estimate + half)
            for name, (low, high) in ends.items():
                useful = least <= low < high - _NO_WIDTH and high <= most
                if (least, most) == PROPORTION and not useful:
                    ends[name] = _wilson(estimate, tasks, z)
                    replaced.setdefault(name, []).append(str(k))
                else:
                    ends[name] = (max(low, least), min(high, most))
                    if high - low <= _NO_WIDTH * max(abs(low), abs(high)):
                        alike[str(k)] = None
        rows.append(AtK(k, estimate, ends["bootstrap"], ends["normal"], tasks, too_small))
    sentences = [f"bootstrap: {how}"]
    if replaced:
        places = " and ".join(f"{name} at k={listed(at)}" for name, at in replaced.items())
        sentences.append(
            f"Wilson's interval replaces {places}, which had no width or left 0..100 %: it assumes"
            " that every task either passes or fails, which is the widest spread at that mean"
        )
    if alike:
        sentences.append(
            f"an interval without width, as at k={listed(list(alike))}, says that these tasks are"
            " alike, not that others would be"
        )
    return rows, tuple(sentences)


def units_of(values: Floats, axis: int) -> Floats:
    """Find units for numbers (tasks, columns) along an axis → (columns,) or (tasks,): powers of two
    that make the largest magnitude 1 to 2. NaN counts for nothing."""
    largest = np.fmax.reduce(np.abs(values), axis=axis, initial=0.0)
    units: Floats = np.ldexp(0.5, np.frexp(largest)[1])
    return units


def in_units(row: AtK, unit: float) -> AtK:
    """Multiply an estimate and the ends of its intervals by a unit."""
    (low, high), (least, most) = row.bootstrap, row.normal
    return replace(
        row,
        estimate=row.estimate * unit,
        bootstrap=(low * unit, high * unit),
        normal=(least * unit, most * unit),
    )


def _wilson(estimate: float, tasks: int, z: float) -> tuple[float, float]:
    """Give Wilson's score interval of a proportion, from tasks that each pass or fail.

    A task's estimate lies in [0, 1], hence its variance is at most p(1 − p), which is that of such
    tasks: where the variance seen says nothing, the interval is too wide rather than too narrow.

    >>> tuple(round(end, 4) for end in _wilson(1.0, 40, 1.96))
    (0.9124, 1.0)
    """
    share = z * z / tasks
    middle = (estimate + share / 2) / (1 + share)
    half = math.sqrt(share * estimate * (1 - estimate) + share * share / 4) / (1 + share)
    return max(0.0, middle - half), min(1.0, middle + half)


def _resampled_sums(table: Floats, resamples: int, seed: int) -> tuple[Floats, str]:
    """Sum resampled rows: (tasks, columns) → (resamples, columns), each the sums of as many rows
    drawn with replacement, of many distinct rows all but the farthest by their normal limit; and
    which of both it was, in words."""
    rng = np.random.default_rng(seed)
    tasks = len(table)
    first, sizes = _distinct_rows(table)
    if tasks > MOST_TASKS and len(first) > MOST_DISTINCT:
        how = f"{resamples} resamples, in which the {FARTHEST} tasks farthest from the mean are"
        how += f" drawn one by one, and the sum of the other {tasks - FARTHEST} is normal"
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
    weights = np.random.default_rng(0).uniform(0.5, 1.5, (table.shape[1],)).tolist()
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
