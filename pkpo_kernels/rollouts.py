"""Files of graded samples, called rollouts here: read, checked, and written whole or not at all.

- `.jsonl`: one task a line, `{"task_id": "a", "rewards": [0, 1, 1]}`, or one sample a line,
  `{"task_id": "a", "reward": 1}`; a file is of one kind. Other keys are ignored.
- `.csv`: with a column `reward` in the header, one sample a line, other columns ignored; without,
  one task a line, every column but `task_id` a sample, an empty cell no sample.
- `.npy`: a (tasks, samples) array; the task ids are "0", "1", …
- `.parquet`: columns `task_id` and `rewards` (lists), or `task_id` and `reward` (one sample a row);
  needs pyarrow.

Where a line holds one sample, a task's samples are gathered in the order of the lines and tasks
come in the order of their first sample. Rewards are finite numbers or bools.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import secrets
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "RolloutFileError",
    "Rollouts",
    "check_output",
    "read_rollouts",
    "write_transformed",
    "written_whole",
]

Floats = NDArray[np.float64]
PathLike = str | os.PathLike[str]


class RolloutFileError(ValueError):
    """A file that does not hold rollouts, or cannot.

    Its text is "FILE:LINE: reason", in Parquet with the row for the line; or "FILE: reason".
    """

    def __init__(self, path: PathLike, reason: str, line: int | None = None) -> None:
        place = os.fspath(path) if line is None else f"{os.fspath(path)}:{line}"
        super().__init__(f"{place}: {reason}")


@dataclass(frozen=True, eq=False)
class Rollouts:
    """The graded samples of a set of tasks.

    Attributes:
        task_ids: the tasks, each once.
        rewards: for each task its rewards, a 1-D float64 array of at least one.
    """

    task_ids: tuple[str, ...]
    rewards: tuple[Floats, ...]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of samples of each task."""
        return np.fromiter(map(len, self.rewards), np.int64, len(self.rewards))

    @property
    def ragged(self) -> bool:
        """Whether tasks differ in their number of samples."""
        return len({len(task) for task in self.rewards}) > 1

    def by_task(self) -> dict[str, Floats]:
        """Task id to rewards, the form that `evaluate` takes."""
        return dict(zip(self.task_ids, self.rewards, strict=True))

    def padded(self, width: int = 0) -> tuple[Floats, NDArray[np.bool_]]:
        """All rewards as a (tasks, n) float64 matrix, 0 where there is no sample; and a bool one.

        The second is True where there is a sample: the `where` of `transform`. n is the most
        samples that a task has, or `width` if that is more.
        """
        lengths = self.lengths
        where = np.arange(max(int(lengths.max()), width)) < lengths[:, None]
        rewards = np.zeros(where.shape)
        rewards[where] = np.concatenate(self.rewards)
        return rewards, where

    def chunks(self, cells: int, width: int = 0) -> Iterator[Rollouts]:
        """The tasks in order, in pieces of one task or at most `cells` when padded to `width`."""
        start, widest = 0, width
        for i, task in enumerate(self.rewards):
            widest = max(widest, len(task))
            if i > start and (i + 1 - start) * widest > cells:
                yield Rollouts(self.task_ids[start:i], self.rewards[start:i])
                start, widest = i, max(width, len(task))
        yield Rollouts(self.task_ids[start:], self.rewards[start:])


def read_rollouts(path: PathLike) -> Rollouts:
    """Read a file in one of the formats above, chosen by its extension.

    Raises:
        RolloutFileError: the file is not as described; the text names file, line and reason.
        OSError: it cannot be opened.
        ModuleNotFoundError: it is Parquet, and pyarrow is not installed.
    """
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".npy": _read_npy, ".parquet": _read_parquet}
    return read[_checked_extension(path)](path)


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


def check_folder(path: PathLike) -> None:
    """Raise OSError where no file can be written at `path`."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{os.fspath(path)}: there is no folder {str(folder)!r}")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{os.fspath(path)}: a folder is in the place of the file")


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
            f"{len(rollouts.rewards)} tasks, got {sum(map(len, values))} in {len(values)}"
        )
    write = {
        ".jsonl": _write_jsonl,
        ".csv": _write_csv,
        ".npy": _write_npy,
        ".parquet": _write_parquet,
    }[_checked_extension(path)]
    with written_whole(path) as file:
        write(file, rollouts, values)


@contextmanager
def written_whole(path: PathLike) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` when the block ends, and not at all when it fails.

    It is written beside its target, as `.NAME.<random>.tmp`, forced to disk, and then renamed.
    """
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(draft, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, draft)
        os.replace(draft, target)
    except BaseException:
        with suppress(FileNotFoundError):
            draft.unlink()
        raise


