"""The Triton kernels at the edges of their regimes, and how they meet torch.

Run with TRITON_INTERPRET=1, with TEST_DEVICE=ptx, or with TEST_DEVICE=cuda on a GPU; what they
compute otherwise is the contract's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from subjects import DEVICE, TRITON_RUNS, rewards_of_every_kind

import pkpo_kernels as pk

torch = pytest.importorskip("torch")
if not TRITON_RUNS:
    reason = "needs TRITON_INTERPRET=1, or TEST_DEVICE=ptx or cuda"
    pytest.skip(reason, allow_module_level=True)

from pkpo_triton import plan as plans  # noqa: E402

# Every length at which something changes, one less and one more; here first one of every regime.
REGIMES = (1, 8, 9, 16, 17, 32, 33, 65, 100, 257)
OTHER_EDGES = (2, 7, 15, 31, 48, 63, 64, 127, 128, 129, 255, 256, 300, 511, 513)
LONG_EDGES = (512, 1024, 1025, 2048, 2049, 4096, 4097, 8192, 8193)


def and_slow(first: Sequence[Any], *others: Any) -> list[Any]:
    """Parameters: the first in `make test`, the others in `make test-all`."""
    return [*first, *marked(pytest.mark.slow, others)]


def marked(mark: pytest.MarkDecorator, parameters: Sequence[Any]) -> list[Any]:
    return [pytest.param(*_several(one), marks=mark) for one in parameters]


def _several(one: Any) -> tuple[Any, ...]:
    return one if isinstance(one, tuple) else (one,)


def transformed(rewards: Any, k: Any, **options: Any) -> Any:
    return pk.transform(rewards, k, implementation="triton", **options).cpu()


def expected(rewards: np.ndarray[Any, Any], k: Any, **options: Any) -> Any:
    return pk.transform(rewards.astype(np.float64), k, implementation="numpy", **options)


def tensor(values: Any) -> Any:
    return torch.from_numpy(np.array(values)).to(DEVICE)


@pytest.mark.parametrize(
    "n", [*and_slow(REGIMES, *OTHER_EDGES), *marked(pytest.mark.release, LONG_EDGES)]
)
def test_every_regime_and_its_edges(n: int, rng: np.random.Generator) -> None:
    rewards = rewards_of_every_kind(rng, n, rows=2).astype(np.float32)
    for estimator, k in (("sloo_minus_one", max(1, n // 3)), ("sloo", max(1, n // 2))):
        if k > pk.ESTIMATORS[estimator].largest_k(n):
            continue
        want = expected(rewards, k, estimator=estimator)
        got = transformed(tensor(rewards), k, estimator=estimator)
        np.testing.assert_allclose(got, want, rtol=5e-6, atol=3e-6 * np.abs(want).max())


@pytest.mark.parametrize(
    "n",
    [
        *and_slow([5, 16, 64], 1024),
        *marked(pytest.mark.costly("ptx", "interpreted"), [8, 32, 100]),
        *(pytest.param(n, marks=pytest.mark.release) for n in (128, 256, 512, 2048, 4096, 8192)),
    ],
)
def test_the_whole_sort_is_seen(n: int, rng: np.random.Generator) -> None:
    """Every gap weighs something at k=2 and 1, so that no sample may lie in a wrong place: ordered
    rows, ties, near ties, few levels, constant and irregular ones in one block, and blocks of two
    levels."""
    normal = rng.standard_normal((2, n))
    kinds = [
        normal,
        np.sort(normal),
        np.sort(normal)[:, ::-1],
        np.round(normal),
        1 + 2.0**-23 * rng.integers(0, 2 * n, (2, n)),
        np.broadcast_to(normal[:, :1], (2, n)),
        np.where(np.arange(n) == n - 1, [[np.nan], [np.inf]], normal),
    ]
    mixed = np.concatenate(kinds).astype(np.float32)
    levels = rng.integers(0, 2, (3, n)).astype(np.float32)
    for rewards in (mixed, levels):
        for k in (1, 2, max(1, n // 3)):
            want, got = expected(rewards, k), transformed(tensor(rewards), k).numpy()
            size = np.nanmax(np.abs(want), axis=1, initial=1e-30, keepdims=True)
            np.testing.assert_allclose(got / size, want / size, rtol=5e-6, atol=1e-6)


def test_float64_is_left_to_torch() -> None:
    from pkpo_kernels.backends import registry

    rewards = torch.randn(4, 8, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match=r"compute in float32 .* float64; take 'torch'"):
        transformed(rewards, 2)
    with pytest.raises(ValueError, match=r"compute in float32 .* float64; take 'torch'"):
        pk.max_at_k(rewards, 2, implementation="triton")
    others = "torch" if DEVICE == "cuda" else "numpy"
    assert registry.default_implementation("torch", rewards) == others
    assert registry.default_implementation("torch", rewards.float()) == "triton"
    # Their results would be float64.
    torch.set_default_dtype(torch.float64)
    try:
        assert registry.default_implementation("torch", rewards > 0) == others
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.costly("ptx")
@pytest.mark.parametrize("offset, step", and_slow([(4, 4), (1, 1)], (0, 4), (0, 3), (2, 6)))
def test_rows_that_are_not_aligned(offset: int, step: int, rng: np.random.Generator) -> None:
    memory = tensor(rng.standard_normal(40 * 110).astype(np.float32))
    rows = memory[offset:].as_strided((9, 96), (96 + step, 1))
    want = expected(rows.cpu().numpy(), 5)
    np.testing.assert_allclose(transformed(rows, 5), want, rtol=5e-6, atol=1e-7)


@pytest.mark.parametrize("n", and_slow([9, 20], 64, 65, 130))
def test_masks_at_the_edges(n: int, rng: np.random.Generator) -> None:
    rewards = rng.standard_normal((6, n)).astype(np.float32)
    where = rng.random((6, n)) < np.array([[1.0], [0.9], [0.5], [0.1], [0.0], [0.7]])
    k = rng.integers(1, 5, 6)
    for undersized in ("zero", "nan", "clip"):
        options: dict[str, Any] = {"estimator": "sloo", "undersized": undersized}
        want = expected(rewards, k, where=where, **options)
        got = transformed(tensor(rewards), k, where=tensor(where), **options)
        np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize(
    "n", [*and_slow([5, 32], 100), *marked(pytest.mark.costly("ptx", "interpreted"), [40])]
)
def test_zeros_and_ones_and_bools_agree(n: int, rng: np.random.Generator) -> None:
    rewards = rng.random((7, n)) < 0.3
    for estimator in ("sloo_minus_one", "s", "passk_training"):
        want = expected(rewards, 3, estimator=estimator)
        for dtype in (np.bool_, np.float32):
            got = transformed(tensor(rewards.astype(dtype)), 3, estimator=estimator)
            np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize("n", [16, pytest.param(100, marks=pytest.mark.slow)])
def test_counting_and_sorting_give_the_same_bits(n: int, rng: np.random.Generator) -> None:
    rows = (rng.random((64, n)) < 0.5).astype(np.float32)
    alone = transformed(tensor(rows), 3)
    # One row of three levels in every block sends all of it through the network.
    rows = np.repeat(rows, 2, axis=0)
    rows[1::2] = rng.standard_normal((64, n))
    np.testing.assert_array_equal(transformed(tensor(rows), 3)[::2], alone)


@pytest.mark.parametrize("n", and_slow([8, 33], 70))
def test_any_layout_is_read_as_it_is(n: int, rng: np.random.Generator) -> None:
    # Other programs, in which compilers may fuse other products and sums: Triton 3.9 does.
    same = partial(np.testing.assert_array_max_ulp, maxulp=4)
    values = rng.standard_normal((12, n)).astype(np.float32)
    want = transformed(tensor(values), 3).numpy()
    by_samples = tensor(values.T)
    got = pk.transform(by_samples, 3, axis=0, implementation="triton")
    same(got.cpu().T.numpy(), want)
    assert got.stride() == by_samples.stride()
    wide = tensor(np.repeat(np.repeat(values, 2, axis=0), 3, axis=1))
    same(transformed(wide[::2, ::3], 3).numpy(), want)
    alike = tensor(values[0]).expand(4, n)
    same(transformed(alike, 3).numpy(), np.broadcast_to(want[0], (4, n)))


@pytest.mark.parametrize("rows", and_slow([1, 33, 513], 31, 32, 129))
def test_any_number_of_rows(rows: int, rng: np.random.Generator) -> None:
    rewards = rng.standard_normal((rows, 8)).astype(np.float32)
    np.testing.assert_allclose(
        transformed(tensor(rewards), 2), expected(rewards, 2), rtol=5e-6, atol=1e-7
    )


@pytest.mark.costly("interpreted")
def test_a_long_row(rng: np.random.Generator) -> None:
    n = plans.LONGEST_ON_CHIP + 1
    rewards = rewards_of_every_kind(rng, n, rows=1).astype(np.float32)
    where = rng.random(rewards.shape) < 0.9
    want = expected(rewards, 7, where=where)
    got = transformed(tensor(rewards), 7, where=tensor(where))
    np.testing.assert_allclose(got, want, rtol=5e-6, atol=2e-6 * np.abs(want).max())


@pytest.mark.costly("ptx", "interpreted")
@pytest.mark.parametrize(
    "estimator, masked",
    and_slow([("sloo_minus_one", True)], ("sloo", False), ("passk_training", True)),
)
def test_long_rows_of_bools(estimator: str, masked: bool, rng: np.random.Generator) -> None:
    rewards, where = long_bools(rng)
    k = np.array([1, 2, 300, rewards.shape[1] // 2, rewards.shape[1] - 1])
    want = expected(
        rewards, k, where=where if masked else None, estimator=estimator, undersized="nan"
    )
    options = {"where": tensor(where)} if masked else {}
    got = transformed(tensor(rewards), k, estimator=estimator, undersized="nan", **options)
    np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-7 * np.nanmax(np.abs(want)))


@pytest.mark.costly("ptx", "interpreted")
def test_max_at_k_of_long_rows_of_bools(rng: np.random.Generator) -> None:
    rewards, where = long_bools(rng)
    got = pk.max_at_k(tensor(rewards), [1, 300], where=tensor(where), implementation="triton")
    want = pk.max_at_k(rewards, [1, 300], where=where, implementation="numpy")
    np.testing.assert_allclose(got.cpu(), want, rtol=2e-6, atol=1e-6)


def long_bools(rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rewards and a mask (5, n), True in a share that differs by row, none and all among them."""
    n = plans.LONGEST_ON_CHIP + 1
    share = np.array([[0.3], [0.0], [1.0], [0.001], [0.9]])
    return rng.random((5, n)) < share, rng.random((5, n)) < 0.9


