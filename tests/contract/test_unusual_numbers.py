"""NaN, infinities, and the largest and the smallest numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from expected import ESTIMATORS, expected
from subjects import Subject

import pkpo_kernels as pk

INF, NAN, LARGEST = np.inf, np.nan, float(np.finfo(np.float32).max)
# Rows of 9 that are not finite, or whose range overflows in float32.
NOT_FINITE = np.array(
    [
        [0.5, 1.0, -2.0, 3.0, INF, 0.0, 1.0, 1.0, 7.0],
        [0.5, 1.0, -2.0, 3.0, -INF, 0.0, 1.0, 1.0, 7.0],
        [-INF, 1.0, -2.0, 3.0, INF, 0.0, INF, 1.0, 7.0],
        [INF] * 9,
        [-INF] * 9,
        [0.0, INF, 0.0, 0.0, 0.0, INF, 0.0, INF, 0.0],
        [NAN] * 9,
        [LARGEST, 1.0, -2.0, -LARGEST, 4.0, 0.0, 1.0, 1.0, 7.0],
        [LARGEST, -1e38, -1e38, LARGEST, -1e38, -1e38, -1e38, -1e38, -1e38],
    ]
)


class TestUnusualNumbers:
    @pytest.mark.essential
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("nan", [np.nan, -np.nan], ids=["nan", "-nan"])
    def test_nan_stays_in_its_row(
        self, subject: Subject, rng: np.random.Generator, estimator: str, nan: float
    ) -> None:
        rewards = rng.standard_normal((6, 9)).astype(np.float32)
        clean = subject.transform(subject.array(rewards), 3, estimator=estimator)
        rewards[2, 4] = nan
        rewards[5, [0, 8]] = nan, np.inf
        out = subject.transform(subject.array(rewards), 3, estimator=estimator)
        assert np.isnan(out[[2, 5]]).all()
        np.testing.assert_array_equal(out[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])
        best = subject.max_at_k(subject.array(rewards), 3)
        assert np.isnan(best[[2, 5]]).all() and np.isfinite(best[[0, 1, 3, 4]]).all()

    def test_nan_is_not_hidden_by_too_few_samples(self, subject: Subject) -> None:
        rewards = subject.array([[1.0, np.nan, 2.0], [1.0, 3.0, 2.0], [-INF, 3, NAN]], "float32")
        where = subject.array([[True, True, False]] * 3)
        out = subject.transform(rewards, 3, where=where)
        np.testing.assert_array_equal(out, [[NAN, NAN, 0], [0, 0, 0], [NAN, NAN, 0]])

    @pytest.mark.essential
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_a_row_that_is_not_finite_becomes_nan(
        self, subject: Subject, rng: np.random.Generator, estimator: str
    ) -> None:
        # Each beside an ordinary row and one of two values.
        ordinary = rng.standard_normal((len(NOT_FINITE), 9))
        levels = rng.integers(0, 2, (len(NOT_FINITE), 9))
        rewards = np.stack([ordinary, NOT_FINITE, levels], 1).reshape(-1, 9).astype(np.float32)
        out = subject.transform(subject.array(rewards), 3, estimator=estimator)
        assert np.isnan(out[1::3]).all()
        finite = np.arange(len(rewards)) % 3 != 1
        want = expected(rewards[finite].astype(np.float64), 3, estimator=estimator)
        np.testing.assert_allclose(out[finite], want, rtol=5e-6, atol=2e-6)

    @pytest.mark.essential
    @pytest.mark.parametrize("undersized", ["zero", "nan", "clip"])
    def test_what_is_left_out_of_a_row_that_is_not_finite(
        self, subject: Subject, undersized: str
    ) -> None:
        rewards = np.concatenate([NOT_FINITE, NOT_FINITE]).astype(np.float32)
        # First only what is finite stays, then what is not stays too.
        where = np.abs(rewards) < 10
        where[len(NOT_FINITE) :] = True
        where[len(NOT_FINITE) :, 1:3] = False
        options: dict[str, Any] = {"where": where, "undersized": undersized}
        k = np.full(len(rewards), 5)
        want = expected(rewards, k, **options)
        assert np.isnan(want[len(NOT_FINITE) :][:, [0, 3, 8]]).all()
        got = subject.transform(
            subject.array(rewards), k, where=subject.array(where), undersized=undersized
        )
        np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-6)
        assert not got[~where].any()

    @pytest.mark.essential
    def test_max_at_k_of_rows_that_are_not_finite(self, subject: Subject) -> None:
        rewards = np.concatenate([NOT_FINITE, [[1.0, 2, 3, 4, 5, 6, 7, 8, 9]]]).astype(np.float32)
        best = subject.max_at_k(subject.array(rewards), [1, 2, 9])
        assert np.isnan(best[:-1]).all()
        np.testing.assert_allclose(best[-1], [5, 20 / 3, 9], rtol=1e-6)
        where = np.abs(rewards) < 10
        best = subject.max_at_k(subject.array(rewards), [1, 2, 9], where=subject.array(where))
        want = pk.max_at_k(rewards, [1, 2, 9], where=where, implementation="reference")
        np.testing.assert_allclose(best, want, rtol=1e-6)

    @pytest.mark.essential
    def test_the_range_is_judged_in_the_precision_of_the_rewards(self, subject: Subject) -> None:
        import jax

        rewards = np.array([[LARGEST, -LARGEST, 0.0, 1.0]])
        assert np.isnan(subject.transform(subject.array(rewards, "float32"), 2)).all()
        if not subject.serves_float64:
            return
        with jax.enable_x64(True):
            out = subject.transform(subject.array(rewards, "float64"), 2)
            np.testing.assert_allclose(out, expected(rewards, 2), rtol=1e-12)
            largest = float(np.finfo(np.float64).max)
            rewards = np.array([[largest, -largest, 0, 1], [largest, largest / 2, 0, 1]])
            out = subject.transform(subject.array(rewards, "float64"), 2, estimator="centered")
            want = expected(rewards, 2, estimator="centered")
            np.testing.assert_allclose(out, want, rtol=1e-12, atol=1e-14 * largest)
            assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()

    def test_signed_zeros_and_subnormals(self, subject: Subject) -> None:
        rewards = np.array([[0.0, -0.0, 0.0, -0.0, 1.0]], np.float32)
        out = subject.transform(subject.array(rewards), 2)
        assert not out[0, :4].any() and out[0, 4] > 0
        tiny = np.array([[3e-39, 1e-39, 2e-39, 1e-39]], np.float32)
        out = subject.transform(subject.array(tiny), 2)
        # Some flush what is below the normal numbers to 0, but nothing changes its order.
        assert (np.diff(out[0][[1, 3, 2, 0]]) >= 0).all() and out[0, 1] == out[0, 3]
        np.testing.assert_allclose(out, expected(tiny, 2), rtol=0, atol=2**-126)
        if subject.serves_float64 and subject.library.keeps_subnormals:
            out = subject.transform(subject.array([[3e-320, 1e-320, 2e-320]]), 2)
            np.testing.assert_array_equal(np.argsort(out[0]), [1, 2, 0])

    @pytest.mark.parametrize("scale", ["sum", "mean"])
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_rewards_as_large_as_they_get(
        self, subject: Subject, estimator: str, scale: str
    ) -> None:
        if scale == "mean" and pk.ESTIMATORS[estimator].normalized:
            pytest.skip("is a mean already")
        is_chosen = (estimator, scale) in (("sloo", "sum"), ("s", "mean"))
        if subject.compiles_step_by_step and not is_chosen:
            pytest.skip("the same kernel, and other numbers")
        # In units of the largest float32, with finite ranges.
        units = [[1, 0, 1, 0.5], [0.5, -0.5, 0.3, 0.2], [1, 0.9, 0.8, 0.7], [-0.9, -0.9, -0.1, 0]]
        rewards = (LARGEST * np.array(units)).astype(np.float32)
        options: dict[str, Any] = {"estimator": estimator, "scale": scale}
        for k in (1, 2, 3):
            got = subject.transform(subject.array(rewards), k, **options)
            want = expected(rewards.astype(np.float64), k, **options)
            size = np.abs(want).max()
            # Where the exact result is the largest float, a rounding may go beyond it.
            at_the_edge = np.isclose(np.abs(want), LARGEST, rtol=2e-6, atol=0)
            beyond = np.where(at_the_edge, np.isinf(got), np.abs(want) > LARGEST)
            want = np.where(beyond, np.copysign(INF, want), want)
            np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-7 * size)

    @pytest.mark.essential
    def test_only_results_overflow(self, subject: Subject) -> None:
        rewards = subject.array([[3.06e38, 1.2e-38]], "bfloat16")
        out = subject.transform(rewards, 1, estimator="sloo")
        np.testing.assert_allclose(out, [[1.53e38, -3.06e38]], rtol=0.01)
        rewards = subject.array([[60000.0, 0, 0, 0]], "float16")
        out = subject.transform(rewards, 3, estimator="centered", scale="mean")
        np.testing.assert_allclose(out, [[INF, -60000, -60000, -60000]], rtol=1e-3)
