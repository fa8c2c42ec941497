"""Everything that measures."""

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any


def commit_id() -> str:
    """The commit that is measured, marked where the tree has changes beyond it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    options: Any = {"cwd": Path(__file__).parent, "stderr": subprocess.DEVNULL, "text": True}
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(command, **options).strip()
    return "unknown"
