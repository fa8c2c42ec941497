"""Groups whose samples lie on several ranks, or along an axis of a mesh."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from jax.sharding import PartitionSpec as P
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import pkpo_kernels as pk
from pkpo_kernels import distributed

N = 24
RNG = np.random.default_rng(3)
REWARDS, IDS = RNG.standard_normal(N).astype(np.float32), RNG.integers(0, 4, N)
ROWS = RNG.standard_normal((5, 6)).astype(np.float32)
WHERE, SAMPLES = RNG.random(N) < 0.8, np.arange(N) % 7
WANT = pk.transform_groups(REWARDS, IDS, 3, where=WHERE)


def on_ranks(folder: Path, world: int, work: Callable[[int], None], seconds: float = 60) -> None:
    """Call work(rank) in so many processes with a gloo group; what fails in one fails here."""
    multiprocessing.spawn(_rank, (folder / "store", world, work, seconds), nprocs=world)


def _rank(rank: int, store: Path, world: int, work: Callable[[int], None], seconds: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=seconds),
    )
    work(rank)
    dist.destroy_process_group()  # with threads that at exit might outlive what they use


def own(edges: list[int], rank: int) -> slice:
    return slice(edges[rank], edges[rank + 1])


def everything(edges: list[int], rank: int) -> None:
    part = own(edges, rank)
    rewards, ids = torch.from_numpy(REWARDS[part]), torch.from_numpy(IDS[part])
    where = torch.from_numpy(WHERE[part])
    # Groups straddle ranks, and N and G are those of the whole batch.
    got = distributed.transform_groups(rewards, ids, 3, where=where)
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got, WANT[part])
    text = [f"task {one}" for one in IDS[part]]
    np.testing.assert_array_equal(
        distributed.transform_groups(rewards, text, 3, where=where), WANT[part]
    )
    # Samples of several entries, a k for each entry, blocks across ranks, bfloat16.
    k = IDS % 3 + 1
    got = distributed.transform_groups(
        rewards, ids, torch.from_numpy(k[part]), samples=SAMPLES[part], scale="sum"
    )
    want = pk.transform_groups(REWARDS, IDS, k, samples=SAMPLES, scale="sum")
    np.testing.assert_array_equal(got, want[part])
    got = distributed.transform_groups(rewards.bfloat16(), 6, 99, undersized="clip")
    rounded = torch.from_numpy(REWARDS).bfloat16()
    assert torch.equal(got, pk.transform_groups(rounded, 6, 99, undersized="clip")[part])


def whatever_holds_them(rank: int) -> None:
    """What is NaN, too large, or in another container on another rank."""
    unscored = np.array([[-1.0, -2.0], [np.nan, -3.0]])
    for nan in ("drop", "propagate"):
        want = pk.transform_groups(unscored.ravel(), [0] * 4, 2, nan=nan)[2 * rank : 2 * rank + 2]
        for array in (np.array, torch.tensor):
            got = distributed.transform_groups(array(unscored[rank]), [0, 0], 2, nan=nan)
            np.testing.assert_array_equal(got, want)
    four = np.array([[0.0, 1.0], [2.0, 4.0]])
    for k in (3, 4):
        want = pk.transform_groups(four.ravel(), [0] * 4, k)[2 * rank : 2 * rank + 2]
        for given in (k, [k, k], np.array(k), torch.tensor(k)):
            rewards = torch.from_numpy(four[rank])
            np.testing.assert_array_equal(
                distributed.transform_groups(rewards, [0, 0], given), want
            )
        # Of three entries and one.
        own_part = four.ravel()[slice(0, 3) if rank == 0 else slice(3, 4)]
        want = pk.transform_groups(four.ravel(), [0] * 4, k)
        got = distributed.transform_groups(own_part, [0] * len(own_part), np.array(k))
        np.testing.assert_array_equal(got, want[slice(0, 3) if rank == 0 else slice(3, 4)])
    for k in (0, 3):
        given, kept = torch.tensor(k), {"undersized": "clip"}
        want = pk.transform_groups(torch.from_numpy(four).ravel(), [0] * 4, given, **kept)
        got = distributed.transform_groups(torch.from_numpy(four[rank]), [0, 0], given, **kept)
        np.testing.assert_array_equal(got, want[2 * rank : 2 * rank + 2])
    want = pk.transform_groups(four.ravel(), [0] * 4, 3)[2 * rank : 2 * rank + 2]
    for one, another in (
        ([0, 0], np.zeros((2, 1), int)),
        (["a", "a"], pa.array(["a", "a"])),
        (["a", "a"], pd.Series(["a", "a"], [7, 8])),
    ):
        got = distributed.transform_groups(four[rank], another if rank else one, 3)
        np.testing.assert_array_equal(got, want)


def of_dtensors(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    rows = torch.from_numpy(ROWS)  # 5 rows: not the same number on every rank
    where = rows > -1
    k = torch.tensor([1, 2, 3, 4, 2])
    want = pk.transform(rows, k, where=where)
    sharded = [distribute_tensor(x, mesh, [Shard(0)]) for x in (rows, k, where)]
    got = pk.transform(sharded[0], sharded[1], where=sharded[2])
    assert isinstance(got, DTensor) and got.placements == (Shard(0),)
    torch.testing.assert_close(got.full_tensor(), want)
    best = pk.max_at_k(sharded[0], [1, 3], where=sharded[2])
    torch.testing.assert_close(best.full_tensor(), pk.max_at_k(rows, [1, 3], where=where))
    # The samples first, and then the rows.
    turned = distribute_tensor(rows.T.contiguous(), mesh, [Shard(1)])
    torch.testing.assert_close(
        pk.transform(turned, 2, axis=0).full_tensor(), pk.transform(rows, 2).T
    )
    torch.testing.assert_close(pk.max_at_k(turned, 2, axis=0).full_tensor(), pk.max_at_k(rows, 2))
    everywhere = distribute_tensor(rows, mesh, [Replicate()])
    torch.testing.assert_close(pk.transform(everywhere, 2).to_local(), pk.transform(rows, 2))
    with pytest.raises(ValueError, match=r"all samples of a group on one rank.*redistribute"):
        pk.transform(distribute_tensor(rows, mesh, [Shard(1)]), 2)
    with pytest.raises(TypeError, match="where must be a DTensor placed like rewards"):
        pk.transform(sharded[0], 2, where=where)
    with pytest.raises(ValueError, match="k must be placed like the rows of rewards"):
        pk.transform(sharded[0], distribute_tensor(k, mesh, [Replicate()]))
    shared = distribute_tensor(torch.tensor(2), mesh, [Replicate()])
    got = pk.transform(sharded[0], shared).full_tensor()
    torch.testing.assert_close(got, pk.transform(rows, 2))
    # On both ranks alike, whatever they have of it.
    with pytest.raises(TypeError, match=r"k must be an integer.*got 2.0"):
        pk.transform(sharded[0], 2.0)
    for wrong in ([1, 4, 2], k.tolist(), k.numpy()):
        with pytest.raises(TypeError, match="k must be a DTensor placed like the rows of rewards"):
            pk.transform(sharded[0], wrong)
    with pytest.raises(ValueError, match=r"k must have the shape of the rows.*\(5,\); got \(3,\)"):
        pk.transform(sharded[0], distribute_tensor(k[:3], mesh, [Shard(0)]))
    with pytest.raises(ValueError, match=r"where must have the shape of rewards.*got \(3, 6\)"):
        pk.transform(sharded[0], 2, where=distribute_tensor(where[:3], mesh, [Shard(0)]))


def refusals(rank: int) -> None:
    ids = IDS if rank == 0 else IDS[1:]
    with pytest.raises(ValueError, match=r"on rank 1: groups must have one id .* got 23 for 24"):
        distributed.transform_groups(REWARDS, ids, 3)
    with pytest.raises(ValueError, match=r"k must be the same on all ranks.*\[2, 3\]"):
        distributed.transform_groups(REWARDS, IDS, 2 + rank)
    with pytest.raises(ValueError, match=r"estimator must be the same on all ranks.*'s'.*'sloo'"):
        distributed.transform_groups(REWARDS, IDS, 2, estimator=["s", "sloo"][rank])
    with pytest.raises(ValueError, match=r"groups must be of one kind.*\[6, 'ndarray'\]"):
        distributed.transform_groups(REWARDS, [6, IDS][rank], 2)
    with pytest.raises(ValueError, match="implementation must be 'numpy' or None"):
        distributed.transform_groups(REWARDS, IDS, 2, implementation="torch")
    with pytest.raises(TypeError, match="on rank 0: groups and samples must be ids that pickle"):
        distributed.transform_groups(REWARDS, [lambda: rank] * N, 2)
    with pytest.raises(ValueError, match=r"process_group must be .*; got 'world' on rank"):
        distributed.transform_groups(REWARDS, IDS, 2, process_group="world")
    of_one = dist.new_group([0])
    if rank == 0:
        assert len(distributed.transform_groups(REWARDS, IDS, 2, process_group=of_one)) == N
    else:
        with pytest.raises(ValueError, match="a member of"):
            distributed.transform_groups(REWARDS, IDS, 2, process_group=of_one)
    # Nobody was left waiting.
    got = distributed.transform_groups(REWARDS, IDS, 3, where=WHERE)
    assert len(got) == N


def one_dies(rank: int) -> None:
    if rank == 1:
        os._exit(0)
    with pytest.raises(RuntimeError, match=r"not all 2 ranks took part .* as rank 0 sees it"):
        distributed.transform_groups(REWARDS, IDS, 3)


class TestRanks:
    @pytest.mark.parametrize(
        "edges", [[0, 10, N], pytest.param([0, 7, 7, N], marks=pytest.mark.slow)]
    )
    def test_as_one_rank_would(self, edges: list[int], tmp_path: Path) -> None:
        on_ranks(tmp_path, len(edges) - 1, partial(everything, edges))

    @pytest.mark.slow
    def test_whatever_holds_them(self, tmp_path: Path) -> None:
        on_ranks(tmp_path, 2, whatever_holds_them)

    @pytest.mark.slow
    def test_dtensors_whose_rows_are_whole(self, tmp_path: Path) -> None:
        on_ranks(tmp_path, 2, of_dtensors)

    @pytest.mark.slow
    def test_what_is_wrong_on_one_is_an_error_on_all(self, tmp_path: Path) -> None:
        on_ranks(tmp_path, 2, refusals)

    @pytest.mark.slow
    def test_a_rank_that_dies_is_an_error(self, tmp_path: Path) -> None:
        on_ranks(tmp_path, 2, one_dies, seconds=5)

    def test_there_must_be_a_process_group(self) -> None:
        with pytest.raises(RuntimeError, match="init_process_group"):
            distributed.transform_groups(REWARDS, IDS, 3)


class TestMesh:
    @pytest.mark.parametrize(
        "explicit",
        [pytest.param(False, marks=pytest.mark.slow, id="auto"), pytest.param(True, id="explicit")],
    )
    def test_as_one_device_would(self, explicit: bool) -> None:
        kind = getattr(jax.sharding.AxisType, "Explicit" if explicit else "Auto")
        mesh = jax.make_mesh((4,), ("samples",), axis_types=(kind,))

        def part(rewards: Any, ids: Any, where: Any, k: Any) -> Any:
            return distributed.transform_groups(rewards, ids, k, where=where, axis_name="samples")

        spec = P("samples")
        sharding = jax.sharding.NamedSharding(mesh, spec)
        arrays = [jax.device_put(x, sharding) for x in (REWARDS, IDS, WHERE)]
        whole = jax.jit(
            jax.shard_map(part, mesh=mesh, in_specs=(spec, spec, spec, P()), out_specs=spec)
        )
        got = whole(*arrays, jnp.asarray(3))
        np.testing.assert_allclose(got, WANT, rtol=5e-6, atol=1e-7)
        assert got.sharding.is_equivalent_to(sharding, 1)

    def test_ids_of_the_host_are_refused(self) -> None:
        mesh = jax.make_mesh((4,), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))

        def part(rewards: Any) -> Any:
            return distributed.transform_groups(rewards, IDS, 3, axis_name="samples")

        spec = P("samples")
        with pytest.raises(TypeError, match=r"groups must be a JAX array .* got ndarray"):
            jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.asarray(REWARDS))
