"""What results are kept as: a small CSV a device that says where it is from; tables, and plots.

A row has one figure or several of one candidate, and in its last columns the device, what it was
doing, the date, the commit and the versions. Everything else is made from these files.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from bench import commit_id

RESULTS = Path(__file__).parent / "results"

Row = Mapping[str, Any]  # column → value: text where it was read from a file
Lines = Sequence[Sequence[str]]  # of a table, the heading first
Points = Sequence[tuple[float, float]]


def origin(device: str, commit: str | None = None) -> dict[str, str]:
    """Tell where figures are from: the last columns of their file. Git is asked for the commit."""
    name, conditions = _machine(device)
    return {
        "device": name,
        "conditions": conditions,
        "date": date.today().isoformat(),
        "commit": commit or commit_id(),
        "versions": versions("pkpo-kernels", "numpy", "torch", "triton", "jax"),
    }


def versions(*packages: str) -> str:
    """List Python's version and those of packages."""
    found = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def _machine(device: str) -> tuple[str, str]:
    """Name a device, and what its figures hang on."""
    if device == "cuda":
        import torch

        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = ["unknown"]
        with suppress(OSError, subprocess.SubprocessError):
            driver = subprocess.check_output(query, text=True, timeout=30).split()
        return torch.cuda.get_device_name(0), f"driver {driver[0]}, CUDA {torch.version.cuda}"
    if device == "tpu":
        import jax

        return jax.devices()[0].device_kind, jax.devices()[0].client.platform_version
    names = Path("/proc/cpuinfo")
    found = names.exists() and re.search(r"^model name\s*:\s*(.+)$", names.read_text(), re.M)
    # Others at work on the same processors spoil figures, those of threaded calls most.
    conditions = f"{os.cpu_count()} processors at a load of {os.getloadavg()[0]:.1f} before the run"
    threads = (f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(("OMP_", "MKL_")))
    return f"CPU {found[1] if found else platform.machine()}", ", ".join([conditions, *threads])


def file_name(kind: str, device_name: str) -> str:
    """Name the file of a device's results.

    >>> file_name("throughput", "NVIDIA H100 80GB HBM3")
    'throughput-nvidia-h100-80gb-hbm3.csv'
    """
    return f"{kind}-{re.sub(r'[^a-z0-9]+', '-', device_name.lower()).strip('-')}.csv"


def flat(row: Row) -> dict[str, Any]:
    """Give a value that is a mapping or a named tuple a column for each of its own.

    >>> flat({"n": 8, "normal": {"shuffles": 0.1}})
    {'n': 8, 'normal_shuffles': 0.1}
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        of_tuple = value._asdict() if hasattr(value, "_asdict") else {}
        inner = value if isinstance(value, Mapping) else of_tuple
        found |= {f"{name}_{part}": of for part, of in inner.items()} or {name: value}
    return found


def write_table(path: Path, rows: Sequence[Row], origin: Row) -> None:
    """Write a CSV, whole or not at all: a line a row, flat, then the columns of the origin."""
    lines = [flat(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        columns = dict.fromkeys([name for line in lines for name in line] + list(origin))
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dict(origin) | line for line in lines)
    part.replace(path)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV as it is written above; values are text, "" for none."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def beside_others(rows: Sequence[Row], path: Path, *key: str) -> list[Row]:
    """Put rows in the place of those of a file, if there is one, that have the same key, beside its
    others; in the order of their n."""

    def key_of(row: Row) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in key)

    found = {key_of(row) for row in rows}
    kept = [row for row in (read_table(path) if path.exists() else []) if key_of(row) not in found]
    return sorted([*kept, *rows], key=lambda row: int(row["n"]))


def number(row: Row, name: str) -> float | None:
    """A figure of a row, None where it has none."""
    value = row.get(name)
    return None if value in ("", None) else float(value)


def figure(value: float) -> str:
    """Write three digits, and never an exponent where one can do without.

    >>> [figure(value) for value in (4312.3, 87.65, 0.0123)]
    ['4312', '87.7', '0.0123']
    """
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def pivot(
    rows: Iterable[Row],
    line: Callable[[Row], str],
    column: Callable[[Row], str],
    cell: Callable[[Row], str],
    corner: str,
) -> list[list[str]]:
    """Lay out rows as a table, lines and columns in the order of the rows; "–" where none is."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(line(row), {})[column(row)] = cell(row)
    columns = list(dict.fromkeys(name for found in cells.values() for name in found))
    lines = [[name, *(found.get(it, "–") for it in columns)] for name, found in cells.items()]
    return [[corner, *columns], *lines]


def listed(rows: Iterable[Row], columns: Sequence[str]) -> Lines:
    """Lay out some columns of rows, a row a line; "–" where one has no figure."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return figure(value)
        return "–" if value is None else str(value)

    return [columns, *([cell(flat(row).get(column)) for column in columns] for row in rows)]


def curves(rows: Iterable[Row], x: str, y: str) -> dict[str, Points]:
    """Collect candidate → (x, y) of its rows, for those that have both."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        at, value = number(row, x), number(row, y)
        if at is not None and value is not None:
            found.setdefault(row["candidate"], []).append((at, value))
    return dict(found)


class Panel(NamedTuple):
    """One panel of a plot: label → its points, on an x axis of powers of two; y in decades."""

    title: str
    x: str
    y: str
    curves: Mapping[str, Points]


def plot(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw panels in a row to a PNG; a label has one colour in all of them, a copy is dashed."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    # A Figure made without pyplot needs no display and leaves no state behind.
    canvas = Figure(figsize=(2 + 3.4 * len(panels), 4.8), layout="constrained")
    shared = len({panel.y for panel in panels}) == 1
    every = canvas.subplots(1, len(panels), sharey=shared, squeeze=False)[0]
    labels = list(dict.fromkeys(label for panel in panels for label in panel.curves))
    handles = {}
    for axes, panel in zip(every, panels, strict=True):
        for label, points in panel.curves.items():
            style = "--" if label.endswith(" copy") else "-"
            color = colormaps["tab20"](2 * labels.index(label) % 19)
            data = zip(*sorted(points), strict=True)
            (handles[label],) = axes.plot(*data, style, marker=".", color=color)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    canvas.legend(handles.values(), handles, loc="outside lower center", ncols=5)
    canvas.suptitle(title)
    canvas.savefig(path, format="png", dpi=110)


def report(path: Path, title: str, tables: Mapping[str, Lines], panels: Sequence[Panel]) -> None:
    """Print a bench's tables, title → lines, and draw its panels beside its CSV."""
    console = Console(width=None if Console().is_terminal else 200)
    for name, (head, *lines) in tables.items():
        table = Table(*head, title=name, box=box.SIMPLE)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    if panels and find_spec("matplotlib") is None:
        console.print("no plot: matplotlib is not installed")
    elif panels:
        plot(path.with_suffix(".png"), title, panels)
    console.print(f"in {path}", soft_wrap=True)
