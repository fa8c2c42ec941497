"""The tables that the host makes for the Triton kernels. Run as test_launches.py is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from subjects import DEVICE, TRITON_RUNS

import pkpo_kernels as pk

torch = pytest.importorskip("torch")
if not TRITON_RUNS:
    reason = "needs TRITON_INTERPRET=1, or TEST_DEVICE=ptx or cuda"
    pytest.skip(reason, allow_module_level=True)

from pkpo_triton import coefficients, table_cache, tables  # noqa: E402
from pkpo_triton import plan as plans  # noqa: E402

# Of the host: once is enough, on the machine for PTX.
pytestmark = [pytest.mark.costly("interpreted"), pytest.mark.any_length]


@pytest.mark.parametrize("masked, itemsize", [(False, 4), (True, 4), (False, 2), (True, 2)])
def test_packed_plans_fill_warps_and_pad_little(masked: bool, itemsize: int) -> None:
    usual: Any = {"usual": True, "backend": "cuda", "masked": masked, "itemsize": itemsize}
    served = 0
    for n in range(12, 4100, 4):
        plan = plans.packed_plan(n, **usual)
        if plan is None:
            continue
        served, (samples, threads) = n, plan.slots(n)
        assert plan.block_rows * threads == 32 or (plan.block_rows, threads) == (1, 64)
        assert threads.bit_count() == 1 and (threads >= 8 or not plan.is_long)
        assert n <= samples * threads < n + threads * (8 if plan.is_long else 4)
    assert served == (4096 if itemsize == 4 else 2048)


class TestTables:
    @pytest.mark.parametrize("index_shift", [0, 1])
    @pytest.mark.parametrize("n, threads", [(34, 2), (100, 4), (1024, 32)])
    def test_ready_weights_are_exact_fractions(
        self, n: int, threads: int, index_shift: int
    ) -> None:
        for k in (1, 2, n // 2, n - 1, n):
            slots = np.array(tables.ratios(n, k, index_shift, 32, threads)).reshape(8, threads, 4)
            by_sample = slots.transpose(1, 0, 2).ravel()
            total = math.comb(n, k)
            want = [0.0] + [math.comb(j - index_shift, k - 1) / total for j in range(1, n)]
            assert by_sample[:n].tolist() == want
            assert not by_sample[n:].any()

    @pytest.mark.parametrize("estimator", ["sloo_minus_one", "s", "sloo", "centered"])
    @pytest.mark.parametrize("samples, threads", [(16, 1), (32, 2), (28, 4), (16, 16)])
    def test_weights_of_rows_of_any_number_of_samples(
        self, samples: int, threads: int, estimator: str
    ) -> None:
        n = samples * threads
        shift = pk.ESTIMATORS[estimator].index_shift
        rules = coefficients.as_text(pk.ESTIMATORS[estimator], "sum", "clip")
        for k in (1, 2, n // 2, n, n + 1):
            table = np.array(tables.row_weights(rules, samples, threads, k), np.float32)
            exponents = np.frexp(table[np.isfinite(table) & (table != 0)])[1]
            assert (exponents > -126).all() and np.isfinite(table).all()  # and all are normal
            for m in range(n + 1):
                begin, factor = table[8 * m : 8 * m + 2]
                most = pk.ESTIMATORS[estimator].largest_k(m)
                k_of_row = min(k, most)
                if k_of_row < 1:
                    assert factor == 0
                    continue
                total = math.comb(m, k_of_row)
                want = [math.comb(j - shift, k_of_row - 1) / total for j in range(1, m)]
                with np.errstate(over="ignore"):
                    slots = factor * table[int(begin) : int(begin) + n]
                got = slots.reshape(-1, threads, 4).transpose(1, 0, 2).ravel()[1:m]
                np.testing.assert_allclose(got, want, rtol=2e-7, atol=2.0**-126)

    def test_a_run_through_many_ks_keeps_the_latest_tables(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table_cache, "_tables", type(table_cache._tables)())
        monkeypatch.setattr(table_cache, "MOST_TABLES", 3)
        chosen = plans.plan(40, 4, masked=False, uniform=True)
        assert chosen is not None
        device = torch.empty(0, device=DEVICE).device

        def table(k: int) -> Any:
            return table_cache.ratios(40, k, 0, chosen, device)

        first, second = table(1), table(2)
        for k in (3, 4, 5):
            assert table(1) is first
            table(k)
        assert len(table_cache._tables) == 3
        assert table(5) is table(5)
        assert table(2) is not second
        torch.testing.assert_close(table(2), second, rtol=0, atol=0)

    @pytest.mark.parametrize("mode", ["FakeTensorMode", "inference_mode", "default_device"])
    def test_they_are_tensors_like_any_whatever_torch_is_doing(
        self, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        monkeypatch.setattr(table_cache, "_tables", type(table_cache._tables)())
        device = torch.empty(0, device=DEVICE).device
        modes: dict[str, Any] = {
            "FakeTensorMode": FakeTensorMode,
            "inference_mode": torch.inference_mode,
            "default_device": lambda: torch.device("meta"),
        }
        with modes[mode]():
            table = table_cache.inverses(8, device)
        assert type(table) is torch.Tensor
        assert not table.is_inference()
        assert table.cpu()[0, 1] == 1
