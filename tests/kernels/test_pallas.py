"""The Pallas kernels, interpreted: their networks, regimes and races.

Run with PALLAS_INTERPRET=1; what the kernels compute otherwise is the contract's business.
"""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from functools import partial
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pkpo_pallas
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from pkpo_pallas import launch, networks, plan
from races import Races
from subjects import PALLAS_INTERPRETED, interpret_with, rewards_of_every_kind, same

import pkpo_kernels as pk
from pkpo_kernels.maths.weights import Coefficients, Estimator

if not PALLAS_INTERPRETED:
    pytest.skip("needs PALLAS_INTERPRET=1", allow_module_level=True)

slow = partial(pytest.param, marks=pytest.mark.slow)
release = partial(pytest.param, marks=pytest.mark.release)
fused = partial(pk.transform, implementation="pallas_interpret")
fused_max = partial(pk.max_at_k, implementation="pallas_interpret")


def reference(rewards: Any, k: Any, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(pk.transform(np.asarray(rewards), k, implementation="reference", **options))


def rewards_of(n: int, rows: int = 2, dtype: Any = jnp.float32) -> jax.Array:
    values = rewards_of_every_kind(np.random.default_rng(n), n, rows)
    return jnp.asarray(values > 0 if jnp.dtype(dtype) == np.bool_ else values, dtype)


def samples_of(p: networks.Pass, group: int) -> list[int]:
    start = group // p.starts * p.span + group % p.starts
    return [start + c * p.stride for c in range(p.each)]


class TestNetworks:
    @pytest.mark.parametrize("group", [8, plan.GROUP])
    @pytest.mark.parametrize("n", [*range(1, 41), 64, 100, 128, *(slow(n) for n in (300, 1024))])
    def test_they_sort(self, n: int, group: int) -> None:
        # A network that sorts all rows of zeros and ones sorts all rows (Knuth 1973, 5.3.4); of
        # long rows some.
        size = networks.padded(n, group)
        rng = np.random.default_rng(n)
        if size <= 12:
            rows = (np.arange(1 << size)[:, None] >> np.arange(size)) & 1
        else:
            rows = (rng.random((400, size)) < rng.random((400, 1))).astype(int)
        want = np.sort(rows, axis=1)
        for p in networks.passes(n, group):
            seen: list[int] = []
            for g in range(p.groups):
                samples = samples_of(p, g)
                seen += samples
                for a, b in p.comparators:
                    pair = rows[:, [samples[a], samples[b]]]
                    rows[:, samples[a]], rows[:, samples[b]] = pair.min(1), pair.max(1)
            assert sorted(seen) == list(range(size))
            for start in range(p.falling, size, 2 * p.falling) if p.falling else ():
                run = slice(start, start + p.falling)
                rows[:, run] = rows[:, run][:, ::-1].copy()
        np.testing.assert_array_equal(rows, want)

    @pytest.mark.parametrize("run", [0, 64])
    def test_groups_are_what_the_kernel_slices(self, run: int) -> None:
        from pkpo_pallas.loops import Index
        from pkpo_pallas.undo import falling_groups, group_slot

        def listed(s: Any) -> list[int]:
            return [int(s.start) + c * (s.stride or 1) for c in range(s.size)]

        for p in networks.passes(1024, plan.GROUP, run):
            want = [samples_of(p, g) for g in range(p.groups)]
            # By itself, and as one of the groups of a turn.
            for g in range(p.groups):
                assert listed(group_slot(p, Index(jnp.int32(g), 0))) == want[g]
                assert listed(group_slot(p, Index(jnp.int32(g - g % 4), g % 4, 4))) == want[g]
            if not p.falling:
                continue
            # Of those that are loaded before one of them is stored, the slots are the targets.
            n_iterations, groups_of = falling_groups(p)
            every = [part for i in range(n_iterations) for part in groups_of(jnp.int32(i))]
            found = sorted(int(group.number.value) for part in every for group in part)
            assert found == list(range(p.groups))
            for part in every:
                slots = [listed(group.slot) for group in part]
                targets = [listed(group.target) for group in part]
                assert slots == [want[int(group.number.value)] for group in part]
                assert sorted(slots) == sorted(targets)
                for group, slot, target in zip(part, slots, targets, strict=True):
                    run_of, within = divmod(slot[0], p.falling)
                    assert group.falls == bool(run_of % 2)
                    falls_to = run_of * p.falling + p.falling - within - p.each
                    assert target[0] == (falls_to if group.falls else slot[0])


@pytest.mark.parametrize(
    "n, dtype", [(12, "float32"), release(40, "float32"), release(130, "bool")]
)
def test_two_cores_share_the_rows(monkeypatch: pytest.MonkeyPatch, n: int, dtype: str) -> None:
    """Blocks of rows are handed out to both; races are looked for in every test of this file."""
    monkeypatch.setattr(plan, "BLOCK_ELEMENTS", 1)
    interpret_with(monkeypatch, num_cores_or_threads=2)
    rewards = jnp.tile(rewards_of(n, rows=1, dtype=jnp.dtype(dtype)), (500, 1))
    same(fused(rewards, 3), pk.transform(rewards, 3, implementation="xla"))
    if n == 40:
        same(fused_max(rewards, [1, 3]), pk.max_at_k(rewards, [1, 3], implementation="xla"))


def test_a_race_is_found() -> None:
    """The detector that all of this relies upon: two cores write the same block."""

    def kernel(x_ref: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...]

    x = jnp.zeros((16, 128), jnp.float32)
    pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        grid=(2,),
        in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2),
    )(x)
    assert Races.found
    Races.found.clear()


