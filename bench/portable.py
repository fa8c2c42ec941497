"""How much the portable implementations cost beyond the sort that they cannot do without.

    python -m bench.portable [--json FILE]

Every time is the median of interleaved rounds in this one process, and what counts is its ratio
to the library's own sort of the same matrix (np.argsort, torch.sort, lax.sort of keys and places),
or to a form that goes row by row in NumPy: the listing in bench/listing.py, and the package's own
reference. Temporary memory is what bench.scaling says of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax
import jax.numpy as jnp
import torch
from jax import lax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pkpo_kernels as pk
from bench import commit_id, listing
from bench.scaling import temporary_memory
from pkpo_kernels.backends.registry import library_served
from pkpo_kernels.conversion import from_host

# (rows, n) of the comparison with the sort, and the most that the whole may cost in units of it.
BARS_SHAPES = ((262144, 16), (4096, 1024))
BARS = {"numpy": 1.6, "torch": 1.6, "xla": 2.0}
ROW_BY_ROW_SHAPE, ROW_BY_ROW_BAR = (4096, 64), 100
MEMORY_BAR = 8
K = 4
ROUNDS = 9


@jax.jit
def sort_pairs(x: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(lax.sort((x, lax.broadcasted_iota(jnp.int32, x.shape, 1)), num_keys=1))


def arms(rewards: np.ndarray[Any, Any]) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """implementation → (the transform, the sort alone)."""
    tensor, array = torch.from_numpy(rewards), jnp.asarray(rewards)
    return {
        "numpy": (lambda: pk.transform(rewards, K), lambda: np.argsort(rewards, -1)),
        "torch": (lambda: pk.transform(tensor, K), lambda: torch.sort(tensor, -1)),
        "xla": (
            lambda: pk.transform(array, K).block_until_ready(),
            lambda: sort_pairs(array)[0].block_until_ready(),
        ),
    }


def medians(functions: list[Callable[[], Any]], rounds: int = ROUNDS) -> list[float]:
    """Median seconds of each, the functions taking turns."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if turn:  # the first warms up
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def memory_of(implementation: Any, rewards: np.ndarray[Any, Any]) -> float:
    """Peak bytes besides input and result, in units of the input."""
    array = from_host(rewards, library_served(implementation))
    return temporary_memory(lambda x: pk.transform(x, K, implementation=implementation), array)


def measure() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    results: list[dict[str, Any]] = []
    for rows, n in track(BARS_SHAPES, "sorts", console=Console(stderr=True), transient=True):
        rewards = rng.standard_normal((rows, n)).astype(np.float32)
        for implementation, (transform, sort) in arms(rewards).items():
            whole, alone = medians([transform, sort])
            results.append(
                {
                    "implementation": implementation,
                    "rows": rows,
                    "n": n,
                    "milliseconds": 1e3 * whole,
                    "against": "its library's sort",
                    "against_milliseconds": 1e3 * alone,
                    "ratio": whole / alone,
                    "bar": BARS[implementation],
                    "temporary_memory": memory_of(implementation, rewards),
                }
            )
    rows, n = ROW_BY_ROW_SHAPE
    rewards = rng.standard_normal((rows, n)).astype(np.float32)
    row_by_row: dict[str, Callable[[], Any]] = {
        "the listing, row by row": lambda: listing.transform(rewards, K),
        "the reference, row by row": lambda: pk.transform(rewards, K, implementation="reference"),
    }
    np.testing.assert_allclose(
        listing.transform(rewards[:9], K), pk.transform(rewards[:9], K), atol=1e-6
    )
    row_by_row_seconds = medians(list(row_by_row.values()), 1)
    for implementation, (transform, _) in arms(rewards).items():
        (whole,) = medians([transform])
        results += [
            {
                "implementation": implementation,
                "rows": rows,
                "n": n,
                "milliseconds": 1e3 * whole,
                "against": name,
                "against_milliseconds": 1e3 * seconds,
                "ratio": whole / seconds,
                "bar": 1 / ROW_BY_ROW_BAR,
                "temporary_memory": memory_of(implementation, rewards),
            }
            for name, seconds in zip(row_by_row, row_by_row_seconds, strict=True)
        ]
    return results


def table(results: list[dict[str, Any]]) -> Table:
    out = Table(title=f"transform at k={K}, float32, gaussian")
    columns = ("implementation", "rows x n", "ms", "against", "ms", "ratio", "bar", "memory")
    for column in columns:
        out.add_column(
            column, justify="left" if column in ("implementation", "against") else "right"
        )
    for result in results:
        met = "" if result["ratio"] <= result["bar"] else " missed"
        out.add_row(
            result["implementation"],
            f"{result['rows']} x {result['n']}",
            f"{result['milliseconds']:.1f}",
            result["against"],
            f"{result['against_milliseconds']:.1f}",
            f"{result['ratio']:.3g}",
            f"{result['bar']:.3g}{met}",
            f"{result['temporary_memory']:.1f} x",
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    results = measure()
    Console(width=120).print(table(results))
    if arguments.json:
        record = {
            "device": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
            "commit": commit_id(),
            "versions": {name: version(name) for name in ("numpy", "torch", "jax")},
            "results": results,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