@pytest.mark.parametrize("n", and_slow([20, 100], 300))
def test_max_at_k_of_several_ks(n: int, rng: np.random.Generator) -> None:
    rewards = rewards_of_every_kind(rng, n, rows=2).astype(np.float32)
    rewards[0, 0] = np.nan
    ks = [1, 4, n]
    got = pk.max_at_k(tensor(rewards), ks, implementation="triton").cpu()
    want = pk.max_at_k(rewards.astype(np.float64), ks, implementation="numpy")
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


def exact(row: np.ndarray[Any, Any], k: int, estimator: str) -> list[Fraction]:
    """n times the estimator's values, in fractions: "s", "sloo" or "centered" of one row."""
    n, g = len(row), [Fraction(float(x)) for x in row]

    def best_of(k: int, rest: list[Fraction]) -> Fraction:
        """Σ over the subsets of size k of their maximum."""
        return sum((math.comb(j, k - 1) * x for j, x in enumerate(sorted(rest))), start=Fraction(0))

    every = best_of(k, g)
    avoiding = [best_of(k, g[:i] + g[i + 1 :]) for i in range(n)]
    s = [(every - without) / math.comb(n, k) for without in avoiding]
    if estimator == "sloo":
        others = [Fraction(k, n - 1) * without / math.comb(n - 1, k) for without in avoiding]
        s = [x - y for x, y in zip(s, others, strict=True)]
    if estimator == "centered":
        s = [Fraction(n, n - k) * (x - sum(s) / n) for x in s]
    return [n * x for x in s]


