"""What `verify` can find: right implementations pass, and each kind of fault fails its check."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pkpo_kernels as pk
from pkpo_kernels import selfcheck
from pkpo_kernels.selfcheck import Finding, expectations, fuzz, subjects, verify
from pkpo_kernels.selfcheck.definitions import against_reference
from pkpo_kernels.selfcheck.expectations import EXACT_TOLERANCE, against_closed_form, best_of_k
from pkpo_kernels.selfcheck.random_cases import (
    drawn_case,
    random_shapes_tally,
    rows_not_finite,
    spoiled_case,
)
from pkpo_kernels.selfcheck.subjects import UNBIASED


def broken(monkeypatch: pytest.MonkeyPatch, estimator: str, change: Any) -> None:
    """NumPy's results for the estimator go through `change`."""
    honest = subjects.transform

    def transform(rewards: Any, k: Any, **options: Any) -> Any:
        out = honest(rewards, k, **options)
        ours = (options["implementation"], options["estimator"]) == ("numpy", estimator)
        return change(out, k) if ours else out

    monkeypatch.setattr(subjects, "transform", transform)


def faults(found: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.estimator, finding.against) for finding in found if not finding.ok}


@settings(deadline=None, max_examples=30)
@given(
    logits=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    rewards=st.lists(st.integers(-2, 2), min_size=3, max_size=3),
    k=st.integers(1, 4),
)
def test_max_at_k_in_closed_form(logits: list[float], rewards: list[int], k: int) -> None:
    answers = np.indices((3,) * k).reshape(k, -1).T
    earned = np.array(rewards, np.float64)

    def enumerated(logits: Any) -> float:
        policy = np.exp(logits) / np.exp(logits).sum()
        return float(policy[answers].prod(axis=1) @ earned[answers].max(axis=1))

    at = np.array(logits)
    value, gradient = best_of_k(np.exp(at) / np.exp(at).sum(), earned, k)
    assert value == pytest.approx(enumerated(at), abs=1e-12)
    step = 1e-5 * np.eye(3)
    differences = [(enumerated(at + h) - enumerated(at - h)) / 2e-5 for h in step]
    np.testing.assert_allclose(gradient, differences, atol=1e-8)


