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

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from bench import command, harness, records
from bench.candidates import torch_sort_form
from bench.harness import Candidate
from bench.libraries import Library, Torch
from bench.records import Lines, Row, figure

ROWS, N, K = 1024, 16, 8
KS = [1, 2, 4, 8]
SORT_FORM = "torch, sort form"
# What group-relative advantages are without us.
MEAN_AND_STD = "torch, (x - mean) / std"
SMALL = ((64, 8), (1024, 64))
ROUNDS = 200
OF_GPU = "a GPU's"

Calls = Mapping[str, Callable[[None], Any]]  # what they are given is of no account


def measure(libraries: Sequence[Library], quick: bool) -> Iterator[list[dict[str, Any]]]:
    """Measure what a call takes of the host."""
    (torch,), rounds = libraries, 2 if quick else ROUNDS
    with over_stub():
        rows = timed(torch, OF_GPU, SORT_FORM, gpu_calls(), rounds)
    yield rows
    for shape in SMALL:
        kind = f"{shape[0]} x {shape[1]}"
        yield timed(torch, kind, MEAN_AND_STD, small_calls(*shape), rounds)


def timed(
    torch: Library, kind: str, beside: str, calls: Calls, rounds: int
) -> list[dict[str, Any]]:
    """Time calls by the processor's time → a row for each, with its ratio to one of them."""
    entries = [(Candidate(name, torch, call), [None]) for name, call in calls.items()]
    found = harness.measure(entries, None, host=True, clock=time.thread_time, rounds=rounds)
    if failed := [f"{one.candidate.name}: {one.reason}" for one in found if one.reason]:
        raise RuntimeError("; ".join(failed))
    least = {one.candidate.name: min(one.samples) for one in found}
    return [
        {"calls": kind, "candidate": name, "us": 1e6 * one, "ratio": one / least[beside]}
        for name, one in least.items()
    ]


def small_calls(rows: int, n: int) -> Calls:
    """Bind what is timed on a CPU, one thread."""
    import torch

    import pkpo_kernels as pk

    x = torch.randn(rows, n)
    array = x.numpy()
    k = n // 2
    return {
        MEAN_AND_STD: lambda _: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6),
        "pk.transform, a tensor": lambda _: pk.transform(x, k),
        "pk.transform, NumPy's array": lambda _: pk.transform(array, k),
        'pk.transform, a tensor, "torch"': lambda _: pk.transform(x, k, implementation="torch"),
    }


def gpu_calls() -> Calls:
    """Bind what is timed over the driver that does nothing."""
    import torch
    from pkpo_triton import operators  # noqa: F401
    from pkpo_triton.coefficients import as_text

    import pkpo_kernels as pk

    x = torch.randn(ROWS, N)
    cube = x.view(32, 32, N)
    where, k_of_rows = x > -1, torch.full((ROWS,), K)
    dynamic_k = torch.tensor(K)
    small, sort_form = torch.randn(2, 2), torch_sort_form(torch.randn(1))
    flat, ids = small.flatten(), torch.tensor([7, 3, 3, 7])
    kept, of_host, texts = flat > -1, ids.numpy(), ["a", "b", "b", "a"]
    rules = as_text(pk.ESTIMATORS["sloo_minus_one"], "sum", "zero")
    compiled = torch.ops.pkpo_triton.transform.default

    return {
        SORT_FORM: lambda _: sort_form(small),
        "eager": lambda _: pk.transform(x, K),
        "eager, (32, 32, 16)": lambda _: pk.transform(cube, K),
        "eager, k a tensor": lambda _: pk.transform(x, dynamic_k),
        "eager, where": lambda _: pk.transform(x, K, where=where),
        "eager, a k a row": lambda _: pk.transform(x, k_of_rows),
        "max_at_k": lambda _: pk.max_at_k(x, KS),
        "groups, blocks": lambda _: pk.transform_groups(flat, 2, 2),
        "groups, blocks, no mask": lambda _: pk.transform_groups(flat, 2, 2, nan="propagate"),
        "groups, integers": lambda _: pk.transform_groups(flat, ids, 2),
        "groups, integers, k a tensor": lambda _: pk.transform_groups(flat, ids, dynamic_k),
        "groups, integers, where": lambda _: pk.transform_groups(flat, ids, 2, where=kept),
        "groups, integers of the host": lambda _: pk.transform_groups(flat, of_host, 2),
        "groups, text": lambda _: pk.transform_groups(flat, texts, 2),
        "compiled": lambda _: compiled(x, K, None, None, rules),
    }


