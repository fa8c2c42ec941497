"""Which implementation serves an array, and in words why the others do not.

Nothing here imports an array library that the caller has not imported already.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

# Plain import statements, which torch.compile can follow; it cannot follow importlib.


def _reference() -> ModuleType:
    from pkpo_kernels import reference

    return reference


def _numpy() -> ModuleType:
    from pkpo_kernels import portable_numpy

    return portable_numpy


def _torch() -> ModuleType:
    from pkpo_kernels import portable_torch

    return portable_torch


def _triton() -> ModuleType:
    from pkpo_kernels import fused_triton

    return fused_triton


# What the drivers of NVIDIA, AMD, and Windows' Linux leave where a GPU is.
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def _interpreted() -> bool:
    """Whether Triton kernels are interpreted on the CPU: a switch of Triton's own."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _no_gpu() -> str | None:
    torch = sys.modules.get("torch")
    # Without torch in memory this is not the place to load it.
    there = any(map(os.path.exists, _GPU_FILES)) if torch is None else torch.cuda.is_available()
    if there or _interpreted():
        return None
    return (
        "no GPU that torch can use; install a torch that sees one, or set TRITON_INTERPRET=1 to"
        " have the kernels interpreted"
    )


def _triton_refuses(rewards: Any) -> str | None:
    if rewards.device.type == "cuda" or _interpreted():
        return None
    return (
        f"its kernels run on GPUs and the rewards are on {rewards.device}; move them with"
        " .to('cuda'), or set TRITON_INTERPRET=1 to have the kernels interpreted"
    )


def _xla() -> ModuleType:
    from pkpo_kernels import portable_xla

    return portable_xla


def _jax_triton() -> ModuleType:
    from pkpo_kernels import fused_jax_triton

    return fused_jax_triton


def _jax_triton_refuses(rewards: Any) -> str | None:
    import jax

    # Of a tracer nobody knows yet where it will run: the program has both ways.
    if not isinstance(rewards, jax.core.Tracer):
        devices = rewards.devices()
        for device in devices:
            # AMD's are "gpu" too.
            version = str(device.client.platform_version).lower()
            if device.platform not in ("gpu", "cuda") or "rocm" in version:
                return (
                    f"its kernels run on NVIDIA GPUs and the rewards are on {device}; move them"
                    " with jax.device_put"
                )
        if len(devices) > 1:
            return (
                f"the rewards are sharded over {len(devices)} devices, and the compiler cannot"
                " divide a kernel's rows; call it inside jax.shard_map"
            )
    try:
        import jax_triton  # noqa: F401
    except ImportError as error:  # as where JAX itself has no support for GPUs
        return f"jax_triton cannot be imported: {error}"
    return None


# What the drivers leave where a TPU is.
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0", "/dev/vfio/devices")


def _pallas() -> ModuleType:
    from pkpo_kernels import fused_pallas

    return fused_pallas


def _pallas_interpret() -> ModuleType:
    from pkpo_kernels import interpreted_pallas

    return interpreted_pallas


def _no_tpu() -> str | None:
    if any(map(os.path.exists, _TPU_FILES)):
        return None
    return (
        "no TPU on this machine; programs can be compiled for one, and 'pallas_interpret' runs the"
        " kernels anywhere"
    )


def _pallas_refuses(rewards: Any) -> str | None:
    import jax

    reason = _pallas_interpret_refuses(rewards)
    # Of a tracer nobody knows yet where it will run: the program has both ways.
    if reason is not None or isinstance(rewards, jax.core.Tracer):
        return reason
    devices = rewards.devices()
    for device in devices:
        if device.platform != "tpu":
            return (
                f"its kernels run on TPUs and the rewards are on {device}; move them with"
                " jax.device_put, or take 'pallas_interpret'"
            )
    if len(devices) > 1:
        return (
            f"the rewards are sharded over {len(devices)} devices, and the compiler cannot"
            " divide a kernel's rows; call it inside jax.shard_map"
        )
    return None


def _pallas_interpret_refuses(rewards: Any) -> str | None:
    if rewards.dtype == np.float64:
        return (
            "its kernels compute in float32 and the rewards are float64; take 'xla', or convert"
            " them with .astype('float32')"
        )
    return None


def _serves_all(rewards: Any) -> None:
    return None


