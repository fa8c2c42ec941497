"""What trainers log of a step's rewards."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pkpo_kernels as pk

RNG = np.random.default_rng(7)
N = 60
REWARDS, IDS = RNG.standard_normal(N).astype(np.float32), RNG.integers(0, 8, N)


class TestMetrics:
    def rewards(self) -> np.ndarray[Any, Any]:
        rewards = (np.random.default_rng(1).random((30, 8)) < 0.3).astype(np.float32)
        rewards[:3] = 0
        rewards[3] = [1, 1, 1, 1, 1, 1, 1, 0]  # differs, and yet no signal at k=4
        return rewards

    def test_they_are_what_they_are_called(self) -> None:
        rewards = self.rewards()
        got = pk.group_metrics(rewards, [1, 4], k=4)
        assert set(got) == {
            *("pass@1", "max@1", "pass@4", "max@4", "groups", "signal", "undersized"),
            *("group_size_min", "group_size_mean", "group_size_max"),
            *("advantage_abs_mean", "advantage_abs_max"),
        }
        for k in (1, 4):
            right = pk.max_at_k(rewards.astype(float), k).mean()
            assert got[f"pass@{k}"] == pytest.approx(right)
            assert got[f"max@{k}"] == pytest.approx(right, rel=1e-6)
        advantages = pk.transform(rewards, 4)
        assert got["signal"] == pytest.approx(advantages.any(-1).mean())
        assert got["signal"] < (rewards.std(-1) > 0).mean()
        assert got["advantage_abs_mean"] == pytest.approx(np.abs(advantages).mean(), rel=1e-6)
        assert got["advantage_abs_max"] == pytest.approx(np.abs(advantages).max())
        assert got["undersized"] == 0 and got["groups"] == 30 and got["group_size_max"] == 8

    def test_ragged_groups_and_what_is_left_out(self) -> None:
        rewards = [0.0, 1.0, 0.0, 0.0, 3.0, 2.0, np.nan, 9.0]
        ids = ["a", "b", "a", "a", "b", "c", "b", "a"]
        where = np.array([1, 1, 1, 1, 1, 1, 1, 0], bool)
        got = pk.group_metrics(rewards, [1, 2, 4], groups=ids, where=where, k=2)
        assert got["max@1"] == pytest.approx((0 + 2 + 2) / 3)
        assert got["max@2"] == pytest.approx((0 + 3) / 2)  # "c" is too small
        assert got["pass@2"] == pytest.approx(1 / 2)
        assert np.isnan(got["pass@4"])
        assert (got["groups"], got["group_size_min"], got["group_size_max"]) == (3, 1, 3)
        assert got["group_size_mean"] == pytest.approx(2)
        assert got["undersized"] == pytest.approx(1 / 3)
        assert got["signal"] == pytest.approx(1 / 3)

    def test_of_what_is_trained_with(self) -> None:
        # sloo needs k < n: no group of two has a signal at k = 2.
        options: dict[str, Any] = {"groups": 2, "k": 2}
        got = pk.group_metrics([0.0, 1.0, 2.0, 5.0], [1], estimator="sloo", **options)
        assert (got["signal"], got["undersized"], got["advantage_abs_max"]) == (0, 1, 0)
        got = pk.group_metrics([0.0, 1.0, 2.0, 5.0], [1], scale="sum", **options)
        assert got["advantage_abs_max"] == pytest.approx(3)

    def test_samples_of_several_entries(self) -> None:
        rewards, groups, samples = [9.0, 1.0, 0.0, 5.0, 0.0], [0, 0, 0, 1, 1], [1, 1, 2, 1, 1]
        for array in (np.asarray, torch.tensor, jnp.asarray):
            given = array(rewards), array(groups), array(samples)
            got = pk.group_metrics(given[0], [1], groups=given[1], samples=given[2], k=2)
            assert float(got["max@1"]) == pytest.approx((0.5 + 0) / 2)
            assert float(got["group_size_mean"]) == pytest.approx(1.5)
            assert float(got["advantage_abs_mean"]) == pytest.approx(5 / 2 / 3)

    @pytest.mark.filterwarnings("error")
    def test_nothing_at_all(self) -> None:
        full = set(pk.group_metrics(np.ones((2, 2)), [1], k=1))
        for rewards in (np.full((2, 2), np.nan), np.zeros((0, 2))):
            for array in (np.asarray, torch.tensor, jnp.asarray):
                got = pk.group_metrics(array(rewards), [1], k=1)
                assert set(got) == full and float(got["groups"]) == 0
                assert np.isnan([float(got[name]) for name in full - {"groups"}]).all(), got

    def test_on_devices_and_in_programs(self) -> None:
        rewards = self.rewards()
        want = pk.group_metrics(rewards, [4], k=4)
        order = np.random.default_rng(0).permutation(rewards.size)
        flat, ids = rewards.reshape(-1)[order], (np.arange(rewards.size) // 8)[order]
        summed = partial(pk.group_metrics, scale="sum")
        found = [
            pk.group_metrics(torch.from_numpy(rewards), [4], k=4),
            summed(torch.from_numpy(flat), [4], groups=ids, k=torch.tensor(4)),
            jax.jit(lambda x, i, k: summed(x, [4], groups=i, k=k))(flat, ids, 4),
        ]
        for got in found:
            assert set(got) == set(want)
            for key, right in want.items():
                assert got[key].shape == ()
                assert float(got[key]) == pytest.approx(right, rel=2e-6), key

    def test_wrong_arguments(self) -> None:
        with pytest.raises(ValueError, match=r"rewards must be .* pass groups="):
            pk.group_metrics(np.zeros(4), [1])
        with pytest.raises(ValueError, match=r"ks\[1\] must be at least 1; got 0"):
            pk.group_metrics(np.zeros((2, 4)), [1, 0])
        with pytest.raises(ValueError, match=r"samples in every row; got shape \(3, 0\)"):
            pk.group_metrics(np.zeros((3, 0)), [1])

    def test_counts_are_right_whatever_the_default_dtype_is(self) -> None:
        ids = torch.arange(2408) // 8
        try:
            for dtype in (torch.bfloat16, torch.float16):
                torch.set_default_dtype(dtype)
                got = pk.group_metrics((ids % 5 == 0).float(), [1], groups=ids)
                assert got["groups"] == 301 and got["group_size_max"] == 8
                assert float(got["pass@1"]) == pytest.approx(61 / 301)
        finally:
            torch.set_default_dtype(torch.float32)

    def test_shares_of_groups_are_whole_numbers_of_them(self) -> None:
        rewards = [float(i == 0) for n in (3, 5, 6, 7) for i in range(n)]
        ids = [n for n in (3, 5, 6, 7) for _ in range(n)]
        assert pk.group_metrics(rewards, [1], groups=ids, k=2)["signal"] == 1

    def test_a_k_beyond_all_integers(self) -> None:
        for array in (np.asarray, torch.tensor, jnp.asarray):
            got = pk.group_metrics(array([1.0, 2.0]), [10**30], groups=2)
            assert np.isnan(float(got[f"pass@{10**30}"]))

    @pytest.mark.filterwarnings("error")
    def test_means_of_numbers_whose_sum_overflows(self) -> None:
        rewards = np.zeros((12, 4), np.float32)
        rewards[:, 1], rewards[::3] = 3e38, -3e38
        options: dict[str, Any] = {"k": 2, "estimator": "s"}
        exact = rewards.astype(np.float64)
        want = {
            "max@1": exact.mean(),
            "max@4": exact.max(-1).mean(),
            "advantage_abs_mean": np.abs(pk.transform(exact, **options)).mean(),
        }
        metrics = partial(pk.group_metrics, ks=[1, 4], **options)
        tensor, array = torch.from_numpy(rewards), jnp.asarray(rewards)
        compiled = torch.compile(metrics, backend="eager", fullgraph=True)
        for got in (
            *(metrics(rewards), metrics(tensor), metrics(array)),
            *(compiled(tensor), jax.jit(metrics)(array)),
        ):
            assert {name: float(got[name]) for name in want} == pytest.approx(want, rel=2e-6)
        large = metrics(np.where(rewards > 0, 1.7e308, exact))
        assert large["max@4"] == pytest.approx(1.7e308 / 12 * 8)

    def test_torch_compiles_them_whole(self) -> None:
        call = torch.compile(
            lambda x: pk.group_metrics(x, [2], groups=4, k=2), backend="eager", fullgraph=True
        )
        rewards = torch.rand(16)
        want = pk.group_metrics(rewards, [2], groups=4, k=2)
        for key, got in call(rewards).items():
            assert float(got) == pytest.approx(float(want[key]), rel=2e-6), key

    def test_a_group_too_small_for_k_has_no_say_in_max_at_k(self) -> None:
        got = pk.group_metrics([np.inf, 1.0, 2.0, 5.0], [2], groups=[0, 1, 1, 1])
        assert got["max@2"] == pytest.approx((2 + 5 + 5) / 3)

    @pytest.mark.slow
    def test_metrics_take_every_k(self) -> None:
        want = pk.group_metrics(REWARDS, [2], groups=IDS, k=3)
        for array in (np.asarray, torch.tensor, jnp.asarray):
            for k in ([3] * N, np.full(N, 3), array([3] * N)):
                got = pk.group_metrics(array(REWARDS), [2], groups=IDS, k=k)
                assert float(got["undersized"]) == pytest.approx(want["undersized"])
        got = pk.group_metrics(torch.from_numpy(REWARDS), [2], groups=IDS, k=torch.tensor(0))
        assert float(got["undersized"]) == 1
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            got = pk.group_metrics(jnp.asarray(REWARDS), [2], groups=jnp.asarray(IDS), k=3)
        assert float(got["signal"]) == pytest.approx(want["signal"])


def test_a_matrix_is_taken_as_transform_takes_it() -> None:
    """Its axis, and its scale."""
    rewards = REWARDS.reshape(6, 10)
    for array in (rewards, torch.from_numpy(rewards), jnp.asarray(rewards)):
        got = pk.group_metrics(array.T, [2], k=3, axis=0, where=array.T > -1)
        want = pk.group_metrics(rewards, [2], k=3, where=rewards > -1)
        assert {name: float(x) for name, x in got.items()} == pytest.approx(want, rel=1e-5)
    trained = np.abs(pk.transform(rewards, 3)).max()
    assert pk.group_metrics(rewards, [1], k=3)["advantage_abs_max"] == pytest.approx(trained)
    trained = np.abs(pk.transform_groups(REWARDS, IDS, 3)).max()
    got = pk.group_metrics(REWARDS, [1], groups=IDS, k=3)
    assert got["advantage_abs_max"] == pytest.approx(trained)
    with pytest.raises(ValueError, match="axis must be left out where there are groups; got 0"):
        pk.group_metrics(REWARDS, [1], groups=IDS, axis=0)
    with pytest.raises(ValueError, match="'batch_mean', which transform_groups takes"):
        pk.transform(rewards, 3, scale="batch_mean")  # type: ignore[call-overload]
