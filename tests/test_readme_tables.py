"""README's tables are what bench/results/ says, and the newest files are what counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

from bench import readme_tables
from bench.readme_tables import README, RESULTS, TABLES, filled, newest


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the results, to be tampered with."""
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def test_readme_and_the_results_agree() -> None:
    text = README.read_text()
    assert filled(text) == text, "run make readme-tables"
    assert {f"<!-- results: {name} -->" in text for name in TABLES} == {True}


@pytest.mark.parametrize("kind", ["throughput", "accuracy", "scaling"])
def test_a_changed_figure_shows(results: Path, kind: str) -> None:
    text = README.read_text()
    ((path, record), *_) = newest(kind, results)

    def changed(value: Any) -> Any:
        """Every measured figure, three times as large."""
        if isinstance(value, dict):
            return {k: v if k == "offset" else changed(v) for k, v in value.items()}
        if isinstance(value, list):
            return [changed(inner) for inner in value]
        return 3 * value if isinstance(value, float) else value

    keys = ("results", "points", "annealing")
    path.write_text(json.dumps(record | {k: changed(record[k]) for k in keys if k in record}))
    assert filled(text, results) != text


def test_the_newest_file_of_each_device_counts(tmp_path: Path) -> None:
    for name in ("a-2026-01-09", "a-2026-01-10", "b-2025-12-31"):
        (tmp_path / f"scaling-{name}.json").write_text(json.dumps({"name": name}))
    found = [record["name"] for _, record in newest("scaling", tmp_path)]
    assert found == ["a-2026-01-10", "b-2025-12-31"]
    with pytest.raises(ValueError, match="no accuracy-DEVICE-DATE"):
        newest("accuracy", tmp_path)


def test_every_table_says_what_it_is() -> None:
    told = {"gpu static": "Executed on the CPU", "tpu static": "A static count"}
    for name, table in TABLES.items():
        head = table(RESULTS).split("\n")[0]
        assert head.startswith(told.get(name, "Measured on")), name


def test_plots_are_there() -> None:
    for line in README.read_text().splitlines():
        if line.startswith("!["):
            assert (README.parent / line.split("](")[1].rstrip(")")).is_file()


def test_only_known_tables() -> None:
    with pytest.raises(ValueError, match="got 'speed'"):
        filled("<!-- results: speed -->\n<!-- end -->")
    assert filled("no table") == "no table"


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: gpu static -->\nstale\n<!-- end -->\nafter\n")
    monkeypatch.setattr(readme_tables, "README", readme)
    check = CliRunner().invoke(readme_tables.app, ["--check"])
    assert check.exit_code == 1 and "disagree" in check.output and "stale" in readme.read_text()
    assert CliRunner().invoke(readme_tables.app, []).exit_code == 0
    text = readme.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n")
    assert "stale" not in text and "| instructions (counted) |" in text
    assert CliRunner().invoke(readme_tables.app, ["--check"]).exit_code == 0
