"""The tables of bench/README.md are what bench/results/ says."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

from bench import readme_tables
from bench.readme_tables import README, TABLES, filled
from bench.records import RESULTS, read_table


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the results, to be tampered with."""
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def test_readme_and_the_results_agree() -> None:
    text = README.read_text()
    assert filled(text) == text, "run make readme-tables"
    assert {f"<!-- results: {name} -->" in text for name in TABLES} == {True}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_results_are_small_and_say_where_they_are_from(path: Path) -> None:
    rows = read_table(path)
    assert 0 < len(rows) <= 100
    static = "static" in path.name
    origin = ("commit", "versions") if static else ("device", "date", "commit", "versions")
    assert all(row[name] for row in rows for name in origin)


# a column of every block
COLUMNS = {
    "throughput": ("throughput-*.csv", "gb_per_s"),
    "kernels": ("kernels-*.csv", "of_copy"),
    "accuracy": ("accuracy-*.csv", "worst"),
    "host": ("host-*.csv", "ratio"),
    "grouping": ("grouping-*.csv", "of_matrix"),
    "gpu static": ("gpu-static-sm_90.csv", "normal_shuffles"),
    "tpu static": ("tpu-static-v5e.csv", "bundles"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_changed_figure_shows(results: Path, name: str) -> None:
    pattern, column = COLUMNS[name]
    before = TABLES[name](results)
    for path in results.glob(pattern):
        rows = read_table(path)
        for row in rows[::2]:
            row[column] = row[column] and str(3 * float(row[column]))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    assert TABLES[name](results) != before


def test_every_table_says_what_it_is() -> None:
    told = {"gpu static": "Executed on the CPU", "tpu static": "A static count"}
    for name, table in TABLES.items():
        assert table(RESULTS).startswith(told.get(name, "Measured on")), name


def test_every_device_has_its_tables(results: Path) -> None:
    (path,) = results.glob("accuracy-*.csv")
    shutil.copy(path, path.with_name("accuracy-another.csv"))
    block = TABLES["accuracy"](results)
    assert block.count("Measured on") == 2 and block.count("![") == 1
    assert block.index("accuracy-another.csv") < block.index(path.name)


def test_plots_are_there() -> None:
    plots = [line for line in README.read_text().splitlines() if line.startswith("![")]
    assert len(plots) >= 3
    for line in plots:
        assert (README.parent / line.split("](")[1].rstrip(")")).is_file()


def test_only_known_tables() -> None:
    with pytest.raises(ValueError, match="got 'speed'"):
        filled("<!-- results: speed -->\n<!-- end -->")
    assert filled("no table") == "no table"


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: gpu static -->\nstale\n<!-- end -->\nafter\n")
    monkeypatch.setattr(readme_tables, "README", readme)
    assert CliRunner().invoke(readme_tables.app, []).exit_code == 0
    text = readme.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n")
    assert "stale" not in text and "| instructions (counted) |" in text
