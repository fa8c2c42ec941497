"""The command line, run in this process or in one of its own, and files for it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from pkpo_kernels.cli.entry import run

# What is said of a file of JSON lines with a list of rewards each.
TASKS_A_LINE = "one task a line: tasks from task_id, rewards from rewards; nothing ignored\n"


def pkpo(*arguments: object) -> tuple[int, str, str]:
    """Run the command: → its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "40"}),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code = run([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with this one's path."""
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | path | environment,
        check=False,
    )


def rows_of(table: str) -> list[list[str]]:
    """Give the cells of the body of every table that was printed."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in table.splitlines()
        if line.startswith("│")
    ]


def write_jsonl(path: Path, tasks: dict[str, list[Any]]) -> Path:
    """Write an object for each task."""
    lines = (json.dumps({"task_id": task, "rewards": rewards}) for task, rewards in tasks.items())
    path.write_text("\n".join(lines))
    return path
