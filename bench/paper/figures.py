"""How the experiments' figures look: panels in a row, a colour a schedule, spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from bench.paper.runs import KS, Curves
from bench.records import Row

_SCHEDULES = [f"k={k}" for k in KS]
_MARKERS = "ov^sDP*x"


def color(name: str) -> Any:
    """Choose a schedule's colour: from dark to light as k rises, red for one that changes."""
    if name in _SCHEDULES:
        return colormaps["viridis"](_SCHEDULES.index(name) / len(_SCHEDULES))
    return "crimson"


def panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """Open a figure with panels in a row: as wide as a page, so the more the narrower."""
    # A Figure made without pyplot needs no display and leaves no state behind.
    canvas = Figure(figsize=(13, 3.8), layout="constrained")
    return canvas, canvas.subplots(1, count, squeeze=False)[0]


def points(axes: Axes, name: str, of: Mapping[Any, Sequence[float]], look: Any = None) -> None:
    """Draw x → figures of all seeds: their mean and deviation, x on an axis of powers of two."""
    means = [float(np.mean(values)) for values in of.values()]
    deviations = [float(np.std(values, ddof=len(values) > 1)) for values in of.values()]
    look = {"marker": "o", "color": color(name)} if look is None else look
    axes.errorbar(list(of), means, deviations, label=name, ms=4, lw=1.2, capsize=2, **look)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")


def marked(index: int) -> dict[str, Any]:
    """Choose how the index-th of many curves looks."""
    return {"marker": _MARKERS[index % len(_MARKERS)], "color": f"C{index}"}


def curve(axes: Axes, name: str, of: Sequence[NDArray[Any]], width: int = 1) -> None:
    """Draw curves over steps, one a seed (steps,): their mean, and shade from least to largest.

    With a width every step shows the mean of so many around it, of fewer at the ends.
    """
    steps, window = np.arange(len(of[0])), np.ones(width)
    many = np.convolve(np.ones(len(steps)), window, "same")
    smooth = np.stack([np.convolve(one, window, "same") / many for one in of])
    axes.plot(steps, smooth.mean(0), color=color(name), label=name, lw=1.4)
    axes.fill_between(steps, smooth.min(0), smooth.max(0), color=color(name), alpha=0.15, lw=0)
    axes.set_xlabel("step")


def training(
    axes: Sequence[Axes], rows: Sequence[Row], curves: Sequence[Curves], switch: float | None = None
) -> None:
    """Draw curves of every schedule, a panel a kind, and mark the step at which one switches."""
    for name, mine in by(rows, "trained for").items():
        of = [curves[i] for i in mine]
        for panel, kind, width in zip(axes, Curves._fields, (1, 5, 25), strict=False):
            curve(panel, name, [getattr(one, kind) for one in of], width)
    titles = ("cumulative solve rate", "entropy, nats", "rolling pass@1")
    for panel, title in zip(axes, titles, strict=False):
        panel.set(title=title)
        if switch is not None:
            panel.axvline(switch, color=color("a switch"), ls=":", lw=1)


def passes(axes: Axes, rows: Sequence[Row], of: str, title: str) -> None:
    """Draw pass@k in the end of every schedule, from the columns `of`_1, `of`_2 …"""
    for name, mine in by(rows, "trained for").items():
        points(axes, name, {k: [rows[i][f"{of}_{k}"] for i in mine] for k in KS})
    axes.set(title=title, xlabel="k_eval")


def rates(axes: Axes, rows: Sequence[Row], column: str) -> None:
    """Draw a figure of every schedule against the learning rate."""
    for name, mine in by(rows, "trained for").items():
        found = by([rows[i] for i in mine], "lr")
        of = {lr: [rows[mine[i]][column] for i in found[lr]] for lr in sorted(found)}
        points(axes, name, of)
    every = sorted(by(rows, "lr"))
    axes.set(title=column.replace("_", ": pass@"), xlabel="learning rate")
    axes.set_xticks(every, [f"{rate:g}" for rate in every], rotation=30)


def by(rows: Sequence[Row], column: str) -> dict[Any, list[int]]:
    """Collect the indices of rows by what they have in a column."""
    found: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(row[column], []).append(i)
    return found


def titled(canvas: Figure, title: str) -> Figure:
    """Give a figure its title, and one legend of all panels' labels."""
    labels: dict[str, Any] = {}
    for axes in canvas.axes:
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(10)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    canvas.legend(labels.values(), labels, loc="outside lower center", ncols=8, fontsize=9)
    canvas.suptitle(title)
    return canvas


def write(canvas: Figure, path: Path) -> None:
    """Write a figure to a small PNG, whole or not at all."""
    drawn, part = BytesIO(), path.with_suffix(".part")
    canvas.savefig(drawn, format="png", dpi=90)
    # A palette of few colours is all that lines need, and a third of the size.
    Image.open(drawn).convert("RGB").quantize(96).save(part, "PNG", optimize=True)
    part.replace(path)
