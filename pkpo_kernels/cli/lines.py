"""What the lines of a file say, checked one by one, and made rollouts of."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.cli.columns import Columns, choose_columns, describe_columns
from pkpo_kernels.cli.rollouts import Floats, PathLike, RolloutFileError, Rollouts
from pkpo_kernels.validation import LARGEST_EXACT, not_exact

__all__ = ["Lines", "shown_json", "text_lines"]


class Lines:
    """Collects what the lines of a file say, and makes Rollouts of them.

    Attributes:
        path: of the file, for messages.
        one_sample_a_line: whether a line holds one sample, or a task; None until it is known.
    """

    def __init__(
        self, path: PathLike, task_column: str | None, reward_columns: Sequence[str] | None
    ) -> None:
        self.path = path
        self._chosen = (task_column, reward_columns)
        # Most files have one set of keys, in one order.
        self._columns: dict[tuple[str, ...], Columns] = {}
        self._task_ids: list[str] = []
        self._flat = array("d")
        self._lengths: list[int] = []
        self._numbers: list[int] = []
        self.one_sample_a_line: bool | None = None

    def fail(self, reason: str, line: int | None = None) -> NoReturn:
        """Refuse the file, for what is on this line."""
        raise RolloutFileError(self.path, reason, line)

    def choose(
        self, names: Sequence[str], line: int | None = None, word: str = "column"
    ) -> Columns:
        """Choose from the names of columns, or of keys, that are on this line."""
        names = tuple(names)
        if names not in self._columns:
            try:
                self._columns[names] = choose_columns(names, *self._chosen, word=word)
            except ValueError as error:
                self.fail(str(error), line)
        return self._columns[names]

    def expect(self, one_sample_a_line: bool, line: int) -> None:
        """Refuse a line that holds one sample where others hold tasks, or the other way round."""
        if self.one_sample_a_line is None:
            self.one_sample_a_line = one_sample_a_line
        elif self.one_sample_a_line != one_sample_a_line:
            self.fail("the file mixes lines of one task and lines of one sample", line)

    def add(self, task_id: Any, rewards: list[Any], line: int) -> None:
        """Check and keep what a line says: the id of a task, and rewards of it."""
        if type(task_id) is not str:
            if type(task_id) is not int:
                self.fail(f"task_id must be a string or an integer; got {task_id!r}", line)
            task_id = str(task_id)
        elif not task_id.isascii():
            self._check_text(task_id, line)
        try:
            self._flat.fromlist(rewards)
        except (TypeError, OverflowError):
            bad = next(r for r in rewards if not _is_number(r))
            self.fail(f"a reward must be a number; got {shown_json(bad)}", line)
        if not rewards:
            self.fail(f"task {task_id!r} has no rewards", line)
        # From 2^53 on a closer look: integers beyond it are refused, floats are not.
        if max(rewards) >= LARGEST_EXACT or min(rewards) <= -LARGEST_EXACT:
            self.check_exact((reward for reward in rewards if type(reward) is int), lambda _: line)
        self._task_ids.append(task_id)
        self._lengths.append(len(rewards))
        self._numbers.append(line)

    def add_all(self, task_ids: list[str], flat: Floats, lengths: NDArray[np.int64]) -> None:
        """Keep what lines 1, 2, … say: task_ids (lines,), their rewards flat (samples,), and how
        many each line has, lengths (lines,)."""
        if len(lengths) and not lengths.min():
            empty = int(np.argmin(lengths))
            self.fail(f"task {task_ids[empty]!r} has no rewards", empty + 1)
        self._task_ids = task_ids
        self._flat.frombytes(np.ascontiguousarray(flat, np.float64).tobytes())
        self._lengths = lengths.tolist()
        self._numbers = list(range(1, len(task_ids) + 1))

    def check_exact(self, integers: Iterable[int | None], line_of: Callable[[int], int]) -> None:
        """Refuse what float64 does not tell from its neighbours; position → line by `line_of`."""
        for i, integer in enumerate(integers):
            if integer is not None and abs(integer) > LARGEST_EXACT:
                self.fail(not_exact("rewards", integer), line_of(i))

    def _check_text(self, task_id: str, line: int) -> None:
        """Refuse what no file can hold: JSON can spell half of a surrogate pair."""
        try:
            task_id.encode()
        except UnicodeEncodeError:
            shown = json.dumps(task_id)
            self.fail(f"task_id must be Unicode text; got the lone surrogate of {shown}", line)

    def rollouts(self) -> Rollouts:
        """Check the lines together, and put them into tasks."""
        if not self._task_ids:
            self.fail("the file holds no tasks")
        if "" in self._task_ids:
            self.fail("the task_id is empty", self._numbers[self._task_ids.index("")])
        flat = np.frombuffer(self._flat, np.float64)
        finite = np.isfinite(flat)
        if not finite.all():
            first = int(np.argmin(finite))
            line = int(np.searchsorted(np.cumsum(self._lengths), first, side="right"))
            self.fail(f"a reward must be finite; got {flat[first]}", self._numbers[line])
        told = describe_columns(
            list(self._columns.values()), one_sample_a_line=self.one_sample_a_line is True
        )
        if self.one_sample_a_line:
            return _gathered(self._task_ids, flat, told)
        first_seen: dict[str, int] = {}
        for task_id, number in zip(self._task_ids, self._numbers, strict=True):
            if task_id in first_seen:
                self.fail(f"task_id {task_id!r} was on line {first_seen[task_id]} already", number)
            first_seen[task_id] = number
        return _split(self._task_ids, flat, self._lengths, told)


def _split(task_ids: Sequence[str], flat: Floats, lengths: Any, columns: str) -> Rollouts:
    """Give each task its rewards: flat (samples,), task by task, lengths (tasks,)."""
    ends = np.cumsum(lengths).tolist()
    starts = [0, *ends[:-1]]
    rewards = tuple(flat[start:end] for start, end in zip(starts, ends, strict=True))
    return Rollouts(tuple(task_ids), rewards, columns)


def _gathered(task_ids: Sequence[str], flat: Floats, columns: str) -> Rollouts:
    """Gather samples by task: task_ids and flat (samples,), in any order of tasks."""
    index_of: dict[str, int] = {}
    task_of = np.fromiter(
        (index_of.setdefault(task, len(index_of)) for task in task_ids), np.int64, len(flat)
    )
    order = np.argsort(task_of, kind="stable")
    return _split(tuple(index_of), flat[order], np.bincount(task_of), columns)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def shown_json(value: Any) -> str:
    """Spell a value in JSON, of what is long the beginning."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def text_lines(path: PathLike) -> Iterator[str]:
    """Read the lines of a file in UTF-8, with or without a byte order mark.

    Raises:
        RolloutFileError: a line is not UTF-8.
    """
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                # A byte order mark can only be on the first line.
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise RolloutFileError(
                    path, f"not UTF-8 at byte {error.start} of the line", number
                ) from None