def _checked_extension(path: PathLike) -> str:
    extension = Path(path).suffix.lower()
    if extension not in (".jsonl", ".csv", ".npy", ".parquet"):
        raise RolloutFileError(
            path, f"extension must be .jsonl, .csv, .npy or .parquet, got {extension or 'none'!r}"
        )
    if extension == ".parquet" and find_spec("pyarrow") is None:
        raise ModuleNotFoundError(f"{os.fspath(path)}: Parquet needs pyarrow; pip install pyarrow")
    return extension


class _Lines:
    """Collects what the lines of a file say, and makes Rollouts of them."""

    def __init__(self, path: PathLike) -> None:
        self.path = path
        self.task_ids: list[str] = []
        self.flat = array("d")
        self.lengths: list[int] = []
        self.numbers: list[int] = []
        self.one_sample_a_line: bool | None = None

    def fail(self, reason: str, line: int | None = None) -> NoReturn:
        raise RolloutFileError(self.path, reason, line)

    def be(self, one_sample_a_line: bool, line: int) -> None:
        if self.one_sample_a_line is None:
            self.one_sample_a_line = one_sample_a_line
        elif self.one_sample_a_line != one_sample_a_line:
            self.fail("the file mixes lines of one task and lines of one sample", line)

    def add(self, task_id: Any, rewards: list[Any], line: int) -> None:
        if type(task_id) is not str:
            if type(task_id) is not int:
                self.fail(f"task_id must be a string or an integer, got {task_id!r}", line)
            task_id = str(task_id)
        try:
            self.flat.fromlist(rewards)
        except (TypeError, OverflowError):
            bad = next(r for r in rewards if not _is_number(r))
            self.fail(f"a reward must be a number, got {_shown(bad)}", line)
        if not rewards:
            self.fail(f"task {task_id!r} has no rewards", line)
        self.task_ids.append(task_id)
        self.lengths.append(len(rewards))
        self.numbers.append(line)

    def rollouts(self) -> Rollouts:
        if not self.task_ids:
            self.fail("the file holds no tasks")
        flat = np.frombuffer(self.flat, np.float64)
        finite = np.isfinite(flat)
        if not finite.all():
            first = int(np.argmin(finite))
            line = int(np.searchsorted(np.cumsum(self.lengths), first, side="right"))
            self.fail(f"a reward must be finite, got {flat[first]}", self.numbers[line])
        if self.one_sample_a_line:
            return _gathered(self.task_ids, flat)
        first_seen: dict[str, int] = {}
        for task_id, number in zip(self.task_ids, self.numbers, strict=True):
            if task_id in first_seen:
                self.fail(f"task_id {task_id!r} was on line {first_seen[task_id]} already", number)
            first_seen[task_id] = number
        return _cut(self.task_ids, flat, self.lengths)


def _cut(task_ids: Sequence[str], flat: Floats, lengths: Any) -> Rollouts:
    ends = np.cumsum(lengths).tolist()
    starts = [0, *ends[:-1]]
    return Rollouts(
        tuple(task_ids), tuple(flat[start:end] for start, end in zip(starts, ends, strict=True))
    )


def _gathered(task_ids: Sequence[str], flat: Floats) -> Rollouts:
    """One sample an entry, in any order of tasks."""
    place: dict[str, int] = {}
    owners = np.fromiter((place.setdefault(t, len(place)) for t in task_ids), np.int64, len(flat))
    order = np.argsort(owners, kind="stable")
    return _cut(tuple(place), flat[order], np.bincount(owners))


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _text_lines(path: PathLike) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                # A byte order mark can only be on the first line.
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise RolloutFileError(
                    path, f"not UTF-8 at byte {error.start} of the line", number
                ) from None


def _read_jsonl(path: PathLike) -> Rollouts:
    lines = _Lines(path)
    for number, text in enumerate(_text_lines(path), 1):
        if text.isspace():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            lines.fail(f"not valid JSON: {error}", number)
        if not isinstance(record, dict):
            lines.fail("a line must be a JSON object with task_id and rewards", number)
        if "task_id" not in record:
            lines.fail("the key task_id is missing", number)
        if ("rewards" in record) == ("reward" in record):
            have = "both are there" if "reward" in record else "both are missing"
            lines.fail(f"a line must have one of the keys rewards and reward: {have}", number)
        lines.be("reward" in record, number)
        rewards = [record["reward"]] if "reward" in record else record["rewards"]
        if not isinstance(rewards, list):
            lines.fail(f"rewards must be a list, got {_shown(rewards)}", number)
        lines.add(record["task_id"], rewards, number)
    return lines.rollouts()


