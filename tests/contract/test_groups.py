"""Flat rewards with ids of groups: every implementation gives each group what it gets alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from expected import ESTIMATORS, expected
from numpy.typing import NDArray
from subjects import Subject

import pkpo_kernels as pk

Values = NDArray[Any]


class Batch:
    """Entries of ragged groups in any order, some left out, some not scored."""

    def __init__(self, rng: np.random.Generator, n_groups: int = 12, largest: int = 9) -> None:
        sizes = [1, 2, largest, *rng.integers(1, largest, n_groups - 3)]
        self.ids = rng.permutation(np.repeat(rng.permutation(1000)[:n_groups] - 500, sizes))
        self.rewards = rng.standard_normal(len(self.ids)).astype(np.float32)
        self.rewards[rng.random(len(self.ids)) < 0.3] = 0.5  # ties
        self.where = rng.random(len(self.ids)) < 0.85
        # What is left out must not matter.
        self.rewards[~self.where] = np.resize([np.nan, np.inf, 7.0], (~self.where).sum())
        self.where[self.ids == self.ids[0]] = False  # a group with no sample at all
        self.rewards[np.flatnonzero(self.where)[::11]] = np.nan
        self.valid = self.where & ~np.isnan(self.rewards)

    def groups(self) -> list[Values]:
        """The indices of each group's valid samples."""
        found = [np.flatnonzero(self.valid & (self.ids == one)) for one in np.unique(self.ids)]
        return [index for index in found if len(index)]

    def alone(
        self, k: int | Values, scale: str | float, rewards: Values | None = None, **options: Any
    ) -> Values:
        """Every group by the float64 reference, by itself."""
        rewards = self.rewards if rewards is None else rewards
        out = np.zeros(len(rewards))
        for index in self.groups():
            of_group = k if isinstance(k, int) else int(k[index[0]])
            row, always = rewards[None, index].astype(np.float64), np.ones((1, len(index)), bool)
            (got,) = expected(row, np.array([of_group]), where=always, **options)
            out[index] = got * self.factor(scale, len(index), options["estimator"])
        return out

    def factor(self, scale: str | float, size: int, estimator: str) -> float:
        if scale == "batch_mean":
            own = size if pk.ESTIMATORS[estimator].normalized else 1
            return len(self.ids) / len(self.groups()) / own
        return {"sum": 1.0, "mean": float(size)}[scale] if isinstance(scale, str) else scale


def check(got: Values, want: Values, batch: Batch, estimator: str, k: Any) -> None:
    """Compare with what groups get alone, as closely as is promised."""
    for index in batch.groups():
        result, right = got[index], want[index]
        if estimator == "sloo_minus_one" and np.min(k) >= 2:
            np.testing.assert_allclose(result, right, rtol=5e-6)
        size = max(np.abs(batch.rewards[index]).max(), np.nanmax(np.abs(right), initial=0))
        np.testing.assert_allclose(result, right, atol=2e-6 * size, rtol=0)
    assert not got[~batch.valid].any()


