"""What becomes of transformed rewards: every format, and no half-written files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollout_examples import GOOD, TASKS, made, plain, put

from pkpo_kernels.cli.rollout_files import check_output, read_rollouts, write_transformed
from pkpo_kernels.cli.rollouts import RolloutFileError
from pkpo_kernels.cli.whole_files import written_whole


class TestWriting:
    VALUES = (np.array([0.0, 0.5, 0.5]), np.array([0.0]), np.array([1 / 3, np.nan]))

    def test_jsonl(self, tmp_path: Path) -> None:
        write_transformed(tmp_path / "o.jsonl", made(TASKS), self.VALUES)
        records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
        assert records[0] == {"task_id": "b", "rewards": [0, 1, 1], "transformed": [0, 0.5, 0.5]}
        assert records[2]["transformed"] == [1 / 3, None]

    def test_csv(self, tmp_path: Path) -> None:
        write_transformed(tmp_path / "o.csv", made(TASKS), self.VALUES)
        lines = (tmp_path / "o.csv").read_text(encoding="utf-8").split("\n")
        assert lines == [
            "task_id,reward,transformed",
            '"b",0.0,0.0',
            '"b",1.0,0.5',
            '"b",1.0,0.5',
            '"a",1.0,0.0',
            '"ü ,""",0.5,0.3333333333333333',
            '"ü ,""",-2.0,nan',
            "",
        ]

    def test_npy(self, tmp_path: Path) -> None:
        tasks = made({"a": [1.0, 0.0], "b": [0.0, 0.0]})
        write_transformed(tmp_path / "o.npy", tasks, [np.array([0.5, 0]), np.array([0.0, 1])])
        np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), [[0.5, 0], [0, 1]])

    def test_parquet(self, tmp_path: Path) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        write_transformed(tmp_path / "o.parquet", made(TASKS), self.VALUES)
        columns = pq.read_table(tmp_path / "o.parquet").to_pydict()
        assert columns["task_id"] == list(TASKS)
        assert columns["rewards"] == list(TASKS.values())
        assert columns["transformed"][:2] == [[0, 0.5, 0.5], [0]]

    @pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
    def test_what_was_written_can_be_read(self, tmp_path: Path, extension: str) -> None:
        if extension == "parquet":
            pytest.importorskip("pyarrow")
        path = tmp_path / f"o.{extension}"
        tasks = {f"{task}\r!": rewards for task, rewards in TASKS.items()}
        write_transformed(path, made(tasks), self.VALUES)
        assert plain(read_rollouts(path)) == tasks

    def test_ragged_npy_is_refused_before_anything(self, tmp_path: Path) -> None:
        path = tmp_path / "o.npy"
        for act in (check_output, lambda p, r: write_transformed(p, r, self.VALUES)):
            with pytest.raises(RolloutFileError, match=r"o\.npy: .* 1 to 3: write \.jsonl"):
                act(path, made(TASKS))
        assert os.listdir(tmp_path) == []

    def test_values_that_do_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="one number for each reward, 6 in 3 tasks; got 3 in"):
            write_transformed(tmp_path / "o.jsonl", made(TASKS), self.VALUES[:1])
        assert os.listdir(tmp_path) == []

    def test_no_folder_and_a_folder_in_the_way(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            check_output(tmp_path / "none" / "o.csv")
        (tmp_path / "o.csv").mkdir()
        with pytest.raises(IsADirectoryError, match="a folder is in the place of the file"):
            check_output(tmp_path / "o.csv")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
    def test_what_is_no_regular_file_stays(self, tmp_path: Path) -> None:
        pipe = tmp_path / "o.csv"
        os.mkfifo(pipe)
        with pytest.raises(FileExistsError, match=r"o\.csv: must be a regular file"):
            check_output(pipe)
        with pytest.raises(FileExistsError, match="must be a regular file"), written_whole(pipe):
            pass
        assert pipe.is_fifo()
        assert os.listdir(tmp_path) == ["o.csv"]

    def test_stdout_is_not_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = put(tmp_path / "o.csv", "")
        monkeypatch.setattr(os, "fstat", lambda descriptor: os.stat(path))
        with pytest.raises(FileExistsError, match="must be a file that is not stdout or stderr"):
            check_output(path)
        check_output(tmp_path / "other.csv")

    @pytest.mark.parametrize("extension", ["jsonl", "csv", "npy", "parquet"])
    def test_a_failure_midway_leaves_the_old_file_alone(
        self, tmp_path: Path, extension: str
    ) -> None:
        if extension == "parquet":
            pytest.importorskip("pyarrow")
        path = put(tmp_path / f"o.{extension}", "precious")
        tasks = made({"a": [1.0], "b": [0.0]})

        class Explosive:
            """Fails when its numbers are asked for, after the first task was written."""

            def __len__(self) -> int:
                return 1

            def __getattr__(self, name: str) -> Any:
                raise RuntimeError("the disk is full")

        with pytest.raises(RuntimeError, match="the disk is full"):
            write_transformed(path, tasks, [np.array([1.0]), Explosive()])  # type: ignore[list-item]
        assert os.listdir(tmp_path) == [path.name]
        assert path.read_text() == "precious"

    def test_a_file_replaces_its_own_source(self, tmp_path: Path) -> None:
        path = put(tmp_path / "r.jsonl", GOOD)
        path.chmod(0o640)
        write_transformed(path, read_rollouts(path), [np.array([0.25])])
        assert json.loads(path.read_text())["transformed"] == [0.25]
        assert path.stat().st_mode & 0o777 == 0o640
        assert os.listdir(tmp_path) == ["r.jsonl"]

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        target = put(tmp_path / "real.jsonl", GOOD)
        link = tmp_path / "link.jsonl"
        link.symlink_to(target)
        write_transformed(link, made({"a": [1.0]}), [np.array([0.25])])
        assert link.is_symlink()
        assert "transformed" in target.read_text()
