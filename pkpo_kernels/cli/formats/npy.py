"""NumPy's own format: a (tasks, samples) array."""

from __future__ import annotations

from collections.abc import Sequence
from tokenize import TokenError
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np

from pkpo_kernels.cli.rollouts import Floats, PathLike, RolloutFileError, Rollouts
from pkpo_kernels.validation import inexact_integers, not_exact

# What NumPy raises, by way of tokenize and zipfile too, of a file that is no array.
_NO_NPY = (ValueError, EOFError, MemoryError, OverflowError, TokenError, BadZipFile)


def read(path: PathLike, task_column: str | None, reward_columns: Sequence[str] | None) -> Rollouts:
    """Read an array, whose rows are the tasks; it has no columns to be chosen."""
    if task_column is not None or reward_columns is not None:
        raise RolloutFileError(path, "a .npy array has no columns to be chosen")
    with open(path, "rb") as file:
        try:
            matrix = np.load(file, allow_pickle=False)
        except _NO_NPY as error:
            raise RolloutFileError(path, f"not a .npy file of numbers: {error}") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or not matrix.size:
        shape = getattr(matrix, "shape", "several arrays")
        raise RolloutFileError(path, f"must hold a (tasks, samples) array; got shape {shape}")
    if matrix.dtype.kind not in "biuf":
        raise RolloutFileError(path, f"must hold numbers or bools; got dtype {matrix.dtype}")
    inexact = inexact_integers(matrix, matrix)
    if inexact is not None:
        task, sample = np.unravel_index(np.argmax(inexact), matrix.shape)
        got = f"{matrix[task, sample]} in task {task}, sample {sample}"
        raise RolloutFileError(path, not_exact("rewards", got))
    # A longdouble beyond float64 becomes an infinity, which is refused below.
    with np.errstate(over="ignore"):
        matrix = matrix.astype(np.float64)
    finite = np.isfinite(matrix)
    if not finite.all():
        task, sample = np.unravel_index(np.argmin(finite), matrix.shape)
        raise RolloutFileError(
            path,
            f"a reward must be finite; got {matrix[task, sample]} in task {task}, sample {sample}",
        )
    return Rollouts(tuple(map(str, range(len(matrix)))), tuple(matrix))


def write(file: BinaryIO, rollouts: Rollouts, values: Sequence[Floats]) -> None:
    """Write the transformed rewards alone: (tasks, samples)."""
    np.save(file, np.stack(values))
