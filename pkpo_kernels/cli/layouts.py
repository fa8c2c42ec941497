"""Files that other programs write, known by their keys: what is a task there, and what a reward.

human-eval's results need no entry here: `task_id` and `passed` are usual names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LAYOUTS", "OPENAI_EVALS", "Layout", "OpenAIEvals", "recognized"]


@dataclass(frozen=True)
class Layout:
    """What a program's file holds.

    Attributes:
        name: of the program and its file, as it is told.
        marks: keys by which a line is known to be of it.
        task: the key of what is a task, unless one has a usual name.
        reward: the key of the reward; None where it has the user's name, and is what is left.
        others: keys that are no reward.
        apart: a key of which a file must hold one value, since samples of several would be taken
            for samples of one task; "" for none.
    """

    name: str
    marks: frozenset[str]
    task: str
    reward: str | None
    others: frozenset[str] = frozenset()
    apart: str = ""

    def rewards(self, names: Sequence[str]) -> list[str]:
        """List the keys that may hold the reward."""
        if self.reward is not None:
            return [self.reward]
        return [name for name in names if name not in self.marks | self.others]


LAYOUTS = (
    # trainer.rollout_data_dir and trainer.validation_data_dir: STEP.jsonl.
    Layout(
        name="a verl rollout dump",
        marks=frozenset({"input", "output", "score", "step"}),
        task="input",
        reward="score",
        apart="step",
    ),
    # log_completions: completions_STEP.parquet. A column for each reward function, by its name, and
    # for whatever the functions log.
    Layout(
        name="a TRL completion table",
        marks=frozenset({"step", "prompt", "completion", "advantage"}),
        task="prompt",
        reward=None,
        others=frozenset({"mode", "image", "images"}),
        apart="step",
    ),
    # SCENARIO_N_TEMPERATURE_eval_all.json, of --evaluate.
    Layout(
        name="LiveCodeBench's graded generations",
        marks=frozenset({"question_id", "graded_list"}),
        task="question_id",
        reward="graded_list",
    ),
    # --log_samples: samples_TASK_DATE.jsonl. A line for each document and filter, a key for each
    # metric.
    Layout(
        name="lm-eval samples",
        marks=frozenset({"doc_id", "resps", "filtered_resps"}),
        task="doc_id",
        reward=None,
        others=frozenset(
            {"doc", "target", "arguments", "filter", "metrics", "input", "task_name"}
            | {"doc_hash", "prompt_hash", "target_hash"}
        ),
        apart="filter",
    ),
)

OPENAI_EVALS = Layout(
    name="an OpenAI evals log",
    marks=frozenset({"event_id", "sample_id", "type", "data"}),
    task="sample_id",
    reward=None,
    others=frozenset({"sample_id"}),
)


def recognized(names: Sequence[str]) -> Layout | None:
    """Find the layout that these keys are of, if any.

    >>> recognized(["input", "output", "gts", "score", "step"]).task
    'input'
    """
    there = set(names)
    return next((layout for layout in LAYOUTS if layout.marks <= there), None)


class OpenAIEvals:
    """Takes the graded events out of a log of OpenAI's evals, which holds many kinds.

    Attributes:
        type: of the events that are taken, once one was met: "match", or "metrics" with a score.
        left: the types of those that are not.
    """

    def __init__(self) -> None:
        self.type = ""
        self.left: dict[str, None] = {}

    def sample(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """Take what an event says of a sample, its id and its grade; None where it says nothing."""
        if not OPENAI_EVALS.marks <= record.keys():
            self.left.update(dict.fromkeys(record.keys() & {"spec", "final_report"}))
            return None
        data = record["data"] if isinstance(record["data"], dict) else {}
        grade = {"match": "correct", "metrics": "score"}.get(record["type"], "")
        if grade not in data or self.type not in ("", record["type"]):
            self.left[str(record["type"])] = None
            return None
        self.type = record["type"]
        return {"sample_id": record["sample_id"], grade: data[grade]}

    @staticmethod
    def begins(record: dict[str, Any]) -> bool:
        """Tell whether a file whose first line is this is a log of OpenAI's evals."""
        return OPENAI_EVALS.marks <= record.keys() or (
            isinstance(record.get("spec"), dict) and "eval_name" in record["spec"]
        )
