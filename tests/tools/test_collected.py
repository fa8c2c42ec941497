"""What is collected of a file, however its lines come, against a dict of lists."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkpo_kernels.cli.collected import Collected
from pkpo_kernels.cli.rollouts import InARow

REWARDS = st.sampled_from([0.0, 1.0, 1.0, 0.0, 0.5, -1.0, math.nan])
LINES = st.lists(
    st.tuples(st.integers(0, 4), st.lists(REWARDS, min_size=1, max_size=4)), min_size=1, max_size=12
)


def refuse(reason: str, line: int | None) -> NoReturn:
    raise ValueError(f"{line}: {reason}")


@given(
    lines=LINES,
    cuts=st.sets(st.integers(1, 11)),
    one_sample=st.booleans(),
    ordered=st.booleans(),
    null=st.sampled_from(["drop", "zero"]),
    threshold=st.sampled_from([None, 0.5]),
)
@settings(max_examples=150, deadline=None)
def test_pieces_of_a_file_are_its_tasks(
    lines: list[tuple[int, list[float]]],
    cuts: set[int],
    one_sample: bool,
    ordered: bool,
    null: Any,
    threshold: float | None,
) -> None:
    if one_sample:
        lines = [(task, rewards[:1]) for task, rewards in lines]
    else:
        lines = [(i, rewards) for i, (_, rewards) in enumerate(lines)]
    collected = Collected(refuse, null=null, threshold=threshold, ordered=ordered)
    want: dict[int, list[float]] = {}
    edges = sorted({0, len(lines), *(cut for cut in cuts if cut < len(lines))})
    for start, end in pairwise(edges):
        piece = lines[start:end]
        flat = np.array([reward for _, rewards in piece for reward in rewards])
        lengths = np.array([len(rewards) for _, rewards in piece], np.int64)
        collected.add(
            [task for task, _ in piece],
            *(flat, lengths, range(start + 1, end + 1)),
            one_sample_a_line=one_sample,
        )
    for task, rewards in lines:
        there = [0.0 if math.isnan(x) and null == "zero" else x for x in rewards]
        kept = [x for x in there if not math.isnan(x)]
        want.setdefault(task, []).extend(
            kept if threshold is None else [float(x >= threshold) for x in kept]
        )

    assert list(collected.index) == list(want)
    assert collected.lengths.tolist() == list(map(len, want.values()))
    binary = all(reward in (0, 1) for rewards in want.values() for reward in rewards)
    assert (collected.not_binary is None) == binary
    if collected.rewards is None:
        assert binary and not ordered
        assert collected.passes.tolist() == list(map(sum, want.values()))
        return
    assert ordered or not binary
    got = [rewards.tolist() for rewards in collected.rewards]
    assert (
        got == list(want.values())
        if ordered
        else list(map(sorted, got)) == list(map(sorted, want.values()))
    )
    for n in set(map(len, got)) - {0}:
        tasks = np.array([i for i, rewards in enumerate(got) if len(rewards) == n])[::-1]
        assert collected.rewards.rows(tasks).tolist() == [got[i] for i in tasks]


def test_the_line_of_a_fault() -> None:
    collected = Collected(refuse)
    flat = np.array([0, 1, 0, np.inf, 1])
    with pytest.raises(ValueError, match="9: a reward must be finite; got inf"):
        collected.add(["a", "b"], flat, np.array([2, 3]), [7, 9], one_sample_a_line=False)


def test_tasks_that_come_whole_take_8_bytes_a_sample() -> None:
    collected = Collected(refuse)
    flat = np.random.default_rng(0).random(4000)
    collected.add(range(1000), flat, np.full(1000, 4), range(1000), one_sample_a_line=False)
    assert isinstance(collected.rewards, InARow)
    held = collected.rewards._flat
    assert held.itemsize * len(held) == 8 * 4000
    # Views of it, not copies.
    assert np.shares_memory(collected.rewards[0], collected.rewards[999].base)
