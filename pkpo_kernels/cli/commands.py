"""The command `pkpo`: info, transform, passk and verify.

Tables go to stdout; progress, errors and what was taken from a file go to stderr. Exit code 1 means
that `verify` found a fault, 2 that the command was not as it should be: one line says why, and
nothing has been written. 130 is an interrupt, before which `verify` tells what it has found.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.api import transform as transform_rewards
from pkpo_kernels.backends import registry
from pkpo_kernels.cli.rollouts import (
    Rollouts,
    check_output,
    read_rollouts,
    write_transformed,
)
from pkpo_kernels.cli.whole_files import check_folder, written_whole
from pkpo_kernels.evaluation import AtK, Difference, Evaluation, Metric, evaluate
from pkpo_kernels.maths.estimators import ESTIMATORS
from pkpo_kernels.selfcheck import Finding, count_findings
from pkpo_kernels.selfcheck import fuzz as fuzzed
from pkpo_kernels.selfcheck import verify as findings

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Table
except ModuleNotFoundError as error:
    _missing = (error.name or "typer").partition(".")[0]
else:
    _missing = ""

__all__ = ["main", "run"]

_PACKAGES = ("pkpo-kernels", "numpy", "torch", "jax", "triton")
_TASK_COLUMN = "Where the task ids are; else task_id or another usual name."
_REWARD_COLUMNS = (
    "Where the rewards are: one name for one sample a line or for lists, several (s0,s1) for one"
    " task a line; else reward or another usual name, or all of s0, s1, …"
)
# How many ks `passk` takes.
_MOST_KS = 100_000
# Samples transformed at a time: 32 MiB of float64.
_CELLS = 1 << 22


def main() -> NoReturn:
    """The entry point of the command."""
    # By the time a table holds what the terminal cannot show, files have been written.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if _missing and sys.argv[1:2] == ["verify"]:
        raise SystemExit(_verify_plainly(sys.argv[2:]))
    if _missing:
        print(f"pkpo: {_missing} is not installed; pip install typer rich", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run `pkpo` with these arguments and return its exit code."""
    app = typer.Typer(
        name="pkpo",
        help="Reward transforms for pass@k and max@k policy optimization (PKPO).",
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command in (info, transform, passk, verify):
        app.command()(command)
    # click's ClickException, which typer carries with it under different names.
    usage_error: Any = typer.BadParameter.__mro__[2]

    def invoked() -> Any:
        try:
            return app(args=list(arguments), prog_name="pkpo", standalone_mode=False)
        except usage_error as error:
            given = shlex.join(["pkpo", *arguments])
            reason = error.format_message().rstrip(".")
            return _refused(f"{reason}; given: {given}; see pkpo --help")
        except typer.Abort:
            raise KeyboardInterrupt from None

    return _exit_code(invoked)


def _exit_code(command: Callable[[], Any]) -> int:
    """Run a command and put whatever it raises into one line."""
    try:
        return command() or 0
    except _Faults as faults:
        print(faults)
        return 1
    except BrokenPipeError:
        # The reader of our output has left. Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        return 130


def info() -> None:
    """Versions, devices, and which implementation serves arrays on each of them."""
    versions = Table(title="versions")
    versions.add_column("package")
    versions.add_column("version", overflow="fold")
    versions.add_row("python", platform.python_version())
    for package in _PACKAGES:
        versions.add_row(package, _version(package))
    _show(versions)

    devices = Table(title="devices")
    devices.add_column("library")
    devices.add_column("devices", overflow="fold")
    devices.add_row("torch", _devices("torch", _torch_devices))
    devices.add_row("jax", _devices("jax", _jax_devices))
    _show(devices)

    implementations = Table(title="implementations")
    for heading in ("name", "arrays", "what it is", "here"):
        implementations.add_column(heading, overflow="fold")
    for name, reason in registry.available_implementations().items():
        entry = registry.IMPLEMENTATIONS[name]
        implementations.add_row(name, entry.library, entry.summary, reason or "available")
    _show(implementations)

    defaults = Table(title="what serves arrays by default, on each device that is here")
    for heading in ("arrays", "device", "implementation"):
        defaults.add_column(heading, overflow="fold")
    for row in registry.defaults_by_device():
        defaults.add_row(*row)
    for library in ("torch", "jax"):
        if find_spec(library) is None:
            defaults.add_row(library, "none", _not_installed(library))
    _show(defaults)


def transform(
    file: Annotated[Path, typer.Argument(help="Rollouts: .jsonl, .csv, .npy or .parquet.")],
    k: Annotated[int, typer.Option("-k", "--k", help="Samples the policy will get.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to; same formats.")],
    estimator: Annotated[str, typer.Option(help=", ".join(ESTIMATORS))] = "sloo_minus_one",
    scale: Annotated[str, typer.Option(help="sum or mean")] = "sum",
    undersized: Annotated[
        str, typer.Option(help="What tasks with too few samples get: zero, nan or clip.")
    ] = "zero",
    implementation: Annotated[
        str | None, typer.Option(help="A name from `pkpo info`; else the default for NumPy.")
    ] = None,
    task_column: Annotated[str | None, typer.Option(help=_TASK_COLUMN)] = None,
    reward_columns: Annotated[str | None, typer.Option(help=_REWARD_COLUMNS)] = None,
) -> None:
    """Transform the rewards of every task, and write them beside the rewards."""
    check_output(output)
    _check_different({"the file": file, "--output": output})
    rollouts = read_rollouts(
        file, task_column=task_column, reward_columns=_parsed_names(reward_columns)
    )
    check_output(output, rollouts)
    options = {
        "estimator": estimator,
        "scale": scale,
        "undersized": undersized,
        "implementation": implementation,
    }
    values = _transformed(rollouts, k, options)
    write_transformed(output, rollouts, values)

    _tell_columns(file, rollouts)
    lengths = rollouts.lengths
    too_few = int(np.sum(k > ESTIMATORS[estimator].largest_k(lengths)))
    table = Table(title=f"{estimator}, k={k}", show_header=False)
    table.add_row("tasks", f"{len(lengths)}")
    table.add_row("samples", f"{lengths.sum()}")
    table.add_row(f"tasks with too few samples ({undersized})", f"{too_few}")
    table.add_row("written to", str(output))
    _show(table)


def passk(
    file: Annotated[Path, typer.Argument(help="Rollouts: .jsonl, .csv, .npy or .parquet.")],
    k: Annotated[str, typer.Option("-k", "--k", help="Such as 1,5,10 or 1-10.")],
    metric: Annotated[
        str | None, typer.Option(help="pass or max; else pass where all rewards are 0 or 1.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curve: .png, .svg, .pdf and so on.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another run on the same tasks: the paired difference.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures as JSON.")
    ] = None,
    task_column: Annotated[str | None, typer.Option(help=_TASK_COLUMN)] = None,
    reward_columns: Annotated[str | None, typer.Option(help=_REWARD_COLUMNS)] = None,
) -> None:
    """pass@k or max@k over the tasks of a file, with intervals over tasks."""
    ks = _parsed_ks(k)
    metrics: dict[str | None, Metric | None] = {None: None, "pass": "pass@k", "max": "max@k"}
    if metric not in metrics:
        raise ValueError(f"--metric must be pass or max; got {metric!r}")
    if plot is not None:
        _check_plot(plot)
    if json_file is not None:
        check_folder(json_file)
    _check_different({"the file": file, "--against": against, "--plot": plot, "--json": json_file})

    runs = [path for path in (file, against) if path is not None]
    chosen = _parsed_names(reward_columns)
    read = [read_rollouts(path, task_column=task_column, reward_columns=chosen) for path in runs]
    tasks = [rollouts.by_task() for rollouts in read]

    def evaluated(rewards: Any, chosen: Metric | None, other: Any = None) -> Evaluation:
        return evaluate(rewards, ks, metric=chosen, against=other, confidence=confidence, seed=seed)

    result = evaluated(tasks[0], metrics[metric], None if against is None else tasks[1])
    written: dict[Path, bytes] = {}
    if plot is not None:
        curves = [result, *(evaluated(other, result.metric) for other in tasks[1:])]
        written[plot] = _drawn(list(zip(map(str, runs), curves, strict=True)), plot)
    if json_file is not None:
        names = {"file": str(file), "against": None if against is None else str(against)}
        written[json_file] = json.dumps(names | result.as_dict(), indent=2).encode() + b"\n"
    for path, content in written.items():
        with written_whole(path) as opened:
            opened.write(content)

    for path, rollouts in zip(runs, read, strict=True):
        _tell_columns(path, rollouts)
    percent = result.metric == "pass@k"
    fewest, most = result.samples
    samples = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    _show(
        _interval_table(
            f"{file}: {result.tasks} tasks of {samples} samples",
            result.metric,
            result.rows,
            confidence,
            percent,
        )
    )
    if result.difference is not None:
        _show(
            _interval_table(
                f"{file} minus {against}, paired by task",
                f"difference in {result.metric}",
                result.difference,
                confidence,
                percent,
            )
        )
    for path in written:
        typer.echo(f"written to {path}")


def verify(
    implementation: Annotated[
        list[str] | None, typer.Option(help="A name from `pkpo info`, may be repeated; else all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random rewards, policies and shapes.")] = 0,
    fuzz: Annotated[
        float | None, typer.Option(help="Then go on with random shapes for so many minutes.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write all findings, versions and devices as JSON.")
    ] = None,
) -> None:
    """Check implementations against enumeration, exact gradients and the reference; exit code 1 on
    any fault."""
    if seed < 0:
        raise ValueError(f"--seed must be at least 0; got {seed}")
    if fuzz is not None and not 0 < fuzz < math.inf:
        raise ValueError(f"--fuzz must be minutes above 0; got {fuzz}")
    if report is not None:
        check_folder(report)
    names = implementation or None
    start = time.monotonic()
    found: list[Finding] = []
    interrupted = False
    # What was found before an interrupt is told all the same: it may be hours of work.
    try:
        with _progress("verifying", count_findings(names)) as advance:
            for finding in findings(names, seed=seed):
                found.append(finding)
                advance(1)
        if fuzz is not None:
            with _progress("fuzzing, seconds", math.ceil(60 * fuzz)) as advance:
                passed = 0

                def progress(seconds: float) -> None:
                    nonlocal passed
                    advance(int(seconds) - passed)
                    passed = int(seconds)

                found += fuzzed(names, seed=seed, minutes=fuzz, progress=progress)
    except KeyboardInterrupt:
        interrupted = True
    if report is not None:
        record = {
            "seed": seed,
            "fuzz_minutes": fuzz,
            "seconds": round(time.monotonic() - start, 1),
            "interrupted": interrupted,
        }
        with written_whole(report) as file:
            file.write(_report(record, found))

    if _missing:
        for finding in found:
            print(*_cells(finding), sep="  ")
    else:
        table = Table(title="worst errors, relative to the size of the row")
        for heading in ("implementation", "estimator", "against"):
            table.add_column(heading, overflow="fold")
        for heading in ("rows", "worst error", "allowed"):
            table.add_column(heading, justify="right")
        table.add_column("outcome", overflow="fold")
        for finding in found:
            table.add_row(*_cells(finding))
        _show(table)
    if report is not None:
        print(f"written to {report}")
    faults = sum(not finding.ok for finding in found)
    if interrupted:
        print(f"interrupted after {len(found)} checks, of which {faults} failed")
        raise KeyboardInterrupt
    if faults:
        raise _Faults(f"{faults} of {len(found)} checks failed")
    print(f"all {len(found)} checks passed")


class _Faults(Exception):
    """What `verify` has found, in one line."""


def _cells(finding: Finding) -> tuple[str, ...]:
    return (
        finding.implementation,
        finding.estimator,
        finding.against,
        str(finding.cases),
        f"{finding.worst_error:.1e}",
        f"{finding.tolerance:.0e}",
        "ok" if finding.ok else f"FAILED at {finding.worst_case}",
    )


def _report(record: dict[str, Any], found: Sequence[Finding]) -> bytes:
    """What whoever reads the findings elsewhere must know of this machine."""
    record |= {
        "passed": all(finding.ok for finding in found) and not record["interrupted"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in _PACKAGES},
        "devices": {
            "torch": _devices("torch", _torch_devices),
            "jax": _devices("jax", _jax_devices),
        },
        "implementations": registry.available_implementations(),
        "findings": [finding.as_dict() for finding in found],
    }
    return json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"


def _verify_plainly(arguments: Sequence[str]) -> int:
    """`verify` where typer and rich are not installed: the package alone can be checked."""
    parser = argparse.ArgumentParser(prog="pkpo verify", allow_abbrev=False)
    parser.add_argument("--implementation", action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fuzz", type=float, metavar="MINUTES")
    parser.add_argument("--report", type=Path)
    return _exit_code(lambda: verify(**vars(parser.parse_args(arguments))))


def _transformed(rollouts: Rollouts, k: int, options: dict[str, Any]) -> list[NDArray[np.float64]]:
    """Each task's transformed rewards."""
    name = options["implementation"]
    kind = "numpy" if name is None else registry.library_served(name)
    registry.choose(name, kind)
    to_library = _to_library(kind)
    # The largest group decides what k may be; after it, smaller groups are undersized.
    transform_rewards(to_library(np.zeros((1, int(rollouts.lengths.max())))), k, **options)

    # With where=, k may be larger than any group of this chunk.
    values: list[NDArray[np.float64]] = []
    with _progress("transforming", len(rollouts.task_ids)) as advance:
        for chunk in rollouts.chunks(_CELLS):
            rewards, where = chunk.padded()
            mask = to_library(where) if rollouts.ragged else None
            out = transform_rewards(to_library(rewards), k, where=mask, **options)
            flat = np.asarray(out.cpu() if kind == "torch" else out, np.float64)[where]
            values += np.split(flat, np.cumsum(chunk.lengths)[:-1])
            advance(len(chunk.task_ids))
    return values


def _to_library(kind: str) -> Callable[[NDArray[Any]], Any]:
    """NumPy array → one of this library, on its accelerator if it has one."""
    xp = registry.namespace(kind)
    if kind == "torch" and xp.cuda.is_available():
        return lambda array: xp.asarray(array, device="cuda")
    return lambda array: xp.asarray(array)


def _parsed_names(text: str | None) -> list[str] | None:
    """'s0,"a,b"' → ["s0", "a,b"], as a line of CSV."""
    if text is None:
        return None
    wrong = f"--reward-columns must be names such as s0,s1; got {text!r}"
    try:
        names = [name.strip() for name in next(csv.reader([text], strict=True), [])]
    except csv.Error as error:
        raise ValueError(wrong) from error
    if not names:
        raise ValueError(wrong)
    return names


def _tell_columns(file: Path, rollouts: Rollouts) -> None:
    """Say on stderr what was taken from a file and what was ignored."""
    if rollouts.columns:
        print(f"{file}: {rollouts.columns}", file=sys.stderr)


def _parsed_ks(text: str) -> list[int]:
    """ "1,5,8-10" → [1, 5, 8, 9, 10]."""
    ks: dict[int, None] = {}
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 1 <= first <= last:
            raise ValueError(
                "-k must be integers of at least 1 and rising ranges, such as 1,5,10 or 1-10; "
                f"got {text!r}"
            )
        if len(ks) + last - first >= _MOST_KS:
            raise ValueError(f"-k must name at most {_MOST_KS} ks in all; got {text!r}")
        ks.update(dict.fromkeys(range(first, last + 1)))
    return list(ks)


def _check_different(paths: dict[str, Path | None]) -> None:
    """Refuse one file in two roles, which are the keys; links are followed."""
    seen: dict[str, str] = {}
    for name, path in paths.items():
        if path is not None and (other := seen.setdefault(os.path.realpath(path), name)) != name:
            raise ValueError(f"{name} must be another file than {other}; got {str(path)!r}")


def _check_plot(path: Path) -> None:
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs matplotlib; pip install matplotlib")
    check_folder(path)
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower()[1:] not in known:
        raise ValueError(f"--plot must end in one of {', '.join(sorted(known))}; got {str(path)!r}")


def _drawn(curves: Sequence[tuple[str, Evaluation]], path: Path) -> bytes:
    """The plot as the bytes of a file with the extension of `path`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # A Figure made without pyplot needs no display and leaves no state behind.
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for _, curve in curves:
        factor = 100 if curve.metric == "pass@k" else 1
        rows = sorted(curve.rows, key=lambda row: row.k)
        ks = [row.k for row in rows]
        low, high = (
            np.array(ends) * factor for ends in zip(*(r.bootstrap for r in rows), strict=True)
        )
        axes.plot(ks, [row.estimate * factor for row in rows], marker=".")
        axes.fill_between(ks, low, high, alpha=0.2)
    axes.set_xlabel("k, samples per task")
    axes.set_ylabel(f"{curve.metric} (%)" if curve.metric == "pass@k" else curve.metric)
    axes.set_title(f"{curve.metric} with its {100 * curve.confidence:g} % interval over tasks")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    # Set as texts of the legend, since matplotlib drops labels that begin with "_".
    lines = axes.get_lines()
    legend = axes.legend(lines, ["-"] * len(lines))
    for text, (name, _) in zip(legend.get_texts(), curves, strict=True):
        text.set_parse_math(False)  # "$" is a dollar
        text.set_text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name))
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lower()[1:], dpi=150)
    return content.getvalue()


def _interval_table(
    title: str, heading: str, rows: Sequence[AtK], confidence: float, percent: bool
) -> Table:
    signed = isinstance(rows[0], Difference)
    table = Table(title=title)
    table.add_column("k", justify="right")
    level = f"{100 * confidence:g} %"
    for name in (heading, f"{level} bootstrap", f"{level} normal", "tasks", "too small"):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(
            str(row.k),
            _figure(row.estimate, percent, signed),
            *(_interval(interval, percent, signed) for interval in (row.bootstrap, row.normal)),
            str(row.tasks),
            str(row.too_small),
        )
    return table


def _figure(value: float, percent: bool, signed: bool) -> str:
    """35.95 % for 0.3595: no more decimals than there are, and a dash for NaN."""
    sign = "+" if signed else ""
    if math.isnan(value):
        return "–"
    if not percent:
        return f"{value:{sign}.6g}"
    # Adding 0.0 takes the sign off a negative zero.
    text = f"{round(100 * value, 6) + 0.0:{sign}.6f}"
    return f"{text.rstrip('0').rstrip('.')} %"


def _interval(interval: tuple[float, float], percent: bool, signed: bool) -> str:
    sign = "+" if signed else ""
    low, high = interval
    if math.isnan(low):
        return "–"
    if not percent:
        return f"{low:{sign}.4g} to {high:{sign}.4g}"
    return f"{100 * low:{sign}.2f} to {100 * high:{sign}.2f} %"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _not_installed(library: str) -> str:
    return f"not installed; pip install {library}"


def _devices(package: str, listed: Callable[[Any], list[str]]) -> str:
    if find_spec(package) is None:
        return _not_installed(package)
    # A broken driver or wheel can raise anything, and is what one runs `info` to find out.
    try:
        return "\n".join(listed(import_module(package)))
    except Exception as error:
        return f"not usable: {type(error).__name__}: {error}"


def _torch_devices(torch: Any) -> list[str]:
    gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ["cpu", *gpus]


def _jax_devices(jax: Any) -> list[str]:
    return [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]


def _show(table: Table) -> None:
    # Task ids and file names are text, whatever square brackets they hold.
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        # Nobody's window limits a pipe or a file: as wide as the table is.
        console.width = Console(width=100_000, markup=False).measure(table).maximum
    console.print(table)


@contextmanager
def _progress(task: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the block runs, if a person is there to see it."""
    # Where nobody is, older versions of rich leave an empty line even of a disabled Progress.
    if _missing or not (console := Console(stderr=True)).is_terminal:
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(task, total=total)
        yield lambda done: progress.advance(bar, done)


def _refused(reason: str) -> int:
    print(f"pkpo: {' '.join(reason.split())}", file=sys.stderr)
    return 2
