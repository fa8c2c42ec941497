"""The weights, against exact fractions."""

from __future__ import annotations

import warnings
from fractions import Fraction
from functools import lru_cache, partial
from math import comb
from typing import Any

import numpy as np
import pytest

import pkpo_kernels as pk
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.maths.weights import (
    Coefficients,
    Estimator,
    GapWeights,
    host_weights,
    row_weights,
)


def as_published(estimator: str, n: int, k: int) -> tuple[list[Fraction], list[Fraction]]:
    """Order weights v_j and gap weights w_j of out_(i) = Σ_j v_j g_(j) + Σ_{j<i} w_j d_j."""
    total = comb(n, k)

    def c(a: int, b: int) -> int:
        return comb(a, b) if 0 <= b <= a else 0

    first = [Fraction(j == 1) for j in range(1, n + 1)]
    a = [Fraction(c(j - 1, k - 1), total) for j in range(1, n + 1)]
    v_of_s = (
        [one / n for one in first]
        if k == 1
        else [Fraction(c(j - 2, k - 2), total) for j in range(1, n + 1)]
    )
    if estimator == "sloo_minus_one" and k == 1:
        mean = Fraction(1, n * (n - 1))
        return [one / (n - 1) - mean for one in first], [Fraction(1, n - 1)] * (n - 1)
    if estimator == "sloo_minus_one":
        return [Fraction(0)] * n, [Fraction(c(j, k - 1), total) for j in range(1, n)]
    if estimator == "s":
        return v_of_s, a[:-1]
    if estimator == "sloo":
        others = [Fraction(k * c(j - 2, k - 1), (n - 1) * comb(n - 1, k)) for j in range(1, n + 1)]
        factor = 1 + Fraction(k * n, (n - 1) * (n - k))
        return [v - o for v, o in zip(v_of_s, others, strict=True)], [x * factor for x in a[:-1]]
    if estimator == "centered":
        factor = Fraction(n, n - k)
        constant = [factor * (v - Fraction(k, n) * x) for v, x in zip(v_of_s, a, strict=True)]
        return constant, [x * factor for x in a[:-1]]
    if estimator == "passk_training":
        constant = [Fraction(n, k) * v - x for v, x in zip(v_of_s, a, strict=True)]
        return constant, [Fraction(n, k) * x for x in a[:-1]]
    assert estimator == "max_at_k"
    return a, [Fraction(0)] * (n - 1)


def exactly(
    estimator: Estimator, n: int, k: int
) -> tuple[Fraction, list[Fraction], list[Fraction]]:
    """The estimator's own formulas on fractions: max coefficient, offset_j, gap_j."""
    shift = estimator.index_shift
    j = np.array([Fraction(j) for j in range(1, n)], dtype=object)
    ratios = [Fraction(comb(i - shift, k - 1), comb(n, k)) for i in range(1, n)]
    n_, k_ = Fraction(n), Fraction(k)
    offset, gap = row_weights(
        estimator, np.array(ratios, dtype=object), j, n_, k_, where=lambda c, x, y: x if c else y
    )
    return Fraction(estimator.coefficients.max_coefficient(n_, k_)), list(offset), list(gap)


@pytest.mark.parametrize("name", [*pk.ESTIMATORS, "max_at_k"])
def test_formulas_are_the_published_weights_exactly(name: str) -> None:
    estimator = pk.ESTIMATORS.get(name, MAX_AT_K)
    for n in range(2, 10):
        for k in range(1, estimator.largest_k(n) + 1):
            v, w = as_published(name, n, k)
            max_coefficient, offset, gap = exactly(estimator, n, k)
            # Σ_j v_j g_(j) = (Σ_j v_j) g_(n) − Σ_j (v_1 + … + v_j) d_j
            assert max_coefficient == sum(v)
            assert offset == [sum(v[:j]) for j in range(1, n)]
            assert gap == w
            assert all(weight >= 0 for weight in (*offset, *gap))


