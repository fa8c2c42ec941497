"""The scaling bench: wrong results get no figure, and a second compilation is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("jax")

from typer.testing import CliRunner

import pkpo_kernels as pk
from bench import command, scaling
from bench.libraries import Jax, Library, Step, Torch
from bench.records import read_table
from bench.scaling import ANNEALED, anneal, measure_point
from bench.shapes import Shape

pytestmark = pytest.mark.usefixtures("few_rounds")


@pytest.mark.parametrize("count", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_points_of_all_that_serve(count: int | None) -> None:
    rows = measure_point([Library("cpu"), Jax("cpu")], "rows", Shape(8, 16), count)
    assert [row["candidate"] for row in rows] == ["numpy", "xla"]
    for row in rows:
        assert row["reason"] == "" and row["different_ks"] == (count or 1), row
        assert row["ms"] > 0 and row["temporary_memory"] > 0


class Wrong(Library):
    """NumPy, a little off."""

    def transform(self, implementation: Any, k: Any) -> Any:
        return lambda rewards: pk.transform(rewards, k) * 1.001


def test_a_wrong_result_gets_no_figure() -> None:
    (row,) = measure_point([Wrong("cpu")], "rows", Shape(8, 16))
    assert row["reason"].startswith("wrong") and row["ms"] is None
    assert "temporary_memory" not in row


def test_memory_of_numpy_is_what_it_holds_besides_its_result() -> None:
    def holds_three_more(x: Any) -> Any:
        more = np.concatenate([x, x, x])
        return more[: len(x)] * 1

    rewards = np.ones((256, 1024), np.float32)
    assert Library("cpu").temporary_memory(holds_three_more, rewards) == pytest.approx(3, abs=0.05)


def test_memory_of_torch_is_what_it_holds_besides_its_result() -> None:
    torch = pytest.importorskip("torch")
    memory = Torch("cpu").temporary_memory(lambda x: torch.cat([x, x, x]).sum(), torch.ones(64, 64))
    assert memory == pytest.approx(
        2, abs=0.05
    )  # the peak, less the size of a result like its input


class Careless(Jax):
    """k as a part of the program."""

    def step(self, implementation: Any, ks: Any) -> Step:
        step = self.jax.jit(pk.transform, static_argnums=1)
        return step, [int(k) for k in ks], step._cache_size


@pytest.mark.slow
def test_annealing_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = anneal(Jax("cpu"), Shape(4, 17))
    assert (row["candidate"], row["reason"], row["compilations"]) == ("xla", "", 1)
    assert row["compile_s"] > row["ms"] / 1e3 > 0
    monkeypatch.setattr(scaling, "ANNEALED_KS", (3, 1))
    (row,) = anneal(Careless("cpu"), Shape(4, 18))
    assert (row["reason"], row["compilations"]) == ("failed: a new k was compiled anew", 2)
    assert anneal(Library("cpu"), Shape(4, 18)) == []


@pytest.mark.slow
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "opened", lambda device: [Library(device)])
    monkeypatch.setitem(scaling.ROWS, "cpu", ((4, 8), 4))
    monkeypatch.setattr(scaling, "MEASURED_N", (8, 16))
    annealed = {"candidate": "numpy", "library": "jax", "sweep": ANNEALED, "rows": 3, "n": 64}
    annealed |= {"different_ks": 3, "reason": "", "ms": 0.1, "compile_s": 0.1}
    runs = [annealed | {"compilations": 1}]
    monkeypatch.setattr(scaling, "anneal", lambda library, shape: runs)
    options = ["--device", "cpu", "--out", str(tmp_path), "--commit", "abc"]
    result = CliRunner().invoke(scaling.app, options)
    assert result.exit_code == 0, result.output
    written = {path.suffix: path for path in tmp_path.iterdir()}
    rows = read_table(written[".csv"])
    assert {row["commit"] for row in rows} == {"abc"} and rows[-1]["compilations"] == "1"
    assert {(row["sweep"], row["rows"], row["n"]) for row in rows} == {
        *(("rows", rows, "64") for rows in ("4", "8")),
        *(("n", "4", n) for n in ("8", "16")),
        ("different ks", "4", "64"),
        (ANNEALED, "3", "64"),
    }
    assert written[".png"].read_bytes().startswith(b"\x89PNG")

    runs[0]["reason"] = "failed: a new k was compiled anew"
    result = CliRunner().invoke(scaling.app, options)
    assert result.exit_code == 1
    assert "numpy has no figure: failed: a new k was compiled anew" in result.output
