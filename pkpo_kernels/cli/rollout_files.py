"""Files of rollouts: read, checked, and written whole or not at all.

- `.jsonl`: one task a line, `{"task_id": "a", "rewards": [0, 1, 1]}`, or one sample a line,
  `{"task_id": "a", "reward": 1}`; a file does not mix them.
- `.csv`: with a column `reward` in the header, one sample a line; without, one task a line, the
  samples in columns `s0`, `s1` and so on, an empty cell no sample.
- `.npy`: a (tasks, samples) array; the task ids are "0", "1", …
- `.parquet`: columns `task_id` and `rewards` (lists), or what a .csv may have, null no sample;
  needs pyarrow.

Other usual names of rewards, what is refused, and how a user chooses: see `columns`. Where a line
holds one sample, a task's samples are gathered in the order of the lines and tasks come in the
order of their first sample. Rewards are finite numbers or bools, and integers of at most 2^53 in
magnitude: float64 does not tell larger ones from their neighbours.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Protocol

from pkpo_kernels.cli.formats import csv, jsonl, npy, parquet
from pkpo_kernels.cli.rollouts import Floats, PathLike, RolloutFileError, Rollouts
from pkpo_kernels.cli.whole_files import check_folder, written_whole

__all__ = ["check_output", "read_rollouts", "write_transformed"]


class _Format(Protocol):
    """What a module of a format offers."""

    def read(
        self, path: PathLike, task_column: str | None, reward_columns: Sequence[str] | None
    ) -> Rollouts:
        """Read rollouts, from the columns that the user chose or the usual ones."""

    def write(self, file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
        """Write rewards, and for each task what they were transformed to."""


_FORMATS: dict[str, _Format] = {".jsonl": jsonl, ".csv": csv, ".npy": npy, ".parquet": parquet}


def read_rollouts(
    path: PathLike,
    *,
    task_column: str | None = None,
    reward_columns: Sequence[str] | None = None,
) -> Rollouts:
    """Read a file in one of the formats above, chosen by its extension.

    Args:
        path: the file.
        task_column: the column, or key of JSON objects, of task ids; None for a usual name.
        reward_columns: one for a file of one sample a line, or of lists; several for one of one
          task a line, each a sample. None for the rule of `choose_columns`.

    Raises:
        RolloutFileError: the file is not as described; the text names file, line and reason.
        OSError: it cannot be opened.
        ModuleNotFoundError: it is Parquet, and pyarrow is not installed.
    """
    return _FORMATS[_checked_extension(path)].read(path, task_column, reward_columns)


def check_output(path: PathLike, rollouts: Rollouts | None = None) -> None:
    """Raise, before any work is done, what :func:`write_transformed` would raise after it."""
    extension = _checked_extension(path)
    check_folder(path)
    if extension == ".npy" and rollouts is not None and rollouts.ragged:
        lengths = rollouts.lengths
        raise RolloutFileError(
            path,
            "a .npy array has the same number of samples for all tasks, these have "
            f"{lengths.min()} to {lengths.max()}: write .jsonl, .csv or .parquet",
        )


def write_transformed(path: PathLike, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    """Write rewards and what they were transformed to, whole or not at all.

    The extension chooses the format. `.jsonl` has `{"task_id", "rewards", "transformed"}` a line,
    `.parquet` those columns, `.csv` the columns `task_id,reward,transformed` with one sample a
    line, `.npy` the transformed (tasks, samples) array alone. All but the last can be read again as
    rollouts. In JSON, which has no NaN or infinity, they are null.

    Args:
        path: where to; a file already there is replaced only once all is written.
        rollouts: the tasks.
        values: for each task as many numbers as it has rewards.

    Raises:
        RolloutFileError: unknown extension, or tasks of several lengths for `.npy`.
        ValueError: `values` does not fit `rollouts`.
        ModuleNotFoundError: Parquet without pyarrow.
        OSError: the file cannot be written.
    """
    check_output(path, rollouts)
    if [len(task) for task in values] != [len(task) for task in rollouts.rewards]:
        raise ValueError(
            f"values must have one number for each reward, {sum(map(len, rollouts.rewards))} in "
            f"{len(rollouts.rewards)} tasks; got {sum(map(len, values))} in {len(values)}"
        )
    with written_whole(path) as file:
        _FORMATS[_checked_extension(path)].write(file, rollouts, values)


def _checked_extension(path: PathLike) -> str:
    """Check that there is a format for a file: → its extension in lower case."""
    extension = Path(path).suffix.lower()
    if extension not in _FORMATS:
        raise RolloutFileError(
            path, f"extension must be .jsonl, .csv, .npy or .parquet; got {extension or 'none'!r}"
        )
    if extension == ".parquet" and find_spec("pyarrow") is None:
        raise ModuleNotFoundError(f"{os.fspath(path)}: Parquet needs pyarrow; pip install pyarrow")
    return extension
