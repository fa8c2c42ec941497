"""Which implementation serves an array, and in words why the others do not.

Nothing here imports an array library that the caller has not imported already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from pkpo_kernels._calls import Again
from pkpo_kernels._tracing import is_watched
from pkpo_kernels.backends import _devices, _unsupported
from pkpo_kernels.backends._installed import Requirement, why_unmet
from pkpo_kernels.maths.weights import Array, Estimator
from pkpo_kernels.typing import ImplementationName
from pkpo_kernels.validation import checked_name


class Backend(Protocol):
    """What computes, for checked arguments."""

    def transform_rows(
        self,
        rewards: Array,
        k: int | Array,
        where: Array | None,
        *,
        estimator: Estimator,
        scale: str,
        undersized: str,
        dtype: Any,
    ) -> Array:
        """Transform rows: rewards (rows, N), k an integer, () or (rows,), where (rows, N) or None
        → (rows, N) of dtype."""

    def max_at_k_rows(
        self, rewards: Array, ks: Sequence[int | Array], where: Array | None, *, dtype: Any
    ) -> Array:
        """Estimate the best of each k: rewards (rows, N), each k an integer or (), where (rows, N)
        or None → (rows, len(ks)) of dtype."""


@runtime_checkable
class Prepares(Protocol):
    """What can prepare its calls, for tensors that lie in rows: the next call of the form takes no
    more than a launch."""

    def prepared_transform(
        self, rewards: Array, k: int | Array, where: Array | None, **options: Any
    ) -> Again | None:
        """Prepare `transform_rows` for rewards of this form, in any leading shape; None where it
        takes more."""

    def prepared_max_at_k(
        self,
        rewards: Array,
        ks: Sequence[int] | Array,
        where: Array | None,
        *,
        dtype: Any,
        shape: Sequence[int],
    ) -> Again | None:
        """Prepare `max_at_k_rows` for rewards of this form, and results of a shape."""


@runtime_checkable
class GroupsByItself(Protocol):
    """What can transform groups where nobody knows their sizes."""

    def prepared_by_id(
        self, rewards: Array, ids: Array | int, where: Array | None, k: int | Array, **options: Any
    ) -> Callable[..., Array] | None:
        """Prepare the transform of entries by their ids: rewards, ids or a block's size, where (N,)
        or None, k an integer or () → what takes such (rewards, ids, where, k), None as ids of
        blocks and anything for an integer k, and gives (N,) of dtype; None where it cannot.
        Options: estimator, scale, undersized, drops_nan, dtype."""


# Plain import statements, which torch.compile can follow; it cannot follow importlib.


def _reference() -> Backend:
    from pkpo_kernels.maths import reference

    return reference


def _numpy() -> Backend:
    from pkpo_kernels.backends import numpy

    return numpy


def _torch() -> Backend:
    from pkpo_kernels.backends import torch

    return torch


def _triton() -> Backend:
    from pkpo_kernels.backends import triton

    return triton


def _jax(name: ImplementationName) -> Callable[[], Backend]:
    def load() -> Backend:
        from pkpo_kernels.backends import jax

        return jax.JaxBackend.load(name)

    return load


def _available() -> None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to compute.

    Attributes:
        name: what `implementation=` calls it.
        library: whose arrays it serves: "numpy", "torch" or "jax".
        load: imports what computes.
        requires: what must be installed.
        summary: one line for people.
        unsupported: rewards of the library → why they cannot be served (their device, say), or
          None.
        serves_any_on_cpu: arrays of the other libraries too, where they lie on one CPU and nothing
          is traced: NumPy is several times as fast there as their own operations.
        lacking: what this machine lacks for it, or None; it may load the array library to find out.
        is_interpreter: it interprets kernels for a device that need not be there, slowly.
    """

    name: ImplementationName
    library: str
    load: Callable[[], Backend]
    requires: tuple[Requirement, ...]
    summary: str
    unsupported: Callable[[Any], str | None] = _unsupported.by_none
    lacking: Callable[[], str | None] = _available
    is_interpreter: bool = False
    serves_any_on_cpu: bool = False

    @property
    def is_installed(self) -> bool:
        return all(requirement.unmet() is None for requirement in self.requires)

    def unavailable(self) -> str | None:
        """Say why this cannot be used here, and what to do about it; None where it can."""
        return why_unmet(self.requires) or self.lacking()

    def takes(self, library: str, traced: bool) -> bool:
        """Tell whether it takes arrays of a library, where a program is being made or not."""
        return self.library == library or (self.serves_any_on_cpu and not traced)


TRITON, PALLAS = Requirement("triton", (3, 5)), Requirement("jax", (0, 8, 2))

