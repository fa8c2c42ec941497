"""How the transforms live inside torch: compiled, under autocast, in a loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

import pkpo_kernels as pk
from pkpo_kernels import _ids
from pkpo_kernels.backends import torch as torch_backend
from pkpo_kernels.backends import torch_segments

# Outside of programs NumPy serves tensors on a CPU.
transform = partial(pk.transform, implementation="torch")
max_at_k = partial(pk.max_at_k, implementation="torch")


@pytest.fixture
def rewards() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32))


def test_results_are_constants_of_the_loss(rewards: torch.Tensor) -> None:
    learned = rewards.clone().requires_grad_()
    out = transform(learned, 4)
    assert not out.requires_grad and not max_at_k(learned, 4).requires_grad
    logits = torch.zeros(6, 16, requires_grad=True)
    (-(out * logits.log_softmax(-1)).sum()).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad.any()
    assert learned.grad is None
    with torch.inference_mode():
        torch.testing.assert_close(transform(rewards, 4), out, rtol=0, atol=0)


def test_autocast_changes_nothing(rewards: torch.Tensor) -> None:
    for estimator in pk.ESTIMATORS:
        plain = transform(rewards, 4, estimator=estimator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = transform(rewards, 4, estimator=estimator)
        torch.testing.assert_close(cast, plain, rtol=0, atol=0)


def test_the_default_dtype_is_used_for_integers() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert transform(torch.tensor([[0, 1, 1]]), 2).dtype == torch.float64
        assert transform(torch.tensor([[0.0, 1, 1]], dtype=torch.float32), 2).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


class TestCompile:
    @pytest.mark.parametrize(
        "estimator",
        [
            pytest.param("sloo_minus_one", marks=pytest.mark.slow),
            pytest.param("passk_training", marks=pytest.mark.release),
        ],
    )
    def test_full_graph_with_static_and_dynamic_shapes(
        self, rewards: torch.Tensor, estimator: str
    ) -> None:
        @torch.compile(fullgraph=True)
        def step(x: torch.Tensor, k: torch.Tensor, mask: torch.Tensor) -> Any:
            return transform(x, k, estimator=estimator, where=mask), max_at_k(x, 2)

        rewards[2, 3], rewards[1, 5] = torch.inf, 3e38
        for rows, n in ((6, 16), (5, 13), (3, 11)):
            x, mask = rewards[:rows, :n], rewards[:rows, :n] > -1
            for k in (2, 5):
                got, best = step(x, torch.tensor(k), mask)
                want = transform(x, k, estimator=estimator, where=mask)
                assert want.isnan().any() and not best[:2].isnan().any()
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)
                torch.testing.assert_close(best, max_at_k(x, 2), equal_nan=True)

    @pytest.mark.slow
    def test_a_new_k_compiles_nothing(self, rewards: torch.Tensor) -> None:
        compilations = 0

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            nonlocal compilations
            compilations += 1
            return graph.forward

        @torch.compile(fullgraph=True, backend=backend)
        def step(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return transform(x * 2, k)

        for k in (8, 4, 2, 1):
            torch.testing.assert_close(step(rewards, torch.tensor(k)), transform(rewards * 2, k))
        assert compilations == 1

    @pytest.mark.slow
    def test_an_integer_k_inside_a_compiled_step(self, rewards: torch.Tensor) -> None:
        step = torch.compile(
            lambda x, k: transform(x, k), fullgraph=True, dynamic=True, backend="aot_eager"
        )
        for k in (8, 3):
            torch.testing.assert_close(step(rewards, k), transform(rewards, k))

    def test_inside_a_training_step(self, rewards: torch.Tensor) -> None:
        logits = torch.zeros(6, 16, requires_grad=True)

        @torch.compile(fullgraph=True, backend="aot_eager")
        def loss(logits: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return -(transform(rewards, k) * logits.log_softmax(-1)).sum()

        def gradient(k: int) -> torch.Tensor:
            logits.grad = None
            loss(logits, torch.tensor(k)).backward()
            assert logits.grad is not None and logits.grad.any()
            return logits.grad

        def check(k: int) -> None:
            advantages = transform(rewards, k)
            want = -(advantages - advantages.sum(-1, keepdim=True) / 16)
            torch.testing.assert_close(gradient(k), want, rtol=1e-5, atol=1e-6)

        check(4)
        with torch.compiler.set_stance("fail_on_recompile"):
            check(2)


def one_by_one(function: Callable[..., torch.Tensor], *batches: torch.Tensor) -> torch.Tensor:
    return torch.stack([function(*one) for one in zip(*batches, strict=True)])


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6, equal_nan=True)


class TestVmap:
    """Whatever is batched, and beside it what is not; a warning would be of a slow fallback."""

    rewards = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    where = torch.rand(5, 3, 8, generator=torch.Generator().manual_seed(1)) < 0.8
    k = torch.arange(1, 6)

    @pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))
    def test_over_rewards_masks_and_k(self, estimator: str) -> None:
        rewards, where, k = self.rewards, self.where, self.k
        scale = "sum" if pk.ESTIMATORS[estimator].normalized else "mean"

        def masked(rewards: torch.Tensor, where: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            options: dict[str, Any] = {"scale": scale, "undersized": "clip"}
            return transform(rewards, k, estimator=estimator, where=where, **options)

        def plain(rewards: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return transform(rewards, k, estimator=estimator)

        same(vmap(plain)(rewards, k), one_by_one(plain, rewards, k))
        same(vmap(plain)(rewards[:, 0], k), one_by_one(plain, rewards[:, 0], k))
        same(vmap(masked)(rewards, where, k), one_by_one(masked, rewards, where, k))
        inputs = rewards, where, k
        for batched in range(3):
            dims = [0 if i == batched else None for i in range(3)]
            beside = [x if dim == 0 else x[1] for x, dim in zip(inputs, dims, strict=True)]
            full = [x if i == batched else x.expand(5, *x.shape) for i, x in enumerate(beside)]
            same(vmap(masked, in_dims=tuple(dims))(*beside), one_by_one(masked, *full))
        columns = vmap(plain, in_dims=(1, None), out_dims=1)(rewards, k[2])
        same(columns, plain(rewards, k[2]))
        nested = vmap(lambda row: vmap(lambda one: plain(row, one))(k))(rewards)
        same(nested, torch.stack([one_by_one(lambda one, r=r: plain(r, one), k) for r in rewards]))

    def test_max_at_k(self) -> None:
        rewards, where, k = self.rewards, self.where, self.k
        same(
            vmap(lambda r, w: max_at_k(r, [1, 7], where=w))(rewards, where),
            max_at_k(rewards, [1, 7], where=where),
        )
        same(vmap(lambda one: max_at_k(rewards, one))(k), max_at_k(rewards, k).movedim(-1, 0))
        same(
            vmap(lambda ks: max_at_k(rewards[0], ks))(k[:4].view(2, 2))[1],
            max_at_k(rewards[0], [3, 4]),
        )

    def test_block_by_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rewards, k = self.rewards, self.k
        want = transform(rewards, 3), one_by_one(lambda one: transform(rewards[0], one), k)
        monkeypatch.setattr(torch_backend, "CPU_BLOCK_ELEMENTS", 16)
        same(vmap(lambda r: transform(r, 3))(rewards), want[0])
        same(vmap(lambda one: transform(rewards[0], one))(k), want[1])
        rows_k = torch.stack([k[:3], k[2:]])
        same(
            vmap(lambda ks: transform(rewards[0], ks))(rows_k)[1],
            transform(rewards[0], k[2:]),
        )
        same(vmap(lambda r: max_at_k(r, [1, 3]))(rewards), max_at_k(rewards, [1, 3]))

    @pytest.mark.slow
    def test_compiled(self) -> None:
        step = vmap(lambda r, w, k: transform(r, k, where=w, estimator="sloo"))
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        inputs = self.rewards, self.where, self.k
        same(compiled(*inputs), step(*inputs))


@pytest.mark.parametrize("tracing_mode", ["real", pytest.param("symbolic", marks=pytest.mark.slow)])
def test_make_fx(rewards: torch.Tensor, tracing_mode: str) -> None:
    def step(x: torch.Tensor, k: torch.Tensor, where: torch.Tensor) -> Any:
        return transform(x, k, where=where), max_at_k(x, [1, 2])

    graph = make_fx(step, tracing_mode=tracing_mode)(rewards, torch.tensor(2), rewards > 0)
    # What the trace saw is no part of it.
    rewards = rewards.flip(-1) * torch.tensor(1e38)
    rewards[2, 3] = torch.inf
    for got, want in zip(
        graph(rewards, torch.tensor(5), rewards < 1e38),
        step(rewards, torch.tensor(5), rewards < 1e38),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_fake_tensors(rewards: torch.Tensor) -> None:
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(rewards)
        for k in (2, torch.tensor(2), torch.arange(1, 7)):
            out = transform(fake, k, where=fake > 0, estimator="passk_training")
            assert out.shape == fake.shape and out.dtype == fake.dtype
            assert transform(fake, k).shape == fake.shape
        assert max_at_k(fake, [1, 2]).shape == (6, 2)


@pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))
def test_deterministic_algorithms_change_nothing(rewards: torch.Tensor, estimator: str) -> None:
    tied = rewards.round()
    want = transform(tied, 3, estimator=estimator)
    torch.use_deterministic_algorithms(True)
    try:
        got = transform(tied, 3, estimator=estimator)
        permuted = transform(tied.flip(-1), 3, estimator=estimator)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(permuted, want.flip(-1), rtol=0, atol=0)


@pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_large_as_it_gets(rewards: torch.Tensor, dtype: torch.dtype, estimator: str) -> None:
    # Powers of two change no bit, and nothing overflows before its time.
    rewards = rewards.clamp(-0.99, 0.99).to(dtype)
    rewards[1] += 0.99
    large = 2.0 ** (127 if dtype == torch.float32 else 1023)
    normalized = pk.ESTIMATORS[estimator].normalized
    for scale in ("sum",) if normalized else ("sum", "mean"):
        for k in (1, 2, 15):
            got = transform(rewards * large, k, estimator=estimator, scale=scale)
            want = transform(rewards, k, estimator=estimator, scale=scale)
            want = want if normalized else want * large
            torch.testing.assert_close(got, want, rtol=0, atol=0)
    best = max_at_k(rewards * large, [1, 16])
    torch.testing.assert_close(best, max_at_k(rewards, [1, 16]) * large, rtol=0, atol=0)


@pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))
def test_nothing_on_another_device_is_read_on_the_host(estimator: str) -> None:
    # Meta tensors have shapes and no data: reading one on the host raises.
    rewards = torch.empty(3, 5, 8, device="meta")
    where = torch.empty(3, 5, 8, dtype=torch.bool, device="meta")
    rows_k = torch.empty(3, 5, dtype=torch.int32, device="meta")
    one_k = torch.empty((), dtype=torch.int64, device="meta")
    for k in (2, one_k, rows_k):
        for mask, undersized in ((None, "nan"), (where, "zero"), (where, "clip")):
            out = transform(rewards, k, estimator=estimator, where=mask, undersized=undersized)
            assert out.device.type == "meta" and out.shape == rewards.shape
    best = max_at_k(rewards, [1, 2], where=where)
    assert best.device.type == "meta" and best.shape == (3, 5, 2)
    schedule = pk.schedules.piecewise_constant([4, 1], [10])
    assert transform(rewards, schedule(one_k)).device.type == "meta"
    with pytest.raises(ValueError, match="where must be on the device of rewards, meta"):
        transform(rewards, 2, where=torch.ones(3, 5, 8, dtype=torch.bool))


@pytest.mark.parametrize("row", [[0.0, 1e-25, 1e25], [0.0, 1e-35, 1e30]])
def test_small_results_of_large_rows(row: list[float]) -> None:
    out = transform(torch.tensor([row]), 2)
    assert out[0, 1].item() == pytest.approx(row[1] / 3, rel=1e-6)


def test_a_gpu_finds_the_slots_of_groups_as_the_host_does() -> None:
    rng = np.random.default_rng(0)
    ragged, alike = rng.integers(0, 8, 60), rng.permutation(np.repeat(np.arange(6), 4))
    one_id, apart = np.repeat(7, 5), np.arange(5)
    columns_of: list[Any] = [(ids,) for ids in (ragged, alike, one_id, apart, apart[:1])]
    columns_of += [(ragged % 3, ragged // 3), (alike % 3, alike // 3)]
    dtypes = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64")
    columns_of += [(ragged.astype(dtype),) for dtype in dtypes]
    for columns in columns_of:
        want = _ids.slots(_ids.numbered_columns(columns))
        strided = [torch.from_numpy(np.repeat(column, 2))[::2] for column in columns]
        got = _ids.Slots(*torch_segments.slots(strided))
        assert got.shape == want.shape and (got.slot is None) == (want.slot is None)
        np.testing.assert_array_equal(got.order, want.order)
        if got.slot is not None and want.slot is not None:
            np.testing.assert_array_equal(got.slot, want.slot)
