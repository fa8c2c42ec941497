"""What follows from the definitions, and to the last bit where it can."""

from __future__ import annotations

import numpy as np
import pytest
from expected import ESTIMATORS, OFFSET_BLIND, expected
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from subjects import Subject, rewards_of_every_kind

import pkpo_kernels as pk

# Every subject draws rewards of its own.
_SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]


class TestProperties:
    @pytest.mark.costly("few")
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_permuting_samples_permutes_results_bit_for_bit(
        self, subject: Subject, rng: np.random.Generator, estimator: str
    ) -> None:
        rewards = rewards_of_every_kind(rng, 33)
        permutation = rng.permutation(33)
        array = subject.array(rewards, "float32")
        there = subject.transform(array, 5, estimator=estimator)
        # In the same layout: another is another kernel to a GPU, whose last bits may differ.
        permuted = subject.array(np.ascontiguousarray(rewards[:, permutation]), "float32")
        back = subject.transform(permuted, 5, estimator=estimator)
        if subject.adds_in_order_of_samples:
            np.testing.assert_allclose(back, there[:, permutation], rtol=1e-5, atol=1e-12)
        else:
            np.testing.assert_array_equal(back, there[:, permutation])

    @pytest.mark.essential
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("n", [16, pytest.param(1025, marks=pytest.mark.costly("few"))])
    def test_equal_rewards_get_equal_bits(
        self, subject: Subject, rng: np.random.Generator, estimator: str, n: int
    ) -> None:
        if subject.adds_in_order_of_samples:
            pytest.skip("adds up in the order of the samples")
        levels = np.float32(rng.standard_normal(7))
        rewards = levels[rng.integers(0, 7, (3, n))]
        out = subject.transform(subject.array(rewards), 4, estimator=estimator)
        for row, result in zip(rewards, out, strict=True):
            for level in np.unique(row):
                assert len(np.unique(result[row == level])) == 1

    @pytest.mark.essential
    @pytest.mark.parametrize("estimator", OFFSET_BLIND)
    @pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e30, 3e-39])
    def test_a_constant_row_gets_exactly_zero(
        self, subject: Subject, estimator: str, value: float
    ) -> None:
        rewards = np.full((2, 11), value, np.float32)
        for k in (1, 2, 10):
            out = subject.transform(subject.array(rewards), k, estimator=estimator)
            if subject.adds_in_order_of_samples:
                assert np.abs(out).max() <= 1e-13 * abs(value)
            else:
                assert not out.any() and not np.signbit(out).any()

    @pytest.mark.parametrize("estimator", OFFSET_BLIND)
    def test_a_common_offset_drops_out(self, subject: Subject, estimator: str) -> None:
        # Quarters plus a power of two stay exact in float32.
        rewards = np.arange(24, dtype=np.float32).reshape(2, 12) * 7 % 11 / 4
        plain = subject.transform(subject.array(rewards), 3, estimator=estimator)
        shifted = subject.transform(subject.array(rewards + 4096), 3, estimator=estimator)
        if subject.adds_in_order_of_samples:
            np.testing.assert_allclose(shifted, plain, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(shifted, plain)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_scaling_rewards_scales_results(
        self, subject: Subject, rng: np.random.Generator, estimator: str
    ) -> None:
        rewards = rng.standard_normal((3, 10)).astype(np.float32)
        plain = subject.transform(subject.array(rewards), 4, estimator=estimator)
        scaled = subject.transform(subject.array(rewards * 2**20), 4, estimator=estimator)
        factor = 1 if pk.ESTIMATORS[estimator].normalized else 2**20
        np.testing.assert_allclose(scaled, plain * factor, rtol=1e-6, atol=1e-7)

    def test_k_1_is_leave_one_out(self, subject: Subject, rng: np.random.Generator) -> None:
        rewards = rng.standard_normal((4, 6)).astype(np.float32)
        others = (rewards.sum(-1, keepdims=True) - rewards) / 5
        out = subject.transform(subject.array(rewards), 1)
        np.testing.assert_allclose(out, (rewards - others) / 6, atol=1e-6)
        plain = subject.transform(subject.array(rewards), 1, estimator="s")
        np.testing.assert_allclose(plain, rewards / 6, atol=1e-6)

    def test_k_n_gives_the_best_its_lead(self, subject: Subject, rng: np.random.Generator) -> None:
        rewards = rng.standard_normal((4, 6)).astype(np.float32)
        ordered = np.sort(rewards)
        lead = (ordered[:, -1:] - ordered[:, -2:-1]) * (rewards == ordered[:, -1:])
        out = subject.transform(subject.array(rewards), 6)
        np.testing.assert_allclose(out, lead, rtol=1e-6)

    @pytest.mark.costly("few", "ptx")
    def test_chances_that_vanish_leave_nothing_to_divide_by(self, subject: Subject) -> None:
        # 114 wrong samples: that the best of 99 is one of them has a chance of about 1e-44.
        rewards = np.zeros((2, 216))
        rewards[:, :102] = 1
        want = expected(rewards, 99, estimator="passk_training")
        assert 0 < np.abs(want).max() < 1e-20
        for dtype in ("float32", "bool"):
            given = subject.array(rewards, dtype)
            got = subject.transform(given, 99, estimator="passk_training")
            np.testing.assert_allclose(got, want, atol=1e-6)

    def test_a_group_of_one(self, subject: Subject) -> None:
        rewards = subject.array([[2.0], [-3.0]], "float32")
        assert not subject.transform(rewards, 1).any()
        np.testing.assert_array_equal(subject.transform(rewards, 1, estimator="s")[:, 0], [2, -3])
        np.testing.assert_array_equal(subject.max_at_k(rewards, 1), [2, -3])

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_identities(self, subject: Subject, rng: np.random.Generator, estimator: str) -> None:
        rewards = rng.standard_normal((5, 12)).astype(np.float32)
        out = subject.transform(subject.array(rewards), 4, estimator=estimator)
        if estimator == "s":
            best = subject.max_at_k(subject.array(rewards), 4)
            np.testing.assert_allclose(out.sum(-1), 4 * best, rtol=1e-5)
        elif estimator in ("centered", "passk_training"):
            np.testing.assert_allclose(out.sum(-1), 0, atol=1e-5)
        elif estimator == "sloo":
            best = subject.max_at_k(subject.array(rewards), 4)
            np.testing.assert_allclose(out.sum(-1), -4 / 11 * best, rtol=1e-5, atol=1e-6)
        else:
            assert estimator == "sloo_minus_one"
            assert (out >= 0).all()

    @pytest.mark.costly("few")
    def test_repeats_bit_for_bit(self, subject: Subject, rng: np.random.Generator) -> None:
        rewards = subject.array(rng.standard_normal(subject.matrix).astype(np.float32))
        first = subject.transform(rewards, 7)
        for _ in range(3):
            np.testing.assert_array_equal(subject.transform(rewards, 7), first)

    @pytest.mark.costly("few")
    @settings(max_examples=40, deadline=None, suppress_health_check=_SUPPRESSED)
    @given(data=st.data())
    def test_any_rewards_match_the_reference(self, subject: Subject, data: st.DataObject) -> None:
        shapes = [(1, 2), (3, 5), (2, 9)]
        rows, n = data.draw(st.sampled_from(shapes[1:2] if subject.compiles_programs else shapes))
        number = st.one_of(
            st.floats(-1e6, 1e6, width=32), st.integers(-2, 2).map(float), st.just(-0.0)
        )
        row = st.lists(number, min_size=n, max_size=n)
        rewards = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)), np.float32)
        where = np.array(
            data.draw(
                st.lists(
                    st.lists(st.booleans(), min_size=n, max_size=n), min_size=rows, max_size=rows
                )
            )
        )
        estimator = data.draw(st.sampled_from(["sloo_minus_one", "s", "sloo"]))
        k = data.draw(st.integers(1, pk.ESTIMATORS[estimator].largest_k(n)))
        got = subject.transform(
            subject.array(rewards), k, estimator=estimator, where=subject.array(where)
        )
        want = expected(rewards.astype(np.float64), k, estimator=estimator, where=where)
        np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-6 * np.abs(rewards).max() + 1e-37)
