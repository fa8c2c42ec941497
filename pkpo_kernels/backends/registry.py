"""Which implementation serves an array, and in words why the others do not.

Nothing here imports an array library that the caller has not imported already.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from pkpo_kernels.typing import ImplementationName
from pkpo_kernels.validation import checked_name
from pkpo_kernels.validation import library_of as library_of

# Plain import statements, which torch.compile can follow; it cannot follow importlib.


def _reference() -> ModuleType:
    from pkpo_kernels.maths import reference

    return reference


def _numpy() -> ModuleType:
    from pkpo_kernels.backends import numpy as numpy_backend

    return numpy_backend


def _torch() -> ModuleType:
    from pkpo_kernels.backends import torch as torch_backend

    return torch_backend


def _triton() -> ModuleType:
    from pkpo_kernels.backends import triton as triton_backend

    return triton_backend


# What the drivers of NVIDIA, AMD, and Windows' Linux leave where a GPU is.
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def _interpreted() -> bool:
    """Whether Triton kernels are interpreted on the CPU: a switch of Triton's own."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _interpreter_fails() -> str | None:
    """Why Triton's interpreter, which computes with NumPy, cannot do so here."""
    # What it reads scalars from are arrays of shape (1,), which NumPy 2.4 no longer converts to
    # integers and Triton 3.7 has learned to.
    if _NUMPY < (2, 4) or _unmet(Requirement("triton", (3, 7))) is None:
        return None
    return (
        f"Triton's interpreter fails with numpy {np.__version__} before triton 3.7; install"
        " 'triton>=3.7' or 'numpy<2.4', or unset TRITON_INTERPRET"
    )


_NUMPY = tuple(map(int, np.__version__.split(".")[:2]))


def _no_gpu() -> str | None:
    if _interpreted():
        return _interpreter_fails()
    torch = sys.modules.get("torch")
    # Without torch in memory this is not the place to load it.
    there = any(map(os.path.exists, _GPU_FILES)) if torch is None else torch.cuda.is_available()
    if there:
        return None
    return (
        "no GPU that torch can use; install a torch that sees one, or set TRITON_INTERPRET=1 to"
        " have the kernels interpreted"
    )


def _triton_refuses(rewards: Any) -> str | None:
    import torch

    # Of integers and bools the result is of torch's default dtype.
    result = rewards.dtype if rewards.dtype.is_floating_point else torch.get_default_dtype()
    if result == torch.float64:
        return (
            "its kernels compute in float32 and the rewards or their results are float64; take"
            " 'torch', or convert them with .float()"
        )
    if _interpreted():
        return _interpreter_fails()
    if rewards.device.type == "cuda":
        return None
    return (
        f"its kernels run on GPUs and the rewards are on {rewards.device}; move them with"
        " .to('cuda'), or set TRITON_INTERPRET=1 to have the kernels interpreted"
    )


def _xla() -> ModuleType:
    from pkpo_kernels.backends import xla as xla_backend

    return xla_backend


def _jax_triton() -> ModuleType:
    from pkpo_kernels.backends import jax_triton as jax_triton_backend

    return jax_triton_backend


def _jax_triton_refuses(rewards: Any) -> str | None:
    import jax

    # Of a tracer nobody knows yet where it will run: the program has both ways.
    if isinstance(rewards, jax.core.Tracer):
        return _jax_triton_unsupported()
    devices = rewards.devices()
    for device in devices:
        if not _is_nvidia(device):
            return (
                f"its kernels run on NVIDIA GPUs and the rewards are on {device}; move them"
                " with jax.device_put"
            )
    if len(devices) > 1:
        return (
            f"the rewards are sharded over {len(devices)} devices, and the compiler cannot"
            " divide a kernel's rows; call it inside jax.shard_map"
        )
    return None


def _is_nvidia(device: Any) -> bool:
    # AMD's are "gpu" too.
    version = str(device.client.platform_version).lower()
    return device.platform in ("gpu", "cuda") and "rocm" not in version


def _jax_triton_unsupported() -> str | None:
    """Why a JAX without NVIDIA GPUs has no use for jax_triton. With one, loading it will tell."""
    import jax

    try:
        import jax_triton  # noqa: F401
    except ImportError as error:
        if not any(map(_is_nvidia, jax.devices())):
            return f"jax_triton cannot be imported: {error}"
    return None


