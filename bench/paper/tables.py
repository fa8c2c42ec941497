"""The tables of bench/paper/README.md, from the CSVs in bench/paper/results/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from bench.paper.runs import KS
from bench.records import Lines, Row, figure, number

RESULTS = Path(__file__).parent / "results"
README = RESULTS.parent / "README.md"
# The columns of toy.csv before and after the estimators.
_BEFORE, COMBINED = "z", "combined"


def claims_table(rows: Iterable[Row]) -> Lines:
    """Lay out claims, a line each."""
    columns = ("section", "claim", "must hold", "found", "holds")
    return [["§", *columns[1:]], *([row[name] for name in columns] for row in rows)]


def spread(values: Sequence[float]) -> str:
    """Write the mean over seeds and, where there are several, their deviation.

    >>> spread([0.5]), spread([0.5, 0.6])
    ('0.500', '0.550 ± 0.071')
    """
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def _grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def _means(rows: Sequence[Row], columns: Iterable[str]) -> list[str]:
    return [spread([float(row[column]) for row in rows]) for column in columns]


def passes_table(rows: Sequence[Row], of: str, more: Sequence[str] = ()) -> Lines:
    """Lay out pass@k, from the columns `of`_1, `of`_2 …, and more columns: a schedule a line. Where
    it was trained at several learning rates, at the one of the first row."""
    mine = [row for row in rows if row["lr"] == rows[0]["lr"]]
    columns = [*(f"{of}_{k}" for k in KS), *more]
    lines = [
        [name, *_means(found, columns)] for (name,), found in _grouped(mine, "trained for").items()
    ]
    return [["trained for", *(f"pass@{k}" for k in KS), *more], *lines]


def rates_table(rows: Sequence[Row], columns: Sequence[str]) -> Lines:
    """Lay out figures at every learning rate of what was trained at several."""
    lines = [
        [name, rate, *_means(found, columns)]
        for (name, rate), found in sorted(_grouped(rows, "trained for", "lr").items())
        if len(_grouped((row for row in rows if row["trained for"] == name), "lr")) > 1
    ]
    lines.sort(key=lambda line: (line[0], float(line[1])))
    names = [column.replace("_", ", pass@").replace("pass, ", "") for column in columns]
    return [["trained for", "learning rate", *names], *lines]


def variance_table(rows: Sequence[Row]) -> Lines:
    """Lay out the variances at n = 16: θ and k a line; what the best combination leaves also as a
    share of the lowest."""
    mine = [row for row in rows if row[COMBINED] and int(row["k"]) in KS]
    columns = list(mine[0])
    names = columns[columns.index(_BEFORE) + 1 : columns.index(COMBINED)]
    lines = [["n=16", *names, COMBINED]]
    for (theta, k), found in _grouped(mine, "theta", "k").items():
        means = {
            name: float(np.mean([float(row[name]) for row in found]))
            for name in (*names, COMBINED)
            if number(found[0], name) is not None
        }
        lowest = min(value for name, value in means.items() if name != COMBINED)
        cells = [figure(means[name]) if name in means else "–" for name in names]
        share = f"{figure(means[COMBINED])} ({means[COMBINED] / lowest:.2f}x)"
        lines.append([f"θ={theta}, k={k}", *cells, share])
    return lines


def _of(column: str, value: str) -> Callable[[Sequence[Row]], list[Row]]:
    return lambda rows: [row for row in rows if row[column] == value]


def _policies(rows: Sequence[Row]) -> list[Lines]:
    ambiguous, shared = (_of("experiment", name)(rows) for name in ("ambiguous", "shared"))
    adam, sgd = (_of("optimizer", name)(shared) for name in ("Adam", "SGD"))
    best = [row | {f"pass_{k}": row[f"optimum_{k}"] for k in KS} for row in map(dict, ambiguous)]
    more = ("solved", "entropy")
    return [
        _titled("ambiguous", passes_table(ambiguous, "pass", more)),
        _titled("ambiguous: the exact optimum", passes_table(best, "pass")),
        _titled("shared", passes_table(adam, "pass", more)),
        _titled("shared, Adam", rates_table(adam, ("pass_1", "pass_16"))),
        _titled("shared, SGD", rates_table(sgd, ("pass_1", "pass_16"))),
    ]


def _titled(title: str, lines: Lines) -> Lines:
    head, *rest = lines
    return [[title, *head[1:]], *rest]


def _strings(rows: Sequence[Row]) -> list[Lines]:
    ends = [f"{of}_{k}" for of in ("pool", "held out") for k in (1, 16)]
    return [
        _titled("pool", passes_table(rows, "pool", ("solved", "entropy"))),
        _titled("held out", passes_table(rows, "held out")),
        rates_table(rows, ends),
    ]


def _arc(rows: Sequence[Row]) -> list[Lines]:
    return [passes_table(rows, "pass", ("solved", "entropy"))]


# experiment → what its CSV says
EXPERIMENTS: dict[str, Callable[[Sequence[Row]], list[Lines]]] = {
    "toy": lambda rows: [variance_table(rows)],
    "policies": _policies,
    "strings": _strings,
    "arc": _arc,
}
