"""`pkpo transform` gives the rows of Parquet back, in their order and with all their columns, each
with what its rewards were transformed to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("pyarrow")

from command_line import pkpo, rows_of
from test_lines_given_back import SAMPLES, TRANSFORMED

from pkpo_kernels import transform
from pkpo_kernels.cli import commands


def parquet_of(path: Path, columns: dict[str, Any], **options: Any) -> Any:
    """Write a Parquet file of these columns: → its table."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table(columns)
    pq.write_table(table, path, **options)
    return pq.read_table(path)


def added_to(table: Any, path: Path, name: str = "transformed") -> Any:
    """Read a file that has the columns of a table, each as it was, and one more: → that, a list."""
    pq = pytest.importorskip("pyarrow.parquet")
    got = pq.read_table(path)
    assert got.column_names == [*table.column_names, name]
    assert got.select(table.column_names).equals(table, check_metadata=True)
    return got[name].to_pylist()


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 100])
def test_rows_of_parquet_keep_all_columns_and_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_a_time: int
) -> None:
    pa = pytest.importorskip("pyarrow")
    columns = {
        "when": pa.array([10**18 + i for i in range(5)], pa.timestamp("ns", "UTC")),
        "task_id": [s["task_id"] for s in SAMPLES],
        "chat": [[{"role": "user", "content": s["prompt"]}] for s in SAMPLES],
        "reward": pa.array([s["reward"] for s in SAMPLES], pa.float32()),
        "raw": [b"\xff", None, b"", b"x", b"y"],
        "kind": pa.array(["x", "y", "x", None, "y"]).dictionary_encode(),
    }
    path, to = tmp_path / "r.parquet", tmp_path / "o.parquet"
    table = parquet_of(path, columns, row_group_size=3)
    monkeypatch.setattr("pkpo_kernels.cli.formats.parquet._ROWS", rows_at_a_time)
    code, out, _ = pkpo("transform", path, "-k", "2", "-o", to)
    assert (code, dict(rows_of(out))["written"]) == (0, "lines with transformed")
    assert added_to(table, to) == TRANSFORMED
    evaluated = [pkpo("passk", file, "-k", "1,2")[1] for file in (path, to)]
    assert rows_of(evaluated[0]) == rows_of(evaluated[1])
    only = ("--only", "kind=x", "--new-key", "advantage")
    assert pkpo("transform", path, "-k", "2", "-o", to, *only)[0] == 0
    kept = table.take([0, 2])
    assert added_to(kept, to, "advantage") == transform([1.0, 0], 2).tolist()


def test_lists_in_parquet(tmp_path: Path) -> None:
    path, to = tmp_path / "r.parquet", tmp_path / "o.parquet"
    table = parquet_of(
        path, {"uid": [7, 8], "rewards": [[1, 0, None], [None, 0.5]], "x": ["", "y"]}
    )
    for null, rewards in (("drop", [[1.0, 0], [0.5]]), ("zero", [[1.0, 0, 0], [0.0, 0.5]])):
        assert pkpo("transform", path, "-k", "1", "-o", to, "--null", null)[0] == 0
        new = [transform(one, 1).tolist() for one in rewards]
        if null == "drop":
            new = [[*new[0], None], [None, *new[1]]]
        assert added_to(table, to) == new


def test_columns_of_samples_in_parquet(tmp_path: Path) -> None:
    path, to = tmp_path / "r.parquet", tmp_path / "o.parquet"
    columns = {"task_id": ["a", "b"], "s0": [1, 0], "s1": [None, 1], "s2": [0.0, None]}
    table = parquet_of(path, columns)
    assert pkpo("transform", path, "-k", "1", "-o", to, "--null", "drop")[0] == 0
    first, second = transform([1.0, 0], 1).tolist(), transform([0.0, 1], 1).tolist()
    assert added_to(table, to) == [[first[0], None, first[1]], [*second, None]]


def test_undersized_tasks_of_parquet_get_nan(tmp_path: Path) -> None:
    path, to = tmp_path / "r.parquet", tmp_path / "o.parquet"
    parquet_of(path, {"task_id": ["a", "b", "b"], "reward": [1, 0, 1]})
    pq = pytest.importorskip("pyarrow.parquet")
    assert pkpo("transform", path, "-k", "2", "-o", to, "--undersized", "nan")[0] == 0
    column = pq.read_table(to)["transformed"]
    assert column.null_count == 0
    assert column.to_pylist()[0] != column.to_pylist()[0]


def test_parquet_that_has_the_key_is_refused(tmp_path: Path) -> None:
    path, to = tmp_path / "r.parquet", tmp_path / "o.parquet"
    parquet_of(path, {"task_id": ["a"], "reward": [1], "transformed": [0.5]})
    code, _, err = pkpo("transform", path, "-k", "1", "-o", to)
    assert code == 2
    assert err.startswith(f"pkpo: {path}: --new-key must be a name that no line has")
    assert os.listdir(tmp_path) == ["r.parquet"]
    assert pkpo("transform", path, "-k", "1", "-o", to, "--bare")[0] == 0


@pytest.mark.parametrize("change", ["reward", "rows", "task"])
def test_parquet_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    columns: dict[str, Any] = {"task_id": ["a", "b", "a"], "reward": [1.0, 0.0, 0.0]}
    path = tmp_path / "r.parquet"
    parquet_of(path, columns)
    transformed = commands._transformed

    def changing(*given: Any) -> Any:
        other = columns | {"reward": [1.0, 0.0, 1.0]}
        if change == "rows":
            other = {name: column[:2] for name, column in columns.items()}
        elif change == "task":
            other = columns | {"task_id": ["a", "b", "c"]}
        parquet_of(path, other)
        return transformed(*given)

    monkeypatch.setattr(commands, "_transformed", changing)
    monkeypatch.setattr("pkpo_kernels.cli.formats.parquet._ROWS", 1)
    code, _, err = pkpo("transform", path, "-k", "1", "-o", tmp_path / "o.parquet")
    assert (code, err.count("\n")) == (2, 1)
    assert "the file has changed since it was read" in err
    assert os.listdir(tmp_path) == ["r.parquet"]
