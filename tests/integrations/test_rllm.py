"""rLLM: its own collection of rewards and advantages from trajectory groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stand_ins
from alone import assert_close, each_group_alone
from readme import example

advantage = stand_ins.real_or(stand_ins.rllm, "rllm.trainer.algorithms.advantage")
config = stand_ins.real_or(stand_ins.rllm, "rllm.trainer.algorithms.config")
types = stand_ins.real_or(stand_ins.rllm, "rllm.types")

from pkpo_kernels.integrations import rllm  # noqa: E402

REWARDS = [[0.0, 1.0, 0.0, 3.0], [1.0, 0.0, 1.0], [5.0], [2.0, 2.0, 0.0]]


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("K", "ESTIMATOR", "SCALE", "UNDERSIZED"):
        monkeypatch.delenv(f"PKPO_{name}", raising=False)
    before = dict(advantage.RLLM_ADV_ESTIMATOR_REGISTRY)
    yield
    advantage.RLLM_ADV_ESTIMATOR_REGISTRY.clear()
    advantage.RLLM_ADV_ESTIMATOR_REGISTRY.update(before)


def collected(settings: Any, rewards: Any = REWARDS, role: str = "solver") -> list[list[float]]:
    """The advantages of the steps, of which each trajectory has two, task by task."""
    groups = [
        types.TrajectoryGroup(
            trajectories=[
                types.Trajectory(name=role, reward=one, steps=[types.Step(), types.Step()])
                for one in of_task
            ],
            group_id=f"task{i}:{role}",
        )
        for i, of_task in enumerate(rewards)
    ]
    advantage.collect_reward_and_advantage_from_trajectory_groups(groups, settings)
    for group in groups:
        assert all(one.steps[0].advantage == one.steps[1].advantage for one in group.trajectories)
    return [[one.steps[0].advantage for one in group.trajectories] for group in groups]


def flat(k: int, rewards: Any = REWARDS) -> np.ndarray:
    ids = [i for i, of_task in enumerate(rewards) for _ in of_task]
    return each_group_alone(np.concatenate(rewards), ids, k)


def from_configuration(name: str) -> Any:
    """What rLLM makes of `rllm.algorithm.adv_estimator=name`."""
    omegaconf = pytest.importorskip("omegaconf") if hasattr(config, "OmegaConf") else None
    settings = {"adv_estimator": name}
    made = omegaconf.OmegaConf.create(settings) if omegaconf else SimpleNamespace(**settings)
    return config.AlgorithmConfig.from_config(made)


def test_each_task_gets_its_own() -> None:
    rllm.register(k=2)
    got = collected(from_configuration("pkpo"))
    assert_close(np.concatenate(got), flat(2))
    assert got[2] == [0.0] and [len(group) for group in got] == [4, 3, 1, 3]


def test_the_launch_in_readme() -> None:
    exec(compile(example("rLLM"), "README.md", "exec"), {})
    (name,) = re.findall(r"adv_estimator=(\w+)", example("rLLM", "sh"))
    rewards = np.random.default_rng(0).normal(size=(2, 16)).tolist()
    got = collected(from_configuration(name), rewards)
    assert_close(np.concatenate(got), flat(8, rewards))


def test_a_role_may_have_it_alone() -> None:
    rllm.register("mine", k=3)
    settings = config.AlgorithmConfig(estimator_map={"solver": "mine"})
    assert_close(np.concatenate(collected(settings)), flat(3))


def test_it_leaves_the_place_of_others_to_who_took_it() -> None:
    """A configuration turns every name that is not rLLM's into "other"."""
    taken = advantage.register_rllm_adv_estimator(config.rLLMAdvantageEstimator.OTHER)

    def nothing(rewards: Any, algorithm_config: Any, **_: Any) -> Any:
        return [0 * group for group in rewards], rewards

    taken(nothing)
    rllm.register(k=2)
    assert not np.concatenate(collected(from_configuration("theirs"))).any()


def test_registered_again_it_is_replaced_everywhere() -> None:
    rllm.register(k=2)
    rllm.register(k=3)
    assert_close(np.concatenate(collected(from_configuration("pkpo"))), flat(3))
    settings = config.AlgorithmConfig(estimator_map={"solver": "pkpo"})
    assert_close(np.concatenate(collected(settings)), flat(3))


def test_k_changes_with_the_step() -> None:
    now = SimpleNamespace(step=0)
    rllm.register(k="3@0,2@5", step=lambda: now.step)
    for now.step, k in ((0, 3), (4, 3), (5, 2)):
        assert_close(np.concatenate(collected(from_configuration("pkpo"))), flat(k))
    with pytest.raises(ValueError, match=r"step must be given for a k that changes.*; got None"):
        rllm.register(k="3@0,2@5")


def test_no_tasks_and_options_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKPO_K", "2")
    estimate = rllm.register()
    assert estimate(rewards=[], algorithm_config=None) == ([], [])
    with_nan = [[0.0, np.nan, 1.0], [2.0, 1.0]]
    (first, _), returns = estimate(rewards=with_nan, algorithm_config=None)
    assert_close(np.concatenate(returns), flat(2, with_nan))
    assert first[1] == 0 and first.dtype == np.float64
