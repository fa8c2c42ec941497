"""What a user may say of his rewards: nulls, thresholds, which lines; ids; which metric it is."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from command_line import pkpo, rows_of
from rich.console import Console
from rollout_examples import plain, put
from test_sources import Bytes

from pkpo_kernels.cli import tables
from pkpo_kernels.cli.rollout_files import Options, read_rollouts, read_run
from pkpo_kernels.cli.rollouts import RolloutFileError

NULLS = {
    "lists.jsonl": '{"task_id": "a", "rewards": [0.5, null]}\n{"task_id": "b", "rewards": [NaN]}\n',
    "samples.jsonl": '{"task_id": "a", "reward": 0.5}\n{"task_id": "a", "reward": null}\n'
    '{"task_id": "b", "reward": null}\n',
    "samples.csv": "task_id,reward\na,0.5\na,\nb,null\n",
    "samples.tsv": "task_id\treward\na\t0.5\na\tNaN\nb\tNone\n",
    "list.json": '[{"task_id": "a", "rewards": [0.5, null]}, {"task_id": "b", "reward": null}]',
}


class TestNull:
    @pytest.mark.parametrize("name", [name for name in NULLS if name != "list.json"])
    def test_null_rewards(self, tmp_path: Path, name: str) -> None:
        path = put(tmp_path / name, NULLS[name])
        number = {"lists.jsonl": 1, "samples.jsonl": 2}.get(name, 3)
        reason = rf"{name}:{number}: a reward must be .*; got n.*; --null drop or zero takes it"
        with pytest.raises(RolloutFileError, match=reason):
            read_rollouts(path)
        got = read_rollouts(path, Options(null="zero"))
        assert plain(got) == {"a": [0.5, 0], "b": [0]}
        assert got.columns.endswith("; null rewards made 0: 2")
        got = read_rollouts(path, Options(null="drop"))
        assert plain(got) == {"a": [0.5], "b": []}
        assert got.columns.endswith("; null rewards left out: 2")

    def test_a_file_mixes_no_lines_for_their_sake(self, tmp_path: Path) -> None:
        with pytest.raises(RolloutFileError, match="mixes lines of one task and lines of one samp"):
            read_rollouts(put(tmp_path / "list.json", NULLS["list.json"]), Options(null="drop"))

    def test_parquet_and_npy(self, tmp_path: Path) -> None:
        np.save(tmp_path / "r.npy", np.array([[0.5, np.nan], [np.nan, 1]]))
        got = read_rollouts(tmp_path / "r.npy", Options(null="drop"))
        assert plain(got) == {"0": [0.5], "1": [1]}
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        table = pa.table({"task_id": ["a", "a", "b"], "reward": pa.array([0.5, None, 1.0])})
        pq.write_table(table, tmp_path / "r.parquet")
        with pytest.raises(RolloutFileError, match=r"r\.parquet:2: reward is null"):
            read_rollouts(tmp_path / "r.parquet")
        got = read_rollouts(tmp_path / "r.parquet", Options(null="zero"))
        assert plain(got) == {"a": [0.5, 0], "b": [1]}

    @pytest.mark.parametrize("threshold", [-0.5, 0.0, 1.0])
    def test_a_null_passes_no_threshold(self, tmp_path: Path, threshold: float) -> None:
        path = put(tmp_path / "r.csv", "uid,reward\na,1\na,-1\na,\n")
        got = read_rollouts(path, Options(null="zero", threshold=threshold))
        assert plain(got) == {"a": [1, 0, 0]}

    @pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.parquet"])
    def test_a_cell_of_a_task_is_empty(self, tmp_path: Path, name: str) -> None:
        path = put(tmp_path / "r.csv", "uid,s0,s1\na,1,\nb,0,0\n")
        if name == "r.jsonl":
            text = '{"uid": "a", "s0": 1, "s1": null}\n{"uid": "b", "s0": 0, "s1": 0}'
            path = put(tmp_path / name, text)
        if name == "r.parquet":
            pa = pytest.importorskip("pyarrow")
            pq = pytest.importorskip("pyarrow.parquet")
            path = tmp_path / name
            pq.write_table(pa.table({"uid": ["a", "b"], "s0": [1, 0], "s1": [None, 0]}), path)
        got = read_rollouts(path)
        assert plain(got) == {"a": [1], "b": [0, 0]}
        assert got.columns.endswith("; nothing ignored; cells without a sample: 1")
        assert plain(read_rollouts(path, Options(null="drop"))) == plain(got)
        got = read_rollouts(path, Options(null="zero"))
        assert plain(got) == {"a": [1, 0], "b": [0, 0]}
        assert got.columns.endswith("; nothing ignored; null rewards made 0: 1")

    @pytest.mark.parametrize("rewards", ["[null, 9007199254740993]", "[9007199254740993, NaN]"])
    def test_a_null_hides_no_integer_that_is_too_large(self, tmp_path: Path, rewards: str) -> None:
        path = put(tmp_path / "r.jsonl", f'{{"task_id": "a", "rewards": {rewards}}}')
        with pytest.raises(RolloutFileError, match=r":1: rewards must be integers of at most 2"):
            read_rollouts(path, Options(null="drop"))

    def test_an_infinite_reward_is_no_null(self, tmp_path: Path) -> None:
        path = put(tmp_path / "r.csv", "task_id,reward\na,inf\n")
        with pytest.raises(RolloutFileError, match=r":2: a reward must be finite; got inf$"):
            read_rollouts(path, Options(null="drop"))

    def test_a_task_that_is_left_with_nothing_is_too_small(self, tmp_path: Path) -> None:
        path = put(tmp_path / "r.jsonl", NULLS["lists.jsonl"])
        code, out, err = pkpo("passk", path, "-k", "1", "--null", "drop")
        assert (code, rows_of(out)[0][4:]) == (0, ["1", "1"])
        assert "null rewards left out: 2" in err
        put(path, '{"task_id": "a", "rewards": [null]}')
        code, _, err = pkpo("passk", path, "-k", "1", "--null", "drop")
        assert (code, err) == (
            2,
            f"pkpo: {path}: no sample is left, once those with null rewards are left out\n",
        )
        code, _, err = pkpo("passk", path, "-k", "1", "--null", "none")
        assert code == 2
        assert "--null must be one of error, drop, zero; got 'none'" in err

    def test_transform_takes_them_too(self, tmp_path: Path) -> None:
        path, output = put(tmp_path / "r.jsonl", NULLS["lists.jsonl"]), tmp_path / "o.jsonl"
        assert pkpo("transform", path, "-k", "1", "-o", output, "--null", "drop", "--bare")[0] == 0
        assert [json.loads(line)["rewards"] for line in output.read_text().splitlines()] == [
            [0.5],
            [],
        ]


class TestMetric:
    PARTIAL = '{"task_id": "a", "rewards": [0.5, 0.25]}\n{"task_id": "b", "rewards": [1, 0]}\n'
    SIGNS = '{"task_id": "a", "rewards": [1, -1]}\n{"task_id": "b", "rewards": [-1, -1]}\n'
    BINARY = '{"task_id": "a", "rewards": [1, 0]}\n{"task_id": "b", "rewards": [0, 0]}\n'

    @pytest.mark.parametrize(
        ("text", "options", "said", "figure"),
        [
            (BINARY, [], "pass@k: every reward is 0 or 1; --metric chooses another\n", "25 %"),
            (
                BINARY,
                ["--metric", "max"],
                "max@k: every reward is 0 or 1, as --metric says\n",
                ".25",
            ),
            (
                PARTIAL,
                [],
                "max@k: rewards are not only 0 and 1 (line 1 of {} has 0.5); with --threshold T,"
                " samples pass at T or more\n",
                "0.4375",
            ),
            (PARTIAL, ["--metric", "max"], "max@k: as --metric says\n", "0.4375"),
            (
                PARTIAL,
                ["--threshold", "0.5"],
                "pass@k: a sample passes at 0.5 or more, as --threshold says\n",
                "50 %",
            ),
            (
                SIGNS,
                ["--threshold", "1", "--metric", "pass^k"],
                "pass^k: a sample passes at 1 or more, as --threshold says, as --metric says\n",
                "25 %",
            ),
        ],
    )
    def test_it_is_told_with_its_reason(
        self, tmp_path: Path, text: str, options: list[str], said: str, figure: str
    ) -> None:
        path = put(tmp_path / "r.jsonl", text)
        code, out, _ = pkpo("passk", path, "-k", "1", *options)
        assert (code, out[: out.index("\n") + 1]) == (0, said.format(path))
        assert rows_of(out)[0][1].endswith(figure)

    @pytest.mark.parametrize("metric", ["pass", "pass^k"])
    def test_where_samples_neither_pass_nor_fail_it_says_what_to_do(
        self, tmp_path: Path, metric: str
    ) -> None:
        path = put(tmp_path / "r.jsonl", self.BINARY + '{"task_id": "c", "rewards": [0, 0.5]}\n')
        code, out, err = pkpo("passk", path, "-k", "1", "--metric", metric)
        assert (code, out) == (2, "")
        assert err == (
            f"pkpo: --metric {metric} needs to know which samples pass, where rewards are not only"
            f" 0 and 1 (line 3 of {path} has 0.5): add --threshold T, and those of T or more pass;"
            " or take --metric max\n"
        )

    def test_a_threshold_is_a_number(self, tmp_path: Path) -> None:
        path = put(tmp_path / "r.jsonl", self.BINARY)
        code, _, err = pkpo("passk", path, "-k", "1", "--threshold", "nan")
        assert (code, err) == (2, "pkpo: --threshold must be a finite number; got nan\n")

    def test_thresholds_keep_counts_alone(self, tmp_path: Path) -> None:
        path = put(tmp_path / "r.jsonl", self.PARTIAL)
        run = read_run(path, Options(threshold=0.5)).run
        assert run.correct is not None
        assert run.correct.tolist() == [1, 1]


class TestIds:
    def test_a_number_and_text_are_two_tasks(self, tmp_path: Path) -> None:
        text = '{"task_id": 1, "reward": 1}\n{"task_id": "1", "reward": 0}\n'
        text += '{"task_id": 1.0, "reward": 0}\n{"task_id": 1.5, "reward": 1}\n'
        got = read_rollouts(put(tmp_path / "r.jsonl", text))
        assert plain(got) == {1: [1, 0], "1": [0], 1.5: [1]}
        assert [type(task) for task in got.task_ids] == [int, str, float]

    def test_they_are_written_as_they_were(self, tmp_path: Path) -> None:
        text = '{"task_id": 1, "rewards": [1, 0]}\n{"task_id": "1", "rewards": [0, 0]}\n'
        path, output = put(tmp_path / "r.jsonl", text), tmp_path / "o.jsonl"
        assert pkpo("transform", path, "-k", "1", "-o", output)[0] == 0
        assert list(plain(read_rollouts(output))) == [1, "1"]
        for name in ("o.csv", "o.parquet"):
            if name.endswith("parquet"):
                pytest.importorskip("pyarrow")
            code, _, err = pkpo("transform", path, "-k", "1", "-o", tmp_path / name)
            assert code == 2
            assert "does not tell the tasks 1 and '1' apart, a number and text: write .jsonl" in err

    def test_parquet_keeps_numbers(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        path, output = tmp_path / "r.parquet", tmp_path / "o.parquet"
        # pandas makes floats of integers where one is missing.
        pq.write_table(pa.table({"task_id": [1.0, 2.0, 1.0], "reward": [1, 0, 0]}), path)
        assert plain(read_rollouts(path)) == {1: [1, 0], 2: [0]}
        assert pkpo("transform", path, "-k", "1", "-o", output, "--bare")[0] == 0
        assert pq.read_table(output)["task_id"].to_pylist() == [1, 2]
        pq.write_table(pa.table({"task_id": [1.0, float("nan")], "reward": [1, 0]}), path)
        with pytest.raises(RolloutFileError, match=":2: task_id must be a string or a number"):
            read_rollouts(path)
        pq.write_table(pa.table({"task_id": ["a", " "], "reward": [1, 0]}), path)
        with pytest.raises(RolloutFileError, match=":2: the task_id is blank"):
            read_rollouts(path)

    def test_long_prompts_are_held_by_a_digest(self, tmp_path: Path) -> None:
        prompts = ["x" * 3000 + end for end in "abab"] + ["short"]
        lines = [{"task_id": prompt, "reward": i % 3 // 2} for i, prompt in enumerate(prompts)]
        path = put(tmp_path / "r.jsonl", "\n".join(map(json.dumps, lines)))
        assert plain(read_rollouts(path)) == {prompts[0]: [0, 1], prompts[1]: [0, 0], "short": [0]}
        run = read_run(path).run
        assert run.lengths.tolist() == [2, 2, 1]
        assert run.task_ids is not None
        assert all(len(str(task)) < 128 for task in run.task_ids)
        again = put(tmp_path / "s.jsonl", "\n".join(map(json.dumps, lines[::-1])))
        assert pkpo("passk", path, "-k", "1", "--against", again)[0] == 0

    def test_two_runs_pair_by_text_where_one_has_no_numbers(self, tmp_path: Path) -> None:
        one = put(tmp_path / "r.jsonl", '{"task_id": 2, "reward": 1}\n{"task_id": 1, "reward": 0}')
        other = put(tmp_path / "r.csv", "task_id,reward\n1,1\n2,1\n")
        code, out, _ = pkpo("passk", one, "-k", "1", "--against", other)
        assert (code, rows_of(out)[1][1]) == (0, "-50 %")
        put(tmp_path / "s.jsonl", '{"task_id": "2", "reward": 1}\n{"task_id": "1", "reward": 0}')
        code, _, err = pkpo("passk", one, "-k", "1", "--against", tmp_path / "s.jsonl")
        assert code == 2
        assert "it lacks 2, 1 and adds '2', '1'" in err


def test_either_name_of_an_option(tmp_path: Path) -> None:
    path = put(tmp_path / "r.csv", "problem,grade\na,1\na,0\n")
    for names in (("--task-key", "--reward-key"), ("--task-column", "--reward-columns")):
        code, out, _ = pkpo("passk", path, "-k", "1", names[0], "problem", names[1], "grade")
        assert (code, rows_of(out)[0][1]) == (0, "50 %")


@pytest.mark.parametrize("given", ["filter", "=a", ""])
def test_only_is_a_key_and_a_text(tmp_path: Path, given: str) -> None:
    code, _, err = pkpo("passk", tmp_path / "r.csv", "-k", "1", "--only", given)
    assert (code, err) == (2, f"pkpo: --only must be KEY=TEXT, each key once; got {given!r}\n")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Bytes("task_id,passed\na,1\na,0\n"))
    code, out, err = pkpo("passk", "-", "-k", "1", "--format", "csv")
    assert (code, rows_of(out)[0][1]) == (0, "50 %")
    assert err.startswith("standard input: one sample a line: ")
    assert "standard input: 1 tasks of 2 samples" in " ".join(out.split())


def test_a_bar_is_shown_of_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, and of nothing else: a clock that runs fast stands for the time."""
    for terminal, seconds, shown in ((True, 0.9, True), (True, 0.01, False), (False, 0.9, False)):
        console = Console(force_terminal=terminal, width=80, record=True, file=sys.stderr)
        monkeypatch.setattr(tables, "Console", lambda console=console, **_: console)
        now = iter(np.arange(0, 1000, seconds))
        monkeypatch.setattr(tables.time, "monotonic", lambda now=now: float(next(now)))
        with tables.progress("reading [a]", 10) as completed:
            for done in range(11):
                completed(done)
        text: Any = console.export_text()
        assert ("reading [a]" in text) == shown


def test_what_is_proposed_for_only_is_taken(tmp_path: Path) -> None:
    marks = '"doc_id": 1, "resps": [], "filtered_resps": [], "acc": 1'
    for value, text in (("null", "filter=null"), ('"a b"', "'filter=a b'")):
        path = put(
            tmp_path / "r.jsonl", f'{{{marks}, "filter": {value}}}\n{{{marks}, "filter": 7}}'
        )
        with pytest.raises(RolloutFileError, match=f":2: filter is 7, .*, such as --only {text}$"):
            read_run(path)
        only = dict([text.strip("'").split("=")])
        assert plain(read_rollouts(path, Options(only=only))) == {1: [1]}


def test_only_takes_days_of_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    days = [date(2026, 1, 1), date(2026, 1, 2)]
    pq.write_table(
        pa.table({"uid": ["a", "b"], "acc": [1, 0], "day": days}), tmp_path / "r.parquet"
    )
    got = read_rollouts(tmp_path / "r.parquet", Options(only={"day": "2026-01-02"}))
    assert plain(got) == {"b": [0]}
