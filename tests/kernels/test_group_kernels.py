"""The kernels that group entries by their ids themselves, beside NumPy's groups in float64.

Run with TRITON_INTERPRET=1, a launch a phase; with TEST_DEVICE=ptx, or TEST_DEVICE=cuda on a GPU,
all phases in one launch of programs that wait for each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import DEVICE, ON_PTX, TRITON_RUNS

import pkpo_kernels as pk
from pkpo_kernels import _calls

torch = pytest.importorskip("torch")
if not TRITON_RUNS:
    reason = "needs TRITON_INTERPRET=1, or TEST_DEVICE=ptx or cuda"
    pytest.skip(reason, allow_module_level=True)

from pkpo_triton import groups as of_kernels  # noqa: E402
from pkpo_triton.group_kernels import (  # noqa: E402
    PHASES,
    capacity_for,
    cleared_size,
    scratch_size,
    table_size,
)

# There the contract is enough.
pytestmark = pytest.mark.costly("interpreted")

Flat = np.ndarray[Any, np.dtype[Any]]

RNG = np.random.default_rng(3)
N = 150
IDS = RNG.integers(0, 9, N)
IDS[:40] = 100  # more than a program has at a time
REWARDS = RNG.standard_normal(N).astype(np.float32)
REWARDS[20:60] = RNG.integers(0, 2, 40)
EVERY_KIND = pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))


@pytest.fixture(autouse=True)
def of_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is grouped by the library."""

    def of_library(*_: Any) -> None:
        raise AssertionError("the library has grouped")

    monkeypatch.setattr("pkpo_kernels._grouping._slots", of_library)
    _calls.forget()


def transformed(rewards: Flat, ids: Flat, k: Any, **options: Any) -> Flat:
    where = options.pop("where", None)
    if where is not None:
        options["where"] = torch.from_numpy(where).to(DEVICE)
    tensors = (torch.from_numpy(np.array(x)).to(DEVICE) for x in (rewards, ids))
    got = pk.transform_groups(*tensors, k, implementation="triton", **options)
    return np.asarray(got.cpu())


def check(rewards: Flat, ids: Flat, k: Any, **options: Any) -> Flat:
    """Every result is within what the contract allows."""
    got = transformed(rewards, ids, k, **options)
    of_host = int(k) if isinstance(k, torch.Tensor) else k
    with np.errstate(all="ignore"):
        exact = rewards.astype(np.float64)
        want = pk.transform_groups(exact, ids, of_host, implementation="numpy", **options)
    unit = np.zeros_like(want)
    for one in np.unique(ids):
        members = ids == one
        both = np.concatenate([exact[members], want[members]])
        unit[members] = np.abs(both[np.isfinite(both)]).max(initial=0)
    allowed = 2e-6 * unit
    if options.get("estimator") in (None, "sloo_minus_one") and of_host >= 2:
        allowed = 5e-6 * np.abs(want)
    off = np.abs(got.astype(np.float64) - want) <= allowed + 1e-38
    assert (off | (np.isnan(got) & np.isnan(want))).all(), (got, want)
    return got


