"""What only a GPU can show: no waiting, graphs, devices, huge matrices, the same bits every time.

`make gpu-test` runs this, the contract and tests/test_triton.py with TEST_DEVICE=cuda.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import DEVICE

import pkpo_kernels as pk

torch = pytest.importorskip("torch")
if DEVICE != "cuda":
    pytest.skip("needs a GPU and TEST_DEVICE=cuda", allow_module_level=True)

LENGTHS = (8, 32, 100, 128, 1024, 3000, 8192, 9000)


def test_the_default_on_a_gpu_is_triton() -> None:
    from pkpo_kernels import dispatch

    rewards = torch.randn(4, 8, device="cuda")
    assert dispatch.default_implementation("torch", rewards) == "triton"


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
        torch.testing.assert_close(out, pk.transform(rewards, new_k), rtol=0, atol=0)


@pytest.mark.parametrize("n", LENGTHS)
def test_every_run_gives_the_same_bits(n: int) -> None:
    rewards = torch.randn(5000, n, device="cuda")
    first = pk.transform(rewards, 4)
    for _ in range(20):
        assert torch.equal(pk.transform(rewards, 4), first)


def test_a_side_stream_sees_finished_tables() -> None:
    from pkpo_triton import tables

    rewards = torch.randn(64, 256, device="cuda")
    want = pk.transform(rewards, 4)
    for _ in range(5):
        tables._tables.clear()
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


@pytest.mark.parametrize("n", [8, 64, 256])
def test_beyond_two_to_the_31_elements(n: int) -> None:
    rows = 2**31 // n + 1000
    if torch.cuda.mem_get_info()[0] < 5 * rows * n:
        pytest.skip("not enough memory")
    rewards = torch.empty(rows, n, dtype=torch.bfloat16, device="cuda").normal_()
    out = pk.transform(rewards, 3)
    for part in (slice(0, 100), slice(rows - 100, rows)):
        want = pk.transform(rewards[part].cpu(), 3, implementation="torch")
        torch.testing.assert_close(out[part].cpu(), want, rtol=1e-2, atol=1e-6)


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
