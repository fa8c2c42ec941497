"""Tensors and JAX arrays on a CPU, which NumPy serves: which ones, and that nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

import pkpo_kernels as pk
from pkpo_kernels.backends import numpy as numpy_backend
from pkpo_kernels.backends import registry

REWARDS = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
ARRAYS: dict[str, Callable[..., Any]] = {"torch": torch.asarray, "jax": jnp.asarray}
OWN = {"torch": "torch", "jax": "xla"}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions of NumPy's that were called."""
    called: list[str] = []

    def watch(name: str) -> None:
        original = getattr(numpy_backend, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(numpy_backend, name, watched)

    watch("transform_rows")
    watch("max_at_k_rows")
    return called


@pytest.mark.parametrize("library", ARRAYS)
class TestWhatNobodyCanTell:
    def test_numpy_serves_them(self, library: str, served: list[str]) -> None:
        rewards = ARRAYS[library](REWARDS)
        assert registry.default_implementation(library, rewards) == "numpy"
        pk.transform(rewards, 2), pk.max_at_k(rewards, [1, 2])
        assert served == ["transform_rows", "max_at_k_rows"]

    @pytest.mark.parametrize(
        "dtype", ["float16", "bfloat16", "float32", "int8", "int32", "uint8", "bool"]
    )
    def test_results_are_of_the_same_library_and_dtype(self, library: str, dtype: str) -> None:
        xp = {"torch": torch, "jax": jnp}[library]
        values = REWARDS > 0 if dtype == "bool" else np.abs(10 * REWARDS).round()
        of_dtype = getattr(xp, dtype)
        rewards = ARRAYS[library](values)
        rewards = rewards.to(of_dtype) if library == "torch" else rewards.astype(of_dtype)
        of_result = of_dtype if "float" in dtype else xp.float32
        mask = REWARDS < 1
        precision = {"float16": 1e-3, "bfloat16": 8e-3}.get(dtype, 1e-6)
        for options in ({}, {"where": mask}, {"axis": 0, "estimator": "sloo", "scale": "mean"}):
            want = pk.transform(np.asarray(values, np.float64), 2, **options)
            if "where" in options:
                options = {"where": ARRAYS[library](mask)}
            got = pk.transform(rewards, 2, **options)
            assert isinstance(got, type(rewards)) and got.dtype == of_result
            as_float64 = got.double() if library == "torch" else got.astype(jnp.float32)
            np.testing.assert_allclose(as_float64, want, rtol=precision, atol=precision / 100)

    @pytest.mark.parametrize("undersized", ["zero", "nan", "clip"])
    def test_a_k_that_nobody_reads(self, library: str, undersized: Any) -> None:
        rewards = ARRAYS[library](REWARDS)
        for values in (0, -3, 2, 9, 2**31 - 1, [-1, 0, 1, 8, 9, 100]):
            k = ARRAYS[library](np.asarray(values, np.int32))
            got = pk.transform(rewards, k, undersized=undersized)
            own = pk.transform(rewards, k, undersized=undersized, implementation=OWN[library])
            np.testing.assert_allclose(np.asarray(got), np.asarray(own), rtol=1e-5, atol=1e-7)
            if np.ndim(values) == 0:
                best = np.asarray(pk.max_at_k(rewards, k))
                own = pk.max_at_k(rewards, k, implementation=OWN[library])
                np.testing.assert_allclose(best, np.asarray(own), rtol=1e-5)

    def test_the_rewards_are_left_as_they_were(self, library: str) -> None:
        rewards = ARRAYS[library](REWARDS.copy())
        pk.transform(rewards, 2, where=rewards > 0)
        np.testing.assert_array_equal(np.asarray(rewards), REWARDS)

    def test_no_rewards(self, library: str) -> None:
        none = ARRAYS[library](np.zeros((0, 8), np.float32))
        assert pk.transform(none, 2).shape == (0, 8)
        assert pk.max_at_k(none, [1, 2]).shape == (0, 2)


class TestTorch:
    def test_a_name_serves_them_too(self) -> None:
        got = pk.transform(torch.from_numpy(REWARDS), 2, implementation="numpy")
        assert isinstance(got, torch.Tensor)
        with pytest.raises(ValueError, match=r"'numpy' cannot serve these rewards: .* one CPU"):
            pk.transform(torch.zeros(2, 3, device="meta"), 2, implementation="numpy")

    def test_results_are_constants_of_the_loss(self) -> None:
        learned = torch.from_numpy(REWARDS.copy()).requires_grad_()
        assert not pk.transform(learned, 2).requires_grad
        parameter = torch.nn.Parameter(learned.detach())
        assert type(pk.transform(parameter, 2)) is torch.Tensor

    def test_programs_are_torchs_own(self, served: list[str]) -> None:
        step = torch.compile(lambda x: pk.transform(x, 2), backend="aot_eager", fullgraph=True)
        step(torch.from_numpy(REWARDS))
        torch.func.vmap(lambda x: pk.transform(x, 2))(torch.from_numpy(REWARDS))
        with pytest.raises(ValueError, match="serves numpy arrays and rewards are a torch array"):
            torch.func.vmap(lambda x: pk.transform(x, 2, implementation="numpy"))(
                torch.from_numpy(REWARDS)
            )
        assert not served


class TestJax:
    def test_results_lie_where_the_rewards_do(self) -> None:
        devices = jax.devices()
        on_second = jax.device_put(REWARDS, devices[1])
        assert pk.transform(on_second, 2).devices() == {devices[1]}
        assert pk.transform(on_second, 2).committed
        free = jnp.asarray(REWARDS)
        assert not pk.transform(free, 2).committed
        with jax.default_device(devices[2]):
            assert pk.transform(free, 2).devices() == free.devices()

    def test_programs_and_meshes_are_jaxs_own(self, served: list[str]) -> None:
        rewards = jnp.asarray(REWARDS)
        jax.jit(lambda x: pk.transform(x, 2))(rewards)
        jax.vmap(lambda k: pk.transform(rewards, k))(jnp.asarray([1, 2]))
        mesh = jax.make_mesh((2,), ("a",), devices=jax.devices()[:2])
        spread = jax.device_put(rewards, NamedSharding(mesh, PartitionSpec("a", None)))
        assert pk.transform(spread, 2).sharding == spread.sharding
        with pytest.raises(ValueError, match="serves numpy arrays and rewards are a jax array"):
            pk.transform(spread, 2, implementation="numpy")
        assert not served

    def test_half_precision_overflows_without_a_word(self) -> None:
        for values in ([60000, -60000, 0, 30000], [6e-8, 0, 0, 0]):
            rewards = jnp.asarray(values, jnp.float16)
            with np.errstate(all="raise"):
                got = pk.transform(rewards, 3, estimator="s", scale="mean")
            own = pk.transform(rewards, 3, estimator="s", scale="mean", implementation="xla")
            np.testing.assert_allclose(got, own, rtol=1e-3, atol=1e-7)

    def test_transfers_are_explicit(self) -> None:
        rewards, k = jnp.asarray(REWARDS), jnp.asarray(2)
        with jax.transfer_guard("disallow"):
            pk.transform(rewards, k)
