"""One module for each RL trainer, and `Options`, which all of them take their settings from.

Importing this imports no trainer; a trainer's module imports its trainer when it is imported. What
a user of each writes is in README.md beside this file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, get_args

import numpy as np

from pkpo_kernels._entries import GroupScale
from pkpo_kernels.groups import transform_groups
from pkpo_kernels.maths.estimators import ESTIMATORS
from pkpo_kernels.metrics import group_metrics
from pkpo_kernels.schedules import parse
from pkpo_kernels.typing import EstimatorName, Undersized
from pkpo_kernels.validation import (
    checked_integer,
    checked_name,
    dtype_name,
    is_integer,
    library_of,
    shown,
)

__all__ = ["Options"]

Array = Any


@dataclass(frozen=True)
class Options:
    """How a trainer's rewards become advantages.

    Attributes:
        k: how many samples the trained policy will get: an integer, text that
          `pkpo_kernels.schedules.parse` reads ("8", "8@0,1@400"; kept as an integer or a schedule),
          or a schedule: any function from the training step to k.
        estimator: a name from `pkpo_kernels.ESTIMATORS`.
        scale: "batch_mean" for losses that average over all entries, as trainers' do; "sum", "mean"
          or a number, as `pkpo_kernels.transform_groups` has them.
        undersized: what groups with too few samples for k get: "zero", "nan" or "clip".

    Raises:
        TypeError, ValueError: an attribute is not as described; the message names it.

    >>> Options("8@0,1@400")
    Options(k=piecewise_constant(values=[8, 1], boundaries=[400]), estimator='sloo_minus_one', \
scale='batch_mean', undersized='zero')
    """

    k: int | str | Callable[[int], int]
    estimator: EstimatorName = "sloo_minus_one"
    scale: GroupScale | float = "batch_mean"
    undersized: Undersized = "zero"

    def __post_init__(self) -> None:
        for name, checked in _CHECKS.items():
            object.__setattr__(self, name, checked(name, getattr(self, name)))
        _check_scale_of(self.estimator, self.scale, "scale")

    @classmethod
    def of(cls, config: Any = None, prefix: str = "pkpo_", **given: Any) -> Options:
        """Collect options: for each the first that is set of the given one, the trainer's
        configuration and the environment.

        Args:
            config: a trainer's configuration, a mapping or an object with attributes: `pkpo_k`,
              `pkpo_estimator`, `pkpo_scale`, `pkpo_undersized`. None is not set.
            prefix: what the names in the configuration begin with.
            given: `k`, `estimator`, `scale`, `undersized`. None is not set.

        The environment has them as PKPO_K, PKPO_ESTIMATOR, PKPO_SCALE, PKPO_UNDERSIZED.

        Raises:
            TypeError, ValueError: a value is not as `Options` describes it, k is set nowhere, or
              there is an option of another name; the message says what it is and where it is set.

        >>> Options.of({"pkpo_k": "4", "pkpo_scale": None}, undersized="clip").k
        4
        >>> Options.of({"pkpo_estimator": "slo"}, k=8)
        Traceback (most recent call last):
        ValueError: pkpo_estimator in the configuration must be one of sloo_minus_one, sloo, s, \
