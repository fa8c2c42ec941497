"""`pkpo transform` gives the lines of a file back, in their order and with all that they hold, each
with what its rewards were transformed to."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from command_line import pkpo, rows_of, write_jsonl
from rollout_examples import put
from test_layouts import event, lm_eval, verl
from test_sources import Bytes

from pkpo_kernels import transform
from pkpo_kernels.cli import commands, rollout_files

SAMPLES: list[dict[str, Any]] = [
    {"step": "3", "task_id": "b", "prompt": 'a "b",\nü\r', "reward": 1},
    {"step": "3", "task_id": "a", "prompt": "", "reward": 0.5},
    {"step": "3", "task_id": "b", "prompt": "x", "reward": 0},
    {"step": "3", "task_id": "a", "prompt": "y", "reward": 0.25},
    {"step": "4", "task_id": "b", "prompt": "z", "reward": 0},
]
# As they stand in the lines: of b the rewards are 1, 0, 0.
OF_B, OF_A = transform([1.0, 0, 0], 2).tolist(), transform([0.5, 0.25], 2).tolist()
TRANSFORMED = [OF_B[0], OF_A[0], OF_B[1], OF_A[1], OF_B[2]]


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records in the format of the extension."""
    text = "\n\n".join(map(json.dumps, records))
    if path.name.endswith(".gz"):
        return put(path, gzip.compress(text.encode()))
    if path.suffix == ".json":
        text = json.dumps(records, indent=1)
    if path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as file:
            table = csv.DictWriter(
                file, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ","
            )
            table.writeheader()
            table.writerows(records)
        return path
    return put(path, text)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Read the lines that were written, all as text in CSV."""
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def texts(record: dict[str, Any]) -> dict[str, str]:
    """Spell what a line holds as CSV does."""
    return {key: x if isinstance(x, str) else json.dumps(x) for key, x in record.items()}


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv"])
@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json", "r.csv", "r.tsv"])
def test_every_line_in_its_order_and_with_all_its_keys(
    tmp_path: Path, name: str, output: str
) -> None:
    path, to = written(tmp_path / name, SAMPLES), tmp_path / output
    code, out, err = pkpo("transform", path, "-k", "2", "-o", to)
    assert (code, dict(rows_of(out))["written"]) == (0, "lines with transformed")
    assert err.endswith("rewards from reward; ignored: step, prompt\n")
    lines = lines_of(to)
    assert [float(line.pop("transformed")) for line in lines] == TRANSFORMED
    if output == "o.csv":
        assert lines == [texts(record) for record in SAMPLES]
    else:
        assert lines == SAMPLES
    # What was written is read as what it was made of.
    evaluated = [pkpo("passk", file, "-k", "1,2") for file in (path, to)]
    assert rows_of(evaluated[0][1]) == rows_of(evaluated[1][1])
    assert evaluated[1][2].endswith("ignored: step, prompt, transformed\n")


def test_a_list_where_a_line_holds_a_list(tmp_path: Path) -> None:
    tasks = [
        {"uid": 7, "completions": ["x", "y"], "rewards": [1, 0]},
        {"rewards": [0.5], "uid": 8, "notes": None},
    ]
    path, to = written(tmp_path / "r.jsonl", tasks), tmp_path / "o.jsonl"
    assert pkpo("transform", path, "-k", "2", "-o", to, "--new-key", "advantages")[0] == 0
    assert lines_of(to) == [
        tasks[0] | {"advantages": transform([1.0, 0], 2).tolist()},
        tasks[1] | {"advantages": [0]},
    ]
    assert [list(line) for line in lines_of(to)][1] == ["rewards", "uid", "notes", "advantages"]
    assert pkpo("passk", to, "-k", "1")[0] == 0
    assert pkpo("transform", to, "-k", "1", "-o", tmp_path / "again.jsonl")[0] == 0


@pytest.mark.parametrize(("null", "filled"), [("drop", None), ("zero", 0.0)])
@pytest.mark.parametrize("output", ["o.jsonl", "o.csv"])
@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
def test_a_list_where_columns_are_samples_and_some_have_none(
    tmp_path: Path, name: str, output: str, null: str, filled: float | None
) -> None:
    text = "task_id,s0,s1,s2\na,1,,0\nb,0,1,1\n"
    if name == "r.jsonl":
        text = '{"task_id": "a", "s0": 1, "s1": null, "s2": 0}\n'
        text += '{"task_id": "b", "s0": 0, "s1": 1, "s2": 1}\n'
    path, to = put(tmp_path / name, text), tmp_path / output
    assert pkpo("transform", path, "-k", "1", "-o", to, "--null", null)[0] == 0
    first, second = lines_of(to)
    new = [line["transformed"] for line in (first, second)]
    there = transform([1.0, 0] if filled is None else [1.0, filled, 0], 1).tolist()
    if filled is None:
        there.insert(1, None)
    want = [there, transform([0.0, 1, 1], 1).tolist()]
    assert [json.loads(x) if output == "o.csv" else x for x in new] == want
    assert first["s1"] == ("" if output == "o.csv" else None)
    evaluated = [pkpo("passk", file, "-k", "1", "--null", null)[1] for file in (path, to)]
    assert rows_of(evaluated[0]) == rows_of(evaluated[1])


def test_samples_that_are_left_out_get_null(tmp_path: Path) -> None:
    text = '{"uid": 1, "reward": null}\n{"uid": 1, "reward": 1}\n{"uid": 1, "reward": NaN}\n'
    path, to = put(tmp_path / "r.jsonl", text + '{"uid": 1, "reward": false}'), tmp_path / "o.jsonl"
    for null, rewards in (("drop", [1.0, 0]), ("zero", [0.0, 1, 0, 0])):
        assert pkpo("transform", path, "-k", "2", "-o", to, "--null", null)[0] == 0
        new = [line["transformed"] for line in lines_of(to)]
        assert [x for x in new if x is not None] == transform(rewards, 2).tolist()
        assert (new[0] is None, new[2] is None) == (null == "drop", null == "drop")
    assert lines_of(to)[3]["reward"] is False
    path = put(tmp_path / "r.csv", "uid,reward,n\n1,NA,4\n1, 1,5\n1,true,6\n")
    assert pkpo("transform", path, "-k", "3", "-o", tmp_path / "o.csv", "--null", "drop")[0] == 2
    clipped = ("--null", "drop", "--undersized", "nan")
    put(path, path.read_text() + "2,1,7\n2,0,8\n2,1,9\n")
    assert pkpo("transform", path, "-k", "3", "-o", tmp_path / "o.csv", *clipped)[0] == 0
    assert (tmp_path / "o.csv").read_text().split("\n")[:4] == [
        *("uid,reward,n,transformed", "1,NA,4,", "1, 1,5,", "1,true,6,")
    ]


def test_only_lines_that_are_taken_come_out(tmp_path: Path) -> None:
    dump = [verl("p", 1, step=1), verl("p", 0, step=2), verl("p", 1, step=2)]
    path, to = written(tmp_path / "r.jsonl", dump), tmp_path / "o.jsonl"
    assert pkpo("transform", path, "-k", "1", "-o", to, "--only", "step=2")[0] == 0
    assert lines_of(to) == [dump[1] | {"transformed": -0.5}, dump[2] | {"transformed": 0.5}]
    log = [event(0, "t", "sampling", prompt="2 + 2?"), event(1, "t", "match", correct=True)]
    path = written(tmp_path / "log.jsonl", [*log, event(2, "t", "match", correct=False)])
    assert pkpo("transform", path, "-k", "1", "-o", to)[0] == 0
    assert lines_of(to)[0] == log[1] | {"transformed": 0.5}
    assert pkpo("passk", to, "-k", "1")[0] == 0
    path = written(
        tmp_path / "lm.jsonl", [lm_eval(1, "none", grade=1), lm_eval(1, "none", grade=0)]
    )
    assert pkpo("transform", path, "-k", "1", "-o", to)[0] == 0
    assert "rewards from grade" in pkpo("passk", to, "-k", "1")[2]


def test_what_text_cannot_hold_stays_spelled(tmp_path: Path) -> None:
    line = r'{"task_id": "a", "text": "ü \ud83d", "n": [1e5, 12345678901234567890], "reward": 1}'
    path = put(tmp_path / "r.jsonl", line + '\n{"task_id": "a", "reward": 0, "m": true}')
    for name in ("o.jsonl", "o.csv"):
        assert pkpo("transform", path, "-k", "1", "-o", tmp_path / name)[0] == 0
    first, second = lines_of(tmp_path / "o.jsonl")
    assert first == json.loads(line) | {"transformed": 0.5}
    assert second == {"task_id": "a", "reward": 0, "m": True, "transformed": -0.5}
    assert (tmp_path / "o.csv").read_text() == (
        "task_id,text,n,reward,m,transformed\n"
        'a,ü \\ud83d,"[100000.0, 12345678901234567890]",1,,0.5\n'
        "a,,,0,true,-0.5\n"
    )


def test_a_line_too_deep_to_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_deep(record: dict[str, Any]) -> None:
        # As json does for what it has read just so, some calls further up.
        raise RecursionError

    monkeypatch.setitem(rollout_files._LINE_WRITERS, ".jsonl", lambda file, keys: too_deep)
    path = put(tmp_path / "r.jsonl", '\n{"task_id": "a", "reward": 1, "x": [[[]]]}')
    code, _, err = pkpo("transform", path, "-k", "1", "-o", tmp_path / "o.jsonl")
    assert (code, err) == (2, f"pkpo: {path}:2: it is nested too deeply to be written\n")
    assert os.listdir(tmp_path) == ["r.jsonl"]


LISTS = '{"task_id": "a", "rewards": [1, 0]}\n'
REFUSED = {
    "a key that is there": (
        ("r.jsonl", '{"task_id": "a", "reward": 1}\n{"task_id": "a", "reward": 1, "x": 2}'),
        ("-o", "o.jsonl", "--new-key", "x"),
        "r.jsonl:2: --new-key must be a name that no line has; got 'x'; choose another, or take",
    ),
    "what was transformed": (
        ("r.csv", "task_id,reward,transformed\na,1,1\n"),
        ("-o", "o.csv"),
        "r.csv:2: --new-key must be a name that no line has; got 'transformed'; choose another",
    ),
    "a column twice": (
        ("r.csv", "task_id,n,reward,n\na,1,1,2\n"),
        ("-o", "o.csv"),
        "r.csv:2: column 'n' is there 2 times, and lines come out with each once; rename one",
    ),
    "lists in cells": (
        ("r.jsonl", LISTS),
        ("-o", "o.csv"),
        "o.csv: a cell holds no list of rewards: write .jsonl, or a line for each with --bare",
    ),
    "a key for no line": (
        ("r.jsonl", LISTS),
        ("-o", "o.jsonl", "--bare", "--new-key", "x"),
        "--new-key must be given only where lines come out, from and to JSON or CSV, or from Parqu",
    ),
    "a key for an array": (
        ("r.jsonl", LISTS),
        ("-o", "o.npy", "--new-key", "x"),
        "--bare; got 'x'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_transformed", None)
    (name, text), options, message = REFUSED[case]
    put(tmp_path / name, text)
    code, out, err = pkpo("transform", name, "-k", "1", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert os.listdir(tmp_path) == [name]


def test_what_cannot_be_read_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, to = tmp_path / "r.jsonl", tmp_path / "o.jsonl"
    os.mkfifo(pipe)
    for path, name in (("-", "standard input"), (pipe, str(pipe))):
        # A pipe that was opened would wait for one who writes to it.
        code, _, err = pkpo("transform", path, "-k", "1", "-o", to, "--format", "jsonl")
        assert (code, err) == (
            2,
            f"pkpo: {name}: it cannot be read twice, as it must be to write its lines with a key"
            " more: save it in a file, or write rewards alone with --bare\n",
        )
    monkeypatch.setattr(sys, "stdin", Bytes(LISTS))
    assert pkpo("transform", "-", "-k", "1", "-o", to, "--format", "jsonl", "--bare")[0] == 0
    assert lines_of(to) == [json.loads(LISTS) | {"transformed": [0.5, -0.5]}]


CHANGES: dict[str, Callable[[list[str]], list[str]]] = {
    "a sample more": lambda lines: [*lines, lines[0]],
    "a sample less": lambda lines: lines[:-1],
    "another reward": lambda lines: [lines[0].replace(": 1", ": 0"), *lines[1:]],
    "another task": lambda lines: [lines[0].replace('"b"', '"c"'), *lines[1:]],
    "another task without a reward": lambda lines: [*lines, '{"task_id": "c", "reward": null}'],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    records = [{"task_id": r["task_id"], "reward": r["reward"]} for r in SAMPLES]
    path = put(tmp_path / "r.jsonl", "\n".join(map(json.dumps, records)))
    transformed = commands._transformed

    def changing(*given: Any) -> Any:
        put(path, "\n".join(CHANGES[change](path.read_text().split("\n"))))
        return transformed(*given)

    monkeypatch.setattr(commands, "_transformed", changing)
    command = ("transform", path, "-k", "1", "-o", tmp_path / "o.jsonl", "--null", "drop")
    code, _, err = pkpo(*command)
    assert code == 2
    assert "the file has changed since it was read; it must stay as it is until all is" in err
    assert os.listdir(tmp_path) == ["r.jsonl"]


def test_a_failure_midway_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(file: Any, keys: Any) -> Callable[[dict[str, Any]], None]:
        file.write(b"half a li")
        raise OSError("No space left on device")

    monkeypatch.setitem(rollout_files._LINE_WRITERS, ".jsonl", failing)
    path, to = write_jsonl(tmp_path / "r.jsonl", {"a": [1]}), put(tmp_path / "o.jsonl", "precious")
    code, out, err = pkpo("transform", path, "-k", "1", "-o", to)
    assert (code, out, err) == (2, "", "pkpo: No space left on device\n")
    assert sorted(os.listdir(tmp_path)) == ["o.jsonl", "r.jsonl"]
    assert to.read_text() == "precious"
