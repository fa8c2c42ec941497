"""The packed kernel for JAX arrays. What stands in for jax-triton, which need not be installed,
launches the kernel on the machine that executes PTX.

Run with TEST_DEVICE=ptx.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from subjects import ON_PTX

import pkpo_kernels as pk
from pkpo_kernels import backends

torch = pytest.importorskip("torch")
if not ON_PTX:
    pytest.skip("needs TEST_DEVICE=ptx", allow_module_level=True)

from test_packed import launched  # noqa: E402


def triton_call(*args: Any, kernel: Any, out_shape: Any, grid: Any, **meta: Any) -> Any:
    """What jax_triton.triton_call does: arrays and numbers in their places, outputs behind them."""
    assert not any(isinstance(arg, int) and arg == 1 for arg in args)
    numpy = {jnp.dtype(jnp.bfloat16): np.uint16}.get(out_shape.dtype, out_shape.dtype)

    def on_host(x: Any) -> Any:
        if isinstance(x, int | float):
            return x
        values = np.array(x)
        if values.dtype == jnp.bfloat16:
            return torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(values)

    out = torch.zeros(out_shape.shape, dtype=on_host(np.empty(0, out_shape.dtype)).dtype)
    kernel[grid](*map(on_host, args), out, **meta)
    bits = out.view(torch.uint16) if out.dtype == torch.bfloat16 else out
    return jnp.asarray(bits.numpy().astype(numpy).view(out_shape.dtype))


@pytest.fixture
def jax_triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("jax_triton")
    module.triton_call = triton_call  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jax_triton", module)
    name = "pkpo_kernels.backends.jax_triton"
    monkeypatch.delitem(sys.modules, name, raising=False)
    from pkpo_kernels.backends import jax_triton as under_test

    yield under_test
    sys.modules.pop(name, None)
    vars(backends).pop("jax_triton", None)


@pytest.mark.parametrize(
    "dtype, n",
    [
        ("float32", 16),
        pytest.param("bfloat16", 16, marks=pytest.mark.costly("ptx")),
        ("float32", 12),
        ("float32", 256),
        ("float32", 300),
        ("bfloat16", 512),
    ],
)
def test_as_torch(jax_triton: Any, dtype: str, n: int, rng: np.random.Generator) -> None:
    rewards = jnp.asarray(rng.standard_normal((37, n)), dtype)
    mask = rng.random((37, n)) < 0.7
    with launched() as of_torch:
        for estimator in ("sloo_minus_one", "sloo"):
            for where in (None, mask):
                rules: Any = {"scale": "mean", "undersized": "clip"}
                got = jax_triton.transform_rows(
                    *(rewards, 3, None if where is None else jnp.asarray(where)),
                    weights=None,
                    estimator=pk.ESTIMATORS[estimator],
                    dtype=rewards.dtype,
                    **rules,
                )
                assert got.dtype == rewards.dtype
                of_jax = torch.from_numpy(np.array(rewards, np.float32)).to(getattr(torch, dtype))
                want = pk.transform(
                    of_jax,
                    3,
                    where=None if where is None else torch.from_numpy(where),
                    estimator=estimator,
                    implementation="triton",
                    **rules,
                )
                np.testing.assert_array_equal(np.array(got, np.float32), want.float().numpy())
    of_whole_rows, of_some = (
        "packed_long_kernel" if n > most and dtype == "float32" else "packed_kernel"
        for most in (160, 224)
    )
    assert set(of_torch) == {of_whole_rows, of_some}
