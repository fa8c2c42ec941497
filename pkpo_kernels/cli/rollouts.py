"""Files of graded samples, called rollouts here: read, checked, and written whole or not at all.

- `.jsonl`: one task a line, `{"task_id": "a", "rewards": [0, 1, 1]}`, or one sample a line,
  `{"task_id": "a", "reward": 1}`; a file is of one kind.
- `.csv`: with a column `reward` in the header, one sample a line; without, one task a line, the
  samples in columns `s0`, `s1` and so on, an empty cell no sample.
- `.npy`: a (tasks, samples) array; the task ids are "0", "1", …
- `.parquet`: columns `task_id` and `rewards` (lists), or what a .csv may have, null no sample;
  needs pyarrow.

Other usual names of rewards, what is refused, and how a user chooses: see `rollout_columns`. Where
a line holds one sample, a task's samples are gathered in the order of the lines and tasks come in
the order of their first sample. Rewards are finite numbers or bools, and integers of at most 2^53
in magnitude: float64 does not tell larger ones from their neighbours.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, NoReturn
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.cli.columns import Columns, choose_columns, describe_columns
from pkpo_kernels.cli.whole_files import check_folder, written_whole
from pkpo_kernels.validation import LARGEST_EXACT, inexact_integers, not_exact

__all__ = ["RolloutFileError", "Rollouts", "check_output", "read_rollouts", "write_transformed"]

Floats = NDArray[np.float64]
Choose = Callable[..., Columns]
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
        columns: which columns of the file were taken and which ignored, in words; "" where a file
          has none.
    """

    task_ids: tuple[str, ...]
    rewards: tuple[Floats, ...]
    columns: str = ""

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

    def padded(self) -> tuple[Floats, NDArray[np.bool_]]:
        """All rewards as a (tasks, n) float64 matrix, 0 where there is no sample; and a bool one.

        The second is True where there is a sample: the `where` of `transform`. n is the most
        samples that a task has.
        """
        lengths = self.lengths
        where = np.arange(int(lengths.max())) < lengths[:, None]
        rewards = np.zeros(where.shape)
        rewards[where] = np.concatenate(self.rewards)
        return rewards, where

    def chunks(self, cells: int) -> Iterator[Rollouts]:
        """The tasks in order, in pieces of one task or at most `cells` when padded."""
        start, widest = 0, 0
        for i, task in enumerate(self.rewards):
            widest = max(widest, len(task))
            if i > start and (i + 1 - start) * widest > cells:
                yield Rollouts(self.task_ids[start:i], self.rewards[start:i])
                start, widest = i, len(task)
        yield Rollouts(self.task_ids[start:], self.rewards[start:])


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
          task a line, each a sample. None for the rule of `rollout_columns`.

    Raises:
        RolloutFileError: the file is not as described; the text names file, line and reason.
        OSError: it cannot be opened.
        ModuleNotFoundError: it is Parquet, and pyarrow is not installed.
    """
    extension = _checked_extension(path)
    if extension == ".npy":
        if (task_column, reward_columns) != (None, None):
            raise RolloutFileError(path, "a .npy array has no columns to be chosen")
        return _read_npy(path)
    choose = partial(choose_columns, task_column=task_column, reward_columns=reward_columns)
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[extension]
    return read(path, choose)


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
    write = {
        ".jsonl": _write_jsonl,
        ".csv": _write_csv,
        ".npy": _write_npy,
        ".parquet": _write_parquet,
    }[_checked_extension(path)]
    with written_whole(path) as file:
        write(file, rollouts, values)


def _checked_extension(path: PathLike) -> str:
    extension = Path(path).suffix.lower()
    if extension not in (".jsonl", ".csv", ".npy", ".parquet"):
        raise RolloutFileError(
            path, f"extension must be .jsonl, .csv, .npy or .parquet; got {extension or 'none'!r}"
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
        self.columns: dict[Columns, None] = {}

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
                self.fail(f"task_id must be a string or an integer; got {task_id!r}", line)
            task_id = str(task_id)
        elif not task_id.isascii():
            self._check_text(task_id, line)
        try:
            self.flat.fromlist(rewards)
        except (TypeError, OverflowError):
            bad = next(r for r in rewards if not _is_number(r))
            self.fail(f"a reward must be a number; got {_shown(bad)}", line)
        if not rewards:
            self.fail(f"task {task_id!r} has no rewards", line)
        # From 2^53 on a closer look: integers beyond it are refused, floats are not.
        if max(rewards) >= LARGEST_EXACT or min(rewards) <= -LARGEST_EXACT:
            self.check_exact((reward for reward in rewards if type(reward) is int), lambda _: line)
        self.task_ids.append(task_id)
        self.lengths.append(len(rewards))
        self.numbers.append(line)

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
        if not self.task_ids:
            self.fail("the file holds no tasks")
        if "" in self.task_ids:
            self.fail("the task_id is empty", self.numbers[self.task_ids.index("")])
        flat = np.frombuffer(self.flat, np.float64)
        finite = np.isfinite(flat)
        if not finite.all():
            first = int(np.argmin(finite))
            line = int(np.searchsorted(np.cumsum(self.lengths), first, side="right"))
            self.fail(f"a reward must be finite; got {flat[first]}", self.numbers[line])
        told = describe_columns(
            list(self.columns), one_sample_a_line=self.one_sample_a_line is True
        )
        if self.one_sample_a_line:
            return _gathered(self.task_ids, flat, told)
        first_seen: dict[str, int] = {}
        for task_id, number in zip(self.task_ids, self.numbers, strict=True):
            if task_id in first_seen:
                self.fail(f"task_id {task_id!r} was on line {first_seen[task_id]} already", number)
            first_seen[task_id] = number
        return _cut(self.task_ids, flat, self.lengths, told)


def _cut(task_ids: Sequence[str], flat: Floats, lengths: Any, columns: str) -> Rollouts:
    ends = np.cumsum(lengths).tolist()
    starts = [0, *ends[:-1]]
    rewards = tuple(flat[start:end] for start, end in zip(starts, ends, strict=True))
    return Rollouts(tuple(task_ids), rewards, columns)


def _gathered(task_ids: Sequence[str], flat: Floats, columns: str) -> Rollouts:
    """One sample an entry, in any order of tasks."""
    place: dict[str, int] = {}
    owners = np.fromiter((place.setdefault(t, len(place)) for t in task_ids), np.int64, len(flat))
    order = np.argsort(owners, kind="stable")
    return _cut(tuple(place), flat[order], np.bincount(owners), columns)


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


def _read_jsonl(path: PathLike, choose: Choose) -> Rollouts:
    lines = _Lines(path)

    @lru_cache(maxsize=1024)  # Most files have one set of keys, in one order.
    def chosen(keys: tuple[str, ...]) -> Columns:
        columns = choose(keys, word="key")
        lines.columns[columns] = None
        return columns

    for number, text in enumerate(_text_lines(path), 1):
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
        try:
            columns = chosen(tuple(record))
        except ValueError as error:
            lines.fail(str(error), number)
        values = list(record.values())
        rewards = [values[i] for i in columns.rewards]
        is_list = not columns.wide and columns.holds_lists(isinstance(rewards[0], list))
        lines.be(not (columns.wide or is_list), number)
        if columns.wide:
            rewards = [reward for reward in rewards if reward is not None]
        elif is_list:
            (rewards,) = rewards
            if not isinstance(rewards, list):
                lines.fail(f"{columns.reward} must be a list; got {_shown(rewards)}", number)
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


def _read_csv(path: PathLike, choose: Choose) -> Rollouts:
    lines = _Lines(path)
    table = csv.reader(_text_lines(path), strict=True)
    try:
        header = [name.strip() for name in next(filter(None, table), [])]
        if not header:
            lines.fail("the file is empty: it must begin with a header that has task_id")
        try:
            columns = choose(header)
        except ValueError as error:
            lines.fail(str(error), table.line_num)
        lines.columns[columns] = None
        lines.one_sample_a_line = not columns.wide
        for cells in table:
            number = table.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                lines.fail(f"{len(cells)} cells where the header has {len(header)}", number)
            rewards = [cells[i] for i in columns.rewards]
            if columns.wide:
                rewards = [cell for cell in rewards if cell.strip()]
            lines.add(cells[columns.task], [_cell(cell) for cell in rewards], number)
    except csv.Error as error:
        lines.fail(f"not valid CSV: {error}", table.line_num)
    return lines.rollouts()


def _cell(text: str) -> Any:
    """A number where the text is one; else the text itself, to be named in the error."""
    # Python's own spellings of numbers, 1_000 and digits of other scripts, are nobody else's.
    if "_" in text or not text.isascii():
        return text
    try:
        number = float(text)
        # What float64 may have rounded is given on in full, to be refused if it is an integer.
        if LARGEST_EXACT <= abs(number) < math.inf and text.strip().lstrip("+-").isdigit():
            return int(text)
        return number
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(text.strip().lower(), text)


# What NumPy raises, by way of tokenize and zipfile too, of a file that is no array.
_NO_NPY = (ValueError, EOFError, MemoryError, OverflowError, TokenError, BadZipFile)


def _read_npy(path: PathLike) -> Rollouts:
    with open(path, "rb") as file:
        try:
            matrix = np.load(file, allow_pickle=False)
        except _NO_NPY as error:
            raise RolloutFileError(path, f"not a .npy file of numbers: {error}") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or not matrix.size:
        shape = getattr(matrix, "shape", "several arrays")
        raise RolloutFileError(path, f"must hold a (tasks, samples) array; got shape {shape}")
    if matrix.dtype.kind not in "biuf":
        raise RolloutFileError(path, f"must hold numbers or bools; got dtype {matrix.dtype}")
    inexact = inexact_integers(matrix, matrix)
    if inexact is not None:
        task, sample = np.unravel_index(np.argmax(inexact), matrix.shape)
        got = f"{matrix[task, sample]} in task {task}, sample {sample}"
        raise RolloutFileError(path, not_exact("rewards", got))
    # A longdouble beyond float64 becomes an infinity, which is refused below.
    with np.errstate(over="ignore"):
        matrix = matrix.astype(np.float64)
    finite = np.isfinite(matrix)
    if not finite.all():
        task, sample = np.unravel_index(np.argmin(finite), matrix.shape)
        raise RolloutFileError(
            path,
            f"a reward must be finite; got {matrix[task, sample]} in task {task}, sample {sample}",
        )
    return Rollouts(tuple(map(str, range(len(matrix)))), tuple(matrix))


def _read_parquet(path: PathLike, choose: Choose) -> Rollouts:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = _Lines(path)
    with open(path, "rb") as file:
        try:
            parquet = pq.ParquetFile(file)
            try:
                columns = choose(parquet.schema_arrow.names)
            except ValueError as error:
                lines.fail(str(error))
            names = [columns.names[i] for i in (columns.task, *columns.rewards)]
            table = parquet.read(columns=names)
            task_ids, *rewards = (table[name] for name in names)
            _check_no_null(lines, columns.names[columns.task], task_ids)
            flat, lengths, lists = _numbers_of(lines, columns, rewards)
            lines.task_ids = _texts_of(lines, task_ids.cast(pa.string()))
        except pa.ArrowException as error:
            lines.fail(f"not a Parquet file of rollouts: {error}")
    if len(lengths) and not lengths.min():
        empty = int(np.argmin(lengths))
        lines.fail(f"task {lines.task_ids[empty]!r} has no rewards", empty + 1)
    lines.columns[columns] = None
    lines.one_sample_a_line = not (columns.wide or lists)
    lines.lengths = lengths.tolist()
    lines.numbers = list(range(1, len(task_ids) + 1))
    lines.flat.frombytes(np.ascontiguousarray(flat, np.float64).tobytes())
    return lines.rollouts()


def _numbers_of(
    lines: _Lines, columns: Columns, rewards: list[Any]
) -> tuple[Floats, NDArray[np.int64], bool]:
    """Arrow columns of rewards → all rewards, how many each row has, whether they are lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def numbers(name: str, column: Any, row_of: Callable[[int], int] = lambda i: i) -> Floats:
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or kind == pa.bool_()):
            lines.fail(f"{name} must be numbers or bools; got {kind}")
        if pa.types.is_integer(kind) and kind.bit_width == 64:
            ends = pc.min_max(column).as_py().values()
            if any(end is not None and abs(end) > LARGEST_EXACT for end in ends):
                lines.check_exact(column.to_pylist(), lambda i: row_of(i) + 1)
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)

    if columns.wide:
        names = [columns.names[i] for i in columns.rewards]
        there = np.column_stack([pc.is_valid(column).to_numpy() for column in rewards])
        cells = np.column_stack(list(map(numbers, names, rewards)))
        return cells[there], there.sum(axis=1), False
    (column,) = rewards
    _check_no_null(lines, columns.reward, column)
    is_list = any(
        is_kind(column.type)
        for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )
    if not columns.holds_lists(is_list):
        return numbers(columns.reward, column), np.ones(len(column), np.int64), False
    if not is_list:
        lines.fail(f"{columns.reward} must be lists; got {column.type}")
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)

    def row_of(i: int) -> int:
        return int(np.searchsorted(ends, i, side="right"))

    return numbers(columns.reward, pc.list_flatten(column), row_of), lengths, True


def _check_no_null(lines: _Lines, name: str, column: Any) -> None:
    import pyarrow.compute as pc

    if column.null_count:
        lines.fail(f"{name} is null", pc.index(pc.is_null(column), True).as_py() + 1)


def _texts_of(lines: _Lines, column: Any) -> list[str]:
    """An Arrow column of strings → the strings; Arrow itself lets any bytes pass for one."""
    texts: list[str] = []
    try:
        for text in column:
            texts.append(text.as_py())
    except UnicodeDecodeError:
        lines.fail("task_id is not UTF-8", len(texts) + 1)
    return texts


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
    text.write("task_id,reward,transformed\n")
    # All ids in quotes: left to itself, Python's writer does not quote a lone carriage return.
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
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
