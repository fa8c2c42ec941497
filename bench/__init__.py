"""Everything that measures."""

import subprocess
from pathlib import Path


def commit_id() -> str:
    """The commit that is measured, marked where the tree has changes beyond it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
