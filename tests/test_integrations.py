"""What every integration takes its settings from. The trainers' own tests are in integrations/,
and run with `make test-integrations`."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pkpo_kernels import schedules
from pkpo_kernels.integrations import Options

ANNEALED = schedules.piecewise_constant([8, 1], [400])


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PKPO_")]:
        monkeypatch.delenv(name)


def test_no_trainer_is_imported() -> None:
    program = (
        "import sys, pkpo_kernels.integrations;"
        "print({'torch', 'jax', 'trl', 'verl', 'skyrl', 'tunix'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    ("k", "kept"),
    [(8, 8), (np.int64(8), 8), ("8", 8), ("8@0,1@400", ANNEALED), (ANNEALED, ANNEALED)],
)
def test_k_is_an_integer_text_or_a_schedule(k: Any, kept: Any) -> None:
    options = Options(k)
    assert options == Options(kept) and type(options.k) is type(kept)
    assert options.k_at(0) == 8
    assert options.k_at(400) == (8 if kept == 8 else 1)


def test_k_may_be_any_function_of_the_step() -> None:
    assert Options(lambda step: step + 2).k_at(5) == 7


def test_a_schedule_needs_a_step() -> None:
    assert Options(8).k_at(None) == 8
    with pytest.raises(ValueError, match="k must be an integer here, where the trainer tells no"):
        Options(ANNEALED).k_at(None)


class TestOf:
    def test_arguments_come_first_then_the_configuration_then_the_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("K", "ESTIMATOR", "SCALE", "UNDERSIZED"):
            monkeypatch.setenv(f"PKPO_{name}", "wrong, and not read")
        config = {"pkpo_k": 8, "pkpo_scale": "mean", "pkpo_undersized": "clip", "other": 1}
        given = Options.of(config, k=2, estimator="s")
        assert given == Options(2, estimator="s", scale="mean", undersized="clip")
        monkeypatch.setenv("PKPO_ESTIMATOR", "sloo")
        assert Options.of(config) == Options(8, "sloo", "mean", "clip")
        monkeypatch.setenv("PKPO_K", "8@0,1@400")
        monkeypatch.setenv("PKPO_SCALE", "0.5")
        monkeypatch.setenv("PKPO_UNDERSIZED", "nan")
        assert Options.of() == Options(ANNEALED, "sloo", 0.5, "nan")
        monkeypatch.setenv("PKPO_SCALE", "")
        assert Options.of().scale == "batch_mean"

    @pytest.mark.parametrize("form", [dict, lambda **entries: SimpleNamespace(**entries)])
    def test_a_configuration_is_a_mapping_or_an_object(self, form: Any) -> None:
        config = form(pkpo_k="8@0,1@400", pkpo_scale=None, learning_rate=1.0)
        assert Options.of(config) == Options(ANNEALED)
        assert Options.of(form(my_k=3), prefix="my_") == Options(3)

    def test_nan_is_a_word(self) -> None:
        """Hydra's command line reads it as a number."""
        assert Options.of({"pkpo_k": 8, "pkpo_undersized": float("nan")}).undersized == "nan"

    def test_a_misspelt_name_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PKPO_UNDERSIZE", "clip")
        message = "in the environment must be among PKPO_K.*got PKPO_UNDERSIZE; did you mean PKPO_U"
        with pytest.raises(TypeError, match=message):
            Options.of(k=4)

    def test_others_in_the_environment_may_be_somebody_elses(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PKPO_SERVICE_HOST", "10.0.0.1")  # as Kubernetes names a service
        monkeypatch.setenv("PKPO_UNDERSIZE", "")
        assert Options.of(k=4) == Options(4)

    def test_none_is_not_set(self) -> None:
        assert Options.of({"pkpo_k": 8}, k=None, scale=None) == Options(8)

    def test_k_has_no_default(self) -> None:
        with pytest.raises(
            ValueError, match="k must be set, as an argument, as pkpo_k in the conf"
        ):
            Options.of({"pkpo_scale": "sum"})

    @pytest.mark.parametrize(
        ("given", "config", "environment", "error", "message"),
        [
            ({"k": 0}, {}, {}, ValueError, "^k must be at least 1; got 0"),
            ({}, {"pkpo_k": 8.0}, {}, TypeError, "^pkpo_k in the configuration must be an integer"),
            (
                {},
                {"pkpo_k": True},
                {},
                TypeError,
                "^pkpo_k in the configuration must be an integer",
            ),
            ({}, {}, {"PKPO_K": "8@9"}, ValueError, "^PKPO_K must be .*; got '8@9': .*begin at st"),
            ({}, {}, {"PKPO_K": "0"}, ValueError, "^PKPO_K must be .*at least 1; got 0"),
            (
                {"k": 8},
                {"pkpo_estimator": "slo"},
                {},
                ValueError,
                "^pkpo_estimator in the configuration must be one of .* did you mean 'sloo'",
            ),
            (
                {"k": 8, "scale": "batch"},
                {},
                {},
                ValueError,
                "^scale must be one of sum, mean, bat",
            ),
            ({"k": 8, "scale": True}, {}, {}, ValueError, "^scale must be a finite number or one"),
            (
                {"k": 8},
                {},
                {"PKPO_SCALE": "inf"},
                ValueError,
                "^PKPO_SCALE must be a finite number",
            ),
            ({"k": 8}, {}, {"PKPO_UNDERSIZED": "0"}, ValueError, "^PKPO_UNDERSIZED must be one of"),
            (
                {"k": 8, "estimator": "passk_training"},
                {},
                {"PKPO_SCALE": "mean"},
                ValueError,
                "^PKPO_SCALE must be 'sum', 'batch_mean' or a number for estimator",
            ),
            ({"k": 8, "scales": 1}, {}, {}, TypeError, "^options must be among .*got scales; did"),
            (
                {},
                {"pkpo_k": 8, "pkpo_estimater": "s"},
                {},
                TypeError,
                "^options in the configuration must be among .*; got pkpo_estimater; did you mean",
            ),
        ],
    )
    def test_an_error_says_what_is_wrong_and_where_it_is_set(
        self,
        monkeypatch: pytest.MonkeyPatch,
        given: dict[str, Any],
        config: dict[str, Any],
        environment: dict[str, str],
        error: type[Exception],
        message: str,
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(error, match=message):
            Options.of(config, **given)


class TestAdvantages:
    REWARDS = (0.0, 1.0, 0.0, 3.0, 2.0, 2.0)
    GROUPS = ("a", "a", "a", "a", "b", "b")
    EXPECTED = (0.0, 1 / 3, 0.0, 4 / 3, 0.0, 0.0)

    def test_every_option_arrives(self) -> None:
        summed = Options("2", scale="sum").advantages(self.REWARDS, self.GROUPS)
        np.testing.assert_allclose(summed, self.EXPECTED, rtol=1e-12)
        # 6 entries, 2 groups.
        mean = Options(2).advantages(self.REWARDS, self.GROUPS)
        np.testing.assert_allclose(mean, np.multiply(3, self.EXPECTED), rtol=1e-12)
        undersized = Options(3, undersized="nan").advantages(self.REWARDS, self.GROUPS)
        assert np.isnan(undersized).tolist() == [False] * 4 + [True] * 2
        s = Options(1, estimator="s", scale="sum").advantages(self.REWARDS, self.GROUPS)
        np.testing.assert_allclose(s, np.divide(self.REWARDS, [4, 4, 4, 4, 2, 2]), rtol=1e-12)

    def test_a_schedule_is_looked_up_at_the_step(self) -> None:
        annealed = Options("2@0,1@5", scale="sum")
        for step, k in ((0, 2), (4, 2), (5, 1)):
            np.testing.assert_array_equal(
                annealed.advantages(self.REWARDS, self.GROUPS, step=step),
                Options(k, scale="sum").advantages(self.REWARDS, self.GROUPS),
            )

    def test_none_and_nan_are_no_rewards(self) -> None:
        rewards = (0.0, None, 1.0, 0.0, 3.0, float("nan"), 2.0, 2.0)
        groups = ("a", "a", "a", "a", "a", "b", "b", "b")
        out = Options(2, scale="sum").advantages(rewards, groups)
        np.testing.assert_allclose(out[[0, 2, 3, 4, 6, 7]], self.EXPECTED, rtol=1e-12)
        assert out[1] == out[5] == 0
        array = np.array(rewards, object)
        np.testing.assert_array_equal(Options(2, scale="sum").advantages(array, groups), out)

    def test_samples_and_where_arrive(self) -> None:
        rewards, groups = (9.0, *self.REWARDS, 7.0), ("a", *self.GROUPS, "b")
        out = Options(2, scale="sum").advantages(
            rewards, groups, samples=(0, 0, 1, 2, 3, 4, 5, 6), where=(1, 1, 1, 1, 1, 1, 1, 0)
        )
        np.testing.assert_allclose(out, (0.0, *self.EXPECTED, 0.0), rtol=1e-12)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int64"])
    def test_short_floats_are_computed_in_float32(self, dtype: str) -> None:
        torch = pytest.importorskip("torch")
        short = torch.tensor(self.REWARDS, dtype=getattr(torch, dtype))
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            out = Options(2, scale="sum").advantages(short, self.GROUPS)
        finally:
            torch.set_default_dtype(default)
        assert out.dtype == torch.float32
        np.testing.assert_allclose(out.numpy(), self.EXPECTED, rtol=1e-6)
        half = np.asarray(self.REWARDS, np.float16)
        assert Options(2).advantages(half, self.GROUPS).dtype == np.float32

    def test_metrics_have_names_that_do_not_depend_on_k(self) -> None:
        annealed = Options("2@0,1@5")
        early, late = (annealed.metrics(self.REWARDS, self.GROUPS, 4, step=at) for at in (0, 5))
        assert (early["pkpo/k"], late["pkpo/k"]) == (2, 1) and early.keys() == late.keys()
        assert early["pkpo/max@1"] == pytest.approx((1 + 2) / 2)
        assert {f"pkpo/max@{k}" for k in (1, 2, 4)} < early.keys()
        assert early["pkpo/signal"] == 0.5
        assert all(type(value) is float for value in early.values())


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([2**60 + 1, 2**60, 0, 0], r"numbers that float64 holds; got 1152.* at rewards\[0\]"),
        ([0.5, None, "1", 3], r"got '1' at rewards\[2\]"),
        (["a", 1, 2, 3], r"rewards must be numbers; got 'a' at rewards\[0\]"),
        ([10**400, 1, 2, 3], r"rewards must be numbers; got 1000.* at rewards\[0\]"),
        (None, "rewards must be"),
        (np.array(None, object), "rewards must be"),
    ],
)
def test_wrong_rewards_are_refused_by_name(rewards: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Options(2).advantages(rewards, [0, 0, 1, 1])


def test_rewards_in_a_list_may_be_numbers_of_any_kind() -> None:
    want = Options(2).advantages(np.array([60000.0, 0.0, 1.0, np.nan]), [0, 0, 0, 0])
    one = torch.tensor(1.0, requires_grad=True)
    for rewards in (
        [np.float16(60000), False, one, None],
        np.array([np.float16(60000), 0, 1, np.nan], object),
    ):
        got = Options(2).advantages(rewards, [0, 0, 0, 0])
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, want)


def test_wrong_numbers_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="n must be an integer"):
        Options(2).metrics([1.0, 2.0], [0, 0], 4.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must be a finite number"):
        Options(2, scale=10**400)