class TestRowsThatAreNotFinite:
    @pytest.mark.costly("ptx", "interpreted")
    @pytest.mark.parametrize(
        "n, values",
        [
            *and_slow([(8, "any"), (33, "two")], (8, "two"), (33, "any"), (100, "any")),
            *(pytest.param(n, "two", marks=pytest.mark.release) for n in (100, 8193)),
            pytest.param(8193, "any", marks=pytest.mark.release),
        ],
    )
    def test_they_leave_the_others_of_their_block_as_they_are(
        self, n: int, values: str, rng: np.random.Generator
    ) -> None:
        rewards = rng.standard_normal((12, n)).astype(np.float32)
        if values == "two":
            rewards = np.sign(rewards)
        where = rng.random((12, n)) < 0.8
        where[:, :6] = True
        where[10] = False  # has no samples
        k = rng.integers(1, 6, 12)
        k[11] = n  # too large for what the mask leaves
        where[11, 6:] = np.arange(n - 6) % 3 == 0
        irregular = rewards.copy()
        largest = np.finfo(np.float32).max
        for row, first in enumerate(
            ([np.nan], [-np.nan, 1], [np.inf], [-np.inf], [np.inf, -np.inf], [largest, -largest])
        ):
            irregular[2 * row, : len(first)] = first
        irregular[11, 5] = np.nan
        touched = [0, 2, 4, 6, 8, 10, 11]
        left_out = ~where
        irregular[1::2][left_out[1::2]] = np.nan
        irregular[3][left_out[3]] = -np.inf
        for estimator in ("sloo_minus_one", "passk_training"):
            options: dict[str, Any] = {"estimator": estimator, "where": tensor(where)}
            want = transformed(tensor(rewards), tensor(k), **options).numpy()
            got = transformed(tensor(irregular), tensor(k), **options).numpy()
            others = [row for row in range(12) if row not in touched]
            if values == "two" and n > 32:  # one way counts, the other sorts
                np.testing.assert_allclose(got[others], want[others], rtol=2e-6, atol=1e-7)
            else:
                np.testing.assert_array_equal(got[others], want[others])
            assert np.isnan(got[touched][where[touched]]).all()
            assert not got[left_out].any()
            best = pk.max_at_k(
                tensor(irregular), [1, 3], where=tensor(where), implementation="triton"
            )
            best = best.cpu().numpy()
            assert np.isnan(best[touched]).all()
            assert np.isfinite(best[others]).all()

    @pytest.mark.parametrize("estimator", ["sloo", "centered", "s"])
    @pytest.mark.parametrize(
        "n, dtype", and_slow([(2, "bfloat16"), (8, "float32")], (8, "bfloat16"), (40, "float32"))
    )
    def test_only_values_overflow(
        self, n: int, dtype: str, estimator: str, rng: np.random.Generator
    ) -> None:
        largest = float(torch.finfo(getattr(torch, dtype)).max)
        shares = rng.random((3, n))
        # Up to the largest; around 0; and below it.
        shares = np.stack([shares[0], shares[1] - 0.5, shares[2] - 1])
        shares[:, :2] = [[1, 0], [0.5, -0.5], [0, -1]]
        rewards = tensor((largest * shares).astype(np.float32)).to(getattr(torch, dtype))
        k = tensor(np.array([1, n - 1, max(1, n // 2)]))
        read = rewards.to(torch.float64).cpu().numpy()
        values = [exact(row, int(m), estimator) for row, m in zip(read, k, strict=True)]
        for scale, divisor in (("mean", 1), ("sum", n)):
            want = np.array([[x / divisor for x in row] for row in values])
            got = transformed(rewards, k, estimator=estimator, scale=scale).to(torch.float64)
            size = abs(want).max()
            beyond = (abs(want) > largest).astype(bool)
            near = (abs(want) > 0.99 * largest) & (abs(want) < 1.01 * largest)
            want = np.where(beyond, np.where(want > 0, np.inf, -np.inf), want).astype(np.float64)
            # What is almost as large as it can be may be rounded up to infinity.
            settled = ~near.astype(bool)
            np.testing.assert_allclose(
                got.numpy()[settled],
                want[settled],
                rtol=2e-6 if dtype == "float32" else 8e-3,
                atol=2e-7 * float(size),
            )
