"""What an experiment must show, and what it showed.

An experiment gives an Outcome and writes nothing: interrupted, it leaves a folder as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.records import Row

if TYPE_CHECKING:  # the tables of the README are made without it
    from matplotlib.figure import Figure


class Claim(NamedTuple):
    """One figure and the bounds that it must keep, whatever the machine."""

    section: str  # of the paper
    what: str
    found: float
    least: float = -np.inf
    most: float = np.inf
    strict: bool = False  # more than the least: what does not rise does not hold

    @property
    def holds(self) -> bool:
        """Compare; NaN holds nowhere."""
        enough = self.found > self.least if self.strict else self.found >= self.least
        return bool(enough and self.found <= self.most)

    @property
    def bounds(self) -> str:
        """Write what must hold.

        >>> Claim("5.1", "a variance", 0.8, 0.7, 0.9).bounds, Claim("5.1", "z", 2, most=4.5).bounds
        ('0.7 to 0.9', 'at most 4.5')
        >>> Claim("5.1", "k = 8 less k = 1", 0.1, 0.04).bounds
        'at least 0.04'
        >>> Claim("5.1", "least step", 0.1, 0, strict=True).bounds
        'more than 0'
        """
        if self.least == -np.inf:
            return f"at most {self.most:.4g}"
        if self.most == np.inf:
            return f"{'more than' if self.strict else 'at least'} {self.least:.4g}"
        return f"{self.least:.4g} to {self.most:.4g}"

    @property
    def row(self) -> dict[str, Any]:
        found = {"section": self.section, "claim": self.what, "must hold": self.bounds}
        return found | {"found": f"{self.found:.4g}", "holds": "yes" if self.holds else "NO"}


class Outcome(NamedTuple):
    """What an experiment found."""

    rows: Sequence[Row]
    claims: Sequence[Claim]
    figures: Mapping[str, Figure]  # the name of its PNG, without the ending → what to draw


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
