"""Schedules of k: from the training step to the k of the next update.

The paper anneals k: large early on, to reward exploration, then 1, to sharpen (arXiv 2505.15201,
section 5.2.2 in v1, 5.2.3 since v3):

>>> k_at = piecewise_constant([8, 1], [1000])
>>> k_at(0), k_at(999), k_at(1000)
(8, 8, 1)

A schedule takes the step as a Python or NumPy integer, a NumPy integer array, an integer torch
tensor (also under `torch.compile`) or a JAX array or tracer (also under `jit` and `vmap`).
The k it gives back is of the same kind and may go straight into `transform(rewards, k)`, which
does not recompile when k's value changes.

Where a schedule must be text, in a configuration or in the environment, :func:`parse` reads it:

>>> parse("8@0,1@1000") == k_at
True
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.typing import DeviceArray
from pkpo_kernels.validation import (
    checked_array,
    checked_integer,
    checked_integers,
    is_integer,
    library_of,
    not_integral,
    shown,
)

__all__ = ["Schedule", "cosine", "linear", "parse", "piecewise_constant"]

# JAX's default integer holds no larger k.
_LARGEST_K = 2**31 - 1
_PAIR = re.compile(r"\s*(?P<k>[+-]?[0-9]+)\s*(?:@\s*(?P<step>[+-]?[0-9]+)\s*)?")


@dataclass(frozen=True)
class Schedule:
    """A function of the step that is constant between the steps in `boundaries`.

    Every schedule of an integer k is one: `values[i]` holds until step `boundaries[i]`, where
    `values[i + 1]` takes over. Looking k up in this table, rather than computing it from a
    formula, is exact, and so gives the same k in Python, NumPy, torch and JAX whatever their
    floating-point precision.

    Made by :func:`piecewise_constant`, :func:`linear`, :func:`cosine` and :func:`parse`, which
    reads what `str` writes. Hashable, hence a valid static argument of `jax.jit`; equal where the
    tables are, however they were made.

    Attributes:
        description: the call that makes it.
        values: the ks, one more than there are boundaries.
        boundaries: the steps at which the next k takes over, strictly increasing.
    """

    description: str = field(compare=False)
    values: tuple[int, ...]
    boundaries: tuple[int, ...]

    def __repr__(self) -> str:
        return self.description

    def __str__(self) -> str:
        """Write the table as text that `parse` reads: "8@0,4@200,1@400"."""
        first, *later = self.values
        # The first k holds before step 0 as well, and "@0" would hide a change that comes by then.
        start = "@0" if later and self.boundaries[0] > 0 else ""
        pairs = zip(later, self.boundaries, strict=True)
        return ",".join([f"{first}{start}", *(f"{k}@{step}" for k, step in pairs)])

    @overload
    def __call__(self, step: int | np.integer[Any]) -> int: ...
    @overload
    def __call__(self, step: NDArray[np.integer[Any]]) -> NDArray[np.int64]: ...
    @overload
    def __call__(self, step: DeviceArray) -> DeviceArray: ...

    def __call__(self, step: Any) -> Any:
        """Look up the k of steps: (...) → (...).

        Args:
            step: an integer, or an integer array of any shape. Under `torch.compile` pass a
                tensor: the value of a Python integer is part of the compiled program, and each new
                k would compile another.

        Returns:
            An int for an integer; else an array of the shape, library and device of `step`: int64
            in NumPy and torch, int32 in JAX.

        Raises:
            TypeError: `step` is a bool, or anything but integers.

        >>> linear(5, 1, 8)(np.arange(4))
        array([5, 4, 4, 3])
        """
        if is_integer(step):
            # Not by bisect, which torch.compile does not follow.
            return self.values[sum(int(step) >= boundary for boundary in self.boundaries)]
        if isinstance(step, np.ndarray) and step.dtype.kind in "iu":
            values = np.asarray(self.values, np.int64)
            at = np.searchsorted(self._boundaries_in(np.int64), _in_int64(step), side="right")
            return np.asarray(values[at])
        library = library_of(step)
        if library == "torch":
            return self._in_torch(checked_array("step", step)[0])
        if library == "jax":
            return self._in_jax(step)
        raise TypeError(not_integral("step", step, "an integer or an array of integers"))

    def _boundaries_in(self, dtype: Any) -> NDArray[Any]:
        """List the boundaries in a dtype: those that it cannot hold are never reached, or always
        are."""
        limits = np.iinfo(dtype)
        there = [b for b in self.boundaries if b <= limits.max]
        return np.array([max(b, int(limits.min)) for b in there], dtype)

    def _in_torch(self, step: Any) -> Any:
        import torch

        if step.dtype == torch.bool or step.is_floating_point() or step.is_complex():
            raise TypeError(not_integral("step", step, "an integer or an array of integers"))
        # non_blocking: the table is copied in stream order, the host does not wait for the device.
        of_device = {"device": step.device, "non_blocking": True}
        boundaries = torch.from_numpy(self._boundaries_in(np.int64)).to(**of_device)
        values = torch.from_numpy(np.asarray(self.values, np.int64)).to(**of_device)
        at = step.detach().to(torch.int64)
        if step.dtype == torch.uint64:  # some are too large, and as good as the largest
            at = torch.where(at < 0, np.iinfo(np.int64).max, at)
        index = torch.bucketize(at, boundaries, right=True)
        # Not values[index], which reads a scalar index on the host.
        return values.index_select(0, index.reshape(-1)).reshape(index.shape)

    def _in_jax(self, step: Any) -> Any:
        import jax.numpy as jnp

        if not jnp.issubdtype(step.dtype, jnp.integer):
            raise TypeError(not_integral("step", step, "an integer or an array of integers"))
        dtype: Any = np.int64 if step.dtype.itemsize == 8 else np.int32
        if step.dtype.kind == "u":  # some are too large, and as good as the largest
            step = jnp.minimum(step, min(np.iinfo(dtype).max, np.iinfo(step.dtype).max))
        boundaries = jnp.asarray(self._boundaries_in(dtype))
        values = jnp.asarray(self.values, jnp.int32)
        return values[jnp.searchsorted(boundaries, step.astype(dtype), side="right")]


def _in_int64(step: NDArray[Any]) -> NDArray[np.int64]:
    """Convert steps (...); those without a sign that are too large are as good as the largest."""
    if step.dtype.kind == "u":
        step = np.minimum(step, np.uint64(np.iinfo(np.int64).max))
    return step.astype(np.int64)


def piecewise_constant(values: Sequence[int], boundaries: Sequence[int]) -> Schedule:
    """Hold `values[0]` before step `boundaries[0]`, then `values[1]` before the next, and so on.

    Args:
        values: the ks, each at least 1; one more than there are boundaries.
        boundaries: the steps at which the next value takes over, strictly increasing.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    >>> piecewise_constant([8, 4, 1], [100, 200])(np.array([99, 100, 199, 200]))
    array([8, 4, 4, 1])
    """
    ks = checked_integers("values", values, least=1, most=_LARGEST_K)
    steps = checked_integers("boundaries", boundaries)
    if len(ks) != len(steps) + 1:
        raise ValueError(
            f"values must have one more entry than boundaries; got {len(ks)} values {list(ks)}"
            f" and {len(steps)} boundaries {list(steps)}"
        )
    if any(after <= before for before, after in pairwise(steps)):
        raise ValueError(f"boundaries must be strictly increasing; got {list(steps)}")
    return Schedule(f"piecewise_constant(values={list(ks)}, boundaries={list(steps)})", ks, steps)


def parse(text: str) -> Schedule:
    """Read a schedule from text: "8@0,4@200,1@400" holds k = 8 from step 0, 4 from 200, 1 from 400.

    Args:
        text: pairs k@step, separated by commas, with steps that strictly increase; the first step
          is 0, and may be left out. "8" is k = 8 forever. What `str` makes of a schedule reads as
          that schedule again.

    Raises:
        TypeError: `text` is no string.
        ValueError: it is not as described.

    >>> parse("8@0,4@200,1@400")
    piecewise_constant(values=[8, 4, 1], boundaries=[200, 400])
    >>> str(linear(3, 1, 100)), parse(str(linear(3, 1, 100)))(50)
    ('3@0,2@25,1@75', 2)
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string like '8@0,4@200,1@400'; got {shown(text)}")
    matches = [_PAIR.fullmatch(pair) for pair in text.split(",")]
    try:
        steps: list[Any] = [match and match["step"] and int(match["step"]) for match in matches]
        ks = [int(match["k"]) for match in matches if match]
    except ValueError:  # of more digits than Python reads
        ks = []
    if len(ks) < len(matches) or None in steps[1:]:
        raise ValueError(f"text must be k@step,k@step,… like '8@0,4@200,1@400'; got {shown(text)}")
    if steps[0]:
        raise ValueError(
            f"text must begin at step 0, like '8@0,4@200,1@400'; got {shown(text)}, which begins at"
            f" {steps[0]}"
        )
    try:
        return piecewise_constant(ks, steps[1:])
    except ValueError as error:
        raise ValueError(f"text must be a schedule; got {shown(text)}: {error}") from None


