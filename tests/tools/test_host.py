"""python -m bench.host: what a call takes of the host, over a driver that does nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

from bench.records import read_table

pytest.importorskip("triton")


@pytest.mark.slow  # compiles five kernels
@pytest.mark.skipif(which("cc") is None, reason="needs a C compiler")
def test_the_command_ends_with_its_ratios(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.host", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"host eager ([\d.]+) compiled ([\d.]+) max_at_k ([\d.]+)", last)
    assert found is not None, last
    (table,) = tmp_path.glob("host-*.csv")
    rows = read_table(table)
    ratios = {row["candidate"]: float(row["ratio"]) for row in rows if row["calls"] == "a GPU's"}
    named = [f"{ratios[name]:.2f}" for name in ("eager", "compiled", "max_at_k")]
    assert named == list(found.groups())
    assert ratios["torch, sort form"] == 1
    small = [row for row in rows if row["calls"] == "64 x 8"]
    assert len(small) == 4 and all(float(row["us"]) > 0 for row in small)
