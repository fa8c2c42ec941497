"""pass@k and max@k over a set of tasks, with intervals, and the difference of two runs.

Each task has its own samples; the estimate for a task is unbiased (pass@k: Chen et al. 2021, arXiv
2107.03374, and Eq 3 of arXiv 2505.15201; max@k: Eq 12-14 there), and a run's figure is the mean of
its tasks. What the intervals speak of is the choice of tasks: how far the mean would move had other
tasks of the same kind been drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.api import max_at_k, pass_at_k
from pkpo_kernels.typing import FlatHostIntegers, Metric
from pkpo_kernels.validation import (
    checked_array,
    checked_integer,
    checked_integers,
    checked_name,
    inexact_integers,
    not_exact,
    shown,
)

__all__ = ["AtK", "Difference", "Evaluation", "Metric", "evaluate"]

Floats = NDArray[np.float64]

# Counts held at a time by the bootstrap: 8 MiB.
_COUNTS = 1 << 20

# Drawing one number of a multinomial costs about as much as drawing this many tasks.
_FEW = 8


@dataclass(frozen=True)
class AtK:
    """One k of an evaluation.

    `estimate` is the mean over the `tasks` tasks that have at least k samples; `too_small`
    tasks have fewer and are no part of it. NaN where no task is left. `bootstrap` and `normal`
    are (low, high), NaN below two tasks.
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


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` finds.

    Attributes:
        metric: "pass@k" or "max@k".
        confidence: of every interval.
        tasks: how many tasks there are.
        samples: the fewest and the most samples a task has.
        rows: one :class:`AtK` for each k, in the order asked for.
        difference: one :class:`Difference` for each k, or None without `against`.
    """

    metric: Metric
    confidence: float
    tasks: int
    samples: tuple[int, int]
    rows: tuple[AtK, ...]
    difference: tuple[Difference, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers for `json.dumps`; None for NaN, which JSON lacks."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain


def evaluate(
    rewards: Any,
    k: FlatHostIntegers,
    *,
    where: Any = None,
    metric: Metric | None = None,
    against: Any = None,
    against_where: Any = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Evaluation:
    """Estimate pass@k or max@k over tasks, for one or many k at once.

    Args:
        rewards: numbers or bools, as a (tasks, samples) array of NumPy, torch or JAX; or a sequence
            of 1-D sequences, one a task, of any lengths; or a mapping from task id to such a
            sequence. Computed in float64.
        k: at least 1, or a sequence of such.
        where: bool, of the form and shape of `rewards`: the samples that count.
        metric: "pass@k" (rewards are 0 or 1) or "max@k"; None chooses "pass@k" if every reward is 0
            or 1.
        against: another run on the same tasks, in the same form: a mapping with the same keys in
            any order, or an array or sequence with the tasks in the same order. The numbers of
            samples may differ.
        against_where: `where` for `against`.
        confidence: of the intervals, between 0 and 1.
        resamples: of the bootstrap, at least 1. 10000 of 100000 tasks with rewards all different
            take seconds; with 0/1 rewards the number of tasks hardly matters.
        seed: of the bootstrap, at least 0. The same seed and input give the same intervals.

    Returns:
        An :class:`Evaluation`. Every k has two intervals over tasks: the percentile bootstrap
        (tasks are drawn with replacement; the draws are shared by all k and both runs), and the
        normal one, estimate ± z·sd/√tasks with the standard deviation between tasks (ddof 1), which
        may leave [0, 1]. In the paired difference the tasks' own difficulty cancels, hence it is
        usually far narrower than the two runs' intervals suggest.

    Raises:
        TypeError: an argument is of the wrong type: rewards that are no numbers, k not integral,
            and so on.
        ValueError: k < 1; no tasks or no samples; a reward that is NaN or infinite (the task is
            named); "pass@k" forced on other rewards than 0 and 1; `where` of another shape; runs
            of different tasks.

    Three tasks of four samples; the chance that at least one of two passes is 1/2, 0 and 5/6:

    >>> result = evaluate([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], k=[1, 2, 5])
    >>> for row in result.rows:
    ...     print(row.k, round(row.estimate, 4), row.tasks, row.too_small)
    1 0.25 3 0
    2 0.4444 3 0
    5 nan 0 3
    """
    ks = _checked_ks(k)
    _check_settings(metric, confidence)
    resamples = checked_integer("resamples", resamples, least=1)
    seed = checked_integer("seed", seed, least=0)
    runs = [_Run.read("rewards", rewards, where)]
    if against is not None:
        _check_same_form(rewards, against)
        runs.append(_Run.read("against", against, against_where, order=runs[0].task_ids))
        if len(runs[1].lengths) != len(runs[0].lengths):
            raise ValueError(
                f"against must have as many tasks as rewards, {len(runs[0].lengths)};"
                f" got {len(runs[1].lengths)}"
            )
    elif against_where is not None:
        raise ValueError("against_where must come with against; got it alone")
    metric = _resolved(metric, runs)

    columns = [run.values(ks, metric) for run in runs]
    if against is not None:
        columns[1] = columns[0] - columns[1]
    found = _summaries(np.concatenate(columns, axis=1), confidence, resamples, seed)
    lengths = runs[0].lengths
    return Evaluation(
        metric=metric,
        confidence=float(confidence),
        tasks=len(lengths),
        samples=(int(lengths.min()), int(lengths.max())),
        rows=tuple(AtK(at, *found[i]) for i, at in enumerate(ks)),
        difference=None
        if against is None
        else tuple(Difference(at, *found[len(ks) + i]) for i, at in enumerate(ks)),
    )


@dataclass(frozen=True)
class _Run:
    """The rewards of all tasks one after the other, and how many each task has."""

    name: str
    flat: Floats
    lengths: NDArray[np.int64]
    task_ids: tuple[Any, ...] | None

    @classmethod
    def read(
        cls, name: str, rewards: Any, where: Any, order: tuple[Any, ...] | None = None
    ) -> _Run:
        where_name = "where" if name == "rewards" else f"{name}_where"
        if isinstance(rewards, Mapping):
            order = tuple(rewards) if order is None else order
            if where is not None:
                if not isinstance(where, Mapping) or where.keys() != rewards.keys():
                    raise ValueError(
                        f"{where_name} must be a mapping with the tasks of {name};"
                        f" got {shown(where)}"
                    )
                where = [where[task] for task in order]
            rewards = [rewards[task] for task in order]
        flat, lengths, inexact = _flatten(name, rewards, order, "biuf")
        if not len(lengths):
            raise ValueError(f"{name} must hold at least one task; got none")
        if where is not None:
            mask, mask_lengths, _ = _flatten(where_name, where, order, "b")
            if not np.array_equal(lengths, mask_lengths):
                raise ValueError(
                    f"{where_name} must have the shape of {name}, {_shape(lengths)};"
                    f" got {_shape(mask_lengths)}"
                )
            keep = mask.astype(bool)
            lengths = np.bincount(_owners(lengths)[keep], minlength=len(lengths))
            flat, inexact = flat[keep], inexact[keep]
        if not len(flat):
            raise ValueError(f"{name} must hold at least one sample; got none in any task")
        finite = np.isfinite(flat)
        if not finite.all():
            first = int(np.argmin(finite))
            task = _task_name(int(_owners(lengths)[first]), order)
            raise ValueError(f"{name} must be finite numbers; got {flat[first]} in task {task}")
        if inexact.any():
            first = int(np.argmax(inexact))
            task = _task_name(int(_owners(lengths)[first]), order)
            raise ValueError(not_exact(name, f"{flat[first]:.0f} in task {task}"))
        return cls(name, flat, lengths, order)

    def is_binary(self) -> bool:
        return bool(((self.flat == 0) | (self.flat == 1)).all())

    def values(self, ks: tuple[int, ...], metric: Metric) -> Floats:
        """Each task's own estimate, (tasks, ks); NaN where it has fewer samples than k."""
        return self._pass_values(ks) if metric == "pass@k" else self._max_values(ks)

    def _pass_values(self, ks: tuple[int, ...]) -> Floats:
        owners = _owners(self.lengths)
        correct = np.bincount(owners, self.flat, len(self.lengths)).astype(np.int64)
        # Few pairs (n, c) are distinct, however many tasks there are.
        pairs = np.stack([self.lengths, correct], axis=1)
        distinct, place = np.unique(pairs, axis=0, return_inverse=True)
        n, c = distinct[:, :1], distinct[:, 1:]
        # A k beyond all lengths has no value, however large it is.
        capped = [min(k, int(self.lengths.max()) + 1) for k in ks]
        values = np.where(n < capped, np.nan, pass_at_k(np.maximum(n, 1), c, capped))
        return values[place.reshape(-1)]

    def _max_values(self, ks: tuple[int, ...]) -> Floats:
        values = np.full((len(self.lengths), len(ks)), np.nan)
        starts = np.cumsum(self.lengths) - self.lengths
        by_length = np.argsort(self.lengths, kind="stable")
        changes = np.flatnonzero(np.diff(self.lengths[by_length])) + 1
        for tasks in np.split(by_length, changes):
            n = int(self.lengths[tasks[0]])
            possible = [i for i, k in enumerate(ks) if k <= n]
            if possible:
                rows = self.flat[starts[tasks][:, None] + np.arange(n)]
                values[tasks[:, None], possible] = max_at_k(rows, [ks[i] for i in possible])
        return values


class _Summary(NamedTuple):
    estimate: float
    bootstrap: tuple[float, float]
    normal: tuple[float, float]
    tasks: int
    too_small: int


def _summaries(table: Floats, confidence: float, resamples: int, seed: int) -> list[_Summary]:
    """Of every column of a (tasks, columns) table in which NaN means absent."""
    present = ~np.isnan(table)
    filled = np.where(present, table, 0.0)
    if present.all():
        resampled = _resampled_sums(filled, resamples, seed)
        counts = np.full(resampled.shape, len(table))
    else:
        sums = _resampled_sums(np.concatenate([filled, present], axis=1), resamples, seed)
        resampled, counts = np.split(sums, 2, axis=1)
    tail = (1 - confidence) / 2
    z = NormalDist().inv_cdf(1 - tail)
    summaries = []
    for column in range(table.shape[1]):
        values = table[present[:, column], column]
        tasks, too_small = len(values), len(table) - len(values)
        estimate = float(values.mean()) if tasks else math.nan
        bootstrap = normal = (math.nan, math.nan)
        if tasks > 1:
            # A resample may hold none of the tasks that have k samples: it says nothing.
            held = counts[:, column] > 0
            means = resampled[held, column] / counts[held, column]
            if len(means):
                low, high = np.quantile(means, [tail, 1 - tail])
                bootstrap = (float(low), float(high))
            half = z * float(values.std(ddof=1)) / math.sqrt(tasks)
            normal = (estimate - half, estimate + half)
        summaries.append(_Summary(estimate, bootstrap, normal, tasks, too_small))
    return summaries


def _resampled_sums(table: Floats, resamples: int, seed: int) -> Floats:
    """Column sums of `resamples` tables, each of as many rows drawn with replacement."""
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
                places = rng.integers(0, tasks, tasks, dtype=np.int32)
                resample[:] = np.bincount(places, minlength=tasks)
        sums[start : start + size] = drawn @ rows
    return sums


def _flatten(
    name: str, rewards: Any, task_ids: tuple[Any, ...] | None, kinds: str
) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_]]:
    """All samples one after the other in float64, each task's number of them, and which samples are
    integers that float64 does not hold."""
    right = "numbers" if "f" in kinds else "bool"
    if hasattr(rewards, "ndim"):
        array, inexact = _as_numpy(name, rewards)
        if array.ndim != 2:
            raise ValueError(f"{name} must be a (tasks, samples) array; got shape {array.shape}")
        if array.dtype.kind not in kinds:
            raise TypeError(f"{name} must be {right}; got dtype {array.dtype}")
        lengths = np.full(len(array), array.shape[1], np.int64)
        return array.astype(np.float64).ravel(), lengths, inexact.ravel()
    if isinstance(rewards, (str, bytes)) or not isinstance(rewards, Sequence):
        raise TypeError(
            f"{name} must be a (tasks, samples) array, a sequence of sequences or a mapping of"
            f" task ids to sequences; got {type(rewards).__name__}"
        )
    pieces = []
    for number, task in enumerate(rewards):
        of_task = f"{name} of task {_task_name(number, task_ids)}"
        array, inexact = _as_numpy(of_task, task)
        if array.ndim != 1:
            raise ValueError(
                f"{name} must hold one sequence of samples a task; got shape {array.shape}"
                f" for task {_task_name(number, task_ids)}"
            )
        # An empty list has no dtype of its own.
        if array.dtype.kind not in kinds and array.size:
            raise TypeError(
                f"{name} must be {right}; got dtype {array.dtype}"
                f" in task {_task_name(number, task_ids)}"
            )
        pieces.append((array.astype(np.float64), inexact))
    if not pieces:
        return np.empty(0), np.empty(0, np.int64), np.empty(0, bool)
    flat, beyond = map(np.concatenate, zip(*pieces, strict=True))
    return flat, np.array([len(array) for array, _ in pieces], np.int64), beyond


def _as_numpy(name: str, value: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """→ an array on the host, and which of its entries are integers that float64 does not hold."""
    array, library = checked_array(name, value)
    if library == "torch":
        array = array.detach().cpu()
        # NumPy has no bfloat16.
        array = array.double() if array.is_floating_point() else array
    plain: NDArray[Any] = np.asarray(array)
    inexact = inexact_integers(value, plain)
    # To NumPy, JAX's bfloat16 and float8 are void, and integers beyond 64 bits objects.
    foreign = plain.dtype.kind == "V" and "float" in plain.dtype.name
    if foreign or (plain.dtype == object and inexact is not None):
        plain = plain.astype(np.float64)
    return plain, np.zeros(plain.shape, bool) if inexact is None else inexact


def _owners(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of the task of every sample."""
    return np.repeat(np.arange(len(lengths)), lengths)


def _task_name(number: int, task_ids: tuple[Any, ...] | None) -> str:
    return repr(number if task_ids is None else task_ids[number])


def _shape(lengths: NDArray[np.int64]) -> str:
    if len(np.unique(lengths)) == 1:
        return f"({len(lengths)}, {lengths[0]})"
    return f"{len(lengths)} tasks, {lengths.sum()} samples"


def _checked_ks(k: Any) -> tuple[int, ...]:
    if np.ndim(k) == 0:
        return (checked_integer("k", k, least=1),)
    ks = checked_integers("k", k, least=1)
    if not ks:
        raise ValueError("k must be an integer or a sequence of at least one; got none")
    return ks


def _check_settings(metric: Any, confidence: Any) -> None:
    if metric is not None:
        checked_name("metric", metric, get_args(Metric), or_none=True)
    if not isinstance(confidence, (int, float, np.floating)) or isinstance(confidence, bool):
        raise TypeError(f"confidence must be a number; got {shown(confidence)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence}")


def _check_same_form(rewards: Any, against: Any) -> None:
    if not isinstance(rewards, Mapping) and not isinstance(against, Mapping):
        return
    if not isinstance(rewards, Mapping) or not isinstance(against, Mapping):
        raise TypeError(
            "against must be a mapping if and only if rewards is one;"
            f" got {type(against).__name__} and {type(rewards).__name__}"
        )
    missing = [task for task in rewards if task not in against]
    extra = [task for task in against if task not in rewards]
    faults = [
        f"{verb} {_listed(tasks)}" for verb, tasks in (("lacks", missing), ("adds", extra)) if tasks
    ]
    if faults:
        raise ValueError(f"against must have the tasks of rewards, but it {' and '.join(faults)}")


def _resolved(metric: Metric | None, runs: Sequence[_Run]) -> Metric:
    not_binary = [run.name for run in runs if not run.is_binary()]
    if metric is None:
        return "max@k" if not_binary else "pass@k"
    if metric == "pass@k" and not_binary:
        raise ValueError(
            f"metric must be 'max@k', or None to have it chosen, where rewards are not only 0 and 1"
            f" (those of {not_binary[0]} are not); got 'pass@k'"
        )
    return metric


def _listed(tasks: Sequence[Any], shown: int = 5) -> str:
    names = ", ".join(repr(task) for task in tasks[:shown])
    return names if len(tasks) <= shown else f"{names} and {len(tasks) - shown} more"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
