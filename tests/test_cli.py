"""The command: its figures, its tables, its exit codes, and that it leaves nothing half done."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from pkpo_kernels import available_implementations, selfcheck, transform
from pkpo_kernels.backends import registry
from pkpo_kernels.cli import commands, machine, plot
from pkpo_kernels.cli.entry import run
from pkpo_kernels.cli.formats import jsonl
from pkpo_kernels.cli.rollout_files import read_rollouts
from pkpo_kernels.evaluation import evaluate
from pkpo_kernels.selfcheck import Finding

Pkpo = Callable[..., tuple[int, str, str]]
# What is said of a file of JSON lines with a list of rewards each.
TASKS_A_LINE = "one task a line: tasks from task_id, rewards from rewards; nothing ignored\n"


@pytest.fixture
def pkpo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pkpo:
    """Runs the command; → exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "40")

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with this one's path."""
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | path | environment,
        check=False,
    )


def rows_of(table: str) -> list[list[str]]:
    """The cells of the body of every table that was printed."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in table.splitlines()
        if line.startswith("│")
    ]


def write_jsonl(path: Path, tasks: dict[str, list[Any]]) -> Path:
    lines = (json.dumps({"task_id": task, "rewards": rewards}) for task, rewards in tasks.items())
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """Four tasks with 0, 1, 5 and 10 correct of 10."""
    correct = {"none": 0, "one": 1, "half": 5, "all": 10}
    return write_jsonl(
        tmp_path / "binary.jsonl", {task: [1] * c + [0] * (10 - c) for task, c in correct.items()}
    )


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    tasks = {"a": [0.5, 1.0, 2.0, 0.25], "b": [1.0], "c": [3.0, 1.0, 2.0]}
    return write_jsonl(tmp_path / "ragged.jsonl", tasks)


class TestPassk:
    def test_percentages_in_full(self, pkpo: Pkpo, binary: Path) -> None:
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

    def test_six_decimals_as_published_figures_have(self, pkpo: Pkpo, tmp_path: Path) -> None:
        # 2876 correct of 8000: 35.95 %.
        tasks = {f"{i}": [1] * c + [0] * (10 - c) for i, c in enumerate([4] * 476 + [3] * 324)}
        path = write_jsonl(tmp_path / "r.jsonl", tasks)
        _, out, _ = pkpo("passk", path, "-k", "1,5")
        # (476 · (1 − 6/252) + 324 · (1 − 21/252)) / 800
        assert [row[1] for row in rows_of(out)] == ["35.95 %", "95.208333 %"]

    def test_intervals(self, pkpo: Pkpo, binary: Path) -> None:
        _, out, _ = pkpo("passk", binary, "-k", "1", "--confidence", "0.9", "--seed", "3")
        (row,) = rows_of(out)
        # Values 0, 0.1, 0.5, 1: sd 0.454606, times 1.644854/2 is 0.373880.
        assert row[3] == "2.61 to 77.39 %"
        assert re.fullmatch(r"\d+\.\d\d to \d+\.\d\d %", row[2])
        assert "90 % bootstrap" in out

    def test_metric_can_be_forced(self, pkpo: Pkpo, binary: Path, ragged: Path) -> None:
        assert "max@k" in pkpo("passk", binary, "-k", "1", "--metric", "max")[1]
        code, _, err = pkpo("passk", ragged, "-k", "1", "--metric", "pass")
        assert code == 2
        assert "where rewards are not only 0 and 1" in err

    def test_max_at_k_and_tasks_too_small(self, pkpo: Pkpo, ragged: Path) -> None:
        _, out, _ = pkpo("passk", ragged, "-k", "1,3")
        # (15/16 + 1 + 2)/3; at 3 the subsets of "a" have a best of 2 but one, 1: 7/4, and "c" 3.
        assert [(row[1], row[4], row[5]) for row in rows_of(out)] == [
            ("1.3125", "3", "0"),
            ("2.375", "2", "1"),
        ]

    def test_against_is_paired_by_task(self, pkpo: Pkpo, binary: Path, tmp_path: Path) -> None:
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

    def test_json(self, pkpo: Pkpo, binary: Path, tmp_path: Path) -> None:
        other = Path(shutil.copy(binary, tmp_path / "other.jsonl"))
        pkpo("passk", binary, "-k", "1,11", "--json", tmp_path / "o.json", "--against", other)
        found = json.loads((tmp_path / "o.json").read_text())
        assert (found["file"], found["against"]) == (str(binary), str(other))
        assert found["rows"][0]["estimate"] == pytest.approx(0.4)
        assert found["rows"][1]["estimate"] is None
        assert found["difference"][0]["estimate"] == 0

    @pytest.mark.parametrize(("extension", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
    def test_plot(
        self, pkpo: Pkpo, binary: Path, tmp_path: Path, extension: str, head: bytes
    ) -> None:
        pytest.importorskip("matplotlib")
        path = tmp_path / f"curve.{extension}"
        other = Path(shutil.copy(binary, tmp_path / "other.jsonl"))
        code, out, err = pkpo("passk", binary, "-k", "1-10", "--plot", path, "--against", other)
        assert (code, err) == (0, f"{binary}: {TASKS_A_LINE}{other}: {TASKS_A_LINE}")
        assert path.read_bytes().startswith(head)
        assert f"written to {path}" in out

    def test_plot_shows_both_runs(
        self, pkpo: Pkpo, binary: Path, ragged: Path, tmp_path: Path, monkeypatch: Any
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
        self, pkpo: Pkpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plot, "find_spec", lambda name: None)
        code, _, err = pkpo("passk", tmp_path / "none.jsonl", "-k", "1", "--plot", "c.png")
        assert code == 2
        assert err == "pkpo: --plot needs matplotlib; pip install matplotlib\n"

    def test_all_outputs_or_none(
        self, pkpo: Pkpo, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    def test_the_index_of_pandas(self, pkpo: Pkpo, tmp_path: Path) -> None:
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

    def test_one_sample_a_line(self, pkpo: Pkpo, tmp_path: Path) -> None:
        path = tmp_path / "r.csv"
        path.write_text("task_id,sample_idx,passed\na,0,1\na,1,0\na,2,1\n")
        code, out, err = pkpo("passk", path, "-k", "1")
        assert (code, rows_of(out)[0][1]) == (0, "66.666667 %")
        assert "1 tasks of 3 samples" in " ".join(out.split())
        assert err.endswith("rewards from passed; ignored: sample_idx\n")

    def test_a_column_that_is_no_sample(self, pkpo: Pkpo, tmp_path: Path) -> None:
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
        assert [task.tolist() for task in read_rollouts(tmp_path / "o.jsonl").rewards] == [
            [0, 1],
            [1, 1],
        ]


class TestTransform:
    @pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
    def test_ragged_tasks_each_by_themselves(
        self, pkpo: Pkpo, ragged: Path, tmp_path: Path, extension: str
    ) -> None:
        if extension == "parquet":
            pytest.importorskip("pyarrow")
        output = tmp_path / f"o.{extension}"
        code, out, err = pkpo("transform", ragged, "-k", "2", "-o", output)
        assert (code, err) == (0, f"{ragged}: {TASKS_A_LINE}")
        assert dict(rows_of(out)) == {
            "tasks": "3",
            "samples": "8",
            "tasks with too few samples (zero)": "1",
            "written to": str(output),
        }
        rewards = read_rollouts(output)
        assert rewards.task_ids == ("a", "b", "c")
        np.testing.assert_array_equal(rewards.rewards[2], [3, 1, 2])

    def test_values(self, pkpo: Pkpo, ragged: Path, tmp_path: Path) -> None:
        output = tmp_path / "o.jsonl"
        pkpo("transform", ragged, "-k", "2", "-o", output)
        values = [json.loads(line)["transformed"] for line in output.read_text().splitlines()]
        # Eq 33 at k=2: the mean over pairs of what the sample adds to the other, 1/C(n,2) each.
        assert values[0] == pytest.approx([0.25 / 6, 1.25 / 6, (1.5 + 1 + 1.75) / 6, 0])
        assert values[1] == [0]
        assert values[2] == pytest.approx([(2 + 1) / 3, 0, 1 / 3])

    @pytest.mark.parametrize(
        ("options", "kept"),
        [
            (["--estimator", "s"], {"estimator": "s"}),
            (["--scale", "mean"], {"scale": "mean"}),
            (["--estimator", "sloo", "--undersized", "clip"], {"estimator": "sloo"}),
            (["--implementation", "reference"], {}),
        ],
    )
    def test_options_reach_the_library(
        self, pkpo: Pkpo, ragged: Path, tmp_path: Path, options: list[str], kept: dict[str, Any]
    ) -> None:
        output = tmp_path / "o.jsonl"
        assert pkpo("transform", ragged, "-k", "2", "-o", output, *options)[0] == 0
        values = [json.loads(line)["transformed"] for line in output.read_text().splitlines()]
        for index in (0, 2):
            rewards = read_rollouts(ragged).rewards[index]
            assert values[index] == pytest.approx(transform(rewards, 2, **kept).tolist())

    def test_undersized_nan_is_null_in_json(self, pkpo: Pkpo, ragged: Path, tmp_path: Path) -> None:
        output = tmp_path / "o.jsonl"
        pkpo("transform", ragged, "-k", "4", "-o", output, "--undersized", "nan")
        values = [json.loads(line)["transformed"] for line in output.read_text().splitlines()]
        assert values[0] == pytest.approx([0, 0, 1, 0])
        assert values[1:] == [[None], [None] * 3]

    @pytest.mark.parametrize("name", ["torch", "xla"])
    def test_every_library(self, pkpo: Pkpo, ragged: Path, tmp_path: Path, name: str) -> None:
        if available_implementations()[name] is not None:
            pytest.skip(f"{name} is not available")
        output = tmp_path / "o.jsonl"
        code, *_ = pkpo("transform", ragged, "-k", "2", "-o", output, "--implementation", name)
        assert code == 0
        values = [json.loads(line)["transformed"] for line in output.read_text().splitlines()]
        assert values[2] == pytest.approx([1, 0, 1 / 3], rel=1e-6)

    def test_chunks_do_not_show(
        self, pkpo: Pkpo, ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pkpo("transform", ragged, "-k", "2", "-o", tmp_path / "whole.jsonl")
        monkeypatch.setattr(commands, "_ENTRIES", 1)
        pkpo("transform", ragged, "-k", "2", "-o", tmp_path / "chunks.jsonl")
        whole, chunks = (
            [
                json.loads(line)["transformed"]
                for line in (tmp_path / name).read_text().split("\n")[:3]
            ]
            for name in ("whole.jsonl", "chunks.jsonl")
        )
        for one, other in zip(whole, chunks, strict=True):
            assert one == pytest.approx(other, rel=1e-14)

    def test_npy(self, pkpo: Pkpo, tmp_path: Path) -> None:
        rewards = np.array([[0.0, 1, 0, 3], [1, 1, 1, 1]])
        np.save(tmp_path / "r.npy", rewards)
        assert pkpo("transform", tmp_path / "r.npy", "-k", "2", "-o", tmp_path / "o.npy")[0] == 0
        np.testing.assert_allclose(
            np.load(tmp_path / "o.npy"), [[0.0, 1 / 3, 0.0, 4 / 3], [0.0] * 4], rtol=1e-15
        )

    def test_a_failure_midway_leaves_nothing(
        self, pkpo: Pkpo, ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(file: Any, *_: Any) -> None:
            file.write(b"half a li")
            raise OSError("No space left on device")

        monkeypatch.setattr(jsonl, "write", failing)
        before = sorted(os.listdir(tmp_path))
        code, out, err = pkpo("transform", ragged, "-k", "2", "-o", tmp_path / "o.jsonl")
        assert (code, out, err) == (2, "", "pkpo: No space left on device\n")
        assert sorted(os.listdir(tmp_path)) == before


REFUSED = {
    "k above every n": (
        "transform {ragged} -k 5 -o {out}",
        "k must be at most the number of samples; got k=5 with n=4",
    ),
    "sloo at k=n": ("transform {ragged} -k 4 -o {out} --estimator sloo", "k=4 with n=4"),
    "k below 1": ("transform {ragged} -k 0 -o {out}", "k must be at least 1; got k=0"),
    "k no integer": ("transform {ragged} -k two -o {out}", "-k two"),
    "estimator": ("transform {ragged} -k 2 -o {out} --estimator x", "estimator must be one of"),
    "scale": ("transform {ragged} -k 2 -o {out} --scale x", "scale must be one of"),
    "undersized": ("transform {ragged} -k 2 -o {out} --undersized x", "undersized must be one of"),
    "implementation": (
        "transform {ragged} -k 2 -o {out} --implementation x",
        "implementation must be None or one of",
    ),
    "reward column": (
        "transform {ragged} -k 2 -o {out} --reward-columns score",
        "--reward-columns must name a key; got 'score'; there are task_id, rewards",
    ),
    "columns as no list": (
        """passk {ragged} -k 1 --reward-columns "s0"x""",
        "--reward-columns must be names such as s0,s1; got",
    ),
    "task column": ("passk {ragged} -k 1 --task-column task", "did you mean 'task_id'?"),
    "no output": ("transform {ragged} -k 2", "'-o' / '--output'"),
    "output is the file": (
        "transform {ragged} -k 2 -o {ragged}",
        "--output must be another file than the file; got",
    ),
    "against itself": (
        "passk {ragged} -k 2 --against {ragged}",
        "--against must be another file than the file; got",
    ),
    "json is the file": (
        "passk {ragged} -k 2 --json {ragged}",
        "--json must be another file than the file; got",
    ),
    "ragged npy": ("transform {ragged} -k 2 -o {out}.npy", "1 to 4: write .jsonl"),
    "extension": ("transform {ragged} -k 2 -o {out}.txt", "extension must be .jsonl"),
    "no folder": ("transform {ragged} -k 2 -o {out}/o.csv", "there is no folder"),
    "no file": ("passk {out} -k 1", "No such file or directory"),
    "ks": ("passk {ragged} -k 1,x", "rising ranges, such as 1,5,10 or 1-10; got '1,x'"),
    "too many": ("passk {ragged} -k 1-99999,5-900000000", "at most 100000 ks in all; got '1-9"),
    "falling range": ("passk {ragged} -k 5-1", "got '5-1'"),
    "zero": ("passk {ragged} -k 0", "got '0'"),
    "metric": ("passk {ragged} -k 1 --metric best", "--metric must be pass or max; got 'best'"),
    "confidence": ("passk {ragged} -k 1 --confidence 95", "confidence must be between 0 and 1"),
    "seed": ("passk {ragged} -k 1 --seed -1", "seed must be at least 0; got -1"),
    "plot": ("passk {ragged} -k 1 --plot {out}", "--plot must end in one of"),
    "json": ("passk {ragged} -k 1 --json {out}/o.json", "there is no folder"),
    "unknown option": ("passk {ragged} -k 1 --foo", "--foo"),
    "unknown command": ("foo", "'foo'"),
    "no command": ("", "Missing command"),
    "verify unknown": ("verify --implementation foo", "got 'foo'"),
    "verify seed": ("verify --seed -1", "seed must be at least 0; got -1"),
    "verify fuzz": ("verify --fuzz 0", "--fuzz must be minutes above 0; got 0"),
    "verify report": ("verify --report {out}/o.json", "there is no folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_exit_code_2_and_nothing_left_behind(
    pkpo: Pkpo, ragged: Path, tmp_path: Path, case: str
) -> None:
    line, message = REFUSED[case]
    out = tmp_path / "o.jsonl"
    code, stdout, stderr = pkpo(*line.format(ragged=ragged, out=out).split())
    assert (code, stdout) == (2, "")
    assert stderr.startswith("pkpo: ")
    assert stderr.count("\n") == 1
    assert message in stderr
    assert os.listdir(tmp_path) == [ragged.name]


@pytest.mark.parametrize("k", [4, 2_000_000_000])
def test_clip_takes_any_k_in_chunks_of_any_width(
    pkpo: Pkpo, ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    monkeypatch.setattr(commands, "_ENTRIES", 1)
    out = tmp_path / "o.jsonl"
    assert pkpo("transform", ragged, "-k", k, "-o", out, "--undersized", "clip")[0] == 0
    for line in out.read_text().splitlines():
        task = json.loads(line)
        n = len(task["rewards"])
        want = transform(np.array(task["rewards"]), min(k, n)) if n > 1 else [0.0]
        np.testing.assert_allclose(task["transformed"], want)


def test_no_reward_columns(pkpo: Pkpo, ragged: Path) -> None:
    code, _, err = pkpo("passk", ragged, "-k", "1", "--reward-columns", "")
    assert (code, err) == (2, "pkpo: --reward-columns must be names such as s0,s1; got ''\n")


def test_a_bad_line_is_named(pkpo: Pkpo, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"task_id": "a", "rewards": [1]}\n{"task_id": "b", "rewards": [null]}\n')
    for command in (["passk"], ["transform", "-o", tmp_path / "o.csv"]):
        code, _, err = pkpo(*command, path, "-k", "1")
        assert (code, err) == (2, f"pkpo: {path}:2: a reward must be a number; got null\n")
    assert os.listdir(tmp_path) == ["r.jsonl"]


class TestVerify:
    def test_what_is_right(self, pkpo: Pkpo) -> None:
        code, out, err = pkpo("verify", "--implementation", "numpy")
        assert (code, err) == (0, ""), out
        rows = rows_of(out)
        assert {row[0] for row in rows} == {"numpy"}
        assert {row[2] for row in rows} == {
            *("enumeration", "reference", "rows that are not finite", "random shapes"),
            *("exact gradient", "exact value"),
        }
        assert all(row[-1] == "ok" and float(row[4]) <= float(row[5]) for row in rows)
        assert f"all {len(rows)} checks passed" in out

    @pytest.mark.parametrize("error", [2e-6, float("nan")])
    def test_what_is_wrong(self, pkpo: Pkpo, monkeypatch: pytest.MonkeyPatch, error: float) -> None:
        def findings(names: Any, seed: int) -> Iterator[Finding]:
            assert (names, seed) == (["numpy", "torch"], 7)
            yield Finding("numpy", "s", "reference", 10, 1e-9, 1e-6, "n=9 k=2 gaussian")
            yield Finding("torch", "s", "reference", 10, error, 1e-6, "n=9 k=3 0/1")

        monkeypatch.setattr(selfcheck, "verify", findings)
        monkeypatch.setattr(selfcheck, "count_findings", lambda names: 2)
        code, out, _ = pkpo(
            *("verify", "--implementation", "numpy", "--implementation", "torch", "--seed", "7")
        )
        assert code == 1
        assert [row[-1] for row in rows_of(out)] == ["ok", "FAILED at n=9 k=3 0/1"]
        assert "1 of 2 checks failed" in out

    def test_report(self, pkpo: Pkpo, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        options = ("--seed", "3", "--fuzz", "0.002", "--report", path)
        code, out, err = pkpo("verify", "--implementation", "numpy", *options)
        assert (code, err) == (0, "")
        report = json.loads(path.read_text())
        assert (report["passed"], report["interrupted"]) == (True, False)
        assert (report["seed"], report["fuzz_minutes"]) == (3, 0.002)
        assert report["versions"]["numpy"] == np.__version__
        assert report["implementations"] == available_implementations()
        rows = rows_of(out)
        assert [
            [f["implementation"], f["estimator"], f["against"], str(f["cases"])]
            for f in report["findings"]
        ] == [row[:4] for row in rows]
        # What fuzzing adds comes last, one line an estimator.
        assert {row[2] for row in rows[-6:]} == {"random shapes"}
        assert f"written to {path}" in out

    def test_report_of_faults(
        self, pkpo: Pkpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bad = Finding("numpy", "s", "reference", 10, float("inf"), 1e-6, "n=9: OSError: no")
        monkeypatch.setattr(selfcheck, "verify", lambda names, seed: iter([bad]))
        path = tmp_path / "report.json"
        assert pkpo("verify", "--report", path)[0] == 1
        report = json.loads(path.read_text())
        assert report["passed"] is False
        assert report["findings"][0]["worst_error"] is None
        assert report["findings"][0]["worst_case"] == "n=9: OSError: no"

    def test_an_interrupted_run_tells_what_it_has_found(
        self, pkpo: Pkpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: Any, **__: Any) -> Iterator[Finding]:
            yield Finding("numpy", "s", "reference", 10, 0.0, 1e-6, "none")
            raise KeyboardInterrupt

        monkeypatch.setattr(selfcheck, "verify", interrupted)
        monkeypatch.setattr(selfcheck, "count_findings", lambda names: 2)
        code, out, _ = pkpo("verify", "--report", tmp_path / "report.json")
        assert code == 130
        assert [row[-1] for row in rows_of(out)] == ["ok"]
        assert "interrupted after 1 checks, of which 0 failed" in out
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["passed"], report["interrupted"]) == (False, True)
        assert len(report["findings"]) == 1

    def test_without_typer_or_rich(self, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        arguments = ["verify", "--implementation", "numpy", "--report", str(path)]
        code = (
            "import sys\n"
            "absent = ('typer', 'rich', 'torch', 'jax', 'matplotlib')\n"
            "sys.modules |= dict.fromkeys(absent)\n"
            "from pkpo_kernels import cli, selfcheck\n"
            "selfcheck.EVERYTHING = ('s',)\n"  # enough to see the lines
            f"sys.argv = {['pkpo', *arguments]!r}\n"
            "cli.main()"
        )
        done = python("-c", code)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        report = json.loads(path.read_text())
        assert lines[-2:] == [
            f"written to {path}",
            f"all {len(report['findings'])} checks passed",
        ]
        assert len(lines) == len(report["findings"]) + 2


class TestInfo:
    def test_everything_is_said_in_full(self, pkpo: Pkpo) -> None:
        code, out, err = pkpo("info")
        assert (code, err) == (0, "")
        rows = rows_of(out)
        assert ["numpy", np.__version__] in rows
        there = {row[0]: row[-1] for row in rows if len(row) == 4}
        for name, reason in available_implementations().items():
            assert there[name] == (reason or "available")
        for row in registry.defaults_by_device():
            assert list(row) in rows
        assert ["numpy", "cpu", "numpy"] in rows

    def test_what_serves_on_this_machine(self, pkpo: Pkpo) -> None:
        """No name of a kernel beside a processor that it does not run on."""
        pytest.importorskip("torch")
        pytest.importorskip("jax")
        there = [row for row in rows_of(pkpo("info")[1]) if len(row) == 3 and "cpu" in row[1]]
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        assert {(arrays, name) for arrays, _, name in there} == {
            ("numpy", "numpy"),
            ("torch", "triton" if interpreted else "torch"),
            ("jax", "xla"),
        }

    def test_what_is_not_installed(self, pkpo: Pkpo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "find_spec", lambda name: None if name == "jax" else True)
        monkeypatch.setattr(machine, "_torch_devices", lambda torch: ["cpu", "cuda:0 H200"])
        _, out, _ = pkpo("info")
        rows = rows_of(out)
        assert ["jax", "not installed; pip install jax"] in rows
        assert ["jax", "none", "not installed; pip install jax"] in rows
        assert ["", "cuda:0 H200"] in rows

    def test_a_broken_library_is_reported(
        self, pkpo: Pkpo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_: Any) -> list[str]:
            raise OSError("libcuda.so.1: no such file")

        monkeypatch.setattr(machine, "_torch_devices", broken)
        code, out, _ = pkpo("info")
        assert code == 0
        assert "not usable: OSError: libcuda.so.1: no such file" in out


def test_python_m(binary: Path) -> None:
    command = ("-m", "pkpo_kernels", "passk", str(binary), "-k", "5,11")
    # ASCII cannot show the dash of k = 11.
    done = python(*command, COLUMNS="30", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, f"{binary}: {TASKS_A_LINE}")
    assert "62.400794 %" in done.stdout
    assert r"\u2013" in done.stdout


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_typer_or_rich_it_says_what_to_install(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from pkpo_kernels.cli import main; main()"
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pkpo: {package} is not installed; pip install typer rich\n"


def test_importing_the_command_loads_no_array_library_but_numpy() -> None:
    code = (
        "import sys, pkpo_kernels.cli.commands\n"
        "print({'torch', 'jax', 'matplotlib'} & set(sys.modules))"
    )
    done = python("-c", code)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_files_are_written_whole_without_loading_the_command() -> None:
    done = python(
        "-c",
        "import sys, pkpo_kernels.cli.whole_files; print({'typer', 'rich'} & set(sys.modules))",
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
