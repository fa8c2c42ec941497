"""An estimator as the numbers that kernels take, whichever kernels they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pkpo_kernels.maths.estimators import Estimator

Weights = TypeVar("Weights")


def kernel_weights(estimator: Estimator, weights: Callable[..., Weights]) -> Weights:
    """weights: `pkpo_triton.Weights` or `pkpo_pallas.Weights`, which have the same fields."""
    form, at_1 = estimator.form, estimator.form_at_1 or estimator.form
    return weights(
        form=form.numbers,
        form_at_1=at_1.numbers,
        lag=form.lag,
        mirror=form.mirror,
        spared=estimator.spared,
        standardised=estimator.standardised,
    )
