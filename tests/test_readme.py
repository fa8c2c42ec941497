"""README's examples run, and its table names the estimators there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pkpo_kernels as pk

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.split("\n")[0])
def test_examples_run(example: str) -> None:
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})


def test_there_are_examples_for_every_library() -> None:
    text = "".join(EXAMPLES)
    assert all(f"import {library}" in text for library in ("numpy", "torch", "jax"))


def test_the_table_of_estimators_is_complete() -> None:
    assert re.findall(
        r'^\| `"(\w+)"`(?: \(default\))? \| [^|]*\|[^|]*≤', README, re.MULTILINE
    ) == list(pk.ESTIMATORS)


def test_the_table_of_implementations_is_true() -> None:
    from pkpo_kernels.backends.registry import IMPLEMENTATIONS

    section = README.split("## Implementations")[1].split("\n\n")[1]
    status = {
        name: "ready" in row.split("|")[3]
        for row in section.splitlines()[2:]
        for name in re.findall(r'`"(\w+)"`', row.split("|")[1])
    }
    assert status == {name: i.load is not None for name, i in IMPLEMENTATIONS.items()}
