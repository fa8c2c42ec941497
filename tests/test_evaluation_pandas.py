"""`evaluate` of what pandas holds: Series of lists are taken, and of DataFrames it says what to
pass."""

from __future__ import annotations

import pytest

from pkpo_kernels import evaluate

pd = pytest.importorskip("pandas")

TASKS = {"b": [1, 0, 0], "a": [1, 1], 7: [0, 0]}


def test_a_series_of_lists() -> None:
    series = pd.Series(TASKS)
    assert evaluate(series, [1, 2]) == evaluate(TASKS, [1, 2])
    where = pd.Series({"a": [True, False], 7: [True, True], "b": [True, True, False]})
    assert evaluate(series, 1, where=where) == evaluate(TASKS, 1, where=where.to_dict())
    # Paired by label, whatever the order.
    other = pd.Series({7: [1], "b": [0], "a": [1]})
    assert evaluate(series, 1, against=other) == evaluate(TASKS, 1, against=other.to_dict())


def test_what_it_says_to_pass_is_taken() -> None:
    rows = [(task, reward, "x") for task, rewards in TASKS.items() for reward in rewards]
    frame = pd.DataFrame(rows, columns=["task_id", "reward", "completion"]).sample(frac=1)
    with pytest.raises(TypeError) as caught:
        evaluate(frame, 1)
    assert "columns 'task_id', 'reward', 'completion': pass df.groupby(ID)[REWARD].agg(list)" in (
        str(caught.value)
    )
    grouped = frame.groupby("task_id", sort=False)["reward"].agg(list)
    result, want = evaluate(grouped, [1, 2]), evaluate(TASKS, [1, 2])
    assert [row.estimate for row in result.rows] == pytest.approx(
        [row.estimate for row in want.rows]
    )
    lists = pd.DataFrame({"id": list(TASKS), "rewards": list(TASKS.values())})
    assert evaluate(lists.set_index("id")["rewards"], 1) == evaluate(TASKS, 1)
    wide = pd.DataFrame({"s0": [1, 0], "s1": [0, 0]}, index=["a", "b"])
    assert evaluate(wide[["s0", "s1"]].to_numpy(), 1).rows[0].estimate == 0.25


def test_a_label_that_is_there_twice() -> None:
    samples = pd.Series([1, 0, 1], index=["a", "a", "b"])
    with pytest.raises(ValueError, match=r"got 'a' more than once: pass series.groupby\(level=0\)"):
        evaluate(samples, 1)
    assert evaluate(samples.groupby(level=0).agg(list), 1).rows[0].estimate == 0.75
    for frame in (pd.DataFrame({"s0": [1]}), pd.DataFrame({"s0": [True]})):
        with pytest.raises(TypeError, match="got a DataFrame of columns 's0'"):
            evaluate([[1]], 1, against=frame)
        with pytest.raises(TypeError, match="where must be a Series of lists"):
            evaluate([[1]], 1, where=frame)
