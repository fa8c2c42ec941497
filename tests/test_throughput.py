"""The throughput bench: its figures, that a wrong arm gets none, that its files are whole."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

import pkpo_kernels as pk
from bench import throughput
from bench.shapes import INPUTS, MEASURED_N, PLANS, K, Plan, Shape
from bench.throughput import (
    Arm,
    Bench,
    HostCost,
    Measurement,
    Numpy,
    Oracle,
    Outcome,
    Runner,
    Stopwatch,
    Summary,
    disagreement,
    in_turns,
    places_to_prove,
    takes_part,
    without_figures,
)
from pkpo_kernels.backends import registry
from pkpo_kernels.selfcheck import as_given

PLAN = Plan((Shape(12, 8),), ("gaussian",), seconds=10, arm_seconds=0.001, call_seconds=1)


def bench_of(monkeypatch: pytest.MonkeyPatch, calls: dict[str, Callable[[Any], Any]]) -> Bench:
    """A bench of NumPy alone, with these arms beside the plain copy."""
    arms = Numpy.arms

    def with_calls(self: Numpy, like: Any) -> list[Arm]:
        copy = arms(self, like)[0]
        return [copy, *(Arm(name, "numpy", call) for name, call in calls.items())]

    monkeypatch.setattr(Numpy, "arms", with_calls)
    return Bench("cpu", [Numpy("cpu")], PLAN, say=lambda _: None)


def test_summary_is_of_the_middle() -> None:
    summary = Summary.of([5.0, 1.0, 2.0, 3.0, 100.0, 4.0])
    assert (summary.p20, summary.median, summary.p80) == (2.0, 3.5, 5.0)
    assert Summary.of([7.0]) == Summary(7.0, 7.0, 7.0)


@pytest.mark.parametrize(("turns", "repetitions"), [(5, 5), (40, 5), (7, 3), (1, 1)])
def test_every_arm_gets_its_repetitions(turns: int, repetitions: int) -> None:
    parts = [takes_part(turn, turns, repetitions) for turn in range(turns)]
    assert sum(parts) == repetitions


def test_arms_take_turns_and_a_failing_one_leaves() -> None:
    order: list[str] = []

    def runner(name: str, repetitions: int, fails_at: int | None = None) -> Runner:
        def run(units: int) -> float:
            order.append(name)
            if order.count(name) == fails_at:
                raise RuntimeError("broken\nin two lines")
            return 2.0 * units

        outcome = Outcome(arm=name, library="numpy")
        return Runner(outcome, Stopwatch("clock", run), 1, repetitions)

    runners = [runner("a", 4), runner("b", 2), runner("c", 4, fails_at=2)]
    times = {outcome.arm: summary for outcome, summary in in_turns(runners)}
    assert order == ["a", "c", "a", "b", "c", "a", "a", "b"]
    assert times == {name: Summary(2.0, 2.0, 2.0) for name in "ab"}
    assert [(r.outcome.outcome, r.outcome.samples) for r in runners[:2]] == [
        ("measured", 4),
        ("measured", 2),
    ]
    assert (runners[2].outcome.outcome, runners[2].outcome.reason) == (
        "failed",
        "RuntimeError: broken",
    )


def test_disagreement() -> None:
    rewards = np.array([[1.0, 2.0], [3.0, 3.0]])
    expected = np.array([[0.0, 1.0], [0.0, 0.0]])

    def off(*errors: float) -> Any:
        return expected + np.reshape(errors, (2, 2))

    assert disagreement(expected, expected, rewards) is None
    assert disagreement(expected, expected, None) is None
    # relative to the row's largest, and where that is 0 nothing but what float64 rounds
    assert disagreement(off(2e-6, 0, 1e-13, 0), expected, rewards) is None
    assert disagreement(off(1e-5, 0, 0, 0), expected, rewards) == pytest.approx(1e-5)
    assert disagreement(off(0, 0, 1e-8, 0), expected, rewards) == pytest.approx(1e-8)
    assert disagreement(off(1e-16, 0, 0, 0), expected, None) is not None
    assert math.isnan(disagreement(expected * math.nan, expected, rewards) or 0)
    assert disagreement(expected[:1], expected, rewards) is not None


def test_oracle_knows_the_repeated_block(rng: np.random.Generator) -> None:
    block = rng.standard_normal((5, 8)).astype(np.float32)
    places = places_to_prove(12)
    matrix = Numpy("cpu").matrix(block, 12)
    oracle = Oracle(block)
    np.testing.assert_array_equal(oracle.expected(places, "copy"), matrix[places])
    np.testing.assert_array_equal(oracle.expected(places, "sort"), np.sort(matrix[places], axis=1))
    expected = pk.transform(matrix[places].astype(np.float64), K, implementation="reference")
    np.testing.assert_array_equal(oracle.expected(places, "transform"), expected)


@pytest.mark.parametrize("row", [0, 6, 11])
def test_a_wrong_arm_gets_no_figure(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    def right(rewards: Any) -> Any:
        return pk.transform(rewards, K)

    def wrong(rewards: Any) -> Any:
        out = pk.transform(rewards, K)
        out[row] *= 1 + 1e-4
        return out

    def broken(rewards: Any) -> Any:
        raise MemoryError("not today")

    calls = {"right": right, "wrong": wrong, "broken": broken}
    bench = bench_of(monkeypatch, calls)
    found = {m.arm: m for m in bench.matrix(PLAN.shapes[0], "gaussian")}
    assert [found[name].outcome for name in ("numpy copy", *calls)] == [
        "measured",
        "measured",
        "disagrees",
        "failed",
    ]
    assert found["numpy copy"].of_copy == 1
    rate = found["right"].gb_per_s
    assert rate is not None
    assert rate == pytest.approx(12 * 8 * 8 / 1e6 / (found["right"].milliseconds or 0))
    for name in ("wrong", "broken"):
        m = found[name]
        assert [m.milliseconds, m.milliseconds_p20, m.gb_per_s, m.gb_per_s_p80, m.of_copy] == (
            [None] * 5
        )
    assert "1.0e-04" in found["wrong"].reason
    assert [remark.split(": ")[1] for remark in bench.remarks] == ["disagrees", "failed"]


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("gaussian", 16),
        *(pytest.param("gaussian", n, marks=pytest.mark.slow) for n in MEASURED_N if n != 16),
        *(pytest.param(name, 64, marks=pytest.mark.slow) for name in INPUTS),
    ],
)
def test_every_length_that_is_measured_is_right_and_every_input(name: str, n: int) -> None:
    rewards = INPUTS[name](np.random.default_rng(n), Shape(2, n))
    places = [0, 1]
    expected = Oracle(rewards).expected(places, "transform")
    for implementation, reason in pk.available_implementations().items():
        if reason is None and implementation not in throughput.ROW_BY_ROW:
            kind = registry.kind_of(implementation)
            got = pk.transform(as_given(rewards, kind), K, implementation=implementation)
            given = rewards.astype(np.float64)
            assert disagreement(np.asarray(got, np.float64), expected, given) is None


def test_a_slow_arm_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(monkeypatch, {"ours": lambda rewards: pk.transform(rewards, K)})
    bench.plan = Plan((Shape(12, 8),), ("gaussian",), 10, 0.001, call_seconds=0)
    assert {m.outcome for m in bench.matrix(Shape(12, 8), "gaussian")} == {"skipped"}


def test_every_input_has_its_shape_and_type(rng: np.random.Generator) -> None:
    for name, make in INPUTS.items():
        rewards = make(rng, Shape(6, 8))
        assert rewards.shape == (6, 8)
        assert rewards.dtype == (np.bool_ if name == "bool" else np.float32)
    assert not np.ptp(INPUTS["all equal"](rng, Shape(6, 8)), axis=1).any()


def test_plans_are_for_matrices_of_one_size() -> None:
    for (device, _), plan in PLANS.items():
        assert len({shape.elements for shape in plan.shapes}) == 1
        if device == "cuda":
            assert plan.shapes[0].elements * 4 >= 1e9


def run(arguments: Sequence[object]) -> Any:
    return CliRunner().invoke(throughput.app, list(map(str, arguments)))


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_command_writes_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    if not everything:
        monkeypatch.setattr(throughput, "opened", lambda device, say: [Numpy(device)])
    monkeypatch.setitem(PLANS, ("cpu", True), replace(PLANS["cpu", True], arm_seconds=0.01))
    monkeypatch.setattr(throughput, "HOST_SPAN", 0.002)
    shapes = ["--shape", "16x8", "--shape", "4x32"]
    arms = ["--arm", "pk ", "--arm", "torch.sort"]
    options = ["--device", "cpu", "--quick", "--out", tmp_path, "--commit", "abc"]
    result = run([*options, *shapes, *arms])
    assert result.exit_code == 0, result.output
    files = {path.name.removeprefix("throughput-cpu-"): path for path in tmp_path.iterdir()}
    assert len(files) == (4 if throughput.find_spec("matplotlib") else 2)
    (json_file,) = (path for path in files.values() if path.suffix == ".json")
    record = json.loads(json_file.read_text())
    assert record["complete"] and record["commit"] == "abc"
    assert record["plan"]["shapes"] == ["16x8", "4x32"]
    assert record["versions"]["numpy"] == np.__version__

    results = record["results"]
    names = {m["arm"] for m in results}
    assert {"numpy copy", "pk numpy", "pk reference"} <= names
    assert {cost["arm"] for cost in record["host"]} == names
    assert record["default"] in names
    assert {(m["input"], m["n"]) for m in results} == {
        (name, n) for name in ("gaussian", "0/1") for n in (8, 32)
    }
    for m in results:
        assert m["outcome"] == "measured", m
        assert m["gb_per_s_p20"] <= m["gb_per_s"] <= m["gb_per_s_p80"]
        assert m["of_copy"] > 0 and m["samples"] >= throughput.FEWEST_SAMPLES

    with json_file.with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(results)
    for line, m in zip(lines, results, strict=True):
        assert list(line)[: len(m)] == list(m)
        assert (line["commit"], line["device"]) == ("abc", record["device"]["name"])
        assert line["numpy version"] == np.__version__
        assert float(line["gb_per_s"]) == m["gb_per_s"]
    for path in files.values():
        assert path.suffix != ".png" or path.read_bytes().startswith(b"\x89PNG")
    for name in names:
        assert name in result.output


def test_without_figures_are_the_defaults_that_were_asked_for() -> None:
    def cost(arm: str) -> HostCost:
        return HostCost(arm=arm, library="numpy")

    def measurement(arm: str, outcome: str = "measured") -> Measurement:
        m = Measurement(
            arm=arm, library="numpy", input="0/1", rows=3, n=8, rows_timed=3, bytes_per_element=8
        )
        m.give_up(outcome, "because")
        return m

    right = measurement("pk a")
    assert without_figures(["pk a", "pk b"], [cost("pk a")], [right]) == []
    assert without_figures(["pk a"], [cost("pk a")], [measurement("c", "failed"), right]) == []
    for outcome in ("failed", "disagrees", "skipped"):
        found = without_figures(["pk a"], [], [right, measurement("pk a", outcome)])
        assert found == [f"3x8 0/1, pk a: {outcome}: because"]
    assert without_figures(["pk a"], [cost("pk a")], []) == ["pk a: no matrix was reached"]


@pytest.mark.parametrize(("name", "code"), [("pk numpy", 1), ("something else", 0)])
def test_command_fails_where_a_default_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    def broken(rewards: Any) -> Any:
        raise RuntimeError("no kernel today")

    monkeypatch.setattr(throughput, "opened", lambda device, say: [Numpy(device)])
    monkeypatch.setattr(
        throughput, "implementation_arms", lambda library, like: [Arm(name, library, broken)]
    )
    monkeypatch.setattr(throughput, "HOST_SPAN", 0.0)
    monkeypatch.setattr(throughput, "find_spec", lambda name: None)  # no plots
    options = ["--device", "cpu", "--quick", "--shape", "16x8", "--out", tmp_path]
    result = run([*options, "--arm", name])
    assert result.exit_code == code, result.output
    complaint = "has no figure: 16x8 gaussian, pk numpy: failed: RuntimeError: no kernel today"
    assert (complaint in result.output) == bool(code)
    # What there is to know is kept.
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert record["complete"] and {m["arm"] for m in record["results"]} == {"numpy copy", name}


def test_a_run_without_time_leaves_what_the_host_does_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "opened", lambda device, say: [Numpy(device)])
    monkeypatch.setattr(throughput, "HOST_SPAN", 0.0)
    options = ["--device", "cpu", "--quick", "--shape", "16x8", "--out", tmp_path]
    result = run([*options, "--arm", "pk numpy", "--seconds", 0])
    assert result.exit_code == 1, result.output
    assert "pk numpy: no matrix was reached" in result.output
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert record["host"] and not record["results"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_bench_measures_what_it_is_for(tmp_path: Path) -> None:
    """Its very command line, but for the device: the kernels can be imported, nothing keeps JAX
    from the GPU, and what serves torch is measured."""
    root = Path(throughput.__file__).parents[1]
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
env >{tmp_path}/environment
exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    results = tmp_path / "results"
    options = f"--quick --shape 16x8 --arm 'pk torch' --out {results} --commit abc"
    settings = {"GPU_PYTHON": python, "GPU_DEVICE": "cpu", "GPU_BENCH": options}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["make", "gpu-bench", *(f"{name}={value}" for name, value in settings.items())],
        cwd=root,
        env=inherited | {"JAX_PLATFORMS": "cpu", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "environment").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    assert environment["PYTHONPATH"] == f"{root}:{root}/kernels"
    assert not {"JAX_PLATFORMS", "TRITON_INTERPRET", "PALLAS_INTERPRET"} & set(environment)
    (record,) = (json.loads(path.read_text()) for path in results.glob("*.json"))
    assert record["default"] == "pk torch"
    assert {m["outcome"] for m in record["results"] if m["arm"] == "pk torch"} == {"measured"}
    assert {m["library"] for m in record["results"]} == {"torch", "jax", "numpy"}


def test_kernels_to_warm_are_noted_once_and_launched_never(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    from bench import gpu_warm

    class Kernel:
        module, name = "pkpo_triton.kernel", "transform_kernel"

    def verify(names: Sequence[str]) -> Any:
        assert names == ["triton"]
        for data in ("n=8", "n=16", "n=8"):
            hook = triton.knobs.runtime.jit_cache_hook
            yield hook(fn=Kernel, compile={"specialization_data": data}, key=None)

    launches: list[bool] = []
    monkeypatch.setattr(
        gpu_warm.selfcheck, "verify", lambda names: map(launches.append, verify(names))
    )
    found = gpu_warm.wanted()
    assert found == [(Kernel.module, Kernel.name, data) for data in ("n=8", "n=16")]
    assert launches == [True] * 3  # a true answer means that Triton need not go on
    assert triton.knobs.runtime.jit_cache_hook is None


def test_command_refuses_in_words(tmp_path: Path) -> None:
    for shape in ("8", "8x", "0x8", f"8x{K - 1}", "8 x 8"):
        result = run(["--device", "cpu", "--shape", shape, "--out", tmp_path / "none"])
        assert result.exit_code == 2
        assert "ROWSxN" in result.output
    assert not (tmp_path / "none").exists()


def test_a_shape_keeps_to_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(monkeypatch, {})
    bench.plan = replace(PLAN, shapes=(Shape(12, 8), Shape(6, 16)), inputs=("gaussian", "0/1"))
    clock = iter(range(0, 10_000, 3))  # every look at the clock takes 3 of the 10 seconds
    monkeypatch.setattr(bench, "matrix", lambda shape, name: [f"{shape} {name}"])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: float(next(clock)))
    bench.start = 0
    found = [str(m) for of_shape in bench.matrices(lambda _: None) for m in of_shape]
    assert found == ["12x8 gaussian"]
    assert [remark.split(": ")[0] for remark in bench.remarks] == [
        "12x8 0/1",
        "6x16 gaussian",
        "6x16 0/1",
    ]
