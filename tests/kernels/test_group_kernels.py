"""The kernels that group entries by their ids themselves, beside NumPy's groups in float64.

Run with TRITON_INTERPRET=1, a launch a phase; with TEST_DEVICE=ptx, or TEST_DEVICE=cuda on a GPU,
all phases in one launch of programs that wait for each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from entries_by_id import IDS, REWARDS, RNG, Flat, N, check, torch, transformed
from entries_by_id import of_kernels_alone as of_kernels_alone  # a fixture
from hypothesis import given, settings
from hypothesis import strategies as st
from pkpo_triton import groups as of_kernels
from pkpo_triton.group_kernels import capacity_for, table_size
from subjects import DEVICE, ON_PTX

import pkpo_kernels as pk

# There the contract is enough.
pytestmark = pytest.mark.costly("interpreted")

EVERY_KIND = pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))


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

    def test_samples_of_several_entries(self) -> None:
        samples = torch.arange(N, device=DEVICE) // 2
        ids = torch.from_numpy(np.repeat(IDS[::2], 2)).to(DEVICE)
        rewards = torch.from_numpy(REWARDS).to(DEVICE)
        got = pk.transform_groups(rewards, ids, 3, samples=samples, implementation="triton")
        want = pk.transform_groups(
            REWARDS.astype(np.float64), ids.cpu().numpy(), 3, samples=samples.cpu().numpy()
        )
        np.testing.assert_allclose(got.cpu(), want, rtol=5e-6)

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

    @pytest.mark.parametrize("seed", range(3))
    def test_in_any_order(self, seed: int) -> None:
        from bench.ptx.driver import Device

        with Device(order="random", seed=seed, counting=False):
            check(REWARDS, IDS, 4)
