"""A run's rewards, however they are given, and the estimate of each task at each k."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels._pass_at_k import pass_at_k
from pkpo_kernels._tracing import is_traced
from pkpo_kernels.api import max_at_k
from pkpo_kernels.conversion import to_host
from pkpo_kernels.evaluation.intervals import units_of
from pkpo_kernels.typing import Metric
from pkpo_kernels.validation import (
    checked_array,
    inexact_integers,
    listed,
    not_exact,
    shown,
)

Floats = NDArray[np.float64]


# Rewards looked at together: 8 MiB.
_REWARDS = 1 << 20


@dataclass(frozen=True)
class Run:
    """The valid samples of all tasks.

    Attributes:
        name: what the caller calls the argument: "rewards" or "against".
        lengths: (tasks,) how many samples each task has.
        correct: (tasks,) how many of them pass where all rewards are 0 or 1, else None.
        rows: gives the rewards of tasks of one length n: indices (m,) → (m, n).
        task_ids: the names of the tasks, or None where they have none.
    """

    name: str
    lengths: NDArray[np.int64]
    correct: NDArray[np.int64] | None
    rows: Callable[[NDArray[np.int64]], Floats]
    task_ids: tuple[Any, ...] | None

    @classmethod
    def read(cls, name: str, rewards: Any, where: Any, order: tuple[Any, ...] | None = None) -> Run:
        """Check rewards and their mask, as `evaluate` takes them.

        Args:
            name: of the argument, for messages; its mask is "where" or "against_where".
            rewards, where: a (tasks, samples) array, a sequence of sequences, or a mapping.
            order: the keys of a mapping, in the order of the tasks; None takes its own.

        Raises:
            TypeError, ValueError: as `evaluate` does.
        """
        where_name = "where" if name == "rewards" else f"{name}_where"
        rewards, where = from_pandas(name, rewards), from_pandas(where_name, where)
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
            valid = mask.astype(bool)
            lengths = np.bincount(_task_indices(lengths)[valid], minlength=len(lengths))
            flat, inexact = flat[valid], inexact[valid]
        if not len(flat):
            raise ValueError(f"{name} must hold at least one sample; got none in any task")

        def task_of(entries: NDArray[np.bool_]) -> tuple[float, str]:
            """The first of these entries, and its task."""
            first = int(np.argmax(entries))
            return flat[first], _task_name(int(_task_indices(lengths)[first]), order)

        not_finite = ~np.isfinite(flat)
        if not_finite.any():
            reward, task = task_of(not_finite)
            raise ValueError(f"{name} must be finite numbers; got {reward} in task {task}")
        if inexact.any():
            reward, task = task_of(inexact)
            rounded = f"one that float64 rounds to {reward:.0f}, in task {task}"
            raise ValueError(not_exact(name, rounded))
        correct = None
        if ((flat == 0) | (flat == 1)).all():
            counts = np.bincount(_task_indices(lengths), flat, len(lengths))
            correct = counts.astype(np.int64)
        return cls(name, lengths, correct, rows_of_flat(flat, lengths), order)

    def in_order(self, order: NDArray[np.int64], name: str) -> Run:
        """Take the tasks in another order, (tasks,) their indices here, under another name."""
        return Run(
            name,
            self.lengths[order],
            None if self.correct is None else self.correct[order],
            lambda tasks: self.rows(order[tasks]),
            None if self.task_ids is None else tuple(self.task_ids[i] for i in order.tolist()),
        )

    def values(self, ks: tuple[int, ...], metric: Metric, advance: Callable[[int], None]) -> Floats:
        """Estimate the metric of every task: → (tasks, ks), NaN where a task has fewer samples than
        k; tells of how many tasks more it is done.

        Of 0/1 rewards the best is 1 where one passes: max@k is pass@k.
        """
        if self.correct is None:
            return self._max_values(ks, advance)
        # Few pairs (n, c) are distinct, however many tasks there are.
        pairs = np.stack([self.lengths, self.correct], axis=1)
        distinct, index = np.unique(pairs, axis=0, return_inverse=True)
        n, c = distinct[:, :1], distinct[:, 1:]
        # A k beyond all lengths has no value, however large it is.
        capped = [min(k, int(self.lengths.max()) + 1) for k in ks]
        least_n = np.maximum(n, 1)
        if metric == "pass^k":
            found = _pass_hat_k(least_n, c, capped)
        else:
            found = pass_at_k(least_n, c, capped)
        return np.where(n < capped, np.nan, found)[index.reshape(-1)]

    def _max_values(self, ks: tuple[int, ...], advance: Callable[[int], None]) -> Floats:
        values = np.full((len(self.lengths), len(ks)), np.nan)
        by_length = np.argsort(self.lengths, kind="stable")
        changes = np.flatnonzero(np.diff(self.lengths[by_length])) + 1
        for tasks in np.split(by_length, changes):
            n = int(self.lengths[tasks[0]])
            possible = [i for i, k in enumerate(ks) if k <= n]
            size = max(1, _REWARDS // max(n, 1))
            for start in range(0, len(tasks), size):
                some = tasks[start : start + size]
                if possible:
                    rewards = self.rows(some)
                    # In units of their own no range overflows.
                    units = units_of(rewards, axis=-1)[:, None]
                    best = max_at_k(rewards / units, [ks[i] for i in possible])
                    values[some[:, None], possible] = best * units
                advance(len(some))
        return values


def rows_of_flat(flat: Floats, lengths: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], Floats]:
    """Give the `rows` of a Run whose samples lie one after the other: flat (samples,), lengths
    (tasks,)."""
    starts = np.cumsum(lengths) - lengths

    def rows(tasks: NDArray[np.int64]) -> Floats:
        return flat[starts[tasks][:, None] + np.arange(lengths[tasks[0]])]

    return rows


def _pass_hat_k(n: NDArray[np.int64], c: NDArray[np.int64], ks: Sequence[int]) -> Floats:
    """Estimate pass^k, the chance that all k pass, from counts: n, c (pairs, 1) → (pairs, ks),
    C(c, k)/C(n, k)."""

    def of_one(n: int, c: int, k: int) -> float:
        # C(c, k)/C(n, k) = Π_{i=c+1..n} (1 − k/i), and n − c and k may change places.
        fewer, more = sorted((n - c, k))
        return math.exp(np.log1p(-more / np.arange(n - fewer + 1, n + 1)).sum())

    pairs = list(zip(n[:, 0].tolist(), c[:, 0].tolist(), strict=True))
    return np.array([[of_one(n, c, k) if k <= c else 0.0 for k in ks] for n, c in pairs])


def from_pandas(name: str, value: Any) -> Any:
    """Make a mapping of a pandas Series of lists, by its index; other values stay as they are.

    Raises:
        TypeError: it is a DataFrame, of which any column might be the ids.
        ValueError: two lists have one label.
    """
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        columns = [repr(column) for column in value.columns]
        raise TypeError(
            f"{name} must be a Series of lists, a mapping or a matrix; got a DataFrame of columns"
            f" {listed(columns)}: pass df.groupby(ID)[REWARD].agg(list) where a row is one sample,"
            " df.set_index(ID)[REWARDS] where it is a task with a list, or df[[S0, S1]].to_numpy()"
        )
    if pandas is None or not isinstance(value, pandas.Series):
        return value
    if not value.index.is_unique:
        label = value.index[value.index.duplicated()][0]
        raise ValueError(
            f"{name} must have one list for each label of its index; got {label!r} more than once:"
            " pass series.groupby(level=0).agg(list) where an entry is one sample"
        )
    return dict(zip(value.index.tolist(), value.tolist(), strict=True))


def check_same_tasks(rewards: Any, against: Any) -> None:
    """Raise unless two runs are both mappings, with the same keys, or neither is one."""
    if not isinstance(rewards, Mapping) and not isinstance(against, Mapping):
        return
    if not isinstance(rewards, Mapping) or not isinstance(against, Mapping):
        raise TypeError(
            "against must be a mapping if and only if rewards is one;"
            f" got {type(against).__name__} and {type(rewards).__name__}"
        )
    missing = [shown(task) for task in rewards if task not in against]
    extra = [shown(task) for task in against if task not in rewards]
    faults = [
        f"{verb} {listed(tasks)}" for verb, tasks in (("lacks", missing), ("adds", extra)) if tasks
    ]
    if faults:
        raise ValueError(f"against must have the tasks of rewards, but it {' and '.join(faults)}")


def unreadable(name: str) -> str:
    """Say that an argument is inside a program, and what to take there."""
    return (
        f"{name} must have values that the host can read; got an array inside jax.jit,"
        " torch.compile or vmap: take pk.group_metrics there, or pk.max_at_k of each task"
    )


def _flatten(
    name: str, rewards: Any, task_ids: tuple[Any, ...] | None, kinds: str
) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_]]:
    """Put all samples one after the other: → (samples,) in float64, (tasks,) how many each task
    has, and (samples,) whether a sample is an integer that float64 does not hold. `kinds` are the
    kinds of dtypes that NumPy may find."""
    right = "numbers" if "f" in kinds else "bool"
    if hasattr(rewards, "ndim"):
        array, inexact = _on_host(name, rewards)
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
        called = _task_name(number, task_ids)
        array, inexact = _on_host(f"{name} of task {called}", task)
        if array.ndim != 1:
            raise ValueError(
                f"{name} must hold one sequence of samples a task; got shape {array.shape}"
                f" for task {called}"
            )
        # An empty list has no dtype of its own.
        if array.dtype.kind not in kinds and array.size:
            raise TypeError(f"{name} must be {right}; got dtype {array.dtype} in task {called}")
        pieces.append((array.astype(np.float64), inexact))
    if not pieces:
        return np.empty(0), np.empty(0, np.int64), np.empty(0, bool)
    flat, beyond = map(np.concatenate, zip(*pieces, strict=True))
    return flat, np.array([len(array) for array, _ in pieces], np.int64), beyond


def _on_host(name: str, value: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Check an array or a nested list: (...) → (...) NumPy's, and (...) which of its entries are
    integers that float64 does not hold."""
    if is_traced(value):
        raise TypeError(unreadable(name))
    array = to_host(checked_array(name, value)[0])
    inexact = inexact_integers(value, array)
    # Integers beyond 64 bits are objects to NumPy.
    if array.dtype == object and inexact is not None:
        array = array.astype(np.float64)
    return array, np.zeros(array.shape, bool) if inexact is None else inexact


def _task_indices(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tell each sample's task: (tasks,) → (samples,)."""
    return np.repeat(np.arange(len(lengths)), lengths)


def _task_name(index: int, task_ids: tuple[Any, ...] | None) -> str:
    return shown(index if task_ids is None else task_ids[index])


def _shape(lengths: NDArray[np.int64]) -> str:
    if len(np.unique(lengths)) == 1:
        return f"({len(lengths)}, {lengths[0]})"
    return f"{len(lengths)} tasks, {lengths.sum()} samples"
