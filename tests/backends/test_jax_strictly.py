"""JAX at its strictest: no promotion of ranks or dtypes, no NaN on the way, checks inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import strictly

import pkpo_kernels as pk


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with strictly():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("estimator", pk.ESTIMATORS)
def test_no_operation_makes_a_nan(estimator: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 3)).astype(np.float32)
    # Equal rewards, large ones, and zeros; rows with all samples, without any, and with one.
    values[0, 2:], values[3], values[5] = 1, values[3] * 1e38, 0
    where = rng.random((6, 3)) < 0.8
    where[0], where[1], where[2] = True, False, np.arange(3) == 1
    ks = np.array([1, 2, 1, 3, 2, 1])
    holes = np.where(where, values, np.resize(np.float32([np.nan, np.inf, -np.inf]), (6, 3)))
    x, k, masked, mask = map(jnp.asarray, (values, ks, holes, where))
    options: dict[str, Any] = {"estimator": estimator, "implementation": "xla"}

    def close(got: Any, want: Any) -> None:
        # One row is much larger than the others.
        unit = np.abs(want).max(-1, keepdims=True) + 1e-30
        np.testing.assert_allclose(np.asarray(got) / unit, want / unit, rtol=2e-6, atol=1e-6)

    # Of a compiled program only the results are looked at.
    with jax.disable_jit(), jax.debug_nans(True):
        static = pk.transform(x, 2, **options)
        dynamic = pk.transform(x, jnp.asarray(2), **options)
        zero = pk.transform(masked, k, where=mask, **options)
        clip = pk.transform(masked, k, where=mask, undersized="clip", **options)
    options["implementation"] = "numpy"
    for got in (static, dynamic):
        close(got, pk.transform(values, 2, **options))
    close(zero, pk.transform(holes, ks, where=where, **options))
    close(clip, pk.transform(holes, ks, where=where, undersized="clip", **options))


@pytest.mark.parametrize(
    "implementation, estimator",
    [
        *(
            pytest.param("xla", name, marks=() if name == "sloo_minus_one" else pytest.mark.slow)
            for name in pk.ESTIMATORS
        ),
        ("pallas_interpret", "s"),
        (None, "s"),
    ],
)
def test_nothing_is_promoted(implementation: str | None, estimator: str) -> None:
    def every(x: jax.Array, w: jax.Array, k: jax.Array, ks: jax.Array) -> Iterator[jax.Array]:
        options: dict[str, Any] = {"estimator": estimator, "implementation": implementation}
        yield pk.transform(x, 1, **options)
        yield pk.transform(x, k, **options)
        yield pk.transform(x, ks, where=w, undersized="clip", **options)
        if not pk.ESTIMATORS[estimator].normalized:
            yield pk.transform(x, ks, where=w, undersized="nan", scale="mean", **options)
        yield pk.max_at_k(x, [1, x.shape[1]], implementation=implementation)
        yield pk.max_at_k(x, k[None], where=w, implementation=implementation)

    kinds = ((2, "float32", "int32"), (1, "bool", "uint8"), (3, "bfloat16", "int8"))
    # Tracing is enough, and cheap; not quite, of kernels.
    for n, dtype, of_k in kinds if estimator == "sloo_minus_one" else kinds[:1]:
        shapes = ((4, n), dtype), ((4, n), "bool"), ((), of_k), ((4,), of_k)
        arrays = (jax.ShapeDtypeStruct(shape, jnp.dtype(of)) for shape, of in shapes)
        jax.eval_shape(lambda *arrays: tuple(every(*arrays)), *arrays)


@pytest.mark.parametrize("x64", [False, True])
def test_nothing_is_promoted_of_groups_and_metrics(x64: bool) -> None:
    def every(x: jax.Array, ids: jax.Array, samples: jax.Array, w: jax.Array, k: jax.Array) -> Any:
        options: dict[str, Any] = {"undersized": "clip", "implementation": "xla"}
        yield pk.transform_groups(x, ids, 2, implementation="xla", scale=0.5)
        yield pk.transform_groups(x, ids, k, where=w, **options)
        yield pk.transform_groups(x, 3, 5, implementation="xla")
        yield pk.transform_groups(x, ids, 2, samples=samples, nan="propagate", **options)
        yield pk.group_metrics(x, [1, 2], groups=ids, k=2, where=w, samples=samples)
        yield pk.group_metrics(x.reshape(4, 3), [1], k=k[0], estimator="passk_training")

    with jax.enable_x64(x64):
        floats = ("float32", "bfloat16", *(["float64"] if x64 else []))
        for dtype, of_ids in zip((*floats, "bool", "int32"), ("int32", "uint8") * 3, strict=False):
            kinds = dtype, of_ids, of_ids, "bool", "int8"
            arrays = (jax.ShapeDtypeStruct((12,), jnp.dtype(kind)) for kind in kinds)
            jax.eval_shape(lambda *arrays: list(every(*arrays)), *arrays)


def test_metrics_are_the_same_where_counts_are_in_float64() -> None:
    rewards = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    ids, samples = np.arange(12) % 3, np.arange(12) // 2
    options: dict[str, Any] = {"ks": [1, 2], "k": 2}
    want = pk.group_metrics(rewards, groups=ids, samples=samples, **options)
    with jax.enable_x64(True):
        given = map(jnp.asarray, (rewards, ids, samples))
        got = jax.jit(lambda x, i, s: pk.group_metrics(x, groups=i, samples=s, **options))(*given)
        assert {name: float(x) for name, x in got.items()} == pytest.approx(want, rel=2e-6)
