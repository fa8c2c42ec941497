"""What a call takes of the host, beside dispatching torch's own operations for the same.

    python -m bench.host [--out FOLDER]

Needs no GPU, but a C compiler: Triton's real launcher runs over a CUDA driver that does nothing
(stub_libcuda.c), on tensors in the CPU's memory, so that what is timed is all that a call does but
the driver's launch. Beside it torch dispatches the eager sort form (sort, diff, mul, cumsum, zeros,
scatter_) of a 2 x 2 matrix, where next to nothing is computed. All take turns; a figure is the
least of many rounds over the sort form's least, in one run. The last line is

    host eager R compiled R max_at_k R

the plain call, the operator that a compiled program calls, and max@k for four ks.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import typer

from bench import records
from bench.records import CommitOption, OutOption

ROWS, N, K = 1024, 16, 8
KS = [1, 2, 4, 8]
SORT_FORM = "torch, sort form"
CALLS, ROUNDS = 200, 60
# Set for the process that runs over the driver.
_OVER_STUB = "PKPO_BENCH_OVER_STUB"


def main(out: OutOption = records.RESULTS, commit: CommitOption = None) -> None:
    """Measure what a call takes of the host."""
    if os.environ.get(_OVER_STUB):
        report(out, commit)
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
        }
        again = subprocess.run([sys.executable, "-m", "bench.host", *sys.argv[1:]], env=environment)
    raise typer.Exit(again.returncode)


def report(out: Path, commit: str | None) -> None:
    """Time all, write the table, and print it."""
    with over_stub():
        spent = least_seconds(candidates())
    rows = [
        {"candidate": name, "us": 1e6 * one, "of_sort_form": one / spent[SORT_FORM]}
        for name, one in spent.items()
    ]
    where = records.origin("cpu", commit)
    path = out / records.file_name("host", where["device"])
    records.write_table(path, rows, where)
    records.report(path, f"{ROWS} x {N}, k={K}", {"the host's work": lines_of(rows)}, [])
    ratios = {row["candidate"]: row["of_sort_form"] for row in rows}
    eager, compiled, best = (f"{ratios[name]:.2f}" for name in ("eager", "compiled", "max_at_k"))
    print(f"host eager {eager} compiled {compiled} max_at_k {best}")


def lines_of(rows: Any) -> list[list[str]]:
    """Lay out ratios and times, a candidate a line."""
    head = ["a call", "of the sort form's dispatch", "µs, that machine's"]
    return [
        head,
        *(
            [
                row["candidate"],
                f"{float(row['of_sort_form']):.2f}",
                records.figure(float(row["us"])),
            ]
            for row in rows
        ),
    ]


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


def least_seconds(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Time calls in turns: name → the least processor time of one."""
    for call in calls.values():
        call(), call()
    spent = dict.fromkeys(calls, float("inf"))
    gc.disable()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(CALLS):
                call()
            spent[name] = min(spent[name], (time.thread_time() - start) / CALLS)
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
    return patches


if __name__ == "__main__":
    typer.run(main)
