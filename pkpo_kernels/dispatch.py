"""Which implementation serves an array, and in words why the others do not.

Nothing here imports an array library that the caller has not imported already.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_PACKAGE_OF_KIND = {"numpy": "numpy", "torch": "torch", "jax": "jax"}


@dataclass(frozen=True)
class Implementation:
    """One way to compute; its module offers `transform_rows` and `max_at_k_rows`.

    Attributes:
      name: what `implementation=` calls it.
      kind: the array library it serves: "numpy", "torch" or "jax".
      module: the module with the two functions; None for a reserved name.
      requires: what must be installed, by import name.
      install: what to type where it is not.
      summary: one line for people.
    """

    name: str
    kind: str
    module: str | None
    requires: tuple[str, ...]
    install: str
    summary: str

    def why_not(self) -> str | None:
        """Why this cannot be used here, and what to do about it; None where it can."""
        missing = [name for name in self.requires if importlib.util.find_spec(name) is None]
        if missing:
            return f"{' and '.join(missing)} not installed; pip install '{self.install}'"
        if self.module is None:
            return (
                "its kernels are not part of this version;"
                f" a later one will have them: pip install --upgrade '{self.install}'"
            )
        return None

    def load(self) -> ModuleType:
        assert self.module is not None
        return importlib.import_module(self.module)


# Within a kind the first that is available is the default.
IMPLEMENTATIONS: dict[str, Implementation] = {
    implementation.name: implementation
    for implementation in (
        Implementation(
            "numpy",
            "numpy",
            "pkpo_kernels.portable_numpy",
            (),
            "pkpo-kernels",
            "vectorised NumPy, float64 inside",
        ),
        Implementation(
            "reference",
            "numpy",
            "pkpo_kernels.reference",
            (),
            "pkpo-kernels",
            "row by row from the definitions, slow",
        ),
        Implementation(
            "triton",
            "torch",
            None,
            ("torch", "triton"),
            "pkpo-kernels[triton]",
            "fused Triton kernels for GPUs",
        ),
        Implementation(
            "torch",
            "torch",
            "pkpo_kernels.portable_torch",
            ("torch",),
            "pkpo-kernels[torch]",
            "torch operations, any device",
        ),
        Implementation(
            "pallas",
            "jax",
            None,
            ("jax", "libtpu"),
            "pkpo-kernels[tpu]",
            "fused Pallas kernels for TPUs",
        ),
        Implementation(
            "xla",
            "jax",
            "pkpo_kernels.portable_xla",
            ("jax",),
            "pkpo-kernels[jax]",
            "JAX operations, any backend",
        ),
        Implementation(
            "pallas_interpret",
            "jax",
            None,
            ("jax",),
            "pkpo-kernels[jax]",
            "the Pallas kernels, interpreted anywhere",
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
    return importlib.import_module("jax.numpy" if kind == "jax" else kind)


def available_implementations() -> dict[str, str | None]:
    """Every implementation by name → None where it can be used here, else why not and what to
    install.

    >>> available_implementations()["numpy"] is None
    True
    """
    return {name: implementation.why_not() for name, implementation in IMPLEMENTATIONS.items()}


def default_implementation(kind: str) -> str:
    """Which implementation serves a library's arrays ("numpy", "torch", "jax") by default."""
    for name, implementation in IMPLEMENTATIONS.items():
        if implementation.kind == kind and implementation.why_not() is None:
            return name
    raise ValueError(
        f"kind must be one of 'numpy', 'torch', 'jax' with its library installed; got {kind!r}"
    )


def choose(name: str | None, kind: str) -> ModuleType:
    """The module that computes for arrays of this kind. A name is never replaced by another.

    Raises:
      ValueError: there is no implementation of that name, it cannot be used here, or it serves
        another array library.
    """
    if name is None:
        name = default_implementation(kind)
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be None or one of {', '.join(IMPLEMENTATIONS)}; got {name!r}"
        )
    implementation = IMPLEMENTATIONS[name]
    reason = implementation.why_not()
    if reason is not None:
        raise ValueError(f"implementation={name!r} cannot be used here: {reason}")
    if implementation.kind != kind:
        fitting = ", ".join(repr(i.name) for i in IMPLEMENTATIONS.values() if i.kind == kind)
        raise ValueError(
            f"implementation={name!r} serves {implementation.kind} arrays and rewards are"
            f" a {kind} array; choose one of {fitting}, or None"
        )
    return implementation.load()
