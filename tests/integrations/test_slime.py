"""slime: its own samples, as its RolloutManager passes them."""

from __future__ import annotations

import importlib
import shlex
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stand_ins
from alone import assert_close, each_group_alone
from readme import example

types = stand_ins.real_or(stand_ins.slime, "slime.utils.types")
sample_hooks = stand_ins.real_or(stand_ins.slime, "slime.rollout.sample_hooks")

from pkpo_kernels.integrations import slime  # noqa: E402


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("K", "ESTIMATOR", "SCALE", "UNDERSIZED"):
        monkeypatch.delenv(f"PKPO_{name}", raising=False)


def arguments(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(reward_key=None, **options)


def samples(rewards: Any, groups: Any, rollouts: Any = None, removed: Any = ()) -> list[Any]:
    rollouts = range(len(rewards)) if rollouts is None else rollouts
    return [
        types.Sample(group_index=g, index=i, rollout_id=r, reward=x, remove_sample=i in removed)
        for i, (x, g, r) in enumerate(zip(rewards, groups, rollouts, strict=True))
    ]


def test_ragged_groups_in_any_order() -> None:
    rng = np.random.default_rng(0)
    rewards, groups = rng.normal(size=30).tolist(), rng.integers(0, 5, 30).tolist()
    raw, advantages = slime.post_process(arguments(pkpo_k=3), samples(rewards, groups))
    assert raw == rewards and all(type(advantage) is float for advantage in advantages)
    assert_close(advantages, each_group_alone(rewards, groups, 3))


def test_the_launch_in_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = shlex.split(example("slime", "sh").replace("\\\n", ""))
    monkeypatch.setenv(*launch[0].split("=", 1))
    monkeypatch.setattr(sample_hooks, "_current_rollout_id", 399)
    module, _, function = launch[launch.index("--custom-reward-post-process-path") + 1].rpartition(
        "."
    )
    rewards = np.random.default_rng(1).normal(size=16).tolist()
    hook = getattr(importlib.import_module(module), function)
    _, advantages = hook(arguments(), samples(rewards, [0] * 16))
    assert_close(advantages, each_group_alone(rewards, [0] * 16, 8))


def test_the_samples_of_a_rollout_are_one() -> None:
    """Its last sample has its reward, all get its advantage, and the mean is over rollouts."""
    rewards, groups = [0.0, 1.0, 0.0, 3.0, 2.0, 5.0, 4.0], [0, 0, 0, 0, 1, 1, 1]
    entries = [0, 1, 1, 1, 2, 3, 3, 4, 5, 6]
    last = [*(here != after for here, after in pairwise(entries)), True]
    given = [rewards[e] if is_last else 7.0 for e, is_last in zip(entries, last, strict=True)]
    made = samples(given, [groups[e] for e in entries], rollouts=entries)
    raw, advantages = slime.post_process(arguments(pkpo_k=2), made)
    assert raw == given
    assert_close(advantages, each_group_alone(rewards, groups, 2)[entries])


def test_a_sample_without_a_rollout_id_is_one_by_itself() -> None:
    rewards, groups = [0.0, 1.0, 0.0, 3.0], [0] * 4
    made = samples(rewards, groups, rollouts=[None, None, 0, 1])
    assert_close(
        slime.post_process(arguments(pkpo_k=2), made)[1], each_group_alone(rewards, groups, 2)
    )


def test_what_is_removed_or_has_no_reward_is_left_out() -> None:
    rewards, groups = [0.0, 9.0, 0.0, None, 3.0, 1.0, 2.0, 2.0], [0] * 6 + [1] * 2
    made = samples(rewards, groups, removed={1})
    raw, advantages = slime.post_process(arguments(pkpo_k=3), made)
    counted = [np.nan if i == 1 or x is None else x for i, x in enumerate(rewards)]
    assert raw == rewards and advantages[1] == advantages[3] == 0
    assert advantages[6:] == [0, 0]  # fewer than k
    assert_close(advantages, each_group_alone(counted, groups, 3))


def test_a_reward_of_several_is_taken_by_its_key() -> None:
    rewards, groups = [0.0, 1.0, 3.0], [0] * 3
    args = SimpleNamespace(reward_key="right", pkpo_k=2)
    made = samples([{"right": x, "short": 5.0} for x in rewards], groups)
    raw, advantages = slime.post_process(args, made)
    assert raw == rewards
    assert_close(advantages, each_group_alone(rewards, groups, 2))


def test_k_changes_with_the_rollout_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKPO_K", "4@0,2@10")
    rewards, groups = [0.0, 1.0, 0.0, 3.0, 2.0], [0] * 5
    for rollout, k in ((0, 4), (9, 4), (10, 2)):
        monkeypatch.setattr(sample_hooks, "_current_rollout_id", rollout)
        _, advantages = slime.post_process(arguments(), samples(rewards, groups))
        assert_close(advantages, each_group_alone(rewards, groups, k))
    monkeypatch.setattr(sample_hooks, "_current_rollout_id", None)
    with pytest.raises(ValueError, match="k must be an integer here, where the trainer tells no"):
        slime.post_process(arguments(), samples(rewards, groups))


def test_wrong_options_and_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="k must be set"):
        slime.post_process(arguments(), samples([1.0], [0]))
    with pytest.raises(TypeError, match="did you mean pkpo_scale"):
        slime.post_process(arguments(pkpo_k=1, pkpo_scal="sum"), samples([1.0], [0]))
    with pytest.raises(ValueError, match="groups must"):
        slime.post_process(arguments(pkpo_k=1), samples([1.0], [None]))
