"""Lines that are read once more, and handed on with what their rewards were transformed to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.cli.columns import NEW_KEY
from pkpo_kernels.cli.lines import ABSENT, Lines, Options
from pkpo_kernels.cli.rollouts import Floats, PathLike, Rollouts, TaskId

__all__ = ["LineWriter", "Rewriting", "RewritingOneByOne"]

# Writes a line, given by its keys.
LineWriter = Callable[[dict[str, Any]], None]
_CHANGED = "the file has changed since it was read; it must stay as it is until all is written"


class Rewriting(Lines):
    """Takes the lines of a file that was read once more, in their order, and knows what each is to
    be handed on with.

    A second reading costs time, but lines are never held in memory, which may be as long as a model
    writes. That the file is still what it was is checked by its ids and rewards.
    """

    def __init__(
        self, path: PathLike, options: Options, rollouts: Rollouts, values: Sequence[Floats]
    ) -> None:
        """Take up what the first reading of a file has found.

        Args:
            path, options: those of that reading.
            rollouts: what it has found.
            values: for each task as many numbers as it has rewards.
        """
        super().__init__(path, options)
        self.new_key = options.new_key or NEW_KEY
        self._rewards = np.concatenate(rollouts.rewards)
        self._values = np.concatenate(values)
        # Of each task: which sample comes next, and where they end.
        ends = np.cumsum(rollouts.lengths)
        self._next, self._ends = (
            dict(zip(rollouts.task_ids, indices.tolist(), strict=True))
            for indices in (ends - rollouts.lengths, ends)
        )

    def _values_of(self, task_id: TaskId, rewards: list[float], line: int) -> Floats:
        """Take what a task's next rewards were transformed to: (samples,)."""
        start = self._next.get(task_id, 0)
        end = start + len(rewards)
        if end > self._ends.get(task_id, 0) or self._rewards[start:end].tolist() != rewards:
            self.fail(_CHANGED, line)
        self._next[task_id] = end
        return self._values[start:end]

    def transformed(
        self,
        task_ids: Sequence[TaskId],
        flat: Floats,
        lengths: NDArray[np.int64],
        lines: Sequence[int],
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Take what the rewards of lines, as in `add_all`, were transformed to: (samples,) each,
        and which are null instead, of samples that were left out."""
        null = np.isnan(flat)
        if self.options.null == "zero":
            flat, null = np.where(null, 0.0, flat), np.zeros(len(flat), bool)
        new, end = np.zeros(len(flat)), 0
        for task_id, length, line in zip(task_ids, lengths.tolist(), lines, strict=True):
            start, end = end, end + length
            there = start + np.flatnonzero(~null[start:end])
            new[there] = self._values_of(task_id, flat[there].tolist(), line)
        return new, null

    def check_all_read(self) -> None:
        """Refuse a file that has become shorter."""
        if self._next != self._ends:
            self.fail(_CHANGED)


class RewritingOneByOne(Rewriting):
    """Hands them on one by one, with a key more."""

    def __init__(
        self,
        path: PathLike,
        options: Options,
        rollouts: Rollouts,
        values: Sequence[Floats],
        write_line: LineWriter,
        *,
        parsed: bool,
    ) -> None:
        """Take up what the first reading of a file has found.

        Args:
            path, options, rollouts, values: as of `Rewriting`.
            write_line: is given every line.
            parsed: rewards are handed on as numbers, where lines hold text alone.
        """
        super().__init__(path, options, rollouts, values)
        self._write_line = write_line
        self._parsed = parsed

    def add(
        self,
        task_id: Any,
        rewards: list[Any],
        line: int,
        names: tuple[str, ...],
        values: Iterable[Any],
    ) -> None:
        """Hand on a line; null stands for a sample that was left out, and for what is not finite:
        JSON has no other word for either."""
        zero = self.options.null == "zero"
        held = [None if r is None or r is ABSENT or r != r else r for r in rewards]
        there = [0.0 if r is None else r for r in held if zero or r is not None]
        numbers = iter(self._values_of(self.checked_id(task_id, line), there, line).tolist())
        new = [_finite(next(numbers)) if zero or r is not None else None for r in held]
        record = dict(zip(names, values, strict=True))
        if self._parsed:
            columns = self.choose(names, line)
            record |= zip((names[i] for i in columns.rewards), held, strict=True)
        record[self.new_key] = new[0] if self.one_sample_a_line else new
        try:
            self._write_line(record)
        except RecursionError:  # lists within lists are read a little deeper than they are written
            self.fail("it is nested too deeply to be written", line)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
