"""Sort rows by comparators whose decisions are kept, and undo these on what belongs to the samples.

A pass takes its samples in groups that fit in registers: see `pkpo_pallas.networks`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import Rows, Tile
from pkpo_pallas.estimator import values_of
from pkpo_pallas.layout import read_sample, sample_of
from pkpo_pallas.loops import Index, isolated, without_carry
from pkpo_pallas.networks import Pass, packed, passes, words_for
from pkpo_pallas.plan import LANES, SUBLANES
from pkpo_pallas.sort import note_not_finite


class Step(NamedTuple):
    """A pass, and where its decisions are kept."""

    network: Pass
    first_word: int
    words: int  # of a group
    of_rewards: bool  # it takes the rewards, and what is undone last are values


def steps_of(tile: Tile) -> list[Step]:
    """List what sorts a tile's rows, or merges the sorted runs of longer ones."""
    chosen = tile.variant.plan
    steps: list[Step] = []
    first_word = 0
    for network in passes(tile.variant.n_samples, chosen.group, chosen.run):
        words = words_for(len(network.comparators), chosen.pack)
        steps.append(Step(network, first_word, words, of_rewards=not (chosen.run or steps)))
        first_word += network.groups * words
    return steps


def sort_and_decide(tile: Tile, steps: list[Step]) -> None:
    """Sort rows: rewards or sorted runs → work (padded, 8, 128), and of a transform the decisions
    of all comparators."""
    for step in steps:
        _each_group(tile, step, partial(_compare_group, tile, step))


def undo(tile: Tile, steps: list[Step]) -> None:
    """Undo all comparators: what belongs to sorted samples, in work, → to the samples themselves,
    as values where the first step takes rewards."""
    for step in reversed(steps):
        _each_group(tile, step, partial(undo_group, tile, step))


def undo_group(tile: Tile, step: Step, group: Index) -> None:
    """Undo the comparators of a group of a step: what is in work, (samples, 8, 128), → work, or
    values."""
    values = _load(tile, step, group)
    _undo(tile, step, values, step.first_word + group.value * step.words)
    if not step.of_rewards:
        _store(tile, step, group, values)
        return
    n_samples = step.network.samples
    for c, prefix_sum in enumerate(values):
        slot = sample_of(tile.index, Index(group.value * n_samples, c, n_samples))
        value = values_of(tile.variant, prefix_sum, lambda name: tile.facts_ref[name])
        tile.block.values_ref[slot] = value


def _compare_group(tile: Tile, step: Step, group: Index) -> None:
    load = _load_rewards if step.of_rewards else _load
    values = load(tile, step, group)
    _compare(tile, step, values, step.first_word + group.value * step.words)
    _store(tile, step, group, values)


def _each_group(tile: Tile, step: Step, body: Callable[[Index], None]) -> None:
    # An iteration takes as many small groups as one large one has samples: 6 % fewer bundles at n =
    # 1024 than a group each.
    n_groups = step.network.groups
    large = tile.variant.plan.group if tile.variant.plan.unrolled > 1 else 1
    together = min(max(1, large // step.network.samples), n_groups)

    def iteration(first: Any) -> None:
        for i in range(together):
            body(Index(first * together, i, together))

    if together == n_groups:
        isolated(tile.block, lambda: iteration(0))
        return

    lax.fori_loop(0, n_groups // together, without_carry(iteration), 0)


def _load_rewards(tile: Tile, step: Step, group: Index) -> list[Rows]:
    n_samples = step.network.samples
    first = group.value * n_samples
    rewards = [read_sample(tile, Index(first, c, n_samples)) for c in range(n_samples)]
    note_not_finite(tile, rewards)
    return rewards


def _load(tile: Tile, step: Step, group: Index) -> list[Rows]:
    loaded = [tile.work_ref[some] for some in group_slices(step.network, group)]
    return [samples[c] for samples in loaded for c in range(step.network.each)]


def _store(tile: Tile, step: Step, group: Index, values: list[Rows]) -> None:
    each = step.network.each
    for i, some in enumerate(group_slices(step.network, group)):
        tile.work_ref[some] = jnp.stack(values[i * each : (i + 1) * each])


def _compare(tile: Tile, step: Step, values: list[Rows], first_word: Any) -> None:
    """Sort a group in its list, and of a transform keep which comparators swapped."""
    decisions_ref = tile.block.scratch.decisions_ref
    word = jnp.zeros((SUBLANES, LANES), jnp.int32)
    comparators = step.network.comparators
    bits = packed(len(comparators), tile.variant.plan.pack)
    for (a, b), (number, bit, closes) in zip(comparators, bits, strict=True):
        low, high = values[a], values[b]
        values[a], values[b] = jnp.minimum(low, high), jnp.maximum(low, high)
        if tile.variant.n_ks:
            continue
        if closes and not bit:
            # Alone in its word: a sign will do.
            word = lax.bitcast_convert_type(high - low, jnp.int32)
        else:
            swapped = jnp.where(low > high, jnp.int32(_mask_of(bit)), 0)
            word = word | swapped if bit else swapped
        if closes:
            decisions_ref[first_word + number] = word


def _undo(tile: Tile, step: Step, values: list[Rows], first_word: Any) -> None:
    """Swap back in a list what the comparators swapped."""
    decisions_ref = tile.block.scratch.decisions_ref
    word = jnp.zeros((SUBLANES, LANES), jnp.int32)
    comparators = step.network.comparators
    bits = packed(len(comparators), tile.variant.plan.pack)
    backwards = zip(reversed(comparators), reversed(bits), strict=True)
    for (a, b), (number, bit, closes) in backwards:
        if closes:
            word = decisions_ref[first_word + number]
        swapped = (word & jnp.int32(_mask_of(bit))) != 0 if bit else word < 0
        values[a], values[b] = (
            jnp.where(swapped, values[b], values[a]),
            jnp.where(swapped, values[a], values[b]),
        )


def _mask_of(bit: int) -> int:
    """The bit of a word, the highest being number 0."""
    return 1 << 31 - bit if bit else -(1 << 31)


def group_slices(network: Pass, group: Index) -> list[Any]:
    """Slice work: the samples of a group, as one or two strided slices."""
    span, in_span = group.split(network.starts)
    base = span * network.span
    start = base + in_span
    slices = [_slice(start, network)]
    if network.mirrored:
        mirrored = 2 * base + network.span - 1 - start - (network.each - 1) * network.stride
        slices.append(_slice(mirrored, network))
    return slices


def _slice(start: Any, network: Pass) -> Any:
    if network.stride == 1:
        return pl.ds(start, network.each)
    return pl.ds(start, network.each, stride=network.stride)
