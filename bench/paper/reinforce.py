"""A whole RL loop: a transformer, verifiable rewards, and pk.transform in the compiled step.

What makes one run another is data: the k of every step, the learning rate, and what a seed decides.
All schedules and all seeds are one compiled program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pkpo_kernels as pk
from bench.paper.runs import KS, SAMPLES, Case, Curves, Setting, stacked
from bench.paper.transformer import Params, Shape, log_probs, sample

BATCH = 32


class Tasks(NamedTuple):
    """Prompts, and which of all answers pass their verifier."""

    prompts: Any  # (tasks, prompt)
    passes: Any  # (tasks, answers) bool


class Seed(NamedTuple):
    """What a seed decides: stacked, every field has an axis of seeds."""

    start: Params
    batches: Any  # (steps, BATCH): tasks
    uniforms: Any  # (steps, BATCH, SAMPLES, length): what samples are drawn with
    judged: Any  # (tasks, samples, length), of what judges the result


def attempt(params: Params, shape: Shape, tasks: Tasks, uniforms: Any) -> tuple[Any, Any, Any]:
    """Draw answers → answers (tasks, samples, length), rewards (tasks, samples), their entropy."""
    answers, entropy = sample(params, shape, tasks.prompts, uniforms)
    passes = jnp.take_along_axis(tasks.passes, shape.number(answers), -1)
    return answers, passes.astype(jnp.float32), entropy


@partial(jax.jit, static_argnames="shape")
def train(
    shape: Shape, tasks: Tasks, judged: Mapping[str, Tasks], cases: Case, seeds: Seed
) -> tuple[Curves, dict[str, Any]]:
    """Train in every case with every seed: → curves (cases, seeds, steps), and of what was trained
    pass@k (cases, seeds, KS) on every set of tasks."""

    def run(case: Case, seed: Seed) -> tuple[Curves, dict[str, Any]]:
        optimizer = optax.adam(case.lr)

        def step(carry: Any, now: Any) -> tuple[Any, Curves]:
            (params, state, solved), (k, chosen, uniforms) = carry, now
            batch = Tasks(tasks.prompts[chosen], tasks.passes[chosen])
            answers, rewards, entropy = attempt(params, shape, batch, uniforms)
            advantages = pk.transform(rewards, k)

            def loss(params: Params) -> Any:
                log_p = log_probs(params, shape, batch.prompts, answers)
                return -(advantages * log_p).sum(-1).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            solved = solved.at[chosen].max(rewards.max(-1))
            curves = Curves(solved.mean(), entropy, rewards.mean())
            return (optax.apply_updates(params, updates), state, solved), curves

        carry = seed.start, optimizer.init(seed.start), jnp.zeros(len(tasks.prompts))
        (params, *_), curves = jax.lax.scan(step, carry, (case.ks, seed.batches, seed.uniforms))

        def passes(of: Tasks) -> Any:
            _, rewards, _ = attempt(params, shape, of, seed.judged[: len(of.prompts)])
            return pk.max_at_k(rewards, KS).mean(0)

        return curves, {name: passes(of) for name, of in judged.items()}

    # One run after the other: on a CPU vmap, with parameters that differ, takes half as long again.
    return jax.lax.map(lambda case: jax.lax.map(lambda seed: run(case, seed), seeds), cases)


def runs(
    shape: Shape,
    tasks: Tasks,
    judged: Mapping[str, Tasks],
    settings: Sequence[Setting],
    starts: Sequence[Params],
    steps: int,
    samples: int,
) -> tuple[list[dict[str, Any]], list[Curves]]:
    """Train in every setting from every start, a seed each: → of each run a row, and its curves.
    It is judged by fresh samples, so many of every task."""
    most = max(len(of.prompts) for of in judged.values())
    seeds = []
    for seed, start in enumerate(starts):
        rng = np.random.default_rng([seed, 1])
        batches = rng.integers(0, len(tasks.prompts), (steps, BATCH), np.int32)
        uniforms = rng.random((steps, BATCH, SAMPLES, shape.length), np.float32)
        fresh = rng.random((most, samples, shape.length), np.float32)
        seeds.append(Seed(start, batches, uniforms, fresh))
    cases = stacked([Case.of(setting, steps) for setting in settings])
    found = train(shape, tasks, judged, cases, stacked(seeds))
    curves, passes = jax.tree.map(np.asarray, found)
    rows, each = [], []
    for i, j in np.ndindex(len(settings), len(seeds)):
        each.append(Curves(*(curve[i, j] for curve in curves)))
        row = {"trained for": settings[i].name, "lr": settings[i].lr, "seed": j}
        for name, of in passes.items():
            row |= {f"{name}_{k}": float(value) for k, value in zip(KS, of[i, j], strict=True)}
        rows.append(row | each[-1].last())
    return rows, each