# Of those that take a library's arrays the first that is installed and supports the rewards is
# their default.
IMPLEMENTATIONS: dict[str, Implementation] = {
    implementation.name: implementation
    for implementation in (
        Implementation(
            "triton",
            "torch",
            _triton,
            (Requirement("torch", (2, 9)), TRITON),
            "fused Triton kernels for GPUs",
            _unsupported.by_triton,
            _devices.no_gpu,
        ),
        Implementation(
            "pallas",
            "jax",
            _jax("pallas"),
            (PALLAS, Requirement("libtpu")),
            "fused Pallas kernels for TPUs; elsewhere what serves there",
            _unsupported.by_pallas,
            _devices.no_tpu,
        ),
        Implementation(
            "triton_jax",
            "jax",
            _jax("triton_jax"),
            (Requirement("jax"), TRITON, Requirement("jax_triton")),
            "the Triton kernels through jax-triton; elsewhere JAX operations",
            _unsupported.by_jax_triton,
        ),
        Implementation(
            "numpy",
            "numpy",
            _numpy,
            (),
            "vectorised NumPy, float64 inside; tensors and JAX arrays on a CPU, too",
            _unsupported.by_numpy,
            serves_any_on_cpu=True,
        ),
        Implementation("reference", "numpy", _reference, (), "from the definitions, slow"),
        Implementation(
            "torch", "torch", _torch, (Requirement("torch"),), "torch operations, any device"
        ),
        Implementation(
            "xla", "jax", _jax("xla"), (Requirement("jax"),), "JAX operations, any backend"
        ),
        Implementation(
            "pallas_interpret",
            "jax",
            _jax("pallas_interpret"),
            (PALLAS,),
            "the Pallas kernels, interpreted anywhere",
            _unsupported.by_pallas_interpret,
            is_interpreter=True,
        ),
    )
}


def namespace(library: str) -> Any:
    """The module with the array functions of a library: numpy, torch or jax.numpy."""
    if library == "torch":
        import torch

        return torch
    if library == "jax":
        import jax.numpy

        return jax.numpy
    return np


def available_implementations() -> dict[ImplementationName, str | None]:
    """List every implementation: its name → None where it can be used here, else why not and what
    to install.

    >>> available_implementations()["numpy"] is None
    True
    """
    return {entry.name: entry.unavailable() for entry in IMPLEMENTATIONS.values()}


def default_implementation(library: str, rewards: Any = None) -> ImplementationName:
    """Name what serves a library's arrays ("numpy", "torch", "jax") by default: with rewards, this
    very array; without, the first that is installed at all.

    Raises:
        ValueError: nothing serves it.
    """
    return _default(library, rewards).name


def _default(library: str, rewards: Any, traced: bool = False) -> Implementation:
    for entry in IMPLEMENTATIONS.values():
        # What is unsupported first: it costs less than to find out what is installed.
        if rewards is None:
            fits = entry.library == library
        else:
            own = traced or is_watched(rewards)
            fits = entry.takes(library, own) and entry.unsupported(rewards) is None
        if fits and entry.is_installed:
            return entry
    raise ValueError(
        f"library must be one of 'numpy', 'torch', 'jax' and installed; got {library!r}"
    )


def defaults_by_device() -> list[tuple[str, str, str]]:
    """List what serves arrays by default: (library, device, implementation), a row for each device
    that is there. Loads the libraries that are installed, and has them look for their devices.

    >>> defaults_by_device()[0]
    ('numpy', 'cpu', 'numpy')
    """
    rows = [("numpy", "cpu", str(default_implementation("numpy", np.zeros((1, 1)))))]
    for library, devices in (("torch", _devices.torch_devices), ("jax", _devices.jax_devices)):
        if Requirement(library).unmet() is not None:
            continue
        try:
            found = devices()
        except Exception as error:  # what is broken breaks in any way at all
            rows.append((library, "none", f"{library} cannot be used: {error}"))
            continue
        rows += [(library, device, default_implementation(library, like)) for device, like in found]
    return rows


def library_served(name: str) -> str:
    """The library that an implementation serves: "numpy", "torch" or "jax"."""
    return _named(name).library


def _named(name: str) -> Implementation:
    return IMPLEMENTATIONS[checked_name("implementation", name, IMPLEMENTATIONS, or_none=True)]


class Chosen(NamedTuple):
    """What computes, and whose arrays it takes."""

    library: str
    backend: Backend


def choose(name: str | None, library: str, rewards: Any = None, *, traced: bool = False) -> Chosen:
    """Choose what computes for these rewards, of this library. A name is never replaced. `traced`
    says that they, or what goes with them, are part of a program.

    Raises:
        ValueError: there is no implementation of that name, it cannot be used here, it serves
          another array library, or it does not support these rewards.
        ImportError: what it needs is installed and cannot be imported.
    """
    if name is None:
        entry = _default(library, rewards, traced)
    else:
        entry = _fitting(name, library, rewards, traced)
    try:
        return Chosen(entry.library, entry.load())
    except ImportError as error:
        others = [
            repr(i.name)
            for i in IMPLEMENTATIONS.values()
            if i.library == library and i is not entry
        ]
        raise ImportError(
            f"implementation={entry.name!r} is installed and cannot be loaded: {error}; mend what"
            f" it needs, or choose one of {', '.join(others)}"
        ) from error


def _fitting(name: str, library: str, rewards: Any, traced: bool) -> Implementation:
    entry = _named(name)
    if not entry.is_installed:
        raise ValueError(f"implementation={name!r} cannot be used here: {entry.unavailable()}")
    if not entry.takes(library, traced):
        fitting = ", ".join(repr(i.name) for i in IMPLEMENTATIONS.values() if i.library == library)
        raise ValueError(
            f"implementation={name!r} serves {entry.library} arrays and rewards are"
            f" a {library} array; choose one of {fitting}, or None"
        )
    reason = None if rewards is None else entry.unsupported(rewards)
    if reason is not None:
        raise ValueError(f"implementation={name!r} cannot serve these rewards: {reason}")
    return entry
