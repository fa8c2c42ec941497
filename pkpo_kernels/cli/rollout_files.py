"""Files of rollouts: read, checked, and written whole or not at all.

- `.jsonl`: one task a line, `{"task_id": "a", "rewards": [0, 1, 1]}`, or one sample a line,
  `{"task_id": "a", "reward": 1}`; a file does not mix them. `.json`: a list of such objects.
- `.csv`, and `.tsv` with tabs: with a column `reward` in the header, one sample a line; without,
  one task a line, the samples in columns `s0`, `s1` and so on, an empty cell no sample (or 0, if
  the user says so of null).
- `.npy`: a (tasks, samples) array; the task ids are "0", "1", …
- `.parquet`: columns `task_id` and `rewards` (lists), or what a .csv may have, null no sample;
  needs pyarrow.

All but the last two may be compressed, with `.gz` or `.zst` after the extension, or come from
standard input. Other usual names of rewards, what other programs write, what is refused, and how a
user chooses: see `columns` and `layouts`. Where a line holds one sample, a task's samples are
gathered in the order of the lines and tasks come in the order of their first sample. Ids are text
or numbers: 1 and "1" are two tasks where a format tells them apart, 1 and 1.0 are one. Rewards are
finite numbers or bools, and integers of at most 2^53 in magnitude: float64 does not tell larger
ones from their neighbours.

Files are read in pieces. Of what they hold, ids stay in memory, and of a sample 8 bytes; or nothing
where rewards are 0 or 1 and all that is wanted is how many pass (`read_run`). The lines themselves
are read once more where they are to be written (`write_lines`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pkpo_kernels.cli.columns import NEW_KEY
from pkpo_kernels.cli.formats import csv, json, jsonl, npy, parquet
from pkpo_kernels.cli.lines import Lines, Options
from pkpo_kernels.cli.rewriting import LineWriter, Rewriting, RewritingOneByOne
from pkpo_kernels.cli.rollouts import Floats, InARow, PathLike, RolloutFileError, Rollouts
from pkpo_kernels.cli.sources import STDIN, TEXT, Progress, Source, format_of, opened
from pkpo_kernels.cli.whole_files import check_folder, written_whole
from pkpo_kernels.evaluation.runs import Run

__all__ = [
    "FileRun",
    "Options",
    "check_output",
    "gives_lines_back",
    "read_rollouts",
    "read_run",
    "write_lines",
    "write_transformed",
]

_READERS: dict[str, Callable[[Source, Lines], None]] = {
    "jsonl": jsonl.read,
    "json": json.read,
    "csv": csv.read,
    "tsv": csv.read_tabs,
    "npy": npy.read,
    "parquet": parquet.read,
}


class _Writer(Protocol):
    """What a module of a format that is written offers."""

    def write(self, file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
        """Write rewards, and for each task what they were transformed to."""


_WRITERS: dict[str, _Writer] = {".jsonl": jsonl, ".csv": csv, ".npy": npy, ".parquet": parquet}
# Formats in which lines are given back: what writes them, to a file, whose lines have these keys.
_LINE_WRITERS: dict[str, Callable[[BinaryIO, Sequence[str]], LineWriter]] = {
    ".jsonl": jsonl.line_writer,
    ".csv": csv.line_writer,
}


def _nothing(done: float) -> None:
    pass


def read_rollouts(
    path: PathLike,
    options: Options = Options(),  # noqa: B008
    *,
    format: str | None = None,
    progress: Progress = _nothing,
) -> Rollouts:
    """Read a file in one of the formats above.

    Args:
        path: the file, or "-" for standard input.
        options: how it is read.
        format: one of `sources.FORMATS`; None chooses by the extension.
        progress: is told how many bytes of the file are read.

    Raises:
        RolloutFileError: the file is not as described; the text names file, line and reason.
        OSError: it cannot be opened.
        ModuleNotFoundError: what reads it is not installed.
    """
    lines, columns = _read(path, options, format, progress)
    found = lines.collected
    rewards = InARow() if found.rewards is None else found.rewards
    return Rollouts(tuple(found.index), rewards, columns, lines.keys, lines.in_lists)


@dataclass(frozen=True)
class FileRun:
    """A file's rewards, to be evaluated.

    Attributes:
        run: they, under the name "rewards".
        columns: which columns were taken, in words; "" where a file has none.
        not_binary: the first reward that is neither 0 nor 1, and its line; None for none.
        ids_are_text: the format does not tell numbers from text.
    """

    run: Run
    columns: str
    not_binary: tuple[float, int] | None
    ids_are_text: bool


def read_run(
    path: PathLike,
    options: Options = Options(),  # noqa: B008
    *,
    format: str | None = None,
    progress: Progress = _nothing,
) -> FileRun:
    """Read a file as `read_rollouts` does, for `evaluation.evaluate_runs`, to which the order of a
    task's samples is nothing."""
    lines, columns = _read(path, replace(options, ordered=False), format, progress)
    collected = lines.collected
    rewards = collected.rewards
    run = Run(
        name="rewards",
        lengths=collected.lengths,
        correct=collected.passes if rewards is None else None,
        rows=InARow().rows if rewards is None else rewards.rows,
        task_ids=tuple(collected.index),
    )
    if not run.lengths.any():
        raise RolloutFileError(path, "no sample is left, once those with null rewards are left out")
    ids_are_text = format_of(path, format) in ("csv", "tsv", "npy")
    return FileRun(run, columns, collected.not_binary, ids_are_text)


