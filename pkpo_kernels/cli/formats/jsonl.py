"""JSON lines: an object for each task, or for each sample."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, BinaryIO

from pkpo_kernels.cli.layouts import OPENAI_EVALS, OpenAIEvals
from pkpo_kernels.cli.lines import ABSENT, Lines, shown_json
from pkpo_kernels.cli.rewriting import LineWriter
from pkpo_kernels.cli.rollouts import Floats, Rollouts
from pkpo_kernels.cli.sources import Source
from pkpo_kernels.validation import listed


def read(source: Source, lines: Lines) -> None:
    """Read a line for each task or each sample."""
    records = Records(lines)
    for number, text in enumerate(source.lines(), 1):
        # Of a lone byte order mark nothing is left.
        if not text.strip():
            continue
        try:
            record = JSON.decode(text)
        except DuplicateKey as error:
            lines.fail(str(error), number)
        except (ValueError, RecursionError) as error:
            lines.fail(f"not valid JSON: {error}", number)
        if not isinstance(record, dict):
            lines.fail("a line must be a JSON object with task_id and rewards", number)
        records.add(record, number)
    records.finish()


class Records:
    """Takes tasks or samples from JSON objects."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._events: OpenAIEvals | None = None
        self._any = False

    def add(self, record: dict[str, Any], number: int) -> None:
        """Take what the object on this line says."""
        if not self._any:
            self._any = True
            self._events = OpenAIEvals() if OpenAIEvals.begins(record) else None
        sample = record if self._events is None else self._events.sample(record)
        if sample is not None:
            self._take(record, sample, number)

    def finish(self) -> None:
        """Say what was left out."""
        if self._events is not None and self._events.left:
            left = listed(list(self._events.left))
            self._lines.skipped.append(
                f"events taken: {self._events.type or 'none'}; left out: {left}"
            )

    def _take(self, record: dict[str, Any], sample: dict[str, Any], number: int) -> None:
        """Take what a record says, by the part of it that is of a sample."""
        lines, layout = self._lines, OPENAI_EVALS if self._events else None
        columns = lines.choose(tuple(sample), number, word="key", layout=layout)
        values = list(sample.values())
        if not lines.takes(columns, values.__getitem__, number):
            return
        rewards = [values[i] for i in columns.rewards]
        is_list = not columns.wide and columns.holds_lists(isinstance(rewards[0], list))
        lines.expect(not (columns.wide or is_list), number)
        if columns.wide and lines.options.null != "zero":
            rewards = [ABSENT if reward is None else reward for reward in rewards]
        elif is_list:
            (rewards,) = rewards
            if not isinstance(rewards, list):
                lines.fail(f"{columns.reward} must be a list; got {shown_json(rewards)}", number)
        lines.add(values[columns.task], rewards, number, tuple(record), record.values())


class DuplicateKey(ValueError):
    """A JSON object has a key twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of an object's pairs; of a key that is there twice the last would win."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DuplicateKey(f"the key {json.dumps(twice)} is there twice")
    return record


JSON = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def write(file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    """Write an object for each task; what is not finite is null."""
    for task_id, rewards, transformed in zip(
        rollouts.task_ids, rollouts.rewards, values, strict=True
    ):
        record = {
            "task_id": task_id,
            "rewards": rewards.tolist(),
            "transformed": [x if math.isfinite(x) else None for x in transformed.tolist()],
        }
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def line_writer(file: BinaryIO, keys: Sequence[str]) -> LineWriter:
    """Make what writes a line, an object, given by its keys."""

    def write_line(record: dict[str, Any]) -> None:
        try:
            line = json.dumps(record, ensure_ascii=False).encode()
        # Half of a surrogate pair, as text that was cut off has it, can only be spelled.
        except UnicodeEncodeError:
            line = json.dumps(record).encode()
        file.write(line + b"\n")

    return write_line