def _nothing() -> str | None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to compute; its module offers `transform_rows` and `max_at_k_rows`.

    Attributes:
        name: what `implementation=` calls it.
        kind: the array library it serves: "numpy", "torch" or "jax".
        load: imports the module with the two functions; None for a reserved name.
        requires: what must be installed, by the name that import and pip know it by.
        summary: one line for people.
        refuses: rewards of the kind → why they cannot be served (their device, say), or None.
        lacks: what this machine lacks for it, or None; it may load the array library to find out.
        simulated: it simulates the device that it was written for.
    """

    name: str
    kind: str
    load: Callable[[], ModuleType] | None
    requires: tuple[str, ...]
    summary: str
    refuses: Callable[[Any], str | None] = _serves_all
    lacks: Callable[[], str | None] = _nothing
    simulated: bool = False

    @property
    def available(self) -> bool:
        return self.load is not None and all(map(_installed, self.requires))

    def why_not(self) -> str | None:
        """Why this cannot be used here, and what to do about it; None where it can."""
        if self.load is None:
            return "its kernels are not part of this version of pkpo-kernels; install a later one"
        missing = [package for package in self.requires if not _installed(package)]
        if missing:
            return f"{' and '.join(missing)} not installed; pip install {' '.join(missing)}"
        return self.lacks()


def _installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


# Within a kind the first that is available and does not refuse the rewards is the default.
IMPLEMENTATIONS: dict[str, Implementation] = {
    implementation.name: implementation
    for implementation in (
        Implementation("numpy", "numpy", _numpy, (), "vectorised NumPy, float64 inside"),
        Implementation("reference", "numpy", _reference, (), "from the definitions, slow"),
        Implementation(
            "triton",
            "torch",
            _triton,
            ("torch", "triton"),
            "fused Triton kernels for GPUs",
            _triton_refuses,
            _no_gpu,
        ),
        Implementation("torch", "torch", _torch, ("torch",), "torch operations, any device"),
        Implementation(
            "pallas",
            "jax",
            _pallas,
            ("jax", "libtpu"),
            "fused Pallas kernels for TPUs; elsewhere what serves there",
            _pallas_refuses,
            _no_tpu,
        ),
        Implementation(
            "triton_jax",
            "jax",
            _jax_triton,
            ("jax", "triton", "jax_triton"),
            "the Triton kernels through jax-triton; elsewhere JAX operations",
            _jax_triton_refuses,
        ),
        Implementation("xla", "jax", _xla, ("jax",), "JAX operations, any backend"),
        Implementation(
            "pallas_interpret",
            "jax",
            _pallas_interpret,
            ("jax",),
            "the Pallas kernels, interpreted anywhere",
            _pallas_interpret_refuses,
            simulated=True,
        ),
    )
}


def library_of(array: Any) -> str | None:
    """ "numpy", "torch" or "jax", or None for anything else, without importing any of them."""
    for kind, type_name in (("torch", "Tensor"), ("jax", "Array"), ("numpy", "ndarray")):
        module = sys.modules.get(kind)
        if module is not None and isinstance(array, getattr(module, type_name, ())):
            return kind
    return None


def namespace(kind: str) -> Any:
    """The module with the array functions of a kind: numpy, torch or jax.numpy."""
    if kind == "torch":
        import torch

        return torch
    if kind == "jax":
        import jax.numpy

        return jax.numpy
    return np


def available_implementations() -> dict[str, str | None]:
    """Every implementation by name → None where it can be used here, else why not and what to
    install.

    >>> available_implementations()["numpy"] is None
    True
    """
    return {name: implementation.why_not() for name, implementation in IMPLEMENTATIONS.items()}


def default_implementation(kind: str, rewards: Any = None) -> str:
    """Which implementation serves a library's arrays ("numpy", "torch", "jax") by default.

    With rewards, the one for this very array; without, the first that is available at all.
    """
    for name, implementation in IMPLEMENTATIONS.items():
        fits = implementation.kind == kind and implementation.available
        if fits and (rewards is None or implementation.refuses(rewards) is None):
            return name
    raise ValueError(
        f"kind must be one of 'numpy', 'torch', 'jax' with its library installed; got {kind!r}"
    )


def kind_of(name: str) -> str:
    """The array library that an implementation serves: "numpy", "torch" or "jax"."""
    return _named(name).kind


def _named(name: str) -> Implementation:
    if not isinstance(name, str) or name not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be None or one of {', '.join(IMPLEMENTATIONS)}; got {name!r}"
        )
    return IMPLEMENTATIONS[name]


def choose(name: str | None, kind: str, rewards: Any = None) -> ModuleType:
    """The module that computes for these rewards, of this kind. A name is never replaced.

    Raises:
        ValueError: there is no implementation of that name, it cannot be used here, it serves
          another array library, or it refuses these rewards.
    """
    implementation = _named(default_implementation(kind, rewards) if name is None else name)
    if implementation.load is None or not implementation.available:
        raise ValueError(f"implementation={name!r} cannot be used here: {implementation.why_not()}")
    if implementation.kind != kind:
        fitting = ", ".join(repr(i.name) for i in IMPLEMENTATIONS.values() if i.kind == kind)
        raise ValueError(
            f"implementation={name!r} serves {implementation.kind} arrays and rewards are"
            f" a {kind} array; choose one of {fitting}, or None"
        )
    reason = None if rewards is None else implementation.refuses(rewards)
    if reason is not None:
        raise ValueError(f"implementation={name!r} cannot serve these rewards: {reason}")
    return implementation.load()
