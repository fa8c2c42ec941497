"""Parquet, by pyarrow: a row for each task, with its rewards in a list or in columns, or for each
sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.cli.columns import Columns
from pkpo_kernels.cli.lines import Lines
from pkpo_kernels.cli.rollouts import Floats, PathLike, Rollouts
from pkpo_kernels.validation import LARGEST_EXACT


def read(path: PathLike, task_column: str | None, reward_columns: Sequence[str] | None) -> Rollouts:
    """Read a row for each task or each sample."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = Lines(path, task_column, reward_columns)
    with open(path, "rb") as file:
        try:
            parquet = pq.ParquetFile(file)
            columns = lines.choose(parquet.schema_arrow.names)
            names = [columns.names[i] for i in (columns.task, *columns.rewards)]
            table = parquet.read(columns=names)
            task_ids, *rewards = (table[name] for name in names)
            _check_no_null(lines, columns.names[columns.task], task_ids)
            flat, lengths, lists = _numbers_of(lines, columns, rewards)
            texts = _texts_of(lines, task_ids.cast(pa.string()))
        except pa.ArrowException as error:
            lines.fail(f"not a Parquet file of rollouts: {error}")
    lines.one_sample_a_line = not (columns.wide or lists)
    lines.add_all(texts, flat, lengths)
    return lines.rollouts()


def _numbers_of(
    lines: Lines, columns: Columns, rewards: list[Any]
) -> tuple[Floats, NDArray[np.int64], bool]:
    """Convert Arrow columns of rewards (rows,): → all rewards (samples,), how many each row has
    (rows,), and whether they are lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def numbers(name: str, column: Any, row_of: Callable[[int], int] = lambda i: i) -> Floats:
        """Convert one column of numbers; row_of tells the row of an entry."""
        dtype = column.type
        if not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or dtype == pa.bool_()):
            lines.fail(f"{name} must be numbers or bools; got {dtype}")
        if pa.types.is_integer(dtype) and dtype.bit_width == 64:
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
        is_type(column.type)
        for is_type in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
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


def _check_no_null(lines: Lines, name: str, column: Any) -> None:
    """Refuse a column with nulls."""
    import pyarrow.compute as pc

    if column.null_count:
        lines.fail(f"{name} is null", pc.index(pc.is_null(column), True).as_py() + 1)


def _texts_of(lines: Lines, column: Any) -> list[str]:
    """Convert an Arrow column of strings, in which Arrow itself lets any bytes pass for one."""
    texts: list[str] = []
    try:
        for text in column:
            texts.append(text.as_py())
    except UnicodeDecodeError:
        lines.fail("task_id is not UTF-8", len(texts) + 1)
    return texts


def write(file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    """Write a row for each task, with lists."""
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
