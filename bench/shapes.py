"""The rewards that are measured, and the lengths of their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The k of every transform that is measured.
K = 4
# Every length that a figure is given for.
MEASURED_N = (8, 16, 32, 64, 128, 256, 1024, 4096, 16384)


class Shape(NamedTuple):
    """A matrix of `rows` tasks with n samples each."""

    rows: int
    n: int


# name → rewards (rows, n) of float32
INPUTS: dict[str, Callable[[np.random.Generator, Shape], NDArray[Any]]] = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape, dtype=np.float32),
    "0/1": lambda rng, shape: rng.integers(0, 2, shape).astype(np.float32),
}
