"""verl: the advantage estimator "pkpo".

    algorithm.adv_estimator=pkpo +algorithm.pkpo_k=8

verl imports this module itself, in every process, by the entry point `verl.plugins`. It registers
the estimator, and has verl's V1 trainer tell it what an estimator is not told: the step, which a
schedule of k needs, and which entries are the outputs of one session, hence one sample.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

from pkpo_kernels.groups import to_tokens
from pkpo_kernels.integrations import Options

Tensor = torch.Tensor
_TRAINER = "verl.trainer.ppo.v1.trainer_base"
_LOGGER = logging.getLogger(__name__)


# What PPOTrainer._compute_advantage was called with, while it runs: self, batch, metrics.
_call: ContextVar[Mapping[str, Any] | None] = ContextVar("_call", default=None)


def advantages(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    config: Any = None,
    index: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Compute PKPO's advantages of a batch, (bs, T) → two times (bs, T), for verl's registry.

    Args:
        token_level_rewards: (bs, T), the reward of an entry is their sum.
        response_mask: (bs, T); an entry without any token is left out and gets 0.
        config: verl's `algorithm`: `pkpo_k`, `pkpo_estimator`, `pkpo_scale`, `pkpo_undersized`.
        index: (bs,) the prompts' uids: the groups.

    Returns:
        The advantages, and again as the returns, which no loss of an estimator without a critic
        reads.

    Raises:
        TypeError, ValueError: as `Options.of` and `transform_groups` do; no uids; a schedule of k
          where verl's trainer tells no step.
    """
    if index is None:
        raise ValueError("index must be the prompts' uids; got None: the batch has no 'uid'")
    options, call = Options.of(config), _call.get()
    rewards, valid = token_level_rewards.float().sum(-1), response_mask.bool().any(-1)
    if call is None:
        given = options.advantages(rewards, index, where=valid, step=_step())
    else:
        given = _of_sessions(options, rewards, valid, index, **call)
    given = to_tokens(given, response_mask)
    return given, given


def _of_sessions(
    options: Options,
    rewards: Tensor,
    valid: Tensor,
    index: Any,
    *,
    self: Any,
    batch: Any,
    metrics: dict[str, Any],
) -> Tensor:
    """Compute and log the advantages of entries, (bs,) → (bs,), those of a session one sample.

    Args:
        options, rewards, valid, index: as in `advantages`.
        self: the V1 trainer, which counts `global_steps` from 1.
        batch: its `keys` are the entries' names, "{uid}_{session}_{output}".
        metrics: what the trainer logs of this step.
    """
    if len(batch.keys) != len(index):
        raise ValueError(f"keys must be one an entry; got {len(batch.keys)} for {len(index)}")
    step, n = self.global_steps, self.config.actor_rollout_ref.rollout.n
    sessions, outputs = zip(*(key.rsplit("_", 1) for key in batch.keys), strict=True)
    # The trainer has mixed the entries; a session's reward is its last output's.
    order = sorted(range(len(outputs)), key=lambda entry: int(outputs[entry]))
    given = torch.zeros_like(rewards)
    given[order] = options.advantages(
        rewards[order],
        index[order],
        samples=[sessions[entry] for entry in order],
        where=valid[order],
        step=step,
    )
    last = list({sessions[entry]: entry for entry in order if valid[entry]}.values())
    metrics.update(options.metrics(rewards[last], index[last], n, step=step))
    return given


def _step() -> int | None:
    """Ask verl for the step of its legacy trainer; None where no trainer tells it."""
    from verl.utils.skip import SkipManager

    return SkipManager.step if SkipManager.step >= 0 else None


def _wrap(trainer: Any) -> None:
    """Have a V1 trainer's class tell `advantages` what it is called with.

    It is no more than passed on: trainings with other estimators run through this as well.
    """
    compute = trainer._compute_advantage
    signature = inspect.signature(compute)

    @functools.wraps(compute)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        token = _call.set(signature.bind(*args, **kwargs).arguments)
        try:
            return compute(*args, **kwargs)
        finally:
            _call.reset(token)

    trainer._compute_advantage = wrapped


class _OnImport(MetaPathFinder):
    """Call a function with a module as soon as that is imported by somebody else.

    The plugin is loaded by whatever process imports verl, most of which never import the trainer.
    """

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == self.name else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.then(module)

            setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


def _wrap_trainer_of(module: Any) -> None:
    try:
        _wrap(module.PPOTrainer)
    except AttributeError as error:
        _LOGGER.warning(
            "pkpo: this verl's V1 trainer is another than 0.9.1's, so that schedules of k get no"
            " step, and every output of a session counts as a sample of its own: %s",
            error,
        )


def register(name: str = "pkpo") -> None:
    """Register the estimator under a name, as this module does under "pkpo" when it is imported."""
    from verl.trainer.ppo.core_algos import register_adv_est

    register_adv_est(name)(advantages)


try:
    register()
    if _TRAINER in sys.modules:
        _wrap_trainer_of(sys.modules[_TRAINER])
    else:
        sys.meta_path.insert(0, _OnImport(_TRAINER, _wrap_trainer_of))
except Exception as error:
    # verl itself says so at DEBUG, and later that it knows no estimator "pkpo".
    _LOGGER.warning("pkpo: the estimator is not registered: %s: %s", type(error).__name__, error)
    raise
