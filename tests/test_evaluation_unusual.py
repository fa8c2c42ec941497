"""`evaluate` of rewards that nobody can read, and of very large and very small ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pkpo_kernels import evaluate
from pkpo_kernels.evaluation import AtK

REWARDS = np.array([[0.0, 2.0, 1.0], [1.0, 0.5, 0.0]], np.float32)


def estimate(*arguments: Any, **options: Any) -> Any:
    """Evaluate → a tensor, exact, which programs of torch may give."""
    return torch.tensor(evaluate(*arguments, **options).rows[0].estimate, dtype=torch.float64)


CALLS: dict[str, Callable[[Any], Any]] = {
    "rewards": lambda x: estimate(x, 1),
    "rewards of task 0": lambda x: estimate([x[0], x[1]], 1),
    "rewards of task 'a'": lambda x: estimate({"a": x[0]}, 1),
    "against": lambda x: estimate(REWARDS, 1, against=x),
    "where": lambda x: estimate(REWARDS, 1, where=x > 0),
}
ADVICE = "must have values that the host can read; .* take pk.group_metrics there"


@pytest.mark.parametrize(
    ("program", "given"),
    [
        (jax.jit, REWARDS),
        (jax.vmap, REWARDS[None]),
        (torch.vmap, torch.from_numpy(REWARDS)[None]),
        (make_fx, torch.from_numpy(REWARDS)),
    ],
    ids=["jit", "vmap", "torch.vmap", "make_fx"],
)
def test_inside_a_program_it_says_what_to_take(
    program: Callable[[Callable[[Any], Any]], Callable[[Any], Any]], given: Any
) -> None:
    for name, call in CALLS.items():
        with pytest.raises(TypeError, match=f"{name} {ADVICE}"):
            program(call)(given)


def test_beside_a_program_of_torch_it_is_what_it_is() -> None:
    rewards = torch.from_numpy(REWARDS)
    for call in CALLS.values():
        with pytest.raises(Exception, match=f"rewards {ADVICE}"):
            torch.compile(call, backend="eager", fullgraph=True)(rewards)
        assert torch.compile(call, backend="eager")(rewards) == call(rewards)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tasks", [40, 3000], ids=["task by task", "the farthest and the rest"])
@pytest.mark.parametrize("exponent", [1022, -1000])
def test_large_and_small_rewards_are_as_others_of_another_unit(tasks: int, exponent: int) -> None:
    rng = np.random.default_rng(0)
    values = [rng.uniform(-1.9, 1.9, (tasks, 4)).tolist() for _ in range(2)]
    ragged = [[row[: 1 + i % 4] for i, row in enumerate(run)] for run in values]
    scaled = [[[math.ldexp(x, exponent) for x in row] for row in run] for run in ragged]
    ks: dict[str, Any] = {"k": [1, 3], "resamples": 50}
    want, got = (evaluate(run, against=other, **ks) for run, other in (ragged, scaled))
    assert want.difference is not None and got.difference is not None
    for one, other in zip(
        (*want.rows, *want.difference), (*got.rows, *got.difference), strict=True
    ):
        assert (one.tasks, one.too_small) == (other.tasks, other.too_small)
        for right, found in zip(figures(one), figures(other), strict=True):
            assert math.isfinite(found) and math.ldexp(right, exponent) == found


def figures(row: AtK) -> tuple[float, ...]:
    return row.estimate, *row.bootstrap, *row.normal


@pytest.mark.filterwarnings("error")
def test_the_largest_numbers_there_are() -> None:
    most = sys.float_info.max
    for row in evaluate([[most] * 3] * 7, [1, 3]).rows:
        assert row.estimate == most and row.bootstrap == (most, most)
    # Range and difference overflow, and what is asked for does not.
    both = evaluate([[most, -most], [most, most]], [1, 2], against=[[-most] * 2, [most] * 2])
    assert [row.estimate for row in both.rows] == [most / 2, most]
    assert both.difference is not None
    assert [row.estimate for row in both.difference] == [most / 2, most]
    assert both.difference[1].bootstrap == (0, math.inf)
