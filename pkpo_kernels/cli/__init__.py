"""The command line `pkpo`.

entry           where it begins; exit codes
commands        info, transform, passk and verify, as typer sees them
arguments       what typer leaves to be parsed and checked
verification    what `verify` does, with or without typer and rich
machine         the versions and devices that are here
tables, plot    what is shown: by rich, by matplotlib
number_text     numbers in tables and plots
rollouts        the graded samples of a set of tasks
rollout_files   read and write them, whatever the format; formats/ has a module for each
sources         where they come from: files, compressed or not, standard input
columns, lines  what a file's columns and lines mean; layouts: those that other programs write
rewriting       lines that are written again, with what their rewards were transformed to
collected       what lines say, piece by piece
runs            what `passk` evaluates: which metric, and how the tasks of two runs pair
whole_files     files that are written whole or not at all
"""

from pkpo_kernels.cli.entry import main

__all__ = ["main"]
