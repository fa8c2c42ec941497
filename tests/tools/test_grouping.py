"""The bench of ids: what is timed is right, and what is kept can be laid out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

import pkpo_kernels as pk
from bench import command, grouping
from bench.libraries import Library
from bench.records import read_table
from bench.shapes import Shape


@pytest.fixture(autouse=True)
def one_small_shape(monkeypatch: pytest.MonkeyPatch, few_rounds: None) -> None:
    monkeypatch.setattr(grouping, "SHAPES", (Shape(8, 16),))


def test_the_matrix_comes_first_and_is_what_all_are_compared_with() -> None:
    first, *others = grouping.measure_one(Library("cpu"), Shape(8, 16))
    assert first["candidate"] == grouping.MATRIX and first["of_matrix"] == 1
    assert [row["candidate"] for row in others] == ["blocks", "integers", "text", "text, read"]
    for row in others:
        assert row["of_matrix"] == pytest.approx(row["ms"] / first["ms"])


def test_a_wrong_result_gets_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = pk.transform_groups
    monkeypatch.setattr(pk, "transform_groups", lambda *given, **more: right(*given, **more)[::-1])
    monkeypatch.setattr(command, "opened", lambda device: [Library(device)])
    done = CliRunner().invoke(grouping.app, ["--device", "cpu", "--out", str(tmp_path)])
    assert done.exit_code == 1 and "blocks has no figure: wrong: off by" in done.output
    rows = read_table(next(tmp_path.iterdir()))
    assert [row["reason"].partition(":")[0] for row in rows] == ["", *["wrong"] * 4]
    assert [row["of_matrix"] for row in rows] == ["1.0", *[""] * 4]
    ((_, *lines),) = grouping.tables(rows).values()
    assert [line[1] for line in lines[1:]] == ["wrong"] * 4


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    done = CliRunner().invoke(grouping.app, ["--device", "cpu", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("grouping-*.csv")
    rows = read_table(path)
    ((head, *lines),) = grouping.tables(rows).values()
    assert head == ["groups", "8 x 16"]
    assert {line[0].partition(":")[0] for line in lines} == {"numpy", "torch", "jax"}
    assert np.all([float(row["ms"]) > 0 for row in rows])
