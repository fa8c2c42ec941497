"""How the transforms live inside JAX: jit, vmap, scan, grad, shard_map, export."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_kernels as pk


@pytest.fixture
def rewards() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((8, 16)), jnp.float32)


def same(got: Any, want: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))
def test_jit_with_a_static_and_a_traced_k(rewards: jax.Array, estimator: str) -> None:
    want = pk.transform(rewards, 4, estimator=estimator)
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
        same(step(rewards, k), pk.transform(rewards, k))
    assert traces == 1

    from pkpo_kernels.portable_xla import _transform_rows

    pk.transform(rewards, 3)
    before = _transform_rows._cache_size()
    for k in (8, 4, 2, 1):
        pk.transform(rewards, k)
    assert _transform_rows._cache_size() == before


def test_vmap_over_rewards_k_and_masks(rewards: jax.Array) -> None:
    ks = jnp.asarray([1, 2, 4, 8])
    got = jax.vmap(lambda k: pk.transform(rewards, k))(ks)
    for one, k in zip(got, (1, 2, 4, 8), strict=True):
        same(one, pk.transform(rewards, k))
    cube = rewards.reshape(2, 4, 16)
    want = pk.transform(cube, 3)
    same(jax.vmap(lambda x: pk.transform(x, 3))(cube), want)
    same(jax.vmap(jax.vmap(lambda x: pk.transform(x, 3)))(cube), want)
    same(jax.vmap(lambda x: pk.transform(x, 3), in_axes=2, out_axes=2)(cube.transpose(0, 2, 1)),
         want.transpose(0, 2, 1))  # fmt: skip
    where = rewards > -1
    pair = jax.vmap(lambda x, k, m: pk.transform(x, k, where=m))
    same(pair(rewards, jnp.full(8, 3), where), pk.transform(rewards, 3, where=where))
    same(jax.vmap(lambda x: pk.max_at_k(x, [1, 3]))(rewards), pk.max_at_k(rewards, [1, 3]))


def test_k_annealed_inside_scan(rewards: jax.Array) -> None:
    def step(carry: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = pk.transform(rewards, k)
        return carry + out, out

    ks = jnp.asarray([8, 4, 1])
    total, outs = jax.lax.scan(step, jnp.zeros_like(rewards), ks)
    want = [pk.transform(rewards, k) for k in (8, 4, 1)]
    same(outs, jnp.stack(want))
    same(total, sum(want))


def test_results_are_constants_of_the_loss(rewards: jax.Array) -> None:
    def loss(logits: jax.Array, x: jax.Array) -> jax.Array:
        advantages = pk.transform(x, 4) + pk.max_at_k(x, 2)[:, None]
        return -(advantages * jax.nn.log_softmax(logits)).sum()

    by_logits, by_rewards = jax.jit(jax.grad(loss, (0, 1)))(jnp.zeros_like(rewards), rewards)
    advantages = pk.transform(rewards, 4) + pk.max_at_k(rewards, 2)[:, None]
    same(by_logits, -(advantages - advantages.sum(-1, keepdims=True) / 16))
    assert not by_rewards.any()
    checkpointed = jax.grad(jax.checkpoint(loss))(jnp.zeros_like(rewards), rewards)
    same(checkpointed, by_logits)


def test_shard_map_over_rows() -> None:
    import subprocess
    import sys

    # Eight simulated devices have to be asked for before JAX starts.
    code = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import pkpo_kernels as pk
mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
x = jnp.asarray(np.random.default_rng(0).standard_normal((32, 9)), jnp.float32)
k = jnp.asarray(3)
want = pk.transform(x, 3)
def f(x, k, where):
    return pk.transform(x, k, where=where)
specs = dict(in_specs=(P("rows"), P(), P("rows")), out_specs=P("rows"))
sharded = jax.jit(jax.shard_map(f, mesh=mesh, **specs))
got = sharded(x, k, jnp.ones_like(x, bool))
assert len(got.sharding.device_set) == 8
np.testing.assert_allclose(got, want, rtol=1e-6)
placed = jax.device_put(x, NamedSharding(mesh, P("rows")))
automatic = jax.jit(lambda x: pk.transform(x, 3))
np.testing.assert_allclose(automatic(placed), want, rtol=1e-6)
program = automatic.lower(placed).compile().as_text()
# Large enough for several turns.
large = jax.ShapeDtypeStruct((8192, 512), jnp.float32, sharding=NamedSharding(mesh, P("rows")))
program += automatic.lower(large).compile().as_text()
assert "while" in program
print(sum(program.count(word) for word in ("all-gather", "all-to-all", "collective-permute")))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
    # The compiler's own partitioning keeps rows where they are.
    assert out.stdout.strip() == "0"


def test_export(rewards: jax.Array) -> None:
    exported = jax.export.export(jax.jit(lambda x, k: pk.transform(x, k)))(rewards, jnp.asarray(1))
    restored = jax.export.deserialize(exported.serialize())
    same(restored.call(rewards, jnp.asarray(5)), pk.transform(rewards, 5))
    (rows,) = jax.export.symbolic_shape("rows")
    shape = jax.ShapeDtypeStruct((rows, 16), jnp.float32)
    any_rows = jax.export.export(jax.jit(lambda x: pk.transform(x, 5)))(shape)
    same(any_rows.call(rewards[:3]), pk.transform(rewards[:3], 5))


def test_lowers_for_every_platform(rewards: jax.Array) -> None:
    step = jax.jit(partial(pk.transform, estimator="sloo"))
    for platform in ("cpu", "cuda", "tpu"):
        text = step.trace(rewards, jnp.asarray(2)).lower(lowering_platforms=(platform,)).as_text()
        assert ("tpu_custom_call" if platform == "tpu" else "stablehlo.sort") in text
