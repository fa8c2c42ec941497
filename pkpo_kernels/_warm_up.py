"""Compile before the first step what a run will need, and say what took how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from pkpo_kernels.api import max_at_k, transform
from pkpo_kernels.backends import registry
from pkpo_kernels.conversion import from_host
from pkpo_kernels.groups import transform_groups
from pkpo_kernels.maths.weights import Array
from pkpo_kernels.typing import EstimatorName, ImplementationName, Scale, Undersized
from pkpo_kernels.validation import checked_integer, checked_integers, checked_name

What = Literal[
    "transform",
    "transform, where",
    "transform_groups",
    "transform_groups, where",
    "max_at_k",
    "max_at_k, where",
]
WHAT: tuple[What, ...] = get_args(What)


def warm_up(
    n: int | Sequence[int],
    what: What | Sequence[What] = "transform",
    *,
    library: Literal["torch", "jax"] = "torch",
    rows: int = 64,
    dtype: str = "float32",
    dynamic_k: bool = False,
    k: int | Sequence[int] = 1,
    estimator: EstimatorName = "sloo_minus_one",
    scale: Scale = "sum",
    undersized: Undersized = "zero",
    implementation: ImplementationName | None = None,
) -> dict[str, float]:
    """Compile what calls for rewards (..., n) will need, on the accelerator if there is one: →
    seconds for each call.

    Triton compiles a kernel for an n, a dtype, an estimator, with `where` or without, with k an
    integer or a tensor; row strides and masks at any address are no part of it, the number of rows
    only as few or many (65,536 and more), and a k only with `where` beyond 256 samples, as small or
    large (more than 56 at 512, than 42 at 1024). Groups by integer ids (int64 here) have one for
    groups of any sizes, blocks and nan="propagate" others. Its cache on disk outlives the process.
    JAX compiles a program for a shape besides, and its own cache is to be switched on
    (`jax_compilation_cache_dir`); a call inside your own `jax.jit` is compiled with it, and not
    here. NumPy has nothing to compile.

    Args:
        n: the number of samples, or several.
        what: the calls: "transform", "transform_groups" (by integer ids), "max_at_k", and each of
          these with ", where" behind it; one or several.
        library: "torch" or "jax".
        rows: how many.
        dtype: of the rewards, by name, or "bool".
        dynamic_k: k is a tensor or an array, one for all groups.
        k: of the calls, or several, each call for all of them; of rows of fewer samples, n.
        estimator, scale, undersized, implementation: as for `transform`.

    Returns:
        The call and its n → seconds of the first one, kernels that are in a cache included.

    Raises:
        ValueError, TypeError: an argument is none of these, or as `transform` does.

    >>> list(warm_up(16, ["transform", "max_at_k"], library="torch"))  # doctest: +SKIP
    ['transform, n=16', 'max_at_k, n=16']
    """
    check: Any = checked_integers if _is_several(n) else checked_integer
    sizes = np.atleast_1d(check("n", n, least=1)).tolist()
    check = checked_integers if _is_several(k) else checked_integer
    ks = np.atleast_1d(check("k", k, least=1)).tolist()
    calls: Any = what if _is_several(what) else [what]
    calls = [checked_name("what", call, WHAT) for call in calls]
    checked_name("library", library, ("torch", "jax"))
    checked_integer("rows", rows, least=1)
    checked_name("dtype", dtype, ("float16", "bfloat16", "float32", "float64", "bool"))
    seconds = {}
    for size in sizes:
        values = np.random.default_rng(size).standard_normal((rows, size)).astype(np.float32)
        rewards = from_host(values > 0 if dtype == "bool" else values, library, dtype)
        mask = from_host(values > -1, library)
        ids = from_host(np.arange(rows * size) // size, library, None)
        of_size: Any = {min(one, size) for one in ks}
        if dynamic_k:
            of_size = [_integer_there(library, one, rewards) for one in of_size]
        for call in calls:
            options: dict[str, Any] = {"implementation": implementation}
            if call.endswith("where"):
                options["where"] = mask
            function: Callable[..., Array] = max_at_k
            given: tuple[Array, ...] = (rewards,)
            if call.startswith("transform"):
                function = transform
                options |= {"estimator": estimator, "scale": scale, "undersized": undersized}
            if call.startswith("transform_groups"):
                function, given = transform_groups, (rewards.reshape(-1), ids)
                options |= {"where": mask.reshape(-1)} if "where" in options else {}
            start = time.perf_counter()
            for one in of_size:
                _wait_for(function(*given, one, **options), library)
            seconds[f"{call}, n={size}"] = time.perf_counter() - start
    return seconds


def _is_several(x: Any) -> bool:
    return (isinstance(x, Sequence) and not isinstance(x, str)) or getattr(x, "ndim", 0) > 0


def _integer_there(library: str, k: int, rewards: Array) -> Array:
    """Make a k where the rewards are: ()."""
    xp = registry.namespace(library)
    if library == "torch":
        return xp.full((), k, dtype=xp.int64, device=rewards.device)
    return xp.asarray(k)


def _wait_for(result: Array, library: str) -> None:
    """Wait until a result is there."""
    if library == "jax":
        result.block_until_ready()
    elif result.is_cuda:
        registry.namespace(library).cuda.synchronize(result.device)
