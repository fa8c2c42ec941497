"""The street: every module imports from floors below its own, and from nowhere else."""

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

# From the ground up. Modules of one floor do not know each other: no backend is called by another.
FLOORS = (
    ("typing", "validation", "backends._installed"),
    ("maths.weights", "backends._devices"),
    ("maths.estimators",),
    ("maths.reference", "backends._rows"),
    ("backends._jax_rows",),
    tuple(
        f"backends.{leaf}" for leaf in ("numpy", "torch", "triton", "xla", "pallas", "jax_triton")
    ),
    ("backends.jax",),
    ("backends.registry",),
    ("_arguments",),
    ("api",),
    ("evaluation", "schedules", "selfcheck"),
    ("cli.whole_files", "cli.columns"),
    ("cli.rollouts",),
    ("cli.commands",),
    ("cli",),
    ("maths", "backends", "__main__"),
    ("",),
)
FLOOR = {
    f"pkpo_kernels.{name}".rstrip("."): floor
    for floor, names in enumerate(FLOORS)
    for name in names
}
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
    assert name in FLOOR, f"say in FLOORS where {name} belongs"
    for other in imported(name):
        package = other.partition(".")[0]
        if package != "pkpo_kernels":
            assert package in MAY_IMPORT_KERNELS.get(name, ()), f"{name} imports {other}"
        else:
            assert FLOOR[other] < FLOOR[name], f"{name} imports {other}, which is not below it"


@pytest.mark.parametrize("package", ["pkpo_triton", "pkpo_pallas"])
def test_kernels_know_neither_the_library_nor_each_other(package: str) -> None:
    graph = {name: set(imported(name)) for name in modules(package)}
    for name, others in graph.items():
        strangers = {other for other in others if other.partition(".")[0] != package}
        assert not strangers, f"{name} imports {strangers}"
    # A package's __init__ offers what its modules have: it stands above them, and none asks for it.
    list(TopologicalSorter(graph).static_order())


def test_an_import_that_breaks_the_floors_is_seen() -> None:
    assert "pkpo_kernels.backends.registry" in set(imported("pkpo_kernels.api"))
    deferred = set(imported("pkpo_kernels.backends.registry"))
    assert {"pkpo_kernels.backends.jax", "pkpo_kernels.maths.reference"} <= deferred
