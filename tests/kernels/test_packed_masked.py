"""The packed kernel on rows of which samples are left out, as ragged groups are.

Run with TEST_DEVICE=ptx, or with TEST_DEVICE=cuda on a GPU: see test_packed.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from subjects import DEVICE, INTERPRETED, TRITON_RUNS

import pkpo_kernels as pk

torch = pytest.importorskip("torch")
if not TRITON_RUNS or INTERPRETED:
    pytest.skip("needs TEST_DEVICE=ptx or cuda", allow_module_level=True)

from pkpo_triton import packed  # noqa: E402
from test_packed import (  # noqa: E402
    LENGTHS,
    PLAN,
    SEARCHED,
    TINY,
    Rows,
    close_rows,
    launched,
    misleading,
    tensor,
)

LONG = [300, 512, 1500, 4096]
ALL_LENGTHS = [*LENGTHS, *(pytest.param(n, marks=pytest.mark.release) for n in LONG)]
ESTIMATORS = [
    "sloo_minus_one",
    "s",
    *(pytest.param(name, marks=pytest.mark.costly("ptx")) for name in ("sloo", "centered")),
]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def transformed(rewards: Rows, where: Mask, k: int, **options: Any) -> Rows:
    mask = torch.from_numpy(where).to(DEVICE)
    got = pk.transform(tensor(rewards), k, where=mask, implementation="triton", **options)
    return np.asarray(got.cpu())


def expected(
    rewards: Rows, where: Mask, k: int, **options: Any
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """In float64, NaN for the valid samples of a row that is not finite or whose range is not, in
    float32."""
    valid = np.where(where, rewards, np.nan)
    with np.errstate(all="ignore"):
        given = np.where(where, rewards, 0).astype(np.float64)
        want = pk.transform(given, k, where=where, implementation="numpy", **options)
        top, bottom = (np.fmax.reduce(x, axis=1, initial=-np.inf) for x in (valid, -valid))
        regular = np.isfinite(np.where(where, rewards, 0)).all(1)
        regular &= np.isfinite((top + bottom).astype(np.float32)) | ~where.any(1)
    return np.where(where & ~regular[:, None], np.nan, want)


def assert_right(rewards: Rows, where: Mask, k: int, **options: Any) -> None:
    """Values, 0 for what is left out, and the same bits for equal rewards."""
    got, want = transformed(rewards, where, k, **options), expected(rewards, where, k, **options)
    np.testing.assert_array_equal(got[~where].view(np.int32), 0)
    for row, valid, of_row, right in zip(rewards, where, got, want, strict=True):
        row, of_row, right = row[valid], of_row[valid], right[valid]
        if not valid.any():
            continue
        if np.isnan(right).any():
            assert np.isnan(of_row).all()
            continue
        # Below the smallest float a product is lost, and so is a weight; means are n times as much.
        lost = len(valid) * TINY * max(1.0, float(np.ptp(row)))
        lost *= len(valid) if options.get("scale") == "mean" else 1
        size = np.abs(right).max()
        np.testing.assert_allclose(of_row, right, rtol=0, atol=2e-6 * size + lost)
        values, of_value = np.unique(row, return_inverse=True)
        first = of_row[[np.argmax(row == value) for value in values]]
        np.testing.assert_array_equal(of_row.view(np.int32), first[of_value].view(np.int32))


def kernel_of(n: int) -> str:
    return "packed_kernel" if n <= 224 else "packed_long_kernel"


def some(counts: Any, n: int, rng: np.random.Generator) -> Mask:
    """So many valid samples in each row, anywhere."""
    return rng.permuted(np.arange(n) < np.asarray(counts)[:, None], axis=1)


def left_out_hold_anything(rewards: Rows, where: Mask, rng: np.random.Generator) -> Rows:
    """Among other things what no valid sample may be without making its row NaN."""
    anything = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 0, -0.0, TINY], np.float32)
    return np.where(where, rewards, rng.choice(anything, rewards.shape))


@pytest.mark.parametrize("n", ALL_LENGTHS)
def test_rows_that_mislead(n: int, rng: np.random.Generator) -> None:
    rows = 37
    with launched() as kernels:
        for rewards in misleading(n, rows, rng).values():
            # Of half of the rows most are valid.
            counts = np.where(rng.random(rows) < 0.5, n - rng.integers(0, 4, rows), 0)
            counts = np.where(counts, counts, rng.integers(0, n + 1, rows))
            where = some(counts, n, rng)
            rewards = left_out_hold_anything(rewards, where, rng)
            assert_right(rewards, where, 2)
    assert set(kernels) == {kernel_of(n)}


@pytest.mark.any_length
def test_long_rows(rng: np.random.Generator) -> None:
    """Padded, with as few samples as leaves threads idle, and every number that a row may have."""
    n = 300
    normal = rng.standard_normal((n + 1, n)).astype(np.float32)
    with launched() as kernels:
        assert_right(normal, some(np.arange(n + 1), n, rng), 4)
        for name in ("3 levels", "constant", "not finite", "quarters"):
            rewards = misleading(n, 5, rng)[name]
            where = some([0, 1, 5, n - 1, n], n, rng)
            assert_right(left_out_hold_anything(rewards, where, rng), where, 2)
    assert set(kernels) == {kernel_of(n)}


@pytest.mark.parametrize("n", LENGTHS)
def test_every_number_of_samples(n: int, rng: np.random.Generator) -> None:
    """With ks that only some of the rows admit, or none."""
    where = some(np.arange(n + 1), n, rng)
    normal = rng.standard_normal((n + 1, n)).astype(np.float32)
    levels = rng.integers(0, 3, (n + 1, n)).astype(np.float32)
    for k in (1, 2, n // 2, n - 1, n, n + 3):
        for undersized in ("zero", "nan", "clip"):
            for rewards in (normal, levels):
                assert_right(rewards, where, k, undersized=undersized)


@pytest.mark.parametrize("n", ALL_LENGTHS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators(n: int, estimator: str, rng: np.random.Generator) -> None:
    large = ("large", "overflow", "mixed")
    kinds = {
        name: rewards
        for name, rewards in misleading(n, 3, rng).items()
        if not any(word in name for word in large)
    }
    rewards = np.concatenate([*kinds.values(), *kinds.values()])
    counts = rng.integers(0, n + 1, len(rewards))
    with launched() as kernels:
        for k in (1, 2, n // 2, n) if n <= 256 else (1, 2, 25):
            for undersized, scale in (("nan", "sum"), ("clip", "mean")):
                rules: dict[str, Any] = {"undersized": undersized, "scale": scale}
                assert_right(rewards, some(counts, n, rng), k, estimator=estimator, **rules)
    assert set(kernels) == {kernel_of(n)}


@pytest.mark.parametrize("n", ALL_LENGTHS)
def test_no_row_sees_what_is_beside_it(n: int, rng: np.random.Generator) -> None:
    """To the bit: alone in a program of its kind a row goes another way than among others."""
    mixed = np.stack([rewards[0] for rewards in misleading(n, 1, rng).values()])
    where = some(rng.integers(0, n + 1, len(mixed)), n, rng)
    among = transformed(mixed, where, 3, estimator="sloo")
    for row, valid, beside_others in zip(mixed, where, among, strict=True):
        alone = transformed(row[None], valid[None], 3, estimator="sloo")
        np.testing.assert_array_equal(alone[0], beside_others)


@pytest.mark.slow
@pytest.mark.any_length
def test_large_ks_of_long_rows_are_warmed_up_too() -> None:
    with launched() as kernels:
        pk.warm_up([300, 8], "transform, where", k=[8, 150], implementation="triton")
    assert kernels == ["packed_long_kernel", "transform_kernel", "transform_kernel"]


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 100])
def test_any_number_of_rows(rows: int, rng: np.random.Generator) -> None:
    rewards = rng.standard_normal((rows, 16)).astype(np.float32)
    assert_right(rewards, some(rng.integers(0, 17, rows), 16, rng), 2)


def test_some_ks_of_long_rows_are_of_another_kernel() -> None:
    """Float32 holds no weights of theirs."""
    assert PLAN(512, masked=True, k=56) and not PLAN(512, masked=True, k=57)
    assert all(PLAN(256, masked=True, k=k) for k in range(1, 257))


@pytest.mark.parametrize("n", LENGTHS)
def test_small_rewards_keep_their_digits(n: int, rng: np.random.Generator) -> None:
    """In rows of k samples all that counts is a gap whose weight in a full row would be tiny."""
    rewards = (1e-30 * rng.standard_normal((40, n))).astype(np.float32)
    k = n // 2
    assert_right(rewards, some(k + np.arange(40) % 3, n, rng), k)


def test_one_program_serves_masks_at_any_address(rng: np.random.Generator) -> None:
    def programs() -> int:
        return sum(len(cache[0]) for cache in packed.packed_kernel.device_caches.values())

    rewards = rng.standard_normal((40, 16)).astype(np.float32)
    where = some(rng.integers(0, 17, 40), 16, rng)
    want = transformed(rewards, where, 2)
    before = programs()
    flat = torch.zeros(40 * 16 + 1, dtype=torch.bool, device=DEVICE)
    elsewhere = flat[1:].view(40, 16)
    wide = torch.zeros(40, 32, dtype=torch.bool, device=DEVICE)[:, ::2]
    with launched() as kernels:
        for mask in (elsewhere, wide):
            mask.copy_(torch.from_numpy(where))
            got = pk.transform(tensor(rewards), 2, where=mask, implementation="triton")
            np.testing.assert_array_equal(np.asarray(got.cpu()), want)
    assert kernels == ["packed_kernel"] * 2
    for k, undersized, estimator in ((1, "nan", "s"), (3, "clip", "sloo"), (16, "zero", "s")):
        transformed(rewards, where, k, undersized=undersized, estimator=estimator)
    assert programs() == before


@pytest.mark.parametrize("n", LENGTHS)
@SEARCHED
@given(data=st.data())
def test_rewards_that_lie_close(n: int, data: st.DataObject) -> None:
    rewards = data.draw(close_rows(n))
    valid = st.lists(st.booleans(), min_size=n, max_size=n)
    where = np.array(data.draw(st.lists(valid, min_size=3, max_size=3)))
    assert_right(rewards, where, data.draw(st.sampled_from([1, 2, n // 2, n])))
