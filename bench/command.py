"""What all benches do alike: options, progress, one CSV a device, tables, a plot, an exit code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.progress import track

from bench import records
from bench.libraries import Library, opened
from bench.records import Lines, Panel, Row


class Device(StrEnum):
    """Where to measure."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tpu = "tpu"


DeviceOption = Annotated[Device, typer.Option(help="Where to measure.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A small part of it.")]
OutOption = Annotated[Path, typer.Option(help="The folder of the results.")]
CommitOption = Annotated[
    str | None, typer.Option(help="What is measured, where git is not there to ask.")
]


class Bench(NamedTuple):
    """What is measured, as rows, and how it is shown.

    A row has the candidate and, where there is no figure, the reason; tables have titles.
    """

    name: str
    measure: Callable[[Sequence[Library], bool], Iterable[Sequence[Row]]]  # bool: a part of it
    tables: Callable[[Sequence[Row]], Mapping[str, Lines]]
    panels: Callable[[Sequence[Row]], Sequence[Panel]] = lambda rows: []
    of_others: bool = False  # candidates that are not ours, or not what serves by default


def run(
    bench: Bench,
    libraries: Sequence[Library],
    quick: bool,
    out: Path,
    commit: str | None,
    seconds: float = math.inf,
) -> Sequence[Row]:
    """Measure, and write the file anew after every step; then show it → all rows.

    What is not begun within the seconds is left out. The exit code is 1 where what is ours, and
    serves by default, has no figure.
    """
    start, errors = time.perf_counter(), Console(stderr=True, soft_wrap=True, highlight=False)
    where = records.origin(libraries[0].device, commit)
    path = out / records.file_name(bench.name, where["device"])
    rows: list[Row] = []
    steps = bench.measure(libraries, quick)
    for found in track(steps, bench.name, console=errors, transient=True):
        rows += found
        records.write_table(path, rows, where)
        if time.perf_counter() - start > seconds:
            errors.print(f"the {seconds:g} s are used up after {_place(rows[-1])}", markup=False)
            break
    title = f"{bench.name}, {where['device']}"
    records.report(path, title, bench.tables(rows), bench.panels(rows))
    without = [row for row in rows if row.get("reason")]
    for row in without:
        line = f"{row['candidate']} has no figure: {row['reason']} ({_place(row)})"
        errors.print(line, markup=False)
    defaults = {library.served()[0] for library in libraries}
    names = [row["candidate"].removeprefix("pk ") for row in without]
    if any(name in defaults or not bench.of_others for name in names):
        raise typer.Exit(1)
    return rows


def _place(row: Row) -> str:
    """Say where in its bench a row is."""
    names = ("sweep", "input", "kind", "offset", "rows", "n", "k")
    return ", ".join(f"{name} {row[name]}" for name in names if name in row)


def opened_for(device: Device) -> list[Library]:
    """Open the libraries of a device; "auto" is a GPU where torch sees one, and else the CPU."""
    if device in (Device.auto, Device.cuda):
        import torch

        if torch.cuda.is_available():
            return opened("cuda")
        if device is Device.cuda:
            raise typer.BadParameter("--device cuda needs a torch that sees a GPU")
        return opened("cpu")
    return opened(device.value)


def new_app() -> typer.Typer:
    """Make an empty command line."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def command_of(bench: Bench) -> typer.Typer:
    """Make the command line of a bench, which says of itself what its `measure` does."""
    app = new_app()

    @app.command(help=bench.measure.__doc__)
    def main(
        device: DeviceOption = Device.auto,
        quick: QuickOption = False,
        out: OutOption = records.RESULTS,
        commit: CommitOption = None,
    ) -> None:
        run(bench, opened_for(device), quick, out, commit)

    return app
