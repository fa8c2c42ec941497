"""PKPO for rLLM: an advantage estimator for its registry.

    from pkpo_kernels.integrations import rllm
    rllm.register(k=8)                           # and rllm.algorithm.adv_estimator=pkpo

rLLM calls an estimator on the host, once for each role of an agent, with a list of arrays: one of
trajectory rewards for each task. A trajectory is a sample, however many steps it has. It passes no
step of training, hence the argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rllm.trainer.algorithms.advantage import (
    RLLM_ADV_ESTIMATOR_REGISTRY,
    register_rllm_adv_estimator,
)
from rllm.trainer.algorithms.config import rLLMAdvantageEstimator

from pkpo_kernels.integrations import Options

__all__ = ["register"]

Groups = list[NDArray[np.float64]]


def register(
    name: str = "pkpo", *, step: Callable[[], int] | None = None, **options: Any
) -> Callable[..., tuple[Groups, Groups]]:
    """Register an advantage estimator, arrays (n_g,) → arrays (n_g,), in rLLM's registry; a name
    that is registered already is replaced.

    Args:
        name: what `adv_estimator` or an `estimator_map` names. A configuration turns every name
          that is not rLLM's own into its "other", under which the estimator is registered too,
          unless another one has taken that place.
        step: gives the training step, for a k that changes with it; called once a call.
        options: `k`, `estimator`, `scale` and `undersized` as in `Options`; what is not given is
          read from PKPO_K, PKPO_ESTIMATOR, PKPO_SCALE and PKPO_UNDERSIZED.

    Returns:
        The estimator, as rLLM calls it: `estimator(rewards=…, algorithm_config=…, …)`.

    Raises:
        ValueError, TypeError: an option is wrong or k is missing, or k changes with the step and
          `step` is not given.
    """
    chosen = Options.of(**options)
    if step is None and callable(chosen.k):
        raise ValueError(f"step must be given for a k that changes with it, {chosen.k}; got None")

    def estimate(rewards: Sequence[Any], algorithm_config: Any, **_: Any) -> tuple[Groups, Groups]:
        if not len(rewards):
            return [], []
        sizes = [len(group) for group in rewards]
        advantages = chosen.advantages(
            np.concatenate([np.asarray(group, np.float64) for group in rewards]),
            np.repeat(np.arange(len(sizes)), sizes),
            step=None if step is None else int(step()),
        )
        by_group = np.split(advantages, np.cumsum(sizes)[:-1])
        return by_group, by_group

    previous = RLLM_ADV_ESTIMATOR_REGISTRY.get(name)
    register_rllm_adv_estimator(name)(estimate)
    other = rLLMAdvantageEstimator.OTHER
    if RLLM_ADV_ESTIMATOR_REGISTRY.get(other) in (None, previous):
        register_rllm_adv_estimator(other)(estimate)
    return estimate
