"""Masks, a k for every row, axes, dtypes, and matrices of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from expected import ESTIMATORS, expected
from subjects import Subject

import pkpo_kernels as pk
from pkpo_kernels.maths import reference


def in_small_blocks(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """Have the portable implementations work on so many elements at a time."""
    from pkpo_kernels.backends import numpy as numpy_backend
    from pkpo_kernels.backends import torch as torch_backend
    from pkpo_kernels.backends import xla as xla_backend

    monkeypatch.setattr(numpy_backend, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(torch_backend, "CPU_BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(xla_backend, "BLOCK_ELEMENTS", elements)


class TestOptions:
    @pytest.mark.essential
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

    @pytest.mark.essential
    @pytest.mark.parametrize("undersized", ["clip", "zero", "nan"])
    def test_a_k_beyond_all_samples_leaves_it_to_each_row(
        self, subject: Subject, rng: np.random.Generator, undersized: str
    ) -> None:
        if (undersized == "zero" and subject.compiles_programs) or (
            undersized == "nan" and subject.compiles_step_by_step
        ):
            pytest.skip("each case is programs to compile, and rows see the same in the test above")
        rewards = rng.standard_normal((5, 4)).astype(np.float32)
        where = np.arange(4) < np.array([4, 3, 2, 1, 0])[:, None]
        options = {"where": subject.array(where), "estimator": "sloo", "undersized": undersized}
        k = 2**31 - 1 if subject.dynamic_k else 2**70
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
            if subject.compiles_step_by_step:
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

    @pytest.mark.essential
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
        if subject.weighs_each_row_in_float32:
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

    @pytest.mark.essential
    def test_no_rows(self, subject: Subject) -> None:
        empty = subject.array(np.zeros((2, 0, 5), np.float32))
        assert subject.transform(empty, 3).shape == (2, 0, 5)
        assert subject.max_at_k(empty, [1, 2]).shape == (2, 0, 2)

    @pytest.mark.costly("few")
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_floating_dtypes_come_back(
        self, subject: Subject, rng: np.random.Generator, dtype: str
    ) -> None:
        rewards = subject.array(rng.standard_normal((4, 20)), dtype)
        out = pk.transform(rewards, subject.k(3), implementation=subject.implementation)
        assert out.dtype == rewards.dtype
        exact = expected(subject.numpy(rewards), 3)
        resolution = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-22}[dtype]
        if subject.cuts_off_bfloat16 and dtype == "bfloat16":
            resolution *= 2
        # Computed in float32 or better and rounded once.
        np.testing.assert_allclose(subject.numpy(out), exact, rtol=1.01 * resolution, atol=6e-8)
        assert pk.max_at_k(rewards, 2, implementation=subject.implementation).dtype == rewards.dtype

    @pytest.mark.essential
    @pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "int64", "uint8"])
    def test_integers_and_bool_give_the_default_float(self, subject: Subject, dtype: str) -> None:
        rewards = np.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 1]])
        out = pk.transform(
            subject.array(rewards, dtype), subject.k(2), implementation=subject.implementation
        )
        assert str(out.dtype) == subject.library.default_float
        np.testing.assert_allclose(subject.numpy(out), expected(rewards, 2), rtol=1e-6)

    @pytest.mark.costly("few", "ptx")
    def test_large_matrices_are_their_rows(
        self, subject: Subject, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if subject.several_blocks is None:
            pytest.skip("goes row by row anyway")
        in_small_blocks(monkeypatch, 1 << 12)
        rows, n = subject.several_blocks
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

    @pytest.mark.costly("ptx", "interpreted")
    def test_every_output_is_written_whole(
        self, subject: Subject, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not subject.library.leaves_memory_unwritten:
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
