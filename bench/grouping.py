"""What ids of groups cost: pk.transform_groups beside pk.transform on the same samples as a matrix.

    python -m bench.grouping [--device auto|cpu|cuda|tpu] [--quick] [--out FOLDER]

Groups of one size: as contiguous blocks, by integer ids in any order, on the device and as NumPy's,
and by ids of text, looked up in every call: a group's entries have one string, as where a trainer
repeats its prompts, or each has its own, as where a file was read. JAX's also under jax.jit. All
are checked and timed by bench/harness.py, and every figure is a ratio to the matrix of the same
library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

import pkpo_kernels as pk
from bench import command, harness
from bench.harness import Candidate
from bench.libraries import Array, Call, Library
from bench.records import Lines, Row, figure, number, pivot
from bench.shapes import Shape
from pkpo_kernels.conversion import to_host

K = 8
SHAPES = (Shape(1024, 16), Shape(16384, 16), Shape(1024, 256))
MATRIX = "a matrix"


def measure(libraries: Sequence[Library], quick: bool) -> Iterator[list[dict[str, Any]]]:
    """Measure what ids of groups cost beside a matrix."""
    for library in libraries:
        for shape in SHAPES[: 1 if quick else None]:
            yield measure_one(library, shape)


def measure_one(library: Library, shape: Shape) -> list[dict[str, Any]]:
    """Time a library's calls in rounds → a row for each, the matrix first."""
    rng = np.random.default_rng(shape.rows)
    rewards = rng.standard_normal(shape, dtype=np.float32)
    order, names = rng.permutation(rewards.size), rng.permutation(shape.rows)
    ids = np.repeat(names, shape.n)[order]
    matrix, flat = library.array(rewards), library.array(rewards.reshape(-1))
    mixed = library.array(rewards.reshape(-1)[order])
    want = np.asarray(pk.transform(rewards.astype(np.float64), K)).reshape(-1)

    by_id = calls_by_id(library, ids)
    entries = [
        (Candidate(MATRIX, library, lambda x: pk.transform(x, K)), [matrix]),
        (Candidate("blocks", library, partial(_transform, ids=shape.n)), [flat]),
        *((Candidate(name, library, call), [mixed]) for name, call in by_id.items()),
    ]

    def check(candidate: Candidate, out: Array) -> float | None:
        right = want[order] if candidate.name in by_id else want
        allowed = 1e-9 + 5e-6 * np.abs(right)
        return harness.off_by(to_host(out).reshape(1, -1), right[None], allowed)

    every = harness.measure(entries, check)
    rows = [timed.row() | {"rows": shape.rows, "n": shape.n} for timed in every]
    of_matrix = rows[0]["ms"]
    for row in rows:
        row["of_matrix"] = row["ms"] / of_matrix if row["ms"] and of_matrix else None
    return rows


def calls_by_id(library: Library, ids: np.ndarray[Any, Any]) -> dict[str, Call]:
    """Bind transform_groups to ids (N,) in all the forms that a library takes: name → a call."""
    on_device = library.array(ids)
    names = [f"a-task-of-some-name-{one:08x}" for one in range(ids.max() + 1)]
    found: dict[str, Call] = {"integers": partial(_transform, ids=on_device)}
    if library.name != "numpy":
        found["integers of the host"] = partial(_transform, ids=ids)
    found["text"] = partial(_transform, ids=[names[one] for one in ids])
    found["text, read"] = partial(_transform, ids=["".join(list(names[one])) for one in ids])
    if library.name == "jax":
        # A program has what it is bound to as constants: ids are given to it like rewards.
        program = library.jitted(_transform)
        found["integers, under jit"] = partial(program, ids=on_device)
    return found


def _transform(rewards: Array, ids: Any) -> Array:
    return pk.transform_groups(rewards, ids, K, scale="sum")


def tables(rows: Sequence[Row]) -> dict[str, Lines]:
    """Lay out the ratios, a library and a kind of ids a line."""

    def cell(row: Row) -> str:
        if row["candidate"] == MATRIX:
            return f"{figure(number(row, 'ms') or np.nan)} ms"
        ratio = number(row, "of_matrix")
        return f"{ratio:.2f} x" if ratio is not None else row["reason"].partition(":")[0]

    lines = pivot(
        rows,
        "{library}: {candidate}".format_map,
        "{rows} x {n}".format_map,
        cell,
        "groups",
    )
    return {f"times the matrix, k={K}": lines}


BENCH = command.Bench("grouping", measure, tables)
app = command.command_of(BENCH)

if __name__ == "__main__":
    app()
