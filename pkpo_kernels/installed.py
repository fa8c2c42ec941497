"""Which versions of the optional packages are installed, read once: when this is first imported.

A module of its own, since torch.compile runs an import statement as it is, and cannot follow what
looks into the metadata of packages.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def _version(package: str) -> str | None:
    try:
        if find_spec(package) is None:
            return None
    except ValueError:
        pass  # a module that was made by hand has no spec
    for distribution in (package, f"pytorch-{package}", f"pytorch-{package}-rocm"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


# The name that import knows a package by → its version, "unknown" where it does not say, or None
# where it is not installed.
VERSIONS = {
    package: _version(package) for package in ("torch", "triton", "jax", "libtpu", "jax_triton")
}


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with.

    >>> release("2.9.0a0+git"), release("0.8.2"), release("unknown")
    ((2, 9, 0), (0, 8, 2), ())
    """
    numbers = []
    for part in version.split("."):
        digits = len(part) - len(part.lstrip("0123456789"))
        if digits == 0:
            break
        numbers.append(int(part[:digits]))
        if digits < len(part):
            break
    return tuple(numbers)
