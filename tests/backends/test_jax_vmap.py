"""vmap of what JAX chooses by itself: a program with a branch for every platform."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pkpo_kernels as pk

REWARDS = np.random.default_rng(0).standard_normal((3, 6, 7)).astype(np.float32)


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


def test_branches_that_become_selects() -> None:
    def transform(k: int, rewards: jax.Array) -> jax.Array:
        return pk.transform(rewards, k)

    def best(k: int, rewards: jax.Array) -> jax.Array:
        return pk.max_at_k(rewards, k)

    for function in (transform, best):
        branches = [partial(function, k) for k in (2, 3)]
        each = jax.vmap(lambda i, x, branches=branches: jax.lax.switch(i, branches, x))
        got = each(jnp.asarray([1, 0, 1]), REWARDS)
        want = [
            np.asarray(function(k, rewards))  # by NumPy
            for k, rewards in zip((3, 2, 3), REWARDS, strict=True)
        ]
        close(got, want)


def test_of_no_elements() -> None:
    none = jnp.zeros((0, 6, 7))
    assert jax.vmap(lambda x: pk.transform(x, 2))(none).shape == (0, 6, 7)
    assert jax.vmap(lambda x: pk.max_at_k(x, [1, 2]))(none).shape == (0, 6, 2)


def test_integers_of_64_bits_in_long_rows() -> None:
    with jax.enable_x64(True):
        rewards = jnp.arange(2 * 4096).reshape(2, 4096) % 7
        got = jax.jit(lambda x: pk.transform(x, 2))(rewards)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, pk.transform(np.asarray(rewards), 2), rtol=1e-12, atol=0)
