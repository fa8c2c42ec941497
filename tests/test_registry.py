"""Which implementation serves, and in what words the others do not."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

import pkpo_kernels as pk
from pkpo_kernels.backends import _devices, _installed, registry
from pkpo_kernels.backends._installed import Version

REWARDS = np.arange(12.0).reshape(3, 4)


def test_the_default_is_the_first_that_is_available() -> None:
    available = pk.available_implementations()
    assert list(available) == [
        "triton", "pallas", "triton_jax", "numpy", "reference", "torch", "xla", "pallas_interpret",
    ]  # fmt: skip
    assert [name for name, reason in available.items() if reason is None] == [
        "numpy", "reference", "torch", "xla", "pallas_interpret",
    ]  # fmt: skip
    missing = [reason for name, reason in available.items() if reason and name != "pallas"]
    assert all("install" in reason for reason in missing)
    np.testing.assert_array_equal(
        pk.transform(REWARDS, 2), pk.transform(REWARDS, 2, implementation="numpy")
    )


def test_triton_says_where_its_gpu_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = pk.available_implementations()["triton"]
    assert reason is not None and "no GPU" in reason and "TRITON_INTERPRET=1" in reason
    with pytest.raises(ValueError, match="rewards are on cpu; move them"):
        pk.transform(torch.zeros(2, 3), 2, implementation="triton")


def test_pallas_says_where_its_tpu_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_installed.VERSIONS, "libtpu", Version.of("0.0.42"))
    monkeypatch.setattr(_devices, "TPU_FILES", ())
    reason = pk.available_implementations()["pallas"]
    assert reason is not None and "no TPU" in reason and "'pallas_interpret'" in reason
    monkeypatch.setattr(_devices, "TPU_FILES", ("/",))
    assert pk.available_implementations()["pallas"] is None


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in _installed.VERSIONS:
        monkeypatch.setitem(_installed.VERSIONS, package, None)
        monkeypatch.delitem(sys.modules, package, raising=False)
    reasons = pk.available_implementations()
    assert reasons["xla"] == "jax not installed; pip install jax"
    assert reasons["triton"] == (
        "torch and triton not installed; pip install 'torch>=2.9' 'triton>=3.5'"
    )


@pytest.mark.parametrize(
    "versions, names, reason",
    [
        ({"triton": "3.4.0"}, ["triton"], "triton 3.4.0 is too old, it must be 3.5 or newer"),
        ({"torch": "2.8.0+cu128"}, ["triton"], "torch 2.8.0+cu128 is too old, it must be 2.9"),
        ({"jax": "0.8.1"}, ["pallas", "pallas_interpret"], "jax 0.8.1 is too old"),
        ({"jax_triton": "0.3", "triton": "3.3.1"}, ["triton_jax"], "pip install 'triton>=3.5'"),
    ],
)
def test_old_versions_are_refused_and_others_serve(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], names: list[str], reason: str
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(_devices, "TPU_FILES", ("/",))
    for package, version in ({"libtpu": "0.0.42"} | versions).items():
        monkeypatch.setitem(_installed.VERSIONS, package, Version.of(version))
    reasons = pk.available_implementations()
    for name in names:
        assert reason in str(reasons[name])
        with pytest.raises(ValueError, match=r"cannot be used here: .* too old"):
            registry.choose(name, registry.library_served(name))
    serves = "triton" if reasons["triton"] is None else "numpy"
    assert registry.default_implementation("torch", torch.zeros(2, 3)) == serves
    if "pallas" in names:
        assert registry.default_implementation("jax") == "xla"


def test_versions_that_are_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for triton, pytorch in (("3.5.0", "2.9.0a0+git1234"), ("3.10", "3.0"), ("unknown", "2.10.1")):
        monkeypatch.setitem(_installed.VERSIONS, "triton", Version.of(triton))
        monkeypatch.setitem(_installed.VERSIONS, "torch", Version.of(pytorch))
        assert registry.IMPLEMENTATIONS["triton"].is_installed


def test_an_interpreter_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(_installed.VERSIONS, "numpy", Version.of("2.4.0"))
    rewards = torch.zeros(2, 3)
    for version, serves in (("3.6.0", "numpy"), ("3.7.0", "triton")):
        monkeypatch.setitem(_installed.VERSIONS, "triton", Version.of(version))
        assert registry.default_implementation("torch", rewards) == serves
        reason = pk.available_implementations()["triton"]
        if serves == "numpy":
            assert reason is not None and "Triton's interpreter fails with numpy" in reason
            with pytest.raises(ValueError, match=r"before triton 3\.7; install 'triton>=3\.7'"):
                pk.transform(rewards, 2, implementation="triton")
        else:
            assert reason is None
    monkeypatch.setitem(_installed.VERSIONS, "numpy", Version.of("2.3.5"))
    monkeypatch.setitem(_installed.VERSIONS, "triton", Version.of("3.6.0"))
    assert registry.default_implementation("torch", rewards) == "triton"


@pytest.mark.parametrize("name", [None, "broken"])
def test_what_is_installed_and_broken_is_reported(
    monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    def load() -> Any:
        raise ImportError("libsomething.so: cannot open shared object file")

    entry = replace(registry.IMPLEMENTATIONS["reference"], name=cast(Any, "broken"), load=load)
    table = {"broken": entry, **registry.IMPLEMENTATIONS}
    monkeypatch.setattr(registry, "IMPLEMENTATIONS", table)
    with pytest.raises(ImportError, match=r"'broken' is .*libsomething\.so.*'numpy', 'reference'"):
        pk.transform(REWARDS, 2, implementation=name)


def test_what_serves_on_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows = registry.defaults_by_device()
    assert ("numpy", "cpu", "numpy") in rows and ("torch", "cpu", "numpy") in rows
    assert ("torch", "cuda:1", "triton") in rows
    assert ("jax", "cpu:0", "numpy") in rows
    for package in ("torch", "jax"):
        monkeypatch.setitem(_installed.VERSIONS, package, None)
        monkeypatch.delitem(sys.modules, package)
    assert registry.defaults_by_device() == [("numpy", "cpu", "numpy")]
    monkeypatch.setitem(_installed.VERSIONS, "jax", Version.of("0.10.2"))
    monkeypatch.setitem(sys.modules, "jax", None)
    (_, (library, device, what)) = registry.defaults_by_device()
    assert (library, device) == ("jax", "none") and "jax cannot be used: " in what


def test_an_implementation_may_refuse_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    picky = replace(
        registry.IMPLEMENTATIONS["reference"],
        name=cast(Any, "picky"),
        unsupported=lambda rewards: "rewards are small" if rewards.size < 10 else None,
    )
    # In front of the others, as a kernel for some devices will be.
    table = {"picky": picky, **registry.IMPLEMENTATIONS}
    monkeypatch.setattr(registry, "IMPLEMENTATIONS", table)
    assert registry.default_implementation("numpy", REWARDS) == "picky"
    assert registry.default_implementation("numpy", REWARDS[:1]) == "numpy"
    with pytest.raises(ValueError, match="'picky' cannot serve these rewards: rewards are small"):
        pk.transform(REWARDS[:1], 2, implementation="picky")
    np.testing.assert_allclose(
        pk.transform(REWARDS, 2), pk.transform(REWARDS, 2, implementation="numpy")
    )
