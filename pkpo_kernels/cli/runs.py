"""The runs that `passk` evaluates: which metric they have, and why; how the tasks of two pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pkpo_kernels.cli.rollout_files import FileRun
from pkpo_kernels.evaluation.runs import Run, check_same_tasks
from pkpo_kernels.typing import Metric

__all__ = ["paired", "reason_of_metric"]


def reason_of_metric(
    metric: Metric | None, threshold: float | None, runs: Mapping[str, FileRun]
) -> str:
    """Tell why runs, by the names of their files, have the metric that they have.

    Raises:
        ValueError: samples are to pass, and there are rewards that neither pass nor fail.
    """
    others = {name: run.not_binary for name, run in runs.items() if run.not_binary is not None}
    if not others:
        chosen = "" if metric is None else ", as --metric says"
        if threshold is not None:
            return f"a sample passes at {threshold:g} or more, as --threshold says{chosen}"
        return f"every reward is 0 or 1{chosen or '; --metric chooses another'}"
    name, (reward, line) = next(iter(others.items()))
    found = f"rewards are not only 0 and 1 (line {line} of {name} has {reward:g})"
    if metric is None:
        return f"{found}; with --threshold T, samples pass at T or more"
    if metric == "max@k":
        return "as --metric says"
    option = "--metric pass" if metric == "pass@k" else "--metric pass^k"
    raise ValueError(
        f"{option} needs to know which samples pass, where {found}: add --threshold T, and those"
        " of T or more pass; or take --metric max"
    )


def paired(runs: Sequence[FileRun]) -> list[Run]:
    """Bring the tasks of all runs into the order of the first.

    Raises:
        ValueError: they are not the same tasks.
    """
    first, *others = runs
    found = [first.run]
    for other in others:
        # A format without numbers has written them as text.
        as_text = first.ids_are_text or other.ids_are_text
        places, wanted = (_places(run.run, as_text) for run in (other, first))
        check_same_tasks(wanted, places)
        order = np.fromiter(map(places.__getitem__, wanted), np.int64, len(wanted))
        found.append(other.run.in_order(order, "against"))
    return found


def _places(run: Run, as_text: bool) -> dict[object, int]:
    """Map the ids of a run to its tasks, as they are or as text."""
    ids = run.task_ids or ()
    places: dict[object, int] = {str(task) if as_text else task: i for i, task in enumerate(ids)}
    return places if len(places) == len(ids) else {task: i for i, task in enumerate(ids)}
