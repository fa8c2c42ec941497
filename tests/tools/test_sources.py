"""Where rollouts come from: compressed files, lists of objects, tabs, standard input; how far they
are read is told, and no more of them is held than is needed."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollout_examples import plain, put

from pkpo_kernels.cli import sources
from pkpo_kernels.cli.formats import json as json_format
from pkpo_kernels.cli.rollout_files import Options, read_rollouts, read_run
from pkpo_kernels.cli.rollouts import RolloutFileError

TASKS = {"a": [0.0, 1.0], "b": [1.0]}
JSONL = '{"task_id": "a", "rewards": [0, 1]}\n{"task_id": "b", "rewards": [1]}\n'
CSV = "task_id,reward\na,0\na,1\nb,1\n"


class Bytes:
    """Standard input that holds these bytes."""

    def __init__(self, content: str) -> None:
        self.buffer = io.BytesIO(content.encode())


class TestCompressed:
    @pytest.mark.parametrize(("name", "text"), [("r.jsonl.gz", JSONL), ("r.CSV.GZ", CSV)])
    def test_gz(self, tmp_path: Path, name: str, text: str) -> None:
        path = put(tmp_path / name, gzip.compress(text.encode()))
        assert plain(read_rollouts(path)) == TASKS

    def test_a_gz_that_ends_too_early(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        whole = gzip.compress("".join(f"{x}\n" for x in rng.random(10_000)).encode())
        path = put(tmp_path / "r.csv.gz", whole[: len(whole) // 2])
        with pytest.raises(RolloutFileError, match=r"r\.csv\.gz: not a whole \.gz file: "):
            read_rollouts(path, Options(task="x"))
        with pytest.raises(RolloutFileError, match=r"not a whole \.gz file: Not a gzipped file"):
            read_rollouts(put(tmp_path / "r.csv.gz", CSV))

    def test_zst(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        with pa.output_stream(tmp_path / "r.jsonl.zst", compression="zstd") as file:
            file.write(JSONL.encode())
        assert plain(read_rollouts(tmp_path / "r.jsonl.zst")) == TASKS
        path = put(tmp_path / "r.csv.zst", CSV)
        with pytest.raises(RolloutFileError, match=r"r\.csv\.zst: not a whole \.zst file: "):
            read_rollouts(path)

    @pytest.mark.parametrize("module", sources._ZST_READERS)
    def test_a_zst_of_several_frames_and_one_that_is_cut_off(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
    ) -> None:
        pytest.importorskip(module)
        pa = pytest.importorskip("pyarrow")
        reader = sources._ZST_READERS[module]
        monkeypatch.setattr(sources, "_ZST_READERS", {module: reader})
        codec = pa.Codec("zstd")
        frames = [codec.compress(text.encode(), asbytes=True) for text in JSONL.splitlines(True)]
        path = put(tmp_path / "r.jsonl.zst", b"".join(frames))
        assert plain(read_rollouts(path)) == TASKS
        put(path, b"".join(frames)[:-4])
        with pytest.raises(RolloutFileError, match=r"r\.jsonl\.zst: not a whole \.zst file: "):
            read_rollouts(path)

    def test_zst_without_a_reader(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "_ZST_READERS", {"no_such_module": None})
        with pytest.raises(ModuleNotFoundError, match=r"\.zst needs a reader; pip install zst"):
            read_rollouts(put(tmp_path / "r.csv.zst", ""))

    def test_what_must_be_a_plain_file(self, tmp_path: Path) -> None:
        path = put(tmp_path / "r.npy.gz", "")
        with pytest.raises(RolloutFileError, match=r"a \.gz file must be one of jsonl, json, csv"):
            read_rollouts(path)


def test_what_is_no_utf8_may_be_known_by_its_beginning(tmp_path: Path) -> None:
    for content, hint in (
        (CSV.encode("utf-16"), "it is UTF-16: convert it, such as with iconv"),
        (gzip.compress(CSV.encode()), "it is compressed: unpack it by gunzip, or end its name"),
    ):
        with pytest.raises(
            RolloutFileError, match=rf":1: not UTF-8 at byte \d of the line; {hint}"
        ):
            read_rollouts(put(tmp_path / "r.csv", content))


class TestStandardInput:
    @pytest.mark.parametrize(("format", "text"), [("jsonl", JSONL), ("csv", CSV)])
    def test_it_is_read(self, monkeypatch: pytest.MonkeyPatch, format: str, text: str) -> None:
        monkeypatch.setattr(sys, "stdin", Bytes(text))
        assert plain(read_rollouts("-", format=format)) == TASKS

    def test_faults_name_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", Bytes(CSV + "c,x\n"))
        with pytest.raises(RolloutFileError, match=r"^standard input:5: a reward must be a numb"):
            read_rollouts("-", format="csv")

    def test_its_format_must_be_named(self) -> None:
        with pytest.raises(RolloutFileError, match="standard input needs --format, such as"):
            read_rollouts("-")
        with pytest.raises(ValueError, match="--format must be one of jsonl, json, csv"):
            read_rollouts("-", format="xml")
        with pytest.raises(RolloutFileError, match="standard input must be one of jsonl"):
            read_rollouts("-", format="parquet")

    def test_it_may_be_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(RolloutFileError, match="standard input: it is closed"):
            read_rollouts("-", format="csv")


class TestJson:
    def test_a_list(self, tmp_path: Path) -> None:
        records = [{"task_id": task, "rewards": rewards} for task, rewards in TASKS.items()]
        for text in (json.dumps(records), json.dumps(records, indent=2), "\ufeff [ ] "):
            path = put(tmp_path / "r.json", text)
            if text.endswith("] "):
                with pytest.raises(RolloutFileError, match="the file holds no tasks"):
                    read_rollouts(path)
            else:
                assert plain(read_rollouts(path)) == TASKS

    @pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
    def test_in_pieces_of_any_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
    ) -> None:
        """Objects, numbers, escapes and letters of several bytes are cut wherever it falls."""
        monkeypatch.setattr(json_format, "_PIECE", piece)
        tasks = {f'{i} "ü\U0001f600\\': [i / 7, -1e-300, True][: i % 3 + 1] for i in range(20)}
        records = [{"task_id": task, "rewards": rewards} for task, rewards in tasks.items()]
        for ascii in (True, False):
            text = json.dumps(records, indent=1, ensure_ascii=ascii)
            got = read_rollouts(put(tmp_path / "r.json", text))
            assert plain(got) == tasks

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", ": must hold a list of JSON objects; got nothing"),
            (JSONL, ": must hold a list of JSON objects; got {; for one object a line, say --form"),
            ("[\n1]", ":2: an element must be a JSON object"),
            ('[{"task_id": "a", "reward": 1}\n,\n{"task_id": "a" "reward": 1}]', ":3: not valid J"),
            ('[{"task_id": "a", "reward": 1}\n {}]', ":2: not valid JSON: , or ] must follow; got"),
            ('[{"task_id": "a", "reward": 1},', ":1: not valid JSON: "),
            (f'[\n{{"task_id": "a", "reward": {"9" * 5000}}}]', ":2: not valid JSON: Exceeds the"),
            ('[{"task_id": "a", "reward": 1}', ":1: not valid JSON: , or ] must follow; got the e"),
            ('[{"task_id": "a", "reward": 1}]\n x', ":2: not valid JSON: more after the list: x"),
            ('[{"task_id": "a", "task_id": 1}]', ':1: the key "task_id" is there twice'),
            ('[\n\n{"task_id": "a", "reward": "x"}]', ':3: a reward must be a number; got "x"'),
        ],
    )
    def test_faults_are_named_by_line(self, tmp_path: Path, text: str, message: str) -> None:
        path = put(tmp_path / "r.json", text)
        with pytest.raises(RolloutFileError) as caught:
            read_rollouts(path)
        assert str(caught.value).startswith(f"{path}{message}")


def test_tabs(tmp_path: Path) -> None:
    path = put(tmp_path / "r.tsv", CSV.replace(",", "\t"))
    assert plain(read_rollouts(path)) == TASKS
    put(path, 'task_id\treward\n"a"x\t1\n')
    with pytest.raises(RolloutFileError, match=":2: not valid TSV: "):
        read_rollouts(path)


def test_cells_that_are_not_used_may_be_long(tmp_path: Path) -> None:
    text = f"task_id,completion,reward\na,{'x' * 200_000},1\na,,0\n"
    for name, content in (("r.csv", text), ("r.tsv", text.replace(",", "\t"))):
        assert plain(read_rollouts(put(tmp_path / name, content))) == {"a": [1, 0]}


def test_a_format_that_is_named_wins_over_the_extension(tmp_path: Path) -> None:
    assert plain(read_rollouts(put(tmp_path / "r.log", JSONL), format="jsonl")) == TASKS


class TestMemory:
    """What is held of a file: ids, and of a sample 8 bytes, or nothing where it passes or fails."""

    def test_passes_are_counted(self, tmp_path: Path) -> None:
        text = "".join(f'{{"task_id": {i % 5}, "reward": {i % 3 // 2}}}\n' for i in range(30_000))
        run = read_run(put(tmp_path / "r.jsonl", text)).run
        assert run.task_ids == (0, 1, 2, 3, 4)
        assert run.lengths.tolist() == [6000] * 5
        assert run.correct is not None
        assert run.correct.tolist() == [2000] * 5

    @pytest.mark.parametrize("one_sample_a_line", [True, False])
    def test_a_reward_between_comes_late(self, tmp_path: Path, one_sample_a_line: bool) -> None:
        """Then what was counted until there is spread out again."""
        rng = np.random.default_rng(0)
        rewards = rng.integers(0, 2, (3000, 7)).astype(float)
        rewards[2900:] = rng.random((100, 7))
        if one_sample_a_line:
            # The samples of all tasks in turn.
            records: list[Any] = [
                {"task_id": i, "reward": rewards[i, j]} for j in range(7) for i in range(3000)
            ]
        else:
            records = [{"task_id": i, "rewards": row.tolist()} for i, row in enumerate(rewards)]
        path = put(tmp_path / "r.jsonl", "".join(json.dumps(one) + "\n" for one in records))
        got = read_run(path)
        assert got.run.correct is None
        tasks = rng.permutation(3000)
        np.testing.assert_array_equal(
            np.sort(got.run.rows(tasks), axis=1), np.sort(rewards[tasks], axis=1)
        )
        # Where the order is wanted it stays.
        np.testing.assert_array_equal(np.stack(read_rollouts(path).rewards), rewards)
        assert got.not_binary == (rewards[2900, 0], 2901)

    def test_npy_and_parquet_come_in_pieces(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pkpo_kernels.cli.formats import npy, parquet

        rewards = np.random.default_rng(0).random((50, 3))
        np.save(tmp_path / "r.npy", rewards)
        monkeypatch.setattr(npy, "_ENTRIES", 10)
        np.testing.assert_array_equal(np.stack(read_rollouts(tmp_path / "r.npy").rewards), rewards)
        rewards[40, 1] = np.nan
        np.save(tmp_path / "r.npy", rewards)
        with pytest.raises(RolloutFileError, match="got nan in task 40, sample 1"):
            read_rollouts(tmp_path / "r.npy")
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        monkeypatch.setattr(parquet, "_ROWS", 8)
        rewards[40, 1] = 0
        table = {"task_id": [*range(50)], "rewards": rewards.tolist(), "completion": ["x"] * 50}
        pq.write_table(pa.table(table), tmp_path / "r.parquet")
        got = read_rollouts(tmp_path / "r.parquet")
        np.testing.assert_array_equal(np.stack(got.rewards), rewards)
        # Of long lists fewer: a row has 24 bytes of rewards, and more as it is written.
        metadata = pq.ParquetFile(tmp_path / "r.parquet").metadata
        monkeypatch.setattr(parquet, "_BYTES", 100)
        assert parquet._rows_at_a_time(metadata, {"task_id"}) == 8
        assert 1 < parquet._rows_at_a_time(metadata, {"rewards"}) < 5
        table["task_id"][33] = 7
        pq.write_table(pa.table(table), tmp_path / "r.parquet")
        with pytest.raises(RolloutFileError, match=":34: task_id 7 was on line 8 already"):
            read_rollouts(tmp_path / "r.parquet")


def test_how_far_a_file_is_read_is_told(tmp_path: Path) -> None:
    text = "".join(f'{{"task_id": "{i}", "rewards": [{i}]}}\n' for i in range(20_000))
    for name, content in (("r.jsonl", text.encode()), ("r.jsonl.gz", gzip.compress(text.encode()))):
        path = put(tmp_path / name, content)
        told: list[float] = []
        read_rollouts(path, progress=told.append)
        assert told == sorted(told)
        assert len(told) > 30
        assert 0 < told[0] < len(content) / 2
        assert told[-1] == len(content)
