"""The contract that every implementation keeps, against enumeration and the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from subjects import INTERPRETED, Subject, rewards_of_every_kind

import pkpo_kernels as pk
from bench.shapes import ENUMERATED_N, REFERENCE, ks_for
from pkpo_kernels.maths import reference

ESTIMATORS = tuple(pk.ESTIMATORS)
OFFSET_BLIND = ("sloo_minus_one", "centered", "passk_training")


def admitted_ks(estimator: str, ks: Any, n: int) -> list[int]:
    return [k for k in ks if k <= pk.ESTIMATORS[estimator].largest_k(n)]


def expected(rewards: Any, k: Any, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(pk.transform(rewards, k, implementation="reference", **options))


def in_small_blocks(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """Have the portable implementations work on so many elements at a time."""
    from pkpo_kernels.backends import numpy as numpy_backend
    from pkpo_kernels.backends import torch as torch_backend
    from pkpo_kernels.backends import xla as xla_backend

    monkeypatch.setattr(numpy_backend, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(torch_backend, "CPU_BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(xla_backend, "BLOCK_ELEMENTS", elements)


# Every subject draws rewards of its own.
_SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]


class TestAgainstTheDefinitions:
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("n", ENUMERATED_N)
    def test_transform_is_the_enumeration(
        self, subject: Subject, rng: np.random.Generator, estimator: str, n: int
    ) -> None:
        rewards = rewards_of_every_kind(rng, n)
        for k in admitted_ks(estimator, range(1, n + 1), n):
            want = [reference.ENUMERATIONS[estimator](row, k) for row in rewards]
            got = subject.transform(subject.array(rewards, "float32"), k, estimator=estimator)
            # Rewards near 100 leave "s" and "sloo" with results of that size.
            np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6 if n > 1 else 0)

    @pytest.mark.parametrize("n", ENUMERATED_N)
    def test_max_at_k_is_the_enumeration(
        self, subject: Subject, rng: np.random.Generator, n: int
    ) -> None:
        rewards = rewards_of_every_kind(rng, n)
        ks = list(range(1, n + 1))
        want = [[reference.enumerate_max_at_k(row, k) for k in ks] for row in rewards]
        got = subject.max_at_k(subject.array(rewards, "float32"), ks)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("rows, n", REFERENCE)
    def test_transform_is_the_reference(
        self, subject: Subject, rng: np.random.Generator, estimator: str, rows: int, n: int
    ) -> None:
        if subject.implementation == "reference":
            pytest.skip("is what this compares with")
        rewards = rng.standard_normal((rows, n)).astype(np.float32)
        ks = ks_for(n)[::3] if subject.interpreted and n > 100 else ks_for(n)
        if subject.simulated and n > 100:
            if n > 1000 and estimator not in ("sloo_minus_one", "passk_training"):
                pytest.skip("the same kernel, and other numbers: see 257")
            ks = (n,) if estimator == "passk_training" else (8,)
        for k in admitted_ks(estimator, ks, n):
            want = expected(rewards.astype(np.float64), k, estimator=estimator)
            got = subject.transform(subject.array(rewards), k, estimator=estimator)
            np.testing.assert_allclose(got, want, rtol=5e-6, atol=2e-6 * np.abs(want).max())

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_float64_is_computed_in_float64(
        self, subject: Subject, rng: np.random.Generator, estimator: str
    ) -> None:
        import jax

        rewards = rewards_of_every_kind(rng, 9)
        with jax.enable_x64(True):
            if not subject.serves_float64:
                with pytest.raises(ValueError, match=r"compute in float32 .* float64; take '"):
                    subject.transform(subject.array(rewards), 1, estimator=estimator)
                return
            for k in (1, 4, 8):
                got = subject.transform(subject.array(rewards), k, estimator=estimator)
                want = expected(rewards, k, estimator=estimator)
                np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("n", [1000, pytest.param(16384, marks=pytest.mark.slow)])
    def test_sloo_minus_one_is_accurate_component_by_component(
        self, subject: Subject, rng: np.random.Generator, n: int
    ) -> None:
        if subject.implementation == "reference":
            pytest.skip("is what this compares with")
        # The second row far from 0: what it has lost is lost in the input, not here.
        offset = np.array([[0.0], [1e4]])
        rewards = (rng.standard_normal((2, n)) + offset).astype(np.float32)
        few = subject.simulated or (subject.interpreted and n > 8192)
        for k in (n // 2,) if few else (2, 8, n // 2, n):
            want = expected(rewards.astype(np.float64), k)
            got = subject.transform(subject.array(rewards), k)
            # Below float32's normal numbers there are no 24 bits left to be right in.
            np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-37)


class TestProperties:
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_permuting_samples_permutes_results_bit_for_bit(
        self, subject: Subject, rng: np.random.Generator, estimator: str
    ) -> None:
        rewards = rewards_of_every_kind(rng, 33)
        permutation = rng.permutation(33)
        array = subject.array(rewards, "float32")
        there = subject.transform(array, 5, estimator=estimator)
        # In the same layout: another is another kernel to a GPU, whose last bits may differ.
        permuted = subject.array(np.ascontiguousarray(rewards[:, permutation]), "float32")
        back = subject.transform(permuted, 5, estimator=estimator)
        if subject.implementation == "reference":
            np.testing.assert_allclose(back, there[:, permutation], rtol=1e-5, atol=1e-12)
        else:
            np.testing.assert_array_equal(back, there[:, permutation])

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("n", [16, 1025])
    def test_equal_rewards_get_equal_bits(
        self, subject: Subject, rng: np.random.Generator, estimator: str, n: int
    ) -> None:
        if subject.implementation == "reference":
            pytest.skip("adds up in the order of the samples")
        levels = np.float32(rng.standard_normal(7))
        rewards = levels[rng.integers(0, 7, (3, n))]
        out = subject.transform(subject.array(rewards), 4, estimator=estimator)
        for row, result in zip(rewards, out, strict=True):
            for level in np.unique(row):
                assert len(np.unique(result[row == level])) == 1

    @pytest.mark.parametrize("estimator", OFFSET_BLIND)
    @pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e30, 3e-39])
    def test_a_constant_row_gets_exactly_zero(
        self, subject: Subject, estimator: str, value: float
    ) -> None:
        rewards = np.full((2, 11), value, np.float32)
        for k in (1, 2, 10):
            out = subject.transform(subject.array(rewards), k, estimator=estimator)
            if subject.implementation == "reference":
                assert np.abs(out).max() <= 1e-13 * abs(value)
            else:
                assert not out.any() and not np.signbit(out).any()

    @pytest.mark.parametrize("estimator", OFFSET_BLIND)
    def test_a_common_offset_drops_out(self, subject: Subject, estimator: str) -> None:
        # Quarters plus a power of two stay exact in float32.
        rewards = np.arange(24, dtype=np.float32).reshape(2, 12) * 7 % 11 / 4
        plain = subject.transform(subject.array(rewards), 3, estimator=estimator)
        shifted = subject.transform(subject.array(rewards + 4096), 3, estimator=estimator)
        if subject.implementation == "reference":
            np.testing.assert_allclose(shifted, plain, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(shifted, plain)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_scaling_rewards_scales_results(
        self, subject: Subject, rng: np.random.Generator, estimator: str
    ) -> None:
        rewards = rng.standard_normal((3, 10)).astype(np.float32)
        plain = subject.transform(subject.array(rewards), 4, estimator=estimator)
        scaled = subject.transform(subject.array(rewards * 2**20), 4, estimator=estimator)
        factor = 1 if pk.ESTIMATORS[estimator].normalized else 2**20
        np.testing.assert_allclose(scaled, plain * factor, rtol=1e-6, atol=1e-7)

    def test_k_1_is_leave_one_out(self, subject: Subject, rng: np.random.Generator) -> None:
        rewards = rng.standard_normal((4, 6)).astype(np.float32)
        others = (rewards.sum(-1, keepdims=True) - rewards) / 5
        out = subject.transform(subject.array(rewards), 1)
        np.testing.assert_allclose(out, (rewards - others) / 6, atol=1e-6)
        plain = subject.transform(subject.array(rewards), 1, estimator="s")
        np.testing.assert_allclose(plain, rewards / 6, atol=1e-6)

    def test_k_n_gives_the_best_its_lead(self, subject: Subject, rng: np.random.Generator) -> None:
        rewards = rng.standard_normal((4, 6)).astype(np.float32)
        ordered = np.sort(rewards)
        lead = (ordered[:, -1:] - ordered[:, -2:-1]) * (rewards == ordered[:, -1:])
        out = subject.transform(subject.array(rewards), 6)
        np.testing.assert_allclose(out, lead, rtol=1e-6)

    def test_chances_that_vanish_leave_nothing_to_divide_by(self, subject: Subject) -> None:
        # 114 wrong samples: that the best of 99 is one of them has a chance of about 1e-44.
        rewards = np.zeros((2, 216))
        rewards[:, :102] = 1
        want = expected(rewards, 99, estimator="passk_training")
        assert 0 < np.abs(want).max() < 1e-20
        for dtype in ("float32", "bool"):
            given = subject.array(rewards, dtype)
            got = subject.transform(given, 99, estimator="passk_training")
            np.testing.assert_allclose(got, want, atol=1e-6)

    def test_a_group_of_one(self, subject: Subject) -> None:
        rewards = subject.array([[2.0], [-3.0]], "float32")
        assert not subject.transform(rewards, 1).any()
        np.testing.assert_array_equal(subject.transform(rewards, 1, estimator="s")[:, 0], [2, -3])
        np.testing.assert_array_equal(subject.max_at_k(rewards, 1), [2, -3])

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_identities(self, subject: Subject, rng: np.random.Generator, estimator: str) -> None:
        rewards = rng.standard_normal((5, 12)).astype(np.float32)
        out = subject.transform(subject.array(rewards), 4, estimator=estimator)
        if estimator == "s":
            best = subject.max_at_k(subject.array(rewards), 4)
            np.testing.assert_allclose(out.sum(-1), 4 * best, rtol=1e-5)
        elif estimator in ("centered", "passk_training"):
            np.testing.assert_allclose(out.sum(-1), 0, atol=1e-5)
        elif estimator == "sloo":
            best = subject.max_at_k(subject.array(rewards), 4)
            np.testing.assert_allclose(out.sum(-1), -4 / 11 * best, rtol=1e-5, atol=1e-6)
        else:
            assert estimator == "sloo_minus_one"
            assert (out >= 0).all()

    def test_repeats_bit_for_bit(self, subject: Subject, rng: np.random.Generator) -> None:
        rows, n = 20 if subject.interpreted else 700, 40 if subject.simulated else 300
        rewards = subject.array(rng.standard_normal((rows, n)).astype(np.float32))
        if subject.implementation == "reference":
            rewards = rewards[:2]
        first = subject.transform(rewards, 7)
        for _ in range(3):
            np.testing.assert_array_equal(subject.transform(rewards, 7), first)

    @settings(max_examples=40, deadline=None, suppress_health_check=_SUPPRESSED)
    @given(data=st.data())
    def test_any_rewards_match_the_reference(self, subject: Subject, data: st.DataObject) -> None:
        shapes = [(1, 2), (3, 5), (2, 9)]
        # For JAX every shape is programs to compile.
        rows, n = data.draw(st.sampled_from(shapes[1:2] if subject.kind == "jax" else shapes))
        number = st.one_of(
            st.floats(-1e6, 1e6, width=32), st.integers(-2, 2).map(float), st.just(-0.0)
        )
        row = st.lists(number, min_size=n, max_size=n)
        rewards = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)), np.float32)
        where = np.array(
            data.draw(
                st.lists(
                    st.lists(st.booleans(), min_size=n, max_size=n), min_size=rows, max_size=rows
                )
            )
        )
        estimator = data.draw(st.sampled_from(["sloo_minus_one", "s", "sloo"]))
        k = data.draw(st.integers(1, pk.ESTIMATORS[estimator].largest_k(n)))
        got = subject.transform(
            subject.array(rewards), k, estimator=estimator, where=subject.array(where)
        )
        want = expected(rewards.astype(np.float64), k, estimator=estimator, where=where)
        np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-6 * np.abs(rewards).max() + 1e-37)


class TestOptions:
    @pytest.mark.parametrize(
        "undersized, scale", [("zero", "mean"), ("nan", "sum"), ("clip", "sum")]
    )
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_masks_and_a_k_for_every_row(
        self,
        subject: Subject,
        rng: np.random.Generator,
        estimator: str,
        scale: str,
        undersized: str,
    ) -> None:
        if pk.ESTIMATORS[estimator].normalized:
            scale = "sum"
        rewards = rng.standard_normal((24, 7)).astype(np.float32)
        where = rng.random((24, 7)) < np.linspace(0, 1, 24)[:, None]
        where[-1] = True
        # What is left out must not matter.
        rewards[~where] = np.where(rng.random((~where).sum()) < 0.5, np.nan, np.inf)
        k = rng.integers(1, 7, 24)
        options = {"estimator": estimator, "scale": scale, "undersized": undersized}
        got = subject.transform(subject.array(rewards), k, where=subject.array(where), **options)
        want = expected(rewards.astype(np.float64), k, where=where, **options)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)
        assert not got[~where].any()
        n = where.sum(-1)
        too_small = (k > pk.ESTIMATORS[estimator].largest_k(n))[:, None] & where
        assert too_small.any()
        if undersized == "nan":
            assert np.isnan(got[too_small]).all()
        elif undersized == "zero":
            assert not got[too_small].any()

    @pytest.mark.parametrize("undersized", ["clip", "zero", "nan"])
    def test_a_k_beyond_all_samples_leaves_it_to_each_row(
        self, subject: Subject, rng: np.random.Generator, undersized: str
    ) -> None:
        if (undersized == "zero" and subject.kind == "jax") or (
            undersized == "nan" and subject.simulated
        ):
            pytest.skip("each case is programs to compile, and rows see the same in the test above")
        rewards = rng.standard_normal((5, 4)).astype(np.float32)
        where = np.arange(4) < np.array([4, 3, 2, 1, 0])[:, None]
        options = {"where": subject.array(where), "estimator": "sloo", "undersized": undersized}
        k = 2**31 - 1 if subject.hidden_k else 2**70
        got = subject.transform(subject.array(rewards), k, **options)
        want = np.zeros((5, 4))
        want[where] = np.nan if undersized == "nan" else 0
        if undersized == "clip":
            for row, n in ((0, 4), (1, 3), (2, 2)):
                want[row, :n] = reference.enumerate_sloo(rewards[row, :n].astype(float), n - 1)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        if undersized == "nan":
            best = subject.max_at_k(subject.array(rewards), [1, k], where=subject.array(where))
            np.testing.assert_array_equal(np.isnan(best), [[0, 1]] * 4 + [[1, 1]])
        if undersized == "clip":
            whole = subject.transform(
                subject.array(rewards), k, estimator="sloo", undersized="clip"
            )
            np.testing.assert_allclose(
                whole, expected(rewards.astype(float), 3, estimator="sloo"), rtol=1e-5, atol=1e-6
            )
            if subject.simulated:
                return
            alone = subject.array(rewards[:, :1])
            assert not subject.transform(alone, 2, estimator="sloo", undersized="clip").any()

    def test_a_mask_is_the_same_as_leaving_the_samples_away(
        self, subject: Subject, rng: np.random.Generator
    ) -> None:
        rewards = rng.standard_normal((3, 9)).astype(np.float32)
        where = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0], bool)
        full = subject.transform(
            subject.array(rewards), 3, where=subject.array(np.broadcast_to(where, (3, 9)))
        )
        np.testing.assert_allclose(
            full[:, where], subject.transform(subject.array(rewards[:, where]), 3), rtol=2e-6
        )

    def test_max_at_k_with_a_mask(self, subject: Subject, rng: np.random.Generator) -> None:
        rewards = rng.standard_normal((9, 6)).astype(np.float32)
        where = np.arange(6) < np.array([0, 1, 2, 3, 4, 5, 6, 6, 6])[:, None]
        rewards[~where] = np.nan
        got = subject.max_at_k(subject.array(rewards), [1, 3, 6], where=subject.array(where))
        for row, mask, values in zip(rewards.astype(float), where, got, strict=True):
            for k, value in zip((1, 3, 6), values, strict=True):
                if mask.sum() < k:
                    assert np.isnan(value)
                else:
                    want = reference.enumerate_max_at_k(row[mask], k)
                    assert value == pytest.approx(want, rel=1e-5, abs=1e-6)

    def test_max_at_k_of_0_1_rewards_is_pass_at_k(
        self, subject: Subject, rng: np.random.Generator
    ) -> None:
        correct = rng.random((20, 10)) < 0.3
        got = subject.max_at_k(subject.array(correct), [1, 2, 5, 10])
        want = pk.pass_at_k(10, correct.sum(-1)[:, None], [1, 2, 5, 10])
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)

    def test_leading_shape_and_axis(self, subject: Subject, rng: np.random.Generator) -> None:
        rewards = rng.standard_normal((2, 3, 5)).astype(np.float32)
        k = np.array([[1, 2, 3], [4, 5, 1]])
        want = np.stack(
            [subject.transform(subject.array(r), kk) for r, kk in zip(rewards, k, strict=True)]
        )
        out = subject.transform(subject.array(rewards), k)
        if subject.implementation == "pallas_interpret":
            # One k for all rows has its weights from float64, a k a row makes them in float32.
            np.testing.assert_allclose(out, want, rtol=5e-7)
            want = out
        np.testing.assert_array_equal(out, want)
        for axis in (0, 1, -2, -3):
            moved = subject.array(np.moveaxis(rewards, -1, axis))
            got = subject.transform(moved, k, axis=axis)
            np.testing.assert_array_equal(np.moveaxis(got, axis, -1), want)
        broadcast = subject.transform(subject.array(rewards), np.array([[2], [3]]))
        np.testing.assert_allclose(
            broadcast[1], subject.transform(subject.array(rewards[1]), 3), rtol=5e-7
        )
        best = subject.max_at_k(subject.array(np.moveaxis(rewards, -1, 0)), 2, axis=0)
        np.testing.assert_array_equal(best, subject.max_at_k(subject.array(rewards), 2))
        assert best.shape == (2, 3)
        assert subject.transform(subject.array(rewards[0, 0]), 2).shape == (5,)
        assert subject.max_at_k(subject.array(rewards), [2]).shape == (2, 3, 1)

    def test_no_rows(self, subject: Subject) -> None:
        empty = subject.array(np.zeros((2, 0, 5), np.float32))
        assert subject.transform(empty, 3).shape == (2, 0, 5)
        assert subject.max_at_k(empty, [1, 2]).shape == (2, 0, 2)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_floating_dtypes_come_back(
        self, subject: Subject, rng: np.random.Generator, dtype: str
    ) -> None:
        rewards = subject.array(rng.standard_normal((4, 20)), dtype)
        out = pk.transform(rewards, subject.k(3), implementation=subject.implementation)
        assert out.dtype == rewards.dtype
        exact = expected(subject.numpy(rewards), 3)
        resolution = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-22}[dtype]
        if INTERPRETED and dtype == "bfloat16":
            resolution *= 2  # Triton's interpreter cuts off where a GPU rounds
        # Computed in float32 or better and rounded once.
        np.testing.assert_allclose(subject.numpy(out), exact, rtol=1.01 * resolution, atol=6e-8)
        assert pk.max_at_k(rewards, 2, implementation=subject.implementation).dtype == rewards.dtype

    @pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "int64", "uint8"])
    def test_integers_and_bool_give_the_default_float(self, subject: Subject, dtype: str) -> None:
        rewards = np.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 1]])
        out = pk.transform(
            subject.array(rewards, dtype), subject.k(2), implementation=subject.implementation
        )
        default = {"numpy": "float64", "torch": "torch.float32", "jax": "float32"}[subject.kind]
        assert str(out.dtype) == default
        np.testing.assert_allclose(subject.numpy(out), expected(rewards, 2), rtol=1e-6)

    def test_large_matrices_are_their_rows(
        self, subject: Subject, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if subject.implementation == "reference":
            pytest.skip("goes row by row anyway")
        # Beyond what any implementation takes in one block, and no whole number of blocks.
        rows, n = 41 if subject.interpreted else 2200, 512
        if subject.simulated:
            rows, n = 2200, 20
        if subject.implementation in ("numpy", "torch", "xla"):
            in_small_blocks(monkeypatch, 1 << 12)
            rows, n = 220, 64
        rewards = rng.standard_normal((rows, n)).astype(np.float32)
        where = rng.random((rows, n)) < 0.9
        k = rng.integers(1, n // 5, rows)
        full = subject.transform(subject.array(rewards), k, where=subject.array(where))
        best = subject.max_at_k(subject.array(rewards), [3], where=subject.array(where))
        for part in (slice(0, 3), slice(rows // 2, rows // 2 + 3), slice(rows - 3, rows)):
            some, mask = subject.array(rewards[part]), subject.array(where[part])
            np.testing.assert_allclose(
                full[part], subject.transform(some, k[part], where=mask), rtol=2e-6, atol=1e-9
            )
            np.testing.assert_allclose(
                best[part], subject.max_at_k(some, [3], where=mask), rtol=2e-6
            )

    def test_every_output_is_written_whole(
        self, subject: Subject, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if subject.kind == "jax":
            pytest.skip("XLA has no memory that is not written")
        rewards = rng.standard_normal((50, 9)).astype(np.float32)
        where = rng.random((50, 9)) < 0.7
        options: dict[str, Any] = {"where": subject.array(where), "estimator": "sloo"}
        clean = subject.transform(subject.array(rewards), 3, **options)
        best = subject.max_at_k(subject.array(rewards), [1, 2])

        real = np.empty

        def poisoned(shape: Any, dtype: Any = float, **rest: Any) -> Any:
            out = real(shape, dtype, **rest)
            out.fill(np.nan if out.dtype.kind == "f" else 7)
            return out

        import torch

        monkeypatch.setattr(np, "empty", poisoned)
        # Several blocks, the last one smaller.
        in_small_blocks(monkeypatch, 9 * 16)
        # torch then fills what it would leave as it was with NaN.
        torch.use_deterministic_algorithms(True)
        try:
            again = subject.transform(subject.array(rewards), 3, **options)
            best_again = subject.max_at_k(subject.array(rewards), [1, 2])
        finally:
            torch.use_deterministic_algorithms(False)
        np.testing.assert_array_equal(again, clean)
        np.testing.assert_array_equal(best_again, best)


INF, NAN, LARGEST = np.inf, np.nan, float(np.finfo(np.float32).max)
# Rows of 9 that are not finite, or whose range overflows in float32.
NOT_FINITE = np.array(
    [
        [0.5, 1.0, -2.0, 3.0, INF, 0.0, 1.0, 1.0, 7.0],
        [0.5, 1.0, -2.0, 3.0, -INF, 0.0, 1.0, 1.0, 7.0],
        [-INF, 1.0, -2.0, 3.0, INF, 0.0, INF, 1.0, 7.0],
        [INF] * 9,
        [-INF] * 9,
        [0.0, INF, 0.0, 0.0, 0.0, INF, 0.0, INF, 0.0],
        [NAN] * 9,
        [LARGEST, 1.0, -2.0, -LARGEST, 4.0, 0.0, 1.0, 1.0, 7.0],
        [LARGEST, -1e38, -1e38, LARGEST, -1e38, -1e38, -1e38, -1e38, -1e38],
    ]
)


class TestUnusualNumbers:
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("nan", [np.nan, -np.nan], ids=["nan", "-nan"])
    def test_nan_stays_in_its_row(
        self, subject: Subject, rng: np.random.Generator, estimator: str, nan: float
    ) -> None:
        rewards = rng.standard_normal((6, 9)).astype(np.float32)
        clean = subject.transform(subject.array(rewards), 3, estimator=estimator)
        rewards[2, 4] = nan
        rewards[5, [0, 8]] = nan, np.inf
        out = subject.transform(subject.array(rewards), 3, estimator=estimator)
        assert np.isnan(out[[2, 5]]).all()
        np.testing.assert_array_equal(out[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])
        best = subject.max_at_k(subject.array(rewards), 3)
        assert np.isnan(best[[2, 5]]).all() and np.isfinite(best[[0, 1, 3, 4]]).all()

    def test_nan_is_not_hidden_by_too_few_samples(self, subject: Subject) -> None:
        rewards = subject.array([[1.0, np.nan, 2.0], [1.0, 3.0, 2.0], [-INF, 3, NAN]], "float32")
        where = subject.array([[True, True, False]] * 3)
        out = subject.transform(rewards, 3, where=where)
        np.testing.assert_array_equal(out, [[NAN, NAN, 0], [0, 0, 0], [NAN, NAN, 0]])

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_a_row_that_is_not_finite_becomes_nan(
        self, subject: Subject, rng: np.random.Generator, estimator: str
    ) -> None:
        # Each beside an ordinary row and one of two levels.
        ordinary = rng.standard_normal((len(NOT_FINITE), 9))
        levels = rng.integers(0, 2, (len(NOT_FINITE), 9))
        rewards = np.stack([ordinary, NOT_FINITE, levels], 1).reshape(-1, 9).astype(np.float32)
        out = subject.transform(subject.array(rewards), 3, estimator=estimator)
        assert np.isnan(out[1::3]).all()
        finite = np.arange(len(rewards)) % 3 != 1
        want = expected(rewards[finite].astype(np.float64), 3, estimator=estimator)
        np.testing.assert_allclose(out[finite], want, rtol=5e-6, atol=2e-6)

    @pytest.mark.parametrize("undersized", ["zero", "nan", "clip"])
    def test_what_is_left_out_of_a_row_that_is_not_finite(
        self, subject: Subject, undersized: str
    ) -> None:
        rewards = np.concatenate([NOT_FINITE, NOT_FINITE]).astype(np.float32)
        # First only what is finite stays, then what is not stays too.
        where = np.abs(rewards) < 10
        where[len(NOT_FINITE) :] = True
        where[len(NOT_FINITE) :, 1:3] = False
        options: dict[str, Any] = {"where": where, "undersized": undersized}
        k = np.full(len(rewards), 5)
        want = expected(rewards, k, **options)
        assert np.isnan(want[len(NOT_FINITE) :][:, [0, 3, 8]]).all()
        got = subject.transform(
            subject.array(rewards), k, where=subject.array(where), undersized=undersized
        )
        np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-6)
        assert not got[~where].any()

    def test_max_at_k_of_rows_that_are_not_finite(self, subject: Subject) -> None:
        rewards = np.concatenate([NOT_FINITE, [[1.0, 2, 3, 4, 5, 6, 7, 8, 9]]]).astype(np.float32)
        best = subject.max_at_k(subject.array(rewards), [1, 2, 9])
        assert np.isnan(best[:-1]).all()
        np.testing.assert_allclose(best[-1], [5, 20 / 3, 9], rtol=1e-6)
        where = np.abs(rewards) < 10
        best = subject.max_at_k(subject.array(rewards), [1, 2, 9], where=subject.array(where))
        want = pk.max_at_k(rewards, [1, 2, 9], where=where, implementation="reference")
        np.testing.assert_allclose(best, want, rtol=1e-6)

    def test_the_range_is_judged_in_the_precision_of_the_rewards(self, subject: Subject) -> None:
        import jax

        rewards = np.array([[LARGEST, -LARGEST, 0.0, 1.0]])
        assert np.isnan(subject.transform(subject.array(rewards, "float32"), 2)).all()
        if not subject.serves_float64:
            return
        with jax.enable_x64(True):
            out = subject.transform(subject.array(rewards, "float64"), 2)
            np.testing.assert_allclose(out, expected(rewards, 2), rtol=1e-12)
            largest = float(np.finfo(np.float64).max)
            rewards = np.array([[largest, -largest, 0, 1], [largest, largest / 2, 0, 1]])
            out = subject.transform(subject.array(rewards, "float64"), 2, estimator="centered")
            want = expected(rewards, 2, estimator="centered")
            np.testing.assert_allclose(out, want, rtol=1e-12, atol=1e-14 * largest)
            assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()

    def test_signed_zeros_and_subnormals(self, subject: Subject) -> None:
        rewards = np.array([[0.0, -0.0, 0.0, -0.0, 1.0]], np.float32)
        out = subject.transform(subject.array(rewards), 2)
        assert not out[0, :4].any() and out[0, 4] > 0
        tiny = np.array([[3e-39, 1e-39, 2e-39, 1e-39]], np.float32)
        out = subject.transform(subject.array(tiny), 2)
        # Some flush what is below the normal numbers to 0, but nothing changes its order.
        assert (np.diff(out[0][[1, 3, 2, 0]]) >= 0).all() and out[0, 1] == out[0, 3]
        np.testing.assert_allclose(out, expected(tiny, 2), rtol=0, atol=2**-126)
        if subject.kind == "numpy":
            tiny = np.array([[3e-320, 1e-320, 2e-320]])
            np.testing.assert_array_equal(np.argsort(subject.transform(tiny, 2)[0]), [1, 2, 0])

    @pytest.mark.parametrize("scale", ["sum", "mean"])
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_rewards_as_large_as_they_get(
        self, subject: Subject, estimator: str, scale: str
    ) -> None:
        if scale == "mean" and pk.ESTIMATORS[estimator].normalized:
            pytest.skip("is a mean already")
        if subject.simulated and (estimator, scale) not in (("sloo", "sum"), ("s", "mean")):
            pytest.skip("the same kernel, and other numbers")
        # In units of the largest float32, with finite ranges.
        units = [[1, 0, 1, 0.5], [0.5, -0.5, 0.3, 0.2], [1, 0.9, 0.8, 0.7], [-0.9, -0.9, -0.1, 0]]
        rewards = (LARGEST * np.array(units)).astype(np.float32)
        options: dict[str, Any] = {"estimator": estimator, "scale": scale}
        for k in (3,) if subject.simulated else (1, 2, 3):
            got = subject.transform(subject.array(rewards), k, **options)
            want = expected(rewards.astype(np.float64), k, **options)
            size = np.abs(want).max()
            want = np.where(np.abs(want) > LARGEST, np.copysign(INF, want), want)
            np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-7 * size)

    def test_only_results_overflow(self, subject: Subject) -> None:
        rewards = subject.array([[3.06e38, 1.2e-38]], "bfloat16")
        out = subject.transform(rewards, 1, estimator="sloo")
        np.testing.assert_allclose(out, [[1.53e38, -3.06e38]], rtol=0.01)
        rewards = subject.array([[60000.0, 0, 0, 0]], "float16")
        out = subject.transform(rewards, 3, estimator="centered", scale="mean")
        np.testing.assert_allclose(out, [[INF, -60000, -60000, -60000]], rtol=1e-3)


class TestInputsStayAsTheyAre:
    def test_read_only_strided_and_unmodified(
        self, subject: Subject, rng: np.random.Generator
    ) -> None:
        values = rng.standard_normal((6, 24)).astype(np.float32)
        strided = self.strided(subject, values)
        before = subject.numpy(strided).copy()
        plain = subject.array(before.astype(np.float32))
        assert strided.shape == (3, 8)
        np.testing.assert_array_equal(subject.transform(strided, 3), subject.transform(plain, 3))
        np.testing.assert_array_equal(subject.numpy(strided), before)

    @staticmethod
    def strided(subject: Subject, values: Any) -> Any:
        """Every other row of values (6, 24), every third sample: a view where there are any."""
        if subject.kind == "numpy":
            values.flags.writeable = False
            return values[::2, ::-3]
        if subject.kind == "torch":
            return subject.array(values)[::2].T[::3].T
        import jax
        from jax.experimental.layout import Format, Layout

        # JAX has no views, but samples may lie in memory before rows.
        array = subject.array(values[::2, ::3])
        return jax.device_put(array, Format(Layout(major_to_minor=(1, 0)), array.sharding))
