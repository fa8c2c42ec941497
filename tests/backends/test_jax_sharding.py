"""Groups on several devices: the same values, lying as the rewards lie, and nothing gathered."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import pkpo_kernels as pk

EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto
# (8, 6) groups of 5 samples.
REWARDS = np.random.default_rng(0).standard_normal((8, 6, 5)).astype(np.float32)
WHERE = np.random.default_rng(1).random(REWARDS.shape) < 0.8
KS = np.random.default_rng(2).integers(1, 5, (8, 6))
# A default of jax.make_mesh's that is not the same in all its versions.
MESH = jax.make_mesh((4, 2), ("a", "b"), axis_types=(EXPLICIT, EXPLICIT))


def put(values: Any, *spec: Any, mesh: Any = MESH) -> jax.Array:
    return jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))


def check(got: jax.Array, want: Any, *spec: Any) -> None:
    """The values, and how they lie, by the array or, within Explicit axes, by its type."""
    np.testing.assert_allclose(np.asarray(got), want, rtol=2e-6, atol=1e-6)
    sharding = got.sharding
    assert isinstance(sharding, NamedSharding)
    assert (*sharding.spec, *[None] * (got.ndim - len(sharding.spec))) == spec


def test_concrete_arrays() -> None:
    from pkpo_kernels.backends.jax_meshes import _on_every_device

    rewards, where = put(REWARDS, "a", "b"), put(WHERE, "b")
    # None chooses. One k a group lies alike, or wherever it likes.
    want = pk.transform(REWARDS, KS, where=WHERE)
    check(pk.transform(rewards, put(KS, "a", "b"), where=where), want, "a", "b", None)
    named = pk.transform(rewards, KS, where=where, implementation="xla")
    check(named, want, "a", "b", None)
    check(pk.max_at_k(rewards, [1, 3]), pk.max_at_k(REWARDS, [1, 3]), "a", "b", None)
    # A new k compiles nothing.
    programs = _on_every_device._cache_size()
    check(pk.max_at_k(rewards, [5, 2]), pk.max_at_k(REWARDS, [5, 2]), "a", "b", None)
    assert _on_every_device._cache_size() == programs


def test_inside_jit_nothing_is_gathered() -> None:
    def step(x: jax.Array, k: jax.Array) -> Any:
        best = pk.max_at_k(x, 2), pk.max_at_k(x, k, implementation="xla")
        return pk.transform(x, 2), *best

    rewards, ks = put(REWARDS, ("a", "b")), jnp.asarray([1, 3])
    step = jax.jit(step).lower(rewards, ks).compile()
    transformed, best, several = step(rewards, ks)
    both = ("a", "b")
    check(transformed, pk.transform(REWARDS, 2), both, None, None)
    check(best, pk.max_at_k(REWARDS, 2), both, None)
    check(several, pk.max_at_k(REWARDS, [1, 3]), both, None, None)
    for word in ("all-gather", "all-to-all", "collective-permute"):
        assert word not in step.as_text()


def test_samples_first_within_a_mesh() -> None:
    first = np.moveaxis(REWARDS, -1, 0)
    with jax.set_mesh(MESH):
        step = jax.jit(lambda x: (pk.transform(x, 2, axis=0), pk.max_at_k(x, 2, axis=0)))
        transformed, best = step(put(first, None, "a", "b"))
        # What lies nowhere in particular is computed everywhere.
        everywhere = pk.max_at_k(jnp.asarray(REWARDS), [1, 3])
    check(transformed, np.moveaxis(pk.transform(REWARDS, 2), -1, 0), None, "a", "b")
    check(best, pk.max_at_k(REWARDS, 2), "a", "b")
    check(everywhere, pk.max_at_k(REWARDS, [1, 3]), None, None, None)


def test_vmap() -> None:
    rewards, where = put(REWARDS, "a", "b"), put(WHERE, "a")
    # The axis mapped away is sharded, and so is one that stays.
    each = jax.jit(jax.vmap(lambda x, k, w: pk.transform(x, k, where=w)))
    got = each(rewards, put(KS, "a"), where)
    check(got, pk.transform(REWARDS, KS, where=WHERE), "a", "b", None)
    # Over k alone, of concrete rewards; and of max@k, with its own ks for each element.
    got = jax.vmap(lambda k: pk.max_at_k(rewards, k[None]))(jnp.asarray([1, 3]))
    check(got[1], pk.max_at_k(REWARDS, [3]), "a", "b", None)


def test_scan_and_grad() -> None:
    def loss(logits: jax.Array, x: jax.Array, k: jax.Array) -> jax.Array:
        return -(pk.transform(x, k) * jax.nn.log_softmax(logits)).sum()

    @jax.jit
    def grads(logits: jax.Array, x: jax.Array, ks: jax.Array) -> Any:
        by_both = jax.grad(loss, (0, 1))
        return jax.lax.scan(lambda carry, k: (carry, by_both(logits, x, k)), None, ks)[1]

    by_logits, by_rewards = grads(
        put(0 * REWARDS, "a", "b"), put(REWARDS, "a", "b"), np.arange(1, 3)
    )
    for turn, k in enumerate((1, 2)):
        advantages = pk.transform(REWARDS, k)
        want = advantages.mean(-1, keepdims=True) - advantages
        check(by_logits[turn], want, "a", "b", None)
    assert not by_rewards.any()


def test_axes_of_other_types() -> None:
    want = pk.transform(REWARDS, 2)
    auto = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AUTO, AUTO))
    mixed = jax.make_mesh((4, 2), ("a", "b"), axis_types=(EXPLICIT, AUTO))
    # A concrete array knows where it lies.
    got = pk.transform(put(REWARDS, "a", "b", mesh=auto), 2)
    check(got, want, "a", "b", None)
    got = pk.transform(put(REWARDS, "a", "b", mesh=mixed), 2)
    check(got, want, "a", "b", None)
    # In a program along Auto axes the compiler does.
    step = jax.jit(partial(pk.transform, implementation="xla"), static_argnums=1)
    np.testing.assert_allclose(step(put(REWARDS, "a", mesh=auto), 2), want, rtol=2e-6, atol=1e-6)
    got = step(put(REWARDS, ("a", "b"), mesh=mixed), 2)
    assert jax.typeof(got).sharding.spec[0] == "a"
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)
    # Along Manual axes its author does.
    with jax.set_mesh(MESH):
        mine = jax.shard_map(
            lambda x: pk.transform(x, 2),
            in_specs=PartitionSpec("a"), out_specs=PartitionSpec("a"), axis_names={"a"},
        )  # fmt: skip
        check(jax.jit(mine)(put(REWARDS, "a", "b")), want, "a", "b", None)


def test_sharded_samples_are_sent_to_reshard() -> None:
    split = put(np.zeros((8, 4), np.float32), "a", "b")
    message = r"got axis 1 sharded over 'b': reshard them, with jax.reshard\(.*\('a', None\)\)"
    for call in (partial(pk.transform, k=2), partial(pk.max_at_k, k=[1, 2])):
        for run in (call, jax.jit(call)):
            with pytest.raises(ValueError, match=message):
                run(split)
    # A mask is brought to where the rewards are; an axis of one part divides nothing.
    rewards, where = np.arange(32, dtype=np.float32).reshape(8, 4), np.ones((8, 4), bool)
    got = pk.max_at_k(put(rewards, "a"), 2, where=put(where, None, "b"))
    check(got, pk.max_at_k(rewards, 2), "a")
    one = jax.make_mesh((1,), ("a",), axis_types=(EXPLICIT,))
    np.testing.assert_allclose(
        pk.max_at_k(put(rewards, None, "a", mesh=one), 2), pk.max_at_k(rewards, 2), rtol=1e-6
    )


def test_wrong_arguments_are_told_by_the_whole_shape() -> None:
    rewards = put(REWARDS, "a", "b")
    with pytest.raises(ValueError, match=r"k must broadcast .* \(8, 6\); got shape \(3,\)"):
        pk.transform(rewards, [1, 2, 3])
    with pytest.raises(ValueError, match=r"where must have the shape .* \(8, 6, 5\)"):
        pk.transform(rewards, 2, where=put(WHERE[0], "b"))
    with pytest.raises(ValueError, match="got k=6 with n=5"):
        pk.max_at_k(rewards, [1, 6])
    with pytest.raises(ValueError, match="run on TPUs and the rewards are on"):
        pk.transform(rewards, 2, implementation="pallas")


@pytest.mark.parametrize("mesh", ["concrete", "abstract"])
def test_a_kernel_for_tpus_gets_whole_rows(mesh: str) -> None:
    """The compiler says "Mosaic kernels cannot be automatically partitioned" otherwise."""
    rewards: Any = put(REWARDS, "a", "b")
    if mesh == "abstract":
        anywhere = AbstractMesh((4, 2), ("a", "b"), axis_types=(EXPLICIT, EXPLICIT))
        sharding = NamedSharding(anywhere, PartitionSpec("a", "b"))
        rewards = jax.ShapeDtypeStruct(REWARDS.shape, jnp.float32, sharding=sharding)
    step = jax.jit(lambda x: (pk.transform(x, 2), pk.max_at_k(x, [1, 3])))
    text = step.trace(rewards).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 2 and "stablehlo.sort" not in text


@pytest.mark.slow
def test_interpreted_kernels() -> None:
    got = pk.max_at_k(put(REWARDS[0, :, :4], "b"), 2, implementation="pallas_interpret")
    check(got, pk.max_at_k(REWARDS[0, :, :4], 2), "b")


@pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))
@pytest.mark.parametrize(
    # Not "pallas_interpret": on eight devices its callbacks wait for each other.
    "implementation",
    [pytest.param(None, marks=pytest.mark.slow), pytest.param("xla", marks=pytest.mark.slow)],
)
def test_every_implementation(implementation: str | None, estimator: str) -> None:
    options: Any = {"implementation": implementation, "estimator": estimator}
    rewards, where, ks = put(REWARDS, "a", "b"), put(WHERE, "a"), put(KS, "a", "b")
    want = pk.transform(REWARDS, KS, where=WHERE, undersized="clip", estimator=estimator)

    def step(x: jax.Array, k: Any, w: jax.Array) -> jax.Array:
        return pk.transform(x, k, where=w, undersized="clip", **options)

    check(step(rewards, ks, where), want, "a", "b", None)
    check(jax.jit(step)(rewards, ks, where), want, "a", "b", None)
    want = pk.transform(REWARDS, 2, estimator=estimator)
    got = jax.jit(jax.vmap(lambda x: pk.transform(x, 2, **options)))(rewards)
    check(got, want, "a", "b", None)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("spec", [("a", "b"), (("b", "a"), None), (None, "b"), (None, None)])
def test_every_layout(axis: int, spec: Any) -> None:
    moved = np.moveaxis(REWARDS, -1, axis)
    whole = list(spec)
    whole.insert(axis % 3, None)
    rewards = put(moved, *whole)
    got = jax.jit(partial(pk.transform, axis=axis))(rewards, KS)
    check(got, np.moveaxis(pk.transform(REWARDS, KS), -1, axis), *whole)
    got = pk.max_at_k(rewards, [1, 3], axis=axis)
    check(got, pk.max_at_k(REWARDS, [1, 3]), *spec, None)