class TestValues:
    @EVERY_KIND
    @pytest.mark.parametrize("scale", ["sum", "mean", "batch_mean", -0.3])
    def test_of_every_estimator_and_scale(self, estimator: str, scale: Any) -> None:
        if (estimator, scale) == ("passk_training", "mean"):
            pytest.skip("refused")
        check(REWARDS, IDS, 4, estimator=estimator, scale=scale)

    @EVERY_KIND
    @pytest.mark.parametrize("undersized", ["zero", "nan", "clip"])
    def test_groups_that_are_too_small(self, estimator: str, undersized: str) -> None:
        ids = np.where(np.arange(N) < 60, np.arange(N), IDS)  # groups of one among them
        got = check(REWARDS, ids, 9, estimator=estimator, undersized=undersized)
        assert np.isnan(got).any() == (undersized == "nan")

    def test_a_spread_below_all_normal_numbers(self) -> None:
        rewards = np.array([0, 1e-39, 2e-39, 2.5e-39] * 4, np.float32)
        ids = np.arange(16) // 8
        got = transformed(rewards, ids, 2, estimator="passk_training", scale="sum")
        want = pk.transform_groups(
            rewards.astype(np.float64), ids, 2, estimator="passk_training", scale="sum"
        )
        np.testing.assert_allclose(got, want, rtol=1e-4)

    @pytest.mark.parametrize("k", [1, 2, 10**30])
    def test_any_k(self, k: int) -> None:
        check(REWARDS, IDS, k)

    @pytest.mark.parametrize("k", [1, 5, 1000])
    def test_k_on_the_device(self, k: int) -> None:
        check(REWARDS, IDS, torch.tensor(k, device=DEVICE))

    @pytest.mark.parametrize("n", [1, 31, 32, 33, 128, 700])
    @pytest.mark.parametrize("groups", ["one", "every", "some"])
    def test_any_number_of_entries(self, n: int, groups: str) -> None:
        rewards = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        ids = {"one": np.zeros(n, int), "every": np.arange(n), "some": np.arange(n) * 7 % 5}
        check(rewards, ids[groups], 2)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "uint8", "bool"])
    def test_rewards_of_other_dtypes(self, dtype: str) -> None:
        rewards = torch.from_numpy(REWARDS * 3).abs().to(getattr(torch, dtype)).to(DEVICE)
        ids = torch.from_numpy(IDS).to(DEVICE)
        got = pk.transform_groups(rewards, ids, 3, implementation="triton")
        exact = rewards.cpu().double().numpy()
        want = torch.from_numpy(pk.transform_groups(exact, IDS, 3))
        assert got.dtype == (rewards.dtype if rewards.is_floating_point() else torch.float32)
        rtol = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(got.dtype, 5e-6)
        torch.testing.assert_close(got.cpu().double(), want, rtol=rtol, atol=0)


class TestIds:
    @pytest.mark.parametrize(
        "ids",
        [
            IDS.astype(np.uint8),
            IDS.astype(np.int32) - 50,
            IDS.astype(np.int64) * (1 << 57),
            IDS.astype(np.int64) + np.iinfo(np.int64).min,
            IDS.astype(np.uint64) + np.uint64(2**64 - 101),
        ],
        ids=lambda ids: f"{ids.dtype} {ids.min()}",
    )
    def test_of_every_dtype(self, ids: Flat) -> None:
        check(REWARDS, ids, 3)

    def test_that_meet_in_one_slot(self) -> None:
        """All begin to search where the last slots are, and go on at the first."""
        size = table_size(capacity_for(N))
        every = np.arange(200_000, dtype=np.uint64)
        x, shift = every, np.uint64(33)
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = (x ^ (x >> shift)) * np.uint64(factor)
        slots = (x ^ (x >> shift)) & np.uint64(size - 1)
        unlucky = every[slots >= size - 2][:40].astype(np.int64)
        assert len(unlucky) == 40
        check(REWARDS, unlucky[np.arange(N) % 40], 2)


class TestBlocks:
    """With entries left out: else they are a matrix."""

    @pytest.mark.parametrize("size", [1, 5, 30, N])
    @pytest.mark.parametrize("scale", ["batch_mean", 2.0])
    def test_of_any_size(self, size: int, scale: Any) -> None:
        rewards = REWARDS.copy()
        rewards[::7] = np.nan
        rewards[60:90] = np.nan  # a whole block
        self.check(rewards, size, 4, scale=scale)
        where = RNG.random(N) < 0.6
        where[30:60] = False
        self.check(rewards, size, torch.tensor(2, device=DEVICE), where=where, scale=scale)

    def check(self, rewards: Flat, size: int, k: Any, **options: Any) -> None:
        where = options.pop("where", None)
        mask = None if where is None else torch.from_numpy(where).to(DEVICE)
        x = torch.from_numpy(rewards).to(DEVICE)
        options["estimator"] = "s"
        want = pk.transform_groups(rewards.astype(np.float64), size, int(k), where=where, **options)
        for _ in range(2):  # prepared, then served
            got = pk.transform_groups(x, size, k, where=mask, implementation="triton", **options)
            np.testing.assert_allclose(got.cpu(), want, rtol=1e-5, atol=1e-6)

    def test_kernels_group_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rewards = torch.from_numpy(REWARDS).to(DEVICE)
        rewards[3] = torch.nan
        monkeypatch.setattr("pkpo_kernels._grouping._rows", None)
        pk.transform_groups(rewards, 5, 2, implementation="triton")
        monkeypatch.setattr(of_kernels, "MOST_ENTRIES_IN_BLOCKS", N - 1)
        with pytest.raises(TypeError):  # as a matrix
            pk.transform_groups(rewards, 10, 2, implementation="triton")


