"""Section 5.2 with a transformer: programs for strings, learned from examples, then from rewards.

A task is a string and what a hidden program of two or three operations makes of it; the answer is a
program of three, "identity" among them, and it passes if it treats unseen strings as the hidden one
does. One example does not tell which program is meant: the best answer to it stays uncertain. The
policy first learns programs for strings (supervised), then it is trained for pass@k on a pool of
tasks, and judged on the pool and on tasks that are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.paper import figures
from bench.paper.claims import Claim, Outcome
from bench.paper.reinforce import Tasks, runs
from bench.paper.runs import KS, SWITCHED, Curves, constant, switched
from bench.paper.transformer import Params, Shape, init, supervise
from bench.records import Row

LETTERS, SIZE, LENGTH = 5, 5, 3
POOL, HELD_OUT, EXAMPLES = 1024, 512, 20_000
LR, OTHER_RATES = 1e-3, (3e-4, 3e-3)

Strings = NDArray[np.integer[Any]]  # (…, SIZE), of letters


def _places(order: Sequence[int]) -> Callable[[Strings], Strings]:
    return lambda x: x[..., list(order)]


def _letters(new: Sequence[int]) -> Callable[[Strings], Strings]:
    return lambda x: np.array(new)[x]


OPERATIONS: dict[str, Callable[[Strings], Strings]] = {
    "identity": lambda x: x,
    "reverse": _places([4, 3, 2, 1, 0]),
    "rotate": _places([4, 0, 1, 2, 3]),
    "swap_ends": _places([4, 1, 2, 3, 0]),
    "swap_first": _places([1, 0, 2, 3, 4]),
    "evens_odds": _places([0, 2, 4, 1, 3]),
    "repeat_first": _places([0, 0, 1, 2, 3]),
    "sort": lambda x: np.sort(x, -1),
    "next": _letters([1, 2, 3, 4, 0]),
    "mirror": _letters([4, 3, 2, 1, 0]),
    "double": _letters([0, 2, 4, 1, 3]),
    "swap_01": _letters([1, 0, 2, 3, 4]),
}
SHAPE = Shape(prompt_tokens=2 * LETTERS, prompt=2 * SIZE, tokens=len(OPERATIONS), length=LENGTH)
# All answers in the order of their index.
PROGRAMS = np.array(list(product(range(len(OPERATIONS)), repeat=LENGTH)))


def execute(program: Iterable[int], x: Strings) -> Strings:
    """Apply operations one after the other to strings (…, SIZE).

    >>> names = list(OPERATIONS)
    >>> program = [names.index(name) for name in ("reverse", "next", "identity")]
    >>> execute(program, np.array([0, 1, 2, 3, 4])).tolist()
    [0, 4, 3, 2, 1]
    """
    operations = list(OPERATIONS.values())
    for operation in program:
        x = operations[operation](x)
    return x


class Made(NamedTuple):
    """Tasks and the programs (tasks, LENGTH) behind them."""

    tasks: Tasks
    hidden: Any


def tasks_of(count: int, seed: int, least: int, most: int = LENGTH) -> Made:
    """Make tasks of hidden programs of least to most operations, as many of each number."""
    rng = np.random.default_rng(seed)
    probes = np.random.default_rng(99).integers(0, LETTERS, (24, SIZE))
    outcomes = np.stack([execute(program, probes) for program in PROGRAMS])
    # Programs that treat 24 strings alike do the same.
    _, behaviours = np.unique(outcomes.reshape(len(PROGRAMS), -1), axis=0, return_inverse=True)
    work = (PROGRAMS != 0).sum(-1)
    # Of programs that differ in where they are idle alone, the one that is idle in the end.
    early = [not any(a == 0 != b for a, b in pairwise(program)) for program in PROGRAMS]
    by_work = [np.flatnonzero(early & (work == w)) for w in range(least, most + 1)]
    hidden = np.array([rng.choice(by_work[i]) for i in rng.integers(0, len(by_work), count)])
    shown = rng.integers(0, LETTERS, (count, SIZE))
    made = np.stack([execute(PROGRAMS[h], x) for h, x in zip(hidden, shown, strict=True)])
    prompts = np.concatenate([shown, LETTERS + made], -1).astype(np.int32)
    behaviours = behaviours.reshape(-1)
    passes = behaviours[hidden][:, None] == behaviours
    return Made(Tasks(prompts, passes), PROGRAMS[hidden].astype(np.int32))


def taught(steps: int) -> Params:
    """Train the policy that all runs start from, on programs of one to three operations."""
    made = tasks_of(EXAMPLES, 1, 1)
    batches = np.random.default_rng(0).integers(0, EXAMPLES, (steps, 128), np.int32)
    rates = np.float32(2e-3 * (1 + np.cos(np.pi * np.arange(steps) / steps)))
    found = supervise(SHAPE, init(SHAPE, 0), made.tasks.prompts, made.hidden, batches, rates)
    params: Params = jax.tree.map(np.asarray, found[0])
    return params


def run(seeds: int, quick: bool) -> Outcome:
    """Train for every k and for 8, then 1; and for some at other rates."""
    steps = 120 if quick else 400
    start = taught(600 if quick else 2400)
    pool, held_out = tasks_of(POOL, 2, 2).tasks, tasks_of(HELD_OUT, 3, 2).tasks
    judged = {"pool": Tasks(*(it[:HELD_OUT] for it in pool)), "held out": held_out}
    if quick:
        settings = [constant(1, LR), constant(8, LR), switched(steps, LR)]
    else:
        settings = [*(constant(k, LR) for k in KS), switched(steps, LR)]
    rates = [] if quick else [*(constant(1, lr) for lr in OTHER_RATES), constant(8, OTHER_RATES[0])]
    rows, curves = runs(SHAPE, pool, judged, [*settings, *rates], [start] * seeds, steps, 64)
    named = slice(0, len(settings) * seeds)
    drawn = {"strings": draw(rows[named], curves[named], steps // 2)}
    if not quick:
        drawn["strings-rates"] = draw_rates(rows)
    return Outcome(rows, claims(rows[named]), drawn)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Hold every seed against the paper: what is found is the least of all seeds."""
    at = {(row["trained for"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    names = [f"k={k}" for k in KS if (f"k={k}", 0) in at]

    def least(name: str, other: str, column: str) -> float:
        return min(at[name, seed][column] - at[other, seed][column] for seed in seeds)

    def rises(column: str) -> float:
        return min(least(more, less, column) for less, more in pairwise(names))

    return [
        Claim("5.2.1", "solve rate rises with k: least step", rises("solved"), 0, strict=True),
        Claim("5.2.1", "entropy rises with k: least step", rises("entropy"), 0, strict=True),
        Claim("5.2.1", "pool, pass@16: k=8 less k=1", least("k=8", "k=1", "pool_16"), 0.10),
        Claim("5.2.1", "held out, pass@16: k=8 less k=1", least("k=8", "k=1", "held out_16"), 0.06),
        Claim("5.2.2", "pool, pass@16: 8→1 less k=1", least(SWITCHED, "k=1", "pool_16"), 0.04),
        Claim("5.2.2", "pool, pass@1: 8→1 less k=1", least(SWITCHED, "k=1", "pool_1"), -0.01),
    ]


def draw(rows: Sequence[Row], curves: Sequence[Curves], switch: int) -> Figure:
    """Draw what happens on the way, and pass@k at the end on the pool and held out."""
    canvas, panels = figures.panels(5)
    figures.training(panels[:3], rows, curves, switch)
    for axes, of in zip(panels[3:], ("pool", "held out"), strict=True):
        figures.passes(axes, rows, of, f"pass@k in the end, {of}")
    title = "Programs for strings, trained for k (shade and bars: over seeds)"
    return figures.titled(canvas, title)


def draw_rates(rows: Sequence[Row]) -> Figure:
    """Draw pass@1 and pass@16 against the learning rate."""
    canvas, panels = figures.panels(4)
    columns = ("pool_1", "pool_16", "held out_1", "held out_16")
    for axes, column in zip(panels, columns, strict=True):
        figures.rates(axes, [row for row in rows if row["trained for"] in ("k=1", "k=8")], column)
    title = "Programs for strings: what another learning rate gives (bars: over seeds)"
    return figures.titled(canvas, title)
