"""What the kernels are told: an estimator as plain numbers, or its weights ready made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax


class Weights(NamedTuple):
    """An estimator, as far as a kernel knows it: out_(i) = anchor · g_(n) − Σ_j below_j d_j +
    Σ_{j<i} gap_j d_j over a sorted row's gaps d_j, with weights of r_j = C(j−lag, k−1)/C(n, k):

        gap_j   = r_j · (gap_1 + gap_k·k + gap_n·n + gap_nn·n(n−1)) / D
        below_j = r_j · (below_1 + below_k·k + (slope_1 + slope_n·n) · |j − mirror·(n−1)|) / D
        anchor  = anchor_1 + anchor_k · k / (n · (n−1)^over_others)
        D       = k^over_k · (n−k)^over_rest · (n−1)^over_others

    Attributes:
        form: over_k, over_rest, over_others, gap_1, gap_k, gap_n, gap_nn, below_1, below_k,
          slope_1, slope_n, anchor_1, anchor_k, for k ≥ 2.
        form_at_1: the same for k = 1.
        lag, mirror: 0 or 1.
        spared: a row of n samples admits 1 ≤ k ≤ n − spared.
        standardised: the outcome is divided by the deviation of the best of k.
    """

    form: Sequence[int]
    form_at_1: Sequence[int]
    lag: int
    mirror: int
    spared: int
    standardised: bool

    @property
    def row_offset(self) -> bool:
        """Whether what a row's smallest reward gets is other than 0, for k ≥ 2."""
        return any(self.form[7:])


class Table(NamedTuple):
    """The weights of rows that all have n samples and the same k, in float32.

    Attributes:
        gap, below: (n−1,) of each gap.
        best: (n,) the chance of each place to be the best of k.
        anchor: () of the largest reward.
        admitted: () bool: the rows admit this k; where they do not, all weights are 0.
    """

    gap: jax.Array
    below: jax.Array
    best: jax.Array
    anchor: jax.Array
    admitted: jax.Array
