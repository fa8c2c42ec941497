"""When tests run, the machine that executes PTX, and the fixtures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import levels
import numpy as np
import pytest
from subjects import (
    ON_PTX,
    PALLAS_INTERPRETED,
    SUBJECTS,
    Subject,
    interpret_with,
    strictly,
)

# Nobody looks for doctests in them: they share a name, and Python would import only one.
collect_ignore_glob = ["*/conftest.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    levels.mark(items)


# ---- The machine that executes PTX -------------------------------------------------------------

_LAUNCHED = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    if ON_PTX:
        from bench.ptx.driver import Device

        config.stash[_LAUNCHED] = 0
        device = Device(keep=False, order="random", counting=False)
        device.__enter__()
        config.add_cleanup(device.__exit__)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if ON_PTX and hasattr(session.config, "workeroutput"):
        session.config.workeroutput["launched"] = _launched()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if ON_PTX:
        node.config.stash[_LAUNCHED] += getattr(node, "workeroutput", {}).get("launched", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if ON_PTX:
        launched = config.stash[_LAUNCHED] + _launched()
        terminalreporter.write_line(f"ptx: {launched} launches executed")


def _launched() -> int:
    from bench.ptx.driver import Device

    return Device.launched


# ---- The fixtures ---


@pytest.fixture(
    params=[pytest.param(subject, id=subject.id) for subject in SUBJECTS],
    scope="module",
)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    chosen: Subject = request.param
    if chosen.strict:
        with strictly():
            yield chosen
        return
    if not chosen.branchless:
        yield chosen
        return
    import torch

    # Dynamo must know the real one before it is hidden, or it will refuse to trace that later.
    torch.compile(torch.neg, backend="eager")(torch.zeros(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        yield chosen


@pytest.fixture(autouse=PALLAS_INTERPRETED)
def without_races(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the interpreter of Pallas does is watched for races."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call
    from races import Races

    interpret_with(monkeypatch)
    monkeypatch.setattr(interpret_pallas_call, "RaceDetectionState", Races)
    Races.found.clear()
    yield
    assert not Races.found


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250520)