# What the drivers leave where a TPU is.
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0", "/dev/vfio/devices")


def _pallas() -> ModuleType:
    from pkpo_kernels.backends import pallas as pallas_backend

    return pallas_backend


def _pallas_interpret() -> ModuleType:
    from pkpo_kernels.backends import pallas_interpret

    return pallas_interpret


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


class Requirement(NamedTuple):
    """A package by the name that import and pip know it by, and the oldest version that does."""

    package: str
    least: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"'{self.package}>={_dotted(self.least)}'" if self.least else self.package


@dataclass(frozen=True)
class Implementation:
    """One way to compute; its module offers `transform_rows` and `max_at_k_rows`.

    Attributes:
        name: what `implementation=` calls it.
        kind: the array library it serves: "numpy", "torch" or "jax".
        load: imports the module with the two functions.
        requires: what must be installed.
        summary: one line for people.
        refuses: rewards of the kind → why they cannot be served (their device, say), or None.
        lacks: what this machine lacks for it, or None; it may load the array library to find out.
        simulated: it simulates the device that it was written for.
    """

    name: ImplementationName
    kind: str
    load: Callable[[], ModuleType]
    requires: tuple[Requirement, ...]
    summary: str
    refuses: Callable[[Any], str | None] = _serves_all
    lacks: Callable[[], str | None] = _nothing
    simulated: bool = False

    @property
    def available(self) -> bool:
        return all(_unmet(requirement) is None for requirement in self.requires)

    def why_not(self) -> str | None:
        """Why this cannot be used here, and what to do about it; None where it can."""
        unmet = {requirement: _unmet(requirement) for requirement in self.requires}
        missing = [requirement for requirement, what in unmet.items() if what == "not installed"]
        if missing:
            names = " and ".join(requirement.package for requirement in missing)
            return f"{names} not installed; pip install {' '.join(map(str, missing))}"
        old = {requirement: what for requirement, what in unmet.items() if what is not None}
        if old:
            return f"{' and '.join(old.values())}; pip install {' '.join(map(str, old))}"
        return self.lacks()


def _unmet(requirement: Requirement) -> str | None:
    """Why what is installed does not do, or None where it does."""
    from pkpo_kernels.backends._installed import VERSIONS

    package, least = requirement
    version = VERSIONS.get(package)
    if version is None:
        # Installed since, or put there by hand.
        return None if package in sys.modules else "not installed"
    # Of what does not say how old it is the best is hoped.
    if not least or not version.release or version.release >= least:
        return None
    return f"{package} {version.text} is too old, it must be {_dotted(least)} or newer"


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))


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
            (Requirement("torch", (2, 9)), Requirement("triton", (3, 5))),
            "fused Triton kernels for GPUs",
            _triton_refuses,
            _no_gpu,
        ),
        Implementation(
            "torch", "torch", _torch, (Requirement("torch"),), "torch operations, any device"
        ),
        Implementation(
            "pallas",
            "jax",
            _pallas,
            (Requirement("jax", (0, 8, 2)), Requirement("libtpu")),
            "fused Pallas kernels for TPUs; elsewhere what serves there",
            _pallas_refuses,
            _no_tpu,
        ),
        Implementation(
            "triton_jax",
            "jax",
            _jax_triton,
            (Requirement("jax"), Requirement("triton", (3, 5)), Requirement("jax_triton")),
            "the Triton kernels through jax-triton; elsewhere JAX operations",
            _jax_triton_refuses,
        ),
        Implementation("xla", "jax", _xla, (Requirement("jax"),), "JAX operations, any backend"),
        Implementation(
            "pallas_interpret",
            "jax",
            _pallas_interpret,
            (Requirement("jax", (0, 8, 2)),),
            "the Pallas kernels, interpreted anywhere",
            _pallas_interpret_refuses,
            simulated=True,
        ),
    )
}


def namespace(kind: str) -> Any:
    """The module with the array functions of a kind: numpy, torch or jax.numpy."""
    if kind == "torch":
        import torch

        return torch
    if kind == "jax":
        import jax.numpy

        return jax.numpy
    return np


