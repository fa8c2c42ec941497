"""What every implementation computes is what the definitions say, whatever n and k."""

from __future__ import annotations

import numpy as np
import pytest
from expected import ESTIMATORS, admitted_ks, expected
from subjects import Subject, rewards_of_every_kind

import pkpo_kernels as pk
from pkpo_kernels.maths import reference

# Every k of these is checked against all subsets; the first is what some subjects are asked alone.
ENUMERATED_N = (6, 1, 2, 3, 4)

# (rows, n) checked against the reference: around powers of two, odd counts, one row, one sample.
REFERENCE = ((3, 8), (1, 1), (2, 257), (2, 1024), (3, 7), (17, 33))


def ks_for(n: int) -> tuple[int, ...]:
    """Choose ks that matter for n: the ends, the usual ones, the middle."""
    return tuple(sorted({1, min(2, n), min(3, n), min(8, n), max(1, n // 2), max(1, n - 1), n}))


class TestAgainstTheDefinitions:
    @pytest.mark.essential
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("n", ENUMERATED_N)
    def test_transform_is_the_enumeration(
        self, subject: Subject, rng: np.random.Generator, estimator: str, n: int
    ) -> None:
        rewards = rewards_of_every_kind(rng, n)
        for k in admitted_ks(estimator, range(1, n + 1), n):
            want = [reference.ENUMERATIONS[estimator](row, k) for row in rewards]
            got = subject.transform(subject.array(rewards, "float32"), k, estimator=estimator)
            # Rewards near 100 leave "s" and "sloo" with results of that size.
            np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6 if n > 1 else 0)

    @pytest.mark.essential
    def test_a_normalized_estimator_is_the_enumeration(
        self, subject: Subject, rng: np.random.Generator
    ) -> None:
        rewards = rewards_of_every_kind(rng, 6)
        want = [reference.ENUMERATIONS["passk_training"](row, 3) for row in rewards]
        got = subject.transform(subject.array(rewards, "float32"), 3, estimator="passk_training")
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)

    @pytest.mark.essential
    @pytest.mark.parametrize("n", ENUMERATED_N)
    def test_max_at_k_is_the_enumeration(
        self, subject: Subject, rng: np.random.Generator, n: int
    ) -> None:
        rewards = rewards_of_every_kind(rng, n)
        ks = list(range(1, n + 1))
        want = [[reference.enumerate_max_at_k(row, k) for k in ks] for row in rewards]
        got = subject.max_at_k(subject.array(rewards, "float32"), ks)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)

    @pytest.mark.essential
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("rows, n", REFERENCE)
    def test_transform_is_the_reference(
        self, subject: Subject, rng: np.random.Generator, estimator: str, rows: int, n: int
    ) -> None:
        if subject.is_oracle:
            pytest.skip("is what this compares with")
        rewards = rng.standard_normal((rows, n)).astype(np.float32)
        is_chosen = estimator in ("sloo_minus_one", "passk_training")
        if subject.compiles_step_by_step and n > 1000 and not is_chosen:
            pytest.skip("the same kernel, and other numbers: see 257")
        ks = {*subject.some(ks_for(n), n)}
        if pk.ESTIMATORS[estimator].normalized:
            ks.add(n)  # by the deviation of the best of n, which has none
        for k in admitted_ks(estimator, ks, n):
            want = expected(rewards.astype(np.float64), k, estimator=estimator)
            got = subject.transform(subject.array(rewards), k, estimator=estimator)
            np.testing.assert_allclose(got, want, rtol=5e-6, atol=2e-6 * np.abs(want).max())

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_float64_is_computed_in_float64(
        self, subject: Subject, rng: np.random.Generator, estimator: str
    ) -> None:
        import jax

        rewards = rewards_of_every_kind(rng, 9)
        with jax.enable_x64(True):
            if not subject.serves_float64:
                with pytest.raises(ValueError, match=r"compute in float32 .* float64; take '"):
                    subject.transform(subject.array(rewards), 1, estimator=estimator)
                return
            for k in (1, 4, 8):
                got = subject.transform(subject.array(rewards), k, estimator=estimator)
                want = expected(rewards, k, estimator=estimator)
                np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)

    @pytest.mark.costly("few")
    @pytest.mark.parametrize("n", [1000, pytest.param(16384, marks=pytest.mark.slow)])
    def test_sloo_minus_one_is_accurate_component_by_component(
        self, subject: Subject, rng: np.random.Generator, n: int
    ) -> None:
        if subject.is_oracle:
            pytest.skip("is what this compares with")
        # The second row far from 0: what it has lost is lost in the input, not here.
        offset = np.array([[0.0], [1e4]])
        rewards = (rng.standard_normal((2, n)) + offset).astype(np.float32)
        # The oracle's integers have some k bits: for n / 2 of 16384 it takes a minute.
        for k in subject.some((2, 8, min(n // 2, 1000), n), n):
            want = expected(rewards.astype(np.float64), k)
            got = subject.transform(subject.array(rewards), k)
            # Each term below float32's normal numbers may be lost, and a value has up to n of them.
            np.testing.assert_allclose(got, want, rtol=5e-6, atol=n * 2.0**-126)
