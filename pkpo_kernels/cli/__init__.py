"""The command line `pkpo`."""

from pkpo_kernels.cli.commands import main

__all__ = ["main"]
