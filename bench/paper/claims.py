"""What an experiment must show, and what it showed.

An experiment gives an Outcome. Its rows and its claims are kept as CSVs of bench.records; figures
are drawn by the experiment itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.records import Row


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
