"""Files of rollouts: every format, and every fault named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollout_examples import GOOD, TASKS, made, plain, put

from pkpo_kernels.cli import rollout_files
from pkpo_kernels.cli.rollout_files import Options, check_output, read_rollouts
from pkpo_kernels.cli.rollouts import RolloutFileError


class TestReading:
    def test_jsonl_of_tasks(self, tmp_path: Path) -> None:
        text = "\n".join(
            json.dumps({"task_id": task, "rewards": rewards, "model": "x"}, ensure_ascii=False)
            for task, rewards in TASKS.items()
        )
        assert plain(read_rollouts(put(tmp_path / "r.jsonl", text))) == TASKS
        assert list(plain(read_rollouts(tmp_path / "r.jsonl"))) == list(TASKS)

    def test_jsonl_of_samples_in_any_order(self, tmp_path: Path) -> None:
        samples = [("b", 0), ("a", True), ("b", 1.5), (7, -1), ("b", False)]
        text = "\r\n\r\n".join(json.dumps({"task_id": t, "reward": r}) for t, r in samples)
        got = plain(read_rollouts(put(tmp_path / "r.JSONL", "\ufeff" + text + "\n\n")))
        assert got == {"b": [0, 1.5, 0], "a": [1], 7: [-1]}
        assert list(got) == ["b", "a", 7]

    def test_csv_of_samples(self, tmp_path: Path) -> None:
        text = 'model,task_id,reward\nx,b,0\nx,"a, or\nso",TRUE\nx,b,1.5e0\n\nx,b,false\n'
        got = plain(read_rollouts(put(tmp_path / "r.csv", text)))
        assert got == {"b": [0, 1.5, 0], "a, or\nso": [1]}

    def test_jsonl_by_a_usual_name_and_by_a_named_one(self, tmp_path: Path) -> None:
        text = '{"task_id": "H/0", "completion": "x", "passed": true}\n'
        text += '{"task_id": "H/0", "passed": false, "seconds": 2}\n'
        path = put(tmp_path / "r.jsonl", text)
        got = read_rollouts(path)
        assert plain(got) == {"H/0": [1, 0]}
        assert got.columns == (
            "one sample a line: tasks from task_id, rewards from passed; ignored: completion,"
            " seconds"
        )
        put(path, '{"prompt": "p", "grades": [1, 0]}\n{"prompt": "q", "grades": [1]}\n')
        chosen = Options(task="prompt", rewards=["grades"])
        assert plain(read_rollouts(path, chosen)) == {"p": [1, 0], "q": [1]}
        put(path, '{"prompt": "p", "grades": 1}\n{"prompt": "p", "grades": 0}\n')
        assert plain(read_rollouts(path, chosen)) == {"p": [1, 0]}
        put(path, '{"task_id": "p", "a": 1, "b": null, "c": 0}\n')
        assert plain(read_rollouts(path, Options(rewards=["a", "b", "c"]))) == {"p": [1, 0]}

    def test_csv_of_tasks(self, tmp_path: Path) -> None:
        text = "task_id,s0,s1,s2\nb,0,1,1\na,,1, \n"
        got = plain(read_rollouts(put(tmp_path / "r.csv", text)))
        assert got == {"b": [0, 1, 1], "a": [1]}

    @pytest.mark.parametrize("dtype", ["bool", "int8", "float32", "float64"])
    def test_npy(self, tmp_path: Path, dtype: str) -> None:
        np.save(tmp_path / "r.npy", np.array([[0, 1, 1], [1, 0, 0]], dtype))
        got = plain(read_rollouts(tmp_path / "r.npy"))
        assert got == {"0": [0, 1, 1], "1": [1, 0, 0]}

    def test_parquet_of_tasks_and_of_samples(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "r.parquet"
        columns = {"task_id": list(TASKS), "rewards": list(TASKS.values()), "other": [1, 2, 3]}
        pq.write_table(pa.table(columns), path, row_group_size=2)
        assert plain(read_rollouts(path)) == TASKS
        pq.write_table(pa.table({"task_id": [4, 5, 4], "reward": [True, False, False]}), path)
        assert plain(read_rollouts(path)) == {4: [1, 0], 5: [0]}

    def test_no_reward_columns_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(RolloutFileError, match="must name each key once; got none"):
            read_rollouts(put(tmp_path / "r.jsonl", GOOD), Options(rewards=[]))

    def test_parquet_follows_the_rule_of_csv(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "r.parquet"
        wide = {"task_id": ["a", "b"], "s0": [0, None], "s1": [True, True]}
        pq.write_table(pa.table(wide), path)
        assert plain(read_rollouts(path)) == {"a": [0, 1], "b": [1]}
        pq.write_table(pa.table(wide | {"__index_level_0__": [7, 9]}), path)
        with pytest.raises(RolloutFileError, match="'__index_level_0__' looks like an index"):
            read_rollouts(path)
        got = read_rollouts(path, Options(rewards=["s0", "s1"]))
        assert plain(got) == {"a": [0, 1], "b": [1]}
        assert "; ignored: __index_level_0__; " in got.columns
        columns = {"task_id": ["a", "b", "a"], "sample_idx": [0, 0, 1], "passed": [1, 0, 1]}
        pq.write_table(pa.table(columns), path)
        assert plain(read_rollouts(path)) == {"a": [1, 1], "b": [0]}
        pq.write_table(pa.table({"task_id": ["a"], "level": [3], "s0": [1]}), path)
        with pytest.raises(RolloutFileError, match="'level' is not of one family with s0"):
            read_rollouts(path)

    def test_large_floats_and_what_float64_holds(self, tmp_path: Path) -> None:
        text = '{"task_id": "a", "rewards": [9007199254740992, -9007199254740992, 1e300, 0.5]}'
        rewards = {"a": [2.0**53, -(2.0**53), 1e300, 0.5]}
        assert plain(read_rollouts(put(tmp_path / "r.jsonl", text))) == rewards
        text = "task_id,s0,s1,s2,s3\na,9007199254740992,-9007199254740992,1e300,0.5\n"
        assert plain(read_rollouts(put(tmp_path / "r.csv", text))) == rewards

    def test_many_lines(self, tmp_path: Path) -> None:
        text = "".join(f'{{"task_id": "{i // 10}", "reward": {i % 2}}}\n' for i in range(20_000))
        got = read_rollouts(put(tmp_path / "r.jsonl", text))
        assert len(got.task_ids) == 2_000
        assert set(map(len, got.rewards)) == {10}
        assert sum(task.sum() for task in got.rewards) == 10_000


FAULTS: dict[str, tuple[str | bytes, str]] = {
    "empty.jsonl": ("", "{}: the file holds no tasks"),
    "blank.jsonl": ("\n \n", "{}: the file holds no tasks"),
    "mark.jsonl": (b"\xef\xbb\xbf", "{}: the file holds no tasks"),
    "blank_first.csv": ("\n\ntask_id,reward\na,x\n", "{}:4: a reward must be a number"),
    "blank_no_header.csv": ("\na,1\n", "{}:2: there must be a column task_id"),
    "broken.jsonl": (GOOD + '{"task_id"\n', "{}:2: not valid JSON: "),
    "empty_id.jsonl": (
        GOOD + '{"task_id": "", "rewards": [1]}',
        "{}:2: the task_id is empty",
    ),
    "list.jsonl": (GOOD + "\n[1]\n", "{}:3: a line must be a JSON object"),
    "no_id.jsonl": ('{"rewards": [1]}', "{}:1: there must be a key task_id, or one chosen with"),
    "no_rewards.jsonl": ('{"task_id": "a"}', "{}:1: there are no rewards beside the key 'task_id'"),
    "both.jsonl": (
        '{"task_id": "a", "rewards": [1], "reward": 1}',
        "{}:1: there must be one key of rewards, and these could be it: rewards, reward; choose",
    ),
    "key_twice.jsonl": (
        GOOD + '{"task_id": "b", "reward": 1, "reward": 0}\n',
        '{}:2: the key "reward" is there twice',
    ),
    "key_twice_within.jsonl": (
        '{"task_id": "b", "reward": 1, "more": [{"x": 1, "x": 1}]}\n',
        '{}:1: the key "x" is there twice',
    ),
    "surrogate.jsonl": (
        GOOD + '{"task_id": "\\ud800", "rewards": [1]}\n' + "broken",
        '{}:2: task_id must be Unicode text; got the lone surrogate of "\\ud800"',
    ),
    "list_of_one_sample.jsonl": (
        '{"task_id": "b", "reward": [1, 0]}',
        "{}:1: a reward must be a number; got [1, 0]",
    ),
    "mixed.jsonl": (GOOD + '{"task_id": "b", "reward": 1}', "{}:2: the file mixes lines"),
    "twice.jsonl": (
        GOOD + '{"task_id": "b", "rewards": [1]}\n' + GOOD,
        "{}:3: task_id 'a' was on line 1 already",
    ),
    "no_list.jsonl": ('{"task_id": "a", "rewards": 1}', "{}:1: rewards must be a list; got 1"),
    "none_left.jsonl": (GOOD + '{"task_id": "b", "rewards": []}', "{}:2: task 'b' has no rewards"),
    "text.jsonl": (
        GOOD + '{"task_id": "b", "rewards": [1, "0"]}',
        '{}:2: a reward must be a number; got "0"',
    ),
    "null.jsonl": ('{"task_id": "b", "reward": null}', "{}:1: a reward must be a number; got null"),
    "nested.jsonl": (
        '{"task_id": "b", "rewards": [[1]]}',
        "{}:1: a reward must be a number; got [1]",
    ),
    "huge.jsonl": (
        '{"task_id": "b", "rewards": [1' + "0" * 400 + "]}",
        "{}:1: a reward must be a number; got 1000",
    ),
    "nan.jsonl": (
        GOOD + '{"task_id": "b", "rewards": [0, NaN]}\n{"task_id": "c", "rewards": [0]}',
        "{}:2: a reward must be finite; got nan",
    ),
    "nan_first.jsonl": (
        '{"task_id": "b", "rewards": [NaN]}\n{"task_id": "c", "rewards": ["x"]}\nbroken',
        "{}:1: a reward must be finite; got nan",
    ),
    "infinite.jsonl": (
        '{"task_id": "b", "reward": 1e999}',
        "{}:1: a reward must be finite; got inf",
    ),
    "inexact.jsonl": (
        GOOD + '{"task_id": "b", "rewards": [0.5, -9007199254740993]}\n',
        "{}:2: rewards must be integers of at most 2**53 in magnitude, beyond which float64"
        " confuses neighbours; got -9007199254740993",
    ),
    "bad_id.jsonl": (
        '{"task_id": [1], "reward": 1}',
        "{}:1: task_id must be a string or a number; got [1]",
    ),
    "true_id.jsonl": ('{"task_id": true, "reward": 1}', "{}:1: task_id must be a string or a"),
    "null_id.jsonl": (GOOD + '{"task_id": null, "rewards": [1]}', "{}:2: task_id must be a string"),
    "nan_id.jsonl": ('{"task_id": NaN, "reward": 1}', "{}:1: task_id must be a string or a number"),
    "blank_id.jsonl": (GOOD + '{"task_id": " \\t", "rewards": [1]}', "{}:2: the task_id is blank"),
    "blank_id.csv": ("task_id,reward\na,1\n ,1\n", "{}:3: the task_id is blank"),
    "latin.jsonl": (GOOD.encode() + b'{"task_id": "\xe4"}', "{}:2: not UTF-8 at byte 13"),
    "empty.csv": ("", "{}: the file is empty"),
    "header_only.csv": ("task_id,reward\n", "{}: the file holds no tasks"),
    "no_header.csv": ("a,1\nb,0\n", "{}:1: there must be a column task_id, or one chosen with"),
    "alone.csv": ("task_id\na\n", "{}:1: there are no rewards beside the column 'task_id'"),
    "surrogate.csv": (b"task_id,reward\na,1\n\xed\xa0\x80,1\n", "{}:3: not UTF-8 at byte 0"),
    "text.csv": ("task_id,reward\na,1\nb,yes\n", '{}:3: a reward must be a number; got "yes"'),
    "underscore.csv": (
        "task_id,reward\na,1_0\n",
        '{}:2: a reward must be a number; got "1_0"',
    ),
    "arabic.csv": ("task_id,reward\na,٣\n", "{}:2: a reward must be a number; got "),
    "hole.csv": ("task_id,reward\na,\n", "{}:2: a reward must be a number; got null; --null drop"),
    "nan.csv": (
        "task_id,reward\na,1\nb,nan\n",
        "{}:3: a reward must be a number; got null; --null",
    ),
    "inexact.csv": (
        "task_id,reward\na,9007199254740992\na,9007199254740993\n",
        "{}:3: rewards must be integers of at most 2**53 in magnitude",
    ),
    "short.csv": ("task_id,s0,s1\na,1,0\nb,1\n", "{}:3: 2 cells where the header has 3"),
    "none_left.csv": ("task_id,s0,s1\na,,\n", "{}:2: task 'a' has no rewards"),
    "twice.csv": ("task_id,s0\na,1\na,0\n", "{}:3: task_id 'a' was on line 2 already"),
    "no_id.csv": ("task_id,reward\n,1\n", "{}:2: the task_id is empty"),
    "quote.csv": ('task_id,reward\n"a"x,1\n', "{}:2: not valid CSV: "),
    "text.npy": ("hello", "{}: not a .npy file of numbers: "),
    "rollouts.txt": (
        GOOD,
        "{}: extension must be .jsonl, .json, .csv or .tsv, each with .gz or .zst after it or not,"
        " .npy or .parquet; got '.txt'; or say --format",
    ),
    "rollouts": (GOOD, "{}: extension must be .jsonl, .json, .csv or .tsv, each with"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_by_file_and_line(tmp_path: Path, name: str) -> None:
    text, message = FAULTS[name]
    path = put(tmp_path / name, text)
    with pytest.raises(RolloutFileError) as caught:
        read_rollouts(path)
    assert str(caught.value).startswith(message.format(path))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "must hold a (tasks, samples) array; got shape (3,)"),
        (np.zeros((0, 3)), "must hold a (tasks, samples) array; got shape (0, 3)"),
        (np.array([["a"]]), "must hold numbers or bools; got dtype <U1"),
        (np.array([[0, 1], [0, np.nan]]), "a reward must be finite; got nan in task 1, sample 1"),
        (np.array([[None]]), "not a .npy file of numbers: "),
        (
            np.array([[0, 1], [0, 2**53 + 1]], np.uint64),
            "rewards must be integers of at most 2**53 in magnitude, beyond which float64 confuses"
            " neighbours; got 9007199254740993 in task 1, sample 1",
        ),
    ],
)
def test_a_fault_in_npy(tmp_path: Path, array: Any, message: str) -> None:
    path = tmp_path / "r.npy"
    np.save(path, array)
    with pytest.raises(RolloutFileError) as caught:
        read_rollouts(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1048576), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000000000000, 1), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1, ",
        None,
    ],
)
def test_what_is_no_npy(tmp_path: Path, header: bytes | None) -> None:
    head = b"PK\x03\x04" if header is None else b"\x93NUMPY\x01\x00" + bytes([len(header) + 1, 0])
    path = put(tmp_path / "r.npy", head + (header or b"") + b"\n" + b"\0" * 8)
    with pytest.raises(RolloutFileError, match=r"r\.npy: not a \.npy file of numbers: "):
        read_rollouts(path)


def test_a_longdouble_beyond_float64(tmp_path: Path) -> None:
    if np.finfo(np.longdouble).max <= np.finfo(np.float64).max:
        pytest.skip("longdouble is float64 here")
    np.save(tmp_path / "r.npy", np.array([[1, np.finfo(np.longdouble).max]]))
    # Any warning is an error in these tests.
    with pytest.raises(RolloutFileError, match="finite; got inf in task 0, sample 1"):
        read_rollouts(tmp_path / "r.npy")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "reward": [1]}, ": there must be a column task_id, or one chosen with"),
        ({"task_id": ["a", "b"], "rewards": [[1], None]}, ":2: rewards is null"),
        ({"task_id": ["a", None], "rewards": [[1], [1]]}, ":2: task_id is null"),
        ({"task_id": ["a", ""], "rewards": [[1], [1]]}, ":2: the task_id is empty"),
        (
            {"task_id": [[{"role": "user"}]], "reward": [1]},
            ": task_id must be text or numbers; got l",
        ),
        ({"task_id": [True, False], "reward": [1, 0]}, ": task_id must be text or numbers; got b"),
        ({"task_id": ["a", "b"], "reward": [1, None]}, ":2: reward is null; --null drop or zero"),
        ({"task_id": ["a", "b"], "rewards": [[1], []]}, ":2: task 'b' has no rewards"),
        ({"task_id": ["a", "a"], "rewards": [[1], [0]]}, ":2: task_id 'a' was on line 1 already"),
        ({"task_id": ["a", "b"], "rewards": [[1.0], [1.0, None]]}, ":2: a reward must be finite"),
        ({"task_id": ["a", "b"], "reward": ["x", "y"]}, ": reward must be numbers or bools; got"),
        ({"task_id": ["a", "b"], "rewards": [1, 2]}, ": rewards must be lists; got int64"),
        ({"task_id": ["a", "b"], "reward": [[1], [2]]}, ": reward must be numbers or bools; got"),
        ({"task_id": ["a", "b"], "s0": [1, 2], "s1": ["x", "y"]}, ": s1 must be numbers or bools"),
        ({"task_id": ["a", "b"], "s0": [1, None], "s1": [1, None]}, ":2: task 'b' has no rewards"),
        (
            {"task_id": ["a", "b"], "s0": [1, None], "s1": [1, 2**60]},
            ":2: rewards must be integers",
        ),
        ({"task_id": ["a", "b"], "rewards": [[1, 2], [-(2**60)]]}, ":2: rewards must be integers"),
    ],
)
def test_a_fault_in_parquet(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(RolloutFileError) as caught:
        read_rollouts(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_what_is_no_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = put(tmp_path / "r.parquet", "hello")
    with pytest.raises(RolloutFileError, match="not a Parquet file"):
        read_rollouts(path)
    pq.write_table(pa.table({"task_id": ["a"] * 99, "reward": [0.5] * 99}), path)
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises(RolloutFileError, match="not a Parquet file"):
        read_rollouts(path)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_files, "find_spec", lambda name: None)
    for act in (read_rollouts, check_output):
        with pytest.raises(ModuleNotFoundError, match=r"pip install pyarrow"):
            act(tmp_path / "r.parquet")


def test_text_in_parquet_that_is_no_utf8(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    ids = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xed\xa0\x80"]).buffers())
    pq.write_table(pa.table({"task_id": ids, "reward": [1, 1]}), tmp_path / "r.parquet")
    with pytest.raises(RolloutFileError, match=r"r\.parquet:2: task_id is not UTF-8"):
        read_rollouts(tmp_path / "r.parquet")


class TestRollouts:
    def test_padded(self) -> None:
        rewards, where = made(TASKS).padded()
        np.testing.assert_array_equal(rewards, [[0, 1, 1], [1, 0, 0], [0.5, -2, 0]])
        np.testing.assert_array_equal(where, [[1, 1, 1], [1, 0, 0], [1, 1, 0]])

    def test_ragged(self) -> None:
        assert made(TASKS).ragged
        assert not made({"a": [1.0, 0.0], "b": [0.0, 0.0]}).ragged

    @pytest.mark.parametrize("entries", [1, 4, 6, 10])
    def test_chunks_hold_every_task_once_and_fit(self, entries: int) -> None:
        lengths = [1, 1, 1, 2, 5, 1, 1, 1, 1, 3]
        tasks = made({str(i): [float(i)] * n for i, n in enumerate(lengths)})
        chunks = list(tasks.chunks(entries))
        assert [t for chunk in chunks for t in chunk.task_ids] == list(tasks.task_ids)
        for chunk in chunks:
            assert chunk.padded()[0].size <= entries or len(chunk.task_ids) == 1
        assert len(chunks) == {1: 10, 4: 5, 6: 5, 10: 4}[entries]
