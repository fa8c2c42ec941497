"""How the transforms live inside torch: compiled, under autocast, in a loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pkpo_kernels as pk


@pytest.fixture
def rewards() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32))


def test_results_are_constants_of_the_loss(rewards: torch.Tensor) -> None:
    learned = rewards.clone().requires_grad_()
    out = pk.transform(learned, 4)
    assert not out.requires_grad and not pk.max_at_k(learned, 4).requires_grad
    logits = torch.zeros(6, 16, requires_grad=True)
    (-(out * logits.log_softmax(-1)).sum()).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad.any()
    assert learned.grad is None
    with torch.inference_mode():
        torch.testing.assert_close(pk.transform(rewards, 4), out, rtol=0, atol=0)


def test_autocast_changes_nothing(rewards: torch.Tensor) -> None:
    for estimator in pk.ESTIMATORS:
        plain = pk.transform(rewards, 4, estimator=estimator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = pk.transform(rewards, 4, estimator=estimator)
        torch.testing.assert_close(cast, plain, rtol=0, atol=0)


def test_the_default_dtype_is_used_for_integers() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert pk.transform(torch.tensor([[0, 1, 1]]), 2).dtype == torch.float64
        assert (
            pk.transform(torch.tensor([[0.0, 1, 1]], dtype=torch.float32), 2).dtype == torch.float32
        )
    finally:
        torch.set_default_dtype(torch.float32)


class TestCompile:
    @pytest.mark.parametrize("estimator", ["sloo_minus_one", "passk_training"])
    def test_full_graph_with_static_and_dynamic_shapes(
        self, rewards: torch.Tensor, estimator: str
    ) -> None:
        @torch.compile(fullgraph=True)
        def step(x: torch.Tensor, k: torch.Tensor, mask: torch.Tensor) -> Any:
            return pk.transform(x, k, estimator=estimator, where=mask), pk.max_at_k(x, 2)

        for rows, n in ((6, 16), (5, 13), (3, 11)):
            x, mask = rewards[:rows, :n], rewards[:rows, :n] > -1
            for k in (2, 5):
                got, best = step(x, torch.tensor(k), mask)
                torch.testing.assert_close(
                    got, pk.transform(x, k, estimator=estimator, where=mask), rtol=1e-5, atol=1e-6
                )
                torch.testing.assert_close(best, pk.max_at_k(x, 2))

    def test_a_new_k_compiles_nothing(self, rewards: torch.Tensor) -> None:
        compilations = 0

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            nonlocal compilations
            compilations += 1
            return graph.forward

        @torch.compile(fullgraph=True, backend=backend)
        def step(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return pk.transform(x * 2, k)

        for k in (8, 4, 2, 1):
            torch.testing.assert_close(step(rewards, torch.tensor(k)), pk.transform(rewards * 2, k))
        assert compilations == 1

    def test_an_integer_k_inside_a_compiled_step(self, rewards: torch.Tensor) -> None:
        step = torch.compile(
            lambda x, k: pk.transform(x, k), fullgraph=True, dynamic=True, backend="aot_eager"
        )
        for k in (8, 3):
            torch.testing.assert_close(step(rewards, k), pk.transform(rewards, k))

    def test_inside_a_training_step(self, rewards: torch.Tensor) -> None:
        logits = torch.zeros(6, 16, requires_grad=True)

        @torch.compile(fullgraph=True)
        def loss(logits: torch.Tensor) -> torch.Tensor:
            return -(pk.transform(rewards, 4) * logits.log_softmax(-1)).sum()

        loss(logits).backward()
        assert logits.grad is not None
        advantages = pk.transform(rewards, 4)
        want = -(advantages - advantages.sum(-1, keepdim=True) / 16)
        torch.testing.assert_close(logits.grad, want, rtol=1e-5, atol=1e-6)
        assert logits.grad.any()


@pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))
def test_nothing_on_another_device_is_read_on_the_host(estimator: str) -> None:
    # Meta tensors have shapes and no data: reading one on the host raises.
    rewards = torch.empty(3, 5, 8, device="meta")
    where = torch.empty(3, 5, 8, dtype=torch.bool, device="meta")
    rows_k = torch.empty(3, 5, dtype=torch.int32, device="meta")
    one_k = torch.empty((), dtype=torch.int64, device="meta")
    for k in (2, one_k, rows_k):
        for mask in (None, where):
            for undersized in ("zero", "nan", "clip"):
                out = pk.transform(
                    rewards, k, estimator=estimator, where=mask, undersized=undersized
                )
                assert out.device.type == "meta" and out.shape == rewards.shape
    best = pk.max_at_k(rewards, [1, 2], where=where)
    assert best.device.type == "meta" and best.shape == (3, 5, 2)
    schedule = pk.schedules.piecewise_constant([4, 1], [10])
    assert pk.transform(rewards, schedule(one_k)).device.type == "meta"
    with pytest.raises(ValueError, match="where must be on the device of rewards, meta"):
        pk.transform(rewards, 2, where=torch.ones(3, 5, 8, dtype=torch.bool))