class TestGroups:
    @pytest.mark.essential
    @pytest.mark.parametrize("scale", ["sum", "mean", "batch_mean", 2.5])
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_each_gets_what_it_gets_alone(
        self, subject: Subject, rng: np.random.Generator, estimator: str, scale: Any
    ) -> None:
        if scale == "mean" and pk.ESTIMATORS[estimator].normalized:
            pytest.skip("is a mean already")
        batch = Batch(rng)
        for k in (1, 2, 5):
            options: dict[str, Any] = {"estimator": estimator, "scale": scale}
            got = subject.transform_groups(
                batch.rewards, batch.ids, k, where=batch.where, **options
            )
            check(got, batch.alone(k, **options), batch, estimator, k)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("undersized", ["zero", "nan", "clip"])
    def test_a_k_for_each_entry(
        self, subject: Subject, rng: np.random.Generator, undersized: str, estimator: str
    ) -> None:
        batch = Batch(rng)
        k = rng.integers(1, 7, 2000)[batch.ids + 500]
        options: dict[str, Any] = {"estimator": estimator, "undersized": undersized}
        got = subject.transform_groups(
            batch.rewards, batch.ids, k, where=batch.where, scale="sum", **options
        )
        check(got, batch.alone(k, "sum", **options), batch, estimator, 1)

    def test_alone_to_the_bit(self, subject: Subject, rng: np.random.Generator) -> None:
        if subject.implementation != "numpy":
            pytest.skip("is promised of NumPy")
        batch = Batch(rng, 40)
        for estimator in ESTIMATORS:
            for k in (1, 3):
                got = subject.transform_groups(
                    batch.rewards, batch.ids, k, where=batch.where, scale="sum", estimator=estimator
                )
                for index in batch.groups():
                    if k <= pk.ESTIMATORS[estimator].largest_k(len(index)):
                        alone = pk.transform(batch.rewards[index], k, estimator=estimator)
                        np.testing.assert_array_equal(got[index], alone)

    def test_blocks(self, subject: Subject, rng: np.random.Generator) -> None:
        rewards = rng.standard_normal((6, 5)).astype(np.float32)
        where = rng.random((6, 5)) < 0.8
        got = subject.transform_groups(rewards.reshape(-1), 5, 2, where=where.reshape(-1))
        want = expected(rewards.astype(np.float64), 2, where=where) * 30 / where.any(-1).sum()
        np.testing.assert_allclose(got.reshape(6, 5), want, rtol=5e-6, atol=2e-6)
        # Too large a k is no error, here either.
        assert not subject.transform_groups(rewards.reshape(-1), 5, 6).any()

    def test_a_mask_of_tokens(self, subject: Subject, rng: np.random.Generator) -> None:
        batch = Batch(rng)
        tokens = np.zeros((len(batch.ids), 4), np.int32)
        tokens[batch.where, rng.integers(0, 4)] = 1
        got = subject.transform_groups(batch.rewards, batch.ids, 2, where=tokens)
        check(
            got,
            batch.alone(2, "batch_mean", estimator="sloo_minus_one"),
            batch,
            "sloo_minus_one",
            2,
        )

    def test_order_and_names_do_not_matter(
        self, subject: Subject, rng: np.random.Generator
    ) -> None:
        batch = Batch(rng)
        want = subject.transform_groups(batch.rewards, batch.ids, 3, where=batch.where)
        order = rng.permutation(len(want))
        got = subject.transform_groups(
            batch.rewards[order], 700 - batch.ids[order], 3, where=batch.where[order]
        )
        check(got[np.argsort(order)], want, batch, "sloo_minus_one", 3)
        again = subject.transform_groups(batch.rewards, batch.ids, 3, where=batch.where)
        np.testing.assert_array_equal(again, want)

    @pytest.mark.costly("few")
    def test_equal_rewards_get_equal_bits(self, subject: Subject, rng: np.random.Generator) -> None:
        ids = rng.permutation(np.repeat([3, 8], [100, 60]))
        rewards = rng.integers(0, 5, 160).astype(np.float32) / 3
        got = subject.transform_groups(rewards, ids, 7)
        for one in (3, 8):
            for reward in np.unique(rewards):
                assert len(np.unique(got[(ids == one) & (rewards == reward)])) == 1

    def test_samples_of_several_entries(self, subject: Subject, rng: np.random.Generator) -> None:
        # In group 0 sample 1 has three entries, sample 2 one without a score behind a scored one,
        # and sample 3 no score at all; group 1 has the same names for samples of its own.
        groups = np.array([0, 0, 0, 1, 0, 0, 1, 0, 1, 0])
        samples = np.array([1, 1, 2, 1, 1, 2, 2, 4, 3, 3])
        rewards = np.array([9, 9, 2, 1, 0.5, np.nan, 0, 0, 3, np.nan], np.float32)
        where = np.array([1, 0, 1, 1, 1, 1, 1, 1, 1, 1], bool)
        first, second = expected(np.array([[0.5, 2, 0.0], [1, 0, 3]]), 2)
        want = np.array(
            [
                first[0],
                0,
                first[1],
                second[0],
                first[0],
                first[1],
                second[1],
                first[2],
                second[2],
                0,
            ]
        )
        got = subject.transform_groups(
            rewards, groups, 2, samples=samples, where=where, scale="sum"
        )
        np.testing.assert_allclose(got, want, rtol=5e-6)
        got = subject.transform_groups(rewards, groups, 2, samples=samples, where=where)
        np.testing.assert_allclose(got, want * 10 / 2, rtol=5e-6)

    @pytest.mark.parametrize("estimator", ["sloo_minus_one", "passk_training"])
    def test_what_is_not_finite_stays_in_its_group(
        self, subject: Subject, rng: np.random.Generator, estimator: str
    ) -> None:
        ids = rng.permutation(np.repeat(np.arange(6), 5))
        rewards = rng.standard_normal(30).astype(np.float32)
        want = subject.transform_groups(rewards, ids, 2, estimator=estimator)
        rewards[np.flatnonzero(ids == 1)[2]] = np.inf
        rewards[np.flatnonzero(ids == 4)[:2]] = [3e38, -3e38]
        rewards[np.flatnonzero(ids == 5)[3]] = np.nan
        got = subject.transform_groups(rewards, ids, 2, estimator=estimator, nan="propagate")
        touched = np.isin(ids, (1, 4, 5))
        assert np.isnan(got[touched]).all()
        np.testing.assert_allclose(got[~touched], want[~touched], rtol=5e-6)
        # NaN wins over a group that is too small.
        assert np.isnan(subject.transform_groups(rewards, ids, 6, nan="propagate")[touched]).all()

    def test_no_entries_and_no_samples(self, subject: Subject) -> None:
        nothing = np.zeros(0, np.float32)
        assert subject.transform_groups(nothing, np.zeros(0, np.int64), 3).shape == (0,)
        assert subject.transform_groups(nothing, 4, 3).shape == (0,)
        rewards, ids = np.ones(4, np.float32), np.array([1, 1, 2, 2])
        for estimator in ("sloo_minus_one", "passk_training"):
            left_out = np.zeros(4, bool)
            assert not subject.transform_groups(
                rewards, ids, 1, where=left_out, estimator=estimator
            ).any()
            assert not subject.transform_groups(rewards, ids, 3, estimator=estimator).any()

    @pytest.mark.costly("few", "ptx")
    def test_one_group_of_all(self, subject: Subject, rng: np.random.Generator) -> None:
        rewards = rng.standard_normal(subject.matrix[1]).astype(np.float32)
        ids = np.zeros(len(rewards), np.int64)
        got = subject.transform_groups(rewards, ids, 11, scale="sum")
        np.testing.assert_allclose(got, expected(rewards[None].astype(float), 11)[0], rtol=5e-6)
