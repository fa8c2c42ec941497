"""Which backend a program has: the choice falls when it is lowered, for a platform that need not be
here."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import pkpo_kernels as pk
from pkpo_kernels.backends import registry
from pkpo_kernels.backends import xla as xla_backend

REWARDS = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)


@pytest.fixture
def rewards() -> jax.Array:
    return jnp.asarray(REWARDS)


@pytest.fixture
def rows() -> Any:
    """Sharding over rows."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("rows"))


def for_tpus(step: Any, *arguments: Any) -> str:
    return jax.jit(step).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()


def same(got: Any, want: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), want, rtol=2e-6, atol=1e-6)


def test_lowers_for_every_platform(rewards: jax.Array) -> None:
    traced = jax.jit(partial(pk.transform, estimator="sloo")).trace(rewards, jnp.asarray(2))
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        found = "tpu_custom_call" in text, "stablehlo.sort" in text
        assert found == (platform == "tpu", platform != "tpu")


def test_export(rewards: jax.Array) -> None:
    exported = jax.export.export(jax.jit(lambda x, k: pk.transform(x, k)))(rewards, jnp.asarray(1))
    restored = jax.export.deserialize(exported.serialize())
    same(restored.call(rewards, jnp.asarray(5)), pk.transform(REWARDS, 5))
    (rows,) = jax.export.symbolic_shape("rows")
    shape = jax.ShapeDtypeStruct((rows, 6), jnp.float32)
    any_rows = jax.export.export(jax.jit(lambda x: pk.transform(x, 5)))(shape)
    same(any_rows.call(rewards[:3]), pk.transform(REWARDS[:3], 5))


def test_export_of_any_number_of_samples() -> None:
    """Where n is known when the program is called, a k beyond it is as one that nobody knows: rows
    are too small for it."""
    shape = jax.export.symbolic_shape("rows, n")
    rewards = jax.ShapeDtypeStruct(shape, jnp.float32)

    def both(x: Any, k: Any, **options: Any) -> Any:
        return pk.transform(x, k, **options), pk.max_at_k(x, 3, **options)

    exported = jax.export.export(jax.jit(both))(rewards, jnp.asarray(4))
    any_samples = jax.export.deserialize(exported.serialize())
    for rows, n in ((3, 6), (1, 1)):
        x = np.random.default_rng(n).standard_normal((rows, n)).astype(np.float32)
        want = both(x, 4, where=np.ones((rows, n), bool))
        for got, expected in zip(any_samples.call(x, jnp.asarray(4)), want, strict=True):
            same(got, expected)


def test_export_for_tpus(rewards: jax.Array) -> None:
    step = jax.jit(lambda x, k: pk.transform(x, k))
    exported = jax.export.export(step, platforms=("tpu",))(rewards, jnp.asarray(2))
    assert "tpu_custom_call" in exported.mlir_module()
    assert jax.export.deserialize(exported.serialize()).platforms == ("tpu",)
    with pytest.raises(ValueError, match="'tpu'"):
        exported.call(rewards, jnp.asarray(2))


def test_arrays_elsewhere_are_refused(rewards: jax.Array) -> None:
    assert registry.default_implementation("jax", rewards) == "numpy"
    with pytest.raises(ValueError, match="run on TPUs and the rewards are on"):
        pk.transform(rewards, 2, implementation="pallas")


def test_sharded_arrays_are_sent_to_shard_map() -> None:
    def array(*platforms: str) -> Any:
        devices = [SimpleNamespace(platform=platform) for platform in platforms]
        return SimpleNamespace(dtype=np.dtype("float32"), devices=lambda: devices)

    refuses = registry.IMPLEMENTATIONS["pallas"].unsupported
    assert refuses(array("tpu")) is None
    assert "shard_map" in str(refuses(array("tpu", "tpu")))
    assert "jax.device_put" in str(refuses(array("cpu")))


@pytest.mark.parametrize(
    "n, k",
    [(6, [2, 3]), *(pytest.param(n, 2, marks=pytest.mark.slow) for n in (6, 5000))],
)
def test_programs_of_64_bits(n: int, k: Any) -> None:
    with jax.enable_x64(True):
        rewards = jnp.zeros((2, n), jnp.float32)
        assert "tpu_custom_call" in for_tpus(
            lambda x, k: pk.transform(x, k), rewards, jnp.asarray(k)
        )


def test_remat_for_tpus(rewards: jax.Array) -> None:
    def loss(logits: jax.Array, x: jax.Array) -> jax.Array:
        return -(pk.transform(x, 3, implementation="pallas") * jax.nn.log_softmax(logits)).sum()

    assert "tpu_custom_call" in for_tpus(jax.grad(jax.checkpoint(loss)), 0 * rewards, rewards)


@pytest.mark.slow
def test_shard_map_for_tpus(rewards: jax.Array, rows: NamedSharding) -> None:
    sharded = jax.shard_map(
        lambda x, k: pk.transform(x, k),
        mesh=rows.mesh, in_specs=(rows.spec, PartitionSpec()), out_specs=rows.spec,
    )  # fmt: skip
    assert "tpu_custom_call" in for_tpus(sharded, rewards, jnp.asarray(3))


def test_the_compiler_leaves_rows_where_they_are(
    rows: NamedSharding, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In several turns too.
    monkeypatch.setattr(xla_backend, "BLOCK_ELEMENTS", 512)
    large = jax.ShapeDtypeStruct((128, 10), jnp.float32, sharding=rows)
    step = jax.jit(lambda x: pk.transform(x, 3, implementation="xla"))
    program = step.lower(large).compile().as_text()
    assert "while" in program
    for word in ("all-gather", "all-to-all", "collective-permute"):
        assert word not in program
