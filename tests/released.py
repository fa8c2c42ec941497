"""What may be released: `python tests/released.py dist` checks a wheel and an sdist against git.

Run by `make dist`, once it has built them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from packaging.metadata import Metadata
from packaging.utils import parse_sdist_filename, parse_wheel_filename

ROOT = Path(__file__).parents[1]
# Where a package lies in the tree.
PACKAGES = {
    "pkpo_kernels": "pkpo_kernels/",
    "pkpo_triton": "kernels/pkpo_triton/",
    "pkpo_pallas": "kernels/pkpo_pallas/",
}


def faults(dist: Path, version: str, tracked: set[str], changelog: str) -> Iterator[str]:
    """Say what is wrong with the files of a folder, of this version of a tree of these files."""
    wheels, sdists = sorted(dist.glob("*.whl")), sorted(dist.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1 or len(list(dist.iterdir())) != 2:
        found = ", ".join(sorted(path.name for path in dist.iterdir()))
        yield f"{dist} must hold one wheel and one sdist; got {found or 'nothing'}"
        return
    if f"## {version}\n" not in changelog:
        yield f"CHANGELOG.md has no heading '## {version}'"
    (wheel,), (sdist,) = wheels, sdists
    for path, named in (
        (wheel, parse_wheel_filename(wheel.name)[1]),
        (sdist, parse_sdist_filename(sdist.name)[1]),
    ):
        if str(named) != version:
            yield f"{path.name} is not of version {version}"

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        yield from _metadata_faults(wheel, archive.read(metadata), version)
    modules = {
        package + "/" + name.removeprefix(folder)
        for package, folder in PACKAGES.items()
        for name in tracked
        if name.startswith(folder)
    }
    yield from _differences(wheel, {n for n in names if ".dist-info/" not in n}, modules)
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        yield f"{wheel.name} lacks the licence"

    with tarfile.open(sdist) as tar:
        folder = sdist.name.removesuffix(".tar.gz") + "/"
        held = {one.name.removeprefix(folder) for one in tar.getmembers() if one.isfile()}
        info = tar.extractfile(folder + "PKG-INFO")
        assert info is not None
        yield from _metadata_faults(sdist, info.read(), version)
    yield from _differences(sdist, held - {"PKG-INFO"}, tracked)


def _metadata_faults(path: Path, content: bytes, version: str) -> Iterator[str]:
    metadata = Metadata.from_email(content, validate=True)  # raises for what PyPI would not take
    if str(metadata.version) != version:
        yield f"{path.name} says version {metadata.version}, the tree {version}"
    if metadata.description_content_type != "text/markdown" or not metadata.description:
        yield f"{path.name} has no README for a description"


def _differences(path: Path, held: set[str], wanted: set[str]) -> Iterator[str]:
    for names, verb in ((wanted - held, "lacks"), (held - wanted, "holds, and git does not,")):
        if names:
            yield f"{path.name} {verb} {', '.join(sorted(names)[:5])}"


def main() -> None:
    """Check the folder that is named, and exit with 1 for any fault."""
    dist = Path(sys.argv[1])
    # The one place where the version stands.
    source = (ROOT / "pkpo_kernels/__init__.py").read_text()
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    tracked = set(listing.stdout.rstrip("\0").split("\0"))
    changelog = (ROOT / "CHANGELOG.md").read_text()
    found = list(faults(dist, version, tracked, changelog))
    for fault in found:
        print(fault, file=sys.stderr)
    if found:
        raise SystemExit(1)
    print(f"{dist}: a wheel and an sdist of {version}, as git and their metadata have it")


if __name__ == "__main__":
    main()
