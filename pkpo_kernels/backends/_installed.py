"""Which versions of the optional packages are installed, read once: when this is first imported.

A module of its own, since torch.compile runs an import statement as it is, and cannot follow what
looks into the metadata of packages.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple


class Version(NamedTuple):
    text: str
    release: tuple[int, ...]  # () where it does not say

    @classmethod
    def of(cls, text: str) -> Version:
        """The version and the numbers that it begins with.

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
    package: _version(package) for package in ("torch", "triton", "jax", "libtpu", "jax_triton")
}
