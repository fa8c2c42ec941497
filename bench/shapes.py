"""The shapes and the rewards of the matrices that are tested and measured, declared once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Shape(NamedTuple):
    """A matrix of `rows` tasks with n samples each."""

    rows: int
    n: int

    @property
    def elements(self) -> int:
        return self.rows * self.n

    def __str__(self) -> str:
        return f"{self.rows}x{self.n}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """ "64x8" → Shape(rows=64, n=8); n must admit the k that is measured."""
        rows, _, n = text.lower().partition("x")
        if not (rows.isdecimal() and n.isdecimal() and int(rows) >= 1 and int(n) >= K):
            raise ValueError(f"a shape must be ROWSxN with N of at least {K}, got {text!r}")
        return cls(int(rows), int(n))


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        shapes: in this order.
        inputs: names from INPUTS, for each shape, the most telling first: the last are left out
          where a shape has used up its share of the time.
        seconds: for the whole run. Kept to within one arm's preparation (a compilation, say).
        arm_seconds: of timed calls, for each arm of a matrix.
        call_seconds: an arm whose single call takes longer is left out.
    """

    shapes: tuple[Shape, ...]
    inputs: tuple[str, ...]
    seconds: float
    arm_seconds: float
    call_seconds: float


# The k of every transform here.
K = 4

# Time per call on this one is the host's work, not the device's.
TINY = Shape(8, 8)

_Rng = np.random.Generator


def _gaussian(rng: _Rng, shape: Shape) -> NDArray[Any]:
    return rng.standard_normal(shape, dtype=np.float32)


def _binary(rng: _Rng, shape: Shape) -> NDArray[Any]:
    return rng.integers(0, 2, shape).astype(np.float32)


def _five_level(rng: _Rng, shape: Shape) -> NDArray[Any]:
    return rng.integers(0, 5, shape).astype(np.float32) / 4


def _all_equal(rng: _Rng, shape: Shape) -> NDArray[Any]:
    each = rng.standard_normal((shape.rows, 1), dtype=np.float32)
    return np.repeat(each, shape.n, axis=1)


def _boolean(rng: _Rng, shape: Shape) -> NDArray[Any]:
    return rng.integers(0, 2, shape).astype(np.bool_)


# name → the rewards of a matrix; float32, but for the last.
INPUTS: dict[str, Callable[[_Rng, Shape], NDArray[Any]]] = {
    "gaussian": _gaussian,
    "0/1": _binary,
    "five levels": _five_level,
    "all equal": _all_equal,
    "bool": _boolean,
}

# Every k of these is checked against all subsets.
ENUMERATED_N = (1, 2, 3, 4, 6)

# (rows, n) checked against the reference: around powers of two, odd counts, one row, one sample.
REFERENCE = ((1, 1), (3, 7), (3, 8), (17, 33), (2, 257), (2, 1024))


def ks_for(n: int) -> tuple[int, ...]:
    """Ks that matter for n: the ends, the usual ones, the middle."""
    return tuple(sorted({1, min(2, n), min(3, n), min(8, n), max(1, n // 2), max(1, n - 1), n}))


# Every length that a figure is given for.
MEASURED_N = (8, 16, 32, 64, 128, 256, 1024, 4096, 16384)
_QUICK_NS = (16, 256, 4096)


def _of_elements(elements: int, ns: tuple[int, ...]) -> tuple[Shape, ...]:
    return tuple(Shape(elements // n, n) for n in ns)


# (device, quick) → what is run there. On GPUs a matrix of float32 is 1 GiB.
PLANS: dict[tuple[str, bool], Plan] = {
    ("cuda", False): Plan(_of_elements(1 << 28, MEASURED_N), tuple(INPUTS), 420, 0.25, 1),
    ("cuda", True): Plan(_of_elements(1 << 28, _QUICK_NS), ("gaussian", "0/1"), 100, 0.2, 1),
    ("tpu", False): Plan(_of_elements(1 << 26, MEASURED_N), tuple(INPUTS), 420, 0.25, 1),
    ("tpu", True): Plan(_of_elements(1 << 26, _QUICK_NS), ("gaussian", "0/1"), 100, 0.2, 1),
    ("cpu", False): Plan(_of_elements(1 << 21, MEASURED_N), tuple(INPUTS), 420, 0.5, 2),
    ("cpu", True): Plan(_of_elements(1 << 20, _QUICK_NS), ("gaussian", "0/1"), 95, 0.3, 1),
}
