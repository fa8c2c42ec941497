"""A small language of operations on grids, for ARC-AGI-1: a program applies one after the other.

An operation maps a grid (height, width) of colours 0 to 9 to another, or to None where it makes no
sense. 0 is the background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Grid = NDArray[np.int8]
Operation = Callable[[Grid], Any]  # → a grid or None

LARGEST = 30  # rows and columns of a grid
_EIGHT = np.ones((3, 3), int)  # neighbours, diagonal ones too


def apply(name: str, grid: Grid) -> Grid | None:
    """Apply an operation; None where it makes no sense, or too large a grid.

    >>> apply("mirror_right", np.array([[1, 2]], np.int8)).tolist()
    [[1, 2, 2, 1]]
    """
    out = OPERATIONS[name](grid)
    if out is None or out.size == 0 or max(out.shape) > LARGEST:
        return None
    return np.ascontiguousarray(out, np.int8)


def _crop(g: Grid, mask: NDArray[Any]) -> Grid | None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return g[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else None


def _counts(g: Grid) -> NDArray[np.intp]:
    return np.bincount(g.ravel(), minlength=10)


# ---- connected parts ---------------------------------------------------------------------------


def _parts(g: Grid, of_one_colour: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Label what is connected and not background, from 1 on: labels, and the parts' sizes."""
    if not of_one_colour:
        labels, count = ndimage.label(g != 0, _EIGHT)
        return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]
    labels, count = np.zeros(g.shape, int), 0
    for colour in np.flatnonzero(_counts(g)):
        if colour:
            found, more = ndimage.label(g == colour, _EIGHT)
            labels += np.where(found, found + count, 0)
            count += more
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]


def _cut_part(choose: Callable[[Any], Any]) -> Operation:
    def operation(g: Grid) -> Grid | None:
        labels, sizes = _parts(g, of_one_colour=False)
        return _crop(g, labels == 1 + choose(sizes)) if len(sizes) > 1 else None

    return operation


def _keep_part(choose: Callable[[Any], Any]) -> Operation:
    def operation(g: Grid) -> Grid | None:
        labels, sizes = _parts(g, of_one_colour=True)
        return np.where(labels == 1 + choose(sizes), g, 0) if len(sizes) > 1 else None

    return operation


def _denoise(g: Grid) -> Grid:
    labels, sizes = _parts(g, of_one_colour=True)
    return np.where(np.r_[0, sizes][labels] == 1, 0, g)


def _fill_holes(colour: int) -> Operation:
    """Paint background that no way through background joins with the border."""

    def operation(g: Grid) -> Grid:
        padded = np.pad(g, 1)
        labels, _ = ndimage.label(padded == 0)
        return np.where((padded == 0) & (labels != labels[0, 0]), colour, padded)[1:-1, 1:-1]

    return operation


# ---- halves ------------------------------------------------------------------------------------


