"""The trainers' tests: each against the real package, where that is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Nothing is fetched, nobody is told.
os.environ.update(
    CUDA_VISIBLE_DEVICES="",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave them to `make test-integrations`, which names this folder."""
    return None if any("integrations" in argument for argument in config.args) else True
