"""PKPO for SkyRL: an advantage estimator for its registry, its settings, and a mixin for trainers.

    from pkpo_kernels.integrations.skyrl import PKPOAlgorithmConfig, PKPOMixin, register

    class Trainer(PKPOMixin, RayPPOTrainer): ...             # what BasePPOExp.get_trainer returns
    Config = make_config(algorithm_cls=PKPOAlgorithmConfig)  # trainer.algorithm.pkpo_k=8 …
    register()                                               # before validate_cfg

SkyRL calls an estimator in the trainer's process with the whole batch, the rows that pad it to the
number of workers included: copies of the first, which nothing but their ids "pad0", "pad1", … tells
from samples. Its losses average over a mini-batch without them. The mixin tells the estimator what
SkyRL does not: the step, for a k that changes, and, where every step of a trajectory is a row of
its own (`generator.step_wise_trajectories`), how many rows the loss averages over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from skyrl.backends.skyrl_train.utils.ppo_utils import (
    AdvantageEstimatorRegistry,
    register_advantage_estimator,
)
from skyrl.train.config import AlgorithmConfig

from pkpo_kernels.groups import to_tokens
from pkpo_kernels.integrations import Options

__all__ = ["PKPOAlgorithmConfig", "PKPOMixin", "register"]

_PAD = re.compile(r"pad\d+")


@dataclass
class PKPOAlgorithmConfig(AlgorithmConfig):  # type: ignore[misc]  # a stranger to mypy
    """SkyRL's `trainer.algorithm` with PKPO's options, for `make_config(algorithm_cls=…)`.

    SkyRL refuses settings that it does not know. None leaves an option to PKPO_K and the others of
    the environment, and these to the defaults of `Options`.
    """

    advantage_estimator: str = "pkpo"
    pkpo_k: int | str | None = None
    pkpo_estimator: str | None = None
    pkpo_scale: str | float | None = None
    pkpo_undersized: str | None = None


def register(name: str = "pkpo", **options: Any) -> None:
    """Register an advantage estimator, rewards (B, T) → advantages and returns (B, T), in SkyRL's
    registry; another one of ours is replaced.

    Call it before `validate_cfg`, or at least in the process of the trainer. Where Ray runs, SkyRL
    hands it on to its other processes, which must be able to import this package.

    Args:
        name: what `trainer.algorithm.advantage_estimator` names.
        options: `k`, `estimator`, `scale` and `undersized` as in `Options`; what is not given is
          read at each batch from `trainer.algorithm` (`pkpo_k` and so on), then from PKPO_K and the
          others of the environment.

    Raises:
        ValueError: the name is taken by an estimator that is none of ours.
    """
    if name in AdvantageEstimatorRegistry.list_available():
        taken = getattr(AdvantageEstimatorRegistry.get(name), "__wrapped__", None)
        if isinstance(taken, partial) and taken.func is _estimate:
            AdvantageEstimatorRegistry.unregister(name)
    # A partial of a function of this module: pickled, it is a name and the options.
    register_advantage_estimator(name)(partial(_estimate, options))


class PKPOMixin:
    """Tells the estimator the step and the rows, and logs what `Options.metrics` finds in a batch:
    `class Trainer(PKPOMixin, RayPPOTrainer)`."""

    global_step: int
    all_metrics: dict[str, Any]
    cfg: Any

    def compute_advantages_and_returns(self, data: Any) -> Any:
        """Compute a batch's advantages as SkyRL does, with the estimator told of this step."""
        settings = self.cfg.generator
        rows = _rows_per_sample(data.metadata) if settings.step_wise_trajectories else 1.0
        told = _Told(self.global_step, rows, settings.n_samples_per_prompt, self.all_metrics)
        token = _TOLD.set(told)
        try:
            return super().compute_advantages_and_returns(data)  # type: ignore[misc]
        finally:
            _TOLD.reset(token)


@dataclass(frozen=True)
class _Told:
    """What the mixin tells.

    Attributes:
        step: the trainer's.
        rows_per_sample: how many rows there are to a sample in its mini-batch, a number or
          (samples,).
        samples: how many samples a group has at most.
        log: where the metrics of the batch go.
    """

    step: int
    rows_per_sample: Any
    samples: int
    log: dict[str, Any]


_TOLD: ContextVar[_Told | None] = ContextVar("pkpo_skyrl", default=None)


def _estimate(
    given: dict[str, Any],
    *,
    token_level_rewards: Any,
    response_mask: Any,
    index: Sequence[Any],
    config: Any = None,
    **_: Any,
) -> tuple[Any, Any]:
    """Compute advantages (B, T), and the same as returns, as SkyRL's registry has it."""
    options, told = Options.of(config, **given), _TOLD.get()
    if told is None and callable(options.k):
        raise ValueError(
            "k must be an integer unless the trainer tells its step; got one that changes with it,"
            f" {options.k}: use class Trainer(PKPOMixin, RayPPOTrainer)"
        )
    kept = [i for i, uid in enumerate(index) if not _PAD.fullmatch(str(uid))]
    rewards = token_level_rewards.float().sum(-1)
    batch = (rewards[kept], [str(index[i]) for i in kept])
    # A response without a token has no place for its reward, and so none.
    where, step = response_mask[kept], None if told is None else told.step
    advantages = torch.zeros_like(rewards)
    advantages[kept] = options.advantages(*batch, where=where, step=step)
    if told is not None:
        told.log.update(options.metrics(*batch, told.samples, where=where, step=step))
        if options.scale == "batch_mean":
            # Of an average over samples, which that is here, to one over rows.
            advantages = advantages * told.rows_per_sample
    out = to_tokens(advantages, response_mask)
    return out, out


def _rows_per_sample(metadata: dict[str, Any]) -> Any:
    """Count the rows to a sample of each mini-batch: → (samples,), for the last row of each."""
    last = torch.as_tensor(metadata["is_last_step"], dtype=torch.bool)
    ratio = torch.ones(len(last))
    for start, end in metadata["policy_mini_batch_boundaries"]:
        ratio[start:end] = (end - start) / last[start:end].sum()
    return ratio[last]
