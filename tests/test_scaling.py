"""The scaling bench: wrong results get no figure, and a second compilation is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("jax")

from typer.testing import CliRunner

import pkpo_kernels as pk
from bench import scaling
from bench.scaling import Annealing, anneal, measure_point, temporary_memory
from bench.shapes import Shape
from bench.throughput import Jax, Numpy


def run(*arguments: object) -> Any:
    return CliRunner().invoke(scaling.app, list(map(str, arguments)))


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "SAMPLES", 2)


@pytest.mark.parametrize("count", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_points_of_all_that_serve(count: int) -> None:
    points = measure_point([Numpy("cpu"), Jax("cpu")], "rows", Shape(8, 16), count)
    assert {"numpy", "xla"} <= {point.arm for point in points}
    for point in points:
        assert point.outcome == "measured", point
        assert point.milliseconds is not None and point.temporary_memory is not None
        assert point.milliseconds > 0 and point.samples == 2


def test_a_wrong_result_gets_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(rewards: Any) -> Any:
        return pk.transform(rewards, 4) * 1.001

    monkeypatch.setattr(scaling, "calls", lambda library, like, k: {"wrong": wrong})
    (point,) = measure_point([Numpy("cpu")], "rows", Shape(8, 16), 0)
    assert point.outcome == "disagrees"
    assert (point.milliseconds, point.temporary_memory) == (None, None)


def test_memory_of_numpy_is_what_it_holds_besides_its_result() -> None:
    rewards = np.ones((256, 1024), np.float32)

    def holds_three_more(x: Any) -> Any:
        more = np.concatenate([x, x, x])
        return more[: len(x)] * 1

    assert temporary_memory(holds_three_more, rewards) == pytest.approx(3, abs=0.05)


def test_annealing_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = anneal(Jax("cpu"), Shape(4, 17))
    assert runs and all(run.ok and run.compilations == 1 for run in runs)
    assert all(run.compile_seconds > run.step_milliseconds / 1e3 > 0 for run in runs)

    # k as part of the program, as a careless train step has it.
    def timed(step: Any, matrix: Any, ks: Any, wait: Any) -> Any:
        import jax

        static = jax.jit(step, static_argnums=1)
        return [static(matrix, int(k)) for k in ks], [0.0] * len(ks)

    monkeypatch.setattr(scaling, "_timed", timed)
    monkeypatch.setattr(scaling, "ANNEALED_KS", (3, 1))
    monkeypatch.setattr(scaling, "calls", lambda library, like, k: {"xla": None})
    (run,) = anneal(Jax("cpu"), Shape(4, 18))
    assert run.agrees and not run.ok
    assert run.compilations == 2


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "opened", lambda device, say: [Numpy(device)])
    monkeypatch.setitem(scaling.ROWS, "cpu", ((4, 8), 4))
    monkeypatch.setattr(scaling, "MEASURED_N", (8, 16))
    runs = [Annealing("x", "jax.jit", 3, 1, 0.1, 0.1, True)]
    monkeypatch.setattr(scaling, "anneal", lambda library, shape: runs)
    options = ["--device", "cpu", "--out", tmp_path, "--commit", "abc"]
    result = run(*options)
    assert result.exit_code == 0, result.output
    written = {path.suffix: path for path in tmp_path.iterdir()}
    record = json.loads(written[".json"].read_text())
    assert record["commit"] == "abc" and record["annealing"][0]["ok"]
    assert {(p["sweep"], p["rows"], p["n"]) for p in record["points"]} == {
        *(("rows", rows, 64) for rows in (4, 8)),
        *(("n", 4, n) for n in (8, 16)),
        ("different ks", 4, 64),
    }
    assert written[".png"].read_bytes().startswith(b"\x89PNG")

    runs[0].compilations = 2
    result = run(*options)
    assert result.exit_code == 1
    assert "a new k was compiled anew" in result.output
