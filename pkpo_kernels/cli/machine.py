"""What is on this machine: the versions of the libraries, and their devices."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

_PACKAGES = ("pkpo-kernels", "numpy", "torch", "jax", "triton")


def versions() -> dict[str, str]:
    """Look up the version of Python and of every package that may take part."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def devices() -> dict[str, str]:
    """List the devices of each library, one a line; or say why there are none. Loads torch and JAX
    where they are installed."""
    return {"torch": _devices("torch", _torch_devices), "jax": _devices("jax", _jax_devices)}


def not_installed() -> dict[str, str]:
    """Say of each library that is not installed how to install it."""
    return {name: _how_to_install(name) for name in ("torch", "jax") if find_spec(name) is None}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices(library: str, listed: Callable[[Any], list[str]]) -> str:
    if find_spec(library) is None:
        return _how_to_install(library)
    # A broken driver or wheel can raise anything, and is what one runs `info` to find out.
    try:
        return "\n".join(listed(import_module(library)))
    except Exception as error:
        return f"not usable: {type(error).__name__}: {error}"


def _how_to_install(library: str) -> str:
    return f"not installed; pip install {library}"


def _torch_devices(torch: Any) -> list[str]:
    gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ["cpu", *gpus]


def _jax_devices(jax: Any) -> list[str]:
    return [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]
