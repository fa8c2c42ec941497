"""How the transforms live inside JAX, whatever computes: jit, vmap, scan, grad, shard_map.

In a plain process XLA's operations, and what JAX takes by default: there a program has a branch for
every platform. With TRITON_INTERPRET=1 the Triton kernels, with PALLAS_INTERPRET=1 Pallas's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import INTERPRETED, PALLAS_INTERPRETED, rewards_of_every_kind, same

import pkpo_kernels as pk

NAMES = ["triton_jax"] * INTERPRETED + ["pallas_interpret"] * PALLAS_INTERPRETED
NAMES = NAMES or ["xla", "default"]

# Few shapes: each is programs to compile.
REWARDS = rewards_of_every_kind(np.random.default_rng(0), 6, rows=2)[:8].astype(np.float32)
CUBE = REWARDS.reshape(2, 4, 6)
KS = np.array([1, 2, 4, 6])


class Inside(NamedTuple):
    """An implementation, inside of JAX."""

    name: str

    def transform(self, rewards: Any, k: Any, **options: Any) -> jax.Array:
        return pk.transform(rewards, k, implementation=self._implementation, **options)

    def max_at_k(self, rewards: Any, k: Any, **options: Any) -> jax.Array:
        return pk.max_at_k(rewards, k, implementation=self._implementation, **options)

    @property
    def _implementation(self) -> Any:
        return None if self.name == "default" else self.name

    @property
    def calls_back(self) -> bool:
        """Pallas's interpreter calls back to the host, which JAX does not do twice, and knows of no
        axes to check."""
        return self.name == "pallas_interpret"


def quick(*names: str) -> pytest.MarkDecorator:
    """Of the implementations of this process, let `make test` try these, `make test-all` the
    others."""
    params = [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in NAMES]
    return pytest.mark.parametrize("inside", params, indirect=True)


@pytest.fixture
def inside(request: pytest.FixtureRequest) -> Inside:
    if request.param == "triton_jax":
        request.getfixturevalue("on_gpu")
    return Inside(request.param)


@pytest.fixture
def rewards() -> jax.Array:
    return jnp.asarray(REWARDS)


@pytest.fixture
def cube() -> jax.Array:
    return jnp.asarray(CUBE)


def of_each(ks: Any, rewards: Any = REWARDS) -> np.ndarray[Any, Any]:
    return np.stack([pk.transform(rewards, k) for k in ks])


def grad_of_logits(logits: Any, advantages: Any) -> np.ndarray[Any, Any]:
    """Of −Σ advantages · log softmax(logits)."""
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return chances * advantages.sum(-1, keepdims=True) - advantages


@quick("default")
@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(name, marks=() if name == "sloo_minus_one" else pytest.mark.slow)
        for name in pk.ESTIMATORS
    ],
)
def test_jit_with_a_static_and_a_traced_k(
    inside: Inside, rewards: jax.Array, estimator: str
) -> None:
    want = pk.transform(REWARDS, 4, estimator=estimator)
    same(jax.jit(lambda x: inside.transform(x, 4, estimator=estimator))(rewards), want)
    same(jax.jit(lambda x, k: inside.transform(x, k, estimator=estimator))(rewards, 4), want)


@quick("default", "pallas_interpret")
def test_a_new_k_compiles_nothing(inside: Inside, rewards: jax.Array) -> None:
    step = jax.jit(lambda x, k: inside.transform(x, k))
    for k in KS:
        same(step(rewards, k), pk.transform(REWARDS, k))
    assert step._cache_size() == 1


@quick("default", "triton_jax")
def test_a_new_k_compiles_nothing_outside_jit(
    inside: Inside, rewards: jax.Array, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled() -> list[str]:
        # Pallas's interpreter compiles some of its own operations in every thread that it happens
        # to call back in.
        of = "XLA compilation of jit(" + ("_launch" if inside.calls_back else "")
        return [message for message in caplog.messages if of in message]

    jax.clear_caches()  # type: ignore[no-untyped-call]  # which other tests may have filled up
    with jax.log_compiles():
        inside.transform(rewards[:7], 3)
        inside.max_at_k(rewards[:7], 3)
        assert compiled()
        caplog.clear()
        for k in KS.tolist():
            same(inside.transform(rewards[:7], k), pk.transform(REWARDS[:7], k))
            same(inside.max_at_k(rewards[:7], k), pk.max_at_k(REWARDS[:7], k))
        assert compiled() == []


@quick("xla", "triton_jax")
def test_vmap_over_rewards_k_and_masks(inside: Inside, rewards: jax.Array, cube: jax.Array) -> None:
    same(jax.vmap(lambda k: inside.transform(rewards, k))(KS), of_each(KS))
    twice = jax.vmap(jax.vmap(lambda x: inside.transform(x, 3), in_axes=1, out_axes=1))
    same(twice(cube.transpose(0, 2, 1)), pk.transform(CUBE, 3).transpose(0, 2, 1))
    pair = jax.vmap(lambda x, k, m: inside.transform(x, k, where=m))
    same(pair(rewards, np.full(8, 3), rewards > -1), pk.transform(REWARDS, 3, where=REWARDS > -1))


@quick("triton_jax")
def test_vmap_with_a_k_for_each_row(inside: Inside, rewards: jax.Array, cube: jax.Array) -> None:
    same(jax.jit(jax.vmap(lambda k: inside.transform(rewards, k)))(KS), of_each(KS))
    want = pk.transform(CUBE, 3)
    same(jax.vmap(lambda x: inside.transform(x, 3))(cube), want)
    same(jax.vmap(jax.vmap(inside.transform, (0, None)))(cube, np.full(2, 3)), want)
    # One k for each row, with and without a batch of its own.
    want = pk.transform(CUBE, KS)
    same(jax.vmap(lambda x: inside.transform(x, KS))(cube), want)
    same(jax.vmap(inside.transform)(cube, np.stack([KS, KS])), want)


@quick("xla")
def test_vmap_of_max_at_k(inside: Inside, rewards: jax.Array) -> None:
    got = jax.vmap(lambda x, m: inside.max_at_k(x, [1, 3], where=m))(rewards, rewards > -1)
    same(got, pk.max_at_k(REWARDS, [1, 3], where=REWARDS > -1))


@quick()
def test_vmap_of_max_at_k_over_its_ks(inside: Inside, rewards: jax.Array, cube: jax.Array) -> None:
    ks = np.array([[1, 3], [1, 2]])
    got = jax.vmap(lambda ks: inside.max_at_k(rewards, ks, where=rewards > -1))(ks)
    same(got, np.stack([pk.max_at_k(REWARDS, k, where=REWARDS > -1) for k in ks.tolist()]))
    best = jax.vmap(inside.max_at_k)(cube, np.array([[1], [3]]))
    same(best, np.stack([pk.max_at_k(CUBE[0], [1]), pk.max_at_k(CUBE[1], [3])]))


@quick("default")
def test_k_annealed_inside_scan(inside: Inside, rewards: jax.Array) -> None:
    def loss(logits: jax.Array, k: jax.Array) -> jax.Array:
        return -(inside.transform(rewards, k) * jax.nn.log_softmax(logits)).sum()

    def step(logits: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        grad = jax.grad(loss)(logits, k)
        return logits - grad, grad

    ks = np.array([6, 4, 1])
    _, grads = jax.lax.scan(step, jnp.zeros_like(rewards), ks)
    logits = np.zeros_like(REWARDS)
    for grad, k in zip(grads, ks, strict=True):
        want = grad_of_logits(logits, pk.transform(REWARDS, k))
        same(grad, want)
        logits -= want


class TestResultsAreConstantsOfTheLoss:
    """Gradients go through the logits, and not through the results to the rewards."""

    @staticmethod
    def losses(inside: Inside) -> list[Any]:
        def loss(logits: jax.Array, x: jax.Array) -> jax.Array:
            advantages = inside.transform(x, 4) + inside.max_at_k(x, 2)[:, None]
            return -(advantages * jax.nn.log_softmax(logits)).sum()

        again = [] if inside.calls_back else [jax.checkpoint(loss)]
        return [loss, jax.jit(loss), *again]

    @staticmethod
    def check(got: Any) -> None:
        advantages = pk.transform(REWARDS, 4) + pk.max_at_k(REWARDS, 2)[:, None]
        by_logits, by_rewards = got
        same(by_logits, grad_of_logits(0 * REWARDS, advantages))
        assert not by_rewards.any()

    @quick("default")
    def test_in_a_program(self, inside: Inside, rewards: jax.Array) -> None:
        loss, _, *again = self.losses(inside)

        @jax.jit
        def grads(logits: jax.Array, x: jax.Array) -> Any:
            return [jax.grad(of_loss, (0, 1))(logits, x) for of_loss in (loss, *again)]

        for got in grads(0 * rewards, rewards):
            self.check(got)

    @quick("triton_jax")
    def test_outside_jit(self, inside: Inside, rewards: jax.Array) -> None:
        for of_loss in self.losses(inside):
            self.check(jax.grad(of_loss, (0, 1))(0 * rewards, rewards))


@quick("xla", "triton_jax")
def test_shard_map_over_rows(inside: Inside, rewards: jax.Array) -> None:
    # Interpreted kernels wait on the host for JAX, which waits for a device that is not busy.
    devices = 8 if inside.name in ("xla", "default") else 2
    mesh = jax.make_mesh((devices,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()
    sharded = jax.shard_map(
        lambda x, k, where: (inside.transform(x, k, where=where), inside.max_at_k(x, [2])),
        mesh=mesh, in_specs=(rows, everywhere, rows), out_specs=rows,
        check_vma=not inside.calls_back,
    )  # fmt: skip
    got, best = jax.jit(sharded)(rewards, 3, rewards > -1)
    assert len(got.sharding.device_set) == devices
    same(got, pk.transform(REWARDS, 3, where=REWARDS > -1))
    same(best, pk.max_at_k(REWARDS, [2]))
