"""Why an implementation cannot serve some rewards, in words: their device, dtype, sharding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pkpo_kernels._tracing import is_traced
from pkpo_kernels.backends import _devices
from pkpo_kernels.backends._installed import import_jax_triton
from pkpo_kernels.validation import library_of


def by_none(rewards: Any) -> None:
    """Say nothing: it serves all."""
    return None


def by_numpy(rewards: Any) -> str | None:
    """Say why NumPy cannot serve rewards of any library."""
    library = library_of(rewards) or "torch"  # but for what stands for rewards
    if library == "numpy" or (not is_traced(rewards) and _devices.on_one_cpu(library, rewards)):
        return None
    return (
        "NumPy computes what lies on one CPU, outside of programs, and these do not; take None, or"
        " what their library brings"
    )


_COMPUTES_FLOAT32 = (
    "its kernels compute in float32 and the rewards or their results are float64; take {}, or"
    " convert them with {}"
)


def by_triton(rewards: Any) -> str | None:
    """Say why the Triton kernels cannot serve tensors."""
    import torch

    # Of integers and bools the result is of torch's default dtype.
    result = rewards.dtype if rewards.dtype.is_floating_point else torch.get_default_dtype()
    if result == torch.float64:
        return _COMPUTES_FLOAT32.format("'torch'", ".float()")
    if _devices.interprets_triton():
        return _devices.no_triton_interpreter()
    if rewards.device.type == "cuda":
        return None
    return (
        f"its kernels run on GPUs and the rewards are on {rewards.device}; move them with"
        " .to('cuda'), or set TRITON_INTERPRET=1 to have the kernels interpreted"
    )


def by_jax_triton(rewards: Any) -> str | None:
    """Say why jax-triton cannot serve JAX arrays."""
    import jax

    if _is_float64(rewards):
        return _COMPUTES_FLOAT32.format("'xla'", ".astype('float32')")
    # Of a tracer nobody knows yet where it will run: the program has both ways.
    if isinstance(rewards, jax.core.Tracer):
        return _no_jax_triton()
    return _unsupported_devices(
        rewards,
        _devices.is_nvidia,
        "its kernels run on NVIDIA GPUs and the rewards are on {}; move them with jax.device_put",
    )


def _is_float64(rewards: Any) -> bool:
    """Tell whether JAX's rewards, or their results, are float64."""
    import jax

    # Of integers and bools the result is of JAX's default dtype.
    is_float = jax.numpy.issubdtype(rewards.dtype, np.floating)
    return rewards.dtype == np.float64 or (
        not is_float and jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    )


def _no_jax_triton() -> str | None:
    """Say why a JAX without NVIDIA GPUs has no use for jax_triton. With one, loading it will
    tell."""
    import jax

    try:
        import_jax_triton()
    except ImportError as error:
        if not any(map(_devices.is_nvidia, jax.devices())):
            return f"jax_triton cannot be imported: {error}"
    return None


def by_pallas(rewards: Any) -> str | None:
    """Say why the Pallas kernels cannot serve JAX arrays."""
    import jax

    reason = by_pallas_interpret(rewards)
    # Of a tracer nobody knows yet where it will run: the program has both ways.
    if reason is not None or isinstance(rewards, jax.core.Tracer):
        return reason
    return _unsupported_devices(
        rewards,
        lambda device: device.platform == "tpu",
        "its kernels run on TPUs and the rewards are on {}; move them with jax.device_put, or take"
        " 'pallas_interpret'",
    )


def by_pallas_interpret(rewards: Any) -> str | None:
    """Say why Pallas's interpreter cannot serve JAX arrays."""
    if _is_float64(rewards):
        return _COMPUTES_FLOAT32.format("'xla'", ".astype('float32')")
    return None


def _unsupported_devices(rewards: Any, runs_on: Callable[[Any], bool], reason: str) -> str | None:
    devices = rewards.devices()
    for device in devices:
        if not runs_on(device):
            return reason.format(device)
    if len(devices) > 1:
        return (
            f"the rewards are sharded over {len(devices)} devices, and the compiler cannot"
            " divide a kernel's rows; call it inside jax.shard_map"
        )
    return None
