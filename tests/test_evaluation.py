"""pass@k and max@k over tasks, against exact fractions, enumeration and intervals known by hand."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from pkpo_kernels import evaluate
from pkpo_kernels.evaluation import AtK, Difference
from pkpo_kernels.evaluation.intervals import ANY, MOST_TASKS, summarize


def exact(task: list[Any], k: int) -> Fraction:
    """The mean of the best over all subsets of k."""
    subsets = list(combinations([Fraction(reward) for reward in task], k))
    return sum(map(max, subsets), Fraction(0)) / len(subsets)


def mean(values: list[Fraction]) -> float:
    return float(sum(values, Fraction(0)) / len(values))


@pytest.fixture
def ragged(rng: np.random.Generator) -> list[list[int]]:
    return [rng.integers(0, 2, n).tolist() for n in rng.integers(1, 9, 40)]


def test_pass_at_k_is_the_mean_of_the_tasks_that_have_k_samples(ragged: list[list[int]]) -> None:
    result = evaluate(ragged, range(1, 10), resamples=10)
    assert result.metric == "pass@k"
    assert (result.tasks, result.samples) == (40, (1, 8))
    for row in result.rows:
        enough = [task for task in ragged if len(task) >= row.k]
        assert (row.tasks, row.too_small) == (len(enough), 40 - len(enough))
        if enough:
            want = mean([exact(task, row.k) for task in enough])
            assert row.estimate == pytest.approx(want, rel=1e-13)
    assert result.rows[-1].k == 9
    assert math.isnan(result.rows[-1].estimate)


def test_max_at_k_of_real_rewards(rng: np.random.Generator) -> None:
    tasks = [(rng.integers(-8, 9, n) / 4).tolist() for n in rng.integers(1, 9, 40)]
    result = evaluate(tasks, [1, 3, 8], resamples=10)
    assert result.metric == "max@k"
    for row in result.rows:
        want = mean([exact(task, row.k) for task in tasks if len(task) >= row.k])
        assert row.estimate == pytest.approx(want, rel=1e-13)


def test_max_at_k_of_binary_rewards_is_pass_at_k(ragged: list[list[int]]) -> None:
    passed = evaluate(ragged, [1, 2, 5], resamples=10)
    best = evaluate(ragged, [1, 2, 5], resamples=10, metric="max@k")
    assert best.metric == "max@k"
    for one, other in zip(passed.rows, best.rows, strict=True):
        assert one.estimate == pytest.approx(other.estimate, rel=1e-13)
        assert one.bootstrap == pytest.approx(other.bootstrap, abs=0.2)


def test_pass_hat_k_is_the_chance_that_all_k_pass(ragged: list[list[int]]) -> None:
    result = evaluate(ragged, range(1, 10), resamples=10, metric="pass^k")
    assert result.metric == "pass^k"
    for row in result.rows:
        # All pass where the worst does.
        worst = [
            -exact([-reward for reward in task], row.k) for task in ragged if len(task) >= row.k
        ]
        if worst:
            assert row.estimate == pytest.approx(mean(worst), rel=1e-13, abs=1e-15)
    assert math.isnan(result.rows[-1].estimate)
    # C(999, 500)/C(1000, 500) of one that fails in a thousand.
    row = evaluate([[0] + [1] * 999] * 2, 500, resamples=10, metric="pass^k").rows[0]
    assert row.estimate == pytest.approx(0.5, rel=1e-12)


def test_every_form_of_the_same_rewards_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    jnp = pytest.importorskip("jax.numpy")
    rows = [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]
    want = evaluate(rows, [1, 2], seed=3)
    matrix = np.array(rows)
    for form in (
        matrix,
        matrix.astype(bool),
        matrix.astype(np.float32),
        tuple(matrix),
        torch.tensor(rows),
        torch.tensor(rows, dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(row) for row in rows],
        jnp.asarray(rows),
        jnp.asarray(rows, jnp.bfloat16),
        {"a": rows[0], 7: rows[1], "c": matrix[2]},
    ):
        assert evaluate(form, [1, 2], seed=3) == want


def test_where_leaves_samples_out() -> None:
    rewards = np.array([[1.0, 0, np.nan], [0, 0, 1]])
    where = np.array([[True, True, False], [True, True, True]])
    want = evaluate([[1, 0], [0, 0, 1]], [1, 2, 3]).rows
    rows = evaluate(rewards, [1, 2, 3], where=where).rows
    assert repr(rows) == repr(want)
    by_task = evaluate(
        {"a": rewards[0], "b": rewards[1]}, [1, 2, 3], where={"b": where[1], "a": where[0]}
    )
    assert repr(by_task.rows) == repr(want)
    nothing_left = evaluate(rewards, 1, where=[[False] * 3, [True] * 3])
    assert (nothing_left.rows[0].tasks, nothing_left.rows[0].too_small) == (1, 1)
    assert nothing_left.samples == (0, 3)


def test_normal_interval_by_hand() -> None:
    # The tasks' values at k=1 are 0, 1/2 and 1: mean 1/2, standard deviation (ddof 1) 1/2.
    row = evaluate([[0, 0], [0, 1], [1, 1]], 1, confidence=0.9).rows[0]
    half = NormalDist().inv_cdf(0.95) * 0.5 / math.sqrt(3)
    assert row.estimate == pytest.approx(0.5, rel=1e-14)
    assert row.normal == pytest.approx((0.5 - half, 0.5 + half), rel=1e-14)


@pytest.mark.parametrize("copies", [1, 20], ids=["task by task", "by distinct rows"])
def test_bootstrap_interval_is_the_binomial_one(copies: int) -> None:
    """Of tasks that pass always or never the resampled mean is a binomial over their number."""
    tasks = 20 * copies
    values = [[1.0]] * (tasks // 4) + [[0.0]] * (tasks - tasks // 4)
    if copies == 1:
        # Distinct rewards below the resolution of the check, so that no two tasks are alike.
        values = [[value[0] + 1e-12 * i] for i, value in enumerate(values)]
    row = evaluate(values, 1, resamples=40_000).rows[0]
    cumulative = np.cumsum(
        [math.comb(tasks, c) * 0.25**c * 0.75 ** (tasks - c) for c in range(tasks + 1)]
    )
    want = np.searchsorted(cumulative, [0.025, 0.975]) / tasks
    # A quantile of 40000 resamples may fall on the neighbouring count.
    assert row.bootstrap == pytest.approx(tuple(want), abs=1.001 / tasks)
    assert row.bootstrap[0] < 0.25 < row.bootstrap[1]


def test_bootstrap_is_repeatable(rng: np.random.Generator) -> None:
    rewards = rng.random((50, 4))
    assert evaluate(rewards, 2, seed=5) == evaluate(rewards, 2, seed=5)
    assert evaluate(rewards, 2, seed=5) != evaluate(rewards, 2, seed=6)


@pytest.mark.slow
def test_bootstrap_covers_as_promised(rng: np.random.Generator) -> None:
    hits = 0
    for seed in range(200):
        low, high = evaluate(rng.random((50, 1)), 1, resamples=400, seed=seed).rows[0].bootstrap
        hits += low <= 0.5 <= high
    assert 178 <= hits <= 199


# Wilson's interval of 20 of 20 and of 0 of 20 at 95 %: 20/(20 + z²) and z²/(20 + z²).
ALL_PASS = (20 / (20 + NormalDist().inv_cdf(0.975) ** 2), 1.0)
NONE_PASS = (0.0, 1 - ALL_PASS[0])


@pytest.mark.parametrize("metric", ["pass@k", "pass^k"])
@pytest.mark.parametrize(("reward", "want"), [(1, ALL_PASS), (0, NONE_PASS)])
def test_where_all_or_none_pass_the_interval_is_wilsons(
    metric: Any, reward: int, want: tuple[float, float]
) -> None:
    result = evaluate([[reward] * 4] * 20, [1, 4], metric=metric)
    for row in result.rows:
        assert row.estimate == reward
        assert row.bootstrap == pytest.approx(want, abs=1e-12)
        assert row.normal == pytest.approx(want, abs=1e-12)
    assert (
        "Wilson's interval replaces bootstrap at k=1, 4 and normal at k=1, 4" in (result.methods[1])
    )


def test_a_confidence_next_to_1() -> None:
    row = evaluate([[0, 1], [1, 1]], 1, confidence=1 - 2**-53).rows[0]
    assert 0 <= row.normal[0] < 0.1
    assert row.normal[1] > 0.9


def test_intervals_of_proportions_stay_within_0_and_1(rng: np.random.Generator) -> None:
    for chance in (0.001, 0.03, 0.5, 0.97, 0.999):
        for tasks in (2, 5, 40, 3000):
            passed = rng.random((tasks, 5)) < chance
            other = rng.random((tasks, 5)) < chance
            result = evaluate(passed, [1, 3, 5], against=other, resamples=50)
            for row in result.rows:
                for low, high in (row.bootstrap, row.normal):
                    assert 0 <= low < high <= 1
            assert result.difference is not None
            for row in result.difference:
                for low, high in (row.bootstrap, row.normal):
                    assert -1 <= low <= high <= 1
    # max@k is no proportion, and nothing is said of its rewards.
    assert evaluate([[0.0, 0.5], [0.5, 1.0]], 2, metric="max@k").rows[0].normal[1] > 1


def test_all_k_share_the_resamples() -> None:
    """With one draw for both, 2 · (the row at k=1) is the row at k=2, interval and all."""
    tasks = [[value, value, 0] for value in (0.0, 3.0, 6.0, 9.0, 15.0)]
    one, two = evaluate(tasks, [1, 2], resamples=300).rows
    # max@1 of (v, v, 0) is 2v/3, max@2 is v.
    assert np.multiply(one.bootstrap, 1.5) == pytest.approx(two.bootstrap, rel=1e-12)


@pytest.mark.parametrize("shape", ["even", "a few far away", "few with many samples"])
def test_many_different_tasks_are_resampled_as_if_one_by_one(
    rng: np.random.Generator, shape: str
) -> None:
    """Against every task drawn: the ends differ by no more than those of two sets of resamples."""
    tasks, resamples = 2 * MOST_TASKS, 4000
    values = rng.random((tasks, 2))
    if shape == "a few far away":
        values[:5] += 300 * rng.random((5, 1))
    present = np.ones_like(values)
    if shape == "few with many samples":
        present[40:, 1] = 0
    (first, second), (how,) = summarize(
        *(np.where(present, values, np.nan), [1, 2], 0.95),
        **{"resamples": resamples, "seed": 1, "limits": [ANY] * 2},
    )
    assert "256 tasks farthest from the mean" in how
    means = np.empty((resamples, 2))
    for i in range(resamples):
        drawn = np.bincount(rng.integers(0, tasks, tasks), minlength=tasks)
        means[i] = (drawn @ (values * present)) / (drawn @ present)
    for row, column in ((first, 0), (second, 1)):
        want = np.quantile(means[:, column], [0.025, 0.975])
        # Four standard errors of the difference of two such quantiles.
        allowed = 4 * math.sqrt(2 * 0.025 * 0.975 / resamples) / 0.058 * means[:, column].std()
        assert row.bootstrap == pytest.approx(want, abs=allowed)


def test_one_task_says_nothing_of_its_spread() -> None:
    row = evaluate([[0, 1, 1]], 1).rows[0]
    assert row.estimate == pytest.approx(2 / 3)
    assert all(map(math.isnan, (*row.bootstrap, *row.normal)))


def test_difference_is_paired() -> None:
    # Per task at k=1: 1/2 − 0, 1/2 − 1/2, 1 − 1/2; at k=3 only "c" has three samples in both.
    first = {"a": [1, 0], "b": [0, 1], "c": [1, 1, 1]}
    second = {"c": [0, 1, 0, 1], "a": [0, 0], "b": [1, 0]}
    result = evaluate(first, [1, 3], against=second)
    assert result.difference is not None
    at_1, at_3 = result.difference
    assert isinstance(at_1, Difference)
    assert isinstance(result.rows[0], AtK)
    assert at_1.estimate == pytest.approx(1 / 3)
    half = NormalDist().inv_cdf(0.975) * math.sqrt(1 / 12) / math.sqrt(3)
    assert at_1.normal == pytest.approx((1 / 3 - half, 1 / 3 + half))
    assert at_1.bootstrap == pytest.approx((0, 0.5))
    assert (at_1.tasks, at_1.too_small) == (3, 0)
    assert at_3.estimate == pytest.approx(0.0, abs=1e-15)
    assert (at_3.tasks, at_3.too_small) == (1, 2)
    assert (result.rows[1].tasks, result.rows[1].too_small) == (1, 2)


def test_the_same_run_twice_has_no_difference_and_no_spread(ragged: list[list[int]]) -> None:
    result = evaluate(ragged, 1, against=ragged)
    row = result.difference
    assert row is not None
    assert result.methods[-1].startswith("an interval without width, as at k=1, says that these")
    assert (row[0].estimate, row[0].bootstrap, row[0].normal) == (0, (0, 0), (0, 0))


def test_metric_is_chosen_over_both_runs() -> None:
    assert evaluate([[0, 1], [1, 1]], 1, against=[[0, 1], [1, 0.5]]).metric == "max@k"


def test_plain_dict_is_json() -> None:
    result = evaluate([[0, 1], [1, 1]], [1, 3], against=[[0, 0], [1, 1]])
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert plain["metric"] == "pass@k"
    assert plain["samples"] == [2, 2]
    assert plain["rows"][0]["estimate"] == 0.75
    assert plain["rows"][1] == {
        "k": 3,
        "estimate": None,
        "bootstrap": [None, None],
        "normal": [None, None],
        "tasks": 0,
        "too_small": 2,
    }
    assert plain["difference"][0]["estimate"] == 0.25
    assert evaluate([[0, 1]], 1).as_dict()["difference"] is None


def test_many_tasks(rng: np.random.Generator) -> None:
    """Memory: the draws of 10000 resamples of 20000 tasks would be 1.6 GB at once."""
    correct = rng.integers(0, 9, 20_000)
    rewards = np.arange(8) < correct[:, None]
    row = evaluate(rewards, 2).rows[0]
    want = sum(1 - Fraction(math.comb(8 - int(c), 2), 28) for c in correct) / len(correct)
    assert row.estimate == pytest.approx(float(want), rel=1e-12)
    np.testing.assert_allclose(row.bootstrap, row.normal, atol=2e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1; got 0"),
        ({"k": [1, -2]}, ValueError, r"k\[1\] must be at least 1; got -2"),
        ({"k": 1.5}, TypeError, "k must be an integer; got 1.5"),
        ({"k": True}, TypeError, "k must be an integer; got True"),
        ({"k": []}, ValueError, "k must be an integer or a sequence of at least one; got none"),
        (
            {"metric": "pass"},
            ValueError,
            r"metric must be None or one of pass@k, max@k, pass\^k; got 'pass'; did you mean",
        ),
        ({"confidence": 95}, ValueError, "confidence must be between 0 and 1; got 95"),
        ({"confidence": "0.9"}, TypeError, "confidence must be a number; got '0.9'"),
        ({"resamples": 0}, ValueError, "resamples must be at least 1; got 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0; got -1"),
        ({"seed": None}, TypeError, "seed must be an integer; got None"),
        ({"rewards": []}, ValueError, "rewards must hold at least one task; got none"),
        ({"rewards": {}}, ValueError, "rewards must hold at least one task; got none"),
        ({"rewards": [[], []]}, ValueError, "rewards must hold at least one sample"),
        ({"rewards": [1, 0]}, ValueError, r"one sequence of samples a task; got shape \(\) for"),
        ({"rewards": np.zeros(3)}, ValueError, r"\(tasks, samples\) array; got shape \(3,\)"),
        ({"rewards": "abc"}, TypeError, "got str"),
        ({"rewards": [["a"]]}, TypeError, "rewards must be numbers; got dtype <U1 in task 0"),
        (
            {"rewards": {"x": [1, None]}},
            TypeError,
            r"of task 'x' must be numbers; got None at .*\[1\]",
        ),
        ({"rewards": [[1, "a"]]}, TypeError, "numbers; got dtype <U21 in task 0"),
        ({"rewards": np.zeros((1, 2), complex)}, TypeError, "must be numbers; got dtype complex"),
        (
            {"rewards": {"x": [1, 0], "y": [0, math.nan]}},
            ValueError,
            "rewards must be finite numbers; got nan in task 'y'",
        ),
        ({"rewards": [[0.0], [], [1, math.inf]]}, ValueError, "finite numbers; got inf in task 2"),
        ({"rewards": [[0, 2]], "metric": "pass@k"}, ValueError, "metric must be 'max@k'"),
        ({"rewards": [[0, 2]], "metric": "pass^k"}, ValueError, r"got 'pass\^k'"),
        (
            {"against": [[0, 0.5]] * 2, "metric": "pass@k"},
            ValueError,
            r"rewards are not only 0 and 1 \(those of against are not\)",
        ),
        ({"where": [[1, 0], [1, 1]]}, TypeError, "where must be bool; got dtype int64 in task 0"),
        (
            {"where": np.ones((2, 3), bool)},
            ValueError,
            r"where must have the shape of rewards, \(2, 2\); got \(2, 3\)",
        ),
        ({"against": [[0, 1]]}, ValueError, "as many tasks as rewards, 2; got 1"),
        ({"against": {"a": [1]}}, TypeError, "against must be a mapping if and only if rewards"),
        (
            {"rewards": {"a": [1], "b": [0]}, "against": {"b": [1], "z": [0]}},
            ValueError,
            "against must have the tasks of rewards, but it lacks 'a' and adds 'z'",
        ),
        ({"against_where": [[True, True]] * 2}, ValueError, "against_where must come with against"),
        (
            {"rewards": {"a": [1]}, "where": {"b": [True]}},
            ValueError,
            "where must be a mapping with the tasks of rewards",
        ),
    ],
)
def test_errors_name_the_argument(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    defaults: dict[str, Any] = {"rewards": [[0, 1], [1, 1]], "k": 1}
    with pytest.raises(error, match=message):
        evaluate(**defaults | arguments)