def _read_csv(path: PathLike) -> Rollouts:
    lines = _Lines(path)
    table = csv.reader(_text_lines(path), strict=True)
    try:
        header = [name.strip() for name in next(table, [])]
        if not header:
            lines.fail("the file is empty: it must begin with a header that has task_id")
        if header.count("task_id") != 1:
            lines.fail(f"the header must have task_id once, got {','.join(header)}", 1)
        if header.count("reward") > 1 or len(header) < 2:
            lines.fail(f"the header must have task_id and rewards, got {','.join(header)}", 1)
        task_column = header.index("task_id")
        lines.one_sample_a_line = "reward" in header
        reward_column = header.index("reward") if lines.one_sample_a_line else None
        for cells in table:
            number = table.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                lines.fail(f"{len(cells)} cells where the header has {len(header)}", number)
            if reward_column is None:
                rewards = [c for i, c in enumerate(cells) if i != task_column and c.strip()]
            else:
                rewards = [cells[reward_column]]
            if not cells[task_column]:
                lines.fail("the task_id is empty", number)
            lines.add(cells[task_column], [_cell(c) for c in rewards], number)
    except csv.Error as error:
        lines.fail(f"not valid CSV: {error}", table.line_num)
    return lines.rollouts()


def _cell(text: str) -> Any:
    """A number where the text is one; else the text itself, to be named in the error."""
    try:
        return float(text)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(text.strip().lower(), text)


def _read_npy(path: PathLike) -> Rollouts:
    with open(path, "rb") as file:
        try:
            matrix = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise RolloutFileError(path, f"not a .npy file of numbers: {error}") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or not matrix.size:
        shape = getattr(matrix, "shape", "several arrays")
        raise RolloutFileError(path, f"must hold a (tasks, samples) array, got shape {shape}")
    if matrix.dtype.kind not in "biuf":
        raise RolloutFileError(path, f"must hold numbers or bools, got dtype {matrix.dtype}")
    matrix = matrix.astype(np.float64)
    finite = np.isfinite(matrix)
    if not finite.all():
        task, sample = np.unravel_index(np.argmin(finite), matrix.shape)
        raise RolloutFileError(
            path,
            f"a reward must be finite, got {matrix[task, sample]} in task {task}, sample {sample}",
        )
    return Rollouts(tuple(map(str, range(len(matrix)))), tuple(matrix))


def _read_parquet(path: PathLike) -> Rollouts:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    lines = _Lines(path)
    with open(path, "rb") as file:
        try:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            if "task_id" not in names or ("rewards" in names) == ("reward" in names):
                lines.fail(
                    "must have the column task_id and one of the columns rewards and reward, "
                    f"got {', '.join(names)}"
                )
            lines.one_sample_a_line = "reward" in names
            column = "reward" if lines.one_sample_a_line else "rewards"
            table = parquet.read(columns=["task_id", column])
            rewards = table[column]
            for name in ("task_id", column):
                if table[name].null_count:
                    row = pc.index(pc.is_null(table[name]), True).as_py() + 1
                    lines.fail(f"{name} is null", row)
            if lines.one_sample_a_line:
                lengths = np.ones(len(rewards), np.int64)
            else:
                lengths = pc.list_value_length(rewards).to_numpy().astype(np.int64)
                rewards = pc.list_flatten(rewards)
            kind = rewards.type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or kind == pa.bool_()):
                lines.fail(f"{column} must be numbers or bools, got {kind}")
            flat = rewards.cast(pa.float64(), safe=False).to_numpy()
            task_ids = table["task_id"].cast(pa.string()).to_pylist()
        except pa.ArrowException as error:
            lines.fail(f"not a Parquet file of rollouts: {error}")
    if len(lengths) and not lengths.min():
        empty = int(np.argmin(lengths))
        lines.fail(f"task {task_ids[empty]!r} has no rewards", empty + 1)
    lines.task_ids = task_ids
    lines.lengths = lengths.tolist()
    lines.numbers = list(range(1, len(task_ids) + 1))
    lines.flat.frombytes(np.ascontiguousarray(flat, np.float64).tobytes())
    return lines.rollouts()


def _write_jsonl(file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    for task_id, rewards, transformed in zip(
        rollouts.task_ids, rollouts.rewards, values, strict=True
    ):
        record = {
            "task_id": task_id,
            "rewards": rewards.tolist(),
            "transformed": [x if math.isfinite(x) else None for x in transformed.tolist()],
        }
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def _write_csv(file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["task_id", "reward", "transformed"])
    for task_id, rewards, transformed in zip(
        rollouts.task_ids, rollouts.rewards, values, strict=True
    ):
        table.writerows(zip(repeat(task_id), rewards.tolist(), transformed.tolist(), strict=False))
    # The file is the caller's to close.
    text.detach()


def _write_npy(file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    np.save(file, np.stack(values))


def _write_parquet(file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    offsets = np.concatenate([[0], np.cumsum(rollouts.lengths)])

    def lists(tasks: Sequence[Floats]) -> Any:
        return pa.LargeListArray.from_arrays(offsets, np.concatenate(tasks))

    columns = {
        "task_id": pa.array(rollouts.task_ids, pa.string()),
        "rewards": lists(rollouts.rewards),
        "transformed": lists(values),
    }
    pq.write_table(pa.table(columns), file)
