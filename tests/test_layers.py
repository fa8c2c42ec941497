"""The layers: every module imports from layers below its own, and from nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "pkpo_kernels": ROOT / "pkpo_kernels",
    "pkpo_triton": ROOT / "kernels" / "pkpo_triton",
    "pkpo_pallas": ROOT / "kernels" / "pkpo_pallas",
}

# From the bottom up. Modules of one layer do not import each other: no backend is called by
# another. A name that ends in a dot is a package whose modules may.
LAYERS = (
    ("typing", "validation", "backends._installed", "_calls"),
    ("maths.weights", "backends._devices", "_pass_at_k", "_tracing"),
    ("maths.estimators", "backends._unsupported"),
    ("maths.reference", "backends._rows"),
    ("backends._jax_rows", "backends._segments"),
    (
        *("backends.numpy", "backends.torch", "backends.triton"),
        *("backends.xla", "backends.pallas", "backends.jax_triton"),
        *("backends.torch_segments", "backends.jax_segments", "backends.jax_meshes"),
    ),
    ("backends.jax",),
    ("backends.registry",),
    ("_arguments", "_dtensor", "conversion"),
    ("api", "_ids", "_entries"),
    ("_by_kernels",),
    ("_grouping",),
    ("groups",),
    ("metrics", "distributed", "schedules", "evaluation.", "selfcheck.", "_warm_up"),
    ("integrations.",),
    ("maths", "backends", ""),
    ("cli.",),
    ("__main__",),
)
LAYER = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}


def unit_of(name: str) -> str:
    """The name in LAYERS that a module of the library belongs to."""
    module = name.removeprefix("pkpo_kernels").lstrip(".")
    package = module.partition(".")[0] + "."
    return package if package in LAYER else module


# The backend of a kernel package alone imports it.
MAY_IMPORT_KERNELS = {
    "pkpo_kernels.backends.triton": {"pkpo_triton"},
    "pkpo_kernels.backends.jax_triton": {"pkpo_triton"},
    "pkpo_kernels.backends.pallas": {"pkpo_pallas"},
}


def modules(package: str) -> dict[str, Path]:
    folder = PACKAGES[package]
    found = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


EVERY = {name: path for package in PACKAGES for name, path in modules(package).items()}


def imported(name: str) -> Iterator[str]:
    """The modules of ours that a module imports: at once, later, and for a type checker alone."""
    for node in ast.walk(ast.parse(EVERY[name].read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            # Of a package its modules, or what it offers itself.
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [one if one in EVERY else str(node.module) for one in whole]
        else:
            continue
        yield from (one for one in found if one in EVERY)


@pytest.mark.parametrize("name", sorted(modules("pkpo_kernels")))
def test_modules_import_from_below(name: str) -> None:
    here = unit_of(name)
    assert here in LAYER, f"say in LAYERS where {name} belongs"
    for other in imported(name):
        package = other.partition(".")[0]
        if package != "pkpo_kernels":
            assert package in MAY_IMPORT_KERNELS.get(name, ()), f"{name} imports {other}"
        else:
            there = unit_of(other)
            inside = here == there and here.endswith(".")
            assert inside or LAYER[there] < LAYER[here], f"{name} imports {other}: not below it"


def test_no_circle() -> None:
    for package in PACKAGES:
        graph = {name: set(imported(name)) for name in modules(package)}
        list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


@pytest.mark.parametrize("package", ["pkpo_triton", "pkpo_pallas"])
def test_kernels_know_neither_the_library_nor_each_other(package: str) -> None:
    for name in modules(package):
        strangers = {other for other in imported(name) if other.partition(".")[0] != package}
        assert not strangers, f"{name} imports {strangers}"


def test_an_import_that_breaks_the_layers_is_seen() -> None:
    assert "pkpo_kernels.backends.registry" in set(imported("pkpo_kernels.api"))
    deferred = set(imported("pkpo_kernels.backends.registry"))
    assert {"pkpo_kernels.backends.jax", "pkpo_kernels.maths.reference"} <= deferred
