"""How the transforms live inside JAX: jit, vmap, scan, grad, shard_map, export."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import strictly

import pkpo_kernels as pk
from pkpo_kernels.backends import xla as xla_backend


@pytest.fixture
def rewards() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((8, 16)), jnp.float32)


def same(got: Any, want: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=2e-6, atol=1e-6)


def plain(rewards: Any, k: Any, **options: Any) -> Any:
    """By NumPy, which compiles nothing."""
    return pk.transform(np.asarray(rewards), k, **options)


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(name, marks=[] if name == "sloo_minus_one" else [pytest.mark.slow])
        for name in pk.ESTIMATORS
    ],
)
def test_jit_with_a_static_and_a_traced_k(rewards: jax.Array, estimator: str) -> None:
    want = plain(rewards, 4, estimator=estimator)
    same(jax.jit(lambda x: pk.transform(x, 4, estimator=estimator))(rewards), want)
    same(jax.jit(lambda x, k: pk.transform(x, k, estimator=estimator))(rewards, 4), want)


def test_a_new_k_compiles_nothing(rewards: jax.Array) -> None:
    traces = 0

    @jax.jit
    def step(x: jax.Array, k: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return pk.transform(x, k)

    for k in (8, 4, 2, 1):
        same(step(rewards, k), plain(rewards, k))
    assert traces == 1

    from pkpo_kernels.backends.jax import _run_in_one_program

    pk.transform(rewards, 3)
    before = _run_in_one_program._cache_size()
    for k in (8, 4, 2, 1):
        same(pk.transform(rewards, k), plain(rewards, k))
    assert _run_in_one_program._cache_size() == before


def test_vmap_over_rewards_k_and_masks(rewards: jax.Array) -> None:
    transform = partial(pk.transform, implementation="xla")
    got = jax.vmap(lambda k: transform(rewards, k))(jnp.asarray([1, 2, 4, 8]))
    for one, k in zip(got, (1, 2, 4, 8), strict=True):
        same(one, plain(rewards, k))
    cube = rewards.reshape(2, 4, 16)
    twice = jax.vmap(jax.vmap(lambda x: transform(x, 3), in_axes=1, out_axes=1))
    same(twice(cube.transpose(0, 2, 1)), plain(cube, 3).transpose(0, 2, 1))
    where = rewards > -1
    pair = jax.vmap(lambda x, k, m: transform(x, k, where=m))
    want = plain(rewards, 3, where=np.asarray(where))
    same(pair(rewards, jnp.full(8, 3), where), want)
    best = pk.max_at_k(np.asarray(rewards), [1, 3])
    same(jax.vmap(lambda x: pk.max_at_k(x, [1, 3], implementation="xla"))(rewards), best)


def test_k_annealed_inside_scan(rewards: jax.Array) -> None:
    def step(carry: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = pk.transform(rewards, k)
        return carry + out, out

    ks = jnp.asarray([8, 4, 1])
    total, outs = jax.lax.scan(step, jnp.zeros_like(rewards), ks)
    want = [plain(rewards, k) for k in (8, 4, 1)]
    same(outs, np.stack(want))
    same(total, sum(want))


def test_results_are_constants_of_the_loss(rewards: jax.Array) -> None:
    def loss(logits: jax.Array, x: jax.Array) -> jax.Array:
        advantages = pk.transform(x, 4) + pk.max_at_k(x, 2)[:, None]
        return -(advantages * jax.nn.log_softmax(logits)).sum()

    @jax.jit
    def grads(logits: jax.Array, x: jax.Array) -> Any:
        return jax.grad(loss, (0, 1))(logits, x), jax.grad(jax.checkpoint(loss))(logits, x)

    (by_logits, by_rewards), checkpointed = grads(jnp.zeros_like(rewards), rewards)
    advantages = plain(rewards, 4) + pk.max_at_k(np.asarray(rewards), 2)[:, None]
    same(by_logits, -(advantages - advantages.sum(-1, keepdims=True) / 16))
    assert not by_rewards.any()
    same(checkpointed, by_logits)


def test_shard_map_over_rows(rewards: jax.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    transform = partial(pk.transform, implementation="xla")
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()
    sharded = jax.shard_map(
        lambda x, k, where: transform(x, k, where=where),
        mesh=mesh, in_specs=(rows, everywhere, rows), out_specs=rows,
    )  # fmt: skip
    got = jax.jit(sharded)(rewards, jnp.asarray(3), rewards > -1)
    assert len(got.sharding.device_set) == 8
    same(got, plain(rewards, 3, where=np.asarray(rewards > -1)))
    # The compiler's own partitioning keeps rows where they are, in several turns too.
    monkeypatch.setattr(xla_backend, "BLOCK_ELEMENTS", 512)
    sharding = jax.sharding.NamedSharding(mesh, rows)
    large = jax.ShapeDtypeStruct((128, 10), jnp.float32, sharding=sharding)
    program = jax.jit(lambda x: transform(x, 3)).lower(large).compile().as_text()
    assert "while" in program
    for word in ("all-gather", "all-to-all", "collective-permute"):
        assert word not in program


def test_export(rewards: jax.Array) -> None:
    exported = jax.export.export(jax.jit(lambda x, k: pk.transform(x, k)))(rewards, jnp.asarray(1))
    restored = jax.export.deserialize(exported.serialize())
    same(restored.call(rewards, jnp.asarray(5)), plain(rewards, 5))
    (rows,) = jax.export.symbolic_shape("rows")
    shape = jax.ShapeDtypeStruct((rows, 16), jnp.float32)
    any_rows = jax.export.export(jax.jit(lambda x: pk.transform(x, 5)))(shape)
    same(any_rows.call(rewards[:3]), plain(rewards[:3], 5))


def test_lowers_for_every_platform(rewards: jax.Array) -> None:
    step = jax.jit(partial(pk.transform, estimator="sloo"))
    for platform in ("cpu", "cuda", "tpu"):
        text = step.trace(rewards, jnp.asarray(2)).lower(lowering_platforms=(platform,)).as_text()
        assert ("tpu_custom_call" if platform == "tpu" else "stablehlo.sort") in text


class TestStrictly:
    """JAX at its strictest: no promotion of ranks or dtypes, no NaN on the way, checks inside."""

    @pytest.fixture(autouse=True)
    def strict(self) -> Iterator[None]:
        with strictly():
            yield

    @pytest.mark.parametrize(
        "estimator",
        [pytest.param(e, marks=() if e == "sloo" else pytest.mark.slow) for e in pk.ESTIMATORS],
    )
    def test_no_operation_makes_a_nan(self, estimator: str) -> None:
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
            same(np.asarray(got) / unit, want / unit)

        # Of a compiled program only the results are looked at.
        with jax.disable_jit(), jax.debug_nans(True):
            known = pk.transform(x, 2, **options)
            hidden = pk.transform(x, jnp.asarray(2), **options)
            zero = pk.transform(masked, k, where=mask, **options)
            clip = pk.transform(masked, k, where=mask, undersized="clip", **options)
        options["implementation"] = "numpy"
        for got in (known, hidden):
            close(got, plain(values, 2, **options))
        close(zero, plain(holes, ks, where=where, **options))
        close(clip, plain(holes, ks, where=where, undersized="clip", **options))

    @pytest.mark.parametrize(
        "implementation, estimator",
        [*(("xla", name) for name in pk.ESTIMATORS), ("pallas_interpret", "s"), (None, "s")],
    )
    def test_nothing_is_promoted(self, implementation: str | None, estimator: str) -> None:
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
