"""What is compiled before the first step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_kernels as pk


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_it_says_what_took_how_long(library: Any) -> None:
    kinds = ("transform", "transform_groups", "max_at_k")
    everything = [f"{kind}{mask}" for kind in kinds for mask in ("", ", where")]
    got = pk.warm_up([3, 5], everything, library=library, rows=2, dtype="bool", dynamic_k=True)
    assert list(got) == [f"{call}, n={n}" for n in (3, 5) for call in everything]
    assert all(seconds >= 0 for seconds in got.values())


def test_a_program_of_jax_is_compiled() -> None:
    pk.warm_up(7, rows=5, library="jax", implementation="xla")
    compiled: list[str] = []
    with jax.log_compiles(False):
        listen: Any = lambda name, *_, **__: compiled.append(name)  # noqa: E731
        jax.monitoring.register_event_duration_secs_listener(listen)
        rewards = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)), jnp.float32)
        compiled.clear()
        for k in (1, 3):
            pk.transform(rewards, k, implementation="xla")
        assert not [name for name in compiled if "backend_compile" in name]
        pk.transform(rewards[:4], 1, implementation="xla")
        assert [name for name in compiled if "backend_compile" in name]
    jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"n": 0}, "n must be at least 1; got 0"),
        ({"n": "4"}, "n must be an integer; got '4'"),
        ({"n": 4, "what": "transfrom"}, "what must be one of transform, .*did you mean"),
        ({"n": 4, "library": "numpy"}, "library must be one of torch, jax; got 'numpy'"),
        ({"n": 4, "rows": 0}, "rows must be at least 1; got 0"),
        ({"n": 4, "dtype": "float"}, "dtype must be one of float16, .*; got 'float'"),
        ({"n": 4, "estimator": "best"}, "estimator must be one of"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        pk.warm_up(**arguments)
