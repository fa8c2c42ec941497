"""The Triton kernels behind JAX: which program is made where, and what it computes.

jax-triton need not be installed: what stands in for it runs the kernels, interpreted, on the CPU.
That wants a process with TRITON_INTERPRET=1: `make test` starts one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import INTERPRETED, rewards_of_every_kind, same

import pkpo_kernels as pk
from pkpo_kernels import backends
from pkpo_kernels.backends import _installed, registry
from pkpo_kernels.backends._installed import Version

pytest.importorskip("triton")
pytest.importorskip("torch")

interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")


fused = partial(pk.transform, implementation="triton_jax")
fused_max = partial(pk.max_at_k, implementation="triton_jax")


def rewards_of(n: int, dtype: Any = jnp.float32) -> jax.Array:
    values = rewards_of_every_kind(np.random.default_rng(n), n, rows=2)
    return jnp.asarray(values > 0 if jnp.dtype(dtype) == np.bool_ else values, dtype)


def transform_as(implementation: str, *args: Any, **options: Any) -> Any:
    """Inside jit, where k is a constant."""
    return jax.jit(lambda x: pk.transform(x, *args, implementation=implementation, **options))


class TestWhoIsServed:
    def test_concrete_arrays_elsewhere_are_refused(self, jax_triton: ModuleType) -> None:
        rewards = rewards_of(4)
        assert registry.default_implementation("jax", rewards) == "numpy"
        with pytest.raises(ValueError, match="NVIDIA GPUs and the rewards are on"):
            fused(rewards, 2)

    def test_tracers_are_accepted_and_run_where_they_are_compiled_for(
        self, jax_triton: ModuleType
    ) -> None:
        refused = []

        def step(x: jax.Array, k: Any) -> jax.Array:
            refused.append(registry.IMPLEMENTATIONS["triton_jax"].unsupported(x))
            return pk.transform(x, k, implementation="triton_jax")

        rewards = rewards_of(8)
        want = pk.transform(rewards, 3, implementation="xla")
        same(jax.jit(step)(rewards, jnp.asarray(3)), want)
        same(jax.jit(step, static_argnums=1)(rewards, 3), want)
        assert refused == [None, None]

    def test_one_program_has_no_trace_of_the_other(self, jax_triton: ModuleType) -> None:
        step = jax.jit(
            lambda x, k: pk.max_at_k(x, k)[:, None] + pk.transform(x, k).sum(-1)[:, None]
        )
        traced = step.trace(rewards_of(8), jnp.asarray(2))
        text = traced.lower(lowering_platforms=("cpu",)).as_text()
        assert "stablehlo.sort" in text and "callback" not in text

    def test_where_jax_triton_does_not_import_jax_serves(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "jax_triton", None)
        rewards = rewards_of(4)
        same(jax.jit(lambda x: pk.transform(x, 2))(rewards), pk.transform(rewards, 2))
        with pytest.raises(ValueError, match="jax_triton not installed"):
            jax.jit(lambda x: fused(x, 2))(rewards)

    def test_a_broken_jax_triton_is_reported(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "jax_triton.py").write_text("raise ImportError('libcuda.so.1 is too old')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "jax_triton", raising=False)
        monkeypatch.delitem(sys.modules, "pkpo_kernels.backends.jax_triton", raising=False)
        monkeypatch.delattr(backends, "jax_triton", raising=False)
        monkeypatch.setitem(_installed.VERSIONS, "jax_triton", Version.of("0.3.0"))
        rewards = rewards_of(11)  # of a program that nobody has traced
        with pytest.warns(RuntimeWarning, match=r"jax_triton .*libcuda\.so\.1 is too old.* XLA's"):
            same(jax.jit(lambda x: pk.transform(x, 2))(rewards), pk.transform(rewards, 2))
        with pytest.raises(ValueError, match="jax_triton cannot be imported: libcuda"):
            jax.jit(lambda x: fused(x, 2))(rewards)

    @pytest.mark.parametrize("before", [None, "/somewhere"])
    def test_triton_keeps_its_cache(
        self, before: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "jax_triton.py").write_text(
            "import os; os.environ['TRITON_CACHE_DIR'] = ''"  # as 0.3.1 does
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(sys.modules, "jax_triton", None)
        del sys.modules["jax_triton"]
        monkeypatch.setenv("TRITON_CACHE_DIR", "")
        if before is None:
            monkeypatch.delenv("TRITON_CACHE_DIR")
        else:
            monkeypatch.setenv("TRITON_CACHE_DIR", before)
        _installed.import_jax_triton()
        assert "jax_triton" in sys.modules
        assert os.environ.get("TRITON_CACHE_DIR") == before
        # The other way to it, of arrays: this one lacks what is needed then.
        del sys.modules["jax_triton"]
        from pkpo_kernels.backends import jax as door

        with pytest.raises(AttributeError, match="triton_call"):
            door._backend("jax_triton")
        assert os.environ.get("TRITON_CACHE_DIR") == before

    def test_arrays_on_gpus_are_served(self, jax_triton: ModuleType) -> None:
        def device(platform: str, version: str) -> Any:
            client = SimpleNamespace(platform_version=version)
            return SimpleNamespace(platform=platform, client=client)

        def refuses(*devices: Any) -> str | None:
            return registry.IMPLEMENTATIONS["triton_jax"].unsupported(
                SimpleNamespace(dtype=np.dtype("float32"), devices=lambda: devices)
            )

        nvidia = device("gpu", "PJRT C API\ncuda 12080")
        assert refuses(nvidia) is None
        assert "NVIDIA" in str(refuses(device("gpu", "PJRT C API\nrocm 60300")))
        assert "shard_map" in str(refuses(nvidia, nvidia))


def test_the_kernels_import_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import pkpo_triton.kernel, pkpo_triton.plan, pkpo_triton.tables\n"
        "import types; sys.modules['jax_triton'] = types.SimpleNamespace(triton_call=print)\n"
        "import pkpo_kernels.backends.jax_triton\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]


@interpreted
@pytest.mark.usefixtures("on_gpu")
def test_options_of_jax_triton_0_4(jax_triton: ModuleType) -> None:
    given, of_0_3 = [], jax_triton.triton_call

    def triton_call(*args: Any, out_type: Any, backend_options: Any, **named: Any) -> Any:
        given.append(backend_options)
        return of_0_3(*args, out_shape=out_type, enable_fp_fusion=True, **named)

    jax_triton.triton_call = triton_call  # type: ignore[attr-defined]
    rewards = rewards_of(13)  # of a program that nobody has traced
    same(jax.jit(lambda x: fused(x, 3))(rewards), pk.transform(rewards, 3, implementation="xla"))
    assert given == [{"enable_fp_fusion": True, "maxnreg": None}]

    from pkpo_kernels.backends import jax_triton as under_test

    launched: Any = {}
    jax_triton.triton_call = lambda *args, **named: launched.update(named)  # type: ignore[attr-defined]
    with pytest.raises(TypeError):  # for want of a result
        under_test._triton_call(rewards, result=rewards, max_registers=184, num_warps=2)
    assert launched["backend_options"] == {"enable_fp_fusion": True, "maxnreg": 184}
    assert launched["num_warps"] == 2 and launched["out_type"] is rewards


@interpreted
@pytest.mark.usefixtures("on_gpu")
class TestWhatItComputes:
    def test_the_fake_is_what_runs(self) -> None:
        step = jax.jit(lambda x: fused(x, 2))
        assert "callback" in step.lower(rewards_of(4)).as_text()

    @pytest.mark.parametrize("n", [12, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 70))])
    @pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))
    def test_as_xla(self, estimator: str, n: int) -> None:
        rewards = rewards_of(n)
        k = max(1, min(3, n - 1))
        if estimator in ("sloo", "centered") and n == 1:
            return
        for options in ({}, {"scale": "mean"}):
            if options and pk.ESTIMATORS[estimator].normalized:
                continue
            options = {"estimator": estimator, **options}
            want = pk.transform(rewards, k, implementation="xla", **options)
            same(transform_as("triton_jax", k, **options)(rewards), want, 2e-5)
            # Outside jit the same k is an operand.
            same(fused(rewards, k, **options), want, 2e-5)

    @pytest.mark.parametrize("n", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (16, 70))])
    @pytest.mark.parametrize(
        "undersized",
        ["zero", *(pytest.param(u, marks=pytest.mark.release) for u in ("nan", "clip"))],
    )
    def test_masks_and_a_k_for_each_row(self, n: int, undersized: str) -> None:
        rewards = rewards_of(n)
        rng = np.random.default_rng(n)
        where = jnp.asarray(rng.random(rewards.shape) < 0.6)
        ks = jnp.asarray(rng.integers(1, 6, len(rewards)))
        for k in (2, jnp.asarray(2), ks):
            options: dict[str, Any] = {"where": where, "undersized": undersized}
            want = pk.transform(rewards, k, implementation="xla", **options)
            same(fused(rewards, k, **options), want, 2e-5)
        step = jax.jit(lambda x, w: fused(x, 2, where=w, undersized=undersized))
        want = pk.transform(rewards, 2, where=where, undersized=undersized, implementation="xla")
        same(step(rewards, where), want, 2e-5)

    @pytest.mark.parametrize(
        "dtype",
        ["bool", *(pytest.param(d, marks=pytest.mark.slow) for d in ("int8", "int32", "float16"))],
    )
    def test_dtypes(self, dtype: str) -> None:
        rewards = rewards_of(12, np.dtype(dtype))
        for n in (12, 9):
            x = rewards[:, :n]
            same(fused(x, 3), pk.transform(x, 3, implementation="xla"), 1e-3)
            same(fused_max(x, [1, 3]), pk.max_at_k(x, [1, 3], implementation="xla"), 1e-3)

    @pytest.mark.slow
    def test_float64(self) -> None:
        with jax.enable_x64(True):
            rewards = rewards_of(40, jnp.float64)
            same(fused(rewards, 3), pk.transform(rewards, 3, implementation="xla"), 1e-12)
            ks = [2, jnp.asarray(2**40), jnp.asarray(3, jnp.uint64)]
            got = fused_max(rewards, jnp.stack([jnp.asarray(k, jnp.int64) for k in ks]))
            assert np.isnan(got[:, 1]).all()
            same(got[:, ::2], pk.max_at_k(rewards, [2, 3], implementation="xla"), 1e-12)

    @pytest.mark.parametrize(
        "n",
        [9, pytest.param(1, marks=pytest.mark.slow), pytest.param(70, marks=pytest.mark.release)],
    )
    def test_max_at_k(self, n: int) -> None:
        rewards, ks = rewards_of(n), [1, min(3, n), n]
        where = rewards > -1
        for options in ({}, {"where": where}):
            want = pk.max_at_k(rewards, ks, implementation="xla", **options)
            same(fused_max(rewards, ks, **options), want)
            same(jax.jit(lambda x, o: fused_max(x, ks, **o))(rewards, options), want)
            same(fused_max(rewards, jnp.asarray(ks), **options), want)

    @pytest.mark.slow
    def test_rows_that_no_kernel_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*_: Any, **__: Any) -> Any:
            raise AssertionError

        monkeypatch.setattr(sys.modules["jax_triton"], "triton_call", never)
        for shape in ((2, 8193), (0, 4)):
            rewards = jnp.ones(shape)
            same(fused(rewards, 2), pk.transform(rewards, 2, implementation="xla"))
            same(fused_max(rewards, 2), pk.max_at_k(rewards, 2, implementation="xla"))
        (rows,) = jax.export.symbolic_shape("rows")
        symbolic = jax.ShapeDtypeStruct((rows, 16), jnp.float32)
        exported = jax.export.export(jax.jit(lambda x: fused(x, 5)))(symbolic)
        rewards = rewards_of(16)
        same(exported.call(rewards), pk.transform(rewards, 5, implementation="xla"))
