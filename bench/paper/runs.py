"""What makes one run of an experiment another: its schedule of k, its learning rate, its seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pkpo_kernels.schedules import Schedule, piecewise_constant

# Of how many samples the best is taken, in training and in judging.
KS = (1, 2, 4, 8, 16)
# Samples of a task in a step.
SAMPLES = 16
SWITCHED = "8→1"


class Setting(NamedTuple):
    """How is trained."""

    name: str
    schedule: Schedule
    lr: float


def constant(k: int, lr: float) -> Setting:
    """Train for one k."""
    return Setting(f"k={k}", piecewise_constant([k], []), lr)


def switched(steps: int, lr: float) -> Setting:
    """Train for k=8, and from the middle on for k=1."""
    return Setting(SWITCHED, piecewise_constant([8, 1], [steps // 2]), lr)


class Case(NamedTuple):
    """A setting as data for a compiled program: stacked, every field has an axis of cases."""

    ks: Any  # (steps,)
    lr: Any

    @classmethod
    def of(cls, setting: Setting, steps: int) -> Case:
        return cls(np.int32(setting.schedule(np.arange(steps))), np.float32(setting.lr))


class Curves(NamedTuple):
    """What is kept of every step."""

    solved: Any  # share of the tasks that were ever solved
    entropy: Any  # of the policy, in nats
    passes: Any  # share of the step's samples that are right

    def last(self) -> dict[str, float]:
        """Give the figures in the end of curves (steps,), those that fluctuate over 50 steps."""
        return {"solved": float(self.solved[-1]), "entropy": float(self.entropy[-50:].mean())}


def stacked(items: Sequence[Any]) -> Any:
    """Stack trees of arrays, leaf by leaf, along a new first axis."""
    import jax  # here, for tables are made without it

    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)
