"""Sort rows by comparators whose decisions are kept, and undo these on what belongs to the samples.

A pass takes its samples in groups that fit in registers: see `pkpo_pallas.networks`. Where there is
room it writes to memory of its own: the compiler then knows that iterations may overlap, and what
it loaded stays, so that its first level can be decided once more instead of being kept: 5 % fewer
bundles at n = 256.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import Ref, Rows, Tile
from pkpo_pallas.estimator import values_of
from pkpo_pallas.layout import read_sample, sample_of
from pkpo_pallas.loops import Index, isolated, without_carry
from pkpo_pallas.networks import Pass, packed, words_for
from pkpo_pallas.plan import LANES, SUBLANES, passes_of
from pkpo_pallas.sort import note_not_finite, sorted_by, stacked, unstacked


class Step(NamedTuple):
    """A pass, and where its decisions are kept."""

    network: Pass
    first_word: int
    words: int  # of a group
    recomputed: int  # comparators, the first, that are decided once more when they are undone
    of_rewards: bool  # it takes the rewards, and what is undone last are values
    source_ref: Ref  # its samples before, (padded, 8, 128),
    target_ref: Ref  # and behind: the same, or memory of their own
    put: Callable[[Index, Rows], None] | None  # where there is one, what takes them instead


class Group(NamedTuple):
    """A group of a pass, by its number."""

    number: Index
    slot: Any  # of its samples before
    target: Any  # and behind
    falls: bool  # and there they are in reverse order


def steps_of(
    tile: Tile, buffers: list[Ref], put: Callable[[Index, Rows], None] | None = None
) -> list[Step]:
    """List what sorts a tile's rows, or merges the sorted runs of longer ones, from the first of
    these buffers to the next, and so on; the last step to what takes a sample, if it is given."""
    chosen = tile.variant.plan
    steps: list[Step] = []
    first_word = 0
    for q, network in enumerate(passes_of(tile.variant.n_samples, chosen)):
        recomputed = chosen.recomputed(network)
        words = words_for(len(network.comparators) - recomputed, chosen.pack)
        source_ref, target_ref = buffers[q % len(buffers)], buffers[(q + 1) % len(buffers)]
        of_rewards = not (chosen.run or steps)
        places = source_ref, target_ref
        steps.append(Step(network, first_word, words, recomputed, of_rewards, *places, None))
        first_word += network.groups * words
    return [*steps[:-1], *(step._replace(put=put) for step in steps[-1:])]


def sort_and_decide(tile: Tile, steps: list[Step]) -> Tile:
    """Sort rows: rewards or sorted runs → work (padded, 8, 128) of the tile that comes back, and
    where there is memory for them, the decisions of all comparators."""
    for step in steps:
        _each_groups(tile, step, partial(_compare_groups, tile, step))
    return tile._replace(work_ref=steps[-1].target_ref) if steps else tile


def undo(tile: Tile, steps: list[Step]) -> None:
    """Undo all comparators: what belongs to sorted samples, in the last work, → to the samples
    themselves, as values where the first step takes rewards."""
    for step in reversed(steps):
        _each_groups(tile, step, partial(undo_groups, tile, step))


def undo_whole(tile: Tile, step: Step) -> None:
    """Undo the comparators of a step of one group."""
    slot = group_slot(step.network, Index(0, 0))
    undo_groups(tile, step, [Group(Index(0, 0), slot, slot, falls=False)])


def undo_groups(tile: Tile, step: Step, groups: list[Group]) -> None:
    """Undo the comparators of groups of a step: what is in its target, (samples, 8, 128), → its
    source, or values."""
    every = [_load(step.target_ref, group.target, group.falls) for group in groups]
    for group, values in zip(groups, every, strict=True):
        _undo(tile, step, values, step.first_word + group.number.value * step.words)
        if step.recomputed:
            before = _load(step.source_ref, group.slot, falls=False)
            for a, b in step.network.comparators[: step.recomputed]:
                _swap(values, a, b, before[a] > before[b])
        if not step.of_rewards:
            step.source_ref[group.slot] = stacked(values)
            continue
        n_samples = step.network.each
        for c, prefix_sum in enumerate(values):
            slot = sample_of(tile, Index(group.number.value * n_samples, c, n_samples))
            value = values_of(tile.variant, prefix_sum, lambda name: tile.facts_ref[name])
            tile.block.values_ref[slot] = value


def _compare_groups(tile: Tile, step: Step, groups: list[Group]) -> None:
    if step.of_rewards:
        every = [_load_rewards(tile, step, group) for group in groups]
    else:
        every = [_load(step.source_ref, group.slot, falls=False) for group in groups]
    for group, values in zip(groups, every, strict=True):
        _compare(tile, step, values, step.first_word + group.number.value * step.words)
        if step.put is None:
            step.target_ref[group.target] = stacked(values[::-1] if group.falls else values)
            continue
        # A row's last pass: its groups lie side by side, and none falls.
        n_samples = step.network.each
        for c, value in enumerate(values):
            step.put(Index(group.number.value * n_samples, c, n_samples), value)


def _each_groups(tile: Tile, step: Step, body: Callable[[list[Group]], None]) -> None:
    """Run body(groups) for all groups of a pass: those that must be loaded before one of them is
    stored."""
    network, chosen = step.network, tile.variant.plan
    if network.falling:
        n_iterations, groups_of = falling_groups(network)

        def of_two_runs(i: Any) -> None:
            for groups in groups_of(i):
                body(groups)

        lax.fori_loop(0, n_iterations, without_carry(of_two_runs), 0)
        return
    # An iteration takes as many small groups as one large one has samples.
    large = chosen.group if chosen.unrolled > 1 else 1
    together = min(max(1, large // network.each), network.groups)

    def iteration(first: Any) -> None:
        for i in range(together):
            index = Index(first * together, i, together)
            slot = group_slot(network, index)
            body([Group(index, slot, slot, falls=False)])

    n_iterations = network.groups // together
    if n_iterations == 1:
        isolated(tile.block, lambda: iteration(0))
        return
    # What is stored is not what is loaded: iterations may overlap.
    unroll = 1 if chosen.unrolled == 1 or step.source_ref is step.target_ref else 2
    if network.stride == 1 or tile.variant.plan.packs:
        unroll *= unroll
    lax.fori_loop(0, n_iterations, without_carry(iteration), 0, unroll=min(unroll, n_iterations))


def falling_groups(network: Pass) -> tuple[int, Callable[[Any], list[list[Group]]]]:
    """Cut a pass that stores every second run in falling order into iterations: how many, and of
    each the groups that must be loaded before one of them is stored.

    They come from a run that rises and one that falls, as far from the start of a run as from its
    end: in the falling one such two take each other's slots.
    """
    each = network.each
    of_run = network.falling // each
    half = max(1, of_run // 2)

    def groups_of(i: Any) -> list[list[Group]]:
        pair, j = Index(i, 0).split(half)
        first = pair * (2 * of_run)

        def group(number: Any, target: Any, falls: bool) -> Group:
            index = Index(number, 0)
            return Group(index, group_slot(network, index), pl.ds(target * each, each), falls)

        rising = [first + j, first + of_run - 1 - j][:of_run]
        falling = [of_run + number for number in rising]
        swapped = zip(falling, falling[::-1], strict=True)
        return [
            *([group(number, number, falls=False)] for number in rising),
            [group(number, target, falls=True) for number, target in swapped],
        ]

    return network.groups // (2 * of_run) * half, groups_of


def _load_rewards(tile: Tile, step: Step, group: Group) -> list[Rows]:
    n_samples = step.network.each
    first = group.number.value * n_samples
    rewards = [read_sample(tile, Index(first, c, n_samples)) for c in range(n_samples)]
    note_not_finite(tile, rewards)
    return rewards


def _load(ref: Ref, slot: Any, falls: bool) -> list[Rows]:
    values = unstacked(ref[slot])
    return values[::-1] if falls else values


def _compare(tile: Tile, step: Step, values: list[Rows], first_word: Any) -> None:
    """Sort a group in its list, and keep which comparators swapped, where they are undone."""
    decisions_ref = tile.block.scratch.decisions_ref
    word = nothing = jnp.zeros((SUBLANES, LANES), jnp.int32)
    comparators = step.network.comparators[step.recomputed :]
    values[:] = sorted_by(step.network.comparators[: step.recomputed], values)
    bits = packed(len(comparators), tile.variant.plan.pack)
    for (a, b), (number, bit, closes) in zip(comparators, bits, strict=True):
        low, high = values[a], values[b]
        values[a], values[b] = lax.min(low, high), lax.max(low, high)
        if decisions_ref is None:
            continue
        if closes and not bit:
            # Alone in its word: a sign will do.
            word = lax.bitcast_convert_type(high - low, jnp.int32)
        else:
            swapped = lax.select(lax.gt(low, high), _masks(bit), nothing)
            word = word | swapped if bit else swapped
        if closes:
            decisions_ref[first_word + number] = word


def _undo(tile: Tile, step: Step, values: list[Rows], first_word: Any) -> None:
    """Swap back in a list what the comparators swapped."""
    decisions_ref = tile.block.scratch.decisions_ref
    word = nothing = jnp.zeros((SUBLANES, LANES), jnp.int32)
    comparators = step.network.comparators[step.recomputed :]
    bits = packed(len(comparators), tile.variant.plan.pack)
    backwards = zip(reversed(comparators), reversed(bits), strict=True)
    for (a, b), (number, bit, closes) in backwards:
        if closes:
            word = decisions_ref[first_word + number]
        swapped = lax.ne(lax.bitwise_and(word, _masks(bit)), nothing) if bit else word < 0
        _swap(values, a, b, swapped)


def _swap(values: list[Rows], a: int, b: int, swapped: Any) -> None:
    values[a], values[b] = (
        lax.select(swapped, values[b], values[a]),
        lax.select(swapped, values[a], values[b]),
    )


def _masks(bit: int) -> jax.Array:
    """The bit of words, the highest being number 0: (8, 128)."""
    return lax.full((SUBLANES, LANES), 1 << 31 - bit if bit else -(1 << 31), jnp.int32)


def group_slot(network: Pass, group: Index) -> Any:
    """Slice work: the samples of a group."""
    span, in_span = group.split(network.starts)
    start = span * network.span + in_span
    if network.stride == 1:
        return pl.ds(start, network.each)
    return pl.ds(start, network.each, stride=network.stride)