def linear(start: int, end: int, steps: int) -> Schedule:
    """Move k on a straight line from `start` at step 0 to `end` at step `steps`.

    Rounded to the nearest integer. Before step 0 it is `start`, after step `steps` it is
    `end`; a half rounds towards `end`.

    Args:
        start: k at step 0, at least 1.
        end: k at step `steps`, at least 1.
        steps: the length of the way, at least 1.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    >>> [linear(5, 1, 8)(step) for step in range(10)]
    [5, 4, 4, 3, 3, 2, 2, 1, 1, 1]
    """
    start, end, steps = _checked(start, end, steps)
    distance = abs(end - start)
    # The j-th change is at the first step to have come j - 1/2 of the distance, in exact integers.
    changes = [-(-(2 * j - 1) * steps // (2 * distance)) for j in range(1, distance + 1)]
    return _monotone(f"linear(start={start}, end={end}, steps={steps})", start, end, changes)


def cosine(start: int, end: int, steps: int) -> Schedule:
    """Move k on half a cosine wave from `start` at step 0 to `end` at step `steps`.

    In between, at step t, it is `end + (start - end) * (1 + cos(pi * t / steps)) / 2`, rounded to
    the nearest integer: slow at both ends, fast in the middle. Before step 0 it is `start`, after
    step `steps` it is `end`; a half rounds towards `end`.

    Args and errors are those of :func:`linear`.

    >>> [cosine(5, 1, 8)(step) for step in range(10)]
    [5, 5, 4, 4, 3, 2, 2, 1, 1, 1]
    """
    start, end, steps = _checked(start, end, steps)
    distance = abs(end - start)
    changes = [
        # The slack absorbs acos's rounding where the wave meets a half exactly, as it does at steps
        # / 2.
        max(1, math.ceil(steps * (math.acos(1 - (2 * j - 1) / distance) / math.pi - 1e-12)))
        for j in range(1, distance + 1)
    ]
    return _monotone(f"cosine(start={start}, end={end}, steps={steps})", start, end, changes)


def _monotone(description: str, start: int, end: int, changes: Sequence[int]) -> Schedule:
    """Move k one unit nearer to `end` at each step in `changes`, which come in order."""
    direction = 1 if end > start else -1
    # Of several changes at one step the last holds.
    values = dict(zip(changes, range(start + direction, end + direction, direction), strict=True))
    return Schedule(description, (start, *values.values()), tuple(values))


def _checked(start: int, end: int, steps: int) -> tuple[int, int, int]:
    return (
        checked_integer("start", start, least=1, most=_LARGEST_K),
        checked_integer("end", end, least=1, most=_LARGEST_K),
        checked_integer("steps", steps, least=1),
    )