def available_implementations() -> dict[ImplementationName, str | None]:
    """Every implementation by name → None where it can be used here, else why not and what to
    install.

    >>> available_implementations()["numpy"] is None
    True
    """
    return {entry.name: entry.why_not() for entry in IMPLEMENTATIONS.values()}


def default_implementation(kind: str, rewards: Any = None) -> ImplementationName:
    """Which implementation serves a library's arrays ("numpy", "torch", "jax") by default.

    With rewards, the one for this very array; without, the first that is available at all.
    """
    return _default(kind, rewards).name


def _default(kind: str, rewards: Any) -> Implementation:
    for entry in IMPLEMENTATIONS.values():
        # Refusals first: they cost less than to find out what is installed.
        fits = entry.kind == kind and (rewards is None or entry.refuses(rewards) is None)
        if fits and entry.available:
            return entry
    raise ValueError(
        f"kind must be one of 'numpy', 'torch', 'jax' with its library installed; got {kind!r}"
    )


def defaults_by_device() -> list[tuple[str, str, str]]:
    """What serves arrays by default: (library, device, implementation), a row for each device that
    is there. Loads the libraries that are installed, and has them look for their devices.

    >>> defaults_by_device()[0]
    ('numpy', 'cpu', 'numpy')
    """
    rows = [("numpy", "cpu", str(default_implementation("numpy", np.zeros((1, 1)))))]
    for kind, examples in (("torch", _on_torch_devices), ("jax", _on_jax_devices)):
        if _unmet(Requirement(kind)) is not None:
            continue
        try:
            found = examples()
        except Exception as error:  # what is broken breaks in any way at all
            rows.append((kind, "none", f"{kind} cannot be used: {error}"))
            continue
        rows += [(kind, device, default_implementation(kind, like)) for device, like in found]
    return rows


def _on_torch_devices() -> list[tuple[str, Any]]:
    """Every device of torch's with something that tells the implementations that it is there."""
    import torch

    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    # Not a tensor: on a GPU the first one takes hundreds of megabytes.
    return [(str(device), _Like(device, torch.float32)) for device in devices]


def _on_jax_devices() -> list[tuple[str, Any]]:
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


@dataclass(frozen=True)
class _Like:
    """Where a tensor would be."""

    device: Any
    dtype: Any


def kind_of(name: str) -> str:
    """The array library that an implementation serves: "numpy", "torch" or "jax"."""
    return _named(name).kind


def _named(name: str) -> Implementation:
    return IMPLEMENTATIONS[checked_name("implementation", name, IMPLEMENTATIONS, or_none=True)]


def choose(name: str | None, kind: str, rewards: Any = None) -> ModuleType:
    """The module that computes for these rewards, of this kind. A name is never replaced.

    Raises:
        ValueError: there is no implementation of that name, it cannot be used here, it serves
          another array library, or it refuses these rewards.
        ImportError: what it needs is installed and cannot be imported.
    """
    entry = _default(kind, rewards) if name is None else _fitting(name, kind, rewards)
    try:
        return entry.load()
    except ImportError as error:
        others = [
            repr(i.name) for i in IMPLEMENTATIONS.values() if i.kind == kind and i is not entry
        ]
        raise ImportError(
            f"implementation={entry.name!r} is installed and cannot be loaded: {error}; mend what"
            f" it needs, or choose one of {', '.join(others)}"
        ) from error


def _fitting(name: str, kind: str, rewards: Any) -> Implementation:
    entry = _named(name)
    if not entry.available:
        raise ValueError(f"implementation={name!r} cannot be used here: {entry.why_not()}")
    if entry.kind != kind:
        fitting = ", ".join(repr(i.name) for i in IMPLEMENTATIONS.values() if i.kind == kind)
        raise ValueError(
            f"implementation={name!r} serves {entry.kind} arrays and rewards are"
            f" a {kind} array; choose one of {fitting}, or None"
        )
    reason = None if rewards is None else entry.refuses(rewards)
    if reason is not None:
        raise ValueError(f"implementation={name!r} cannot serve these rewards: {reason}")
    return entry
