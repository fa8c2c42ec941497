"""What a call takes of the host, beside dispatching torch's own operations for the same.

    python -m bench.host [--quick] [--out FOLDER]

Needs no GPU, but a C compiler: Triton's real launcher runs over a CUDA driver that does nothing
(stub_libcuda.c), on tensors in the CPU's memory, so that what is timed is all that a call does but
the driver's launch. Beside it torch dispatches the eager sort form (sort, diff, mul, cumsum, zeros,
scatter_) of a 2 x 2 matrix, where next to nothing is computed. All take turns; a figure is the
least of many rounds over the sort form's least, in one run. The last line is

    host eager R compiled R max_at_k R

the plain call, the operator that a compiled program calls, and max@k for four ks. A second table
has small calls on the CPU itself, one thread, beside torch's mean and std.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from unittest import mock

import typer

from bench import records
from bench.records import CommitOption, OutOption, Row

ROWS, N, K = 1024, 16, 8
KS = [1, 2, 4, 8]
SORT_FORM = "torch, sort form"
# What group-relative advantages are without us.
MEAN_AND_STD = "torch, (x - mean) / std"
SMALL = ((64, 8), (1024, 64))
ROUNDS = 60
# Of a round's calls of one candidate.
SECONDS = 2e-3
# Set for the process that runs over the driver.
_OVER_STUB = "PKPO_BENCH_OVER_STUB"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds, too few to trust.")] = False,
    out: OutOption = records.RESULTS,
    commit: CommitOption = None,
) -> None:
    """Measure what a call takes of the host."""
    if os.environ.get(_OVER_STUB):
        report(2 if quick else ROUNDS, out, commit)
        return
    with TemporaryDirectory() as folder:
        source = Path(__file__).with_name("stub_libcuda.c")
        library = Path(folder) / "libcuda.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        paths = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        environment = os.environ | {
            _OVER_STUB: "1",
            "TRITON_LIBCUDA_PATH": folder,
            "LD_LIBRARY_PATH": os.pathsep.join(paths),
            # Freed memory is kept, as torch keeps a GPU's: else whether each result asks the
            # system for its memory is chance.
            "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
            "MALLOC_TOP_PAD_": str(1 << 24),
        }
        again = subprocess.run([sys.executable, "-m", "bench.host", *sys.argv[1:]], env=environment)
    raise typer.Exit(again.returncode)


def report(rounds: int, out: Path, commit: str | None) -> None:
    """Time all, write the table, and print it."""
    with over_stub():
        rows = timed("a GPU's", SORT_FORM, candidates(), rounds)
    for shape in SMALL:
        rows += timed(f"{shape[0]} x {shape[1]}", MEAN_AND_STD, small_calls(*shape), rounds)
    where = records.origin("cpu", commit)
    path = out / records.file_name("host", where["device"])
    records.write_table(path, rows, where)
    tables = {"a GPU's calls": gpu_lines(rows), "small calls on a CPU": cpu_lines(rows)}
    records.report(path, f"k={K}", tables, [])
    ratios = {row["candidate"]: row["ratio"] for row in rows if row["calls"] == "a GPU's"}
    eager, compiled, best = (f"{ratios[name]:.2f}" for name in ("eager", "compiled", "max_at_k"))
    print(f"host eager {eager} compiled {compiled} max_at_k {best}")


def timed(
    calls: str, beside: str, found: dict[str, Callable[[], Any]], rounds: int
) -> list[dict[str, Any]]:
    """Time calls → a row for each, with its ratio to one of them."""
    spent = least_seconds(found, rounds)
    return [
        {"calls": calls, "candidate": name, "us": 1e6 * one, "ratio": one / spent[beside]}
        for name, one in spent.items()
    ]


def gpu_lines(rows: Sequence[Row]) -> list[list[str]]:
    """Lay out what calls for a GPU take of the host, a call a line."""
    head = [f"a call, {ROWS} x {N}", "of dispatching the sort form", "µs there"]
    return [
        head,
        *(
            [row["candidate"], f"{float(row['ratio']):.2f}", records.figure(float(row["us"]))]
            for row in rows
            if row["calls"] == "a GPU's"
        ),
    ]


def cpu_lines(rows: Sequence[Row]) -> list[list[str]]:
    """Lay out small calls on a CPU, a call a line and a shape a column."""
    return records.pivot(
        [row for row in rows if row["calls"] != "a GPU's"],
        lambda row: row["candidate"],
        lambda row: row["calls"],
        lambda row: f"{float(row['ratio']):.2f} x ({records.figure(float(row['us']))} µs)",
        "a call",
    )


def small_calls(rows: int, n: int) -> dict[str, Callable[[], Any]]:
    """Bind what is timed on a CPU, one thread."""
    import torch

    import pkpo_kernels as pk

    x = torch.randn(rows, n)
    array = x.numpy()
    k = n // 2
    return {
        MEAN_AND_STD: lambda: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6),
        "pk.transform, a tensor": lambda: pk.transform(x, k),
        "pk.transform, NumPy's array": lambda: pk.transform(array, k),
        'pk.transform, a tensor, "torch"': lambda: pk.transform(x, k, implementation="torch"),
    }


def candidates() -> dict[str, Callable[[], Any]]:
    """Bind what is timed."""
    import torch
    from pkpo_triton import operators  # noqa: F401
    from pkpo_triton.coefficients import as_text

    import pkpo_kernels as pk

    x = torch.randn(ROWS, N)
    cube = x.view(32, 32, N)
    where, k_of_rows = x > -1, torch.full((ROWS,), K)
    dynamic_k = torch.tensor(K)
    small, weights = torch.randn(2, 2), torch.randn(1)
    rules = as_text(pk.ESTIMATORS["sloo_minus_one"], "sum", "zero")
    compiled = torch.ops.pkpo_triton.transform.default

    def sort_form() -> torch.Tensor:
        ordered, indices = torch.sort(small, dim=-1)
        sums = torch.cumsum(weights * torch.diff(ordered, dim=-1), dim=-1)
        return torch.zeros_like(ordered).scatter_(-1, indices[:, 1:], sums)

    return {
        SORT_FORM: sort_form,
        "eager": lambda: pk.transform(x, K),
        "eager, (32, 32, 16)": lambda: pk.transform(cube, K),
        "eager, k a tensor": lambda: pk.transform(x, dynamic_k),
        "eager, where": lambda: pk.transform(x, K, where=where),
        "eager, a k a row": lambda: pk.transform(x, k_of_rows),
        "max_at_k": lambda: pk.max_at_k(x, KS),
        "compiled": lambda: compiled(x, K, None, None, rules, torch.float32),
    }


def least_seconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Time calls in turns: name → the least processor time of one."""
    times = {}
    for name, call in calls.items():
        call()
        start = time.thread_time()
        call()
        times[name] = max(1, int(SECONDS / (time.thread_time() - start)))
    spent = dict.fromkeys(calls, float("inf"))
    gc.disable()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(times[name]):
                call()
            spent[name] = min(spent[name], (time.thread_time() - start) / times[name])
    gc.enable()
    return spent


