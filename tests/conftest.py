"""Which tests are slow, the machine that executes PTX, and the fixtures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from subjects import (
    INTERPRETED,
    ON_PTX,
    PALLAS_INTERPRETED,
    SUBJECTS,
    Subject,
    interpret_with,
    strictly,
)

# Nobody looks for doctests in them: they share a name, and Python would import only one.
collect_ignore_glob = ["*/conftest.py"]

# On the machine for PTX longer rows are kernels to compile, each longer than all that runs on it:
# those of up to so many samples in `make test`, of up to so many in `make test-all` …
_PTX_N = (16, 40)
# … but of longer ones these in `make test`: of several threads, on chip and beyond, and packed …
_PTX_QUICK = re.compile(r"beyond_two|a_long_row|shares_a_step|planted\w+\[16-0")
# … and these later: whatever their samples, they take long, or ask the same of other estimators
# and dtypes.
_PTX_SLOW = re.compile(
    r"permuting|not_aligned|any_rewards|come_back|long_rows_of|whole_sort\w+\[(64|100)|planted"
    r"|alone\[ptx-(?!sloo_minus_one-mean)|each_entry\[ptx-(?!zero-sloo_)|get_equal_bits\[ptx\]"
    r"|drops_out\[ptx-(?!sloo)|equal_bits\[ptx-16-(?!sloo_)|becomes_nan\[ptx-(?!hidden-k|sloo_)"
    r"|mislead\[16-float16|as_torch\[bfloat16"
    r"|hidden-k-(16|6-(sloo\]|s\]|centered))|few_rows_and_many|a_batch_is"
    r"|(enumeration\[ptx-[13]|the_reference\[ptx-3-7)-(?!sloo_)"
    r"|(identities|results)\[ptx-(?!sloo_)|its_row\[ptx-[^]]*-(?!sloo_)"
    r"|test_(other_)?estimators\[(sloo|centered)-(16|b?float16)|some_samples\[16-bfloat16"
)
_PTX_RELEASE = re.compile(
    r"repeats|that_vanish|large_matrices|get_equal_bits\[ptx\]|not_aligned\[(?!1-1)"
    r"|one_group_of_all|(17-33-(?!sloo_)|every\w+\[ptx-(?!sloo))|permuting\w+\[ptx-(?!sloo_)"
    r"|enumeration\[ptx-[24]|zero\[ptx-[^]]*-(centered|passk)|long_rows_of\w+\[(sloo-|passk)"
    r"|bools_agree\[40|whole_sort\w+\[100|its_edges\[31|overflow\[40|leave_the_others\w+\[33"
)
# Interpreted kernels are asked these later: compiled ones are asked most of it before.
_INTERPRETED_SLOW = re.compile(
    r"test_launches|test_tables"
    r"|test_triton.py.*(long_row|leave_the_others|bools_agree\[40|whole_sort\w+\[16)"
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items if INTERPRETED else ():
        if _INTERPRETED_SLOW.search(item.nodeid):
            item.add_marker("slow")
    for item in items if ON_PTX else ():
        if _PTX_QUICK.search(item.name):
            continue
        n = item.callspec.params.get("n", 0) if hasattr(item, "callspec") else 0
        is_slow = _PTX_SLOW.search(item.name)
        if _PTX_RELEASE.search(item.name) or (n > _PTX_N[1] and not is_slow):
            item.add_marker("release")
        elif n > _PTX_N[0] or is_slow:
            item.add_marker("slow")


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
    params=[
        pytest.param(subject, id=subject.id, marks=[pytest.mark.slow] if subject.strict else [])
        for subject in SUBJECTS
    ],
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
