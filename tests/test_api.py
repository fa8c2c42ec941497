"""Wrong arguments, dispatch, counts: what the public functions do around the mathematics."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from math import comb
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pkpo_kernels as pk
from pkpo_kernels import dispatch

REWARDS = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"k": 0}, ValueError, ["k must be at least 1", "k=0"]),
        ({"k": -2}, ValueError, ["k=-2"]),
        ({"k": 5}, ValueError, ["k=5", "n=4", "at most the number of samples"]),
        ({"k": [1, 2, 9]}, ValueError, ["k=9", "n=4"]),
        ({"k": [1, 2]}, ValueError, ["k must broadcast", "(3,)", "(2,)"]),
        ({"k": 4, "estimator": "sloo"}, ValueError, ["k=4", "n=4", "'sloo'"]),
        ({"k": 4, "estimator": "centered"}, ValueError, ["k=4", "'centered'"]),
        ({"k": 2.0}, TypeError, ["k must be an integer", "2.0"]),
        ({"k": True}, TypeError, ["k must be an integer", "True"]),
        ({"k": "2"}, TypeError, ["k must be an integer", "'2'"]),
        ({"k": None}, TypeError, ["k must be an integer", "None"]),
        ({"k": np.array([1.5, 2, 2])}, TypeError, ["k must be an integer"]),
        ({"k": torch.tensor(2)}, TypeError, ["k must", "numpy", "torch"]),
        ({"estimator": "pkpo"}, ValueError, ["estimator", "'pkpo'", "sloo_minus_one"]),
        ({"estimator": None}, ValueError, ["estimator", "None"]),
        ({"scale": "max"}, ValueError, ["scale", "'max'", "sum, mean"]),
        ({"undersized": "drop"}, ValueError, ["undersized", "'drop'", "zero, nan, clip"]),
        ({"implementation": "cuda"}, ValueError, ["implementation", "'cuda'", "numpy"]),
        ({"implementation": "xla"}, ValueError, ["'xla'", "jax", "numpy"]),
        ({"implementation": "torch"}, ValueError, ["'torch'", "'numpy', 'reference'"]),
        (
            {"implementation": "triton"},
            ValueError,
            ["'triton' serves torch arrays", "numpy"],
        ),
        ({"implementation": "pallas"}, ValueError, ["'pallas' serves jax arrays", "numpy"]),
        ({"where": np.ones((3, 3), bool)}, ValueError, ["where", "(3, 4)", "(3, 3)"]),
        ({"where": np.ones(4, bool)}, ValueError, ["where", "(3, 4)", "(4,)"]),
        ({"where": np.ones((3, 4))}, TypeError, ["where", "bool", "float64"]),
        ({"where": torch.ones(3, 4, dtype=torch.bool)}, TypeError, ["where", "numpy", "torch"]),
        ({"where": jnp.ones((3, 4), bool)}, TypeError, ["where", "numpy", "jax"]),
        ({"axis": 2}, ValueError, ["axis", "-2..1", "2"]),
        ({"axis": -3}, ValueError, ["axis", "-3"]),
        ({"axis": 0.5}, TypeError, ["axis", "0.5"]),
        ({"rewards": 3.0}, ValueError, ["rewards", "scalar"]),
        ({"rewards": np.zeros((3, 0))}, ValueError, ["k=2", "n=0"]),
        ({"rewards": np.zeros((3, 4), complex)}, TypeError, ["rewards", "complex128"]),
        ({"rewards": [["a", "b"]]}, TypeError, ["rewards", "str"]),
        ({"rewards": np.array([[1, None, 2]])}, TypeError, ["rewards", "object"]),
        ({"rewards": [[1.0, 2.0], [3.0]]}, ValueError, ["rewards", "equally long"]),
        ({"rewards": np.zeros((2, 3), np.longdouble)}, TypeError, ["rewards", "float32"]),
        ({"rewards": np.ma.masked_array([1.0, 2.0])}, TypeError, ["rewards", "where=~mask"]),
        ({"rewards": torch.zeros(3, 4, dtype=torch.complex64)}, TypeError, ["complex64"]),
        ({"rewards": jnp.zeros((3, 4), jnp.complex64)}, TypeError, ["rewards", "complex64"]),
        ({"rewards": torch.zeros(3, 4), "k": jnp.asarray(2)}, TypeError, ["k must", "jax"]),
        ({"rewards": torch.zeros(3, 4), "k": torch.tensor(2.0)}, TypeError, ["k", "float32"]),
        ({"rewards": jnp.zeros((3, 4)), "k": jnp.asarray(True)}, TypeError, ["k", "bool"]),
        ({"rewards": jnp.zeros((3, 4)), "k": 5}, ValueError, ["k=5", "n=4"]),
        ({"rewards": torch.zeros(3, 4), "where": np.ones((3, 4), bool)}, TypeError, ["where"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        pk.transform(**{"rewards": REWARDS, "k": 2, **arguments})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"k": []}, ValueError, ["k must name at least one"]),
        ({"k": [[1, 2]]}, ValueError, ["flat sequence", "(1, 2)"]),
        ({"k": [1, 5]}, ValueError, ["k=5", "n=4"]),
        ({"k": [1, 2.5]}, TypeError, ["k must be an integer"]),
        ({"axis": 5}, ValueError, ["axis", "5"]),
        ({"rewards": "abc"}, TypeError, ["rewards", "str"]),
    ],
    ids=str,
)
def test_wrong_arguments_of_max_at_k(
    arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        pk.max_at_k(**{"rewards": REWARDS, "k": 2, **arguments})
    for word in words:
        assert word in str(caught.value)


def test_nested_lists_and_numpy_integers() -> None:
    want = pk.transform(REWARDS, 2)
    assert isinstance(want, np.ndarray)
    np.testing.assert_array_equal(pk.transform(REWARDS.tolist(), np.int32(2)), want)
    np.testing.assert_array_equal(pk.transform(REWARDS, [2, 2, 2]), want)
    np.testing.assert_array_equal(pk.transform(torch.from_numpy(REWARDS), [2, 2, 2]), want)
    masked = pk.transform([1.0, 2.0, 5.0], 2, where=[True, False, True])
    np.testing.assert_array_equal(masked, [0.0, 0.0, 4.0])


def test_the_default_is_the_first_that_is_available() -> None:
    available = pk.available_implementations()
    assert list(available) == [
        "numpy", "reference", "triton", "torch", "pallas", "triton_jax", "xla", "pallas_interpret",
    ]  # fmt: skip
    assert [name for name, reason in available.items() if reason is None] == [
        "numpy", "reference", "torch", "xla", "pallas_interpret",
    ]  # fmt: skip
    missing = [reason for name, reason in available.items() if reason and name != "pallas"]
    assert all("install" in reason for reason in missing)
    np.testing.assert_array_equal(
        pk.transform(REWARDS, 2), pk.transform(REWARDS, 2, implementation="numpy")
    )


def test_triton_says_where_its_gpu_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = pk.available_implementations()["triton"]
    assert reason is not None and "no GPU" in reason and "TRITON_INTERPRET=1" in reason
    with pytest.raises(ValueError, match="rewards are on cpu; move them"):
        pk.transform(torch.zeros(2, 3), 2, implementation="triton")


def test_pallas_says_where_its_tpu_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda name: True)
    monkeypatch.setattr(dispatch, "_TPU_FILES", ())
    reason = pk.available_implementations()["pallas"]
    assert reason is not None and "no TPU" in reason and "'pallas_interpret'" in reason
    monkeypatch.setattr(dispatch, "_TPU_FILES", ("/",))
    assert pk.available_implementations()["pallas"] is None


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda name: False)
    reasons = pk.available_implementations()
    assert reasons["xla"] == "jax not installed; pip install jax"
    assert reasons["triton"] == "torch and triton not installed; pip install torch triton"


def test_an_implementation_may_refuse_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    picky = replace(
        dispatch.IMPLEMENTATIONS["reference"],
        name="picky",
        refuses=lambda rewards: "rewards are small" if rewards.size < 10 else None,
    )
    # In front of the others, as a kernel for some devices will be.
    table = {"picky": picky, **dispatch.IMPLEMENTATIONS}
    monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", table)
    assert dispatch.default_implementation("numpy", REWARDS) == "picky"
    assert dispatch.default_implementation("numpy", REWARDS[:1]) == "numpy"
    with pytest.raises(ValueError, match="'picky' cannot serve these rewards: rewards are small"):
        pk.transform(REWARDS[:1], 2, implementation="picky")
    np.testing.assert_allclose(
        pk.transform(REWARDS, 2), pk.transform(REWARDS, 2, implementation="numpy")
    )


def test_a_hidden_k_outside_1_to_n_makes_rows_undersized() -> None:
    rewards = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    ks = np.array([-1, 0, 1, 4, 5, 2**30], np.int32)
    for array, k in (
        (torch.from_numpy(rewards), torch.from_numpy(ks)),
        (jnp.asarray(rewards), jnp.asarray(ks)),
    ):
        zero = np.asarray(pk.transform(array, k))
        assert not zero[[0, 1, 4, 5]].any() and zero[[2, 3]].any(-1).all()
        nan = np.asarray(pk.transform(array, k, undersized="nan"))
        np.testing.assert_array_equal(np.isnan(nan).all(-1), [1, 1, 0, 0, 1, 1])
        clip = np.asarray(pk.transform(array, k, undersized="clip"))
        np.testing.assert_array_equal(clip[4:], np.asarray(pk.transform(array[4:], 4)))
        assert not clip[:2].any()
        best = np.asarray(pk.max_at_k(array, k))
        np.testing.assert_array_equal(np.isnan(best[0]), [1, 1, 0, 0, 1, 1])


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
        assert isinstance(pk.pass_at_k(3, 1, 2), float)

    @pytest.mark.parametrize(
        "n, c, k, error, words",
        [
            (0, 0, 1, ValueError, "n must be at least 1"),
            (4, 5, 1, ValueError, "c must be within 0..n; got c=5 with n=4"),
            (4, -1, 1, ValueError, "c=-1"),
            (4, 1, 0, ValueError, "k must be at least 1; got k=0"),
            (4, 1.5, 1, TypeError, "c must be an integer"),
            ([1, 2], [1, 1, 1], 1, ValueError, "shapes that broadcast"),
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
