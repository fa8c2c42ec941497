"""Parquet, by pyarrow: a row for each task, with its rewards in a list or in columns, or for each
sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.cli.columns import Columns
from pkpo_kernels.cli.lines import Lines
from pkpo_kernels.cli.rewriting import Rewriting
from pkpo_kernels.cli.rollouts import Floats, Rollouts, TaskId
from pkpo_kernels.cli.sources import Source
from pkpo_kernels.validation import LARGEST_EXACT

# Integers that int64 holds.
_IDS = 1 << 63
# Rows, and bytes of the columns that are used, that are read at a time.
_ROWS, _BYTES = 1 << 16, 1 << 25


def read(source: Source, lines: Lines) -> None:
    """Read a row for each task or each sample."""
    for columns, table, numbers in _tables(source, lines, whole=False):
        with _arrow_reads(lines):
            held = _held(lines, columns, table, numbers)
        lines.add_all(*held, numbers.tolist())


def rewrite(source: Source, lines: Rewriting, file: BinaryIO) -> None:
    """Write the rows of a file that was read, each with a column more."""
    import pyarrow.parquet as pq

    with ExitStack() as entered:
        writer = None
        for columns, table, numbers in _tables(source, lines, whole=True):
            table = table.append_column(lines.new_key, _new_column(lines, columns, table, numbers))
            if writer is None:
                writer = entered.enter_context(pq.ParquetWriter(file, table.schema))
            writer.write_table(table)


def _new_column(lines: Rewriting, columns: Columns, table: Any, numbers: NDArray[np.int64]) -> Any:
    """Make the column more of rows, whose numbers are (rows,): a number each, or a list."""
    import pyarrow as pa

    with _arrow_reads(lines):
        ids, flat, lengths = _held(lines, columns, table, numbers)
    new, left_out = lines.transformed(ids, flat, lengths, numbers.tolist())
    if columns.wide:
        # Where each sample is; null where a cell has none.
        there = _there(lines, [table[columns.names[i]] for i in columns.rewards])
        cells, none = np.zeros(there.shape), np.ones(there.shape, bool)
        cells[there], none[there] = new, left_out
        new, left_out = cells.reshape(-1), none.reshape(-1)
        lengths = np.full(len(there), there.shape[1])
    column = pa.array(new, mask=left_out)
    if lines.one_sample_a_line:
        return column
    return pa.ListArray.from_arrays(np.append(0, np.cumsum(lengths)), column)


@contextmanager
def _arrow_reads(lines: Lines) -> Iterator[None]:
    """Refuse a file of which Arrow can make nothing."""
    import pyarrow as pa

    try:
        yield
    # Arrow raises OSError for pages that cannot be decompressed.
    except (pa.ArrowException, OSError) as error:
        lines.fail(f"not a Parquet file of rollouts: {error}")


def _tables(
    source: Source, lines: Lines, *, whole: bool
) -> Iterator[tuple[Columns, Any, NDArray[np.int64]]]:
    """Read tables of some rows each, those that are wanted: → which columns are used, a table with
    these alone or with all, and the numbers of its rows (rows,)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _arrow_reads(lines):
        parquet = pq.ParquetFile(source.file)
        every = parquet.schema_arrow.names
        columns = lines.choose(every)
        lines.check_new_key(columns.names)
        names = dict.fromkeys(columns.names[i] for i in (columns.task, *columns.rewards))
        also = dict.fromkeys(lines.options.only)
        if columns.apart is not None:
            also[columns.names[columns.apart]] = None
        chosen = list(every if whole else names | also)
        start, rows = 0, parquet.metadata.num_rows
        size = _rows_at_a_time(parquet.metadata, set(chosen))
        batches = parquet.iter_batches(size, columns=None if whole else chosen)
    while True:
        with _arrow_reads(lines):
            batch = next(batches, None)
            if batch is None:
                return
            source.tell(start / rows)
            numbers = np.arange(start + 1, start + 1 + len(batch))
            start += len(batch)
            table = pa.Table.from_batches([batch])
            if also:
                table, numbers = _taken(lines, columns, table, numbers, list(also))
        yield columns, table, numbers


