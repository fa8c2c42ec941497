"""The command: `pkpo transform`, exit codes, and that it leaves nothing half done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from command_line import TASKS_A_LINE, pkpo, python, rows_of

from pkpo_kernels import available_implementations, transform
from pkpo_kernels.cli import commands
from pkpo_kernels.cli.formats import jsonl
from pkpo_kernels.cli.rollout_files import read_rollouts


class TestTransform:
    @pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
    def test_ragged_tasks_each_by_themselves(
        self, ragged: Path, tmp_path: Path, extension: str
    ) -> None:
        if extension == "parquet":
            pytest.importorskip("pyarrow")
        output = tmp_path / f"o.{extension}"
        code, out, err = pkpo("transform", ragged, "-k", "2", "-o", output, "--bare")
        assert (code, err) == (0, f"{ragged}: {TASKS_A_LINE}")
        assert dict(rows_of(out)) == {
            "tasks": "3",
            "samples": "8",
            "tasks with too few samples (zero)": "1",
            "written": "rewards alone",
            "written to": str(output),
        }
        rewards = read_rollouts(output)
        assert rewards.task_ids == ("a", "b", "c")
        np.testing.assert_array_equal(rewards.rewards[2], [3, 1, 2])

    def test_values(self, ragged: Path, tmp_path: Path) -> None:
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
        self, ragged: Path, tmp_path: Path, options: list[str], kept: dict[str, Any]
    ) -> None:
        output = tmp_path / "o.jsonl"
        assert pkpo("transform", ragged, "-k", "2", "-o", output, *options)[0] == 0
        values = [json.loads(line)["transformed"] for line in output.read_text().splitlines()]
        for index in (0, 2):
            rewards = read_rollouts(ragged).rewards[index]
            assert values[index] == pytest.approx(transform(rewards, 2, **kept).tolist())

    def test_undersized_nan_is_null_in_json(self, ragged: Path, tmp_path: Path) -> None:
        output = tmp_path / "o.jsonl"
        pkpo("transform", ragged, "-k", "4", "-o", output, "--undersized", "nan")
        values = [json.loads(line)["transformed"] for line in output.read_text().splitlines()]
        assert values[0] == pytest.approx([0, 0, 1, 0])
        assert values[1:] == [[None], [None] * 3]

    @pytest.mark.parametrize("name", ["torch", "xla"])
    def test_every_library(self, ragged: Path, tmp_path: Path, name: str) -> None:
        if available_implementations()[name] is not None:
            pytest.skip(f"{name} is not available")
        output = tmp_path / "o.jsonl"
        code, *_ = pkpo("transform", ragged, "-k", "2", "-o", output, "--implementation", name)
        assert code == 0
        values = [json.loads(line)["transformed"] for line in output.read_text().splitlines()]
        assert values[2] == pytest.approx([1, 0, 1 / 3], rel=1e-6)

    def test_chunks_do_not_show(
        self, ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    def test_npy(self, tmp_path: Path) -> None:
        rewards = np.array([[0.0, 1, 0, 3], [1, 1, 1, 1]])
        np.save(tmp_path / "r.npy", rewards)
        assert pkpo("transform", tmp_path / "r.npy", "-k", "2", "-o", tmp_path / "o.npy")[0] == 0
        np.testing.assert_allclose(
            np.load(tmp_path / "o.npy"), [[0.0, 1 / 3, 0.0, 4 / 3], [0.0] * 4], rtol=1e-15
        )

    def test_a_failure_midway_leaves_nothing(
        self, ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(file: Any, *_: Any) -> None:
            file.write(b"half a li")
            raise OSError("No space left on device")

        monkeypatch.setattr(jsonl, "write", failing)
        before = sorted(os.listdir(tmp_path))
        code, out, err = pkpo("transform", ragged, "-k", "2", "-o", tmp_path / "o.jsonl", "--bare")
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
        "--reward-key must name a key; got 'score'; there are task_id, rewards",
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
    "stdout": ("transform {ragged} -k 2 -o -", "the output must be a file, stdout has the summary"),
    "extension": ("transform {ragged} -k 2 -o {out}.txt", "extension must be .jsonl"),
    "no folder": ("transform {ragged} -k 2 -o {out}/o.csv", "there is no folder"),
    "no file": ("passk {out} -k 1", "No such file or directory"),
    "ks": ("passk {ragged} -k 1,x", "rising ranges, such as 1,5,10 or 1-10; got '1,x'"),
    "too many": ("passk {ragged} -k 1-99999,5-900000000", "at most 100000 ks in all; got '1-9"),
    "falling range": ("passk {ragged} -k 5-1", "got '5-1'"),
    "zero": ("passk {ragged} -k 0", "got '0'"),
    "metric": (
        "passk {ragged} -k 1 --metric best",
        "--metric must be pass, max or pass^k; got 'best'",
    ),
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
    ragged: Path, tmp_path: Path, case: str
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
    ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    monkeypatch.setattr(commands, "_ENTRIES", 1)
    out = tmp_path / "o.jsonl"
    assert pkpo("transform", ragged, "-k", k, "-o", out, "--undersized", "clip")[0] == 0
    for line in out.read_text().splitlines():
        task = json.loads(line)
        n = len(task["rewards"])
        want = transform(np.array(task["rewards"]), min(k, n)) if n > 1 else [0.0]
        np.testing.assert_allclose(task["transformed"], want)


def test_no_reward_columns(ragged: Path) -> None:
    code, _, err = pkpo("passk", ragged, "-k", "1", "--reward-columns", "")
    assert (code, err) == (2, "pkpo: --reward-columns must be names such as s0,s1; got ''\n")


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"task_id": "a", "rewards": [1]}\n{"task_id": "b", "rewards": [null]}\n')
    for command in (["passk"], ["transform", "-o", tmp_path / "o.csv"]):
        code, _, err = pkpo(*command, path, "-k", "1")
        assert (code, err) == (
            2,
            f"pkpo: {path}:2: a reward must be a number; got null; --null drop or zero takes it\n",
        )
    assert os.listdir(tmp_path) == ["r.jsonl"]


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
