"""Which versions of the optional packages are installed, read once: when this is first imported.

A module of its own, since torch.compile runs an import statement as it is, and cannot follow what
looks into the metadata of packages.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple


class Version(NamedTuple):
    text: str
    release: tuple[int, ...]  # () where it does not say

    @classmethod
    def of(cls, text: str) -> Version:
        """Read a version and the numbers that it begins with.

        >>> Version.of("2.9.0a0+git").release, Version.of("unknown").release
        ((2, 9, 0), ())
        """
        numbers = []
        for part in text.split("."):
            digits = len(part) - len(part.lstrip("0123456789"))
            if digits:
                numbers.append(int(part[:digits]))
            if digits < len(part):
                break
        return cls(text, tuple(numbers))


def _version(package: str) -> Version | None:
    try:
        if find_spec(package) is None:
            return None
    except ValueError:
        pass  # a module that was made by hand has no spec
    for distribution in (package, f"pytorch-{package}", f"pytorch-{package}-rocm"):
        try:
            return Version.of(version(distribution))
        except PackageNotFoundError:
            continue
    return Version.of("unknown")


# The name that import knows a package by → its version, or None where it is not installed.
VERSIONS = {
    package: _version(package)
    for package in ("numpy", "torch", "triton", "jax", "libtpu", "jax_triton")
}


class Requirement(NamedTuple):
    """A package by the name that import and pip know it by, and the oldest version that does."""

    package: str
    least: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"'{self.package}>={_dotted(self.least)}'" if self.least else self.package

    def unmet(self) -> str | None:
        """Say why what is installed does not do: "not installed", or that it is too old; None
        where it does."""
        version = VERSIONS.get(self.package)
        if version is None:
            # Installed since, or put there by hand.
            return "not installed" if sys.modules.get(self.package) is None else None
        # Of what does not say how old it is the best is hoped.
        if not self.least or not version.release or version.release >= self.least:
            return None
        return (
            f"{self.package} {version.text} is too old, it must be {_dotted(self.least)} or newer"
        )


def import_jax_triton() -> None:
    """Import jax-triton, or fail as import does, and leave Triton's cache where it is: 0.3 names
    none, with which nothing compiles for torch any more, and 0.4 the usual one."""
    name = "TRITON_CACHE_DIR"
    before = os.environ.get(name)
    try:
        importlib.import_module("jax_triton")
    finally:
        if before is None:
            os.environ.pop(name, None)
        elif os.environ.get(name) != before:
            os.environ[name] = before


def why_unmet(requirements: tuple[Requirement, ...]) -> str | None:
    """Say what of some requirements is not met, and what to install; None where all are.

    >>> why_unmet((Requirement("numpy"), Requirement("no_such_package", (1, 2))))
    "no_such_package not installed; pip install 'no_such_package>=1.2'"
    """
    unmet = {requirement: requirement.unmet() for requirement in requirements}
    missing = [requirement for requirement, what in unmet.items() if what == "not installed"]
    if missing:
        names = " and ".join(requirement.package for requirement in missing)
        return f"{names} not installed; pip install {' '.join(map(str, missing))}"
    old = {requirement: what for requirement, what in unmet.items() if what is not None}
    if old:
        return f"{' and '.join(old.values())}; pip install {' '.join(map(str, old))}"
    return None


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))
