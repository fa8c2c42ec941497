"""`pkpo passk`: its figures, tables, plots and columns."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from command_line import TASKS_A_LINE, pkpo, rows_of, write_jsonl

from pkpo_kernels.cli import commands, plot
from pkpo_kernels.cli.rollout_files import Options, read_rollouts
from pkpo_kernels.evaluation import evaluate


class TestPassk:
    def test_percentages_in_full(self, binary: Path) -> None:
        # pass@1 = 16/40; pass@5 = (0 + 1/2 + 251/252 + 1)/4; pass@10 = 3/4.
        code, out, err = pkpo("passk", binary, "-k", "1,5,10-11")
        assert (code, err) == (0, f"{binary}: {TASKS_A_LINE}")
        assert [(row[0], row[1], row[4], row[5]) for row in rows_of(out)] == [
            ("1", "40 %", "4", "0"),
            ("5", "62.400794 %", "4", "0"),
            ("10", "75 %", "4", "0"),
            ("11", "–", "0", "4"),
        ]
        assert "4 tasks of 10 samples" in " ".join(out.split())

    def test_six_decimals_as_published_figures_have(self, tmp_path: Path) -> None:
        # 2876 correct of 8000: 35.95 %.
        tasks = {f"{i}": [1] * c + [0] * (10 - c) for i, c in enumerate([4] * 476 + [3] * 324)}
        path = write_jsonl(tmp_path / "r.jsonl", tasks)
        _, out, _ = pkpo("passk", path, "-k", "1,5")
        # (476 · (1 − 6/252) + 324 · (1 − 21/252)) / 800
        assert [row[1] for row in rows_of(out)] == ["35.95 %", "95.208333 %"]

    def test_intervals(self, binary: Path) -> None:
        _, out, _ = pkpo("passk", binary, "-k", "1", "--confidence", "0.9", "--seed", "3")
        (row,) = rows_of(out)
        # Values 0, 0.1, 0.5, 1: sd 0.454606, times 1.644854/2 is 0.373880.
        assert row[3] == "2.61 to 77.39 %"
        assert re.fullmatch(r"\d+\.\d\d to \d+\.\d\d %", row[2])
        assert "90 % bootstrap" in out

    def test_metric_can_be_forced(self, binary: Path, ragged: Path) -> None:
        assert "max@k" in pkpo("passk", binary, "-k", "1", "--metric", "max")[1]
        code, _, err = pkpo("passk", ragged, "-k", "1", "--metric", "pass")
        assert code == 2
        assert "where rewards are not only 0 and 1" in err

    def test_pass_hat_k_and_where_wilsons_interval_stands(self, binary: Path) -> None:
        code, out, _ = pkpo("passk", binary, "-k", "1,5", "--metric", "pass^k")
        # C(5, 5)/C(10, 5) = 1/252 of "half", 1 of "all".
        assert (code, rows_of(out)[1][1]) == (0, "25.099206 %")
        assert "Wilson's interval replaces normal at k=1, 5" in out

    def test_max_at_k_and_tasks_too_small(self, ragged: Path) -> None:
        _, out, _ = pkpo("passk", ragged, "-k", "1,3")
        # (15/16 + 1 + 2)/3; at 3 the subsets of "a" have a best of 2 but one, 1: 7/4, and "c" 3.
        assert [(row[1], row[4], row[5]) for row in rows_of(out)] == [
            ("1.3125", "3", "0"),
            ("2.375", "2", "1"),
        ]

    def test_against_is_paired_by_task(self, binary: Path, tmp_path: Path) -> None:
        other = write_jsonl(
            tmp_path / "other.jsonl", {"all": [1, 1], "half": [0, 0], "one": [0, 0], "none": [0, 0]}
        )
        code, out, _ = pkpo("passk", binary, "-k", "1", "--against", other)
        assert code == 0
        first, difference = rows_of(out)
        assert first[1] == "40 %"
        assert difference[1] == "+15 %"
        assert difference[3].startswith("-8.")
        write_jsonl(other, {"all": [1], "half": [1], "one": [1], "other": [1]})
        code, out, err = pkpo("passk", binary, "-k", "1", "--against", other)
        assert (code, out) == (2, "")
        assert "lacks 'none' and adds 'other'" in err

    def test_json(self, binary: Path, tmp_path: Path) -> None:
        other = Path(shutil.copy(binary, tmp_path / "other.jsonl"))
        pkpo("passk", binary, "-k", "1,11", "--json", tmp_path / "o.json", "--against", other)
        found = json.loads((tmp_path / "o.json").read_text())
        assert (found["file"], found["against"]) == (str(binary), str(other))
        assert found["rows"][0]["estimate"] == pytest.approx(0.4)
        assert found["rows"][1]["estimate"] is None
        assert found["difference"][0]["estimate"] == 0

    @pytest.mark.parametrize(("extension", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
    def test_plot(self, binary: Path, tmp_path: Path, extension: str, head: bytes) -> None:
        pytest.importorskip("matplotlib")
        path = tmp_path / f"curve.{extension}"
        other = Path(shutil.copy(binary, tmp_path / "other.jsonl"))
        code, out, err = pkpo("passk", binary, "-k", "1-10", "--plot", path, "--against", other)
        assert (code, err) == (0, f"{binary}: {TASKS_A_LINE}{other}: {TASKS_A_LINE}")
        assert path.read_bytes().startswith(head)
        assert f"written to {path}" in out

    def test_plot_shows_both_runs(
        self, binary: Path, ragged: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        figures = []
        pytest.importorskip("matplotlib")
        from matplotlib.figure import Figure

        monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
        other = write_jsonl(
            tmp_path / "o.jsonl", {t: [1, 0] for t in ("none", "one", "half", "all")}
        )
        pkpo("passk", binary, "-k", "2,1", "--against", other, "--plot", tmp_path / "c.png")
        (axes,) = figures[0].axes
        mine, others = axes.get_lines()
        assert mine.get_xdata().tolist() == [1, 2]
        assert mine.get_ydata() == pytest.approx([40, (0.2 + 7 / 9 + 1) / 4 * 100])
        assert others.get_ydata() == pytest.approx([50, 100])
        assert len(axes.collections) == 2
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("k, samples per task", "pass@k (%)")
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [
            str(binary),
            str(other),
        ]

    @pytest.mark.parametrize("name", ["_a", "a$b$", "$x", "a\udcff\n"])
    def test_plot_labels_are_the_names(
        self, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        pytest.importorskip("matplotlib")
        from matplotlib.figure import Figure

        figures = []
        savefig = Figure.savefig

        def kept(self: Figure, *args: Any, **rest: Any) -> None:
            figures.append(self)
            savefig(self, *args, **rest)

        monkeypatch.setattr(Figure, "savefig", kept)
        curve = evaluate(read_rollouts(binary).by_task(), [1, 2])
        assert b"<svg" in plot.drawn({name: curve}, tmp_path / "c.svg")
        (text,) = figures[0].axes[0].get_legend().get_texts()
        assert text.get_text() == name.replace("\udcff", "\ufffd").replace("\n", "\ufffd")
        assert not text.get_parse_math()

    def test_plot_without_matplotlib_is_refused_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plot, "find_spec", lambda name: None)
        code, _, err = pkpo("passk", tmp_path / "none.jsonl", "-k", "1", "--plot", "c.png")
        assert code == 2
        assert err == "pkpo: --plot needs matplotlib; pip install matplotlib\n"

    def test_all_outputs_or_none(
        self, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: Any) -> bytes:
            raise OSError("no font")

        monkeypatch.setattr(commands, "drawn", failing)
        before = os.listdir(tmp_path)
        code, out, err = pkpo(
            "passk", binary, "-k", "1", "--json", tmp_path / "o.json", "--plot", tmp_path / "c.png"
        )
        assert (code, out, err) == (2, "", "pkpo: no font\n")
        assert os.listdir(tmp_path) == before


class TestColumns:
    INDEX = ",task_id,s0,s1\n0,a,0,1\n1,b,1,1\n"

    def test_the_index_of_pandas(self, tmp_path: Path) -> None:
        path = tmp_path / "r.csv"
        path.write_text(self.INDEX)
        code, out, err = pkpo("passk", path, "-k", "1")
        assert (code, out) == (2, "")
        assert err.startswith(f"pkpo: {path}:1: column 1 has no name, and looks like an index")
        assert "--reward-columns s0,s1" in err
        # Not 66.67 % of 3.
        code, out, err = pkpo("passk", path, "-k", "1", "--reward-columns", "s0,s1")
        assert (code, rows_of(out)[0][1]) == (0, "75 %")
        assert "2 tasks of 2 samples" in " ".join(out.split())
        assert err == (
            f"{path}: one task a line: tasks from task_id, rewards from s0, s1; ignored: a column"
            " without a name\n"
        )

    def test_one_sample_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "r.csv"
        path.write_text("task_id,sample_idx,passed\na,0,1\na,1,0\na,2,1\n")
        code, out, err = pkpo("passk", path, "-k", "1")
        assert (code, rows_of(out)[0][1]) == (0, "66.666667 %")
        assert "1 tasks of 3 samples" in " ".join(out.split())
        assert err.endswith("rewards from passed; ignored: sample_idx\n")

    def test_a_column_that_is_no_sample(self, tmp_path: Path) -> None:
        path = tmp_path / "r.csv"
        path.write_text("task_id,level,s0,s1\na,3,0,1\nb,2,1,1\n")
        code, out, err = pkpo("transform", path, "-k", "1", "-o", tmp_path / "o.jsonl")
        assert (code, out) == (2, "")
        assert "column 'level' is not of one family with s0, s1" in err
        assert os.listdir(tmp_path) == ["r.csv"]
        chosen = ("--reward-columns", "s0, s1", "--task-column", "task_id")
        code, _, err = pkpo("transform", path, "-k", "1", "-o", tmp_path / "o.jsonl", *chosen)
        assert code == 0
        assert err.endswith("rewards from s0, s1; ignored: level\n")
        options = Options(rewards=["s0", "s1"])
        assert [task.tolist() for task in read_rollouts(tmp_path / "o.jsonl", options).rewards] == [
            [0, 1],
            [1, 1],
        ]
