"""PKPO for slime: a function that post-processes rewards.

    --custom-reward-post-process-path pkpo_kernels.integrations.slime.post_process

with PKPO_K=8 in the environment, or `pkpo_k: 8` in the file of --custom-config-path. slime calls it
on the host with all samples of a rollout step, and uses what it returns as the advantages ("grpo",
"gspo" and "cispo" alike). Its own words: a *rollout* is one attempt at a task, and several of its
*samples* may share one `rollout_id`, where an agent's context was compacted or handed on. Here a
rollout is a sample, and slime's samples are the entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pkpo_kernels.integrations import Options

__all__ = ["post_process"]


def post_process(args: Any, samples: Sequence[Any]) -> tuple[list[Any], list[float]]:
    """Turn the rewards of slime's samples into advantages: N samples → N raw rewards and N floats.

    A sample with `remove_sample` and one without a reward are left out and get 0; of the samples of
    a rollout the last that counts has the rollout's reward, and all get the same advantage.

    Args:
        args: slime's arguments, with `pkpo_k`, `pkpo_estimator`, `pkpo_scale` and `pkpo_undersized`
          where they were set; else PKPO_K and the others of the environment. A k that changes is
          looked up at slime's rollout id, the count of rollout steps.
        samples: slime's `Sample` objects, in any order.

    Returns:
        The rewards as they were, None where there is none; and the advantages.

    Raises:
        ValueError, TypeError: an option is wrong or k is missing, a sample has no `group_index`, or
          k changes with the step, which this version of slime does not tell.
    """
    options = Options.of(args)
    raw = [None if one.reward is None else one.get_reward_value(args) for one in samples]
    # A sample that names no rollout is one by itself.
    rollouts = [
        ("alone", i) if one.rollout_id is None else ("rollout", one.rollout_id)
        for i, one in enumerate(samples)
    ]
    advantages = options.advantages(
        raw,
        [one.group_index for one in samples],
        samples=rollouts,
        where=np.array([not one.remove_sample for one in samples], bool),
        step=_rollout_id() if callable(options.k) else None,
    )
    if options.scale == "batch_mean":
        # Of an average over all entries, which that is for, to slime's average over rollouts.
        advantages *= len(set(rollouts)) / max(len(samples), 1)
    return raw, advantages.tolist()


def _rollout_id() -> int | None:
    """Ask slime for the number of the rollout step that it is in; None where it does not tell."""
    from slime.rollout import sample_hooks

    current: int | None = getattr(sample_hooks, "_current_rollout_id", None)
    return current
