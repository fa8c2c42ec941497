"""How kernels that group entries by their ids are launched: prepared once for calls of a form, with
scratch that they find as the call before has left it. Run as `test_group_kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from entries_by_id import IDS, REWARDS, RNG, N, check, torch
from entries_by_id import of_kernels_alone as of_kernels_alone  # a fixture
from pkpo_triton import groups as of_kernels
from pkpo_triton.group_kernels import PHASES, capacity_for, cleared_size, scratch_size, table_size
from subjects import DEVICE, ON_PTX

import pkpo_kernels as pk
from pkpo_kernels import _calls

# There the contract is enough.
pytestmark = pytest.mark.costly("interpreted")


class TestCallsOfOneForm:
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


class TestScratch:
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


@pytest.mark.skipif(not ON_PTX, reason="needs TEST_DEVICE=ptx")
class TestRefused:
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
