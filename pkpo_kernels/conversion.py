"""Arrays between NumPy, which files and checks work with, and the library that computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.backends import registry
from pkpo_kernels.validation import Array, library_of


def from_host(values: NDArray[Any], library: str, dtype: str | None = "float32") -> Array:
    """Give rewards or a mask the form that a user of the library has them in, on its accelerator if
    there is one: (...) → (...).

    Args:
        values: (...) numbers or bool.
        library: "numpy", which leaves them as they are; "torch" or "jax".
        dtype: the name of a floating dtype for numbers, bool stays bool; None for what the library
          makes of them.

    >>> from_host(np.array([0.0, 1.0]), "numpy")
    array([0., 1.])
    """
    if library == "numpy":
        return values
    xp = registry.namespace(library)
    target = None
    if values.dtype == np.bool_:
        target = xp.bool_ if library == "jax" else xp.bool
    elif dtype is not None:
        target = getattr(xp, dtype)
    if library == "jax":
        return xp.asarray(values, target)
    return xp.asarray(values, dtype=target, device="cuda" if xp.cuda.is_available() else "cpu")


def to_host(array: Array) -> NDArray[Any]:
    """Give an array of any library to NumPy: (...) → (...), in float64 where NumPy lacks the dtype.

    >>> to_host(np.array([True, False]))
    array([ True, False])
    """
    if library_of(array) == "torch":
        array = array.detach().cpu()
        try:
            return array.numpy()
        except TypeError:  # bfloat16, float8
            return array.double().numpy()
    plain: NDArray[Any] = np.asarray(array)
    # To NumPy, JAX's bfloat16 and float8 are void.
    if plain.dtype.kind == "V" and "float" in plain.dtype.name:
        plain = plain.astype(np.float64)
    return plain