def _read(
    path: PathLike, options: Options, format: str | None, progress: Progress
) -> tuple[Lines, str]:
    chosen = format_of(path, format)
    if chosen == "parquet":
        _check_pyarrow(path)
    with opened(path, progress) as source:
        lines = Lines(source.path, options)
        _READERS[chosen](source, lines)
        source.tell(1.0)
    columns = lines.finish()
    return lines, "" if chosen == "npy" else columns


def check_output(path: PathLike, rollouts: Rollouts | None = None) -> None:
    """Raise, before any work is done, what :func:`write_transformed` would raise after it."""
    extension = _checked_extension(path)
    check_folder(path)
    if rollouts is None:
        return
    if extension == ".npy" and rollouts.ragged:
        lengths = rollouts.lengths
        raise RolloutFileError(
            path,
            "a .npy array has the same number of samples for all tasks, these have "
            f"{lengths.min()} to {lengths.max()}: write .jsonl, .csv or .parquet",
        )
    if extension in (".csv", ".parquet"):
        numbers = {str(task) for task in rollouts.task_ids if not isinstance(task, str)}
        both = next((task for task in rollouts.task_ids if task in numbers), None)
        if both is not None:
            raise RolloutFileError(
                path,
                f"{extension} does not tell the tasks {both} and {both!r} apart, a number and text:"
                " write .jsonl",
            )
    if extension == ".csv" and rollouts.keys and rollouts.in_lists:
        raise RolloutFileError(
            path, "a cell holds no list of rewards: write .jsonl, or a line for each with --bare"
        )


def write_transformed(
    path: PathLike,
    rollouts: Rollouts,
    values: Sequence[Floats],
    progress: Progress = _nothing,
) -> None:
    """Write rewards and what they were transformed to, whole or not at all.

    The extension chooses the format. `.jsonl` has `{"task_id", "rewards", "transformed"}` a line,
    `.parquet` those columns, `.csv` the columns `task_id,reward,transformed` with one sample a
    line, `.npy` the transformed (tasks, samples) array alone. All but the last can be read again as
    rollouts. In JSON, which has no NaN or infinity, they are null.

    Args:
        path: where to; a file already there is replaced only once all is written.
        rollouts: the tasks.
        values: for each task as many numbers as it has rewards.
        progress: is told how many tasks are written.

    Raises:
        RolloutFileError: unknown extension, tasks of several lengths for `.npy`, or ids that the
            format does not tell apart.
        ValueError: `values` does not fit `rollouts`.
        ModuleNotFoundError: Parquet without pyarrow.
        OSError: the file cannot be written.
    """
    check_output(path, rollouts)
    if [len(task) for task in values] != rollouts.lengths.tolist():
        raise ValueError(
            f"values must have one number for each reward, {rollouts.lengths.sum()} in "
            f"{len(rollouts.rewards)} tasks; got {sum(map(len, values))} in {len(values)}"
        )
    with written_whole(path) as file:
        told = _Told(values, progress)
        _WRITERS[_checked_extension(path)].write(file, rollouts, told)


