"""Tables on stdout and progress on stderr, by rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from pkpo_kernels.cli.number_text import figure, interval, level
from pkpo_kernels.evaluation import AtK, Difference
from pkpo_kernels.typing import Metric

_SECONDS_WITHOUT_A_BAR = 1.0


def show_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
) -> None:
    """Print a table; the columns in `right` are set to the right."""
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _print(table)


def show_facts(title: str, facts: dict[str, str]) -> None:
    """Print a table of names and what they stand for, without headings."""
    table = Table(title=title, show_header=False)
    for name, fact in facts.items():
        table.add_row(name, fact)
    _print(table)


def show_intervals(title: str, rows: Sequence[AtK], metric: Metric, confidence: float) -> None:
    """Print an evaluation's rows, or its differences, each with both intervals."""
    signed = isinstance(rows[0], Difference)
    headings = (
        "k",
        f"difference in {metric}" if signed else metric,
        *(f"{level(confidence)} {method}" for method in ("bootstrap", "normal")),
        *("tasks", "too small"),
    )
    cells = (
        (
            str(row.k),
            figure(row.estimate, metric, signed=signed),
            *(interval(ends, metric, signed=signed) for ends in (row.bootstrap, row.normal)),
            *(str(row.tasks), str(row.too_small)),
        )
        for row in rows
    )
    show_table(title, headings, cells, right=headings)


@contextmanager
def progress(task: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """Show a bar on stderr while the block runs, if it runs for more than a second and a person is
    there to see it; the block tells how much of the total is done, which may be unknown."""
    # Where nobody is, older versions of rich leave an empty line even of a disabled Progress.
    if not (console := Console(stderr=True)).is_terminal:
        yield lambda done: None
        return
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()),
        *(TimeElapsedColumn(), TimeRemainingColumn()),
    )
    bars = Progress(*columns, console=console, transient=True)
    bar = bars.add_task(escape(task), total=total)
    begun = time.monotonic()

    def completed(done: float) -> None:
        bars.update(bar, completed=done)
        # What is over at once needs no bar.
        if not bars.live.is_started and time.monotonic() - begun > _SECONDS_WITHOUT_A_BAR:
            bars.start()

    try:
        yield completed
    finally:
        bars.stop()


def _print(table: Table) -> None:
    # Task ids and file names are text, whatever square brackets they hold.
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        # Nobody's window limits a pipe or a file: as wide as the table is.
        console.width = Console(width=100_000, markup=False).measure(table).maximum
    console.print(table)
