"""Made-up rollouts for trying the program out: two runs of one policy, before and after training.

    python -m bench.rollouts FOLDER      writes FOLDER/base.jsonl and FOLDER/trained.jsonl

A task's chance of success is drawn from a Beta distribution with much weight near 0, as graded
samples of hard tasks have; training lifts it, most where it was small.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

TASKS, SAMPLES = 400, 16


def write(folder: Annotated[Path, typer.Argument(exists=True, file_okay=False)]) -> None:
    """Write made-up rollouts of one policy before and after training, always the same ones."""
    rng = np.random.default_rng(0)
    chance = rng.beta(0.35, 1.2, TASKS)
    for name, chances in (("base", chance), ("trained", chance**0.7)):
        graded = rng.random((TASKS, SAMPLES)) < chances[:, None]
        lines = (
            json.dumps({"task_id": f"task-{i}", "rewards": row}) + "\n"
            for i, row in enumerate(graded.astype(int).tolist())
        )
        (folder / f"{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    typer.run(write)
