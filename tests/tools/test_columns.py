"""Which columns of a file are rewards: the usual ones, the chosen ones, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rollout_examples import plain, put

from pkpo_kernels.cli.columns import choose_columns
from pkpo_kernels.cli.rollout_files import Options, read_rollouts
from pkpo_kernels.cli.rollouts import RolloutFileError


class TestColumns:
    INDEX = ",task_id,s0,s1\n0,a,0,1\n1,b,1,1\n"

    def test_the_index_of_pandas_is_refused_and_no_reward(self, tmp_path: Path) -> None:
        path = put(tmp_path / "r.csv", self.INDEX)
        with pytest.raises(RolloutFileError) as caught:
            read_rollouts(path)
        assert str(caught.value) == (
            f"{path}:1: column 1 has no name, and looks like an index that pandas wrote; take out"
            " what is no reward, or choose the rewards with --reward-columns s0,s1"
        )
        got = read_rollouts(path, Options(rewards=["s0", "s1"]))
        assert plain(got) == {"a": [0, 1], "b": [1, 1]}
        assert got.columns == (
            "one task a line: tasks from task_id, rewards from s0, s1; ignored: a column without a"
            " name"
        )

    def test_a_usual_or_named_column_makes_a_file_long(self, tmp_path: Path) -> None:
        text = "task_id,sample_idx,passed\na,0,1\na,1,0\nb,0,1\n"
        path = put(tmp_path / "r.csv", text)
        got = read_rollouts(path)
        assert plain(got) == {"a": [1, 0], "b": [1]}
        assert got.columns == (
            "one sample a line: tasks from task_id, rewards from passed; ignored: sample_idx"
        )
        put(path, text.replace("passed", "verdict").replace("task_id", "problem"))
        got = read_rollouts(path, Options(task="problem", rewards=["verdict"]))
        assert plain(got) == {"a": [1, 0], "b": [1]}

    def test_what_transform_adds_is_no_reward_unless_it_is_named(self) -> None:
        names = ["task_id", "s0", "transformed", "s1"]
        assert choose_columns(names).rewards == (1, 3)
        assert choose_columns(names, reward_columns=["transformed"]).rewards == (2,)
        with pytest.raises(ValueError, match="there are no rewards beside the column 'task_id'"):
            choose_columns(["task_id", "transformed"])

    @pytest.mark.parametrize(
        "header",
        [
            "task_id,0,1,2",
            "task_id,r1,r2,r3",
            "task_id,sample_2,sample_0,sample_1",
            "s0,s1,Problem_ID,s2",
            "task_id,s0",
            "task_id," + ",".join(f"s{i:02}" for i in range(64)),
        ],
    )
    def test_families_are_wide(self, header: str) -> None:
        names = header.split(",")
        columns = choose_columns(names)
        assert columns.wide
        assert sorted([columns.task, *columns.rewards]) == list(range(len(names)))

    @pytest.mark.parametrize(
        ("header", "reason"),
        [
            ("task_id,level,s0,s1", "column 'level' is not of one family with s0, s1; take out"),
            ("task_id,s0,s1,", "column 4 has no name, and looks like an index"),
            ("index,task_id,0,1", "column 'index' looks like an index that pandas wrote"),
            ("Unnamed: 0,task_id,s0,s1", "column 'Unnamed: 0' looks like an index"),
            ("task_id,level_0", "column 'level_0' looks like an index"),
            ("task_id,level", "column 'level' is neither a usual name of rewards nor one of s0"),
            ("task_id,pass@1,pass@5", "column 'pass@1' is neither a usual name"),
            ("task_id,s0,s1,t0,t1", "column 's0' is not of one family with the rest; column 's1'"),
            ("task_id,s0,s1,t0", "column 't0' is not of one family with s0, s1"),
            ("task_id,1,5,10", "1, 5, 10 do not count up from 0 or 1"),
            ("task_id,s0,s0", "column 's0' is there 2 times"),
            ("task_id,score,passed", "there must be one column of rewards, and these could be it"),
            ("task_id,task_id,s0", "there must be one column of task ids"),
            ("task,prompt_id,s0", "there must be one column of task ids"),
            ("id,reward", "there must be a column task_id"),
        ],
    )
    def test_others_are_refused_by_name(self, header: str, reason: str) -> None:
        with pytest.raises(ValueError) as caught:
            choose_columns(header.split(","))
        assert str(caught.value).startswith(reason)

    @pytest.mark.parametrize(
        ("chosen", "reason"),
        [
            (
                ["s0", "task"],
                "--reward-columns must name a column; got 'task'; did you mean 'task_id'",
            ),
            (["s0", "s0"], "--reward-columns must name each column once; got s0, s0"),
            ([], "--reward-columns must name each column once"),
            (["task_id"], "--reward-columns must not name 'task_id', the column of task ids"),
            (["x"], "--reward-columns names x, which is there 2 times"),
        ],
    )
    def test_columns_that_cannot_be_chosen(self, chosen: list[str], reason: str) -> None:
        with pytest.raises(ValueError) as caught:
            choose_columns(["task_id", "s1", "s0", "x", "x"], reward_columns=chosen)
        assert str(caught.value).startswith(reason)

    def test_a_column_without_a_name_can_be_chosen(self) -> None:
        assert choose_columns(["task_id", "", "s0"], reward_columns=["", "s0"]).rewards == (1, 2)

    def test_what_wins_is_ignored_by_none(self) -> None:
        columns = choose_columns(["prompt_id", "score", "task_id", "Reward"])
        assert (columns.task, columns.rewards) == (2, (3,))

    def test_an_array_has_no_columns(self, tmp_path: Path) -> None:
        np.save(tmp_path / "r.npy", np.zeros((2, 3)))
        assert read_rollouts(tmp_path / "r.npy").columns == ""
        with pytest.raises(RolloutFileError, match=r"a \.npy array has no columns to be chosen"):
            read_rollouts(tmp_path / "r.npy", Options(rewards=["s0"]))
