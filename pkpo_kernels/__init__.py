"""PKPO: reward transforms that train a policy for pass@k and max@k, for NumPy, torch and JAX.

    import pkpo_kernels as pk
    advantages = pk.transform(rewards, k=8)      # (..., samples) → the same shape

Importing this loads NumPy alone; torch and JAX are used only where the caller has imported them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pkpo_kernels._pass_at_k import pass_at_k
from pkpo_kernels._warm_up import warm_up
from pkpo_kernels.api import max_at_k, transform
from pkpo_kernels.backends.registry import available_implementations
from pkpo_kernels.groups import to_tokens, transform_groups
from pkpo_kernels.maths.estimators import ESTIMATORS
from pkpo_kernels.maths.weights import Estimator
from pkpo_kernels.metrics import group_metrics

if TYPE_CHECKING:
    from pkpo_kernels import schedules
    from pkpo_kernels.evaluation import Evaluation, evaluate

__version__ = "0.2.0"

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Evaluation",
    "available_implementations",
    "evaluate",
    "group_metrics",
    "max_at_k",
    "pass_at_k",
    "schedules",
    "to_tokens",
    "transform",
    "transform_groups",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    if name == "schedules":
        return import_module("pkpo_kernels.schedules")
    if name in ("evaluate", "Evaluation"):
        return getattr(import_module("pkpo_kernels.evaluation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
