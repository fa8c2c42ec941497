"""pass@k from counts of right samples."""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.typing import HostIntegers
from pkpo_kernels.validation import host_integers


@overload
def pass_at_k(  # type: ignore[overload-overlap]
    n: int | np.integer[Any], c: int | np.integer[Any], k: int | np.integer[Any]
) -> float: ...
@overload
def pass_at_k(n: HostIntegers, c: HostIntegers, k: HostIntegers) -> NDArray[np.float64]: ...


def pass_at_k(n: HostIntegers, c: HostIntegers, k: HostIntegers) -> Any:
    """Estimate pass@k from counts, without bias: n, c, k (...) → (...), 1 − C(n−c, k)/C(n, k).

    Args:
        n: samples of a task, n ≥ 1.
        c: how many of them are correct, 0 ≤ c ≤ n.
        k: how many samples the policy gets, k ≥ 1. n, c and k are integers or integer arrays that
          broadcast.

    Returns:
        float64 of the broadcast shape, relative error below 1e-12 for n to 10^6; NaN where k > n.

    Raises:
        ValueError: n < 1, c outside 0..n, k < 1, or shapes that do not broadcast.
        TypeError: an argument is not integral.

    Source: Walder & Karkhanis 2025, arXiv 2505.15201, Eq 3; Chen et al. 2021, arXiv 2107.03374.

    >>> pass_at_k(10, 3, [1, 5, 10, 11])
    array([0.3       , 0.91666667, 1.        ,        nan])
    """
    counts = (_counts("n", n), _counts("c", c), _counts("k", k))
    try:
        n, c, k = np.broadcast_arrays(*counts)
    except ValueError:
        shapes = ", ".join(str(count.shape) for count in counts)
        raise ValueError(f"n, c and k must have shapes that broadcast; got {shapes}") from None
    for name, value, wrong, right in (
        ("n", n, n < 1, "at least 1"),
        ("c", c, (c < 0) | (c > n), "within 0..n"),
        ("k", k, k < 1, "at least 1"),
    ):
        if wrong.any():
            raise ValueError(
                f"{name} must be {right}; got {name}={value[wrong][0]} with n={n[wrong][0]}"
            )
    triples, inverse = np.unique(
        np.stack([n.ravel(), c.ravel(), k.ravel()]), axis=1, return_inverse=True
    )
    values = np.array([_pass_at_k_of_one(*map(int, triple)) for triple in triples.T])
    return values[inverse.reshape(-1)].reshape(n.shape)[()]


def _counts(argument: str, value: Any) -> NDArray[np.int64]:
    counts, largest = host_integers(argument, value), np.iinfo(np.int64).max
    if counts.size and int(counts.max()) > largest:
        raise ValueError(f"{argument} must be at most {largest}; got {counts.max()}")
    if counts.dtype == object:  # of Python's integers, which may be less than int64 holds
        counts = np.asarray(np.maximum(counts, np.iinfo(np.int64).min))
    return counts.astype(np.int64)


def _pass_at_k_of_one(n: int, c: int, k: int) -> float:
    if k > n:
        return math.nan
    if c + k > n:
        return 1.0
    # C(n−c, k)/C(n, k) = Π_{i=n−c+1..n} (1 − k/i), and c and k may change places: the shorter
    # product. Its logarithm, and expm1, keep the relative error small where pass@k is small.
    fewer, more = sorted((c, k))
    return 0.0 - math.expm1(np.log1p(-more / np.arange(n - fewer + 1, n + 1)).sum())
