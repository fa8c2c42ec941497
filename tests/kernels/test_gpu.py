"""What only a GPU can show: no waiting, graphs, devices, huge matrices, the same bits every time.

`make gpu-test` runs this, the contract, test_triton.py and test_launches.py with TEST_DEVICE=cuda;
`make gpu-session` what of it is not slow, so the most telling stands first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subjects import DEVICE

import pkpo_kernels as pk

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU and TEST_DEVICE=cuda")

# A length of each regime; each compiles kernels of its own, for up to a minute.
LENGTHS = (
    8,
    128,
    9000,
    *(pytest.param(n, marks=pytest.mark.slow) for n in (32, 100, 1024, 3000, 8192)),
)


@pytest.mark.parametrize(
    ("n", "layout", "masked"),
    [
        (64, "rows", False),
        (8, "samples", False),
        (16, "rows", True),
        pytest.param(256, "rows", False, marks=pytest.mark.slow),
    ],
)
def test_one_launch_beyond_two_to_the_31_elements(n: int, layout: str, masked: bool) -> None:
    rows = 2**31 // n + 1000
    # Rewards and results of two bytes each, a mask of one, and what making them takes.
    if torch.cuda.mem_get_info()[0] < 8 * rows * n:
        pytest.skip("not enough memory")
    shape = (rows, n) if layout == "rows" else (n, rows)
    rewards = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()
    if layout == "samples":
        rewards = rewards.t()
    where = None
    if masked:
        where = torch.empty(rows, n, dtype=torch.bool, device="cuda").bernoulli_(0.9)
    out = pk.transform(rewards, 3, where=where)
    for part in (slice(0, 100), slice(rows - 100, rows)):
        of_part = None if where is None else where[part].cpu()
        want = pk.transform(rewards[part].cpu(), 3, where=of_part, implementation="torch")
        torch.testing.assert_close(out[part].cpu(), want, rtol=1e-2, atol=1e-6)


def in_a_fresh_process(code: str) -> None:
    """Run the code where no table is made yet and no kernel loaded."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


FIRST_USE_IN_A_COMPILED_FUNCTION = """
import torch
from torch._dynamo.utils import counters
import pkpo_kernels as pk

@torch.compile(mode="reduce-overhead", fullgraph=True)
def step(rewards, k):
    return pk.transform(rewards, 4) + pk.transform(rewards, k) + pk.max_at_k(rewards, [4])

rewards = torch.randn(100, 128, device="cuda")
k = torch.tensor(2, device="cuda")
for turn in range(5):
    rewards.copy_(torch.randn(100, 128))
    k.fill_(turn + 1)
    torch.compiler.cudagraph_mark_step_begin()
    got = step(rewards, k).clone()
    want = pk.transform(rewards, 4) + pk.transform(rewards, turn + 1) + pk.max_at_k(rewards, [4])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
assert not counters["inductor"]["cudagraph_skips"], counters["inductor"]
"""

# A k that was another number before is a variable to torch.compile, which runs what is compiled
# once for each before it captures a graph.
FIRST_USE_OF_EVERY_K = """
import torch
import pkpo_kernels as pk

@torch.compile(mode="reduce-overhead", fullgraph=True)
def step(rewards, k):
    return pk.transform(rewards, k) * 2

rewards = torch.randn(100, 128, device="cuda")
for k in (2, 3, 4, 5):
    for turn in range(4):
        rewards.copy_(torch.randn(100, 128))
        torch.compiler.cudagraph_mark_step_begin()
        got = step(rewards, k).clone()
        torch.testing.assert_close(got, pk.transform(rewards, k) * 2, rtol=1e-5, atol=1e-5)
"""

FIRST_USE_IN_A_GRAPH = """
import torch
import pkpo_kernels as pk

def step(rewards, k):
    return pk.transform(rewards, 4), pk.transform(rewards, k), pk.max_at_k(rewards, [1, 4])

rewards = torch.randn(100, 128, device="cuda")
k = torch.tensor(2, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    results = step(rewards, k)
for new_k in (3, 1, 8):
    rewards.copy_(torch.randn(100, 128))
    k.fill_(new_k)
    for result in results:
        result.fill_(float("nan"))
    graph.replay()
    for got, want in zip(results, step(rewards, k), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
"""


def test_first_use_in_a_function_compiled_to_reduce_overhead() -> None:
    in_a_fresh_process(FIRST_USE_IN_A_COMPILED_FUNCTION)


def test_first_use_of_every_k_in_a_function_compiled_to_reduce_overhead() -> None:
    in_a_fresh_process(FIRST_USE_OF_EVERY_K)


def test_first_use_in_a_graph() -> None:
    in_a_fresh_process(FIRST_USE_IN_A_GRAPH)


