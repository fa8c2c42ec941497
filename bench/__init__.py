"""Everything that measures."""

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any


def commit_id() -> str:
    """Name the commit that is measured, marked where the tree has changes beyond it, but for what
    one run writes, which is no other code for the next: results, and texts with their tables."""
    options: Any = {"cwd": Path(__file__).parent, "stderr": subprocess.DEVNULL, "text": True}

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], **options).strip()

    with suppress(OSError, subprocess.SubprocessError):
        paths = ":/", ":(exclude,glob)**/results/**", ":(exclude,top,glob)**/*.md"
        changes = git("status", "--porcelain", "--untracked-files=no", "--", *paths)
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changes else "")
    return "unknown"
