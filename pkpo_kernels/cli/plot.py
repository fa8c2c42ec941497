"""The curve of pass@k, max@k or pass^k, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pkpo_kernels.cli.number_text import level
from pkpo_kernels.cli.whole_files import check_folder
from pkpo_kernels.evaluation import Evaluation


def check_plot(path: Path) -> None:
    """Raise, before any work is done, where no plot can be drawn or written at `path`."""
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs matplotlib; pip install matplotlib")
    check_folder(path)
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if _format(path) not in known:
        raise ValueError(f"--plot must end in one of {', '.join(sorted(known))}; got {str(path)!r}")


def drawn(curves: Mapping[str, Evaluation], path: Path) -> bytes:
    """Draw a curve for each name, all of one metric: → the bytes of a file with the extension of
    `path`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    first = next(iter(curves.values()))
    percent = first.metric != "max@k"
    factor = 100 if percent else 1
    # A Figure made without pyplot needs no display and leaves no state behind.
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for curve in curves.values():
        rows = sorted(curve.rows, key=lambda row: row.k)
        ks = [row.k for row in rows]
        low, high = factor * np.array([row.bootstrap for row in rows]).T
        axes.plot(ks, [row.estimate * factor for row in rows], marker=".")
        axes.fill_between(ks, low, high, alpha=0.2)
    axes.set_xlabel("k, samples per task")
    axes.set_ylabel(f"{first.metric} (%)" if percent else first.metric)
    axes.set_title(f"{first.metric} with its {level(first.confidence)} interval over tasks")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    # Set as texts of the legend, since matplotlib drops labels that begin with "_".
    lines = axes.get_lines()
    legend = axes.legend(lines, ["-"] * len(lines))
    for text, name in zip(legend.get_texts(), curves, strict=True):
        text.set_parse_math(False)  # "$" is a dollar
        text.set_text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name))
    content = io.BytesIO()
    figure.savefig(content, format=_format(path), dpi=150)
    return content.getvalue()


def _format(path: Path) -> str:
    return path.suffix.lower()[1:]
