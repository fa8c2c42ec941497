"""The harness and the throughput bench: no figure for what is wrong, ratios within a run."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

import bench
import pkpo_kernels as pk
from bench import command, harness, libraries, records, throughput
from bench.candidates import candidates_of
from bench.harness import Candidate, Timed, checked_with, measure
from bench.libraries import Library, opened
from bench.records import number, read_table, write_table
from bench.shapes import INPUTS, MEASURED_N, K, Shape

NUMPY = Library("cpu")
BLOCK = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
ORIGIN = {"device": "a device", "date": "2026-01-01", "commit": "6e12345"}


def copy(rewards: Any) -> Any:
    return rewards.copy()


def measured(calls: dict[str, Callable[[Any], Any]]) -> dict[str, Timed]:
    """Every candidate by its name, in NumPy, beside a plain copy."""
    candidates = [Candidate("numpy copy", NUMPY, copy, "copy")]
    candidates += [Candidate(name, NUMPY, call) for name, call in calls.items()]
    every = measure([(it, [BLOCK, BLOCK]) for it in candidates], checked_with(BLOCK))
    return {timed.candidate.name: timed for timed in every}


# ---- The harness ---------------------------------------------------------------------------------


def test_quantiles_hold_the_middle() -> None:
    timed = Timed(Candidate("ours", NUMPY, copy), samples=[5.0, 1.0, 2.0, 3.0, 100.0, 4.0])
    assert timed.quantiles("s", 1.0) == {"s_p20": 2.0, "s": 3.5, "s_p80": 5.0}
    assert timed.row()["ms"] == 3500
    timed.give_up("wrong: because")
    assert timed.quantiles("s", 1.0) == {"s_p20": None, "s": None, "s_p80": None}


def test_candidates_take_turns_and_a_failing_one_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ROUNDS", 4)
    order: list[str] = []

    def seconds(call: Any, *_: Any) -> float:
        order.append(call(None))
        if order[-1] == "c" and order.count("c") == 2:
            raise RuntimeError("broken\nin two lines")
        return 2.0

    def prepare(timed: Timed, *_: Any) -> None:
        timed.every = 2 if timed.candidate.name == "b" else 1

    monkeypatch.setattr(harness, "_seconds", seconds)
    monkeypatch.setattr(harness, "_prepare", prepare)
    calls = [Candidate(name, NUMPY, lambda _, name=name: name) for name in "abc"]
    a, b, c = measure([(it, [BLOCK]) for it in calls], None)
    assert "".join(order) == "abcacaba"
    assert (a.samples, b.samples) == ([2.0] * 4, [2.0] * 2)
    assert (c.reason, c.samples) == ("failed: RuntimeError: broken", [])


@pytest.mark.parametrize("row", [0, 6, 11])
def test_a_wrong_candidate_gets_no_figure(few_rounds: None, row: int) -> None:
    def right(rewards: Any) -> Any:
        return pk.transform(rewards, K)

    def wrong(rewards: Any) -> Any:
        out = pk.transform(rewards, K)
        out[row] *= 1 + 1e-4
        return out

    def broken(rewards: Any) -> Any:
        raise MemoryError("not today")

    found = measured({"right": right, "wrong": wrong, "broken": broken})
    assert found["numpy copy"].reason == found["right"].reason == ""
    assert found["wrong"].reason == "wrong: off by 1.0e-04 of its row's largest result"
    assert found["broken"].reason == "failed: MemoryError: not today"
    rows = throughput.rows_of(Shape(12, 8), "gaussian", list(found.values()), {})
    figures = ("ms_p20", "ms", "ms_p80", "gb_per_s", "of_copy")
    for row_of in rows:
        there = row_of["reason"] == ""
        assert [row_of[name] is not None for name in figures] == [there] * 5, row_of
    (lines,) = throughput.tables(rows).values()
    assert [line[1] for line in lines[3:]] == ["wrong", "failed"]


def test_ratios_are_to_the_copy_of_the_same_run() -> None:
    def row_of(seconds: float, of_copy: float) -> list[dict[str, Any]]:
        every = [
            Timed(Candidate("numpy copy", NUMPY, copy, "copy"), samples=[of_copy]),
            Timed(Candidate("ours", NUMPY, copy, rows=6), samples=[seconds]),  # half of them
        ]
        return throughput.rows_of(Shape(12, 8), "0/1", every, {"ours": {"host_us": 7.0}})

    first, second = row_of(2.0, 1.0), row_of(2.0, 4.0)
    assert [row["of_copy"] for row in first] == [1, 0.25]
    assert [row["of_copy"] for row in second] == [1, 1]
    assert first[1]["gb_per_s"] == 6 * 8 * 8 / 2.0 / 1e9 and first[1]["host_us"] == 7


def error_of(out: Any, rewards: Any, result: Any = "transform") -> float | None:
    return checked_with(rewards)(Candidate("any", NUMPY, copy, result), out)


def test_how_far_a_result_is_off() -> None:
    rewards = np.array([[1.0, 2.0, 2.0, 2.0]])
    right = pk.transform(rewards, K)  # of which all but one are 0
    assert error_of(right, rewards) is None
    assert error_of(rewards, rewards, result="copy") is None
    assert error_of(rewards[:, ::-1], rewards, result="sort") is not None
    far = np.array([[1.0, 2.0, 3.0, 4.0]])
    largest = np.abs(pk.transform(far, K)).max()
    out = pk.transform(far, K)
    out[0, 0] += 1e-5 * largest
    assert error_of(out, far) == pytest.approx(1e-5)
    out[0, 0] -= 0.9e-5 * largest
    assert error_of(out, far) is None
    assert error_of(far + 1e-16, far + 1e-15, result="copy") is not None
    assert math.isnan(error_of(out * math.nan, far) or 0)
    assert error_of(out[:, :3], far) == math.inf


def test_a_matrix_repeats_its_block() -> None:
    matrix = NUMPY.matrix(BLOCK[:5], 12)
    out = pk.transform(matrix, K)
    assert error_of(out, BLOCK[:5]) is None
    assert error_of(np.sort(matrix, axis=1), BLOCK[:5], result="sort") is None
    assert error_of(out, BLOCK[4::-1]) is not None


def test_buffers_exceed_the_cache() -> None:
    size = BLOCK.nbytes
    assert len(NUMPY.buffers(BLOCK, 12)) == 2
    assert len(NUMPY.buffers(BLOCK, 12, 5 * size)) == 20
    assert len(NUMPY.buffers(BLOCK, 12, 10**9)) == libraries.MOST_BUFFERS


def test_a_slow_candidate_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SLOW_SECONDS", 0.0)
    for timed in measured({"ours": copy}).values():
        assert timed.reason.startswith("slow: a call takes") and not timed.samples


# ---- Its table -----------------------------------------------------------------------------------


def test_a_table_is_flat_and_says_where_it_is_from(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    write_table(path, [{"n": 8, "normal": {"alu": 0.1}}, {"n": 9, "alone": None}], ORIGIN)
    lines = read_table(path)
    assert list(lines[0]) == ["n", "normal_alu", "alone", *ORIGIN]
    assert [number(line, "normal_alu") for line in lines] == [0.1, None]
    assert {line["commit"] for line in lines} == {"6e12345"}
    assert list(path.parent.iterdir()) == [path]


def test_results_are_no_change_of_what_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code := tmp_path / "bench" / "__init__.py").parent.mkdir()
    (result := code.parent / "paper" / "results" / "a.csv").parent.mkdir(parents=True)
    code.write_text("1"), result.write_text("1")
    (text := tmp_path / "README.md").write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a", "-c", "commit.gpgsign=false"]
    monkeypatch.setattr(bench, "__file__", str(code))
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = bench.commit_id()
    assert len(clean) >= 7
    result.write_text("2"), text.write_text("2")
    assert bench.commit_id() == clean
    code.write_text("2")
    assert bench.commit_id() == f"{clean}-dirty"


def test_a_plan_fills_a_small_table() -> None:
    every = [it for library in opened("cpu") for it in candidates_of(library, 2, 8)]
    assert len(every) * sum(len(inputs) for _, inputs in throughput.PLAN) <= 100
    assert set(throughput.BOTH) == set(INPUTS)


@pytest.mark.parametrize(
    ("name", "n"),
    [
        *(
            pytest.param(
                "gaussian", n, marks=pytest.mark.slow if n == 1024 else pytest.mark.release
            )
            for n in MEASURED_N
        ),
        pytest.param("0/1", 64, marks=pytest.mark.slow),
    ],
)
def test_every_length_that_is_measured_is_right(name: str, n: int) -> None:
    block = INPUTS[name](np.random.default_rng(n), Shape(2, n))
    check = checked_with(block)
    for library in opened("cpu"):
        for candidate in candidates_of(library, 2, n):
            out = candidate.call(library.matrix(block, 2))
            assert check(candidate, out) is None, candidate.name


# ---- The command ---------------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    return CliRunner().invoke(throughput.app, ["--device", "cpu", *map(str, arguments)])


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_command_writes_a_table_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_rounds: None, everything: bool
) -> None:
    if not everything:
        monkeypatch.setattr(command, "opened", lambda device: [NUMPY])
    result = run("--shape", "16x8", "--shape", "4x32", "--out", tmp_path, "--commit", "abc")
    assert result.exit_code == 0, result.output
    files = {path.suffix: path for path in tmp_path.iterdir()}
    assert set(files) == {".csv", ".png"} and files[".csv"].name.startswith("throughput-cpu-")
    assert files[".png"].read_bytes().startswith(b"\x89PNG")
    rows = read_table(files[".csv"])
    names = {row["candidate"] for row in rows}
    assert {"numpy copy", "pk numpy", "numpy row by row"} <= names
    assert not everything or {"pk torch", "torch.compile, sort form", "pk xla"} <= names
    assert {(row["input"], row["n"]) for row in rows} == {
        (name, n) for name in INPUTS for n in ("8", "32")
    }
    for row in rows:
        assert (row["reason"], row["commit"]) == ("", "abc"), row
        assert float(row["ms_p20"]) <= float(row["ms"]) <= float(row["ms_p80"])
        assert float(row["of_copy"]) > 0 and float(row["host_us"]) > 0
        assert f"numpy {np.__version__}" in row["versions"] and row["device"] and row["date"]
        assert row["candidate"] in result.output


@pytest.mark.parametrize(("name", "code"), [("pk numpy", 1), ("something else", 0)])
def test_command_fails_where_a_default_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_rounds: None, name: str, code: int
) -> None:
    def broken(rewards: Any) -> Any:
        raise RuntimeError("no kernel today")

    def candidates(library: Library, rows: int, n: int) -> list[Candidate]:
        return [Candidate("numpy copy", library, copy, "copy"), Candidate(name, library, broken)]

    monkeypatch.setattr(command, "opened", lambda device: [NUMPY])
    monkeypatch.setattr(throughput, "candidates_of", candidates)
    monkeypatch.setattr(records, "find_spec", lambda name: None)
    result = run("--shape", "16x8", "--out", tmp_path, "--seconds", 0)
    assert result.exit_code == code, result.output
    assert f"{name} has no figure: failed: RuntimeError: no kernel today" in result.output
    # What there is to know is kept, and what time there was is said; plots are for who has them.
    (path,) = tmp_path.iterdir()
    assert [row["input"] for row in read_table(path)] == ["gaussian"] * 2
    assert "0 s are used up after input gaussian, rows 16, n 8" in result.output


def test_command_refuses_in_words(tmp_path: Path) -> None:
    for shape in ("8", "8x", "0x8", f"8x{K - 1}", "8 x 8"):
        result = run("--shape", shape, "--out", tmp_path / "none")
        assert result.exit_code == 2
        assert "ROWSxN" in result.output
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_bench_measures_what_it_is_for(tmp_path: Path) -> None:
    """Its very command line, but for the device: the kernels can be imported, nothing keeps JAX
    from the GPU, and what serves torch is measured."""
    root = Path(throughput.__file__).parents[1]
    python, results = tmp_path / "python", tmp_path / "results"
    python.write_text(f"""#!/bin/sh
env >{tmp_path}/environment
exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    options = f"--shape 16x8 --out {results} --commit abc --seconds 0"
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
    rows = read_table(next(results.glob("*.csv")))
    assert {row["reason"] for row in rows if row["candidate"] == "pk torch"} == {""}
    assert {row["library"] for row in rows} == {"torch", "jax", "numpy"}


def test_kernels_to_warm_are_noted_once_and_launched_never(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    from bench import gpu_warm

    class Kernel:
        module, name = "pkpo_triton.kernel", "transform_kernel"

    launches: list[bool] = []

    def verify(names: Any) -> Any:
        assert names == ["triton"]
        for data in ("n=8", "n=16", "n=8"):
            hook = triton.knobs.runtime.jit_cache_hook
            launches.append(hook(fn=Kernel, compile={"specialization_data": data}, key=None))
            yield

    monkeypatch.setattr(gpu_warm.selfcheck, "verify", verify)
    found = gpu_warm.wanted(gpu_warm.verify)
    assert found == [(Kernel.module, Kernel.name, data) for data in ("n=8", "n=16")]
    assert launches == [True] * 3  # a true answer means that Triton need not go on
    assert triton.knobs.runtime.jit_cache_hook is None
