"""The packed kernels, which serve what is usual, on rows made to mislead their keys: to 256 samples
(longer: test_packed_long.py).

Run with TEST_DEVICE=ptx, or with TEST_DEVICE=cuda on a GPU: Triton's interpreter has no inline
assembly, and the general kernel takes its place there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from subjects import DEVICE, INTERPRETED, TRITON_RUNS

import pkpo_kernels as pk
from pkpo_kernels import _calls

torch = pytest.importorskip("torch")
if not TRITON_RUNS or INTERPRETED:
    pytest.skip("needs TEST_DEVICE=ptx or cuda", allow_module_level=True)

from pkpo_triton import kernel, packed, packed_long  # noqa: E402
from pkpo_triton.plan import packed_plan  # noqa: E402

PLAN: Any = functools.partial(packed_plan, usual=True, backend="cuda")
# Of no power of two: in one thread, in two, in four, padded there, in eight, by the long kernel.
OTHER_N = (12, 36, 56, 80, 100, 132, 200)
PACKED_N = tuple(sorted((16, 32, 64, 128, 256, *OTHER_N)))
LARGEST = float(np.finfo(np.float32).max)
TINY = 2.0**-149  # float32's smallest number
Rows = np.ndarray[Any, np.dtype[np.float32]]

# The same rows every time; without derandomize, a search.
SEARCHED = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# A kernel for every length has to be compiled: the shortest in `make test`.
LENGTHS = [pytest.param(n, marks=() if n == 16 else pytest.mark.slow) for n in PACKED_N]


def transformed(rewards: Rows, k: int, **options: Any) -> Rows:
    got = pk.transform(tensor(rewards), k, implementation="triton", **options)
    return np.asarray(got.cpu())


def tensor(values: Rows) -> Any:
    return torch.from_numpy(np.array(values)).to(DEVICE)


def expected(rewards: Rows, k: int, **options: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """In float64, NaN where a row is not finite or its range is not, in float32."""
    with np.errstate(all="ignore"):
        want = pk.transform(rewards.astype(np.float64), k, implementation="numpy", **options)
        regular = np.isfinite(rewards).all(1) & np.isfinite(np.ptp(rewards, axis=1))
    return np.where(regular[:, None], want, np.nan)


def assert_right(rewards: Rows, k: int, **options: Any) -> None:
    """Values, and the same bits for equal rewards."""
    got, want = transformed(rewards, k, **options), expected(rewards, k, **options)
    for row, of_row, right in zip(rewards, got, want, strict=True):
        if np.isnan(right).any():
            assert np.isnan(of_row).all()
            continue
        # Below the smallest float a product is lost, and so is a weight.
        lost = len(row) * TINY * max(1.0, float(np.ptp(row)))
        # At k=1 all gaps weigh the same, and sums of equal numbers are all rounded the same way.
        size = np.abs(right).max() * (2e-6 if k > 1 else 5e-6)
        np.testing.assert_allclose(of_row, right, rtol=0, atol=size + lost)
        values, of_value = np.unique(row, return_inverse=True)
        first = of_row[[np.argmax(row == value) for value in values]]
        np.testing.assert_array_equal(of_row.view(np.int32), first[of_value].view(np.int32))


@contextmanager
def launched(*, only_asked: bool = False) -> Iterator[list[str]]:
    """Which kernels are launched, or asked for."""
    found: list[str] = []

    def noting(function: Any) -> Any:
        run = function.run

        def noted(*arguments: Any, **options: Any) -> Any:
            found.append(function.fn.__name__)
            return None if only_asked else run(*arguments, **options)

        return mock.patch.object(function, "run", noted)

    _calls.forget()  # what was launched before is launched again by itself
    entries = (packed.packed_kernel, packed_long.packed_long_kernel, kernel.transform_kernel)
    with ExitStack() as notes:
        for entry in entries:
            notes.enter_context(noting(entry))
        yield found


# ---- Which kernel ------------------------------------------------------------------------------


def test_rows_of_a_multiple_of_four_are_packed() -> None:
    assert [n for n in range(1, 257) if PLAN(n)] == list(range(12, 257, 4))
    for kind in ({"masked": True}, {"itemsize": 2}):
        assert [n for n in range(1, 257) if PLAN(n, **kind)] == list(range(12, 257, 4))


@pytest.mark.parametrize(
    "estimator",
    [
        *("sloo_minus_one", "sloo"),
        *(pytest.param(name, marks=pytest.mark.costly("ptx")) for name in ("s", "centered")),
    ],
)
def test_the_usual_is_packed(estimator: str, rng: np.random.Generator) -> None:
    rewards = tensor(rng.standard_normal((40, 16)).astype(np.float32))
    with launched() as kernels:
        for k in (1, 2, 15):
            for scale in ("sum", "mean"):
                options: Any = {"scale": scale, "implementation": "triton"}
                pk.transform(rewards, k, estimator=estimator, **options)
                pk.transform(rewards, k, where=rewards > -1, estimator=estimator, **options)
    assert kernels == ["packed_kernel"] * 12


def test_all_else_is_not(rng: np.random.Generator) -> None:
    rewards = tensor(rng.standard_normal((40, 16)).astype(np.float32))
    flat = tensor(rng.standard_normal(40 * 16 + 1).astype(np.float32))
    k: Any = torch.tensor(2, device=DEVICE)
    calls: list[Callable[[], Any]] = [
        lambda: pk.transform(rewards > 0, 2, implementation="triton"),
        lambda: pk.transform(rewards, k, implementation="triton"),
        lambda: pk.transform(rewards, 2, estimator="passk_training", implementation="triton"),
        lambda: pk.transform(rewards[:, :15], 2, implementation="triton"),
        lambda: pk.transform(rewards.t().contiguous().t(), 2, implementation="triton"),
        lambda: pk.transform(flat[1:].view(40, 16), 2, implementation="triton"),
    ]
    with launched(only_asked=True) as kernels:
        for call in calls:
            call()
    assert kernels == ["transform_kernel"] * len(calls)


def test_only_nvidias_compiler_is_given_it() -> None:
    for backend in ("hip", ""):
        assert PLAN(16, backend=backend) is None
    assert PLAN(16, usual=False) is None


def test_one_program_serves_all_estimators_and_ks(rng: np.random.Generator) -> None:
    def programs() -> int:
        return sum(len(cache[0]) for cache in packed.packed_kernel.device_caches.values())

    transformed(rng.standard_normal((40, 16)).astype(np.float32), 2)
    before = programs()
    for rows, k, estimator in ((1, 1, "sloo_minus_one"), (16, 3, "s"), (33, 15, "centered")):
        transformed(rng.standard_normal((rows, 16)).astype(np.float32), k, estimator=estimator)
    assert programs() == before


# ---- Rows --------------------------------------------------------------------------------------


def misleading(n: int, rows: int, rng: np.random.Generator) -> dict[str, Rows]:
    """Rewards (rows, n) of every kind that a key, a gap or a level may be wrong about."""
    normal = rng.standard_normal((rows, n))
    sign = np.where(rng.random((rows, n)) < 0.5, -1.0, 1.0)
    shuffled = rng.permuted(np.tile(np.arange(n), (rows, 1)), axis=1)
    irregular = normal.copy()
    chosen = np.arange(rows) % 3 == 0
    irregular[chosen, rng.integers(0, n)] = rng.choice([np.inf, -np.inf, np.nan, -np.nan])
    overflowing = 1e37 * normal
    overflowing[::3, 1], overflowing[::3, n - 1] = LARGEST, -LARGEST
    kinds = {
        "normal": normal,
        "uniform": rng.random((rows, n)),
        "heavy tails": np.exp(2 * normal),
        "quarters": np.round(4 * normal) / 4,
        "far from 0": 1 + 1e-3 * normal,
        "two neighbours": 1 + rng.integers(0, 3, (rows, n)) * 2.0**-23,
        "all within n neighbours": 1 + shuffled * 2.0**-23,
        "below 0": -(1 + rng.integers(0, 40, (rows, n)) * 2.0**-23),
        "around a power of two": 1 + rng.integers(-30, 30, (rows, n)) * 2.0**-24,
        "subnormal": rng.integers(-300, 300, (rows, n)) * TINY,
        "around 0": rng.integers(-3, 4, (rows, n)) * TINY,
        "zeros of both signs": np.where(rng.random((rows, n)) < 0.7, 0.0, normal) * sign,
        "ascending": np.sort(normal),
        "descending": -np.sort(-normal),
        "constant": np.broadcast_to(normal[:, :1], (rows, n)),
        "not finite": irregular,
        "nothing finite": np.where(sign > 0, np.inf, np.nan),
        "constant, but for one": np.where(shuffled == 0, np.nan, 1.0),
        "zeros, but for one": np.where(shuffled == 0, -np.inf, 0.0),
        "range overflows": overflowing,
        "range overflows between zeros": np.where(shuffled < 2, sign * LARGEST, 0.0),
        "large": LARGEST * rng.random((rows, n)),
        "two large levels": LARGEST * (sign > 0),
        "about as large as is large": np.ldexp(normal, 100),
    }
    for levels in range(2, 10):
        of_row = rng.integers(0, levels, (rows, n))
        kinds[f"{levels} levels"] = np.take_along_axis(normal, of_row, 1)
    kinds["few samples differ"] = np.where(np.arange(n) < n - 6, normal[:, :1], normal)
    # Ways differ from row to row.
    names = list(kinds)
    which = rng.integers(0, len(names), rows)
    kinds["mixed"] = np.stack([kinds[names[w]][i] for i, w in enumerate(which)])
    return {name: x.astype(np.float32) for name, x in kinds.items()}


@pytest.mark.parametrize("n", [12, *LENGTHS[1:]])
def test_rows_that_mislead(n: int, rng: np.random.Generator) -> None:
    with launched() as kernels:
        for rewards in misleading(n, 37, rng).values():
            assert_right(rewards, 2)  # every gap weighs something
    assert set(kernels) == {"packed_kernel" if n <= 160 else "packed_long_kernel"}


@pytest.mark.release
@pytest.mark.parametrize(
    "n", [*range(20, 128, 8), 56, 72, 88, 132, 160, 252, 260, 492, 516, 1020, 1028]
)
def test_padding_of_every_size(n: int, rng: np.random.Generator) -> None:
    for rewards in misleading(n, 3, rng).values():
        assert_right(rewards, 2)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("estimator", ["s", "sloo", "centered"])
def test_other_estimators_of_mixed_rows(n: int, estimator: str, rng: np.random.Generator) -> None:
    large = ("large", "overflow", "mixed")
    kinds = {
        name: rewards
        for name, rewards in misleading(n, 3, rng).items()
        if not any(word in name for word in large)
    }
    rewards = np.concatenate(list(kinds.values()))
    for k in (1, n // 2, n - 1):
        assert_right(rewards, k, estimator=estimator, scale="mean")


@pytest.mark.parametrize("n", LENGTHS)
def test_no_row_sees_what_is_beside_it(n: int, rng: np.random.Generator) -> None:
    """To the bit: alone in a program of its kind a row goes another way than among others."""
    mixed = np.stack([rewards[0] for rewards in misleading(n, 1, rng).values()])
    among = transformed(mixed, 3, estimator="sloo")
    for row, beside_others in zip(mixed, among, strict=True):
        np.testing.assert_array_equal(transformed(row[None], 3, estimator="sloo")[0], beside_others)


@pytest.mark.parametrize("n", [12, 16, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 100])
def test_any_number_of_rows(rows: int, n: int, rng: np.random.Generator) -> None:
    assert_right(rng.standard_normal((rows, n)).astype(np.float32), 2)


@pytest.mark.parametrize("n", LENGTHS)
def test_ties_of_every_length(n: int, rng: np.random.Generator) -> None:
    ordered = rng.standard_normal((n, n))
    tied = np.where(np.arange(n) < np.arange(n)[:, None], ordered[:, :1], ordered)
    assert_right(rng.permuted(tied, axis=1).astype(np.float32), 2)


# Numbers that lie close: by their bits, around those where something changes.
_BITS = st.sampled_from([0, 1 << 31, 0x3F800000, 0xBF800000, 0x00800000, 0x71800000, 0x7F7FFFE0])


@st.composite
def close_rows(draw: st.DrawFn, n: int) -> Rows:
    """(3, n) float32."""
    rows = []
    for _ in range(3):
        base, width = draw(_BITS), draw(st.sampled_from([1, 2, 5, n, 4 * n, 1 << 12]))
        steps = draw(st.lists(st.integers(0, width), min_size=n, max_size=n))
        other = draw(st.sampled_from([base, base ^ (1 << 31), base + 4 * n]))
        flips = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        bits = [(other if flip else base) + step for step, flip in zip(steps, flips, strict=True)]
        rows.append(np.array(bits, np.uint32).view(np.float32))
    return np.stack(rows)


@SEARCHED
@given(data=st.data())
def test_rewards_that_lie_close(data: st.DataObject) -> None:
    assert_right(data.draw(close_rows(16)), data.draw(st.sampled_from([1, 2, 8, 16])))


@pytest.mark.slow
@pytest.mark.parametrize("n", [n for n in PACKED_N if n > 16])
@SEARCHED
@given(data=st.data())
def test_rewards_that_lie_close_in_longer_rows(n: int, data: st.DataObject) -> None:
    assert_right(data.draw(close_rows(n)), data.draw(st.sampled_from([1, 2, n // 2, n])))