class TestLeftOut:
    @pytest.mark.parametrize("k", [2, 6])
    def test_entries(self, k: int) -> None:
        where = RNG.random(N) < 0.7
        where[IDS == 3] = False
        got = check(REWARDS, IDS, k, where=where)
        assert (got[~where] == 0).all()
        assert not check(REWARDS, IDS, k, where=np.zeros(N, bool)).any()

    @pytest.mark.parametrize("nan", ["drop", "propagate"])
    def test_not_scored(self, nan: str) -> None:
        rewards = REWARDS.copy()
        rewards[::11] = np.nan
        rewards[5] = -np.float32(np.nan)
        for _ in range(2):  # prepared, then served
            got = check(rewards, IDS, 3, nan=nan)
            assert np.isnan(got).any() == (nan == "propagate")

    @pytest.mark.parametrize("value", [np.inf, -np.inf, 3e38])
    def test_no_group_sees_another(self, value: float) -> None:
        rewards = REWARDS.copy()
        rewards[IDS == 4] = [value, *([-3e38] if value == 3e38 else []), *rewards[IDS == 4]][
            : (IDS == 4).sum()
        ]
        got = transformed(rewards, IDS, 3)
        np.testing.assert_array_equal(np.isnan(got), IDS == 4)
        others = IDS != 4
        want = pk.transform_groups(REWARDS.astype(np.float64), IDS, 3)
        np.testing.assert_allclose(got[others], want[others], rtol=5e-6)