def test_the_default_on_a_gpu_is_triton() -> None:
    from pkpo_kernels.backends import registry

    rewards = torch.randn(4, 8, device="cuda")
    assert registry.default_implementation("torch", rewards) == "triton"


# torch says so when it is first asked to watch.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("n", LENGTHS)
def test_the_host_never_waits(n: int) -> None:
    rewards = torch.randn(100, n, device="cuda")
    where = torch.rand(100, n, device="cuda") < 0.9
    k = torch.randint(1, 5, (100,), device="cuda")
    for _ in range(2):
        # The first time compiles and makes tables; neither may wait for the device.
        torch.cuda.set_sync_debug_mode("error")
        try:
            pk.transform(rewards, 3)
            pk.transform(rewards, k[0], estimator="sloo", where=where)
            pk.transform(rewards, k, estimator="passk_training", undersized="clip")
            pk.max_at_k(rewards, [1, 2, 4], where=where)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_groups_by_id_make_the_host_wait_once() -> None:
    rewards = torch.randn(640, device="cuda")
    rewards[::50] = float("nan")
    ids = torch.randint(0, 40, (640,), device="cuda")
    where, k = rewards > -1, torch.tensor(3, device="cuda")
    want = pk.transform_groups(rewards.cpu(), ids.cpu(), 3, where=where.cpu())
    torch.testing.assert_close(
        pk.transform_groups(rewards, ids, k, where=where).cpu(), want, rtol=5e-6, atol=1e-6
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        # Nobody need know how many groups there are.
        from pkpo_kernels.backends import torch_segments

        pk.transform_groups(rewards, 16, k, where=where)
        torch_segments.transform(
            rewards,
            (ids,),
            where,
            k,
            estimator=pk.ESTIMATORS["sloo"],
            scale="batch_mean",
            factor=1.0,
            undersized="zero",
            dtype=torch.float32,
        )
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            pk.transform_groups(rewards, ids, k, where=where)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in waits if "synchronizing" in str(one.message)]) == 1


@pytest.mark.parametrize("n", LENGTHS)
def test_a_graph_replays_with_fresh_inputs(n: int) -> None:
    rewards = torch.randn(300, n, device="cuda")
    k = torch.tensor(2, device="cuda")
    pk.transform(rewards, k)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = pk.transform(rewards, k)
    for new_k in (3, 1, 8):
        rewards.copy_(torch.randn(300, n))
        k.fill_(new_k)
        out.fill_(float("nan"))
        graph.replay()
        # With a k on the device too: one that the host knows has weights from a table, and other
        # last bits.
        torch.testing.assert_close(out, pk.transform(rewards, k), rtol=0, atol=0)


def test_a_graph_keeps_the_tables_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from pkpo_triton import table_cache

    rewards = torch.randn(300, 128, device="cuda")
    pk.transform(rewards, 4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = pk.transform(rewards, 4)
    monkeypatch.setattr(table_cache, "MOST_TABLES", 1)
    for k in range(1, 40):
        pk.transform(rewards, k)
    want = pk.transform(rewards, 4)
    graph.replay()
    torch.testing.assert_close(out, want, rtol=0, atol=0)


@pytest.mark.parametrize("n", LENGTHS)
def test_every_run_gives_the_same_bits(n: int) -> None:
    rewards = torch.randn(5000, n, device="cuda")
    first = pk.transform(rewards, 4)
    for _ in range(20):
        assert torch.equal(pk.transform(rewards, 4), first)


def test_a_side_stream_sees_finished_tables() -> None:
    from pkpo_triton import table_cache

    rewards = torch.randn(64, 256, device="cuda")
    want = pk.transform(rewards, 4)
    for _ in range(5):
        table_cache._tables.clear()
        torch.cuda.synchronize()
        pk.transform(rewards, 4)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            got = pk.transform(rewards, 4)
        stream.synchronize()
        assert torch.equal(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_kernels_run_where_the_rewards_are() -> None:
    rewards = torch.randn(50, 32, device="cuda:1")
    with torch.cuda.device(0):
        out = pk.transform(rewards, 3)
    assert out.device == rewards.device
    torch.testing.assert_close(out.cpu(), pk.transform(rewards.cpu(), 3), rtol=1e-5, atol=1e-6)


def test_compiled_with_inductor() -> None:
    @torch.compile(fullgraph=True)
    def step(rewards: Any, k: Any, log_p: Any) -> Any:
        return -(pk.transform(rewards * 2, k) * log_p).sum()

    rewards = torch.randn(128, 16, device="cuda")
    log_p = torch.randn(128, 16, device="cuda", requires_grad=True)
    k = torch.tensor(4, device="cuda")
    step(rewards, k, log_p).backward()
    want = -pk.transform(rewards * 2, 4, implementation="torch")
    np.testing.assert_allclose(log_p.grad.cpu(), want.cpu(), rtol=1e-5, atol=1e-6)
