"""Files for the command line, and benches that are soon done."""

from __future__ import annotations

from pathlib import Path

import pytest

# What these import is imported by the tests themselves, which skip where it is not there.


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """Four tasks with 0, 1, 5 and 10 correct of 10."""
    from command_line import write_jsonl

    correct = {"none": 0, "one": 1, "half": 5, "all": 10}
    tasks = {task: [1] * c + [0] * (10 - c) for task, c in correct.items()}
    return write_jsonl(tmp_path / "binary.jsonl", tasks)


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    """Tasks of 4, 1 and 3 samples."""
    from command_line import write_jsonl

    tasks = {"a": [0.5, 1.0, 2.0, 0.25], "b": [1.0], "c": [3.0, 1.0, 2.0]}
    return write_jsonl(tmp_path / "ragged.jsonl", tasks)


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure briefly, too briefly to trust."""
    from bench import harness

    monkeypatch.setattr(harness, "ROUNDS", 5)
    monkeypatch.setattr(harness, "SAMPLE_SECONDS", 1e-4)
