"""The bench of the kernels on a GPU, as far as there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from typer.testing import CliRunner

from bench import kernels
from bench.libraries import Torch
from bench.ptx.driver import Device
from bench.records import RESULTS, read_table
from bench.shapes import Shape


@pytest.mark.parametrize(
    "kind",
    [
        "float32, 0/1, where",
        pytest.param("float32, normal", marks=pytest.mark.slow),
        pytest.param("bfloat16, normal", marks=pytest.mark.slow),
    ],
)
def test_a_kind_is_checked_and_timed(kind: str, few_rounds: None) -> None:
    # The machine that executes PTX, which is timed like a GPU.
    with Device(keep=False, counting=False):
        row = kernels.of_kind(Torch("cpu"), kind, torch.randn(70, 16))
    assert row["reason"] == "" and (row["rows"], row["n"]) == (70, 16)
    assert row["gb_per_s"] > 0 and 0 < row["of_copy"] < 1


def test_a_wrong_result_gets_no_figure(few_rounds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.pk, "transform", lambda x, k, **options: x * 1.0)
    monkeypatch.setattr(kernels, "off", lambda rewards, where, out: 0.5)
    row = kernels.of_kind(Torch("cpu"), "float32, normal", torch.randn(70, 16))
    assert row["reason"].startswith("wrong: off by 5.0e-01") and "gb_per_s" not in row
    assert kernels.tables([row])["GB/s, and as a ratio to torch's copy of float32"][1][1] == "wrong"


@pytest.mark.parametrize("dtype, change", [("float32", 1e-4), ("bfloat16", 0.1)])
def test_first_middle_and_last_rows_are_compared(dtype: str, change: float) -> None:
    rewards = torch.randn(300, 8).to(getattr(torch, dtype))
    where = torch.rand(300, 8) < 0.8
    where[:, :2] = True
    right = kernels.pk.transform(rewards.double(), kernels.K, where=where).to(rewards.dtype)
    assert kernels.off(rewards, where, right) is None
    for row in (0, 150, -1):
        where[row] = True
        right[row] = kernels.pk.transform(rewards[row].double(), kernels.K).to(rewards.dtype)
        wrong = right.clone()
        wrong[row] = wrong[row] * (1 + change)
        assert kernels.off(rewards, where, wrong) == pytest.approx(change, rel=0.3)
        wrong[row, 3] = float("nan")
        assert kernels.off(rewards, where, wrong) is not None


def test_it_wants_a_gpu(tmp_path: Path) -> None:
    done = CliRunner().invoke(kernels.app, ["--device", "cpu", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "needs a torch that sees a GPU" in done.output
    assert not list(tmp_path.iterdir())


def test_a_wrong_step_gets_no_figure(few_rounds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "off", lambda rewards, where, out: 0.5)
    rows = kernels.of_step(Torch("cpu"), Shape(8, 8))
    assert [row["reason"].partition(":")[0] for row in rows] == ["wrong", "wrong"]
    assert kernels.tables(rows)["small matrices"][1][1] == "wrong"


def test_what_was_measured_is_laid_out() -> None:
    rows = read_table(RESULTS / "kernels-nvidia-h200.csv")
    small, large = kernels.tables(rows).values()
    assert small[0][1:3] == ["64 x 8", "1024 x 8"] and len(small) == 3
    lengths = dict.fromkeys(int(row["n"]) for row in rows if row["kind"] in kernels.KINDS)
    assert large[0][1:] == [f"n={n}" for n in lengths] and set(lengths) <= set(kernels.LENGTHS)
    assert [line[0] for line in large[1:]] == list(kernels.KINDS)
