"""Section 5.2 without a network: softmax policies whose pass@k is known exactly.

"ambiguous": a prompt does not tell which of its tasks it stands for, as where a model cannot know
better. Each of its tasks has a right answer of its own, and the policy sees the prompt alone: it
should spread k samples over likely answers. The best policy for every k is known exactly.

"shared": every task has a right answer of its own, some answers being much commoner than others,
and a task's logits are common[answer] + own[task, answer]. What is learned of one task moves all: a
policy that is trained for pass@1 puts everything on the commonest answers and never finds the rest.

All runs of an experiment, whatever their seed, schedule and learning rate, are one compiled
program: the ks of every step are data, as are the learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from numpy.typing import NDArray

import pkpo_kernels as pk
from bench.paper import figures
from bench.paper.claims import Claim, Outcome, mean_of
from bench.paper.runs import (
    KS,
    SAMPLES,
    SWITCHED,
    Case,
    Curves,
    Setting,
    constant,
    stacked,
    switched,
)
from bench.records import Row

Floats = NDArray[np.float64]


class Tasks(NamedTuple):
    """What is trained on."""

    row_of: Any  # (tasks,): whose logits of its own a task's policy reads
    answer_of: Any  # (tasks,): what is right


class Seed(NamedTuple):
    """What a seed decides: data for the program, in every field an axis of seeds."""

    row_of: Any
    answer_of: Any
    batches: Any  # (steps, batch): tasks
    uniforms: Any  # (steps, batch, SAMPLES): what samples are drawn with


class Params(NamedTuple):
    """Of a policy: logits = share · common + own[row]."""

    common: Any  # (answers,)
    own: Any  # (rows, answers)


@partial(jax.jit, static_argnames="optimizer")
def train(
    start: Params, share: float, cases: Case, seeds: Seed, optimizer: str
) -> tuple[Any, Curves]:
    """Train every case with every seed: → chances of the right answer (cases, seeds, tasks), and
    curves (cases, seeds, steps, …)."""

    def one(case: Case, seed: Seed) -> tuple[Any, Curves]:
        update = {"Adam": optax.adam, "SGD": optax.sgd}[optimizer](case.lr)

        def log_policy(params: Params, tasks: Any) -> Any:  # (tasks, answers)
            return jax.nn.log_softmax(share * params.common + params.own[seed.row_of[tasks]])

        def step(carry: Any, now: Any) -> tuple[Any, Curves]:
            (params, state, solved), (k, tasks, uniforms) = carry, now
            log_p = log_policy(params, tasks)
            # The inverse of the distribution function: one random number a sample.
            below = jnp.cumsum(jnp.exp(log_p), -1)  # (batch, answers)
            at = uniforms * below[:, -1:]
            answers = (at[..., None] > below[:, None]).sum(-1)  # (batch, SAMPLES)
            rewards = (answers == seed.answer_of[tasks, None]).astype(jnp.float32)
            advantages = pk.transform(rewards, k)

            def loss(params: Params) -> Any:
                log_p = jnp.take_along_axis(log_policy(params, tasks), answers, -1)
                return -(advantages * log_p).sum(-1).mean()

            updates, state = update.update(jax.grad(loss)(params), state)
            solved = solved.at[tasks].max(rewards.max(-1))
            entropy = -(jnp.exp(log_p) * log_p).sum(-1).mean()
            curves = Curves(solved.mean(), entropy, rewards.mean())
            return (optax.apply_updates(params, updates), state, solved), curves

        carry = start, update.init(start), jnp.zeros(len(seed.answer_of))
        every = case.ks, seed.batches, seed.uniforms
        (params, *_), curves = jax.lax.scan(step, carry, every)
        log_p = log_policy(params, jnp.arange(len(seed.answer_of)))
        return jnp.exp(jnp.take_along_axis(log_p, seed.answer_of[:, None], -1)[:, 0]), curves

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(cases, seeds)


def exact_passes(chances: NDArray[Any], of: str = "pass") -> dict[str, float]:
    """Average pass@k over tasks from their chances (tasks,): pass_1, pass_2 …

    >>> exact_passes(np.array([0.0, 0.5]))["pass_2"]
    0.375
    """
    chances = np.asarray(chances, np.float64)
    return {f"{of}_{k}": float((1 - (1 - chances) ** k).mean()) for k in KS}


# Of every setting and seed a row, and its curves.
Found = tuple[list[dict[str, Any]], list[Curves]]


class Experiment(NamedTuple):
    """A policy and its tasks, and for how long it learns."""

    name: str
    start: Params
    share: float
    tasks: Sequence[Tasks]  # one for each seed
    batch: int
    steps: int

    def run(self, settings: Sequence[Setting], optimizer: str = "Adam") -> Found:
        """Train every setting with every seed, all in one program."""
        seeds = stacked([self._seed(*it) for it in enumerate(self.tasks)])
        cases = stacked([Case.of(setting, self.steps) for setting in settings])
        found = train(self.start, self.share, cases, seeds, optimizer)
        chances, curves = jax.tree.map(np.asarray, found)
        rows, each = [], []
        for i, j in np.ndindex(chances.shape[:2]):
            each.append(Curves(*(curve[i, j] for curve in curves)))
            row = {"experiment": self.name, "optimizer": optimizer, "lr": settings[i].lr}
            row |= {"trained for": settings[i].name, "seed": j, **exact_passes(chances[i, j])}
            rows.append(row | each[-1].last())
        return rows, each

    def _seed(self, seed: int, tasks: Tasks) -> Seed:
        """Draw all that is random: JAX's own generators take seconds to compile."""
        rng, shape = np.random.default_rng([seed, 1]), (self.steps, self.batch)
        batches = rng.integers(0, len(tasks.row_of), shape, np.int32)
        return Seed(*tasks, batches, rng.random((*shape, SAMPLES), np.float32))