class TestPromises:
    def test_equal_rewards_get_equal_bits_and_order_is_of_no_account(self) -> None:
        rewards = RNG.integers(0, 3, N).astype(np.float32) / 7
        first = check(rewards, IDS, 4)
        for one in np.unique(IDS):
            for value in np.unique(rewards):
                same = first[(one == IDS) & (rewards == value)]
                assert len(np.unique(same)) <= 1
        order = RNG.permutation(N)
        np.testing.assert_array_equal(transformed(rewards[order], IDS[order], 4), first[order])
        np.testing.assert_array_equal(transformed(rewards, -7 * IDS, 4), first)
        np.testing.assert_array_equal(transformed(rewards, IDS, 4), first)

    def test_a_call_is_served_again(self) -> None:
        rewards, ids = (torch.from_numpy(x).to(DEVICE) for x in (REWARDS, IDS))
        for change in (1.0, 2.0, 3.0):
            got = pk.transform_groups(
                rewards * change, ids + int(change), 3, implementation="triton"
            )
            want = pk.transform_groups(REWARDS.astype(np.float64) * change, IDS, 3)
            np.testing.assert_allclose(got.cpu(), want, rtol=5e-6)
        assert len(_calls._known) == 2  # of the call, and of its kernel

    @pytest.mark.parametrize(
        ("given", "of_form"),
        [
            ({"where": True}, 2),
            ({"where": "of tokens"}, 2),
            ({"k": torch.int64}, 2),
            ({"k": torch.int32, "where": True}, 2),
            ({"ids": "of the host"}, 1),
            ({"ids": "text"}, 1),
            ({"ids": "text", "k": torch.int64, "where": "of tokens"}, 1),
            ({"apart": True}, 2),
            ({"apart": True, "where": True}, 2),
        ],
        ids=str,
    )
    def test_whatever_it_is_given(
        self, given: dict[str, Any], of_form: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is prepared twice."""
        made, prepared = [], of_kernels.GroupLaunch.__init__

        def counted(*arguments: Any, **options: Any) -> None:
            made.append(arguments)
            prepared(*arguments, **options)

        monkeypatch.setattr(of_kernels.GroupLaunch, "__init__", counted)
        for seed in range(3):
            rng = np.random.default_rng(seed)
            rewards, numbers = rng.standard_normal(N).astype(np.float32), rng.permutation(IDS)
            rewards[seed] = np.nan
            mask = rng.random((N, 3)) < 0.4
            options: dict[str, Any] = {}
            kept = None
            if given.get("where"):
                kept = mask.any(1) if given["where"] == "of tokens" else mask[:, 0]
                of_call = mask.astype(np.int32) if given["where"] == "of tokens" else kept
                options["where"] = torch.from_numpy(np.array(of_call)).to(DEVICE)
            k: Any = 3
            if "k" in given:
                k = torch.tensor(3, dtype=given["k"], device=DEVICE)
            x, ids = (torch.from_numpy(both).to(DEVICE) for both in (rewards, numbers))
            if "apart" in given:
                x, ids = (torch.stack([both, both], 1)[:, 1] for both in (x, ids))
                if "where" in options:
                    options["where"] = options["where"].repeat_interleave(2)[::2]
            if "ids" in given:
                ids = (
                    numbers if given["ids"] == "of the host" else [f"task {one}" for one in numbers]
                )
            got = pk.transform_groups(x, ids, k, implementation="triton", **options)
            want = pk.transform_groups(rewards.astype(np.float64), numbers, 3, where=kept)
            np.testing.assert_allclose(got.cpu(), want, rtol=5e-6)
        assert (len(made), len(_calls._known)) == (1, of_form)

    def test_samples_of_several_entries(self) -> None:
        samples = torch.arange(N, device=DEVICE) // 2
        ids = torch.from_numpy(np.repeat(IDS[::2], 2)).to(DEVICE)
        rewards = torch.from_numpy(REWARDS).to(DEVICE)
        got = pk.transform_groups(rewards, ids, 3, samples=samples, implementation="triton")
        want = pk.transform_groups(
            REWARDS.astype(np.float64), ids.cpu().numpy(), 3, samples=samples.cpu().numpy()
        )
        np.testing.assert_allclose(got.cpu(), want, rtol=5e-6)

    def test_scratch_is_left_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made, at_once = [], DEVICE == "cuda" or ON_PTX

        def with_garbage_behind(capacity: int, device: Any) -> Any:
            garbage = torch.randint(-(2**31), 2**31, (scratch_size(capacity),))
            garbage[: cleared_size(capacity)] = 0
            if at_once:  # the counters are about to overflow
                garbage[:5] = torch.tensor([-2, 2**31 - 1, *[2**31 - 3] * 3])
            made.append(garbage.to(device, torch.int32))
            return made[-1]

        monkeypatch.setattr(of_kernels, "_new_scratch", with_garbage_behind)
        monkeypatch.setattr(of_kernels, "_scratches", {})
        where = RNG.random(N) < 0.5
        for ids in (IDS, np.zeros(N, int), np.arange(N)):  # none is of another size
            check(REWARDS, ids, 2, where=where)
            check(REWARDS, ids, 3)
            check(REWARDS[:140], ids[:140], 3)
            check(REWARDS, ids, 2, where=np.zeros(N, bool))
        x = torch.from_numpy(REWARDS).to(DEVICE)
        x[3] = torch.nan
        pk.transform_groups(x, 5, 2, implementation="triton")
        assert len(made) == (1 if at_once else 13)
        capacity = capacity_for(N)
        size = cleared_size(capacity)
        for scratch in made:
            assert not scratch[size - 3 * table_size(capacity) : size].any()

    @pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
    def test_streams_share_no_scratch(self) -> None:
        rewards, ids = (torch.from_numpy(x).to(DEVICE) for x in (REWARDS, IDS))
        streams = [torch.cuda.Stream() for _ in range(4)]
        torch.cuda.synchronize()
        outs = []
        for _ in range(20):
            for stream in streams:
                with torch.cuda.stream(stream):
                    outs.append(pk.transform_groups(rewards, ids, 3))
        torch.cuda.synchronize()
        want = pk.transform_groups(REWARDS.astype(np.float64), IDS, 3)
        for out in outs:
            np.testing.assert_allclose(out.cpu(), want, rtol=5e-6)

    @pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
    def test_the_host_waits_for_nothing(self) -> None:
        rewards, ids = (torch.from_numpy(x).to(DEVICE) for x in (REWARDS, IDS))
        pk.transform_groups(rewards, ids, 3)
        try:
            torch.cuda.set_sync_debug_mode("error")
            pk.transform_groups(rewards, ids, 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
    def test_a_graph_replays_it(self) -> None:
        rewards, ids = (torch.from_numpy(x).to(DEVICE) for x in (REWARDS, IDS))
        pk.transform_groups(rewards, ids, 3)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = pk.transform_groups(rewards, ids, 3)
        for times in (2.0, 3.0):
            rewards.copy_(torch.from_numpy(REWARDS * np.float32(times)))
            graph.replay()
            want = pk.transform_groups(REWARDS.astype(np.float64) * times, IDS, 3)
            np.testing.assert_allclose(out.cpu(), want, rtol=5e-6)

    @pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
    @pytest.mark.parametrize("n", [16384, of_kernels.MOST_ENTRIES])
    def test_more_entries_than_run_at_once(self, n: int) -> None:
        rng = np.random.default_rng(n)
        for groups in (n // 16, 3):
            rewards = rng.standard_normal(n).astype(np.float32)
            check(rewards, rng.integers(0, groups, n), 8)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-2, 3),
            st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1.5, np.float32(1.5000001), 1e37, np.nan]),
        ),
        min_size=1,
        max_size=70,
    ),
    st.integers(1, 6),
)
def test_whatever_they_hold(entries: list[tuple[int, float]], k: int) -> None:
    ids, rewards = (np.array(column) for column in zip(*entries, strict=True))
    check(rewards.astype(np.float32), ids, k)


@pytest.mark.skipif(not ON_PTX, reason="needs TEST_DEVICE=ptx")
class TestOnTheMachine:
    def test_programs_have_more_than_one_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(of_kernels, "most_programs", lambda device: 2)
        for ids in (IDS, np.arange(N), np.zeros(N, int)):
            check(REWARDS, ids, 2)

    def test_phases_are_launched_apart_where_programs_cannot_run_at_once(self) -> None:
        from bench.ptx.driver import Device

        class Part(Device):
            def run(self, kernel: Any, *arguments: Any) -> None:
                if kernel.cooperative:
                    raise RuntimeError(f"Triton Error [CUDA]: {reason}")
                super().run(kernel, *arguments)

        reason = of_kernels.REFUSALS[0]
        with Part(counting=False) as device:
            for _ in range(3):
                check(REWARDS, IDS, 4)
            assert len(device.launches) == 3 * len(PHASES)
            reason = "an illegal memory access was encountered"
            with pytest.raises(RuntimeError, match="illegal"):
                check(REWARDS[:-1], IDS[:-1], 4)

    def test_what_cannot_be_launched_at_all_says_so(self) -> None:
        from bench.ptx.driver import Device

        class Refusing(Device):
            def run(self, *_: Any) -> None:
                raise RuntimeError(f"Triton Error [CUDA]: {of_kernels.REFUSALS[1]}")

        with Refusing(counting=False), pytest.raises(RuntimeError, match=of_kernels.REFUSALS[1]):
            check(REWARDS, IDS, 4)

    @pytest.mark.parametrize("seed", range(3))
    def test_in_any_order(self, seed: int) -> None:
        from bench.ptx.driver import Device

        with Device(order="random", seed=seed, counting=False):
            check(REWARDS, IDS, 4)


def test_what_is_grouped_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards, ids = (torch.from_numpy(x).to(DEVICE) for x in (REWARDS, IDS))
    prepared = of_kernels.prepared_by_id
    rest: Any = {"scale": "sum", "undersized": "zero", "drops_nan": True, "dtype": torch.float32}
    rest["estimator"] = pk.ESTIMATORS["s"]
    assert prepared(rewards, ids, None, 2, **rest) is not None
    apart = torch.stack([rewards, rewards], 1)[:, 0]
    k_a_entry = torch.full((N,), 2, device=DEVICE)
    for other, k in ((apart, 2), (rewards, k_a_entry), (rewards[:0], 2)):
        assert prepared(other, ids[: len(other)], None, k, **rest) is None
    monkeypatch.setattr(of_kernels, "MOST_ENTRIES", N - 1)
    assert prepared(rewards, ids, None, 2, **rest) is None
