"""What an experiment must show, what it showed, and the tables of both.

An experiment gives an Outcome. Its rows and its claims are kept as CSVs of bench.records; figures
are drawn by the experiment itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.paper.runs import KS
from bench.records import Lines, Row


class Claim(NamedTuple):
    """One figure and the bounds that it must keep, whatever the machine."""

    section: str  # of the paper
    what: str
    found: float
    least: float = -np.inf
    most: float = np.inf

    @property
    def holds(self) -> bool:
        return bool(self.least <= self.found <= self.most)

    @property
    def bounds(self) -> str:
        """Write what must hold.

        >>> Claim("5.1", "a variance", 0.8, 0.7, 0.9).bounds, Claim("5.1", "z", 2, most=4.5).bounds
        ('0.7 to 0.9', 'at most 4.5')
        """
        if self.least == -np.inf:
            return f"at most {self.most:.4g}"
        least = f"{self.least:.4g}"
        return f"at least {least}" if self.most == np.inf else f"{least} to {self.most:.4g}"

    @property
    def row(self) -> dict[str, Any]:
        found = {"section": self.section, "claim": self.what, "must hold": self.bounds}
        return found | {"found": f"{self.found:.4g}", "holds": "yes" if self.holds else "NO"}


class Outcome(NamedTuple):
    """What an experiment found."""

    rows: Sequence[Row]
    claims: Sequence[Claim]


def claims_table(rows: Iterable[Row]) -> Lines:
    """Lay out claims, a line each, as they were written to a CSV."""
    columns = ("section", "claim", "must hold", "found", "holds")
    return [["§", *columns[1:]], *([row[name] for name in columns] for row in rows)]


def spread(values: Sequence[float]) -> str:
    """Write the mean over seeds and, where there are several, their deviation.

    >>> spread([0.5]), spread([0.5, 0.6])
    ('0.500', '0.550 ± 0.071')
    """
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def passes_table(rows: Iterable[Row], of: str, more: Sequence[str]) -> Lines:
    """Lay out pass@k of the columns `of`_1, `of`_2 …, and more columns: a schedule a line."""
    names: dict[str, list[Row]] = {}
    for row in rows:
        names.setdefault(row["trained for"], []).append(row)
    columns = {f"{of}_{k}": f"pass@{k}" for k in KS} | {name: name for name in more}
    lines = [
        [name, *(spread([float(row[column]) for row in found]) for column in columns)]
        for name, found in names.items()
    ]
    return [["trained for", *columns.values()], *lines]


def mean_of(rows: Iterable[Row], by: str) -> dict[str, dict[str, float]]:
    """Average the figures, all that are floats, of rows that agree in one column.

    >>> rows = [{"name": "a", "seed": 0, "x": 1.0}, {"name": "a", "seed": 1, "x": 2.0}]
    >>> mean_of(rows, "name")
    {'a': {'x': 1.5}}
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                found.setdefault(row[by], {}).setdefault(name, []).append(value)
    return {
        name: {column: float(np.mean(values)) for column, values in columns.items()}
        for name, columns in found.items()
    }
