"""PKPO as papers and frameworks write it: a row at a time in NumPy, two scans, one subtracted.

Written here from Eq 19 and 33 of arXiv 2505.15201, for comparison only: each weight is a product of
ratios of its own, and what one scan gives is taken from what another gives, which loses digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def transform(rewards: NDArray[Any], k: int, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """sloo_minus_one of (rows, n) rewards, k ≥ 2, row by row; the scans are made in the dtype, with
    weights that are right to its last digit."""
    return np.array([_sloo_minus_one(row.astype(dtype), k) for row in rewards])


def _sloo_minus_one(g: NDArray[Any], k: int) -> NDArray[Any]:
    """s_i − (k/n) · max@(k−1) of all but i."""
    n, dtype = len(g), g.dtype
    order = np.argsort(g)
    ordered = g[order]
    # s: i itself is the largest of its subset, or one of those above it is.
    own = np.array([_share(i, k - 1, n, k) for i in range(n)], dtype)
    above = np.array([_share(i - 1, k - 2, n, k) for i in range(n)], dtype)
    zero = dtype.type(0)
    s = own * ordered + np.append(np.cumsum((above * ordered)[:0:-1])[::-1], zero)
    # max@(k−1) of the others: those below i keep their rank, those above come down by one.
    others = np.array([_share(i, k - 2, n - 1, k - 1) for i in range(n - 1)], dtype)
    below = np.append(zero, np.cumsum(others * ordered[:-1]))
    beyond = np.append(np.cumsum((others * ordered[1:])[::-1])[::-1], zero)
    out = np.empty(n, dtype)
    out[order] = s - dtype.type(k / n) * (below + beyond)
    return out


def _share(m: int, chosen: int, n: int, k: int) -> float:
    """C(m, chosen) / C(n, k), with chosen = k−1 or k−2, as a product of ratios."""
    if m < chosen:
        return 0.0
    # C(m, r)/C(n, k) = Π (m−i)/(n−i) · Π of what is left of the denominator
    ratio = np.prod((m - np.arange(chosen)) / (n - np.arange(chosen)))
    left = np.arange(chosen, k)
    return float(ratio * np.prod((left + 1) / (n - left)))
