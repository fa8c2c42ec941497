"""pass@k, max@k and pass^k over a set of tasks, with intervals, and the difference of two runs.

Each task has its own samples; the estimate for a task is unbiased (pass@k: Chen et al. 2021, arXiv
2107.03374, and Eq 3 of arXiv 2505.15201; max@k: Eq 12-14 there; pass^k, that all k pass:
C(c, k)/C(n, k)), and a run's figure is the mean of its tasks. What the intervals speak of is the
choice of tasks: how far the mean would move had other tasks of the same kind been drawn.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any, ParamSpec, get_args

import numpy as np

from pkpo_kernels.evaluation import intervals
from pkpo_kernels.evaluation.intervals import AtK, Difference
from pkpo_kernels.evaluation.runs import Run, check_same_tasks, from_pandas, unreadable
from pkpo_kernels.typing import FlatHostIntegers, Metric
from pkpo_kernels.validation import checked_integer, checked_integers, checked_name, shown

__all__ = ["AtK", "Difference", "Evaluation", "Metric", "evaluate"]

P = ParamSpec("P")


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` finds.

    Attributes:
        metric: "pass@k", "max@k" or "pass^k".
        confidence: of every interval.
        tasks: how many tasks there are.
        samples: the fewest and the most samples a task has.
        rows: one :class:`AtK` for each k, in the order asked for.
        difference: one :class:`Difference` for each k, or None without `against`.
        methods: how the intervals were found, in sentences.
    """

    metric: Metric
    confidence: float
    tasks: int
    samples: tuple[int, int]
    rows: tuple[AtK, ...]
    difference: tuple[Difference, ...] | None = None
    methods: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Write a line for each k: the estimate and the bootstrap's interval.

        >>> print(evaluate([[1, 0], [1, 1], [0, 0]], [1, 2]))
        pass@1 = 0.5, 95 % interval 0 to 1, 3 tasks
        pass@2 = 0.6667, 95 % interval 0 to 1, 3 tasks
        """
        what = f"{100 * self.confidence:g} % interval"
        lines = []
        for name, rows in (("", self.rows), ("difference of ", self.difference or ())):
            for row in rows:
                low, high = row.bootstrap
                figure = f"{name}{self.metric[:-1]}{row.k} = {row.estimate:.4g}"
                lines.append(f"{figure}, {what} {low:.4g} to {high:.4g}, {row.tasks} tasks")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain dicts, lists and numbers for `json.dumps`; None for NaN and infinities,
        which JSON lacks.

        >>> evaluate([[0, 1]], 1).as_dict()["rows"][0]["estimate"]
        0.5
        """
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def _outside_of_programs(function: Callable[P, Evaluation]) -> Callable[P, Evaluation]:
    """Keep torch.compile out of a function, of whose NumPy it makes torch's operations, less exact
    ones: with fullgraph=True an error, else the function runs beside the program."""

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> Evaluation:
        torch = sys.modules.get("torch")
        if torch is None or "torch._dynamo" not in sys.modules:
            return function(*arguments, **options)
        if torch.compiler.is_compiling():
            raise TypeError(unreadable("rewards"))
        found: Evaluation = torch.compiler.disable(function)(*arguments, **options)
        return found

    return call


@_outside_of_programs
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
    """Estimate pass@k, max@k or pass^k over tasks, for one or many k at once.

    Args:
        rewards: numbers or bools, as a (tasks, samples) array of NumPy, torch or JAX; or a sequence
            of 1-D sequences, one a task, of any lengths; or a mapping from task id to such a
            sequence, or a pandas Series of lists, whose index has the ids (of a DataFrame with a
            sample a row, `df.groupby("task_id")["reward"].agg(list)`). Computed in float64; a
            result beyond that is ±inf.
        k: at least 1, or a sequence of such.
        where: bool, given as `rewards` are and of their shape: True where a sample is valid.
        metric: "pass@k" (one of k passes; rewards are 0 or 1), "pass^k" (all k pass; 0 or 1 too)
            or "max@k" (the best of k); None chooses "pass@k" if every reward is 0 or 1, else
            "max@k".
        against: another run on the same tasks: for a mapping one with the same keys in any order,
            else an array or sequence with the tasks in the same order. The numbers of samples may
            differ.
        against_where: `where` for `against`.
        confidence: of the intervals, between 0 and 1.
        resamples: of the bootstrap, at least 1. 10000 take about a second, whatever the tasks.
        seed: of the bootstrap, at least 0. The same seed and input give the same intervals.

    Returns:
        An :class:`Evaluation`. Every k has two intervals, and `methods` says how they were found:

        - The percentile bootstrap: tasks are drawn with replacement, the draws are shared by all k
          and both runs. Of more than 2048 tasks that differ, the 256 farthest from the mean are
          drawn one by one, and the sum of the others is normal, which is what it tends to.
        - The normal one, estimate ± z·sd/√tasks with the standard deviation between tasks (ddof 1).

        Of pass@k and pass^k they stay within [0, 1]: where either would leave it, or has no width
        since all tasks are alike, Wilson's score interval replaces it, which takes tasks to be as
        different as tasks of that mean can be. In the paired difference the tasks' own difficulty
        cancels, hence it is usually far narrower than the two runs' intervals suggest.

        The intervals are over tasks, not seeds: they say how far a figure would move with other
        tasks, not with another seed of sampling or of training.

    Raises:
        TypeError: an argument is of the wrong type: rewards that are no numbers, k not integral,
            and so on. Rewards inside jax.jit, torch.compile or vmap: `group_metrics` goes there.
        ValueError: k < 1; no tasks or no valid samples; a valid reward that is NaN or infinite (the
            task is named); "pass@k" or "pass^k" forced on other rewards than 0 and 1; `where` of
            another shape; runs of different tasks.

    Three tasks of four samples; the chance that at least one of two passes is 1/2, 0 and 5/6:

    >>> result = evaluate([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], k=[1, 2, 5])
    >>> for row in result.rows:
    ...     print(row.k, round(row.estimate, 4), row.tasks, row.too_small)
    1 0.25 3 0
    2 0.4444 3 0
    5 nan 0 3
    """
    rewards, against = from_pandas("rewards", rewards), from_pandas("against", against)
    runs = [Run.read("rewards", rewards, where)]
    if against is not None:
        check_same_tasks(rewards, against)
        runs.append(Run.read("against", against, against_where, order=runs[0].task_ids))
        if len(runs[1].lengths) != len(runs[0].lengths):
            raise ValueError(
                f"against must have as many tasks as rewards, {len(runs[0].lengths)};"
                f" got {len(runs[1].lengths)}"
            )
    elif against_where is not None:
        raise ValueError("against_where must come with against; got it alone")
    return evaluate_runs(
        runs, k, metric=metric, confidence=confidence, resamples=resamples, seed=seed
    )