def relative_error(got: Any, numerators: list[int], denominator: int) -> float:
    """The worst over weights that float64 holds in full; the others must be 0 or as small."""
    worst = 0.0
    for weight, numerator in zip(got, numerators, strict=True):
        exact = numerator / denominator
        if exact < 1e-300:
            assert 0 <= weight < 1e-299
        else:
            worst = max(worst, abs(weight - exact) / exact)
    return worst


def exact_run(n: int, k: int) -> list[int]:
    """C(j, k−1) for j = 1..n−1, each from the one above it; 0 where they are of no weight."""
    numbers = [comb(n - 1, k - 1)]
    for j in range(n - 1, 1, -1):
        numbers.append(numbers[-1] * (j - k + 1) // j)
    return numbers[::-1]


def estimator_with_plain_run(k: int) -> Estimator:
    """One whose gap weights at this k are C(j, k−1)/C(n, k)."""
    return pk.ESTIMATORS["sloo_minus_one" if k > 1 else "s"]


@pytest.mark.parametrize("n", [2, 3, 17, 1000, 4096])
def test_host_weights_are_exact_to_1e_12(n: int) -> None:
    for k in sorted({1, 2, min(3, n), min(8, n), n // 2, n - 1, n}):
        weights = host_weights(estimator_with_plain_run(k), n, n, k)
        assert relative_error(weights.gap, exact_run(n, k), comb(n, k)) <= 1e-12


@pytest.mark.parametrize("k", [1, 2, 3, 8, 65535, 65536])
def test_host_weights_of_65536_samples(k: int) -> None:
    n = 65536
    weights = host_weights(estimator_with_plain_run(k), n, n, k)
    if k > n // 2:
        # All but the last few are 0.
        exact = [comb(j, k - 1) if j >= k - 1 else 0 for j in range(n - 3, n)]
        assert relative_error(weights.gap[-3:], exact, comb(n, k)) <= 1e-12
        assert not weights.gap[:-2].any()
    else:
        exact = [comb(j, k - 1) for j in range(1, n)]
        assert relative_error(weights.gap, exact, comb(n, k)) <= 1e-12


def test_host_weights_deep_in_the_middle() -> None:
    n, k = 65536, 32768
    weights = host_weights(pk.ESTIMATORS["sloo_minus_one"], n, n, k)
    # The run reaches 1e-300 after a thousand steps; what lies below is 0 to working precision.
    ratio, worst = Fraction(k, n), 0.0
    for j in range(n - 1, n - 900, -1):
        worst = max(worst, abs(weights.gap[j - 1] / float(ratio) - 1))
        ratio = Fraction(float(ratio)) * (j - k + 1) / j
    assert worst <= 1e-12
    assert not weights.gap[: n - 1200].any()


def test_no_inf_no_nan_no_warning() -> None:
    n = np.array([0, 1, 1, 2, 5, 9, 9, 9, 9])
    k = np.array([1, 1, 2, 2, 9, 9, 0, -3, 8])
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for estimator in (*pk.ESTIMATORS.values(), MAX_AT_K):
            weights = host_weights(estimator, 9, n, k)
            assert all(np.isfinite(part).all() for part in weights)
            out = ~weights.k_is_valid
            assert not weights.gap[out].any() and not weights.max_coefficient[out].any()
            for size in (1, 2, 1024):
                host_weights(estimator, size, size, size)


def test_a_rows_own_n_shifts_its_weights_to_the_right() -> None:
    estimator = pk.ESTIMATORS["sloo"]
    wide = host_weights(estimator, 9, np.array([5, 9]), np.array([2, 3]))
    narrow = host_weights(estimator, 5, 5, 2)
    np.testing.assert_array_equal(wide.gap[0, 4:], narrow.gap)
    np.testing.assert_array_equal(wide.offset[0, 4:], narrow.offset)
    assert not wide.gap[0, :4].any() and not wide.offset[0, :4].any()
    np.testing.assert_array_equal(wide.gap[1], host_weights(estimator, 9, 9, 3).gap)


@lru_cache
def compiled_by_xla(name: str) -> Any:
    """One program for each width, whatever the k."""
    import jax

    from pkpo_kernels.backends._jax_rows import weights_of

    return jax.jit(partial(weights_of, pk.ESTIMATORS[name]), static_argnums=0)


def traced(library: str, name: str, n: int, k: int) -> GapWeights:
    estimator = pk.ESTIMATORS[name]
    if library == "jax":
        import jax.numpy as jnp

        return compiled_by_xla(name)(n, jnp.asarray([float(n)]), jnp.asarray(k))
    import torch

    from pkpo_kernels.backends.torch import _weights

    keys = torch.zeros((1, n), dtype=torch.float64)
    return _weights(estimator, keys, torch.tensor(n), torch.tensor(k))


@pytest.mark.parametrize(
    "library, allowed, name",
    [
        ("jax", 1e-6, "sloo_minus_one"),
        pytest.param("jax", 1e-6, "sloo", marks=pytest.mark.slow),
        ("torch", 1e-12, "sloo_minus_one"),
        ("torch", 1e-12, "sloo"),
    ],
)
def test_traced_weights_stay_at_a_few_roundings(library: str, allowed: float, name: str) -> None:
    # A plain float32 product of 16384 ratios would be wrong by 1e-5.
    for n, ks in ((7, (1, 3, 6)), (16384, (2, 3, 8, 8192, 16383))):
        for k in ks:
            want = host_weights(pk.ESTIMATORS[name], n, n, k)
            got = traced(library, name, n, k)
            for field in ("gap", "offset", "best"):
                exact = getattr(want, field)
                normal = exact > 1e-36
                error = np.abs(
                    np.asarray(getattr(got, field), np.float64).reshape(-1)
                    / np.where(normal, exact, 1)
                    - 1
                )
                assert error[normal].max(initial=0) <= allowed, (n, k, field)


def test_coefficients_at_k_1_are_all_taken_there() -> None:
    plain, at_1 = Coefficients(gap_1=1, max_1=2), Coefficients(gap_1=3, offset_1=4, max_1=5)
    mixed = Estimator("mixed", "", "", "", coefficients=plain, coefficients_at_k_1=at_1)
    alone = Estimator("alone", "", "", "", coefficients=at_1)
    weights = host_weights(mixed, 4, np.array([4, 4]), np.array([1, 2]))
    want = host_weights(alone, 4, 4, 1)
    assert weights.max_coefficient.tolist() == [5, 2]
    np.testing.assert_array_equal(weights.gap[0], want.gap)
    np.testing.assert_array_equal(weights.offset[0], want.offset)


def test_estimators_offer_their_weights() -> None:
    weights = pk.ESTIMATORS["s"].weights(4, 2)
    np.testing.assert_allclose(weights.gap, [0, 1 / 6, 2 / 6])
    assert weights.max_coefficient == pytest.approx(0.5)


def test_a_group_has_weights_only_for_the_k_that_it_admits() -> None:
    for name, estimator in pk.ESTIMATORS.items():
        largest = estimator.largest_k(5)
        assert estimator.weights(np.int64(5), np.int32(largest)).k_is_valid
        with pytest.raises(
            ValueError, match=rf"^k must be at most {largest} .*; got k={largest + 1}"
        ):
            estimator.weights(5, largest + 1)
        for k in (0, -3):
            with pytest.raises(ValueError, match=rf"^k must be at least 1.* got .*{k}"):
                estimator.weights(5, k)
        for k in (2.0, True, "2", None, [2]):
            with pytest.raises(TypeError, match=r"^k must be an integer.* got "):
                estimator.weights(5, k)
        with pytest.raises(ValueError, match=r"^n must be at least 1.* got .*0"):
            estimator.weights(0, 1)
        assert name == estimator.name
