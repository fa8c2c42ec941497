"""An estimator as the numbers that the Triton kernels take, for torch and JAX alike."""

from __future__ import annotations

from pkpo_triton.weights import Weights

from pkpo_kernels.estimators import Estimator


def kernel_weights(estimator: Estimator) -> Weights:
    form, at_1 = estimator.form, estimator.form_at_1 or estimator.form
    return Weights(
        form=form.numbers,
        form_at_1=at_1.numbers,
        lag=form.lag,
        mirror=form.mirror,
        spared=estimator.spared,
        standardised=estimator.standardised,
    )
