"""What the Triton kernels reach on a GPU, kind by kind of rewards, and what a step waits for.

    python -m bench.kernels [--quick] [--out FOLDER]

Large matrices: GB/s of reading rewards, and a mask, and of writing results, and as a ratio to
torch's copy of float32 in the rounds of bench/harness.py. Small ones, beside torch's own sort form:
what the GPU takes, replayed from a CUDA graph, and what an eager call takes of the host. Of results
the first, middle and last rows are compared with float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import typer

import pkpo_kernels as pk
from bench import command, harness
from bench.candidates import gap_weights, torch_sort_form
from bench.harness import Candidate
from bench.libraries import Array, Library
from bench.records import Lines, Row, figure, number, pivot
from bench.shapes import K, Shape
from pkpo_kernels.conversion import to_host

ELEMENTS, QUICK_ELEMENTS = 1 << 28, 1 << 24
LENGTHS = (8, 16, 32, 40, 64, 100, 128, 256, 300, 512, 1000, 1024, 2048, 4096)
QUICK_LENGTHS = (16, 40, 256, 4096)
STEPS = tuple(
    Shape(*shape)
    for shape in ((64, 8), (1024, 8), (1024, 16), (16384, 16), (1024, 64), (8192, 64), (1024, 256))
)
SORT_FORM = "torch eager, sort form"
# A kind of rewards → how it is made of normal ones, and the share of samples that a mask leaves in.
KINDS: dict[str, tuple[Callable[[Array], Array], float | None]] = {
    "float32, normal": (lambda x: x, None),
    "float32, 0/1": (lambda x: (x > 0).float(), None),
    "float32, four values": (lambda x: (1.2 * x).clamp(-1, 2).round(), None),
    "float32, normal, where": (lambda x: x, 0.8),
    "float32, 0/1, where": (lambda x: (x > 0).float(), 0.8),
    "bfloat16, normal": (lambda x: x.bfloat16(), None),
}
TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-2}  # of a row's largest result
CHECKED = 64  # rows at either end, and in the middle
REPLAYED, REPLAYS = 20, 7


def measure(libraries: Sequence[Library], quick: bool) -> Iterator[list[dict[str, Any]]]:
    """Measure the kernels' rates, kind by kind, and small matrices."""
    torch = libraries[0]
    if torch.device != "cuda":
        raise typer.BadParameter("bench.kernels needs a torch that sees a GPU")
    for shape in STEPS[: 3 if quick else None]:
        yield of_step(torch, shape)
    normal = torch.xp.randn(QUICK_ELEMENTS if quick else ELEMENTS, device=torch.device)
    for n in QUICK_LENGTHS if quick else LENGTHS:
        for kind in KINDS:
            yield [of_kind(torch, kind, normal[: len(normal) // n * n].reshape(-1, n))]


def made(torch: Library, kind: str, normal: Array) -> tuple[Array, Array | None]:
    """Make rewards (rows, n) of one kind of normal ones, and a mask if it has one."""
    make, share = KINDS[kind]
    where = None if share is None else torch.xp.rand(normal.shape, device=torch.device) < share
    return make(normal), where


def of_kind(torch: Library, kind: str, normal: Array) -> dict[str, Any]:
    """Time the transform of one kind of rewards, made of normal ones (rows, n)."""
    copied = torch.xp.empty_like(normal)
    rewards, where = made(torch, kind, normal)

    def transform(x: Array) -> Array:
        return pk.transform(x, K, where=where, implementation="triton")

    def check(candidate: Candidate, out: Array) -> float | None:
        return off(rewards, where, out) if candidate.result == "transform" else None

    entries = [
        (Candidate("torch copy", torch, copied.copy_, "copy"), [normal]),
        (Candidate("pk triton", torch, transform), [rewards]),
    ]
    copy, ours = harness.measure(entries, check)
    row = ours.row() | {"kind": kind, "rows": normal.shape[0], "n": normal.shape[1]}
    if ours.samples and copy.samples:
        size = rewards.numel() * (2 * rewards.element_size() + (where is not None))
        row["gb_per_s"] = size / np.median(ours.samples) / 1e9
        row["of_copy"] = row["gb_per_s"] / (8 * normal.numel() / np.median(copy.samples) / 1e9)
    return row


def off(rewards: Array, where: Array | None, out: Array) -> float | None:
    """Compare first, middle and last rows with float64: None where they are right, else how far
    they are off."""
    first = np.array([0, len(rewards) // 2, len(rewards) - CHECKED]).clip(0)
    rows = np.unique(first[:, None] + np.arange(min(CHECKED, len(rewards) - first[1])))
    mask = None if where is None else to_host(where[rows])
    right = pk.transform(to_host(rewards[rows].double()), K, where=mask)
    relative = TOLERANCE[str(rewards.dtype).removeprefix("torch.")]
    largest = np.abs(right).max(axis=1, keepdims=True)
    return harness.off_by(to_host(out[rows].double()), right, relative * largest)


def of_step(torch: Library, shape: Shape) -> list[dict[str, Any]]:
    """Time a matrix of a training step: what calls take of the GPU, and of the host."""
    rewards = torch.xp.randn(*shape, device=torch.device)
    sort_form = Candidate(SORT_FORM, torch, torch_sort_form(torch.array(gap_weights(shape.n))))
    ours = Candidate("pk triton", torch, lambda x: pk.transform(x, K))
    every = harness.measure(
        [(it, [rewards]) for it in (ours, sort_form)],
        lambda candidate, out: off(rewards, None, out),
        host=True,
    )
    rows = [timed.row() | timed.quantiles("host_us", 1e-6) for timed in every]
    for row, timed in zip(rows, every, strict=True):
        row |= {"kind": "a step", "rows": shape.rows, "n": shape.n}
        if not timed.reason:
            row["gpu_us"] = gpu_us(torch, timed.candidate.call, rewards)
    return rows


def gpu_us(torch: Library, call: Callable[[Array], Array], rewards: Array) -> float:
    """Time calls that a CUDA graph replays: µs of one."""
    cuda = torch.xp.cuda
    call(rewards), call(rewards)
    cuda.synchronize()
    graph, took = cuda.CUDAGraph(), []
    with cuda.graph(graph):
        for _ in range(REPLAYED):
            call(rewards)
    for _ in range(REPLAYS + 1):  # the first is not counted
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        cuda.synchronize()
        took.append(1e3 * start.elapsed_time(end) / REPLAYED)
    return float(np.median(took[1:]))


def tables(rows: Sequence[Row]) -> dict[str, Lines]:
    """Lay out rates, a kind a line, and small matrices, a candidate a line."""

    def rate(row: Row) -> str:
        found, ratio = number(row, "gb_per_s"), number(row, "of_copy")
        if found is None or ratio is None:
            return str(row["reason"]).partition(":")[0]
        return f"{figure(found)} ({ratio:.2f}x)"

    def cost(row: Row) -> str:
        gpu, host = number(row, "gpu_us"), number(row, "host_us")
        if gpu is None or host is None:
            return str(row["reason"]).partition(":")[0]
        return f"{figure(gpu)}, {figure(host)}"

    large = [row for row in rows if row["kind"] != "a step"]
    small = [row for row in rows if row["kind"] == "a step"]
    n_of, shape_of = "n={n}".format_map, "{rows} x {n}".format_map
    found: dict[str, Lines] = {}
    if small:
        title = "µs of the GPU, and of the host"
        found["small matrices"] = pivot(small, "{candidate}".format_map, shape_of, cost, title)
    if large:
        lines = pivot(large, "{kind}".format_map, n_of, rate, f"k={K}")
        found["GB/s, and as a ratio to torch's copy of float32"] = lines
    return found


BENCH = command.Bench("kernels", measure, tables)
app = command.command_of(BENCH)

if __name__ == "__main__":
    app()
