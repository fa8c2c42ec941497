"""Which tests are slow, the machine that executes PTX, and the fixtures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

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

# What of the contract `make test` leaves to `make test-all` where every test is programs to
# compile, or to interpret: all but what these patterns of names find …
_QUICK = {
    "pallas": re.compile(
        r"enumeration\[pallas-6(-(sloo_minus_one|sloo|passk_training))?\]"
        r"|equal_bits\[pallas-16-sloo_minus_one\]|test_k_|judged|no_rows"
        r"|exactly_zero\[pallas-3e-39-sloo_minus_one\]|as_large\w+\[pallas-(sloo-sum|s-mean)\]"
        r"|every_row\[pallas-(sloo_minus_one-zero-mean|sloo-nan-sum)\]"
        r"|default_float\[pallas-bool\]|becomes_nan\[pallas-(sloo_minus_one|sloo|passk_training)\]"
        r"|left_out_of\w+\[pallas-zero\]|max_at_k_of_rows_that"
    ),
    # A k that is an operand: the others are asked for it with a k a row.
    **dict.fromkeys(
        ("xla-traced", "triton-hidden-k", "ptx-hidden-k"),
        re.compile(
            r"enumeration\[\D+6|the_reference\[\D+3-8-"
            r"|equal_bits\[\D+16-s|test_k_|no_rows|beyond_all|default_float\[\D+bool\]"
            r"|becomes_nan\[\D+-s|max_at_k_with|max_at_k_of|only_results"
        ),
    ),
}
# … or what these find: more numbers and shapes for the same code.
_SLOW = {
    "xla": re.compile(
        r"the_reference\[xla-2-\d+-(?!sloo_minus_one)|every_row\[xla-(?!sloo-)\w+-(nan|clip)"
    ),
    "triton": re.compile(
        r"large_matrices|repeats|any_rewards|the_reference\[triton-(17|2)-\d+-(?!sloo_minus_one)"
        r"|1025|nan_stays|every_row\[triton-(?!sloo-)\w+-(nan|clip)|scaling|permuting"
        r"|enumeration\[triton-[1-4]"
    ),
}
# What takes Pallas's interpreter rows of a thousand samples, or is another number to a kernel that
# has been asked already, is for a release.
_PALLAS_RELEASE = re.compile(
    r"1024|1025|16384|that_vanish|-257-(?!sloo_minus_one)|any_rewards|\[pallas--nan-"
    r"|every_row\[pallas-(s|cent)|\[pallas-(17-33|[1-4])-(s|centered)\]"
)
# On the machine for PTX longer rows are kernels to compile, each longer than all that runs on it:
# those of up to so many samples in `make test`, of up to so many in `make test-all` …
_PTX_N = (16, 40)
# … but one of every kind in `make test`. And of tests without a number of samples these later.
_PTX_QUICK = re.compile(r"whole_sort|planted|beyond_two|a_long_row")
_PTX_SLOW = re.compile(r"permuting|not_aligned|any_rewards|come_back\[[\w-]*-float|long_rows_of")
_PTX_RELEASE = re.compile(
    r"repeats|that_vanish|large_matrices|not_aligned\[(?!1-1)"
    r"|(17-33|every\w+\[ptx)-(?!sloo)|permuting\w+\[ptx-(?!sloo_)"
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        subject = params.get("subject")
        if ON_PTX and not _PTX_QUICK.search(item.name):
            n = params.get("n", 0)
            if n > _PTX_N[1] or _PTX_RELEASE.search(item.name):
                item.add_marker("release")
            elif n > _PTX_N[0] or _PTX_SLOW.search(item.name):
                item.add_marker("slow")
        if not isinstance(subject, Subject) or item.path.name != "test_contract.py":
            continue
        if subject.kind == "torch" and not subject.interpreted:
            continue  # on a GPU
        quick, slow = _QUICK.get(subject.id), _SLOW.get(subject.id)
        if (quick and not quick.search(item.name)) or (slow and slow.search(item.name)):
            is_release = subject.simulated and _PALLAS_RELEASE.search(item.name)
            if subject.id == "ptx-hidden-k":
                is_release = True
            item.add_marker("release" if is_release else "slow")


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