class TestRegimes:
    @pytest.mark.parametrize("n", [5, slow(24), release(40)])
    def test_chips_that_do_not_gather(self, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
        monkeypatch.setattr(launch, "chip", lambda interpreted: plan.OLD)
        assert not plan.plan(n, 10, plan.OLD).run
        jax.clear_caches()
        rewards = rewards_of(n)
        where = jnp.asarray(np.random.default_rng(n).random(rewards.shape) < 0.8)
        if n != 5:
            same(fused(rewards, 3), pk.transform(rewards, 3, implementation="xla"))
        rewards = rewards.at[0, 1].set(jnp.inf).at[3, 4].set(jnp.nan)
        # One of the infinity and the NaN is left out.
        where = where.at[0, 1].set(True).at[3, 4].set(n == 24)
        got = fused(rewards, 3, where=where)
        want = reference(rewards, 3, where=np.asarray(where))
        np.testing.assert_allclose(got, want, rtol=5e-6, atol=5e-6)
        jax.clear_caches()

    def test_the_chip_is_the_one_that_is_traced_for(self) -> None:
        def chip_of(kind: str) -> plan.Chip:
            device = jax.sharding.AbstractDevice(kind, None, "tpu")
            mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
            with jax.sharding.use_abstract_mesh(mesh):
                return plan.chip()

        assert chip_of("TPU v4") == plan.OLD
        assert chip_of("TPU v5 lite") == plan.LARGE
        assert chip_of("TPU v5") == chip_of("a chip of later years") == plan.chip() == plan.ANY

    @pytest.mark.parametrize(
        "n, group, estimator",
        [
            slow(24, plan.GROUP, "passk_training"),
            release(40, plan.GROUP, "sloo_minus_one"),
            # As rows of 120 and 520, but soon compiled.
            (30, 8, "sloo_minus_one"),
            release(130, 8, "sloo_minus_one"),
        ],
    )
    def test_as_compiled(
        self, monkeypatch: pytest.MonkeyPatch, n: int, group: int, estimator: str
    ) -> None:
        """With the unrolled loops of the compiled kernel."""
        monkeypatch.setattr(
            launch, "plan", lambda n, rows, chip, *more: plan.plan(n, rows, chip, False, more[1])
        )
        monkeypatch.setattr(plan, "GROUP", group)
        jax.clear_caches()
        rewards = rewards_of(n, rows=1)
        want = pk.transform(rewards, 3, estimator=estimator, implementation="xla")
        same(fused(rewards, 3, estimator=estimator), want)
        jax.clear_caches()

    @pytest.mark.slow
    def test_several_tiles_and_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan, "BLOCK_ELEMENTS", 2 * 8 * plan.TILE_ROWS)
        assert plan.plan(8, 4000).tiles == 2
        rng = np.random.default_rng(0)
        rewards = jnp.asarray(rng.standard_normal((4000, 8)), jnp.float32)
        k = jnp.asarray(rng.integers(1, 8, 4000))
        same(fused(rewards, k), pk.transform(rewards, k, implementation="xla"))
        same(fused_max(rewards, 2), pk.max_at_k(rewards, 2, implementation="xla"))

    @pytest.mark.slow
    def test_blocks_that_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows of many distinct values, and of two, of which one has an infinity or a NaN."""
        monkeypatch.setattr(plan, "BLOCK_ELEMENTS", 1)
        rng = np.random.default_rng(1)
        values = rng.standard_normal((3000, 20)).astype(np.float32)
        values[1024:] = rng.integers(0, 2, (1976, 20))
        values[1500] = np.where(values[1500] > 0, np.inf, 0)
        values[2500, 7] = np.nan
        rewards = jnp.asarray(values)
        got = np.array(fused(rewards, 3))
        assert np.isnan(got[[1500, 2500]]).all()
        want = np.array(pk.transform(rewards, 3, implementation="xla"))
        want[[1500, 2500]] = np.nan
        np.testing.assert_allclose(got, want, rtol=5e-6, atol=5e-6)

    @pytest.mark.parametrize("masked", [slow(False), release(True)])
    def test_rows_of_up_to_eight_distinct_values_are_not_sorted(
        self, monkeypatch: pytest.MonkeyPatch, masked: bool
    ) -> None:
        """Sorting leaves its rows as they are here, unwritten: NaN."""
        from pkpo_pallas import kernel

        monkeypatch.setattr(kernel, "sort_rows", lambda block: None)
        monkeypatch.setattr(plan, "BLOCK_ELEMENTS", 1)
        jax.clear_caches()
        rng, n, counts = np.random.default_rng(4), 72, np.repeat([1, 2, 3, 4, 5, 8, 9], 2)
        sizes = np.where(np.arange(len(counts)) % 2, 1e-3, 1e3)
        levels = np.sort(rng.standard_normal((len(counts), 9)), 1) * sizes[:, None]
        levels[:, 1] = 0
        picked = rng.integers(0, counts[:, None], (len(counts), n))
        # The first samples have one of them, and each occurs.
        picked[:, :16], picked[:, 15:] = 0, np.arange(57) % counts[:, None]
        values = np.take_along_axis(levels, picked, 1).astype(np.float32)
        values[3, 0] = -0.0
        where = jnp.asarray(np.arange(n) > 3) & jnp.ones((len(counts), 1), bool)
        where = where if masked else None
        # A block each: of which rows are nine, of five to eight, of up to four, of an infinity.
        for some in (slice(12, 14), slice(8, 12), slice(0, 8), [5, 0]):
            rewards = jnp.asarray(values[some])
            if isinstance(some, list):
                rewards = rewards.at[0, 20].set(jnp.inf)
            part = None if where is None else where[: len(rewards)]
            got = np.asarray(fused(rewards, 3, where=part))
            if some == slice(12, 14):
                assert np.isnan(got if part is None else got[:, 4:]).all()
                continue
            want = np.array(pk.transform(rewards, 3, where=part, implementation="xla"))
            if isinstance(some, list):
                assert np.isnan(got[0, 4:]).all()
            np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-12)
        jax.clear_caches()

    @pytest.mark.slow
    def test_many_ks_are_several_launches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch, "_WEIGHTS_SIZE", 32)
        rewards, ks = rewards_of(12), [1, 2, 5, 7, 12]
        same(fused_max(rewards, ks), pk.max_at_k(rewards, ks, implementation="xla"))
        where = rewards > -1
        want = pk.max_at_k(rewards, ks, where=where, implementation="xla")
        same(fused_max(rewards, ks, where=where), want)

    def test_a_scan_of_long_rows_is_exact_to_a_rounding(self) -> None:
        from pkpo_pallas import prefix_sums

        terms = np.random.default_rng(2).random((3, 3000)).astype(np.float32) ** 8
        terms[:, ::5] = 0
        sums = np.asarray(prefix_sums(jnp.asarray(terms), interpret=pltpu.InterpretParams()))
        np.testing.assert_allclose(sums, terms.astype(np.float64).cumsum(1), rtol=1.2e-7)
        np.testing.assert_array_equal(sums[:, 5::5], sums[:, 4:-1:5])

    @pytest.mark.parametrize(
        "n, dtype", [slow(130, "bool"), release(128, "float16"), release(256, "float32")]
    )
    def test_row_major_rows_and_chunks_of_other_dtypes(self, n: int, dtype: str) -> None:
        rewards = rewards_of(n, rows=1, dtype=jnp.dtype(dtype))
        want = pk.transform(rewards, 3, implementation="xla")
        same(fused(rewards, 3), want, 2e-3 if dtype == "float16" else 5e-6)


def test_an_estimator_is_any_numbers() -> None:
    """Coefficients other than those that ship, which are 0 and 1, for a k of each row."""
    numbers = Coefficients(
        over_k=1, over_n_minus_k=1, over_n_minus_1=1, gap_1=2, gap_k=1, gap_n=3, gap_nn=1,
        offset_1=1, offset_k=2, slope_1=1, slope_n=2, max_1=1, max_k=-3,
    )  # fmt: skip
    at_k_1 = numbers._replace(over_k=0, gap_1=0, offset_1=2, slope_n=0)
    estimator = Estimator("of one's own", "", "", "", numbers, at_k_1, requires_k_lt_n=True)
    n, ks = 6, [1, 2, 5, 6]
    rewards = np.random.default_rng(3).standard_normal((len(ks), n))
    got = pkpo_pallas.transform(
        jnp.asarray(rewards, jnp.float32),
        jnp.asarray(ks),
        None,
        estimator,
        weights=None,
        scale="sum",
        undersized="nan",
        dtype=jnp.float32,
        interpret=pltpu.InterpretParams(),
    )
    assert np.isnan(got[3]).all()
    for row, values, k in zip(rewards[:3], np.asarray(got[:3]), ks[:3], strict=True):
        weights, order = estimator.weights(n, k), np.argsort(row)
        gaps = np.diff(row[order])
        offset = weights.max_coefficient * row.max() - weights.offset @ gaps
        want = offset + np.append(0, np.cumsum(weights.gap * gaps))
        np.testing.assert_allclose(values[order], want, rtol=1e-5, atol=1e-6)


LARGEST = float(np.finfo(np.float32).max)


class TestRowsThatAreNotFinite:
    @pytest.mark.parametrize(
        "n, estimator",
        [(8, "sloo"), slow(33, "sloo_minus_one"), release(130, "centered"), release(1030, "sloo")],
    )
    def test_beside_ordinary_ones(self, n: int, estimator: str) -> None:
        rng = np.random.default_rng(n)
        rewards = rng.standard_normal((32, n)).astype(np.float32)
        rewards[8:16] = rng.integers(0, 2, (8, n))
        where = rng.random((32, n)) < 0.8
        k = rng.integers(1, n // 2, 32)
        for row, value in ((1, np.nan), (3, np.inf), (5, -np.inf), (9, np.nan), (11, np.inf)):
            rewards[row, 2], where[row, 2] = value, True
            # The same, left out.
            rewards[row + 1, 2], where[row + 1, 2] = value, False
        rewards[20], rewards[21], rewards[22] = np.nan, np.inf, -np.inf
        where[22] = False
        # The range overflows; and is the largest that there is.
        rewards[24, :2], rewards[25, :2], where[24:26, :2] = (LARGEST, -2e38), (LARGEST, 0), True
        rewards[25] = np.abs(rewards[25])
        # NaN wins over too few samples.
        where[26, 1:], where[27, 1:], k[26:28] = False, False, 3
        rewards[27, 0], where[26:28, 0] = np.nan, True
        got = np.asarray(
            fused(
                jnp.asarray(rewards), jnp.asarray(k), where=jnp.asarray(where), estimator=estimator
            )
        )
        want = reference(rewards, k, where=where, estimator=estimator)
        irregular = [1, 3, 5, 9, 11, 20, 21, 24, 27]
        assert np.isnan(got[irregular][where[irregular]]).all()
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        for got_row, want_row in zip(got, want, strict=True):
            size = np.nanmax(np.abs(want_row), initial=1)
            np.testing.assert_allclose(got_row, want_row, rtol=5e-6, atol=2e-6 * size)
        assert not got[~where].any()

    @pytest.mark.parametrize("estimator, scale", [("sloo", "sum"), ("s", "mean")])
    def test_only_the_outcome_may_overflow(self, estimator: str, scale: str) -> None:
        n, k = 4, 2
        rng = np.random.default_rng(4)
        rewards = (LARGEST * rng.random((32, n))).astype(np.float32)
        rewards[:4] -= np.float32(LARGEST / 2)
        rewards[4:6] = [[LARGEST, 0, LARGEST, 0], [-LARGEST, -LARGEST, 0, 0]]
        rewards[6:12] *= np.float32(2.0 ** -np.arange(1, 13, 2)[:, None])

        def s(row: list[Fraction], i: int) -> Fraction:
            subsets = list(combinations(range(len(row)), k))
            best = (max(row[j] for j in subset) for subset in subsets if i in subset)
            return sum(best, Fraction(0)) / len(subsets)

        def sloo(row: list[Fraction], i: int) -> Fraction:
            rest = row[:i] + row[i + 1 :]
            return s(row, i) - sum(s(rest, j) for j in range(n - 1)) / (n - 1)

        definition = s if estimator == "s" else sloo
        exact = [[Fraction(float(x)) for x in row] for row in rewards]
        times = n if scale == "mean" else 1
        want = np.array([[float(definition(row, i) * times) for i in range(n)] for row in exact])
        size = np.abs(want).max(1, keepdims=True)
        overflows = np.abs(want) > LARGEST
        assert scale == "sum" or overflows.any()
        got = np.asarray(fused(jnp.asarray(rewards), k, estimator=estimator, scale=scale), float)
        np.testing.assert_array_equal(got[overflows], np.copysign(np.inf, want[overflows]))
        error = np.abs(np.where(overflows, want, got) - want)
        assert (error <= 1e-6 * size).all()


def test_the_kernels_need_jax_alone() -> None:
    code = (
        "import sys; sys.modules.update({'torch': None, 'triton': None, 'pkpo_kernels': None})\n"
        "import pkpo_pallas\n"
        "assert not [m for m in sys.modules if m.startswith(('pkpo_triton', 'torch.'))]\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
