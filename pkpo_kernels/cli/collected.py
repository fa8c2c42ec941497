"""What a file says of its tasks, collected piece by piece in as little memory as it takes."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.cli.rollouts import ByTask, Floats, InARow, TaskId
from pkpo_kernels.validation import shown

__all__ = ["Collected", "Null"]

# What becomes of a reward that is null.
Null = Literal["error", "drop", "zero"]


class Collected:
    """Collects the rewards of tasks.

    While all are 0 or 1, and their order is of no account, how many there are and how many pass is
    all that is kept of a task.

    Attributes:
        index: of the tasks, by their ids.
        nulls: how many rewards were null.
        not_binary: the first reward that is neither 0 nor 1, and its line; None for none.
        rewards: of the tasks, None while their counts say it all.
    """

    def __init__(
        self,
        fail: Callable[[str, int | None], NoReturn],
        *,
        null: Null = "error",
        threshold: float | None = None,
        ordered: bool = True,
    ) -> None:
        """Args:
        fail: refuses the file for a reason on a line.
        null: what becomes of rewards that are NaN, which stands for null.
        threshold: rewards at least as large become 1, others 0; None leaves them.
        ordered: the order of a task's samples is wanted.
        """
        self.index: dict[TaskId, int] = {}
        self.nulls = 0
        self.not_binary: tuple[float, int] | None = None
        self.rewards: InARow | ByTask | None = None
        self._fail = fail
        self._null = null
        self._threshold = threshold
        self._ordered = ordered
        # Of each task: how many samples, how many of them pass, and where it was.
        self._lengths, self._passes = np.zeros((2, 1024), np.int64)
        self._lines = array("q")

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many samples each task has: (tasks,)."""
        return self._lengths[: len(self.index)]

    @property
    def passes(self) -> NDArray[np.int64]:
        """How many of them pass: (tasks,), while every reward is 0 or 1."""
        return self._passes[: len(self.index)]

    def add(
        self,
        task_ids: Sequence[TaskId],
        flat: Floats,
        lengths: NDArray[np.int64],
        lines: Sequence[int],
        *,
        one_sample_a_line: bool,
    ) -> None:
        """Keep what lines say: task_ids, lines, their numbers in the file, and lengths, how many
        rewards each has, (lines,); flat (samples,) the rewards."""
        flat, lengths = self._checked(flat, lengths, lines)
        if self._threshold is not None:
            flat = (flat >= self._threshold).astype(np.float64)
        before = len(self.index)
        tasks = self._tasks(task_ids, lines, one_sample_a_line)
        if self.not_binary is None:
            other = ~((flat == 0) | (flat == 1))
            if other.any():
                first = int(np.argmax(other))
                self.not_binary = (float(flat[first]), lines[_line_of(first, lengths)])
        if self.rewards is None and (self._ordered or self.not_binary is not None):
            self.rewards = ByTask() if one_sample_a_line else InARow()
            n, c = self._lengths[:before], self._passes[:before]
            alternating = np.tile([1.0, 0.0], before)
            seen = np.repeat(alternating, np.stack([c, n - c], axis=1).ravel())
            self.rewards.add(np.arange(before), seen, n)
        np.add.at(self._lengths, tasks, lengths)
        if self.rewards is not None:
            self.rewards.add(tasks, flat, lengths)
        else:
            of_sample = np.repeat(np.arange(len(lengths)), lengths)
            passes = np.bincount(of_sample, flat, len(lengths))
            np.add.at(self._passes, tasks, passes.astype(np.int64))

    def _checked(
        self, flat: Floats, lengths: NDArray[np.int64], lines: Sequence[int]
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Check that rewards are finite, but for null: → what becomes of both."""
        finite = np.isfinite(flat)
        if finite.all():
            return flat, lengths
        null = np.isnan(flat)
        wrong = ~finite if self._null == "error" else ~finite & ~null
        if wrong.any():
            first = int(np.argmax(wrong))
            hint = "; --null drop or zero takes it for null" if null[first] else ""
            line = lines[_line_of(first, lengths)]
            self._fail(f"a reward must be finite; got {flat[first]}{hint}", line)
        self.nulls += int(null.sum())
        if self._null == "zero":
            # What 0 says of a reward depends on the threshold: a null passes none.
            zero = 0.0 if self._threshold is None else -math.inf
            return np.where(null, zero, flat), lengths
        of_line = np.repeat(np.arange(len(lengths)), lengths)
        return flat[~null], np.bincount(of_line[~null], minlength=len(lengths))

    def _tasks(
        self, task_ids: Sequence[TaskId], lines: Sequence[int], one_sample_a_line: bool
    ) -> NDArray[np.int64]:
        """Number tasks by first appearance: → (lines,)."""
        index, before = self.index, len(self.index)
        numbers = (index.setdefault(task, len(index)) for task in task_ids)
        tasks = np.fromiter(numbers, np.int64, len(task_ids))
        if not one_sample_a_line:
            again = np.flatnonzero(tasks != np.arange(before, before + len(tasks)))
            self._lines.extend(lines)
            if len(again):
                at, task = int(again[0]), int(tasks[again[0]])
                reason = f"task_id {shown(task_ids[at])} was on line {self._lines[task]} already"
                self._fail(reason, lines[at])
        if len(index) > len(self._lengths):
            grown = np.zeros((2, 2 * len(index)), np.int64)
            grown[:, :before] = self._lengths[:before], self._passes[:before]
            self._lengths, self._passes = grown
        return tasks


def _line_of(sample: int, lengths: NDArray[np.int64]) -> int:
    """Find the line of a sample among lines of so many samples each."""
    return int(np.searchsorted(np.cumsum(lengths), sample, side="right"))
