"""Calls that are served as one before: what tells them apart, and what never is."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pkpo_kernels as pk
from pkpo_kernels import _calls

REWARDS = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32))


@pytest.fixture(autouse=True)
def none_known() -> Iterator[None]:
    _calls.forget()
    yield
    _calls.forget()


def want(rewards: torch.Tensor, k: Any, **options: Any) -> Any:
    """The result of the reference, for arguments of torch."""
    where = options.pop("where", None)
    k = k.numpy() if isinstance(k, torch.Tensor) else k
    return pk.transform(
        rewards.double().numpy(),
        k,
        where=None if where is None else where.numpy(),
        implementation="reference",
        **options,
    )


def of_all_kinds() -> list[tuple[torch.Tensor, Any, dict[str, Any]]]:
    """Calls of which no two are of a form, though each differs from another in one thing."""
    mask = REWARDS > -0.5
    per_row = torch.tensor([1, 2, 3, 4, 5, 6])
    one_off = torch.cat([REWARDS.flatten(), REWARDS.flatten()])[1:49].view(6, 8)
    return [
        (REWARDS, 2, {}),
        (REWARDS, 3, {}),
        (REWARDS, torch.tensor(3), {}),
        (REWARDS, torch.tensor(3, dtype=torch.int32), {}),
        (REWARDS, per_row, {}),
        (REWARDS, per_row.int(), {}),
        (REWARDS, per_row.repeat_interleave(2)[::2], {}),
        (REWARDS, 2, {"estimator": "s"}),
        (REWARDS, 2, {"scale": "mean"}),
        (REWARDS, 2, {"axis": 0}),
        (REWARDS, 2, {"axis": 1}),
        (REWARDS, 2, {"undersized": "nan"}),
        (REWARDS, 2, {"where": mask}),
        (REWARDS, 2, {"where": mask.t().contiguous().t()}),
        (REWARDS, 6, {"where": mask}),
        (REWARDS, 6, {"where": mask, "undersized": "nan"}),
        (REWARDS, 6, {"where": mask, "undersized": "clip"}),
        (REWARDS.double(), 2, {}),
        (REWARDS[:4], 2, {}),
        (REWARDS.view(2, 3, 8), 2, {}),
        (REWARDS.flip(0)[::2], 2, {}),
        (REWARDS.t().contiguous().t(), 2, {}),
        (REWARDS[:1].expand(6, 8), 2, {}),
        (one_off, 2, {}),
        (REWARDS, 2, {"implementation": "torch"}),
    ]


def test_every_part_of_a_form_tells_calls_apart() -> None:
    calls = of_all_kinds()
    for _ in range(3):  # made, then served
        for rewards, k, options in calls:
            named = {name: it for name, it in options.items() if name != "implementation"}
            got = pk.transform(rewards, k, **options)
            assert got.dtype == rewards.dtype and got.shape == rewards.shape
            np.testing.assert_allclose(got, want(rewards, k, **named), rtol=1e-5, atol=1e-6)
        assert len(_calls._known) == len(calls)


@pytest.mark.parametrize("implementation", [None, "torch"])
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_integers_of_every_row(kind: Callable[[Any], Any], implementation: Any) -> None:
    for ks in ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]):
        for _ in range(3):
            got = pk.transform(REWARDS, kind(ks), implementation=implementation)
            np.testing.assert_allclose(got, want(REWARDS, ks), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [2, [1, 2], (1, 3), torch.tensor(2), torch.tensor([1, 2])])
def test_max_at_k_is_served_again(k: Any) -> None:
    for scale in (1.0, 2.0, 3.0):
        rewards = REWARDS * scale
        on_host = k.numpy() if isinstance(k, torch.Tensor) else k
        right = pk.max_at_k(rewards.double().numpy(), on_host)
        np.testing.assert_allclose(pk.max_at_k(rewards, k), right, rtol=1e-5)
    assert len(_calls._known) == 1


def test_groups_are_served_again() -> None:
    """Of no form two are alike, and each gets what NumPy gives, twice."""
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 7, 48))
    flat, unscored = REWARDS.flatten(), REWARDS.flatten().clone()
    unscored[3] = unscored[40] = np.nan
    ragged = unscored.clone()
    ragged[8:16] = np.nan  # no group at all
    calls: list[tuple[torch.Tensor, Any, Any, dict[str, Any]]] = [
        (flat, ids, 2, {}),
        (unscored, ids, 2, {}),
        (flat, ids.int(), 2, {}),
        (flat, torch.stack([ids, ids % 2], 1), 2, {}),
        (flat, 8, 2, {}),
        (unscored, 8, 2, {}),
        (ragged, 8, 2, {}),
        (flat, 6, 2, {}),
        (flat, 8, 3, {}),
        (flat, 8, 9, {}),
        (flat, 8, 9, {"undersized": "nan"}),
        (flat, 8, 10**30, {}),
        (flat, 8, 2, {"scale": "mean"}),
        (flat, 8, 2, {"scale": 3.5}),
        (flat, 8, 2, {"estimator": "s"}),
        (flat, 8, 2, {"estimator": "passk_training"}),
        (unscored, 8, 2, {"nan": "propagate"}),
        (flat.double(), 8, 2, {}),
        ((4 * flat).long(), 8, 2, {}),
        (flat[:24], 8, 2, {}),
        (flat, 8, torch.tensor(2), {}),
        (flat, ids, torch.tensor(2, dtype=torch.int32), {}),
        (flat, ids, ids % 3 + 1, {}),
        (flat, 8, torch.arange(48) // 8 + 1, {}),
        (flat, ids, torch.tensor(60), {"undersized": "nan"}),
        (flat, 8, 2, {"where": flat > 0}),
        (unscored, ids, 2, {"where": flat > 0}),
        (unscored, ids, 2, {"where": flat > 0, "nan": "propagate"}),
        (unscored, ids, 2, {"where": (4 * flat).int()}),
        (unscored, ids, torch.tensor(3), {"where": torch.stack([flat > 1, flat < -1], 1)}),
        (torch.stack([flat, flat], 1)[:, 0], ids.flip(0), 2, {}),
    ]
    for _ in range(2):
        for rewards, groups, k, options in calls:
            got = pk.transform_groups(rewards, groups, k, implementation="torch", **options)
            of_numpy: Any = [groups, k]
            of_numpy = [x.numpy() if isinstance(x, torch.Tensor) else x for x in of_numpy]
            if "where" in options:
                options = options | {"where": options["where"].numpy()}
            right = pk.transform_groups(rewards.double().numpy(), *of_numpy, **options)
            np.testing.assert_allclose(got, right, rtol=5e-6, atol=1e-6)
            assert got.dtype == (rewards.dtype if rewards.is_floating_point() else torch.float32)
        for wrong in ({"groups": 7}, {"groups": True}, {"k": 0}, {"nan": "keep"}, {"scale": "sun"}):
            given: dict[str, Any] = {"groups": 8, "k": 2} | wrong
            with pytest.raises((ValueError, TypeError)):
                pk.transform_groups(flat, implementation="torch", **given)
    assert len(_calls._known) > len(calls) - 3


def test_the_default_dtype_is_part_of_it() -> None:
    whole = torch.tensor([[0, 1, 1, 0]])
    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            assert pk.transform(whole, 2).dtype == dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_errors_come_again() -> None:
    pk.transform(REWARDS, 2, axis=1)
    for _ in range(2):
        for arguments in (
            {"k": 9},
            {"k": 0},
            {"k": True},
            {"k": 2.0},
            {"k": 2, "axis": True},
            {"k": 2, "axis": 1.0},
            {"k": 2, "estimator": None},
            {"k": 2, "estimator": ["s"]},
            {"k": 2, "scale": "Sum"},
            {"k": 2, "where": REWARDS},
            {"k": 2, "where": np.ones((6, 8), bool)},
            {"k": [[1, 2], [3, 4]]},
        ):
            with pytest.raises((ValueError, TypeError)):
                pk.transform(REWARDS, **arguments)  # type: ignore[call-overload]
    assert len(_calls._known) == 1


def test_rewards_marked_as_negated_are_no_others() -> None:
    pk.transform(REWARDS[:, :4].contiguous(), 2)
    marked = torch.complex(REWARDS[:, :4], REWARDS[:, 4:]).conj().imag
    assert marked.is_neg()
    for _ in range(2):
        np.testing.assert_allclose(pk.transform(marked, 2), want(-REWARDS[:, 4:], 2), atol=1e-6)
        k = torch._neg_view(torch.tensor(-3))
        np.testing.assert_allclose(pk.transform(REWARDS, k), want(REWARDS, 3), atol=1e-6)


def test_what_is_watched_goes_the_long_way() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    pk.transform(REWARDS, 2)
    step: Callable[[torch.Tensor], torch.Tensor] = lambda x: pk.transform(x, 2)  # noqa: E731
    others = REWARDS.flip(-1)
    right = want(others, 2)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    traced = [make_fx(step, pre_dispatch=early)(REWARDS) for early in (False, True)]
    for again in (*traced, compiled, torch.func.vmap(step)):
        np.testing.assert_allclose(again(others), right, rtol=1e-5, atol=1e-6)
    with FakeTensorMode() as mode:
        assert type(pk.transform(mode.from_tensor(REWARDS), 2)) is not torch.Tensor
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch.jit's of itself, and of shapes that it takes as given
        scripted = torch.jit.trace(step, REWARDS)
    np.testing.assert_allclose(scripted(others), right, rtol=1e-5, atol=1e-6)
    # A batch is hidden in what looks like a plain tensor.
    ks = torch.tensor([1, 2, 3])
    got = torch.func.vmap(lambda k: pk.transform(REWARDS, k))(ks)
    for k, one in zip(ks, got, strict=True):
        np.testing.assert_allclose(one, want(REWARDS, int(k)), rtol=1e-5, atol=1e-6)

    class Special(torch.Tensor):
        pass

    pk.transform(REWARDS.as_subclass(Special), 2)
    assert len(_calls._known) == 1


def test_results_are_new_and_nothing_is_kept() -> None:
    rewards = REWARDS.clone()
    first = pk.transform(rewards, 2, where=rewards > 0)
    kept = first.clone()
    second = pk.transform(rewards, 2, where=rewards > 0)
    assert first.data_ptr() != second.data_ptr()
    second.zero_()
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    gone = weakref.ref(rewards)
    del rewards
    gc.collect()
    assert gone() is None


def test_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_calls, "MOST_FORMS", 3)
    for _ in range(2):
        for k in range(1, 9):
            np.testing.assert_allclose(pk.transform(REWARDS, k), want(REWARDS, k), atol=1e-6)
        assert len(_calls._known) == 3


def test_a_gpu_that_is_not_the_current_one_and_a_graph_are_no_forms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def driver_says(**answers: Any) -> None:
        for name, answer in answers.items():
            monkeypatch.setattr(torch._C, name, lambda *_, it=answer: it, raising=False)

    driver_says(_cuda_getDevice=1, _cuda_isCurrentStreamCapturing=False)
    driver_says(_cuda_getCurrentRawStream=77)
    assert _calls._stream_of_gpu(torch, 0) is None
    assert _calls._stream_of_gpu(torch, 1) == 77
    driver_says(_cuda_isCurrentStreamCapturing=True)
    assert _calls._stream_of_gpu(torch, 1) is None
