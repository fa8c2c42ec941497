"""Groups by id: what ids may be, what is refused, and programs that trace it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import pkpo_kernels as pk
from pkpo_kernels import _grouping, _ids
from pkpo_kernels.backends import torch_segments

RNG = np.random.default_rng(7)
N = 60
REWARDS = RNG.standard_normal(N).astype(np.float32)
IDS = RNG.integers(0, 8, N)
WHERE = RNG.random(N) < 0.8
WANT = pk.transform_groups(REWARDS, IDS, 3)


def close(got: Any, want: Any = WANT) -> None:
    np.testing.assert_allclose(np.asarray(got), want, rtol=5e-6, atol=1e-6)


class TestIds:
    @pytest.mark.parametrize(
        "ids",
        [
            [f"prompt {one}" for one in IDS],
            np.array([f"prompt {one}" for one in IDS]),
            np.array([f"prompt {one}" for one in IDS], object),
            [(int(one), "task") for one in IDS],
            [int(one) if one % 2 else str(one) for one in IDS],
            (IDS * 2.0**40).tolist(),
            IDS.astype(np.uint8),
            IDS.astype(np.int64) * (1 << 58),
            IDS.astype(np.uint64) + np.uint64(2**64 - 100),
            np.stack([IDS % 3, IDS // 3, IDS * 0], 1),
            range(100, 100 + N),
        ],
        ids=lambda ids: type(ids).__name__,
    )
    @pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
    def test_of_every_kind(self, ids: Any, library: str) -> None:
        want = WANT if not isinstance(ids, range) else np.zeros(N)
        rewards: Any = {
            "numpy": REWARDS,
            "torch": torch.from_numpy(REWARDS),
            "jax": jnp.asarray(REWARDS),
        }[library]
        got = pk.transform_groups(rewards, ids, 3)
        close(got, want)

    def test_tensors_and_arrays_of_any_library(self) -> None:
        wide = np.stack([IDS % 3, IDS // 3], 1)
        for ids in (IDS, wide):
            close(pk.transform_groups(torch.from_numpy(REWARDS), torch.from_numpy(ids), 3))
            close(pk.transform_groups(jnp.asarray(REWARDS), jnp.asarray(ids), 3))
            close(pk.transform_groups(REWARDS, torch.from_numpy(ids), 3))
            close(pk.transform_groups(torch.from_numpy(REWARDS), jnp.asarray(ids), 3))

    @pytest.mark.parametrize("where", [None, REWARDS > -0.5])
    @pytest.mark.parametrize("ids", [IDS, np.repeat(np.arange(N // 2), 2)[::-1].copy()])
    def test_as_a_gpu_groups_them(
        self, ids: Any, where: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def of_a_gpu(entries: Any, ids: Any) -> Any:
            return _ids.Slots(*torch_segments.slots(ids))

        monkeypatch.setattr(_grouping, "_slots", of_a_gpu)
        ks = np.where(ids % 2 == 0, 2, 3)
        for k in (3, ks):
            want = pk.transform_groups(REWARDS, ids, k, where=where)
            got = pk.transform_groups(
                torch.from_numpy(REWARDS),
                torch.from_numpy(ids),
                k if isinstance(k, int) else torch.from_numpy(k),
                where=None if where is None else torch.from_numpy(where),
                implementation="torch",
            )
            np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-6)

    def test_rows_of_nothing_are_one_group(self) -> None:
        want = pk.transform_groups(REWARDS, np.zeros(N, int), 3)
        for library in (np, torch, jnp):
            got = pk.transform_groups(library.asarray(REWARDS), library.zeros((N, 0), dtype=int), 3)
            np.testing.assert_allclose(got, want, rtol=1e-5)

    def test_groups_of_one_size_are_a_matrix_without_a_mask(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng = np.random.default_rng(0)
        ids, rewards = rng.permutation(np.repeat(np.arange(6), 4)), rng.standard_normal(24)
        given = []
        transform = _grouping.transform_matrix

        def noted(rows: Any, k: Any, **options: Any) -> Any:
            given.append((tuple(rows.shape), options["where"]))
            return transform(rows, k, **options)

        monkeypatch.setattr(_grouping, "transform_matrix", noted)
        got = pk.transform_groups(
            torch.from_numpy(rewards), torch.from_numpy(ids), 3, nan="propagate",
            implementation="torch",
        )  # fmt: skip
        assert given == [((6, 4), None)]
        np.testing.assert_allclose(got, pk.transform_groups(rewards, ids, 3), rtol=1e-12)

    def test_one_and_its_text_are_two(self) -> None:
        np.testing.assert_array_equal(
            pk.transform_groups([0.0, 1.0, 5.0, 7.0], [1, 1, "1", "1"], 2, scale="sum"),
            [0, 1, 0, 2],
        )


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"groups": IDS[:-1]}, ValueError, ["groups", "59", "60"]),
        ({"groups": [*range(N - 1), None]}, ValueError, ["groups must be ids", "None", "[59]"]),
        ({"groups": [float("nan")] * N}, ValueError, ["groups", "nan", "groups[0]"]),
        ({"groups": list(torch.from_numpy(IDS))}, TypeError, ["list of torch scalars", "stacked"]),
        ({"groups": list(jnp.arange(N))}, TypeError, ["groups"]),
        ({"groups": [[1]] * N}, TypeError, ["hashable", "list at groups[0]", "(N, S)"]),
        ({"groups": IDS.astype(float)}, TypeError, ["integers (N,) or (N, S)", "float64"]),
        ({"groups": IDS[None]}, ValueError, ["groups", "got 1 for 60"]),
        ({"groups": set(range(N))}, TypeError, ["groups"]),
        ({"groups": "abc"}, TypeError, ["groups", "'abc'"]),
        ({"groups": pd.DataFrame({"id": IDS})}, TypeError, ["DataFrame", "(60, 1)", "a column"]),
        ({"groups": np.ma.MaskedArray(IDS)}, TypeError, ["groups", "MaskedArray", "plain"]),
        ({"groups": [pd.NA, *range(1, N)]}, ValueError, ["<NA>", "groups[0]"]),
        ({"groups": pa.array([None, *range(1, N)])}, ValueError, ["None", "groups[0]"]),
        ({"groups": None}, TypeError, ["groups", "None"]),
        ({"groups": True}, TypeError, ["groups", "True"]),
        ({"groups": 7}, ValueError, ["groups", "must divide", "rewards, 60; got 7"]),
        ({"groups": 0}, ValueError, ["groups must be at least 1"]),
        ({"samples": IDS[:-2]}, ValueError, ["samples", "58", "60"]),
        ({"k": 0}, ValueError, ["k must be at least 1", "k=0"]),
        ({"k": 2.0}, TypeError, ["k must be an integer"]),
        ({"k": np.arange(1, N + 1)}, ValueError, ["k must not vary within a group"]),
        ({"k": [1] + [3] * (N - 1), "groups": [0] * N, "samples": [0] * N}, ValueError, ["vary"]),
        ({"k": np.array([1, 2])}, ValueError, ["k must be an integer, or one for each", "(2,)"]),
        ({"k": torch.tensor(2)}, TypeError, ["k must", "numpy", "torch"]),
        ({"where": WHERE[:-1]}, ValueError, ["where", "(59,)"]),
        ({"where": torch.from_numpy(WHERE)}, TypeError, ["where", "numpy", "torch"]),
        ({"rewards": REWARDS[None]}, ValueError, ["rewards must be flat", "(1, 60)"]),
        ({"rewards": np.arange(N) + 2**53}, ValueError, ["rewards", "2**53"]),
        ({"scale": "batchmean"}, ValueError, ["did you mean 'batch_mean'?"]),
        ({"scale": float("inf")}, ValueError, ["scale", "inf"]),
        ({"scale": np.float32("inf")}, ValueError, ["scale", "inf"]),
        ({"scale": 10**400}, ValueError, ["scale must be a finite number"]),
        ({"where": ["True"] * N}, TypeError, ["where must be bool or numbers"]),
        ({"scale": "mean", "estimator": "passk_training"}, ValueError, ["scale", "'mean'"]),
        ({"nan": "keep"}, ValueError, ["nan must be one of drop, propagate"]),
        ({"undersized": "drop"}, ValueError, ["undersized"]),
        ({"implementation": "torch"}, ValueError, ["'torch'", "'numpy', 'reference'"]),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    arguments: dict[str, Any] = {"rewards": REWARDS, "groups": IDS, "k": 3} | change
    with pytest.raises(error) as raised:
        pk.transform_groups(**arguments)
    for word in words:
        assert word in str(raised.value)


def test_a_device_k_that_varies_makes_its_group_undersized() -> None:
    k = np.full(N, 3)
    k[np.flatnonzero(IDS == 4)[0]] = 2
    rewards = jnp.asarray(REWARDS)
    program = jax.jit(lambda k, where: pk.transform_groups(rewards, IDS, k, where=where))
    close(program(k, np.ones(N, bool)), np.where(IDS == 4, 0, WANT))
    # Samples that are left out have no say.
    where = k == 3
    close(program(k, where), pk.transform_groups(REWARDS, IDS, 3, where=where))
    for array in (torch.from_numpy, jnp.asarray):
        with pytest.raises(ValueError, match="k must not vary"):
            pk.transform_groups(array(REWARDS), IDS, array(k))
        got = pk.transform_groups(array(REWARDS), IDS, array(k * 0))
        assert not np.asarray(got).any()


def test_jax_arrays_on_a_cpu_compile_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rewards, ids = jnp.asarray(REWARDS), jnp.asarray(IDS)
    where = jnp.asarray(WHERE)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        got = pk.transform_groups(rewards, ids, 3)
        assert not [record for record in caplog.messages if "transform" in record]
        pk.transform_groups(rewards, ids, 3, implementation="xla")
        assert [record for record in caplog.messages if "transform" in record]
    assert got.devices() == rewards.devices() and got.dtype == rewards.dtype
    close(got)
    for k in (0, 1, 3, 99):
        for dtype in (jnp.bfloat16, jnp.float32, jnp.int32):
            given = rewards.astype(dtype), ids, jnp.asarray(k)
            got = pk.transform_groups(*given, where=where)
            want = pk.transform_groups(*given, where=where, implementation="xla")
            assert got.dtype == want.dtype
            np.testing.assert_allclose(
                got.astype(float), want.astype(float), rtol=1e-2 if dtype is jnp.bfloat16 else 5e-6
            )


def test_half_precision_is_rounded_once() -> None:
    rewards = torch.from_numpy(REWARDS).bfloat16()
    want = pk.transform_groups(rewards.float(), IDS, 3).bfloat16()
    assert torch.equal(pk.transform_groups(rewards, IDS, 3), want)
    # N/G alone is beyond float16 here, and no result is.
    small = pk.transform_groups(np.float16([0, 1e-3] + [0] * 70_000), [0] * 70_002, 2)
    np.testing.assert_allclose(small[1], 2e-3, rtol=2e-3)


class TestTraced:
    def test_one_program_for_any_ids_and_k(self) -> None:
        traces = []

        @jax.jit
        def program(rewards: Any, ids: Any, k: Any, where: Any) -> Any:
            traces.append(0)
            return pk.transform_groups(rewards, ids, k, where=where)

        for ids, k in ((IDS, 3), (IDS // 4, 1), (np.zeros(N, int), 50), (np.arange(N), 2)):
            got = program(REWARDS, ids, k, WHERE)
            close(got, pk.transform_groups(REWARDS, ids, k, where=WHERE))
        assert len(traces) == 1

    def test_ids_of_text_are_refused_in_a_program(self) -> None:
        with pytest.raises(TypeError, match=r"integers inside jax\.jit.*'a'.*number them outside"):
            jax.jit(lambda x: pk.transform_groups(x, ["a"] * N, 3))(REWARDS)

    def test_kernels_are_refused_for_ids_in_a_program(self) -> None:
        def of_kernels(x: Any) -> Any:
            return pk.transform_groups(x, IDS, 3, implementation="pallas_interpret")

        with pytest.raises(ValueError, match=r"'pallas_interpret'.*contiguous blocks"):
            jax.jit(of_kernels)(REWARDS)

    def test_jax_vmap_and_grad(self) -> None:
        rewards, ids = jnp.asarray(REWARDS), jnp.asarray(IDS)
        got = jax.vmap(lambda x: pk.transform_groups(x, ids, 3))(jnp.stack([rewards, 2 * rewards]))
        close(got, np.stack([WANT, 2 * WANT]))
        # A constant of the loss.
        close(jax.grad(lambda x: (pk.transform_groups(x, ids, 3) * x).sum())(rewards))

    @pytest.mark.parametrize(
        "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
    )
    def test_torch_compile_takes_it_whole(self, backend: str) -> None:
        rewards, ids, where = map(torch.from_numpy, (REWARDS, IDS, WHERE))
        samples = torch.from_numpy(np.arange(N) % 5)

        def whole(rewards: Any, k: Any) -> Any:
            by_id = pk.transform_groups(rewards, ids, k, where=where, samples=samples)
            return by_id, pk.transform_groups(rewards, 6, 3, where=where)

        compiled = torch.compile(whole, fullgraph=True, backend=backend)
        for got, want in zip(
            compiled(rewards.requires_grad_(), torch.tensor(2)),
            whole(rewards, torch.tensor(2)),
            strict=True,
        ):
            assert not got.requires_grad
            close(got, want.numpy())

    def test_torch_traces_and_batches(self) -> None:
        rewards, ids = torch.from_numpy(REWARDS), torch.from_numpy(IDS)
        with FakeTensorMode() as fake:
            out = pk.transform_groups(fake.from_tensor(rewards), fake.from_tensor(ids), 3)
            assert out.shape == (N,) and out.dtype == torch.float32
        traced = make_fx(lambda x, i: pk.transform_groups(x, i, 3))(rewards, ids)
        close(traced(rewards, ids))
        batch = torch.stack([rewards, rewards * 2])
        got = torch.func.vmap(lambda x: pk.transform_groups(x, ids, 3))(batch)
        close(got, np.stack([WANT, 2 * WANT]))

    @pytest.mark.parametrize("implementation", [None, "torch"])
    @pytest.mark.parametrize("transforms", ["grad", "vmap of grad"])
    def test_a_loss_that_is_differentiated_by_torch_func(
        self, implementation: Any, transforms: str
    ) -> None:
        rewards, ids = torch.from_numpy(REWARDS), torch.from_numpy(IDS)

        def loss(x: torch.Tensor) -> torch.Tensor:
            return (x * pk.transform_groups(rewards, ids, 3, implementation=implementation)).sum()

        if transforms == "grad":
            close(torch.func.grad(loss)(rewards), WANT)
        else:
            both = torch.stack([rewards, 2 * rewards])
            close(torch.func.vmap(torch.func.grad(loss))(both), np.stack([WANT, WANT]))

    def test_one_group_much_larger_than_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_grouping, "SMALL", 0)
        ids = np.where(np.arange(N) < 20, 0, np.arange(N))
        assert np.prod(_ids.slots(ids).shape) > _grouping.MOST_PADDING * N
        called = []
        as_segments = _grouping._as_segments
        monkeypatch.setattr(
            _grouping, "_as_segments", lambda *given: called.append(0) or as_segments(*given)
        )
        rewards = torch.from_numpy(REWARDS)
        got = pk.transform_groups(rewards, ids, 3, implementation="torch")
        close(got, pk.transform_groups(REWARDS, ids, 3))
        assert called


class TestToTokens:
    @pytest.mark.parametrize("array", [np.asarray, torch.tensor, jnp.asarray])
    def test_advantages_go_where_the_mask_is(self, array: Any) -> None:
        advantages, mask = array([2.0, -1.0]), array([[1, 1, 0], [0, 1, 0]])
        got = pk.to_tokens(advantages, mask)
        assert got.dtype == advantages.dtype
        np.testing.assert_array_equal(np.asarray(got), [[2, 2, 0], [0, -1, 0]])

    def test_wrong_shapes(self) -> None:
        with pytest.raises(ValueError, match=r"mask must be \(N, T\).*\(2, 3\) for \(3,\)"):
            pk.to_tokens(np.zeros(3), np.ones((2, 3)))


@pytest.mark.parametrize("kind", [pytest.param("Auto", marks=pytest.mark.slow), "Explicit"])
def test_entries_spread_over_a_mesh(kind: str) -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    spread = jax.sharding.NamedSharding(mesh, jax.P("x"))
    rewards, ids, where, samples = (
        jax.device_put(jnp.asarray(x), spread) for x in (REWARDS, IDS, WHERE, np.arange(N) % 5)
    )
    got = pk.transform_groups(rewards, ids, 3, where=where)
    close(got, pk.transform_groups(REWARDS, IDS, 3, where=WHERE))
    got = jax.jit(lambda x, i, s: pk.transform_groups(x, i, 2, samples=s))(rewards, ids, samples)
    close(got, pk.transform_groups(REWARDS, IDS, 2, samples=np.arange(N) % 5))
    # Blocks that are whole on a device, and blocks of two devices' entries.
    for n in (5, 30):
        got = pk.transform_groups(rewards, n, 2)
        close(got, pk.transform_groups(REWARDS, n, 2))
    if kind == "Explicit":
        assert got.sharding.is_equivalent_to(spread, 1)
