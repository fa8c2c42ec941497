"""JSON lines: an object for each task, or for each sample."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, BinaryIO

from pkpo_kernels.cli.lines import Lines, shown_json, text_lines
from pkpo_kernels.cli.rollouts import Floats, PathLike, Rollouts


def read(path: PathLike, task_column: str | None, reward_columns: Sequence[str] | None) -> Rollouts:
    """Read a line for each task or each sample."""
    lines = Lines(path, task_column, reward_columns)
    for number, text in enumerate(text_lines(path), 1):
        # Of a lone byte order mark nothing is left.
        if not text.strip():
            continue
        try:
            record = _JSON.decode(text)
        except _DuplicateKey as error:
            lines.fail(str(error), number)
        except (ValueError, RecursionError) as error:
            lines.fail(f"not valid JSON: {error}", number)
        if not isinstance(record, dict):
            lines.fail("a line must be a JSON object with task_id and rewards", number)
        columns = lines.choose(tuple(record), number, word="key")
        values = list(record.values())
        rewards = [values[i] for i in columns.rewards]
        is_list = not columns.wide and columns.holds_lists(isinstance(rewards[0], list))
        lines.expect(not (columns.wide or is_list), number)
        if columns.wide:
            rewards = [reward for reward in rewards if reward is not None]
        elif is_list:
            (rewards,) = rewards
            if not isinstance(rewards, list):
                lines.fail(f"{columns.reward} must be a list; got {shown_json(rewards)}", number)
        lines.add(values[columns.task], rewards, number)
    return lines.rollouts()


class _DuplicateKey(ValueError):
    """A JSON object has a key twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of an object's pairs; of a key that is there twice the last would win."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _DuplicateKey(f"the key {json.dumps(twice)} is there twice")
    return record


_JSON = json.JSONDecoder(object_pairs_hook=_without_duplicates)


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
