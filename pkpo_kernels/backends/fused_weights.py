"""An estimator as the numbers that kernels take, whichever kernels they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pkpo_kernels.maths.weights import Estimator

Weights = TypeVar("Weights")


def kernel_weights(estimator: Estimator, weights: Callable[..., Weights]) -> Weights:
    """weights: `pkpo_triton.Weights` or `pkpo_pallas.Weights`, which have the same fields."""
    coefficients = estimator.coefficients
    at_1 = estimator.coefficients_at_k_1 or coefficients
    return weights(
        form=tuple(coefficients),
        form_at_1=tuple(at_1),
        lag=estimator.index_shift,
        mirror=int(estimator.counted_from_top),
        spared=int(estimator.requires_k_lt_n),
        standardised=estimator.normalized,
    )
