"""The shapes and the rewards of the matrices that are tested and measured, declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The k of every transform that is measured.
K = 4


class Shape(NamedTuple):
    """A matrix of `rows` tasks with n samples each."""

    rows: int
    n: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.n}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Parse "64x8" to Shape(rows=64, n=8); n must admit the k that is measured."""
        rows, _, n = text.lower().partition("x")
        if not (rows.isdecimal() and n.isdecimal() and int(rows) >= 1 and int(n) >= K):
            raise ValueError(f"a shape must be ROWSxN with N of at least {K}, got {text!r}")
        return cls(int(rows), int(n))


_Rng = np.random.Generator

# name → rewards (rows, n) of float32
INPUTS: dict[str, Callable[[_Rng, Shape], NDArray[Any]]] = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape, dtype=np.float32),
    "0/1": lambda rng, shape: rng.integers(0, 2, shape).astype(np.float32),
}

# Every k of these is checked against all subsets.
ENUMERATED_N = (1, 2, 3, 4, 6)

# (rows, n) checked against the reference: around powers of two, odd counts, one row, one sample.
REFERENCE = ((1, 1), (3, 7), (3, 8), (17, 33), (2, 257), (2, 1024))


def ks_for(n: int) -> tuple[int, ...]:
    """Choose ks that matter for n: the ends, the usual ones, the middle."""
    return tuple(sorted({1, min(2, n), min(3, n), min(8, n), max(1, n // 2), max(1, n - 1), n}))


# Every length that a figure is given for.
MEASURED_N = (8, 16, 32, 64, 128, 256, 1024, 4096, 16384)