@pytest.mark.parametrize(
    "name",
    [
        *("numpy", "reference", "torch"),
        # A program for each of its estimators, in float64.
        pytest.param("xla", marks=pytest.mark.slow),
    ],
)
def test_every_unbiased_estimator_has_the_exact_gradient(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if pk.available_implementations()[name] is not None:
        pytest.skip(f"{name} is not available")
    monkeypatch.setattr(expectations, "SAMPLED_N", (4,))
    assert set(UNBIASED) == {"sloo_minus_one", "sloo", "s", "centered"}
    for estimator in UNBIASED:
        found = against_closed_form(name, estimator, 0)
        assert found.ok and found.tolerance == EXACT_TOLERANCE == 1e-10
        assert found.cases >= 3 * 3 * 3**4  # three rewards, three ks, all of the outcomes


def test_what_is_right_passes() -> None:
    names = [name for name in ("numpy", "torch") if pk.available_implementations()[name] is None]
    found = list(verify(names))
    assert faults(found) == set()
    assert len(found) == selfcheck.count_findings(names)


def test_another_seed_is_another_case() -> None:
    def errors(seed: int) -> list[float]:
        tally = random_shapes_tally("numpy", "s")
        drawn_case.__wrapped__(seed, 0, "s").compare(tally)
        return [
            against_reference("numpy", "s", seed, sizes=(9,)).worst_error,
            against_closed_form("numpy", "s", seed).worst_error,
            rows_not_finite("numpy", "s", seed).worst_error,
            tally.worst,
        ]

    first, second, again = map(errors, (0, 1, 0))
    assert first == again
    assert all(one != other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "sloo_minus_one"))
        for name in UNBIASED
    ],
)
def test_a_gradient_that_is_too_small_is_found(
    monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    broken(monkeypatch, estimator, lambda out, k: out * (1 - 1e-9))
    assert faults(list(verify(["numpy"]))) == {
        (estimator, against)
        for against in ("enumeration", "reference", "exact gradient", "random shapes")
    }


def test_a_bias_is_found_whatever_the_oracle_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # It is what its paper defines, which the oracle confirms, and yet no gradient of max@k.
    monkeypatch.setattr(selfcheck, "UNBIASED", ("passk_training",))
    assert ("passk_training", "exact gradient") in faults(list(verify(["numpy"])))


@pytest.mark.parametrize("change", [np.full_like, lambda out, value: out[..., :-1]])
def test_nan_and_wrong_shapes_are_found(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    broken(monkeypatch, "s", lambda out, k: change(out, math.nan))
    found = faults(fuzz(["numpy"], minutes=0.002))
    assert found == {("s", "random shapes")}


def limits_for_infinities(out: Any, k: Any) -> Any:
    return np.where(np.isnan(out), 0, out)


def nan_beside_nan(out: Any, k: Any) -> Any:
    return np.where(np.isnan(np.roll(out, 1, axis=0)), math.nan, out)


def nan_where_left_out(out: Any, k: Any) -> Any:
    return np.where((out == 0) & np.isnan(out).any(axis=1, keepdims=True), math.nan, out)


def overflow_within(out: Any, k: Any) -> Any:
    return np.where(np.abs(out) > np.finfo(out.dtype).max / 4, np.copysign(math.inf, out), out)


def no_infinity(out: Any, k: Any) -> Any:
    limit = np.finfo(out.dtype).max
    return np.clip(out, -limit, limit)


def another_sign(out: Any, k: Any) -> Any:
    return np.where(np.isinf(out), -out, out)


@pytest.mark.parametrize(
    "change",
    [
        *(limits_for_infinities, nan_beside_nan, nan_where_left_out),
        *(overflow_within, no_infinity, another_sign),
    ],
)
def test_rows_that_are_not_finite_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    assert rows_not_finite("numpy", "s", 0).ok
    broken(monkeypatch, "s", change)
    found = rows_not_finite("numpy", "s", 0)
    assert not found.ok, found
    # Ordinary rows tell nothing of it.
    assert against_reference("numpy", "s", 0, sizes=(9,)).ok


def test_every_hazard_is_drawn() -> None:
    fixed = spoiled_case(0, 9, "sum", "s")
    drawn = [drawn_case(5, index, "s") for index in range(30)]
    spoiled = [case for case in drawn if case.spoiled is not None]
    assert 0 < len(spoiled) < len(drawn)
    for cases in ([fixed], spoiled):
        put = np.concatenate([np.ravel(case.spoiled) for case in cases])
        assert np.isnan(put).any() and np.isinf(put).any() and (put == 0).any()
        assert any(np.any(case.large) for case in cases)
        assert all(np.isfinite(case.rewards).all() for case in cases)
    assert {math.inf, -math.inf, 1, -1} < set(np.ravel(fixed.spoiled))
    for dtype in ("float32", "float64"):
        given = fixed.given(dtype)
        largest = np.abs(np.where(np.isfinite(given), given, 0)).max(axis=1)
        assert given.dtype == dtype
        assert (largest > np.finfo(dtype).max / 5).sum() == 12


def test_what_raises_is_a_finding_and_the_rest_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(out: Any, k: Any) -> Any:
        raise RuntimeError("CUDA error:\n  out of memory")

    broken(monkeypatch, "s", out_of_memory)
    found = list(verify(["numpy"]))
    assert {estimator for estimator, _ in faults(found)} == {"s"}
    assert all(
        finding.worst_case.endswith(": RuntimeError: CUDA error: out of memory")
        and finding.as_dict()["worst_error"] is None
        for finding in found
        if finding.estimator == "s"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"implementations": ["nimpy"]}, "got 'nimpy'"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"minutes": 0}, "minutes must be above 0; got 0"),
        ({"minutes": math.inf}, "minutes must be above 0; got inf"),
    ],
)
def test_refusals_come_first(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuzz(**{"minutes": 1e-6, **arguments})
    if "minutes" not in arguments:
        with pytest.raises(ValueError, match=message):
            verify(**arguments)


def test_fuzz_goes_beyond_what_verify_has_seen_and_all_see_the_same() -> None:
    seconds: list[float] = []
    found = fuzz(["numpy", "reference"], minutes=0.003, progress=seconds.append)
    assert faults(found) == set()
    assert seconds == sorted(seconds) and seconds[0] < 0.18
    cases = {
        name: [f.cases for f in found if f.implementation == name]
        for name in ("numpy", "reference")
    }
    assert cases["numpy"] == cases["reference"]
    assert all(f"case {i} " not in f.worst_case for f in found for i in (0, 1))
