"""Integers as arguments of what runs on the host: checked, and named where they are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np


def checked_integers(name: str, values: Any, least: int | None = None) -> tuple[int, ...]:
    """`values` as a tuple of ints, or an error that names the entry."""
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)):
        raise TypeError(f"{name} must be a sequence of integers, got {values!r}")
    return tuple(checked_integer(f"{name}[{i}]", value, least) for i, value in enumerate(values))


def checked_integer(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int, or an error that names it."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(not_integral(name, value))
    try:
        integer = index(value)
    except TypeError:
        raise TypeError(not_integral(name, value)) from None
    if least is not None and integer < least:
        raise ValueError(f"{name} must be at least {least}, got {integer}")
    return integer


def not_integral(name: str, value: object, right: str = "an integer") -> str:
    dtype = getattr(value, "dtype", None)
    got = repr(value) if dtype is None else f"{type(value).__name__} of dtype {dtype}"
    return f"{name} must be {right}, got {got}"
