"""Which devices are there, as far as implementations ask. Nothing here loads an array library that
nobody asked for."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Any

from pkpo_kernels.backends._installed import VERSIONS, Requirement

# What the drivers of NVIDIA, AMD, and Windows' Linux leave where a GPU is, and what those of TPUs.
GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
TPU_FILES = ("/dev/accel0", "/dev/vfio/0", "/dev/vfio/devices")


def interprets_triton() -> bool:
    """Whether Triton kernels are interpreted on the CPU: a switch of Triton's own."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def no_triton_interpreter() -> str | None:
    """Say why Triton's interpreter, which computes with NumPy, cannot do so here."""
    # What it reads scalars from are arrays of shape (1,), which NumPy 2.4 no longer converts to
    # integers and Triton 3.7 has learned to.
    numpy = VERSIONS["numpy"]
    if numpy is None or numpy.release < (2, 4) or Requirement("triton", (3, 7)).unmet() is None:
        return None
    return (
        f"Triton's interpreter fails with numpy {numpy.text} before triton 3.7; install"
        " 'triton>=3.7' or 'numpy<2.4', or unset TRITON_INTERPRET"
    )


def no_gpu() -> str | None:
    """Say why Triton kernels cannot run on this machine."""
    if interprets_triton():
        return no_triton_interpreter()
    torch = sys.modules.get("torch")
    # Without torch in memory this is not the place to load it.
    there = any(map(os.path.exists, GPU_FILES)) if torch is None else torch.cuda.is_available()
    if there:
        return None
    return (
        "no GPU that torch can use; install a torch that sees one, or set TRITON_INTERPRET=1 to"
        " have the kernels interpreted"
    )


def no_tpu() -> str | None:
    """Say why Pallas kernels cannot run on this machine."""
    if any(map(os.path.exists, TPU_FILES)):
        return None
    return (
        "no TPU on this machine; programs can be compiled for one, and 'pallas_interpret' runs the"
        " kernels anywhere"
    )


def is_nvidia(device: Any) -> bool:
    """Whether a device of JAX's is an NVIDIA GPU."""
    # AMD's are "gpu" too.
    version = str(device.client.platform_version).lower()
    return device.platform in ("gpu", "cuda") and "rocm" not in version


def on_one_cpu(library: str, array: Any) -> bool:
    """Tell whether a tensor or a concrete JAX array lies on one CPU, where the host sees it."""
    if library == "torch":
        return bool(array.device.type == "cpu")
    if library == "jax":
        devices = array.devices()
        return len(devices) == 1 and next(iter(devices)).platform == "cpu"
    return False


@dataclass(frozen=True)
class Like:
    """Where a tensor would be. On a GPU the first one takes hundreds of megabytes."""

    device: Any
    dtype: Any


def torch_devices() -> list[tuple[str, Any]]:
    """List torch's devices: a name, and what stands for rewards there."""
    import torch

    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    return [(str(device), Like(device, torch.float32)) for device in devices]


def jax_devices() -> list[tuple[str, Any]]:
    """List JAX's devices: a name, and rewards that are there."""
    import jax
    import jax.numpy as jnp

    devices = list(jax.local_devices())
    # The CPU serves beside whatever else there is, unless JAX_PLATFORMS leaves it out.
    with contextlib.suppress(RuntimeError):
        devices += [cpu for cpu in jax.local_devices(backend="cpu") if cpu not in devices]
    return [
        (f"{device.platform}:{device.id}", jax.device_put(jnp.zeros((1, 1)), device))
        for device in devices
    ]