def gives_lines_back(path: PathLike, output: PathLike, format: str | None = None) -> bool:
    """Tell whether the lines of a file can be written, each with a key more, by `write_lines`.

    Raises:
        RolloutFileError: as `format_of`; or they could be, if the file could be read twice.
    """
    chosen, extension = format_of(path, format), _checked_extension(output)
    if chosen == "parquet" and extension == ".parquet":
        return True
    if chosen not in TEXT or extension not in _LINE_WRITERS:
        return False
    if os.fspath(path) == STDIN or Path(path).is_fifo():
        raise RolloutFileError(
            path,
            "it cannot be read twice, as it must be to write its lines with a key more: save it in"
            " a file, or write rewards alone with --bare",
        )
    return True


def write_lines(
    path: PathLike,
    source: PathLike,
    rollouts: Rollouts,
    values: Sequence[Floats],
    options: Options,
    *,
    format: str | None = None,
    progress: Progress = _nothing,
) -> None:
    """Write the lines of a file that was read, as they come, each with `options.new_key`: what its
    reward was transformed to, or the list of what its rewards were; whole or not at all.

    What --only leaves out is not written. A sample that is left out as null gets null, and so does
    what is not finite, but in Parquet. From CSV all but rewards is text in JSON; from JSON what is
    no text is JSON in CSV, and null is an empty cell.

    Args:
        path: where to, `.jsonl` or `.csv`; from Parquet, whose columns keep their types,
          `.parquet`.
        source, options, format: what was read, and how; it is read once more.
        rollouts: what was found there.
        values: for each task as many numbers as it has rewards.
        progress: is told how many bytes of the source are read.

    Raises:
        RolloutFileError: the source has changed.
        OSError: a file cannot be opened or written.
    """
    extension, chosen = _checked_extension(path), format_of(source, format)
    parsed = extension == ".jsonl" and chosen in ("csv", "tsv")
    with written_whole(path) as file, opened(source, progress) as again:
        if chosen == "parquet":
            lines = Rewriting(again.path, options, rollouts, values)
            parquet.rewrite(again, lines, file)
        else:
            keys = (*rollouts.keys, options.new_key or NEW_KEY)
            write_line = _LINE_WRITERS[extension](file, keys)
            lines = RewritingOneByOne(
                again.path, options, rollouts, values, write_line, parsed=parsed
            )
            _READERS[chosen](again, lines)
        lines.check_all_read()


class _Told(Sequence[Floats]):
    """A sequence that tells how far it is read."""

    def __init__(self, values: Sequence[Floats], progress: Progress) -> None:
        self._values = values
        self._progress = progress

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and not index % 512:
            self._progress(index)
        return self._values[index]


def _checked_extension(path: PathLike) -> str:
    """Check that there is a format for a file to be written: → its extension in lower case."""
    if os.fspath(path) == STDIN:
        raise ValueError("the output must be a file, stdout has the summary; got '-'")
    extension = Path(path).suffix.lower()
    if extension not in _WRITERS:
        raise RolloutFileError(
            path, f"extension must be .jsonl, .csv, .npy or .parquet; got {extension or 'none'!r}"
        )
    if extension == ".parquet":
        _check_pyarrow(path)
    return extension


def _check_pyarrow(path: PathLike) -> None:
    if find_spec("pyarrow") is None:
        raise ModuleNotFoundError(f"{os.fspath(path)}: Parquet needs pyarrow; pip install pyarrow")
