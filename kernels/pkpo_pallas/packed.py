"""Rewards of 16 bits: each is packed in a word with the number of its sample, and sorted there and
back, so that nothing has to be looked up or undone. A comparator takes two operations each way.

Words are compared as floats, whose exponents are neither the least nor the greatest, so that every
one passes as it is:

    there   sign, not sign, sign, sign | 15 bits of the reward | 1 | 12 bits of the sample
    back    0001 | 12 bits of the sample | 16 bits of the value

NaN lies beyond the infinities, at an end of its row, whose range is NaN then.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pkpo_pallas.block import Ref, Rows, Tile
from pkpo_pallas.estimator import scanning, to_work, values_of, weigh
from pkpo_pallas.layout import bits_of_values, read_samples, sample_of
from pkpo_pallas.loops import Index, isolated
from pkpo_pallas.sort import sort_runs, unstacked
from pkpo_pallas.undo import sort_and_decide, steps_of

# On the way there: how far a reward is shifted, what its sign's copies are turned over by, and the
# bit above the sample, which is the exponent's on the way back.
_SHIFT, _TURNED, _ABOVE = 3, 0x40000000, 0x1000
_REWARD, _SAMPLE = -1 << 16, 0x1FFF0000


def word_of_reward(reward: jax.Array, sample: Any) -> jax.Array:
    """Pack a bfloat16 in float32 with the number of its sample, < 4096: of any shape."""
    shifted = lax.shift_right_arithmetic(_bits(reward), _SHIFT)
    return _float(shifted ^ ((_TURNED | _ABOVE) + sample))


def reward_of(word: jax.Array) -> jax.Array:
    """Take the reward out of a word that `word_of_reward` made."""
    return _float(lax.shift_left(_bits(word), _SHIFT) & _REWARD)


def word_of_value(value: jax.Array, word: jax.Array) -> jax.Array:
    """Pack a value with the sample of a word that `word_of_reward` made: the way back."""
    return _float(lax.shift_left(_bits(word), 16) & _SAMPLE | bits_of_values(value))


def value_of(word: jax.Array) -> jax.Array:
    """Take the value out of a word that `word_of_value` made."""
    return _float(lax.shift_left(_bits(word), 16))


def sort_there_and_back(tile: Tile) -> None:
    """Compute rows: rewards (n_padded, 1024) → values."""
    sort_runs(tile, partial(_words_of_rewards, tile))
    words_ref, sums_ref = tile.work_ref, tile.sums_ref
    steps = steps_of(tile, [words_ref, sums_ref])
    sort_and_decide(tile, steps)
    if len(steps) % 2:
        words_ref, sums_ref = sums_ref, words_ref
    into_sums = tile._replace(work_ref=sums_ref)

    def row(i: Index) -> Rows:
        return reward_of(words_ref[i.value])

    def weigh_row() -> None:
        weigh(into_sums, 0, row, scanning(row, to_work(into_sums)))

    def put_value(i: Index, word: Rows) -> None:
        tile.block.values_ref[sample_of(tile, i)] = value_of(word)

    isolated(tile.block, weigh_row)
    # A run's sums are read before its words take their place.
    sort_runs(into_sums, partial(_words_of_values, tile, words_ref, sums_ref))
    sort_and_decide(tile, steps_of(tile, [sums_ref, words_ref], put_value))


def _words_of_rewards(tile: Tile, first: Any, count: int) -> list[Rows]:
    rewards = read_samples(tile, first, count)
    return [word_of_reward(reward, first + c) for c, reward in enumerate(rewards)]


def _words_of_values(
    tile: Tile, words_ref: Ref, sums_ref: Ref, first: Any, count: int
) -> list[Rows]:
    here = pl.ds(first, count)
    values = values_of(tile.variant, sums_ref[here], lambda name: tile.facts_ref[name])
    return unstacked(word_of_value(values, words_ref[here]))


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _float(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)
