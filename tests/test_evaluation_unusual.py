"""`evaluate` of rewards that nobody can read, and of very large and very small ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pkpo_kernels import evaluate

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
