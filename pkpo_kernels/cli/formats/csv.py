"""CSV and TSV: a header, and a line for each task or for each sample."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from itertools import repeat
from typing import Any, BinaryIO

from pkpo_kernels.cli.lines import ABSENT, Lines
from pkpo_kernels.cli.rewriting import LineWriter
from pkpo_kernels.cli.rollouts import Floats, Rollouts
from pkpo_kernels.cli.sources import Source
from pkpo_kernels.validation import LARGEST_EXACT

# What a C long holds wherever there is one.
_LONGEST = (1 << 31) - 1
# What programs write for a reward that is not there.
_NULLS = frozenset({"null", "none", "nan", "na", "n/a"})


def read(source: Source, lines: Lines) -> None:
    """Read a header, and a line for each task or each sample; cells are set apart by commas."""
    _read(source, lines, "excel")


def read_tabs(source: Source, lines: Lines) -> None:
    """Read the same with tabs for commas."""
    _read(source, lines, "excel-tab")


def _read(source: Source, lines: Lines, dialect: str) -> None:
    table = csv.reader(source.lines(), dialect, strict=True)
    # What stands in columns that are not used may be as long as a model writes.
    limit = csv.field_size_limit(_LONGEST)
    try:
        header = [name.strip() for name in next(filter(None, table), [])]
        if not header:
            lines.fail("the file is empty: it must begin with a header that has task_id")
        columns = lines.choose(header, table.line_num)
        lines.one_sample_a_line = not columns.wide
        for cells in table:
            number = table.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                lines.fail(f"{len(cells)} cells where the header has {len(header)}", number)
            if not lines.takes(columns, cells.__getitem__, number):
                continue
            blank = ABSENT if columns.wide and lines.options.null != "zero" else None
            rewards = [_cell(cells[i], blank) for i in columns.rewards]
            lines.add(cells[columns.task], rewards, number, columns.names, cells)
    except csv.Error as error:
        lines.fail(
            f"not valid {'TSV' if dialect == 'excel-tab' else 'CSV'}: {error}", table.line_num
        )
    finally:
        csv.field_size_limit(limit)


def _cell(text: str, blank: Any) -> Any:
    """Parse a number, or null, or what stands for a blank cell; other text is given back, to be
    named in the error."""
    word = text.strip().lower()
    if not word:
        return blank
    if word in _NULLS:
        return None
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
        return {"true": 1.0, "false": 0.0}.get(word, text)


def write(file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    """Write a line for each sample."""
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


def line_writer(file: BinaryIO, keys: Sequence[str]) -> LineWriter:
    """Write a header: → what writes a line, given by its keys, of which any may lack."""
    # Python's writer quotes a lone carriage return only where one ends its lines.
    table = csv.writer(_Encoded(file), lineterminator="\r\n")
    table.writerow(keys)

    def write_line(record: dict[str, Any]) -> None:
        table.writerow([_spelled(record.get(key)) for key in keys])

    return write_line


class _Encoded:
    """Takes the lines of a writer, and ends them as all files here do."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        """Write a line. Half of a surrogate pair, which JSON can spell, stays spelled."""
        text = line.removesuffix("\r\n") + "\n"
        self._file.write(text.encode(errors="backslashreplace"))


def _spelled(value: Any) -> str:
    """Spell a value in a cell: text as it is, null as nothing, all else in JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
