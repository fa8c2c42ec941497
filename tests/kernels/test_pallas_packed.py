"""Rewards of 16 bits in the Pallas kernels, interpreted: packed in words, sorted there and back.

Run with PALLAS_INTERPRET=1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from pkpo_pallas import launch, packed, plan
from subjects import PALLAS_INTERPRETED, rewards_of_every_kind

import pkpo_kernels as pk

if not PALLAS_INTERPRETED:
    pytest.skip("needs PALLAS_INTERPRET=1", allow_module_level=True)

slow = partial(pytest.param, marks=pytest.mark.slow)
release = partial(pytest.param, marks=pytest.mark.release)
# Half the distance of neighbours, relative to them.
HALF_A_BIT = 2.0**-8


def every_bfloat16() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize("sample", [0, 1, 31, 2730, 4095])
def test_words_keep_a_reward_and_its_sample_in_the_order_of_rewards(sample: int) -> None:
    rewards = every_bfloat16()
    words = packed.word_of_reward(jnp.asarray(rewards), sample)
    exponents = np.asarray(words).view(np.uint32) >> 23 & 0xFF
    assert exponents.min() > 0 and exponents.max() < 255
    back = np.asarray(packed.reward_of(words)).view(np.uint32)
    np.testing.assert_array_equal(back, rewards.view(np.uint32))
    # In the order of their words, with samples that go the other way.
    others = packed.word_of_reward(jnp.asarray(rewards), np.arange(len(rewards)) % 4096)
    ordered = rewards[np.argsort(np.asarray(others), kind="stable")]
    first, last = np.flatnonzero(~np.isnan(ordered))[[0, -1]]
    finite = ordered[first : last + 1]
    assert not np.isnan(finite).any() and (np.diff(finite[1:-1]) >= 0).all()
    assert finite[0] == -np.inf and finite[-1] == np.inf
    # The way back.
    values = rewards[::-1].copy()
    words = packed.word_of_value(jnp.asarray(values), words)
    assert (np.asarray(words).view(np.uint32) >> 16 == 0x1000 | sample).all()
    got = np.asarray(packed.value_of(words))
    np.testing.assert_array_equal(got, values)


def test_values_are_rounded_to_the_nearest() -> None:
    values = np.float32([1, 1 + 2**-8, 1 + 3 * 2**-8, 1.001, -1.004, 3.4e38, np.inf, np.nan])
    word = packed.word_of_reward(jnp.zeros(len(values)), 7)
    got = np.asarray(packed.value_of(packed.word_of_value(jnp.asarray(values), word)))
    np.testing.assert_array_equal(got, values.astype(ml_dtypes.bfloat16).astype(np.float32))


def close(got: Any, rewards: Any, k: Any, **options: Any) -> None:
    """Compare with what the same rewards get in float64."""
    assert got.dtype == jnp.bfloat16
    exact = np.asarray(rewards.astype(jnp.float32), np.float64)
    want = pk.transform(exact, k, implementation="reference", **options)
    got = np.asarray(got.astype(jnp.float32), np.float64)
    size = np.nanmax(np.abs(np.where(np.isfinite(want), want, np.nan)), initial=0)
    np.testing.assert_allclose(got, want, rtol=1.01 * HALF_A_BIT, atol=1e-6 * size)


fused = partial(pk.transform, implementation="pallas_interpret")


class TestRows:
    @pytest.mark.parametrize("n", [slow(70), release(128), release(256), release(300)])
    def test_of_every_kind(self, n: int) -> None:
        values = rewards_of_every_kind(np.random.default_rng(n), n, 2)
        rewards = jnp.asarray(values, jnp.bfloat16)
        rewards = rewards.at[3, 1].set(-0.0).at[5, 3].set(jnp.inf).at[8, 2].set(jnp.nan)
        got = fused(rewards, 3)
        assert np.isnan(got[jnp.array([5, 8])]).all()
        keep = np.setdiff1d(np.arange(len(values)), [5, 8])
        close(got[keep], rewards[keep], 3)

    @pytest.mark.parametrize(
        "n, estimator",
        [slow(128, "sloo"), release(100, "passk_training"), release(130, "s")],
    )
    def test_of_their_own_k_and_length(self, n: int, estimator: str) -> None:
        rng = np.random.default_rng(n)
        rewards = jnp.asarray(rewards_of_every_kind(rng, n), jnp.bfloat16)
        where, k = rng.random(rewards.shape) < 0.8, rng.integers(1, 6, len(rewards))
        got = fused(rewards, jnp.asarray(k), where=jnp.asarray(where), estimator=estimator)
        close(got, rewards, k, where=where, estimator=estimator)

    @pytest.mark.parametrize("n", [20, slow(30), release(130)])
    def test_as_compiled(self, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
        """With the unrolled loops of the compiled kernel, but smaller groups."""
        monkeypatch.setattr(
            launch, "plan", lambda n, rows, chip, _, narrow: plan.plan(n, rows, chip, False, narrow)
        )
        monkeypatch.setattr(plan, "GROUP", 8)
        monkeypatch.setattr(plan, "SHORTEST_PACKED", 17)
        jax.clear_caches()
        rewards = jnp.asarray(rewards_of_every_kind(np.random.default_rng(n), n, 1), jnp.bfloat16)
        close(fused(rewards, 3), rewards, 3)
        jax.clear_caches()

    @pytest.mark.slow
    def test_two_of_which_are_copied_as_one(self) -> None:
        """Of which not all are there; and some have few values."""
        rng = np.random.default_rng(5)
        values = rng.standard_normal((131, 128))
        rewards = jnp.asarray(values, jnp.bfloat16)
        close(fused(rewards, 4), rewards, 4)
        rewards = jnp.asarray(rng.integers(0, 5, (131, 128)), jnp.bfloat16)
        close(fused(rewards, 4), rewards, 4)

    @pytest.mark.slow
    def test_chips_that_do_not_gather(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch, "chip", lambda interpreted: plan.OLD)
        assert plan.plan(70, 10, plan.OLD, narrow=True).packs
        jax.clear_caches()
        rewards = jnp.asarray(rewards_of_every_kind(np.random.default_rng(6), 70, 1), jnp.bfloat16)
        close(fused(rewards, 3), rewards, 3)
        jax.clear_caches()
