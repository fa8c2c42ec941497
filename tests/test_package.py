"""What is shipped."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_holds_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    # A build leaves files behind, so it gets a copy.
    source = tmp_path / "source"
    names = ("pyproject.toml", "README.md", "LICENSE", "pkpo_kernels", "kernels", "tests", "bench")
    for name in names:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(origin, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in files if ".dist-info/" not in name}
    assert top == {"pkpo_kernels", "pkpo_triton", "pkpo_pallas"}
    assert "pkpo_kernels/py.typed" in files
    assert any(name.endswith("licenses/LICENSE") for name in files)


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="pkpo")
    assert command.value == "pkpo_kernels.cli:main"
