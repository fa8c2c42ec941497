"""The accuracy bench: its exact arithmetic is the definition, and it tells right from wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench import accuracy
from bench.accuracy import (
    PROMISED,
    PROMISED_AT_1,
    TWO_SCANS,
    by_k,
    compared,
    exact,
    measure,
    summary,
    worst_of,
)
from pkpo_kernels.maths import reference

REWARDS = st.floats(-100, 100, width=32, allow_subnormal=False)


@settings(deadline=None, max_examples=50)
@given(row=st.lists(REWARDS, min_size=2, max_size=8), k=st.integers(1, 8))
def test_exact_is_the_enumeration(row: list[float], k: int) -> None:
    k = min(k, len(row))
    got = exact(np.array(row, np.float32), k)
    want = reference.enumerate_sloo_minus_one(np.array(row), k)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_exact_stays_exact_far_from_0() -> None:
    # With integers nothing is rounded: an offset of 2^23 leaves these gaps as they are.
    row = np.array([3.0, 0.0, 1.0, 1.0, 2.0])
    near, far = (exact((row + offset).astype(np.float32), 3) for offset in (0, 2**23))
    np.testing.assert_array_equal(near, far)
    assert near[1] == 0


def test_compared() -> None:
    right = np.array([[0.0, -1.0, 2.0, 1e-31], [0.0, 0.0, -4.0, 1.0]])
    got = np.array([[0.0, -1.1, 2.0, 5e-31], [0.1, 0.0, -4.0, 1.0]])
    found = compared("arm", 4, 2, 0.0, got, right)
    assert found.results == 4
    assert found.worst == pytest.approx(0.1)
    assert found.median == 0
    assert found.of_largest == pytest.approx(0.05)
    assert found.zeros_missed == 1
    unknown = compared("arm", 4, 2, 0.0, np.full_like(got, np.nan), right)
    assert (unknown.worst, unknown.median, unknown.reason) == (None, None, "not finite")


def test_two_scans_break_down_where_ours_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = (0.0, 10000.0)
    monkeypatch.setattr(accuracy, "OFFSETS", offsets)
    found = measure([256])
    parts = by_k(found)
    for offset in offsets:
        for arm in accuracy.arms():
            ((n, worst),) = worst_of(parts[""], arm, offset, "worst")
            assert n == 256
            assert (worst > 0.1) if arm == TWO_SCANS else (worst < PROMISED)
            # What cancels at k=1 is small only beside the rest of its row.
            kinder = worst_of(parts[", k=1"], arm, offset, "of_largest")
            assert kinder == [] if arm == TWO_SCANS else kinder[0][1] < PROMISED_AT_1
    losses = [worst_of(found, TWO_SCANS, offset, "of_largest")[0][1] for offset in offsets]
    assert losses[1] > 1e-3 > losses[0]


def test_a_summary_has_k_1_by_itself() -> None:
    errors = [
        compared("arm", 4, k, offset, np.array([[0.0, 1.0 + error]]), np.array([[0.0, 1.0]]))
        for offset in accuracy.OFFSETS
        for k, error in ((1, 0.25), (2, 0.125), (4, 0.0625))
    ]
    cells = ["1e-01 / 1e-01 / 1e-01"] * 4
    assert summary(errors)[1:] == [
        ["arm", *cells],
        ["arm, k=1", *(["2e-01 / 2e-01 / 2e-01"] * 4)],
    ]
    assert [line[0] for line in summary([e for e in errors if e.k > 1])] == ["arm", "arm"]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_order(rewards: Any, k: int) -> Any:
        raise RuntimeError("out of order")

    mine = {"broken": out_of_order, TWO_SCANS: accuracy.arms()[TWO_SCANS]}
    monkeypatch.setattr(accuracy, "arms", lambda: mine)
    monkeypatch.setattr(accuracy, "QUICK_N", 8)
    result = CliRunner().invoke(
        accuracy.app, ["--quick", "--out", str(tmp_path), "--commit", "abc"]
    )
    assert result.exit_code == 0, result.output
    assert "RuntimeError: out of order" in " ".join(result.output.split())
    written = {path.suffix: path for path in tmp_path.iterdir()}
    record = json.loads(written[".json"].read_text())
    assert record["commit"] == "abc"
    assert {(r["arm"], r["n"], r["worst"] is None) for r in record["results"]} == {
        ("broken", 8, True),
        (TWO_SCANS, 8, False),
    }
    assert written[".png"].read_bytes().startswith(b"\x89PNG")