def _half(cut: Callable[[Grid, int, int], Grid]) -> Operation:
    return lambda g: cut(g, g.shape[0] // 2, g.shape[1] // 2) if min(g.shape) > 1 else None


def _split(g: Grid) -> tuple[Grid, Grid] | None:
    """Halve rows; a line of one colour may stand between the halves."""
    middle, odd = divmod(g.shape[0], 2)
    if middle == 0 or (odd and not ((g[middle] == g[middle, 0]).all() and g[middle, 0])):
        return None
    return g[:middle], g[middle + odd :]


def _joined(how: Callable[[Grid, Grid], NDArray[Any]], columns: bool) -> Operation:
    """Lay one half on the other, upper on lower, or left on right."""

    def operation(g: Grid) -> Any:
        halves = _split(g.T if columns else g)
        if halves is None:
            return None
        return how(*halves).T if columns else how(*halves)

    return operation


# ---- the rest ----------------------------------------------------------------------------------


def _fall(turns: int) -> Operation:
    """Let what is not background sink, in a grid that was turned."""

    def operation(g: Grid) -> Grid:
        turned = np.rot90(g, turns)
        order = np.argsort(turned != 0, axis=0, kind="stable")
        return np.rot90(np.take_along_axis(turned, order, 0), -turns)

    return operation


def _symmetric(*flips: Callable[[Grid], Grid]) -> Operation:
    """Fill background from mirror images."""

    def operation(g: Grid) -> Grid | None:
        for flip in flips:
            other = flip(g)
            if other.shape != g.shape:
                return None
            g = np.where(g != 0, g, other)
        return g

    return operation


def _keep(choose: Callable[[Sequence[Any], Any], int]) -> Operation:
    """Keep one colour, chosen among those that are there by their counts."""

    def operation(g: Grid) -> Grid | None:
        counts = _counts(g)
        there = [colour for colour in range(1, 10) if counts[colour]]
        return np.where(g == choose(there, counts), g, 0) if there else None

    return operation


def _swap(g: Grid) -> Grid | None:
    there = np.flatnonzero(_counts(g))
    return np.where(g == there[0], there[1], there[0]) if len(there) == 2 else None


def _compress(g: Grid) -> Grid:
    """Leave out rows, then columns, that repeat the one before."""
    g = g[np.r_[True, (g[1:] != g[:-1]).any(1)]]
    return g[:, np.r_[True, (g[:, 1:] != g[:, :-1]).any(0)]]


def _paint(colour: int) -> Operation:
    return lambda g: np.where(g != 0, colour, 0)


_LOGIC: dict[str, Callable[[Grid, Grid], NDArray[Any]]] = {
    "and": lambda a, b: (a != 0) & (b != 0),
    "or": lambda a, b: (a != 0) | (b != 0),
    "xor": lambda a, b: (a != 0) ^ (b != 0),
    "nor": lambda a, b: (a == 0) & (b == 0),
    "over": lambda a, b: np.where(a != 0, a, b),
}

OPERATIONS: dict[str, Operation] = {
    "identity": lambda g: g,
    "flip_h": lambda g: g[:, ::-1],
    "flip_v": lambda g: g[::-1],
    "transpose": lambda g: g.T,
    "anti_transpose": lambda g: g[::-1, ::-1].T,
    "rot90": lambda g: np.rot90(g, 1),
    "rot180": lambda g: np.rot90(g, 2),
    "rot270": lambda g: np.rot90(g, 3),
    "crop": lambda g: _crop(g, g != 0),
    "largest": _cut_part(np.argmax),
    "smallest": _cut_part(np.argmin),
    "only_largest": _keep_part(np.argmax),
    "only_smallest": _keep_part(np.argmin),
    "top": _half(lambda g, h, _: g[:h]),
    "bottom": _half(lambda g, h, _: g[-h:]),
    "left": _half(lambda g, _, w: g[:, :w]),
    "right": _half(lambda g, _, w: g[:, -w:]),
    "twice_h": lambda g: np.tile(g, (1, 2)),
    "twice_v": lambda g: np.tile(g, (2, 1)),
    "mirror_right": lambda g: np.hstack([g, g[:, ::-1]]),
    "mirror_left": lambda g: np.hstack([g[:, ::-1], g]),
    "mirror_down": lambda g: np.vstack([g, g[::-1]]),
    "mirror_up": lambda g: np.vstack([g[::-1], g]),
    "thrice_h": lambda g: np.tile(g, (1, 3)),
    "thrice_v": lambda g: np.tile(g, (3, 1)),
    "double": lambda g: np.kron(g, np.ones((2, 2), g.dtype)),
    "triple": lambda g: np.kron(g, np.ones((3, 3), g.dtype)),
    "fractal": lambda g: np.kron(g != 0, g) if max(g.shape) <= 5 else None,
    "compress": _compress,
    "trim": lambda g: g[1:-1, 1:-1] if min(g.shape) > 2 else None,
    "fall": _fall(0),
    "rise": _fall(2),
    "fall_left": _fall(1),
    "fall_right": _fall(3),
    **{f"{name}_v": _joined(how, columns=False) for name, how in _LOGIC.items()},
    **{f"{name}_h": _joined(how, columns=True) for name, how in _LOGIC.items()},
    "symmetric_h": _symmetric(lambda g: g[:, ::-1]),
    "symmetric_v": _symmetric(lambda g: g[::-1]),
    "symmetric_4": _symmetric(lambda g: g[:, ::-1], lambda g: g[::-1], lambda g: g.T),
    "keep_commonest": _keep(lambda there, counts: max(there, key=lambda c: counts[c])),
    "keep_rarest": _keep(lambda there, counts: min(there, key=lambda c: counts[c])),
    "swap": _swap,
    "drop_commonest": lambda g: np.where(g == _counts(g).argmax(), 0, g),
    "denoise": _denoise,
    **{f"paint_{colour}": _paint(colour) for colour in (1, 2, 3, 5, 8)},
    **{f"holes_{colour}": _fill_holes(colour) for colour in (1, 2, 3, 4)},
}
NAMES = tuple(OPERATIONS)
