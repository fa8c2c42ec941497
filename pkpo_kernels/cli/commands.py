"""The commands, as typer sees them: info, transform, passk and verify."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from pkpo_kernels import api
from pkpo_kernels.backends import registry
from pkpo_kernels.cli import machine, verification
from pkpo_kernels.cli.arguments import (
    check_different,
    parsed_ks,
    parsed_metric,
    parsed_names,
    parsed_only,
)
from pkpo_kernels.cli.collected import Null
from pkpo_kernels.cli.columns import LIST_NAMES, NEW_KEY, REWARD_NAMES, TASK_NAMES
from pkpo_kernels.cli.plot import check_plot, drawn
from pkpo_kernels.cli.rollout_files import (
    FileRun,
    Options,
    check_output,
    gives_lines_back,
    read_rollouts,
    read_run,
    write_lines,
    write_transformed,
)
from pkpo_kernels.cli.rollouts import Floats, Rollouts, name_of
from pkpo_kernels.cli.runs import paired, reason_of_metric
from pkpo_kernels.cli.sources import FORMATS
from pkpo_kernels.cli.tables import progress, show_facts, show_intervals, show_table
from pkpo_kernels.cli.whole_files import check_folder, written_whole
from pkpo_kernels.conversion import from_host, to_host
from pkpo_kernels.evaluation import Evaluation, evaluate_runs
from pkpo_kernels.evaluation.runs import Run
from pkpo_kernels.maths.estimators import ESTIMATORS
from pkpo_kernels.selfcheck import Finding
from pkpo_kernels.typing import Metric
from pkpo_kernels.validation import checked_name

# Entries transformed at a time, padding and all: 32 MiB of float64.
_ENTRIES = 1 << 22

app = typer.Typer(
    name="pkpo",
    help="Reward transforms for pass@k and max@k policy optimization (PKPO).",
    add_completion=False,
    pretty_exceptions_enable=False,
)

RolloutFile = Annotated[
    Path,
    typer.Argument(
        help="Rollouts: .jsonl, .json (a list), .csv or .tsv, each with .gz or .zst after it or"
        " not, .npy or .parquet; - for standard input, with --format. Files of human-eval, verl,"
        " TRL, lm-eval, LiveCodeBench and OpenAI's evals are read as they are; what was taken is"
        " printed."
    ),
]
TaskKey = Annotated[
    str | None,
    typer.Option(
        "--task-key",
        "--task-column",
        help=f"Where the task ids are; else one of {', '.join(TASK_NAMES)}.",
    ),
]
RewardKey = Annotated[
    str | None,
    typer.Option(
        "--reward-key",
        "--reward-columns",
        help="Where the rewards are: one name for one sample a line or for lists, several (s0,s1)"
        f" for one task a line; else one of {', '.join((*REWARD_NAMES, *LIST_NAMES))},"
        " or all of s0, s1, …",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="KEY=TEXT: take lines alone that have this; may be repeated."),
]
NullOption = Annotated[
    str,
    typer.Option(
        "--null",
        help="Rewards that are null or NaN: error (names the line), drop (leaves the sample out) or"
        " zero (which fails any --threshold). With a task a line (s0, s1, …) an empty cell is no"
        " error but no sample.",
    ),
]
Format = Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; else by the extension.")]


def invoke(arguments: Sequence[str]) -> int:
    """Run the command that these arguments name: → its exit code.

    Raises:
        ValueError: typer cannot make sense of the arguments; and what the command raises.
        KeyboardInterrupt: the command was interrupted.
    """
    # click's ClickException, which typer carries with it under different names.
    usage_error: Any = typer.BadParameter.__mro__[2]
    try:
        return app(args=list(arguments), prog_name="pkpo", standalone_mode=False) or 0
    except usage_error as error:
        given = shlex.join(["pkpo", *arguments])
        reason = error.format_message().rstrip(".")
        raise ValueError(f"{reason}; given: {given}; see pkpo --help") from error
    except typer.Abort:
        raise KeyboardInterrupt from None


@app.command()
def info() -> None:
    """Versions, devices, and which implementation serves arrays on each of them."""
    show_table("versions", ("package", "version"), machine.versions().items())
    show_table("devices", ("library", "devices"), machine.devices().items())
    show_table(
        "implementations",
        ("name", "arrays", "what it is", "here"),
        (
            (name, entry.library, entry.summary, reason or "available")
            for name, reason in registry.available_implementations().items()
            for entry in (registry.IMPLEMENTATIONS[name],)
        ),
    )
    missing = [(library, "none", how) for library, how in machine.not_installed().items()]
    show_table(
        "what serves arrays by default, on each device that is here",
        ("arrays", "device", "implementation"),
        [*registry.defaults_by_device(), *missing],
    )


@app.command()
def transform(
    file: RolloutFile,
    k: Annotated[int, typer.Option("-k", "--k", help="Samples the policy will get.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to: .jsonl, .csv, .npy or .parquet.")
    ],
    estimator: Annotated[str, typer.Option(help=", ".join(ESTIMATORS))] = "sloo_minus_one",
    scale: Annotated[str, typer.Option(help="sum or mean")] = "sum",
    undersized: Annotated[
        str, typer.Option(help="What tasks with too few samples get: zero, nan or clip.")
    ] = "zero",
    implementation: Annotated[
        str | None, typer.Option(help="A name from `pkpo info`; else the default for NumPy.")
    ] = None,
    task_key: TaskKey = None,
    reward_key: RewardKey = None,
    only: Only = None,
    null: NullOption = "error",
    format: Format = None,
    new_key: Annotated[
        str | None,
        typer.Option(
            help=f"What lines get, a number or a list; else {NEW_KEY}.", show_default=False
        ),
    ] = None,
    bare: Annotated[
        bool,
        typer.Option(
            "--bare",
            help="Write ids, rewards and transformed rewards alone: in .jsonl and .parquet a task a"
            " line, in .csv a sample. So it is always where one of the files is .npy, or only one"
            " of them .parquet.",
        ),
    ] = False,
) -> None:
    """Transform the rewards of every task. Lines come out as they were, each with a key more."""
    check_output(output)
    check_different({"the file": file, "--output": output})
    in_lines = not bare and gives_lines_back(file, output, format)
    reading = _options(task_key, reward_key, only, null)
    if in_lines:
        reading = replace(reading, new_key=new_key or NEW_KEY)
    elif new_key is not None:
        raise ValueError(
            "--new-key must be given only where lines come out, from and to JSON or CSV, or from"
            f" Parquet to Parquet, and without --bare; got {new_key!r}"
        )
    with progress(f"reading {name_of(file)}", _size(file)) as read:
        rollouts = read_rollouts(file, reading, format=format, progress=read)
    check_output(output, rollouts)
    options = {
        "estimator": estimator,
        "scale": scale,
        "undersized": undersized,
        "implementation": implementation,
    }
    values = _transformed(rollouts, k, options)
    with progress(f"writing {output}", _size(file) if in_lines else len(values)) as written:
        if in_lines:
            write_lines(output, file, rollouts, values, reading, format=format, progress=written)
        else:
            write_transformed(output, rollouts, values, written)

    _tell_columns(file, rollouts.columns)
    too_few = np.sum(k > ESTIMATORS[estimator].largest_k(rollouts.lengths))
    facts = {
        "tasks": f"{len(rollouts.lengths)}",
        "samples": f"{rollouts.lengths.sum()}",
        f"tasks with too few samples ({undersized})": f"{too_few}",
        "written": f"lines with {reading.new_key}" if in_lines else "rewards alone",
        "written to": f"{output}",
    }
    show_facts(f"{estimator}, k={k}", facts)


def _transformed(rollouts: Rollouts, k: int, options: dict[str, Any]) -> list[Floats]:
    """Transform the rewards of every task: → (samples,) for each."""
    name = options["implementation"]
    library = "numpy" if name is None else registry.library_served(name)
    registry.choose(name, library)
    # The largest group decides what k may be; after it, smaller groups are undersized.
    largest = np.zeros((1, int(rollouts.lengths.max())))
    api.transform(from_host(largest, library, None), k, **options)

    # With where=, k may be larger than any group of this chunk.
    values: list[Floats] = []
    with progress("transforming", len(rollouts.task_ids)) as completed:
        for chunk in rollouts.chunks(_ENTRIES):
            rewards, where = chunk.padded()
            mask = from_host(where, library) if rollouts.ragged else None
            out = api.transform(from_host(rewards, library, None), k, where=mask, **options)
            flat = np.asarray(to_host(out), np.float64)[where]
            values += np.split(flat, np.cumsum(chunk.lengths)[:-1])
            completed(len(values))
    return values


@app.command()
def passk(
    file: RolloutFile,
    k: Annotated[str, typer.Option("-k", "--k", help="Such as 1,5,10 or 1-10.")],
    metric: Annotated[
        str | None,
        typer.Option(
            help="pass (one of k passes), max (the best of k) or pass^k (all k pass); else pass"
            " where all rewards are 0 or 1, max elsewhere."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="A sample passes whose reward is at least this; for others than 0 and 1."
        ),
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
    task_key: TaskKey = None,
    reward_key: RewardKey = None,
    only: Only = None,
    null: NullOption = "error",
    format: Format = None,
) -> None:
    """pass@k, max@k or pass^k over the tasks of a file, with intervals over tasks, not seeds."""
    ks = parsed_ks(k)
    chosen = parsed_metric(metric)
    if plot is not None:
        check_plot(plot)
    if json_file is not None:
        check_folder(json_file)
    check_different({"the file": file, "--against": against, "--plot": plot, "--json": json_file})
    reading = _options(task_key, reward_key, only, null, threshold)

    runs: dict[Path, FileRun] = {}
    for path in (file, against):
        if path is not None:
            with progress(f"reading {name_of(path)}", _size(path)) as read:
                runs[path] = read_run(path, reading, format=format, progress=read)
    why = reason_of_metric(chosen, threshold, {name_of(path): run for path, run in runs.items()})
    first, *others = paired(list(runs.values()))

    def evaluated(runs: list[Run], metric: Metric | None) -> Evaluation:
        with progress("evaluating", len(runs) * len(first.lengths)) as done:
            return evaluate_runs(
                *(runs, ks), metric=metric, confidence=confidence, seed=seed, progress=done
            )

    result = evaluated([first, *others], chosen)
    written: dict[Path, bytes] = {}
    if plot is not None:
        curves = [result, *(evaluated([other], result.metric) for other in others)]
        written[plot] = drawn(dict(zip(map(name_of, runs), curves, strict=True)), plot)
    if json_file is not None:
        names = {"file": str(file), "against": None if against is None else str(against)}
        written[json_file] = json.dumps(names | result.as_dict(), indent=2).encode() + b"\n"
    for path, content in written.items():
        with written_whole(path) as opened:
            opened.write(content)

    for path, run in runs.items():
        _tell_columns(path, run.columns)
    typer.echo(f"{result.metric}: {why}")
    fewest, most = result.samples
    samples = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    title = f"{name_of(file)}: {result.tasks} tasks of {samples} samples"
    show_intervals(title, result.rows, result.metric, confidence)
    if result.difference is not None:
        title = f"{' minus '.join(map(name_of, runs))}, paired by task"
        show_intervals(title, result.difference, result.metric, confidence)
    for sentence in result.methods:
        typer.echo(sentence)
    for path in written:
        typer.echo(f"written to {path}")


@app.command()
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
) -> int:
    """Check implementations against enumeration, exact gradients and the reference; exit code 1 on
    any fault."""

    def show(found: Sequence[Finding]) -> None:
        title = "worst errors, relative to the size of the row"
        numbers = ("rows", "worst error", "allowed")
        show_table(title, verification.HEADINGS, map(verification.cells, found), right=numbers)

    return verification.verify(
        implementation or None, seed=seed, fuzz=fuzz, report=report, show=show, progress=progress
    )


def _options(
    task_key: str | None,
    reward_key: str | None,
    only: list[str] | None,
    null: str,
    threshold: float | None = None,
) -> Options:
    """Check how a file is to be read."""
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"--threshold must be a finite number; got {threshold}")
    return Options(
        task=task_key,
        rewards=parsed_names(reward_key),
        only=parsed_only(only or ()),
        null=checked_name("--null", null, get_args(Null)),
        threshold=threshold,
    )


def _size(file: Path) -> float | None:
    """Tell how many bytes a file has, None where that is not known."""
    return file.stat().st_size if file.is_file() else None


def _tell_columns(file: Path, columns: str) -> None:
    """Say on stderr what was taken from a file and what was ignored."""
    if columns:
        print(f"{name_of(file)}: {columns}", file=sys.stderr)
