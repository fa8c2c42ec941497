"""SkyRL: its own trainer pads a batch, computes advantages and divides them for its own loss."""

from __future__ import annotations

import shlex
import sys
import typing
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from alone import assert_close, each_group_alone
from readme import example

if sys.version_info < (3, 12):  # which SkyRL is for: pydantic takes no older TypedDict of typing's
    extensions = pytest.importorskip("typing_extensions")
    typing.TypedDict = extensions.TypedDict  # type: ignore[misc]
pytest.importorskip("skyrl")

import torch
from skyrl.backends.skyrl_train.utils import ppo_utils
from skyrl.train.config import AlgorithmConfig, make_config
from skyrl.train.trainer import RayPPOTrainer

from pkpo_kernels.integrations.skyrl import PKPOAlgorithmConfig, PKPOMixin, register

PROMPTS, SAMPLES, LENGTH, WORKERS = 4, 6, 7, 5
Config = make_config(algorithm_cls=PKPOAlgorithmConfig)


class Trainer(PKPOMixin, RayPPOTrainer):
    """What a user writes."""


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("K", "ESTIMATOR", "SCALE", "UNDERSIZED"):
        monkeypatch.delenv(f"PKPO_{name}", raising=False)
    before = dict(ppo_utils.AdvantageEstimatorRegistry._functions)
    yield
    ppo_utils.AdvantageEstimatorRegistry._functions.clear()
    ppo_utils.AdvantageEstimatorRegistry._functions.update(before)


def config(**algorithm: Any) -> Any:
    settings = {
        "train_batch_size": PROMPTS,
        "policy_mini_batch_size": PROMPTS // 2,
        "algorithm.loss_reduction": "seq_mean_token_sum_norm",
        "algorithm.max_seq_len": 64,
        **{f"algorithm.{name}": value for name, value in algorithm.items()},
    }
    overrides = {f"trainer.{name}": value for name, value in settings.items()}
    return Config.from_cli_overrides(overrides | {"generator.n_samples_per_prompt": SAMPLES})


def trainer(cfg: Any, cls: Any = Trainer, step: int = 1) -> Any:
    """A real trainer, but for its models: 5 workers, so that batches are padded."""
    made = cls.__new__(cls)
    made.cfg, made.global_step, made.all_metrics = cfg, step, {}
    made.tokenizer = SimpleNamespace(pad_token_id=0)
    made.dispatch = SimpleNamespace(get_lcm_dp_size=lambda: WORKERS)
    return made


def batch(made: Any, rewards: Any, uids: list[str], last: list[bool] | None = None) -> Any:
    """What SkyRL's generator gives, made a training batch by its trainer: pads are copies of the
    first row."""
    rng = np.random.default_rng(5)
    responses = [[1] * int(n) for n in rng.integers(1, LENGTH + 1, len(rewards))]
    pairs = zip(responses, rewards, strict=True)
    output = {
        "prompt_token_ids": [[1, 1]] * len(rewards),
        "response_ids": responses,
        "rewards": [[0.0] * (len(tokens) - 1) + [float(reward)] for tokens, reward in pairs],
        "loss_masks": [[1] * len(response) for response in responses],
    }
    if last is not None:
        output["is_last_step"] = last
    data = made.convert_to_training_input(output, uids)
    data["values"] = None
    return data


