"""What the lines of a file say, checked one by one, and made rollouts of."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.cli.collected import Collected, Null
from pkpo_kernels.cli.columns import Columns, choose_columns, describe_columns, option_of
from pkpo_kernels.cli.layouts import Layout
from pkpo_kernels.cli.rollouts import Floats, PathLike, RolloutFileError, TaskId
from pkpo_kernels.validation import LARGEST_EXACT, listed, not_exact, shown

__all__ = ["ABSENT", "Lines", "Options", "shown_json"]

# Ids of more characters are held by a digest: prompts, which are as long as people write.
_LONGEST_ID = 256
# Lines and samples that are checked together.
_LINES, _SAMPLES = 1 << 13, 1 << 16
# Stands for a reward in a cell without a sample, of a line that holds a task.
ABSENT = object()


@dataclass(frozen=True)
class Options:
    """How the user wants a file to be read.

    Attributes:
        task: the column, or key of JSON objects, of task ids; None for a usual name.
        rewards: one for a file of one sample a line, or of lists; several for one of one task a
            line, each a sample. None for the rule of `choose_columns`.
        only: takes lines alone that have this text in this column.
        null: what becomes of a reward that is null: "error" refuses it, "drop" leaves the sample
            out, "zero" makes it 0, which fails whatever the threshold.
        threshold: samples pass, with 1, whose reward is at least this, others get 0; None leaves
            rewards as they are.
        ordered: the order of a task's samples is wanted; without it less memory is needed.
        new_key: what lines are to get, which none of them may have; None for nothing.
    """

    task: str | None = None
    rewards: Sequence[str] | None = None
    only: Mapping[str, str] = field(default_factory=dict)
    null: Null = "error"
    threshold: float | None = None
    ordered: bool = True
    new_key: str | None = None


class Lines:
    """Checks what the lines of a file say, and collects it.

    Attributes:
        path: of the file, for messages.
        options: the user's.
        collected: what was said.
        skipped: what lines were left out, in words.
        absent: how many cells held no sample, where a line holds a task with a sample a cell.
        one_sample_a_line: whether a line holds one sample, or a task; None until it is known.
    """

    def __init__(self, path: PathLike, options: Options) -> None:
        self.path = path
        self.options = options
        self.collected = Collected(
            self.fail, null=options.null, threshold=options.threshold, ordered=options.ordered
        )
        self.skipped: list[str] = []
        self.absent = 0
        self.one_sample_a_line: bool | None = None
        # Most files have one set of keys, in one order.
        self._columns: dict[tuple[str, ...], Columns] = {}
        # The same of all that lines hold, where they are to get a key.
        self._keys: dict[tuple[str, ...], None] = {}
        self._apart: tuple[str, Any] | None = None
        self._left_out = 0
        self._task_ids: list[TaskId] = []
        self._flat = array("d")
        self._lengths: list[int] = []
        self._numbers: list[int] = []

    def fail(self, reason: str, line: int | None = None) -> NoReturn:
        """Refuse the file, for what is on this line, or on a line before that is still to be
        checked."""
        self._flush()
        raise RolloutFileError(self.path, reason, line)

    def choose(
        self,
        names: Sequence[str],
        line: int | None = None,
        word: str = "column",
        layout: Layout | None = None,
    ) -> Columns:
        """Choose from the names of columns, or of keys, that are on this line."""
        names = tuple(names)
        if names not in self._columns:
            chosen = (self.options.task, self.options.rewards)
            try:
                columns = choose_columns(names, *chosen, word=word, layout=layout)
            except ValueError as error:
                self.fail(str(error), line)
            for other in self._columns.values():
                self._check_alike(columns, other, word, line)
            self._columns[names] = columns
        return self._columns[names]

    def _check_alike(self, columns: Columns, other: Columns, word: str, line: int | None) -> None:
        """Refuse a line that has its id, or its one reward, elsewhere than lines before it."""
        held = [("task ids", columns.names[columns.task], other.names[other.task])]
        # That a list stands where others have a number is refused in words of its own.
        lists = [one.holds_lists(False) for one in (columns, other)]
        if not (columns.wide or other.wide) and lists[0] == lists[1]:
            held.append(("rewards", columns.reward, other.reward))
        for what, here, before in held:
            if here != before:
                option = option_of("task" if what == "task ids" else "reward", word)
                self.fail(
                    f"the {word} of {what} is {here!r} here, and {before!r} on lines before;"
                    f" choose one with {option}",
                    line,
                )

    def takes(self, columns: Columns, value_of: Callable[[int], Any], line: int) -> bool:
        """Tell whether a line is among those that --only names; refuse it where the file must hold
        one value of a column, and it has another. value_of: position → what the line has there."""
        for name, text in self.options.only.items():
            if name not in columns.names:
                self.fail(f"--only must name one of {listed(columns.names)}; got {name!r}", line)
            value = value_of(columns.names.index(name))
            if _as_text(value) != text:
                self._left_out += 1
                return False
        if columns.apart is not None:
            name, value = columns.names[columns.apart], value_of(columns.apart)
            if self._apart is None:
                self._apart = (name, value)
            elif self._apart[1] != value:
                one, other = self._apart[1], value
                example = shlex.quote(f"{name}={_as_text(one)}")
                self.fail(
                    f"{name} is {shown_json(other)}, and {shown_json(one)} before: samples of both"
                    f" would be taken together; choose one, such as --only {example}",
                    line,
                )
        return True

    def expect(self, one_sample_a_line: bool, line: int) -> None:
        """Refuse a line that holds one sample where others hold tasks, or the other way round."""
        if self.one_sample_a_line is None:
            self.one_sample_a_line = one_sample_a_line
        elif self.one_sample_a_line != one_sample_a_line:
            self.fail("the file mixes lines of one task and lines of one sample", line)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of lines that are to get one more, in the order in which they came."""
        return tuple(dict.fromkeys(name for names in self._keys for name in names))

    @property
    def in_lists(self) -> bool:
        """Whether a line holds the rewards of a task in a list."""
        return self.one_sample_a_line is False and not all(c.wide for c in self._columns.values())

    def add(
        self,
        task_id: Any,
        rewards: list[Any],
        line: int,
        names: tuple[str, ...],
        values: Iterable[Any],
    ) -> None:
        """Check and keep what a line says: the id of a task, and rewards of it, None for null.
        names, values: all that it holds."""
        task_id = self.checked_id(task_id, line)
        if self.options.new_key is not None and names not in self._keys:
            self.check_new_key(names, line)
            self._keys[names] = None
        try:
            self._flat.fromlist(rewards)
        except (TypeError, OverflowError):
            rewards = self._there(rewards, line)
            self._flat.fromlist(rewards)
        if not rewards:
            self.fail(f"task {shown(task_id)} has no rewards", line)
        # From 2^53 on a closer look: integers beyond it are refused, floats are not. So too where a
        # NaN hides how large the others are.
        if not (min(rewards) > -LARGEST_EXACT and max(rewards) < LARGEST_EXACT):
            self.check_exact((reward for reward in rewards if type(reward) is int), lambda _: line)
        self._task_ids.append(task_id)
        self._lengths.append(len(rewards))
        self._numbers.append(line)
        if len(self._numbers) >= _LINES or len(self._flat) >= _SAMPLES:
            self._flush()

    def check_new_key(self, names: tuple[str, ...], line: int | None = None) -> None:
        """Refuse a line that is to get a key more and cannot; all lines, if none is said."""
        new_key = self.options.new_key
        if new_key is None:
            return
        if new_key in names:
            self.fail(
                f"--new-key must be a name that no line has; got {new_key!r}; choose another, or"
                " take --bare",
                line,
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            reason = f"column {twice!r} is there {names.count(twice)} times, and lines come out"
            self.fail(f"{reason} with each once; rename one, or take --bare", line)

    def _there(self, rewards: list[Any], line: int) -> list[Any]:
        """Give the rewards of samples that are there, NaN for null; refuse what is no number."""
        there = [math.nan if r is None else r for r in rewards if r is not ABSENT]
        self.absent += len(rewards) - len(there)
        bad = [r for r in there if type(r) is not float and not _is_number(r)]
        if bad or (None in rewards and self.options.null == "error"):
            told = shown_json(bad[0]) if bad else "null; --null drop or zero takes it"
            self.fail(f"a reward must be a number; got {told}", line)
        return there

    def add_all(
        self,
        task_ids: Sequence[TaskId],
        flat: Floats,
        lengths: NDArray[np.int64],
        lines: Sequence[int],
    ) -> None:
        """Keep what lines say: task_ids, lines, their numbers, and lengths, how many rewards each
        has, (lines,); flat (samples,) the rewards, of which NaN is null."""
        if len(lengths) and not lengths.min():
            empty = int(np.argmin(lengths))
            self.fail(f"task {shown(task_ids[empty])} has no rewards", lines[empty])
        one = self.one_sample_a_line is True
        self.collected.add(task_ids, flat, lengths, lines, one_sample_a_line=one)

    def _flush(self) -> None:
        """Check together what was kept of lines."""
        task_ids, numbers = self._task_ids, self._numbers
        lengths = np.array(self._lengths, np.int64)
        # A line that is refused may have left its rewards.
        flat = np.array(self._flat, np.float64)[: lengths.sum()]
        self._flat, self._task_ids, self._lengths, self._numbers = array("d"), [], [], []
        if numbers:
            self.add_all(task_ids, flat, lengths, numbers)

    def checked_id(self, task_id: Any, line: int) -> TaskId:
        """Check the id of a task: text or a number. A float without decimals is an integer, which
        it may have been. For a long prompt its beginning and a digest stand, unless it is to be
        written."""
        if type(task_id) is str:
            if not task_id.strip():
                self.fail(f"the task_id is {'blank' if task_id else 'empty'}", line)
            if not task_id.isascii():
                self._check_text(task_id, line)
            if len(task_id) > _LONGEST_ID and not self.options.ordered:
                return f"{task_id[:64]}… ({_digest(task_id)})"
            return task_id
        if type(task_id) is float and math.isfinite(task_id):
            return int(task_id) if task_id.is_integer() else task_id
        if type(task_id) is not int:
            self.fail(f"task_id must be a string or a number; got {shown_json(task_id)}", line)
        return task_id

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

    def finish(self) -> str:
        """Check the lines together: → what was taken of them, in words."""
        self._flush()
        collected = self.collected
        if not collected.index:
            only = ", ".join(f"{key}={text}" for key, text in self.options.only.items())
            reason = f"the file holds no tasks{f' with {only}' if only else ''}"
            self.fail("; ".join([reason, *self.skipped]))
        told = [
            describe_columns(
                list(self._columns.values()), one_sample_a_line=self.one_sample_a_line is True
            )
        ]
        told += self.skipped
        if self.absent:
            told.append(f"cells without a sample: {self.absent}")
        if self._left_out:
            told.append(f"left out by --only: {self._left_out} lines")
        if collected.nulls:
            done = {"drop": "left out", "zero": "made 0"}[self.options.null]
            told.append(f"null rewards {done}: {collected.nulls}")
        return "; ".join(told)


def _digest(text: str) -> str:
    """Digest text, for which nobody will find another of the same digest."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, str)


def _as_text(value: Any) -> str:
    """Spell a value as --only has it: text as it is, all else in JSON, or as Python does."""
    return value if isinstance(value, str) else json.dumps(value, default=str).strip('"')


def shown_json(value: Any) -> str:
    """Spell a value in JSON, of what is long the beginning."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."
