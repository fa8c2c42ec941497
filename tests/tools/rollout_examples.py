"""Rollouts to be read and written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pkpo_kernels.cli.rollouts import Rollouts, TaskId

TASKS = {"b": [0.0, 1.0, 1.0], "a": [1.0], 'ü ,"': [0.5, -2.0]}
GOOD = '{"task_id": "a", "rewards": [1]}\n'


def put(path: Path, text: str | bytes) -> Path:
    """Write text, or bytes, to a file."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def plain(rollouts: Rollouts) -> dict[TaskId, list[float]]:
    """Give the rewards of each task as a list, once they are of the form that is promised."""
    assert all(task.dtype == np.float64 and task.ndim == 1 for task in rollouts.rewards)
    return {task: rewards.tolist() for task, rewards in rollouts.by_task().items()}


def made(tasks: dict[str, list[float]]) -> Rollouts:
    """Make rollouts of plain lists."""
    return Rollouts(tuple(tasks), tuple(np.array(rewards) for rewards in tasks.values()))