def _rows_at_a_time(metadata: Any, names: set[str]) -> int:
    """Find how many rows of these columns are read at a time: a list may be long."""
    size = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if any(f"{column.path_in_schema}.".startswith(f"{name}.") for name in names):
                # However few bits a value takes in the file.
                size += max(column.total_uncompressed_size, 8 * column.num_values)
    return max(1, min(_ROWS, metadata.num_rows * _BYTES // max(size, 1)))


def _taken(
    lines: Lines, columns: Columns, table: Any, numbers: NDArray[np.int64], deciding: list[str]
) -> tuple[Any, NDArray[np.int64]]:
    """Leave out the rows that are not wanted, as some columns decide: a table, and the numbers of
    its rows (rows,)."""
    held = {name: table[name].to_pylist() for name in deciding if name in columns.names}
    taken = np.array(
        [
            lines.takes(columns, lambda at: held[columns.names[at]][row], int(number))  # noqa: B023
            for row, number in enumerate(numbers)
        ],
        bool,
    )
    return table.filter(taken), numbers[taken]


def _held(
    lines: Lines, columns: Columns, table: Any, numbers: NDArray[np.int64]
) -> tuple[list[TaskId], Floats, NDArray[np.int64]]:
    """Convert what rows hold, whose numbers are (rows,): → their ids, all rewards (samples,), NaN
    for null, and how many each row has (rows,)."""
    task_ids, *rewards = (table[columns.names[i]] for i in (columns.task, *columns.rewards))
    _check_no_null(lines, columns.names[columns.task], task_ids, numbers)
    flat, lengths, lists = _numbers_of(lines, columns, rewards, numbers)
    lines.one_sample_a_line = not (columns.wide or lists)
    return _ids_of(lines, task_ids, numbers), flat, lengths


def _there(lines: Lines, rewards: Sequence[Any]) -> NDArray[np.bool_]:
    """Tell which cells of Arrow columns (rows,) are samples: (rows, columns)."""
    import pyarrow.compute as pc

    there: NDArray[np.bool_] = np.column_stack([pc.is_valid(one).to_numpy() for one in rewards])
    return there | (lines.options.null == "zero")


def _numbers_of(
    lines: Lines, columns: Columns, rewards: list[Any], rows: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64], bool]:
    """Convert Arrow columns of rewards (rows,): → all rewards (samples,), NaN for null, how many
    each row has (rows,), and whether they are lists."""
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
                lines.check_exact(column.to_pylist(), lambda i: int(rows[row_of(i)]))
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)

    if columns.wide:
        names = [columns.names[i] for i in columns.rewards]
        there = _there(lines, rewards)
        lines.absent += int(there.size - there.sum())
        cells = np.column_stack(list(map(numbers, names, rewards)))
        return cells[there], there.sum(axis=1), False
    (column,) = rewards
    is_list = any(
        is_type(column.type)
        for is_type in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )
    holds_lists = columns.holds_lists(is_list)
    if holds_lists or lines.options.null == "error":
        hint = "" if holds_lists else "; --null drop or zero takes it"
        _check_no_null(lines, columns.reward, column, rows, hint)
    if not holds_lists:
        return numbers(columns.reward, column), np.ones(len(column), np.int64), False
    if not is_list:
        lines.fail(f"{columns.reward} must be lists; got {column.type}")
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)

    def row_of(i: int) -> int:
        return int(np.searchsorted(ends, i, side="right"))

    return numbers(columns.reward, pc.list_flatten(column), row_of), lengths, True


def _check_no_null(
    lines: Lines, name: str, column: Any, numbers: NDArray[np.int64], hint: str = ""
) -> None:
    """Refuse a column with nulls; the hint says what else can be done."""
    import pyarrow.compute as pc

    if column.null_count:
        first = pc.index(pc.is_null(column), True).as_py()
        lines.fail(f"{name} is null{hint}", int(numbers[first]))


def _ids_of(lines: Lines, column: Any, numbers: NDArray[np.int64]) -> list[TaskId]:
    """Convert an Arrow column of ids: numbers, or what Arrow makes strings of, in which it lets any
    bytes pass for one."""
    import pyarrow as pa

    dtype = column.type
    if pa.types.is_boolean(dtype):
        lines.fail(f"task_id must be text or numbers; got {dtype}")
    if not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype)):
        try:
            column = column.cast(pa.string())
        except pa.ArrowNotImplementedError:
            lines.fail(f"task_id must be text or numbers; got {dtype}")
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        lines.fail("task_id is not UTF-8", int(numbers[_first_not_text(column)]))
    return list(map(lines.checked_id, values, numbers.tolist()))


def _first_not_text(column: Any) -> int:
    for row, value in enumerate(column):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return row
    raise AssertionError("all of them are")


def write(file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    """Write a row for each task, with lists."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    offsets = np.concatenate([[0], np.cumsum(rollouts.lengths)])

    def lists(tasks: Sequence[Floats]) -> Any:
        return pa.LargeListArray.from_arrays(offsets, np.concatenate(tasks))

    whole = all(type(task) is int and -_IDS <= task < _IDS for task in rollouts.task_ids)
    ids = rollouts.task_ids if whole else list(map(str, rollouts.task_ids))
    columns = {
        "task_id": pa.array(ids, pa.int64() if whole else pa.string()),
        "rewards": lists(rollouts.rewards),
        "transformed": lists(values),
    }
    pq.write_table(pa.table(columns), file)