def gradient(made: Any, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Minus the gradient of SkyRL's loss, and the mask of the tokens: (rows, tokens) each."""
    data = made._normalize_advantages(
        data,
        data.metadata["policy_mini_batch_boundaries"],
        data.metadata["policy_prompt_boundaries"],
    )
    log_probs = torch.zeros(data["advantages"].shape, requires_grad=True)
    loss, _ = ppo_utils.PolicyLossRegistry.get("regular")(
        log_probs,
        torch.zeros_like(log_probs),
        data["advantages"],
        made.cfg.trainer.algorithm,
        data["loss_mask"],
    )
    loss.backward()
    return -log_probs.grad, data["loss_mask"]


def plain_batch(made: Any) -> tuple[Any, np.ndarray, list[str]]:
    rewards = np.random.default_rng(6).integers(0, 3, PROMPTS * SAMPLES).astype(float)
    uids = [f"prompt {i // SAMPLES}" for i in range(len(rewards))]
    return batch(made, rewards, uids), rewards, uids


@pytest.mark.parametrize("cls", [Trainer, RayPPOTrainer])
def test_every_group_gets_its_own_and_pads_get_nothing(cls: Any) -> None:
    register()
    made = trainer(config(pkpo_k=3), cls)
    data, rewards, uids = plain_batch(made)
    assert (
        data.metadata["uids"][len(uids) :] == ["pad0"] and data["rewards"][-1].sum() == rewards[0]
    )
    data = made.compute_advantages_and_returns(data)
    assert torch.equal(data["advantages"], data["returns"])
    mask, wanted = data["response_mask"], each_group_alone(rewards, uids, 3)
    assert_close(data["advantages"][:-1], wanted[:, None] * mask[:-1].numpy())
    assert (data["advantages"][-1] == 0).all() and data["advantages"].dtype == torch.float32


def test_the_loss_has_the_papers_gradient() -> None:
    """In each mini-batch: the mean over its prompts, divided by max_seq_len."""
    register()
    made = trainer(config(pkpo_k=3))
    data, rewards, uids = plain_batch(made)
    got, mask = gradient(made, made.compute_advantages_and_returns(data))
    summed = each_group_alone(rewards, uids, 3) / SAMPLES
    paper = summed[:, None] * mask[:-1].numpy() / (PROMPTS // 2) / 64
    np.testing.assert_allclose(got[:-1], paper, rtol=1e-5)
    assert (got[-1] == 0).all()


def test_in_step_wise_training_the_mean_is_over_prompts_too() -> None:
    """Trajectories of several rows: the last row's reward, on all of them, and a loss that averages
    over the rows of a mini-batch."""
    register()
    cfg = config(pkpo_k=2)
    cfg.generator.step_wise_trajectories = True
    rng = np.random.default_rng(7)
    steps = rng.integers(1, 4, PROMPTS * SAMPLES)
    rewards = rng.integers(0, 3, len(steps)).astype(float)
    of_row = np.repeat(np.arange(len(steps)), steps)
    last = np.append(of_row[1:] != of_row[:-1], True)
    uids = [f"prompt {i // SAMPLES}" for i in of_row]
    made = trainer(cfg)
    data = batch(made, np.where(last, rewards[of_row], 9.0), uids, last.tolist())
    assert len(data["rewards"]) > len(uids)  # it is padded
    got, mask = gradient(made, made.compute_advantages_and_returns(data))
    prompts = [f"prompt {i // SAMPLES}" for i in range(len(steps))]
    summed = each_group_alone(rewards, prompts, 2) / SAMPLES
    paper = summed[of_row][:, None] * mask[: len(uids)].numpy() / (PROMPTS // 2) / 64
    np.testing.assert_allclose(got[: len(uids)], paper, rtol=1e-5)
    assert (got[len(uids) :] == 0).all()


def test_k_changes_with_the_step() -> None:
    register()
    for step, k in ((1, 4), (9, 4), (10, 2)):
        made = trainer(config(pkpo_k="4@0,2@10"), step=step)
        data, rewards, uids = plain_batch(made)
        data = made.compute_advantages_and_returns(data)
        wanted = each_group_alone(rewards, uids, k)[:, None] * data["response_mask"][:-1].numpy()
        assert_close(data["advantages"][:-1], wanted)
        assert made.all_metrics["pkpo/k"] == k
        assert made.all_metrics["pkpo/max@1"] == pytest.approx(rewards.mean())
        logged = {name for name in made.all_metrics if name.startswith("pkpo/max@")}
        assert logged == {"pkpo/max@1", "pkpo/max@2", "pkpo/max@4"}  # whatever k is


def test_a_schedule_without_the_mixin_is_refused() -> None:
    register()
    made = trainer(config(pkpo_k="4@0,2@10"), RayPPOTrainer)
    data, *_ = plain_batch(made)
    with pytest.raises(ValueError, match=r"k must be an integer unless .*PKPOMixin, RayPPOTrainer"):
        made.compute_advantages_and_returns(data)


SMALL = {
    "token_level_rewards": torch.tensor([[0.0, 1], [0, 2], [0, 5], [0, 4], [0, 4], [0, 1]]),
    "response_mask": torch.ones(6, 2, dtype=torch.int64),
    "index": ["a", "a", "b", "a", "b", "pad0"],
}


def compute(k: int | None = None) -> torch.Tensor:
    estimator = ppo_utils.AdvantageEstimatorRegistry.get("pkpo")
    return estimator(**SMALL, config=PKPOAlgorithmConfig(pkpo_k=k), values=None)[0]


def wanted(k: int) -> np.ndarray:
    one = each_group_alone([1, 2, 5, 4, 4], ["a", "a", "b", "a", "b"], k)
    return np.append(one, 0)[:, None] * np.ones((1, 2))


def test_options_are_given_then_configured_then_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PKPO_K", "1")
    register()
    assert_close(compute(k=2), wanted(2))
    assert_close(compute(), wanted(1))
    register(k=3)  # another one of ours is replaced
    assert_close(compute(k=2), wanted(3))
    with pytest.raises(ValueError, match="'grpo' already registered"):
        register("grpo")
    monkeypatch.delenv("PKPO_K")
    register()
    with pytest.raises(ValueError, match="k must be set"):
        compute()
    assert not hasattr(AlgorithmConfig(), "pkpo_k")  # SkyRL refuses what it does not know


def test_it_reaches_other_processes_through_ray() -> None:
    ray = pytest.importorskip("ray")
    register(k=2)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:

        @ray.remote(num_cpus=1)
        def elsewhere() -> Any:
            import typing

            import typing_extensions

            typing.TypedDict = typing_extensions.TypedDict
            from skyrl.backends.skyrl_train.utils import ppo_utils

            return ppo_utils.AdvantageEstimatorRegistry.get("pkpo")(**batch)[0]

        batch = SMALL
        ppo_utils.sync_registries()
        assert_close(ray.get(elsewhere.remote()), wanted(2))
    finally:
        ray.shutdown()


def test_the_launch_in_readme_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    space: dict[str, Any] = {"__name__": "main_pkpo"}
    exec(compile(example("SkyRL"), "main_pkpo.py", "exec"), space)
    _, _, *arguments = shlex.split(example("SkyRL", "sh").replace("\\\n", ""))
    monkeypatch.setattr(sys, "argv", ["main_pkpo.py", *arguments])
    given: list[Any] = []
    space["initialize_ray"] = lambda cfg: None
    space["train"] = SimpleNamespace(remote=given.append)
    space["ray"] = SimpleNamespace(get=lambda reference: reference)
    space["main"]()
    (cfg,) = given
    made = trainer(cfg, space["Trainer"], step=1)
    made.cfg.trainer.train_batch_size = made.cfg.trainer.policy_mini_batch_size = 1
    rewards, uids = np.arange(16.0), ["one prompt"] * 16
    got = made.compute_advantages_and_returns(batch(made, rewards, uids))
    assert_close(got["advantages"][:16].amax(-1), each_group_alone(rewards, uids, 8))
