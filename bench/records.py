"""What results are kept as: where they were taken, and the files and tables they go to."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import date
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

import pkpo_kernels as pk
from bench import commit_id
from pkpo_kernels.cli.whole_files import written_whole

RESULTS = Path(__file__).parent / "results"


class Device(StrEnum):
    """Where to measure."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tpu = "tpu"


def present(device: Device) -> str:
    """The device asked for; "auto" is the fastest there is. ValueError where it is not there."""
    cuda = False
    if find_spec("torch") is not None and device in (Device.auto, Device.cuda):
        import torch

        cuda = torch.cuda.is_available()
    if device is Device.cuda and not cuda:
        raise ValueError("--device cuda needs a torch that sees a GPU")
    if device is not Device.auto:
        return device.value
    # libtpu without a TPU searches for one at length: look before asking it.
    tpu = Path("/dev/accel0").exists() or "tpu" in os.environ.get("JAX_PLATFORMS", "")
    return "cuda" if cuda else "tpu" if tpu else "cpu"


def machine(device: str) -> dict[str, Any]:
    """What is measured on: the names and the versions that figures hang on."""
    found: dict[str, Any] = {
        "kind": device,
        "name": _cpu_name(),
        "cpus": os.cpu_count(),
        # Others at work on the same processors spoil figures, those of threaded calls most.
        "load_before": os.getloadavg()[0],
        # What threads and compilers have been told.
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("OMP_", "GOMP_", "MKL_", "TRITON_", "XLA_FLAGS"))
        },
    }
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "multiprocessors": properties.multi_processor_count,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
    elif device == "tpu":
        import jax

        found["name"] = jax.devices()[0].device_kind
        found["driver"] = jax.devices()[0].client.platform_version
    return found


def _cpu_name() -> str:
    """ "CPU", with its model where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return f"CPU {model[1] if model else platform.machine()}"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.split("\n")[0].strip()


def slug(name: str) -> str:
    """A device's name as part of a file's.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that matter; None for one that is not installed."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    names = ("numpy", "torch", "triton", "jax", "jaxlib")
    return {
        "python": platform.python_version(),
        "pkpo-kernels": pk.__version__,
        **{name: installed(name) for name in names},
    }


def origin(where: dict[str, Any], commit: str | None) -> dict[str, Any]:
    """What every record begins with: when, of what, and on what figures were taken. The commit is
    asked of git where it is None."""
    try:
        commit = commit or commit_id()
    except OSError:
        commit = "unknown"
    return {
        "date": date.today().isoformat(),
        "commit": commit,
        "device": where,
        "versions": versions(),
    }


def stem_of(kind: str, record: dict[str, Any]) -> str:
    """The names of a record's files, without what tells them apart."""
    return f"{kind}-{slug(record['device']['name'])}-{record['date']}"


def as_json(record: dict[str, Any]) -> bytes:
    """The whole record; strictly JSON, without NaN."""
    return json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"


def write(path: Path, content: bytes) -> None:
    """The file, whole or not at all."""
    with written_whole(path) as file:
        file.write(content)


def figure(value: float) -> str:
    """Three digits, and never an exponent where one can do without.

    >>> [figure(value) for value in (4312.3, 87.65, 0.0123)]
    ['4312', '87.7', '0.0123']
    """
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def as_table(title: str, lines: Sequence[Sequence[str]]) -> Table:
    """The first line is the heading."""
    table = Table(title=title, box=box.SIMPLE)
    for column in lines[0]:
        table.add_column(column)
    for line in lines[1:]:
        table.add_row(*line)
    return table