# ---- ambiguous prompts -------------------------------------------------------------------------

LR = 0.05
ANSWERS, PROMPTS, TASKS_A_PROMPT = 24, 64, 32


def ambiguous_tasks(seed: int) -> Tasks:
    """Draw every prompt's right answers from a distribution of its own, from nearly sure to nearly
    flat."""
    rng = np.random.default_rng(seed)
    alphas = rng.uniform(0.15, 1.2, PROMPTS)
    likely = [rng.dirichlet(np.full(ANSWERS, alpha)) for alpha in alphas]
    right = [rng.choice(ANSWERS, TASKS_A_PROMPT, p=p) for p in likely]
    return Tasks(np.repeat(np.arange(PROMPTS), TASKS_A_PROMPT), np.concatenate(right))


def best_policy(p: Floats, k: int) -> Floats:
    """Find the q (rows, answers) that maximizes Σ_a p_a (1 − (1 − q_a)^k) in every row of p.

    Where q_a > 0 all p_a (1 − q_a)^(k−1) are one level, found by bisection.

    >>> best_policy(np.array([[0.8, 0.2, 0.0]]), 2).round(3).tolist()
    [[0.8, 0.2, 0.0]]
    """
    if k == 1:
        return np.eye(p.shape[1])[p.argmax(-1)]
    low, high = np.zeros((len(p), 1)), np.ones((len(p), 1))
    q = p
    for _ in range(100):
        level = (low + high) / 2
        ratio = np.divide(level, p, out=np.full_like(p, np.inf), where=p > 0)
        q = np.maximum(0, 1 - ratio ** (1 / (k - 1)))
        too_much = q.sum(-1, keepdims=True) > 1
        low, high = np.where(too_much, level, low), np.where(too_much, high, level)
    return q / q.sum(-1, keepdims=True)


def optima(tasks: Tasks) -> dict[str, Floats]:
    """Compute the chances (tasks,) under the best policy for every k; a policy can know no more
    than how often an answer is right in its pool."""
    often = np.zeros((PROMPTS, ANSWERS))
    np.add.at(often, tuple(tasks), 1 / TASKS_A_PROMPT)
    return {f"k={k}": best_policy(often, k)[tuple(tasks)] for k in KS}


def ambiguous(seeds: int, quick: bool) -> Outcome:
    """Train for every k, and compare with the optima."""
    tasks = [ambiguous_tasks(seed) for seed in range(seeds)]
    start = Params(np.zeros(ANSWERS), np.zeros((PROMPTS, ANSWERS)))
    of = Experiment("ambiguous", start, 0.0, tasks, 128, 200 if quick else 400)
    rows, curves = of.run([constant(k, LR) for k in KS])
    best = [optima(it) for it in tasks]
    for row in rows:
        row |= exact_passes(best[row["seed"]][row["trained for"]], "optimum")
    drawn = {"policies-ambiguous": draw_ambiguous(rows, curves)}
    return Outcome(rows, ambiguous_claims(rows), drawn)


def ambiguous_claims(rows: Sequence[Row]) -> list[Claim]:
    """Hold means over seeds against the paper."""
    at = mean_of(rows, "trained for")
    leads, short = [], []
    for k in KS:
        own = at[f"k={k}"][f"pass_{k}"]
        leads += [own - at[f"k={other}"][f"pass_{k}"] for other in KS if other != k]
        short.append(at[f"k={k}"][f"optimum_{k}"] - own)
    entropies = np.diff([at[f"k={k}"]["entropy"] for k in KS])
    gain = at["k=16"]["pass_16"] - at["k=1"]["pass_16"]
    return [
        Claim("5.2.1", "pass@k is best where k was trained for: least lead", min(leads), 0.005),
        Claim("5.2.1", "furthest from the exact optimum", max(short), most=0.03),
        Claim("5.2.1", "entropy rises with k: least step", min(entropies), 0, strict=True),
        Claim("5.2.1", "pass@16: k=16 less k=1", gain, 0.35),
    ]


