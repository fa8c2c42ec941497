"""Where the command begins, and how it ends.

Tables go to stdout; progress, errors and what was taken from a file go to stderr. Exit code 1 means
that `verify` found a fault, 2 that the command was not as it should be: one line says why, and
nothing has been written. 130 is an interrupt, before which `verify` tells what it has found.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pkpo_kernels.cli.verification import verify_plainly

__all__ = ["main", "run"]


def main() -> NoReturn:
    """Run `pkpo` with the arguments of this process, and end it."""
    # By the time a table holds what the terminal cannot show, files have been written.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run `pkpo` with these arguments: → its exit code. Whatever it raises becomes one line."""
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader of our output has left. Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"pkpo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    try:
        from pkpo_kernels.cli.commands import invoke
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        # The package alone can be checked.
        if arguments[:1] == ["verify"]:
            return verify_plainly(arguments[1:])
        raise ModuleNotFoundError(f"{missing} is not installed; pip install typer rich") from error
    return invoke(arguments)
