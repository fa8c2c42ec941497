"""The accuracy bench: its exact arithmetic is the definition, and it tells right from wrong."""

from __future__ import annotations

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
    Case,
    compare,
    errors_of,
    exact,
    tables,
)
from bench.libraries import opened
from bench.records import read_table
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


def test_compare() -> None:
    right = np.array([[0.0, -1.0, 2.0, 1e-31], [0.0, 0.0, -4.0, 1.0]])
    got = np.array([[0.0, -1.1, 2.0, 5e-31], [0.1, 0.0, -4.0, 1.0]])
    found = compare(got, right)
    assert found["worst"] == pytest.approx(0.1) and found["of_largest"] == pytest.approx(0.05)
    assert (found["results"], found["median"], found["zeros_missed"]) == (4, 0, 1)
    with pytest.raises(ValueError, match="not finite"):
        compare(np.full_like(got, np.nan), right)


@pytest.mark.slow
def test_two_scans_break_down_where_ours_does_not() -> None:
    libraries = opened("cpu")
    rows = [row for found in accuracy.measure(libraries, False, [256]) for row in found]
    found = {(row["candidate"], row["k"], row["offset"]): row for row in rows}
    for (name, ks, _), row in found.items():
        assert row["reason"] == "" and row["n"] == "256 to 256"
        if ks == "1":  # what cancels there is small only beside the rest of its row
            assert name != TWO_SCANS and row["of_largest"] < PROMISED_AT_1
        else:
            assert (row["worst"] > 0.1) if name == TWO_SCANS else (row["worst"] < PROMISED)
            assert row["worst_at"] == {256: row["worst"]}
    losses = [found[TWO_SCANS, "2 to n", offset]["of_largest"] for offset in (0.0, 1e4)]
    assert losses[1] > 1e-3 > losses[0]
    candidates = accuracy.candidates_of(libraries)
    assert len(found) == len(rows) == len(accuracy.OFFSETS) * (2 * len(candidates) - 1)


def test_a_row_has_the_largest_of_all_and_k_1_stands_by_itself() -> None:
    rewards, right = np.zeros((1, 4), np.float32), np.array([[0.0, 1.0, 1.0, 1.0]])
    off = {1: 0.25, 2: 0.125, 4: 0.0625}
    cases = [Case(rewards, k, right) for k in off]

    def call(rewards: Any, k: int) -> Any:
        return right * (1 + off[k])

    rows = [
        {"candidate": "ours", "k": kind, "offset": 1.0, **errors_of(call, chosen)}
        for kind, chosen in (("1", cases[:1]), ("2 to n", cases[1:]))
    ]
    (lines,) = tables(rows).values()
    assert lines == [
        ["candidate", "rewards near 1"],
        ["ours", "1e-01 / 1e-01 / 1e-01"],
        ["ours, k=1", "2e-01 / 2e-01 / 2e-01"],
    ]
    assert [(row["n"], row["results"]) for row in rows] == [("4 to 4", 3), ("4 to 4", 6)]
    assert rows[1]["worst_at"] == {4: 0.125}


@pytest.mark.slow
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_order(rewards: Any, k: int) -> Any:
        raise RuntimeError("out of order")

    mine = {"broken": out_of_order, TWO_SCANS: accuracy.candidates_of([])[TWO_SCANS]}
    monkeypatch.setattr(accuracy, "candidates_of", lambda libraries: mine)
    monkeypatch.setattr(accuracy, "QUICK_N", 8)
    options = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--commit", "abc"]
    result = CliRunner().invoke(accuracy.app, options)
    assert result.exit_code == 0, result.output
    assert "RuntimeError: out of order" in " ".join(result.output.split())
    written = {path.suffix: path for path in tmp_path.iterdir()}
    rows = read_table(written[".csv"])
    assert {row["commit"] for row in rows} == {"abc"}
    assert {(row["candidate"], row["k"], row["worst"] == "") for row in rows} == {
        ("broken", "1", True),
        ("broken", "2 to n", True),
        (TWO_SCANS, "2 to n", False),
    }
    assert written[".png"].read_bytes().startswith(b"\x89PNG")
