"""Tunix: its own learner generates, rewards, computes advantages and trains, and its own loss has
the gradient of the paper."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from alone import assert_close, each_group_alone
from readme import example

pytest.importorskip("tunix")

import jax
import jax.numpy as jnp
from tunix.rl import common, function_registry
from tunix.rl.agentic.agentic_grpo_learner import GRPOConfig as AgenticConfig
from tunix.rl.agentic.agentic_grpo_learner import GRPOLearner as AgenticLearner
from tunix.rl.grpo.grpo_learner import GRPOLearner

from pkpo_kernels.integrations import tunix

SAMPLES = 8


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("K", "ESTIMATOR", "SCALE", "UNDERSIZED"):
        monkeypatch.delenv(f"PKPO_{name}", raising=False)
    estimators = function_registry.default_registry._registry["advantage_estimator"]
    before = dict(estimators)
    yield
    estimators.clear()
    estimators.update(before)


def estimator(name: str = "pkpo") -> Any:
    return function_registry.get_advantage_estimator(name)


def blocks(rewards: np.ndarray) -> np.ndarray:
    return np.arange(len(rewards)) // SAMPLES


def test_the_launch_in_readme_trains_with_k_annealed(monkeypatch: pytest.MonkeyPatch) -> None:
    from flax import nnx
    from tunix.tests import test_common

    vocabulary, rng = test_common.MockVocab(), np.random.default_rng(0)

    def model() -> Any:
        config = test_common.ModelConfig(vocab_size=vocabulary.GetPieceSize(), num_layers=1)
        return test_common.ToyTransformer(config=config, rngs=nnx.Rngs(0))

    space: dict[str, Any] = {}
    rewarded: list[tuple[int, list[float]]] = []
    examples, original = [], GRPOLearner._generate_and_compute_advantage

    def reward(prompts: Any, completions: list[str], **_: Any) -> list[float]:
        rewards = rng.integers(0, 3, len(completions)).astype(float).tolist()
        rewarded.append((space["cluster"].global_steps, rewards))
        return rewards

    def watched(self: Any, *arguments: Any, **named: Any) -> Any:
        examples.append(original(self, *arguments, **named))
        return examples[-1]

    monkeypatch.setattr(GRPOLearner, "_generate_and_compute_advantage", watched)
    actor = model()
    before = jax.tree.map(np.array, nnx.state(actor, nnx.Param))
    space |= {
        "model": actor,
        "reference": model(),
        "tokenizer": vocabulary,
        "mesh": jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp")),
        "reward": reward,
        "batches": [{"prompts": np.array(["hello world", "My name"])} for _ in range(4)],
    }
    exec(compile(example("Tunix"), "README.md", "exec"), space)

    assert [step for step, _ in rewarded] == [0, 1, 2, 3]
    for (step, rewards), made in zip(rewarded, examples, strict=True):
        assert made.advantages.dtype == jnp.float32 and isinstance(made.advantages, jax.Array)
        k = 4 if step < 2 else 2
        assert_close(made.advantages, each_group_alone(rewards, blocks(rewards), k))
    after = nnx.state(space["cluster"].actor_trainer.model, nnx.Param)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before, after)
    assert max(jax.tree.leaves(moved)) > 0


def test_a_reward_that_is_no_number_is_left_out() -> None:
    tunix.register(k=3)
    rewards = np.random.default_rng(1).normal(size=2 * SAMPLES).astype(np.float32)
    rewards[[2, 9, 10]] = np.nan
    advantages = estimator()(rewards=rewards, num_generations=SAMPLES)
    assert_close(advantages, each_group_alone(rewards, blocks(rewards), 3))
    assert (advantages[[2, 9, 10]] == 0).all()


def test_the_agentic_learner_gives_a_group_what_the_batch_does() -> None:
    """It calls the estimator with one group of finished trajectories at a time."""
    tunix.register(k=2)
    made = AgenticLearner.__new__(AgenticLearner)
    made.algo_config = AgenticConfig(
        num_generations=SAMPLES, advantage_estimator="pkpo", beta=0.0, max_response_length=4
    )
    made.rl_cluster, made._trajectory_logger, made.metric_fns = MagicMock(), None, []
    made.rl_cluster.rollout.pad_id.return_value = 0
    made.rl_cluster.rollout.eos_id.return_value = 1
    made.rl_cluster.cluster_config.rollout_config = SimpleNamespace(max_prompt_length=4)
    rewards = np.random.default_rng(2).normal(size=3 * SAMPLES)
    made._compute_rewards = lambda trajectory_rewards, **_: np.array(trajectory_rewards)
    got = [np.asarray(one_group(made, row).advantages) for row in np.split(rewards, 3)]
    assert_close(np.concatenate(got), each_group_alone(rewards, blocks(rewards), 2))


def one_group(made: Any, rewards: np.ndarray) -> Any:
    trajectory = {
        "conversation_text": [{"role": "assistant", "content": "x"}],
        "prompt_tokens": np.array([2, 3]),
        "conversation_tokens": np.array([4, 5, 6]),
        "conversation_masks": np.array([1, 1, 1]),
        "old_logprobs": np.zeros(3, np.float32),
        "policy_version": 0,
        "group_id": "a task",
        "original_input": {"prompts": np.array(["x"])},
    }
    finished = [
        SimpleNamespace(traj=trajectory | {"trajectory_reward": float(one)}) for one in rewards
    ]
    (example,) = made._process_results(finished, mode="train", expected_step=0)
    return example


def test_short_floats_of_jax_are_computed_in_float32() -> None:
    tunix.register(k=2)
    rewards = jnp.asarray([0.1, 0.2, 0.3, 0.7] * 2, jnp.bfloat16)
    advantages = estimator()(rewards=rewards, num_generations=4)
    assert advantages.dtype == np.float32
    assert_close(advantages, each_group_alone(rewards, np.arange(8) // 4, 2))


@pytest.mark.parametrize(
    ("mode", "factor"), [("seq-mean-token-sum", 1.0), ("token-mean", None)], ids=str
)
def test_the_loss_has_the_papers_gradient(mode: str, factor: float | None) -> None:
    """The mean over prompts of Σ_i transform(rewards)_i · ∇ log p(sample_i), up to a factor."""
    tunix.register(k=3)
    rng, prompts, length = np.random.default_rng(3), 4, 6
    rewards = rng.integers(0, 3, prompts * SAMPLES).astype(np.float32)
    lengths = rng.integers(1, length + 1, len(rewards))
    mask = jnp.asarray(np.arange(length) < lengths[:, None], jnp.float32)
    advantages = jnp.asarray(estimator()(rewards=rewards, num_generations=SAMPLES))

    def loss(log_probs: Any) -> Any:
        ratio = jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))
        return -common.aggregate_loss(-advantages[:, None] * ratio, mask, mode)

    gradient = jax.grad(loss)(jnp.zeros(mask.shape))
    summed = each_group_alone(rewards, blocks(rewards), 3) / SAMPLES
    paper = summed[:, None] * np.asarray(mask) / prompts
    if factor is None:
        factor = len(rewards) / float(mask.sum())
    np.testing.assert_allclose(gradient, factor * paper, rtol=1e-5)


def test_options_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKPO_K", "3")
    tunix.register()
    rewards = np.arange(SAMPLES, dtype=np.float32)
    advantages = estimator()(rewards=rewards, num_generations=SAMPLES)
    assert_close(advantages, each_group_alone(rewards, blocks(rewards), 3))


def test_a_name_is_registered_anew() -> None:
    tunix.register(k=2)
    tunix.register(k=4)
    rewards = np.arange(SAMPLES, dtype=np.float32)
    advantages = estimator()(rewards=rewards, num_generations=SAMPLES)
    assert_close(advantages, each_group_alone(rewards, blocks(rewards), 4))


def test_a_schedule_without_a_step_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"step must be given for a k that changes.*; got None"):
        tunix.register(k="8@0,1@400")
    with pytest.raises(ValueError, match="k must be set"):
        tunix.register()
