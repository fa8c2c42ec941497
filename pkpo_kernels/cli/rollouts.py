"""The graded samples of a set of tasks, called rollouts here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "PathLike", "RolloutFileError", "Rollouts"]

Floats = NDArray[np.float64]
PathLike = str | os.PathLike[str]


class RolloutFileError(ValueError):
    """A file that does not hold rollouts, or cannot.

    Its text is "FILE:LINE: reason", in Parquet with the row for the line; or "FILE: reason".
    """

    def __init__(self, path: PathLike, reason: str, line: int | None = None) -> None:
        where = os.fspath(path) if line is None else f"{os.fspath(path)}:{line}"
        super().__init__(f"{where}: {reason}")


@dataclass(frozen=True, eq=False)
class Rollouts:
    """The graded samples of a set of tasks.

    Attributes:
        task_ids: the tasks, each once.
        rewards: for each task its rewards, (samples,) float64, at least one.
        columns: which columns of the file were taken and which ignored, in words; "" where a file
          has none.
    """

    task_ids: tuple[str, ...]
    rewards: tuple[Floats, ...]
    columns: str = ""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of samples of each task: (tasks,)."""
        return np.fromiter(map(len, self.rewards), np.int64, len(self.rewards))

    @property
    def ragged(self) -> bool:
        """Whether tasks differ in their number of samples."""
        return len({len(task) for task in self.rewards}) > 1

    def by_task(self) -> dict[str, Floats]:
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
        for i, task in enumerate(self.rewards):
            widest = max(widest, len(task))
            if i > start and (i + 1 - start) * widest > entries:
                yield Rollouts(self.task_ids[start:i], self.rewards[start:i])
                start, widest = i, len(task)
        yield Rollouts(self.task_ids[start:], self.rewards[start:])
