"""Files that other programs write, each read as it is: a tiny one of our own in each layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rollout_examples import plain, put

from pkpo_kernels.cli.rollout_files import Options, read_rollouts
from pkpo_kernels.cli.rollouts import RolloutFileError


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def human_eval(task: int, passed: bool) -> dict[str, Any]:
    """One line of what `evaluate_functional_correctness` writes."""
    result = "passed" if passed else "failed: timed out"
    return {
        "task_id": f"HumanEval/{task}",
        "completion": "    return 1\n",
        "result": result,
        "passed": passed,
    }


def verl(prompt: str, score: float, step: int = 10, **extra: Any) -> dict[str, Any]:
    """One line of a dump of trainer.rollout_data_dir."""
    return {"input": prompt, "output": "…", "gts": "4", "score": score, "step": step, **extra}


def lm_eval(doc: int, filter: str, **metrics: float) -> dict[str, Any]:
    """One line of --log_samples."""
    return {
        "doc_id": doc,
        "doc": {"question": "2 + 2?"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": "2 + 2?"}},
        "resps": [["4"]],
        "filtered_resps": ["4"],
        "filter": filter,
        "metrics": list(metrics),
        "doc_hash": "a",
        "prompt_hash": "b",
        "target_hash": "c",
        **metrics,
    }


def event(number: int, sample: str, type: str, **data: Any) -> dict[str, Any]:
    """One event of a log of OpenAI's evals."""
    return {
        "run_id": "260101",
        "event_id": number,
        "sample_id": sample,
        "type": type,
        "data": data,
        "created_by": "",
        "created_at": "2026-01-01 00:00:00",
    }


def test_human_eval(tmp_path: Path) -> None:
    samples = [human_eval(0, True), human_eval(0, False), human_eval(1, True)]
    got = read_rollouts(put(tmp_path / "samples.jsonl_results.jsonl", lines(*samples)))
    assert plain(got) == {"HumanEval/0": [1, 0], "HumanEval/1": [1]}
    assert got.columns == (
        "one sample a line: tasks from task_id, rewards from passed; ignored: completion, result"
    )


class TestVerl:
    def test_a_dump(self, tmp_path: Path) -> None:
        # acc is a usual name as well; the reward that was trained with is the score.
        samples = [verl("p", 1.0, acc=True), verl("q", 0.0, acc=False), verl("p", -1, acc=False)]
        got = read_rollouts(put(tmp_path / "10.jsonl", lines(*samples)))
        assert plain(got) == {"p": [1, -1], "q": [0]}
        assert got.columns == (
            "a verl rollout dump, one sample a line: tasks from input, rewards from score;"
            " ignored: output, gts, step, acc"
        )

    def test_a_usual_name_of_ids_wins_over_the_prompt(self, tmp_path: Path) -> None:
        samples = [verl("p", 1, uid="u1"), verl("p", 0, uid="u2")]
        got = read_rollouts(put(tmp_path / "10.jsonl", lines(*samples)))
        assert plain(got) == {"u1": [1], "u2": [0]}

    def test_steps_are_not_taken_together(self, tmp_path: Path) -> None:
        path = put(tmp_path / "all.jsonl", lines(verl("p", 1), verl("p", 0, step=20)))
        with pytest.raises(RolloutFileError) as caught:
            read_rollouts(path)
        assert str(caught.value) == (
            f"{path}:2: step is 20, and 10 before: samples of both would be taken together; choose"
            " one, such as --only step=10"
        )
        got = read_rollouts(path, Options(only={"step": "20"}))
        assert plain(got) == {"p": [0]}
        assert got.columns.endswith("; left out by --only: 1 lines")


