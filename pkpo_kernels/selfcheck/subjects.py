"""What is checked: every estimator, and max@k beside them, by any implementation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.api import max_at_k, transform
from pkpo_kernels.backends import registry
from pkpo_kernels.conversion import from_host, to_host
from pkpo_kernels.maths.estimators import ESTIMATORS, MAX_AT_K

_SUBJECTS = {**ESTIMATORS, MAX_AT_K.name: MAX_AT_K}
EVERYTHING = tuple(_SUBJECTS)
# Divided by a deviation: without a scale, and biased.
NORMALIZED = tuple(name for name, subject in _SUBJECTS.items() if subject.normalized)
# Those whose expectation is the gradient.
UNBIASED = tuple(name for name in ESTIMATORS if name not in NORMALIZED)


def largest_k(subject: str, n: int) -> int:
    """Tell the largest k that a group of n samples admits."""
    return int(_SUBJECTS[subject].largest_k(n))


def computed(
    estimator: Any,
    rewards: NDArray[Any],
    k: Any,
    implementation: Any,
    *,
    dtype: str = "float32",
    **options: Any,
) -> NDArray[np.float64]:
    """Have an implementation compute: NumPy rewards (..., n) → float64 (..., n), or (...) for
    max@k.

    Args:
        estimator, implementation: their names.
        k, options: as for `transform` and `max_at_k`; a mask is NumPy's.
        dtype: what numbers are given in; NumPy's implementations get the rewards as they are.
    """
    library = registry.library_served(implementation)
    if "where" in options:
        options["where"] = from_host(options["where"], library)
    given = from_host(rewards, library, dtype)
    if estimator == MAX_AT_K.name:
        out = max_at_k(given, k, implementation=implementation, **options)
    else:
        out = transform(given, k, estimator=estimator, implementation=implementation, **options)
    return np.asarray(to_host(out), np.float64)


def float64_allowed(library: str) -> AbstractContextManager[Any]:
    """Let JAX make arrays of float64 while the block runs."""
    if library != "jax":
        return nullcontext()
    import jax

    # Older versions of JAX have it elsewhere.
    home: Any = jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")
    return home.enable_x64(True)


def computes_float64(implementation: str) -> bool:
    """Tell whether an implementation takes float64 and the device has it."""
    entry = registry.IMPLEMENTATIONS[implementation]
    if entry.library == "jax":
        import jax

        if jax.default_backend() == "tpu":
            return False
    return entry.unsupported(from_host(np.zeros((1, 1)), entry.library, "float64")) is None
