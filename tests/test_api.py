"""Counts, conversions, imports: what the public functions do around the mathematics."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pkpo_kernels as pk

REWARDS = np.arange(12.0).reshape(3, 4)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_subclasses_of_arrays_are_arrays() -> None:
    out = pk.transform(np.matrix([[1.0, 0.0, 0.0]]), 2)
    assert type(out) is np.ndarray and out.shape == (1, 3)
    assert pk.transform(torch.nn.Parameter(torch.rand(2, 3)), 2).shape == (2, 3)


def test_the_package_lists_its_public_names() -> None:
    assert dir(pk) == sorted(pk.__all__)


def test_weights_of_a_k_that_no_group_admits() -> None:
    for estimator, k in (("s", 5), ("sloo", 4), ("s", 0)):
        with pytest.raises(ValueError, match=f"k must be at .* got .*{k}"):
            pk.ESTIMATORS[estimator].weights(4, k)


def test_nested_lists_and_numpy_integers() -> None:
    want = pk.transform(REWARDS, 2)
    assert isinstance(want, np.ndarray)
    np.testing.assert_array_equal(pk.transform(REWARDS.tolist(), np.int32(2)), want)
    np.testing.assert_array_equal(pk.transform(REWARDS, [2, 2, 2]), want)
    np.testing.assert_array_equal(pk.transform(torch.from_numpy(REWARDS), [2, 2, 2]), want)
    masked = pk.transform([1.0, 2.0, 5.0], 2, where=[True, False, True])
    np.testing.assert_array_equal(masked, [0.0, 0.0, 4.0])


def test_a_hidden_k_outside_1_to_n_makes_rows_undersized() -> None:
    rewards = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    ks = np.array([-1, 0, 1, 4, 5, 2**30], np.int32)
    for array, k in (
        (torch.from_numpy(rewards), torch.from_numpy(ks)),
        (jnp.asarray(rewards), jnp.asarray(ks)),
    ):
        zero = np.asarray(pk.transform(array, k))
        assert not zero[[0, 1, 4, 5]].any() and zero[[2, 3]].any(-1).all()
        best = np.asarray(pk.max_at_k(array, k))
        np.testing.assert_array_equal(np.isnan(best[0]), [1, 1, 0, 0, 1, 1])
        if isinstance(array, jax.Array):
            continue  # the rest is in the contract, and each a program to compile
        nan = np.asarray(pk.transform(array, k, undersized="nan"))
        np.testing.assert_array_equal(np.isnan(nan).all(-1), [1, 1, 0, 0, 1, 1])
        clip = np.asarray(pk.transform(array, k, undersized="clip"))
        np.testing.assert_array_equal(clip[4:], np.asarray(pk.transform(array[4:], 4)))
        assert not clip[:2].any()


class TestPassAtK:
    def test_exact_for_every_small_count(self) -> None:
        for n in range(1, 13):
            for c in range(n + 1):
                for k in range(1, n + 1):
                    exact = 1 - Fraction(comb(n - c, k), comb(n, k))
                    assert pk.pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-14)

    @pytest.mark.parametrize(
        "c, k",
        [(1, 1), (1, 500_000), (3, 10), (500_000, 2), (12, 99_999), (999_999, 1), (700, 700)],
    )
    def test_stable_for_a_million_samples(self, c: int, k: int) -> None:
        n = 10**6
        miss = Fraction(1)
        for i in range(min(c, k)):
            miss *= Fraction(n - max(c, k) - i, n - i)
        assert pk.pass_at_k(n, c, k) == pytest.approx(float(1 - miss), rel=1e-12)

    def test_broadcasts_and_reports_too_few_samples(self) -> None:
        got = pk.pass_at_k(np.array([4, 10]), np.array([[0], [4]]), 5)
        assert got.shape == (2, 2)
        assert np.isnan(got[:, 0]).all()
        assert got[0, 1] == 0 and not np.signbit(got[0, 1])
        assert got[1, 1] == pytest.approx(1 - comb(6, 5) / comb(10, 5))
        for dtype in (*"bBhHiIqQ", "object"):
            got = pk.pass_at_k(10, np.array([3, 4]).astype(dtype), 2)
            np.testing.assert_allclose(got, [8 / 15, 2 / 3], rtol=1e-14)
        assert isinstance(pk.pass_at_k(3, 1, 2), float)

    @pytest.mark.parametrize(
        "n, c, k, error, words",
        [
            (0, 0, 1, ValueError, "n must be at least 1"),
            (4, 5, 1, ValueError, "c must be within 0..n; got c=5 with n=4"),
            (4, -1, 1, ValueError, "c=-1"),
            (4, 1, -(2**100), ValueError, "k must be at least 1"),
            (4, 1, 0, ValueError, "k must be at least 1; got k=0"),
            (4, 1.5, 1, TypeError, "c must be an integer"),
            ([1, 2], [1, 1, 1], 1, ValueError, "shapes that broadcast"),
            (4, 1, np.uint64(2**63), ValueError, "k must be at most .* got 9223372036854775808"),
            (2**70, 1, 1, ValueError, "n must be at most .* got 1180591620717411303424"),
        ],
    )
    def test_wrong_counts(self, n: Any, c: Any, k: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            pk.pass_at_k(n, c, k)


def test_importing_loads_neither_torch_nor_jax() -> None:
    code = (
        "import sys, pkpo_kernels as pk, pkpo_kernels.schedules, pkpo_kernels.evaluation\n"
        "pk.transform([[0.0, 1.0, 0.0]], 2); pk.available_implementations(); pk.evaluate\n"
        "pk.schedules.linear(8, 1, 10)(3)\n"
        "print([m for m in ('torch', 'jax', 'triton', 'matplotlib', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_jax_arrays_do_not_need_torch_and_the_other_way_round() -> None:
    for library, other, array in (
        ("jax.numpy", "torch", "x.asarray([[0.0, 1.0, 0.0]])"),
        ("torch", "jax", "x.tensor([[0.0, 1.0, 0.0]])"),
    ):
        code = (
            f"import sys, pkpo_kernels as pk, {library} as x\n"
            f"pk.transform({array}, 2); print({other!r} in sys.modules)"
        )
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert out.stdout.strip() == "False"
