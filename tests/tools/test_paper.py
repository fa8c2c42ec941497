"""The paper's experiments in their quick forms: what they show there, and that they say so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("optax")

from typer.testing import CliRunner

import pkpo_kernels as pk
from bench.paper import __main__ as command
from bench.paper import policies, tables, toy
from bench.paper.claims import Claim, Outcome
from bench.paper.runs import KS
from bench.readme_tables import PAPER_TABLES, filled
from bench.records import read_table
from pkpo_kernels.maths import reference


def quickly(name: str, out: Path, seeds: int) -> dict[str, float]:
    """Run an experiment as a user does: → what it found, by claim."""
    given = [name, "--quick", "--seeds", str(seeds), "--out", str(out)]
    done = CliRunner().invoke(command.app, given)
    assert done.exit_code == 0, done.output
    claims = read_table(out / f"{name}-claims.csv")
    assert all(row["commit"] and row["versions"] and row["form"] == "quick" for row in claims)
    assert all(path.stat().st_size < 100_000 for path in out.glob("*.png"))
    return {row["claim"]: float(row["found"]) for row in claims}


# ---- toy ---------------------------------------------------------------------------------------


def test_toy(tmp_path: Path) -> None:
    found = quickly("toy", tmp_path, seeds=1)
    assert [found[f"θ where max@{k} is largest"] for k in KS] == pytest.approx(toy.OPTIMA, abs=5e-4)
    assert found[next(what for what in found if what.startswith("unbiased"))] < 4.5
    for k in (2, 4, 8):
        assert found[f"lowest variance: the next, of it, at θ=1, n=16, k={k}"] > 1.3
    assert found["that of s, of it"] > 20 > found["that of sloo, of it"] > 2
    assert found["k = n: off the partitioned form"] < 1e-9
    rows = read_table(tmp_path / "toy.csv")
    head, *lines = tables.variance_table(rows)
    assert len(lines) == len(toy.THETAS) * len(KS) and {len(line) for line in lines} == {len(head)}
    assert all(float(row["combined"]) < 1.001 * float(row["sloo_minus_one"]) for row in rows)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "toy-effective-rewards.png",
        "toy-objective.png",
        "toy-variance-k.png",
        "toy-combined.png",
    }


def test_an_estimator_that_is_biased_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"naive partitioned": lambda g, k: g / g.shape[1]}
    monkeypatch.setattr(toy, "PARTITIONED", toy.PARTITIONED | wrong)
    (row,) = toy.measure(16, (4,), 0.9, 2000, 0)
    assert row["z"] > 10


def test_partitioned_estimators_are_their_definitions(rng: np.random.Generator) -> None:
    g = rng.random((3, 6))
    halves = np.stack([g[:, :3], g[:, 3:]], axis=1)
    best = halves.max(-1)
    np.testing.assert_allclose(
        toy.naive_partitioned_baselined(g, 3),
        np.repeat(best - best[:, ::-1], 3, axis=1) / 2,
        atol=1e-15,
    )
    for row, parts in zip(toy.loo_minus_one_partitioned(g, 3), halves, strict=True):
        want = np.concatenate([reference.enumerate_sloo_minus_one(part, 3) for part in parts]) / 2
        np.testing.assert_allclose(row, want, atol=1e-15)


@pytest.mark.parametrize("k", [2, 3])
def test_ours_are_s_less_one_baseline(rng: np.random.Generator, k: int) -> None:
    g = rng.random((4, 7))
    rho = dict(enumerate(toy.baselines(g), start=1))
    for estimator, less in (
        ("sloo_minus_one", k / 7 * rho[k - 1]),
        ("sloo", k / 6 * rho[k]),
        ("centered", k / 7 * rho[k]),
    ):
        want = pk.transform(g, k, estimator="s") - less
        np.testing.assert_allclose(pk.transform(g, k, estimator=estimator), want, atol=1e-14)


# ---- policies ----------------------------------------------------------------------------------


def test_policies(tmp_path: Path) -> None:
    policies.train.clear_cache()
    found = quickly("policies", tmp_path, seeds=1)
    # One program for each kind of tasks, with all its schedules.
    assert policies.train._cache_size() == 2
    assert found["pass@k is best where k was trained for: least lead"] > 0
    assert found["entropy rises with k: least step"] > 0
    assert found["pass@16: k=16 less k=1"] > 0.2
    assert found["pass@1: k=4 less k=1"] > 0.05
    assert found["8→1 less k=1: least gain, pass@1 to pass@16"] > 0.1
    rows = read_table(tmp_path / "policies.csv")
    assert len(rows) == len(KS) + len(KS) + 1
    assert all(0 < float(row["pass_1"]) < float(row["pass_16"]) <= 1 for row in rows)


@pytest.mark.slow
def test_a_seed_gives_the_same_again() -> None:
    policies.train.clear_cache()
    first, again = (policies.ambiguous(2, quick=True).rows for _ in range(2))
    assert first == again
    assert policies.train._cache_size() == 1


@pytest.mark.parametrize("k", [1, 2, 5])
def test_no_policy_is_better_than_the_best(rng: np.random.Generator, k: int) -> None:
    p = rng.dirichlet(np.full(6, 0.5), 4)
    p[0, 3:] = 0

    def value(q: Any) -> Any:
        return (p * (1 - (1 - q) ** k)).sum(-1)

    best = policies.best_policy(p, k)
    np.testing.assert_allclose(best.sum(-1), 1)
    for _ in range(200):
        other = rng.dirichlet(np.full(6, 0.5), 4)
        for share in (1.0, 0.01):
            assert np.all(value((1 - share) * best + share * other) <= value(best) + 1e-12)


# ---- README ------------------------------------------------------------------------------------


def test_readme_and_the_results_agree() -> None:
    text = tables.README.read_text()
    assert filled(text, tables.RESULTS, PAPER_TABLES) == text, "run make readme-tables"
    assert all(f"<!-- results: {name} -->" in text for name in command.EXPERIMENTS)
    plots = re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE)
    assert len(plots) >= 6
    for plot in plots:
        assert (tables.README.parent / plot).stat().st_size < 100_000


@pytest.mark.parametrize("name", command.EXPERIMENTS)
def test_what_is_kept_is_whole(name: str) -> None:
    claims = read_table(tables.RESULTS / f"{name}-claims.csv")
    assert {(claim["form"], claim["holds"]) for claim in claims} == {("full", "yes")}
    rows = read_table(tables.RESULTS / f"{name}.csv")
    assert 0 < len(rows) <= 150
    assert {int(row["seed"]) for row in rows} == set(range(command.SEEDS[name]))
    assert all(row[it] for row in rows for it in ("device", "date", "commit", "versions"))


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
def test_a_claim_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    claims = [Claim("5.1", "it is large", 1.0, 0.5), Claim("5.1", "it is small", 1.0, most=0.5)]
    monkeypatch.setattr(toy, "run", lambda *given: Outcome([{"x": 1}], claims, {}))
    given = ["toy", "--out", str(tmp_path), *(["--quick"] if quick else [])]
    done = CliRunner().invoke(command.app, given)
    assert done.exit_code == (0 if quick else 1)
    assert ("does not hold: it is small" in done.output) is not quick
    held = [row["holds"] for row in read_table(tmp_path / "toy-claims.csv")]
    assert held == ["yes", "NO"]


def test_nan_holds_nowhere() -> None:
    assert not Claim("5.1", "a figure", float("nan"), -1, 1).holds


def test_what_stays_level_does_not_rise() -> None:
    held = [Claim("5.2.1", "least step", step, 0, strict=True).holds for step in (-0.1, 0, 0.1)]
    assert held == [False, False, True]


# ---- the command -------------------------------------------------------------------------------


def test_an_interrupted_run_leaves_a_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> Outcome:
        raise KeyboardInterrupt

    (tmp_path / "toy.csv").write_text("of the last run")
    monkeypatch.setattr(toy, "run", interrupted)
    done = CliRunner().invoke(command.app, ["toy", "--out", str(tmp_path)])
    assert done.exit_code != 0
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of the last run"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["toi"], "No such command 'toi'"),
        (["toy", "--seeds", "0"], "'--seeds'"),
        (["toy", "--out", __file__], "is a file"),
        (["toy", "--out", f"{__file__}/results"], "--out must be a folder"),
    ],
)
def test_bad_arguments_are_told(given: list[str], told: str) -> None:
    done = CliRunner().invoke(command.app, given, env={"TERM": "dumb", "COLUMNS": "400"})
    assert done.exit_code == 2 and told in done.output
