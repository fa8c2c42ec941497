"""What throughput is measured of: this package, plain copies, the usual ways to write the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import listing
from bench.harness import Candidate
from bench.libraries import Array, Call, Library
from bench.shapes import K

# What goes row by row is timed on so many elements.
FEW_ELEMENTS = 1 << 13


def candidates_of(library: Library, rows: int, n: int) -> list[Candidate]:
    """List all that takes the library's matrices (rows, n): its copy, what is ours, what there
    is."""
    copy, *others = _OF_LIBRARY[library.name](library, rows, n)
    calls = {name: library.transform(name, K) for name in library.served()}
    ours = [
        Candidate(f"pk {name}", library, library.jitted(call), eager=call)
        for name, call in calls.items()
    ]
    return [copy, *ours, *others]


def gap_weights(n: int) -> NDArray[np.float32]:
    """Weigh the gaps of a sorted row (n−1,): C(j, k−1)/C(n, k) for the one above j samples (Eq 33).

    The forms below multiply gaps with these, made beforehand in their favour.
    """
    return np.array([math.comb(j, K - 1) / math.comb(n, K) for j in range(1, n)], np.float32)


def torch_sort_form(weights: Array) -> Call:
    """Write the transform in torch's own operations, for gaps that weigh (n−1,)."""
    import torch

    def sort_form(rewards: Array) -> Array:
        ordered, order = torch.sort(rewards, dim=-1)
        sums = torch.cumsum(weights * torch.diff(ordered, dim=-1), dim=-1)
        return torch.zeros_like(ordered).scatter_(-1, order[:, 1:], sums)

    return sort_form


def _torch(library: Library, rows: int, n: int) -> list[Candidate]:
    import torch

    target = torch.empty((rows, n), device=library.device)
    sort_form = torch_sort_form(library.array(gap_weights(n)))
    return [
        Candidate("torch copy", library, target.copy_, "copy"),
        Candidate("torch eager, sort form", library, sort_form),
        Candidate("torch.compile, sort form", library, torch.compile(sort_form, dynamic=False)),
        Candidate("torch.sort alone", library, lambda x: torch.sort(x, dim=-1).values, "sort"),
    ]


def _jax(library: Library, rows: int, n: int) -> list[Candidate]:
    import jax
    import jax.numpy as jnp

    weights = library.array(gap_weights(n))

    @jax.jit
    def sort_form(rewards: Array) -> Array:
        index = jax.lax.broadcasted_iota(jnp.int32, rewards.shape, 1)
        ordered, order = jax.lax.sort((rewards, index), num_keys=1)
        sums = jnp.cumsum(weights * jnp.diff(ordered, axis=1), axis=1)
        sums = jnp.pad(sums, ((0, 0), (1, 0)))
        row = jax.lax.broadcasted_iota(jnp.int32, rewards.shape, 0)
        return jnp.zeros_like(rewards).at[row, order].set(sums, unique_indices=True)

    return [
        Candidate("jax copy", library, jax.jit(jnp.copy), "copy"),
        Candidate("jax.jit, sort form", library, sort_form),
    ]


def _numpy(library: Library, rows: int, n: int) -> list[Candidate]:
    target, few = np.empty((rows, n), np.float32), min(rows, max(1, FEW_ELEMENTS // n))

    def copy(rewards: Array) -> Array:
        np.copyto(target, rewards)
        return target

    def row_by_row(rewards: Array) -> Array:
        return listing.transform(rewards[:few], K)

    return [
        Candidate("numpy copy", library, copy, "copy"),
        Candidate("numpy row by row", library, row_by_row, rows=few),
    ]


_OF_LIBRARY: dict[str, Callable[[Any, int, int], list[Candidate]]] = {
    "torch": _torch,
    "jax": _jax,
    "numpy": _numpy,
}
