"""That an environment of trainers has them: their own tests are skipped where one is missing."""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

# What each environment is for, by its folder's name, and by which names those are imported.
TRAINERS = {
    "torch": {
        "trl": "trl",
        "verl": "verl",
        "skyrl": "skyrl",
        "openrlhf": "openrlhf",
        "areal": "areal",
        "ms-swift": "swift",
    },
    "jax": {"google-tunix": "tunix"},
}
ENVIRONMENT = Path(sys.prefix).name.removeprefix(".venv-").removesuffix("-trainers")


@pytest.mark.skipif(
    ENVIRONMENT not in TRAINERS, reason="no environment of `make test-integrations`"
)
def test_the_trainers_of_this_environment_are_here() -> None:
    listed = (Path(__file__).parent / f"requirements-{ENVIRONMENT}.txt").read_text().split()
    for name, module in TRAINERS[ENVIRONMENT].items():
        assert find_spec(module) is not None
        assert f"{name}=={version(name)}" in listed
