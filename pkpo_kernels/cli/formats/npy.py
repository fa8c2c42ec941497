"""NumPy's own format: a (tasks, samples) array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.cli.lines import Lines
from pkpo_kernels.cli.rollouts import Floats, Rollouts
from pkpo_kernels.cli.sources import Source
from pkpo_kernels.validation import inexact_integers, not_exact

# Entries that are read at a time: 8 MiB of float64.
_ENTRIES = 1 << 20
# What NumPy raises, by way of tokenize and mmap too, of a file that is no array.
_NO_NPY = (ValueError, EOFError, MemoryError, TokenError, OSError, ArithmeticError)


def read(source: Source, lines: Lines) -> None:
    """Read an array, whose rows are the tasks; it has no columns to be chosen."""
    options = lines.options
    if options.task is not None or options.rewards is not None or options.only:
        lines.fail("a .npy array has no columns to be chosen")
    try:
        with np.errstate(over="raise"):
            matrix: NDArray[Any] = np.lib.format.open_memmap(os.fspath(source.path), mode="r")  # type: ignore[no-untyped-call]
    except _NO_NPY as error:
        lines.fail(f"not a .npy file of numbers: {error}")
    if matrix.ndim != 2 or not matrix.size:
        lines.fail(f"must hold a (tasks, samples) array; got shape {matrix.shape}")
    if matrix.dtype.kind not in "biuf":
        lines.fail(f"must hold numbers or bools; got dtype {matrix.dtype}")
    tasks, n = matrix.shape
    lines.one_sample_a_line = False
    for start in range(0, tasks, max(1, _ENTRIES // n)):
        source.tell(start / tasks)
        rows = np.asarray(matrix[start : start + max(1, _ENTRIES // n)])
        inexact = inexact_integers(rows, rows)
        if inexact is not None:
            lines.fail(not_exact("rewards", _place(rows, inexact, start)))
        # A longdouble beyond float64 becomes an infinity, which is refused below.
        with np.errstate(over="ignore"):
            rewards = rows.astype(np.float64)
        wrong = ~np.isfinite(rewards)
        if options.null != "error":
            wrong &= ~np.isnan(rewards)
        if wrong.any():
            lines.fail(f"a reward must be finite; got {_place(rewards, wrong, start)}")
        numbers = range(start, start + len(rows))
        lengths = np.full(len(rows), n, np.int64)
        lines.add_all(list(map(str, numbers)), rewards.ravel(), lengths, numbers)


def _place(rows: NDArray[Any], entries: NDArray[np.bool_], start: int) -> str:
    """Tell the first of these entries, and where it is in an array whose rows begin at `start`."""
    task, sample = np.unravel_index(np.argmax(entries), rows.shape)
    return f"{rows[task, sample]} in task {start + task}, sample {sample}"


def write(file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    """Write the transformed rewards alone: (tasks, samples)."""
    np.save(file, np.stack(values))