class TestTRL:
    TABLE: dict[str, list[Any]] = {  # noqa: RUF012
        "step": ["5", "5", "5"],
        "prompt": ["p", "q", "p"],
        "completion": ["a", "b", "c"],
        "accuracy_reward": [1.0, 0.5, None],
        "advantage": [0.5, 0.0, -0.5],
    }

    def write(self, path: Path, **columns: list[Any]) -> Path:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table(self.TABLE | columns), path)
        return path

    def test_a_completion_table(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "completions_00005.parquet")
        with pytest.raises(RolloutFileError, match=":3: accuracy_reward is null"):
            read_rollouts(path)
        got = read_rollouts(path, Options(null="zero"))
        assert plain(got) == {"p": [1, 0], "q": [0.5]}
        assert got.columns == (
            "a TRL completion table, one sample a line: tasks from prompt, rewards from"
            " accuracy_reward; ignored: step, completion, advantage; null rewards made 0: 1"
        )

    def test_of_several_rewards_one_must_be_chosen(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "c.parquet", format_reward=[1, 0, 0])
        with pytest.raises(
            RolloutFileError,
            match="these could be it: accuracy_reward, format_reward; choose it with",
        ):
            read_rollouts(path)
        got = read_rollouts(path, Options(rewards=["format_reward"]))
        assert plain(got) == {"p": [1, 0], "q": [0]}

    def test_steps_are_not_taken_together(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "c.parquet", step=["5", "5", "6"], accuracy_reward=[1, 0, 0])
        with pytest.raises(RolloutFileError, match=r':3: step is "6", and "5" before: .*step=5$'):
            read_rollouts(path)
        assert plain(read_rollouts(path, Options(only={"step": "6"}))) == {"p": [0]}


class TestLmEval:
    def test_samples(self, tmp_path: Path) -> None:
        samples = [lm_eval(0, "none", exact_match=1.0), lm_eval(1, "none", exact_match=0.0)]
        got = read_rollouts(put(tmp_path / "samples_gsm8k.jsonl", lines(*samples)))
        assert plain(got) == {0: [1], 1: [0]}
        assert got.columns.startswith(
            "lm-eval samples, one sample a line: tasks from doc_id, rewards from exact_match;"
        )

    def test_filters_are_not_samples(self, tmp_path: Path) -> None:
        samples = [lm_eval(i, f, exact_match=i) for i in (0, 1) for f in ("strict", "flexible")]
        path = put(tmp_path / "samples_gsm8k.jsonl", lines(*samples))
        with pytest.raises(RolloutFileError, match=r':2: filter is "flexible", and "strict" befor'):
            read_rollouts(path)
        assert plain(read_rollouts(path, Options(only={"filter": "flexible"}))) == {0: [0], 1: [1]}

    def test_of_several_metrics_the_usual_one_or_the_chosen(self, tmp_path: Path) -> None:
        path = put(tmp_path / "s.jsonl", lines(lm_eval(0, "none", acc=1.0, acc_norm=0.0)))
        assert plain(read_rollouts(path)) == {0: [1]}
        assert plain(read_rollouts(path, Options(rewards=["acc_norm"]))) == {0: [0]}
        put(path, lines(lm_eval(0, "none", em=1.0, f1=0.0)))
        with pytest.raises(RolloutFileError, match="could be it: em, f1; choose it with --reward"):
            read_rollouts(path)


def test_live_code_bench(tmp_path: Path) -> None:
    problems = [
        {
            "question_title": "A",
            "question_content": "…\n",
            "platform": "atcoder",
            "question_id": f"abc30{i}_a",
            "contest_id": f"abc30{i}",
            "contest_date": "2023-05-06T00:00:00",
            "starter_code": "",
            "difficulty": "easy",
            "output_list": ["…"] * 3,
            "code_list": ["…"] * 3,
            "graded_list": graded,
            "pass@1": sum(graded) / 3,
            "metadata": ["{}"] * 3,
        }
        for i, graded in enumerate([[True, False, False], [True, True, True]])
    ]
    path = put(tmp_path / "Scenario.codegeneration_3_0.2_eval_all.json", json.dumps(problems))
    got = read_rollouts(path)
    assert plain(got) == {"abc300_a": [1, 0, 0], "abc301_a": [1, 1, 1]}
    assert got.columns.startswith(
        "LiveCodeBench's graded generations, one task a line: tasks from question_id, rewards from"
        " graded_list; ignored: question_title,"
    )