def draw_ambiguous(rows: Sequence[Row], curves: Sequence[Curves]) -> Figure:
    """Draw pass@k beside the optima, and what happens on the way."""
    at = mean_of(rows, "trained for")
    best = {k: at[f"k={k}"][f"optimum_{k}"] for k in KS}
    canvas, panels = figures.panels(3)
    for name, mean in at.items():
        mine = [row for row in rows if row["trained for"] == name]
        relative = {k: [row[f"pass_{k}"] / best[k] for row in mine] for k in KS}
        figures.points(panels[0], name, relative)
        exact = [mean[f"optimum_{k}"] / best[k] for k in KS]
        panels[0].plot(KS, exact, ":", color=figures.color(name))
    panels[0].set(title="pass@k of the best possible (dots: exact optimum)", xlabel="k_eval")
    figures.training(panels[1:], rows, curves)
    return figures.titled(canvas, "Ambiguous prompts, trained for k (shade and bars: over seeds)")


# ---- shared logits -----------------------------------------------------------------------------

SHARE, SHARED_ANSWERS, TASKS = 4.0, 64, 256
RATES = (0.003, 0.01, 0.03, 0.1, 0.2)
SGD_RATES = (0.3, 1.0, 3.0, 10.0, 30.0)


def shared_tasks(seed: int) -> Tasks:
    """Draw right answers, the a-th with a chance of 1/a, but for a factor."""
    p = 1 / np.arange(1, SHARED_ANSWERS + 1)
    drawn = np.random.default_rng(seed).choice(SHARED_ANSWERS, TASKS, p=p / p.sum())
    return Tasks(np.arange(TASKS), drawn)


def shared(seeds: int, quick: bool) -> Outcome:
    """Train for every k, for 8 and then for 1; for 1 at other rates; and by plain SGD."""
    tasks = [shared_tasks(seed) for seed in range(seeds)]
    steps = 300 if quick else 1000
    start = Params(np.zeros(SHARED_ANSWERS), np.zeros((TASKS, SHARED_ANSWERS)))
    of = Experiment("shared", start, SHARE, tasks, 64, steps)
    cases = [*(constant(k, LR) for k in KS), switched(steps, LR)]
    rates = [] if quick else [constant(1, lr) for lr in RATES]
    rows, curves = of.run([*cases, *rates])
    named = slice(0, len(cases) * seeds)
    drawn = {"policies-shared": draw_shared(rows[named], curves[named], steps // 2)}
    if not quick:
        rows += of.run([constant(k, lr) for k in (1, 8) for lr in SGD_RATES], "SGD")[0]
        drawn["policies-rates"] = draw_rates(rows)
    return Outcome(rows, shared_claims(rows[named]), drawn)


def shared_claims(rows: Sequence[Row]) -> list[Claim]:
    """Hold means over seeds against the paper."""
    at = mean_of(rows, "trained for")

    def gain(name: str, k: int) -> float:
        return at[name][f"pass_{k}"] - at["k=1"][f"pass_{k}"]

    stalled, later = at["k=1"]["pass_16"], min(gain(SWITCHED, k) for k in KS)
    return [
        Claim("5.2.3", "k=1 stalls: its pass@16", stalled, most=0.70),
        Claim("5.2.3", "pass@1: k=4 less k=1", gain("k=4", 1), 0.12),
        Claim("5.2.2", "8→1 less k=1: least gain, pass@1 to pass@16", later, 0.20),
    ]


def draw_shared(rows: Sequence[Row], curves: Sequence[Curves], switch: int) -> Figure:
    """Draw what happens on the way, and pass@k at the end."""
    canvas, panels = figures.panels(4)
    figures.training(panels[:3], rows, curves, switch)
    figures.passes(panels[3], rows, "pass", "pass@k in the end")
    return figures.titled(canvas, "Shared logits, trained for k (shade and bars: over seeds)")


def draw_rates(rows: Sequence[Row]) -> Figure:
    """Draw pass@1 and pass@16 against the learning rate, Adam's and SGD's."""
    canvas, panels = figures.panels(4)
    views = [(optimizer, f"pass_{k}") for optimizer in ("Adam", "SGD") for k in (1, 16)]
    for axes, (optimizer, column) in zip(panels, views, strict=True):
        mine = [row for row in rows if row["optimizer"] == optimizer]
        figures.rates(axes, [row for row in mine if row["trained for"] in ("k=1", "k=8")], column)
        axes.set(title=f"{optimizer}: pass@{column[5:]}", ylim=(0, 1))
    title = "Shared logits: what another learning rate, or plain SGD, gives (bars: over seeds)"
    return figures.titled(canvas, title)


# ---- both --------------------------------------------------------------------------------------


def run(seeds: int, quick: bool) -> Outcome:
    """Train on both kinds of tasks."""
    one, other = ambiguous(seeds, quick), shared(seeds, quick)
    return Outcome(
        [*one.rows, *other.rows],
        [*one.claims, *other.claims],
        {**one.figures, **other.figures},
    )