def load_stub(folder: str) -> None:
    """Build the driver that does nothing, and load it: all that asks for libcuda.so.1 later has
    it."""
    library = Path(folder) / "libcuda.so.1"
    source = Path(__file__).with_name("stub_libcuda.c")
    flags = ["-shared", "-fPIC", "-O1", f"-Wl,-soname,{library.name}"]
    subprocess.run(["cc", *flags, "-o", library, source], check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = folder  # to link with


def keep_freed_memory() -> None:
    """Have the C library keep freed memory, as torch keeps a GPU's: else whether each result asks
    the system for its memory is chance."""
    trim_threshold, top_pad = -1, -2
    ctypes.CDLL(None).mallopt(trim_threshold, 1 << 30)
    ctypes.CDLL(None).mallopt(top_pad, 1 << 24)


def over_stub() -> ExitStack:
    """Have torch and Triton take the CPU for an H100: every question to the driver costs about what
    it costs there."""
    import torch
    import triton
    from pkpo_triton import operators
    from triton.backends.nvidia.driver import CudaDriver

    from pkpo_kernels import _calls, _entries
    from pkpo_kernels.backends import _devices

    torch.set_num_threads(1)
    patches = ExitStack()

    def patch(owner: Any, name: str, value: Any) -> None:
        patches.enter_context(mock.patch.object(owner, name, value, create=True))

    patch(torch._C, "_cuda_getCurrentRawStream", lambda index: 0)
    patch(torch._C, "_cuda_getDevice", lambda: 0)
    patch(torch._C, "_cuda_isCurrentStreamCapturing", lambda: False)
    patch(torch.cuda, "current_device", lambda: 0)
    patch(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    patch(torch.cuda, "is_current_stream_capturing", lambda: False)
    patch(CudaDriver, "is_active", staticmethod(lambda: True))
    patch(_entries, "on_one_cpu", lambda library, array: False)
    patch(_devices, "interprets_triton", lambda: True)  # lets tensors on a CPU through
    patch(_devices, "no_triton_interpreter", lambda: None)
    patch(_calls, "_stream", lambda torch, rewards: _calls._stream_of_gpu(torch, 0))
    patch(operators, "_stream_to_keep", lambda x: operators._stream_of_gpu(0))
    triton.runtime.driver.set_active(CudaDriver())
    patches.callback(_calls.forget)  # what was prepared for that driver
    return patches


def tables(rows: Sequence[Row]) -> dict[str, Lines]:
    """Lay out what calls for a GPU take, a call a line, and small ones on a CPU, a shape a
    column."""
    head = [f"a call, {ROWS} x {N}", "of dispatching the sort form", "µs there"]
    of_gpu = [
        [row["candidate"], f"{float(row['ratio']):.2f}", figure(float(row["us"]))]
        for row in rows
        if row["calls"] == OF_GPU
    ]
    small = records.pivot(
        [row for row in rows if row["calls"] != OF_GPU],
        "{candidate}".format_map,
        "{calls}".format_map,
        lambda row: f"{float(row['ratio']):.2f} x ({figure(float(row['us']))} µs)",
        "a call",
    )
    return {"a GPU's calls": [head, *of_gpu], "small calls on a CPU": small}


BENCH = command.Bench("host", measure, tables)
app = command.new_app()


@app.command(help=measure.__doc__)
def main(
    quick: command.QuickOption = False,
    out: command.OutOption = records.RESULTS,
    commit: command.CommitOption = None,
) -> None:
    with TemporaryDirectory() as folder:
        load_stub(folder)
        keep_freed_memory()
        rows = command.run(BENCH, [Torch("cpu")], quick, out, commit)
    ratio = {row["candidate"]: f"{row['ratio']:.2f}" for row in rows if row["calls"] == OF_GPU}
    print(f"host eager {ratio['eager']} compiled {ratio['compiled']} max_at_k {ratio['max_at_k']}")


if __name__ == "__main__":
    app()
