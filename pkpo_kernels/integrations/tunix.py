"""PKPO for google-tunix: an advantage estimator for its registry.

    from pkpo_kernels.integrations import tunix
    tunix.register(k="8@0,1@400", step=lambda: learner.rl_cluster.global_steps)
    GRPOConfig(advantage_estimator="pkpo", loss_agg_mode="seq-mean-token-sum", num_generations=16)

Tunix calls an estimator on the host with rewards in contiguous blocks of `num_generations`: the
whole batch (GRPOLearner), or one group a call (the agentic learners). Its losses average over the
samples of a batch, which "batch_mean" is for. It passes no step, hence the argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tunix.rl import function_registry

from pkpo_kernels.integrations import Options

__all__ = ["register"]


def register(
    name: str = "pkpo", *, step: Callable[[], int] | None = None, **options: Any
) -> Callable[..., NDArray[np.float32]]:
    """Register an advantage estimator, rewards (B·n,) → advantages (B·n,) float32, in Tunix's
    registry; a name that is registered already is replaced.

    Args:
        name: what `GRPOConfig(advantage_estimator=…)` names.
        step: gives the training step, for a k that changes with it; called once a batch.
        options: `k`, `estimator`, `scale` and `undersized` as in `Options`; what is not given is
          read from PKPO_K, PKPO_ESTIMATOR, PKPO_SCALE and PKPO_UNDERSIZED.

    Returns:
        The estimator, as Tunix calls it: `estimator(rewards=…, num_generations=…)`.

    Raises:
        ValueError, TypeError: an option is wrong or k is missing, or k changes with the step and
          `step` is not given.
    """
    chosen = Options.of(**options)
    if step is None and callable(chosen.k):
        raise ValueError(f"step must be given for a k that changes with it, {chosen.k}; got None")

    def estimate(rewards: Any, num_generations: int) -> NDArray[np.float32]:
        # On the host even where they are a jax.Array: Tunix puts the result on its devices.
        on_host = np.asarray(rewards, np.float32)
        now = None if step is None else int(step())
        return chosen.advantages(on_host, int(num_generations), step=now)

    function_registry.register_advantage_estimator(name)(estimate)
    return estimate
