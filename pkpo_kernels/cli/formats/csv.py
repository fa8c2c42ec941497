"""CSV and TSV: a header, and a line for each task or for each sample."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from itertools import repeat
from typing import Any, BinaryIO

from pkpo_kernels.cli.lines import Lines
from pkpo_kernels.cli.rollouts import Floats, Rollouts
from pkpo_kernels.cli.sources import Source
from pkpo_kernels.validation import LARGEST_EXACT

# What a C long holds wherever there is one.
_LONGEST = (1 << 31) - 1
# What programs write for a reward that is not there.
_NULLS = frozenset({"", "null", "none", "nan", "na", "n/a"})


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
            rewards = [cells[i] for i in columns.rewards]
            if columns.wide and lines.options.null != "zero":
                rewards = [cell for cell in rewards if cell.strip()]
                lines.absent += len(columns.rewards) - len(rewards)
            lines.add(
                cells[columns.task],
                [None if cell.strip().lower() in _NULLS else _cell(cell) for cell in rewards],
                number,
            )
    except csv.Error as error:
        lines.fail(
            f"not valid {'TSV' if dialect == 'excel-tab' else 'CSV'}: {error}", table.line_num
        )
    finally:
        csv.field_size_limit(limit)


def _cell(text: str) -> Any:
    """Parse a number; other text is given back, to be named in the error."""
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
