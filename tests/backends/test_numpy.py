"""What only NumPy's implementation has: several threads, keys with their places packed in, float64
inside whatever the rewards' precision."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

import pkpo_kernels as pk
from pkpo_kernels.backends import numpy as numpy_backend

FLOATS = ("float16", "bfloat16", "float32", "float64")


def as_dtype(values: Any, dtype: str) -> np.ndarray[Any, Any]:
    import ml_dtypes

    return np.asarray(values).astype(getattr(ml_dtypes, dtype, dtype))


def transformed(rewards: Any, k: int, **options: Any) -> np.ndarray[Any, Any]:
    out = pk.transform(rewards, k, **options)
    assert out.dtype == rewards.dtype
    return out.astype(np.float64)


def best_of(rewards: Any, ks: Any, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(pk.max_at_k(rewards, ks, **options), np.float64)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_left_out_does_not_matter(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    # Blocks of 16 rows: some hold all kinds, some none.
    monkeypatch.setattr(numpy_backend, "BLOCK_ELEMENTS", 16 * 6)
    clean = as_dtype(rng.standard_normal((40, 6)), dtype)
    where = rng.random((40, 6)) < 0.6
    where[3] = False
    options: dict[str, Any] = {"where": where, "undersized": "nan", "implementation": "numpy"}
    for estimator in pk.ESTIMATORS:
        want = transformed(clean, 2, estimator=estimator, **options)
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            rewards = np.where(where, clean, as_dtype(value, dtype))
            got = transformed(rewards, 2, estimator=estimator, **options)
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(
                best_of(rewards, [1, 3], where=where), best_of(clean, [1, 3], where=where)
            )


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_stays_makes_its_own_row_nan_and_no_other(
    rng: np.random.Generator, dtype: str, value: float
) -> None:
    clean = as_dtype(rng.standard_normal((12, 6)), dtype)
    where = rng.random((12, 6)) < 0.7
    where[:, 0] = True
    rewards = clean.copy()
    rewards[::3, 0] = value
    nan = np.zeros((12, 6), bool)
    nan[::3] = where[::3]
    for estimator in pk.ESTIMATORS:
        want = transformed(clean, 3, estimator=estimator, where=where)
        got = transformed(rewards, 3, estimator=estimator, where=where)
        np.testing.assert_array_equal(got, np.where(nan, np.nan, want))
        want = transformed(clean, 3, estimator=estimator)
        got = transformed(rewards, 3, estimator=estimator)
        np.testing.assert_array_equal(np.isnan(got).all(-1), np.arange(12) % 3 == 0)
        np.testing.assert_array_equal(
            np.delete(got, slice(0, 12, 3), 0), want[np.arange(12) % 3 > 0]
        )
    best = best_of(rewards, [1, 2], where=where)
    np.testing.assert_array_equal(np.isnan(best[::3]), True)
    np.testing.assert_array_equal(best[1::3], best_of(clean, [1, 2], where=where)[1::3])


def test_the_range_of_16_bits_is_judged_in_32() -> None:
    rewards = as_dtype([[65504, -65504]], "float16")
    np.testing.assert_array_equal(transformed(rewards, 1), rewards)
    # Exactly 131008, which float16 has no number for.
    np.testing.assert_array_equal(transformed(rewards, 2), [[np.inf, 0]])
    large = as_dtype([[3e38, -3e38, 1, 2]], "bfloat16")
    assert np.isnan(transformed(large, 2)).all() and np.isnan(best_of(large, 2)).all()


@pytest.mark.parametrize("estimator", list(pk.ESTIMATORS))
def test_float64_as_large_as_it_gets(rng: np.random.Generator, estimator: str) -> None:
    # Powers of two change no bit: 1.98 · 2^1023 is close to the largest float64.
    rewards = rng.uniform(-0.99, 0.99, (4, 7)).round(6)
    rewards[1] += 0.99
    for scale in ("sum",) if pk.ESTIMATORS[estimator].normalized else ("sum", "mean"):
        for k in (1, 2, 6):
            options: dict[str, Any] = {"estimator": estimator, "scale": scale}
            got = pk.transform(np.ldexp(rewards, 1023), k, **options)
            want = pk.transform(rewards, k, **options)
            if not pk.ESTIMATORS[estimator].normalized:
                with np.errstate(over="ignore"):
                    want = np.ldexp(want, 1023)
            np.testing.assert_array_equal(got, want)
    best = pk.max_at_k(np.ldexp(rewards, 1023), [1, 7])
    np.testing.assert_array_equal(best, np.ldexp(pk.max_at_k(rewards, [1, 7]), 1023))


def test_where_no_thread_is_to_be_had_the_caller_computes() -> None:
    program = """
        import atexit, os, sys, threading
        os.cpu_count = lambda: 4
        import numpy as np
        import pkpo_kernels as pk

        rewards = np.arange(4 << 17, dtype=np.float32).reshape(4, -1) % 1013

        def call(name):
            print(name, pk.transform(rewards, 2, estimator="s").sum(), flush=True)

        def after_the_main_thread():
            threading.main_thread().join()
            call("thread")

        def at_exit():
            # As where this is the first call: threads are refused as the pool is imported.
            import concurrent.futures
            del concurrent.futures.ThreadPoolExecutor, sys.modules["concurrent.futures.thread"]
            call("atexit")

        atexit.register(at_exit)
        threading.Thread(target=after_the_main_thread).start()
        call("main")
    """
    run = subprocess.run(
        [sys.executable, "-c", dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0 and not run.stderr, run.stderr
    names, sums = zip(*(line.split() for line in run.stdout.splitlines()), strict=True)
    assert names == ("main", "thread", "atexit") and len(set(sums)) == 1


@pytest.mark.parametrize("implementation", ["numpy", "reference"])
def test_small_results_of_large_rows_and_bytes_in_the_other_order(implementation: Any) -> None:
    # In each the middle reward gets 1/3 of its lead.
    rewards = np.array([[0.0, 1e-300, 2e294], [0.0, 1e-290, 1.7e308], [0.0, 1e39, 5e39]])
    for dtype in ("<f8", ">f8"):
        out = pk.transform(rewards.astype(dtype), 2, implementation=implementation)
        np.testing.assert_allclose(out[:, 1], rewards[:, 1] / 3, rtol=1e-14)


def test_the_oracle_of_passk_training_at_the_largest() -> None:
    largest = np.finfo(np.float64).max
    rewards = np.array([[-largest, 3.0, 1.0, -largest / 2, 1e-5]])
    options: Any = {"estimator": "passk_training"}
    want = pk.transform(rewards, 3, implementation="reference", **options)
    assert np.isfinite(want).all()
    np.testing.assert_allclose(pk.transform(rewards, 3, **options), want, rtol=1e-12)


def test_ks_of_many_sizes() -> None:
    rewards = np.array([[0.0, 1, 3], [0.0, 1, 3]])
    got = pk.transform(rewards, [2**63, 1], undersized="clip")
    np.testing.assert_array_equal(got, pk.transform(rewards, [3, 1]))
