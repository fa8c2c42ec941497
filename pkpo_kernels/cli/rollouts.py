"""The graded samples of a set of tasks, called rollouts here."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ByTask",
    "Floats",
    "InARow",
    "PathLike",
    "RolloutFileError",
    "Rollouts",
    "TaskId",
    "name_of",
]

Floats = NDArray[np.float64]
PathLike = str | os.PathLike[str]
# 1 and "1" are two tasks, 1 and 1.0 are one.
TaskId = str | int | float


def name_of(path: PathLike) -> str:
    """Name a file as it is told: "-" is standard input."""
    return "standard input" if os.fspath(path) == "-" else os.fspath(path)


class RolloutFileError(ValueError):
    """A file that does not hold rollouts, or cannot.

    Its text is "FILE:LINE: reason", in Parquet with the row for the line; or "FILE: reason".
    """

    def __init__(self, path: PathLike, reason: str, line: int | None = None) -> None:
        name = name_of(path)
        super().__init__(f"{name}: {reason}" if line is None else f"{name}:{line}: {reason}")


@dataclass(frozen=True, eq=False)
class Rollouts:
    """The graded samples of a set of tasks.

    Attributes:
        task_ids: the tasks, each once.
        rewards: for each task its rewards, (samples,) float64.
        columns: which columns of the file were taken and which ignored, in words; "" where a file
          has none.
        keys: of its lines, where each is to get one more; else none.
        in_lists: whether a line holds the rewards of a task in a list.
    """

    task_ids: Sequence[TaskId]
    rewards: Sequence[Floats]
    columns: str = ""
    keys: Sequence[str] = ()
    in_lists: bool = False

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """The number of samples of each task: (tasks,)."""
        return np.fromiter(map(len, self.rewards), np.int64, len(self.rewards))

    @property
    def ragged(self) -> bool:
        """Whether tasks differ in their number of samples."""
        return bool((self.lengths != self.lengths[:1]).any())

    def by_task(self) -> dict[TaskId, Floats]:
        """Map task ids to rewards, as `evaluate` takes them."""
        return dict(zip(self.task_ids, self.rewards, strict=True))

    def padded(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Pad to the most samples n that a task has: → rewards (tasks, n) float64, 0 where there is
        no sample, and the mask (tasks, n), the `where` of `transform`.

        >>> rewards, where = Rollouts(("a", "b"), (np.array([1.0, 0.5]), np.array([1.0]))).padded()
        >>> rewards
        array([[1. , 0.5],
               [1. , 0. ]])
        >>> where
        array([[ True,  True],
               [ True, False]])
        """
        lengths = self.lengths
        where = np.arange(int(lengths.max())) < lengths[:, None]
        rewards = np.zeros(where.shape)
        rewards[where] = np.concatenate(self.rewards)
        return rewards, where

    def chunks(self, entries: int) -> Iterator[Rollouts]:
        """Split into pieces of one task, or of at most so many entries when padded, in order."""
        start, widest = 0, 0
        for i, length in enumerate(self.lengths.tolist()):
            widest = max(widest, length)
            if i > start and (i + 1 - start) * widest > entries:
                yield Rollouts(self.task_ids[start:i], self.rewards[start:i])
                start, widest = i, length
        yield Rollouts(self.task_ids[start:], self.rewards[start:])


# ---- Rewards of many tasks ----------------------------------------------------------------------


class _Tasks(Sequence[Floats]):
    """The rewards of each task, (samples,), made when it is asked for: an array for each task would
    be larger than its rewards."""

    def _of(self, task: int) -> Floats:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Floats: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Floats]: ...
    def __getitem__(self, index: int | slice) -> Any:
        tasks = range(len(self))[index]
        return self._of(tasks) if isinstance(tasks, int) else tuple(map(self._of, tasks))


class InARow(_Tasks):
    """Rewards of tasks that came whole, one after the other."""

    def __init__(self) -> None:
        self._flat = array("d")
        self._ends = array("q", [0])

    def add(self, tasks: NDArray[np.int64], flat: Floats, lengths: NDArray[np.int64]) -> None:
        """Append tasks, which come in order: flat (samples,), lengths (tasks,)."""
        self._flat.frombytes(flat.tobytes())
        self._ends.frombytes((np.cumsum(lengths) + self._ends[-1]).tobytes())

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _of(self, task: int) -> Floats:
        return self._whole[self._ends[task] : self._ends[task + 1]]

    @cached_property
    def _whole(self) -> Floats:
        return np.frombuffer(self._flat) if self._flat else np.empty(0)

    def rows(self, tasks: NDArray[np.int64]) -> Floats:
        """Give tasks of one length n: (m,) → (m, n)."""
        ends = np.frombuffer(self._ends, np.int64)
        starts, n = ends[tasks], ends[tasks[0] + 1] - ends[tasks[0]]
        return self._whole[starts[:, None] + np.arange(n)]


class ByTask(_Tasks):
    """Rewards of tasks whose samples came in any order: 8 bytes each, and a hundred for a task."""

    def __init__(self) -> None:
        self._tasks: list[array[float]] = []

    def add(self, tasks: NDArray[np.int64], flat: Floats, lengths: NDArray[np.int64]) -> None:
        """Append samples: tasks (lines,) which, lengths (lines,) how many of each, flat (samples,)
        their rewards."""
        while len(self._tasks) <= tasks.max(initial=-1):
            self._tasks.append(array("d"))
        of_sample = np.repeat(tasks, lengths)
        order = np.argsort(of_sample, kind="stable")
        content = flat[order].tobytes()
        edges = np.flatnonzero(np.diff(of_sample[order], prepend=-1, append=-1))
        found = of_sample[order[edges[:-1]]].tolist()
        bounds = (8 * edges).tolist()
        for task, start, end in zip(found, bounds[:-1], bounds[1:], strict=True):
            self._tasks[task].frombytes(content[start:end])

    def __len__(self) -> int:
        return len(self._tasks)

    def _of(self, task: int) -> Floats:
        return np.array(self._tasks[task], np.float64)

    def rows(self, tasks: NDArray[np.int64]) -> Floats:
        """Give tasks of one length n: (m,) → (m, n)."""
        content = b"".join(map(self._tasks.__getitem__, tasks.tolist()))
        return np.frombuffer(content).reshape(len(tasks), -1)