def evaluate_runs(
    runs: Sequence[Run],
    k: FlatHostIntegers,
    *,
    metric: Metric | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    progress: Callable[[float], None] = lambda tasks: None,
) -> Evaluation:
    """Evaluate a run, or two of the same tasks in one order, as `evaluate` does; tells how
    many of the tasks of all runs are done."""
    ks = _checked_ks(k)
    _check_settings(metric, confidence)
    resamples = checked_integer("resamples", resamples, least=1)
    seed = checked_integer("seed", seed, least=0)
    metric = _resolved_metric(metric, runs)

    lengths = runs[0].lengths
    done = 0

    def advance(tasks: int) -> None:
        nonlocal done
        done += tasks
        progress(done)

    values = [run.values(ks, metric, advance) for run in runs]
    proportions = metric != "max@k"
    # Sums and squares of large numbers leave float64, and so do squares of small ones. Units that
    # are powers of two change no digit.
    units = np.ones(len(ks)) if proportions else intervals.units_of(np.concatenate(values), axis=0)
    values = [of_run / units for of_run in values]
    limits = [intervals.PROPORTION if proportions else intervals.ANY] * len(ks)
    if len(runs) > 1:
        values[1] = values[0] - values[1]
        limits += [intervals.DIFFERENCE if proportions else intervals.ANY] * len(ks)
    # In one table, so that both runs share the draws.
    table = np.concatenate(values, axis=1)
    rows, methods = intervals.summarize(table, ks * len(runs), confidence, resamples, seed, limits)
    rows = list(map(intervals.in_units, rows, units.tolist() * len(runs)))
    differences = tuple(Difference(**vars(row)) for row in rows[len(ks) :])
    return Evaluation(
        metric=metric,
        confidence=float(confidence),
        tasks=len(lengths),
        samples=(int(lengths.min()), int(lengths.max())),
        rows=tuple(rows[: len(ks)]),
        difference=differences or None,
        methods=methods,
    )


def _checked_ks(k: Any) -> tuple[int, ...]:
    """Check k, an integer or a sequence of integers: → (ks,)."""
    if np.ndim(k) == 0:
        return (checked_integer("k", k, least=1),)
    ks = checked_integers("k", k, least=1)
    if not ks:
        raise ValueError("k must be an integer or a sequence of at least one; got none")
    return ks


def _check_settings(metric: Any, confidence: Any) -> None:
    """Raise for a metric or a confidence that is none."""
    if metric is not None:
        checked_name("metric", metric, get_args(Metric), or_none=True)
    if not isinstance(confidence, (int, float, np.floating)) or isinstance(confidence, bool):
        raise TypeError(f"confidence must be a number; got {shown(confidence)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence}")


def _resolved_metric(metric: Metric | None, runs: Sequence[Run]) -> Metric:
    """Choose the metric by what all runs hold, or check the one that was asked for."""
    not_binary = [run.name for run in runs if run.correct is None]
    if metric is None:
        return "max@k" if not_binary else "pass@k"
    if metric in ("pass@k", "pass^k") and not_binary:
        raise ValueError(
            "metric must be 'max@k', or None to have it chosen, where rewards are not only 0 and 1"
            f" (those of {not_binary[0]} are not); got {metric!r}"
        )
    return metric


def _finite(value: Any) -> Any:
    """Copy nested dicts and sequences, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