centered, passk_training; got 'slo'; did you mean 'sloo'?
        """
        names = [field.name for field in fields(cls)]
        _check_no_other("", given, names, "")
        configured = _entries(config, prefix)
        _check_no_other(prefix, configured, names, " in the configuration")
        _check_environment([f"PKPO_{name.upper()}" for name in names])
        values, sources = {}, {}
        for name in names:
            for value, source in (
                (given.get(name), name),
                (configured.get(prefix + name), f"{prefix}{name} in the configuration"),
                (os.environ.get(f"PKPO_{name.upper()}") or None, f"PKPO_{name.upper()}"),
            ):
                if value is not None:
                    values[name], sources[name] = _CHECKS[name](source, value), source
                    break
        if "k" not in values:
            raise ValueError(
                f"k must be set, as an argument, as {prefix}k in the configuration or as PKPO_K in"
                " the environment; got none of them"
            )
        if "scale" in values and "estimator" in values:
            _check_scale_of(values["estimator"], values["scale"], sources["scale"])
        return cls(**values)

    def k_at(self, step: int | None) -> int:
        """Look up the k of a training step.

        Args:
            step: the trainer's step; None where the trainer does not tell it.

        Raises:
            ValueError: there is no step, and k is a schedule.
        """
        if not callable(self.k):
            return int(self.k)
        if step is None:
            raise ValueError(
                f"k must be an integer here, where the trainer tells no step; got {shown(self.k)}"
            )
        return self.k(step)

    def advantages(
        self,
        rewards: Array,
        groups: Any,
        *,
        samples: Any = None,
        where: Array | None = None,
        step: int | None = None,
    ) -> Array:
        """Transform flat rewards (N,) into advantages (N,) by `pkpo_kernels.transform_groups`, in
        float32 or better.

        Args:
            rewards: (N,), as for `transform_groups`. NaN, and None in a list, is no reward: such an
              entry gets 0 and is no part of its group.
            groups, samples, where: as for `transform_groups`.
            step: the trainer's step, which a schedule of k looks k up at.

        Raises:
            TypeError, ValueError: as `transform_groups` and `k_at` do.
        """
        return transform_groups(
            _at_least_single(rewards),
            groups,
            self.k_at(step),
            samples=samples,
            where=where,
            estimator=self.estimator,
            scale=self.scale,
            undersized=self.undersized,
        )

    def metrics(
        self,
        rewards: Array,
        groups: Any,
        n: int,
        *,
        samples: Any = None,
        where: Array | None = None,
        step: int | None = None,
    ) -> dict[str, float]:
        """Describe a batch for the trainer's log: k, and what `pkpo_kernels.group_metrics` finds,
        for the best of 1, 2, 4, … samples, each as "pkpo/…".

        Args:
            rewards, groups, samples, where, step: as for `advantages`.
            n: how many samples a group has at most. The names depend on it, and not on k: they stay
              the same while k is annealed.

        >>> Options(k="2@0,1@5").metrics([0.0, 1.0, 0.0, 3.0], ["a"] * 4, 4, step=5)["pkpo/k"]
        1.0
        """
        k = self.k_at(step)
        ks = [2**i for i in range(checked_integer("n", n, least=1).bit_length())]
        found = group_metrics(
            _at_least_single(rewards),
            ks,
            groups=groups,
            samples=samples,
            where=where,
            k=k,
            estimator=self.estimator,
            scale=self.scale,
            undersized=self.undersized,
        )
        return {f"pkpo/{name}": float(value) for name, value in {"k": k, **found}.items()}


def _checked_k(argument: str, k: Any) -> Any:
    if isinstance(k, str):
        try:
            schedule = parse(k)
        except ValueError as error:
            raise ValueError(_not_a_k(argument, k, str(error))) from None
        return schedule if schedule.boundaries else schedule.values[0]
    if callable(k):
        return k
    if not is_integer(k):
        raise TypeError(_not_a_k(argument, k))
    return checked_integer(argument, k, least=1)


def _not_a_k(argument: str, k: Any, why: str = "") -> str:
    return (
        f"{argument} must be an integer, a schedule, or text like '8@0,1@400'; got {shown(k)}"
        f"{f': {why}' if why else ''}"
    )


def _checked_scale(argument: str, scale: Any) -> GroupScale | float:
    try:
        number = math.nan if isinstance(scale, bool) else float(scale)
    except OverflowError:  # an integer that is larger than any float
        number = math.inf
    except (TypeError, ValueError):
        return checked_name(argument, scale, get_args(GroupScale))
    if not math.isfinite(number):
        raise ValueError(
            f"{argument} must be a finite number or one of {', '.join(get_args(GroupScale))};"
            f" got {shown(scale)}"
        )
    return number


def _check_scale_of(estimator: str, scale: str | float, argument: str) -> None:
    if scale == "mean" and ESTIMATORS[estimator].normalized:
        raise ValueError(
            f"{argument} must be 'sum', 'batch_mean' or a number for estimator {estimator!r}, which"
            " is normalised by itself; got 'mean'"
        )


def _checked_undersized(argument: str, name: Any) -> Undersized:
    # Hydra's command line makes a number of the word.
    name = "nan" if isinstance(name, float) and math.isnan(name) else name
    return checked_name(argument, name, get_args(Undersized))


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "k": _checked_k,
    "estimator": lambda argument, name: checked_name(argument, name, ESTIMATORS),
    "scale": _checked_scale,
    "undersized": _checked_undersized,
}


def _entries(config: Any, prefix: str) -> dict[str, Any]:
    """Collect a configuration's entries whose names begin with the prefix."""
    if isinstance(config, Mapping):
        return {name: config[name] for name in config if str(name).startswith(prefix)}
    return {name: getattr(config, name) for name in dir(config) if name.startswith(prefix)}


def _check_no_other(prefix: str, found: Mapping[str, Any], names: list[str], where: str) -> None:
    """Raise for an option that is none: a misspelt one would be left out without a word."""
    for name in found:
        if name.removeprefix(prefix) not in names:
            known = [prefix + option for option in names]
            close = get_close_matches(name, known, 1)
            raise TypeError(
                f"options{where} must be among {', '.join(known)}; got {name}"
                f"{f'; did you mean {close[0]}?' if close else ''}"
            )


def _check_environment(known: list[str]) -> None:
    """Raise for a name that looks misspelt; others may be somebody else's."""
    for name, value in os.environ.items():
        is_other = name.startswith("PKPO_") and name not in known and value
        if is_other and (close := get_close_matches(name, known, 1, cutoff=0.8)):
            raise TypeError(
                f"options in the environment must be among {', '.join(known)}; got {name}; did you"
                f" mean {close[0]}?"
            )


def _number(i: int, reward: Any) -> float:
    """Take a reward for a float: a number of any kind, a tensor (), or None for NaN."""
    if hasattr(reward, "detach"):
        reward = reward.detach()
    try:
        number = math.nan if reward is None else float(reward)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"rewards must be numbers; got {shown(reward)} at rewards[{i}]") from error
    if isinstance(reward, str) or (isinstance(reward, int) and number != reward):
        raise TypeError(
            f"rewards must be numbers that float64 holds; got {shown(reward)} at rewards[{i}]"
        )
    return number


def _at_least_single(rewards: Array) -> Array:
    """Make rewards (N,) floats of 32 bits or more, or what becomes such, with NaN for None."""
    library = library_of(rewards)
    if library is None or (dtype_name(rewards.dtype) == "object" and rewards.ndim == 1):
        if not isinstance(rewards, Iterable):
            return rewards  # to be refused
        return np.array([_number(i, reward) for i, reward in enumerate(rewards)], np.float64)
    if library == "torch":
        # Integers too: they would become floats of torch's default dtype, which may be a short one.
        return rewards if dtype_name(rewards.dtype) in ("float32", "float64") else rewards.float()
    short = dtype_name(rewards.dtype) in ("float16", "bfloat16")
    return rewards.astype(np.float32) if short else rewards
