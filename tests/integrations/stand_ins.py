"""Trainers that no package index has, where they are not on the path: what the integrations touch,
with the names and signatures of the recorded commits. Where a trainer is there, it is used itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def real_or(stand_in: Callable[[], dict[str, dict[str, Any]]], module: str) -> ModuleType:
    """Import a module of a trainer, or of what stands in for it where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError:
        for name, contents in stand_in().items():
            made = ModuleType(name)
            made.__dict__.update(contents)
            made.__spec__ = ModuleSpec(name, None)
            made.__path__ = []  # type: ignore[attr-defined]
            sys.modules[name] = made
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, made)
        return sys.modules[module]


# ---- slime, 624b824 ----------------------------------------------------------------------------


@dataclass
class Sample:
    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    reward: float | dict[str, Any] | None = None
    remove_sample: bool = False

    def get_reward_value(self, args: Any) -> Any:
        return self.reward if not args.reward_key else self.reward[args.reward_key]  # type: ignore[index]


def slime() -> dict[str, dict[str, Any]]:
    hooks: dict[str, Any] = {"_current_rollout_id": None}
    return {
        "slime": {},
        "slime.utils": {},
        "slime.utils.types": {"Sample": Sample},
        "slime.rollout": {},
        "slime.rollout.sample_hooks": hooks,
    }


# ---- rLLM, 9beb6e0 -----------------------------------------------------------------------------


class Estimator(str, Enum):  # noqa: UP042  # as rLLM has it
    GRPO = "grpo"
    OTHER = "other"

    @classmethod
    def _missing_(cls, value: object) -> Estimator:
        return cls.OTHER


@dataclass
class Step:
    advantage: float | None = None


@dataclass
class Trajectory:
    name: str
    reward: float
    steps: list[Step]


@dataclass
class TrajectoryGroup:
    trajectories: list[Trajectory]
    group_id: str

    @property
    def group_role(self) -> str:
        return self.group_id.split(":")[1]


@dataclass
class AlgorithmConfig:
    estimator: Estimator = Estimator.GRPO
    estimator_map: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, algorithm_config: Any) -> AlgorithmConfig:
        return cls(Estimator(algorithm_config.adv_estimator))


def rllm() -> dict[str, dict[str, Any]]:
    registry: dict[Any, Callable[..., Any]] = {}

    def register(name: Any) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            registry[name] = function
            return function

        return decorate

    def collect(groups: list[TrajectoryGroup], algorithm_config: AlgorithmConfig) -> dict[str, Any]:
        import numpy as np

        for role in {group.group_role for group in groups}:
            of_role = [group for group in groups if group.group_role == role]
            estimator = algorithm_config.estimator_map.get(role, algorithm_config.estimator)
            advantages, _ = registry[estimator](
                rewards=[np.array([one.reward for one in group.trajectories]) for group in of_role],
                algorithm_config=algorithm_config,
                traj_groups=of_role,
            )
            for group, of_group in zip(of_role, advantages, strict=True):
                for one, advantage in zip(group.trajectories, of_group, strict=True):
                    for step in one.steps:
                        step.advantage = float(advantage)
        return {}

    return {
        "rllm": {},
        "rllm.types": {
            "Step": Step,
            "Trajectory": Trajectory,
            "TrajectoryGroup": TrajectoryGroup,
        },
        "rllm.trainer": {},
        "rllm.trainer.algorithms": {},
        "rllm.trainer.algorithms.config": {
            "rLLMAdvantageEstimator": Estimator,
            "AlgorithmConfig": AlgorithmConfig,
        },
        "rllm.trainer.algorithms.advantage": {
            "RLLM_ADV_ESTIMATOR_REGISTRY": registry,
            "register_rllm_adv_estimator": register,
            "collect_reward_and_advantage_from_trajectory_groups": collect,
        },
    }