def over_stub() -> ExitStack:
    """Have torch and Triton take the CPU for an H100: every question to the driver costs about what
    it costs there."""
    import torch
    import triton
    from pkpo_triton import launch
    from triton.backends.nvidia.driver import CudaDriver

    from pkpo_kernels import _calls
    from pkpo_kernels.backends import _devices

    torch.set_num_threads(1)
    patches = ExitStack()

    def patch(owner: Any, name: str, value: Any) -> None:
        patches.enter_context(mock.patch.object(owner, name, value, create=True))

    patch(torch._C, "_cuda_getCurrentRawStream", lambda index: 0)
    patch(torch.cuda, "current_device", lambda: 0)
    patch(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    patch(torch.cuda, "is_current_stream_capturing", lambda: False)
    patch(CudaDriver, "is_active", staticmethod(lambda: True))
    patch(_devices, "interprets_triton", lambda: True)  # lets tensors on a CPU through
    patch(_devices, "no_triton_interpreter", lambda: None)
    patch(_calls, "_stream", lambda torch, rewards: _calls._stream_of_gpu(torch, 0))
    patch(launch, "stream_to_keep", lambda device: launch.stream_of_gpu(0))
    triton.runtime.driver.set_active(CudaDriver())
    patches.callback(_calls.forget)  # what was prepared for that driver
    return patches


if __name__ == "__main__":
    app()
