"""Sorting networks, which are data: they sort, whatever executes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from pkpo_triton.networks import (
    ACROSS_WARPS,
    COMPARE,
    NEGATE,
    bitonic_merge,
    merge_steps,
    thread_network,
    thread_steps,
)


def sorts(network: Any, rows: np.ndarray[Any, Any]) -> bool:
    """Tell whether comparators (a, b) put rows (rows, n), which they change, in ascending order."""
    for a, b in network:
        assert a < b
        rows[:, [a, b]] = np.sort(rows[:, [a, b]], axis=1)
    return bool((np.diff(rows, axis=1) >= 0).all())


@pytest.mark.parametrize("n", range(1, 17))
def test_a_thread_of_zeros_and_ones_is_sorted(n: int) -> None:
    # What sorts all zeros and ones sorts everything.
    rows = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    assert sorts(thread_network(n), rows)


@pytest.mark.parametrize("n", [*range(20, 65, 4), 31, 33, 63])
def test_longer_threads_are_sorted(n: int, rng: np.random.Generator) -> None:
    rows = rng.integers(0, 2, (2000, n))
    assert sorts(thread_network(n), rows)


@pytest.mark.parametrize("n", range(4, 65, 4))
def test_a_bitonic_thread_of_zeros_and_ones_is_sorted(n: int) -> None:
    # Ones from any number on, in a circle: what sorts all of these sorts all that is bitonic.
    first, ones = np.divmod(np.arange(n * (n + 1)), n + 1)
    rows = ((np.arange(n) - first[:, None]) % n < ones[:, None]).astype(int)
    assert sorts(bitonic_merge(n), rows)


@pytest.mark.parametrize("n", [2, 16, 24, 32])
def test_every_decision_has_a_bit_of_its_own(n: int) -> None:
    steps = thread_steps(n)
    bits = [(word, mask) for _, _, word, mask, _ in steps]
    assert len(set(bits)) == len(bits)
    assert max(mask for _, mask in bits) < 2**24
    assert [word for *_, word, _, closes in steps if closes] == sorted({w for w, _ in bits})


@pytest.mark.parametrize("warp", [32, 64])
@pytest.mark.parametrize("samples, threads", [(8, 2), (8, 64), (32, 4), (32, 256)])
def test_merges_sort_a_row_of_sorted_threads(
    samples: int, threads: int, warp: int, rng: np.random.Generator
) -> None:
    thread = np.arange(threads)
    x = np.sort(rng.standard_normal((samples, threads)), axis=0)
    x[:, 1::2] = -x[::-1, 1::2]
    for kind, a, b in merge_steps(samples, threads, warp):
        if kind == COMPARE:
            pairs = x.reshape(-1, 2, a, threads)
            x = np.stack([pairs.min(1), pairs.max(1)], 1).reshape(samples, threads)
        elif kind == NEGATE:
            x = x * (1 - 2 * (((thread >> a) ^ (thread >> b)) & 1))
        else:
            partner = thread ^ (1 << a)
            assert (kind == ACROSS_WARPS) == (thread // warp != partner // warp).all()
            x = np.minimum(x, -x[:, partner])
    assert (np.diff(x.T.ravel()) >= 0).all()
