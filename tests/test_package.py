"""What is shipped."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import released

import pkpo_kernels as pk

ROOT = Path(__file__).parents[1]
PACKAGES = ("pkpo_kernels", "pkpo_triton", "pkpo_pallas")

# A user's strict type checker finds the last line wrong, and that alone.
USERS_CODE = """\
import pkpo_kernels as pk
from pkpo_pallas import plan
from pkpo_triton import tables

pk.transform([[0.0, 1.0]], k=1)
size: int = tables.factorials_size(plan.words(4, plan.plan(4, 1)))
wrong: int = pk.__version__
"""

# Of the modules that NumPy is enough for, all examples are run.
EXAMPLES = """\
import doctest, importlib, pkgutil, sys
import numpy, pkpo_kernels

failed = 0
for module in pkgutil.walk_packages(pkpo_kernels.__path__, "pkpo_kernels."):
    if not module.name.endswith("__main__"):
        try:
            failed += doctest.testmod(importlib.import_module(module.name)).failed
        except ImportError:
            pass
print(numpy.__version__)
sys.exit(failed)
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that must find everything by itself: where no tree of ours is on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what git knows of this tree, since a build takes in what else lies there."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is not a git clone, so nothing says what belongs to it")
    listing = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    copy = tmp_path_factory.mktemp("source")
    for name in listing.stdout.rstrip("\0").split("\0"):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def build(source: Path, target: str, to: Path) -> Path:
    """Build one target of hatchling's and return the file."""
    built = run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", to, cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = to.iterdir()
    return file


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_version_and_the_command_are_installed() -> None:
    installed = importlib.metadata.distribution("pkpo-kernels")
    assert installed.version == pk.__version__
    (command,) = installed.entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("pkpo", "pkpo_kernels.cli:main")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).with_name("py.typed").exists()


@pytest.mark.release
def test_a_wheel_holds_the_three_packages_and_nothing_else(source: Path, tmp_path: Path) -> None:
    files = zipfile.ZipFile(build(source, "wheel", tmp_path)).namelist()
    modules = {name for name in files if ".dist-info/" not in name}
    folders = (source, source / "kernels", source / "kernels")
    assert modules == {
        f"{package}/{file}"
        for package, folder in zip(PACKAGES, folders, strict=True)
        for file in files_below(folder / package)
    }
    assert all(f"{package}/py.typed" in modules for package in PACKAGES)
    assert any(name.endswith("licenses/LICENSE") for name in files)


@pytest.mark.release
def test_an_sdist_holds_the_tree_and_what_its_tests_need(source: Path, tmp_path: Path) -> None:
    with tarfile.open(build(source, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert files_below(unpacked) == files_below(source) | {"PKG-INFO"}
    some = [f"tests/{part}.py" for part in ("test_package", "tools/test_rollouts")]
    tests = run(sys.executable, "-m", "pytest", "-q", "-x", *some, cwd=unpacked)
    assert tests.returncode == 0, tests.stdout + tests.stderr


METADATA = """\
Metadata-Version: 2.4
Name: pkpo-kernels
Version: 1.2
Description-Content-Type: text/markdown

# pkpo_kernels
"""
TREE = {"pkpo_kernels/__init__.py", "kernels/pkpo_triton/sort.py", "LICENSE", "README.md"}


def released_files(dist: Path, modules: set[str], tree: set[str], metadata: str) -> None:
    """Write a wheel and an sdist of version 1.2 by hand."""
    with zipfile.ZipFile(dist / "pkpo_kernels-1.2-py3-none-any.whl", "w") as wheel:
        for name in modules | {"pkpo_kernels-1.2.dist-info/licenses/LICENSE"}:
            wheel.writestr(name, "")
        wheel.writestr("pkpo_kernels-1.2.dist-info/METADATA", metadata)
    with tarfile.open(dist / "pkpo_kernels-1.2.tar.gz", "w:gz") as sdist:
        for name, content in {**dict.fromkeys(tree, ""), "PKG-INFO": metadata}.items():
            member = tarfile.TarInfo(f"pkpo_kernels-1.2/{name}")
            member.size = len(content)
            sdist.addfile(member, io.BytesIO(content.encode()))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"version": "1.3"}, "pkpo_kernels-1.2-py3-none-any.whl is not of version 1.3"),
        ({"modules": {"pkpo_kernels/__init__.py"}}, "whl lacks pkpo_triton/sort.py"),
        ({"modules": TREE}, "whl holds, and git does not, LICENSE, README.md, kernels/pkpo_trit"),
        ({"tree": TREE | {"notes.txt"}}, "tar.gz holds, and git does not, notes.txt"),
        ({"changelog": "## 1.1\n"}, "CHANGELOG.md has no heading '## 1.2'"),
        ({"metadata": METADATA.replace("markdown", "plain")}, "whl has no README"),
    ],
)
def test_what_is_released_is_checked(
    tmp_path: Path, changes: dict[str, Any], fault: str | None
) -> None:
    modules = {"pkpo_kernels/__init__.py", "pkpo_triton/sort.py"}
    given = {"version": "1.2", "modules": modules, "tree": TREE, "metadata": METADATA} | changes
    released_files(tmp_path, given["modules"], given["tree"], given["metadata"])
    changelog = given.get("changelog", "## 1.3\n## 1.2\n")
    found = list(released.faults(tmp_path, given["version"], TREE, changelog))
    assert not found if fault is None else any(fault in one for one in found), found


@pytest.mark.release
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the oldest NumPy is older")
def test_the_oldest_numpy_runs_all_examples(tmp_path: Path) -> None:
    (requirement,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest = requirement.removeprefix("numpy>=")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    installed = run(
        *(sys.executable, "-m", "pip", "--python", python, "install", f"numpy=={oldest}.*"),
        cwd=tmp_path,
    )
    assert installed.returncode == 0, installed.stderr
    done = run(python, "-c", EXAMPLES, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(oldest)


@pytest.mark.release
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("target", ["wheel:standard", "wheel:editable"])
def test_type_checkers_find_the_packages_once_installed(
    source: Path, tmp_path: Path, target: str, checker: str
) -> None:
    pytest.importorskip(checker)
    wheel = build(source, target, tmp_path / "dist")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    pip = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    installed = run(sys.executable, *pip, wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    work = tmp_path / "work"
    work.mkdir()
    (work / "user.py").write_text(USERS_CODE)
    option = ("--strict", "--python-executable") if checker == "mypy" else ("--pythonpath",)
    checked = run(sys.executable, "-m", checker, *option, python, "user.py", cwd=work)
    wrong = {line.split(":")[1] for line in checked.stdout.splitlines() if "user.py:" in line}
    assert wrong == {str(len(USERS_CODE.splitlines()))}, checked.stdout + checked.stderr
