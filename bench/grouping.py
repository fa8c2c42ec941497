"""What ids of groups cost: pk.transform_groups beside pk.transform on the same samples as a matrix.

    python -m bench.grouping [--device auto|cpu|cuda|tpu] [--quick] [--out FOLDER]

Groups of one size: as contiguous blocks, by integer ids in any order, on the device and as NumPy's,
and by ids of text, looked up in every call; JAX's also under jax.jit. All take turns, each result
is checked against that of the matrix, and every figure is a ratio to the matrix of the same
library.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

import pkpo_kernels as pk
from bench import records
from bench.harness import ROUNDS, seconds
from bench.libraries import Call, Library, opened
from bench.records import CommitOption, Device, DeviceOption, OutOption, Row, figure, pivot
from bench.shapes import Shape

K = 8
SHAPES = (Shape(1024, 16), Shape(16384, 16), Shape(1024, 256))
MATRIX = "a matrix"


def candidates(library: Library, shape: Shape) -> dict[str, Call]:
    """Bind what is timed: name → a call that returns (N,), or (rows, n) of the matrix; what it is
    given is of no account."""
    rng = np.random.default_rng(shape.rows)
    rewards = rng.standard_normal((shape.rows, shape.n)).astype(np.float32)
    order = rng.permutation(rewards.size)
    names = rng.permutation(shape.rows)
    ids = np.repeat(names, shape.n)[order]
    text = [f"a-task-of-some-name-{one:08x}" for one in ids]
    matrix, flat = library.array(rewards), library.array(rewards.reshape(-1))
    mixed, on_device = library.array(rewards.reshape(-1)[order]), library.array(ids)
    by_id = {
        "integers": lambda _: pk.transform_groups(mixed, on_device, K, scale="sum"),
        "integers of the host": lambda _: pk.transform_groups(mixed, ids, K, scale="sum"),
        "text": lambda _: pk.transform_groups(mixed, text, K, scale="sum"),
    }
    if library.name == "numpy":
        del by_id["integers of the host"]
    if library.name == "jax":
        import jax

        program = jax.jit(lambda x, i: pk.transform_groups(x, i, K, scale="sum"))
        by_id["integers, under jit"] = lambda _: program(mixed, on_device)
    want = np.asarray(pk.transform(rewards.astype(np.float64), K)).reshape(-1)
    found: dict[str, Call] = {
        MATRIX: lambda _: pk.transform(matrix, K),
        "blocks": lambda _: pk.transform_groups(flat, shape.n, K, scale="sum"),
        **by_id,
    }
    for name, call in found.items():
        got = library.rows(call(None).reshape(-1), range(len(want)))
        right = want[order] if name in by_id else want
        np.testing.assert_allclose(got, right, rtol=5e-6, atol=1e-9, err_msg=name)
    return found


def measure(library: Library, shape: Shape) -> list[dict[str, Any]]:
    """Time the candidates of a library in rounds → a row for each."""
    calls = candidates(library, shape)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            spent[name].append(seconds(call, repeat(None, 1), 1, library, host=False))
    medians = {name: float(np.median(times)) for name, times in spent.items()}
    return [
        {"candidate": name, "library": library.name, "rows": shape.rows, "n": shape.n}
        | {"ms": 1e3 * median, "of_matrix": median / medians[MATRIX]}
        for name, median in medians.items()
    ]


def times_the_matrix(rows: Sequence[Row]) -> list[list[str]]:
    """Lay out the ratios, a library and a kind of ids a line."""
    return pivot(
        rows,
        lambda row: f"{row['library']}: {row['candidate']}",
        lambda row: f"{row['rows']} x {row['n']}",
        lambda row: (
            f"{figure(float(row['ms']))} ms"
            if row["candidate"] == MATRIX
            else f"{float(row['of_matrix']):.2f} x"
        ),
        "groups",
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    device: DeviceOption = Device.auto,
    quick: Annotated[bool, typer.Option("--quick", help="The first shape only.")] = False,
    out: OutOption = records.RESULTS,
    commit: CommitOption = None,
) -> None:
    """Measure what ids of groups cost beside a matrix."""
    chosen, errors = records.present(device), Console(stderr=True)
    where, rows = records.origin(chosen, commit), []
    work = [(one, shape) for one in opened(chosen, errors.print) for shape in SHAPES]
    if quick:
        work = [it for it in work if it[1] == SHAPES[0]]
    for library, shape in track(work, "groups", console=errors, transient=True):
        rows += measure(library, shape)
    path = out / records.file_name("grouping", where["device"])
    records.write_table(path, rows, where)
    records.report(
        path, f"k={K}, {where['device']}", {"times the matrix": times_the_matrix(rows)}, []
    )


if __name__ == "__main__":
    app()