class TestOpenAIEvals:
    SPEC: dict[str, Any] = {"spec": {"completion_fns": ["m"], "eval_name": "t.dev.v0"}}  # noqa: RUF012
    REPORT: dict[str, Any] = {"final_report": {"accuracy": 0.5}}  # noqa: RUF012

    def test_matches(self, tmp_path: Path) -> None:
        events = [
            event(0, "t.dev.0", "sampling", prompt="2 + 2?", sampled=["4"]),
            event(1, "t.dev.0", "match", correct=True, expected="4", picked="4"),
            event(2, "t.dev.1", "match", correct=False, expected="4", picked=None),
            event(3, "t.dev.1", "metrics", score=1.0),
            event(4, "t.dev.0", "match", correct=False, expected="4", picked="5"),
        ]
        path = put(tmp_path / "log.jsonl", lines(self.SPEC, self.REPORT, *events))
        got = read_rollouts(path)
        assert plain(got) == {"t.dev.0": [1, 0], "t.dev.1": [0]}
        assert got.columns == (
            "an OpenAI evals log, one sample a line: tasks from sample_id, rewards from correct;"
            " nothing ignored; events taken: match; left out: spec, final_report, sampling, metrics"
        )

    def test_scores_of_a_graders_metrics(self, tmp_path: Path) -> None:
        events = [event(i, f"t.{i}", "metrics", choice="B", score=i / 2) for i in range(2)]
        got = read_rollouts(put(tmp_path / "log.jsonl", lines(self.SPEC, *events)))
        assert plain(got) == {"t.0": [0], "t.1": [0.5]}

    def test_a_log_without_grades_holds_no_tasks(self, tmp_path: Path) -> None:
        path = put(tmp_path / "log.jsonl", lines(self.SPEC, event(0, "t.0", "sampling", prompt="")))
        reason = "the file holds no tasks; events taken: none; left out: spec, sampling$"
        with pytest.raises(RolloutFileError, match=reason):
            read_rollouts(path)


def test_a_missing_key_lists_those_that_are_there(tmp_path: Path) -> None:
    path = put(tmp_path / "r.jsonl", '{"problem": "p", "grade": 1}\n')
    for options, message in (
        (Options(), "must be a key task_id, or one chosen with --task-key; got problem, grade"),
        (Options(task="id"), "--task-key must name a key; got 'id'; there are problem, grade"),
        (
            Options(task="problem", rewards=["reward"]),
            "--reward-key must name a key; got 'reward'; there are problem, grade",
        ),
        (Options(only={"step": "1"}, task="problem", rewards=["grade"]), "--only must name one of"),
    ):
        with pytest.raises(RolloutFileError, match=message):
            read_rollouts(path, options)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"task_id": 1, "score": 0}', "the key of rewards is 'score' here, and 'reward' on lines"),
        ('{"uid": 1, "reward": 0}', "the key of task ids is 'uid' here, and 'task_id' on lines"),
    ],
)
def test_one_key_has_the_rewards_of_all_lines(tmp_path: Path, second: str, message: str) -> None:
    path = put(tmp_path / "r.jsonl", '{"task_id": 1, "reward": 0.5}\n' + second)
    with pytest.raises(RolloutFileError, match=f":2: {message} before; choose one with --"):
        read_rollouts(path)
    path = put(path, '{"task_id": 1, "score": 0.5}\n{"task_id": 1, "score": 0, "reward": 1}')
    assert plain(read_rollouts(path, Options(rewards=["score"]))) == {1: [0.5, 0]}


@pytest.mark.parametrize("task", ["task_id", "problem_id", "example_id", "question_id", "uid"])
@pytest.mark.parametrize("reward", ["reward", "score", "passed", "correct", "acc", "resolved"])
def test_usual_names(tmp_path: Path, task: str, reward: str) -> None:
    path = put(tmp_path / "r.csv", f"{task},seconds,{reward}\na,3,1\na,4,0\n")
    got = read_rollouts(path)
    assert plain(got) == {"a": [1, 0]}
    assert got.columns == (
        f"one sample a line: tasks from {task}, rewards from {reward}; ignored: seconds"
    )
