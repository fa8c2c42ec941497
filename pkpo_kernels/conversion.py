"""Arrays between NumPy, which files and checks work with, and the library that computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.backends import registry
from pkpo_kernels.validation import Array, dtype_name, library_of


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


# ---- What NumPy computes for tensors and JAX arrays that lie on a CPU ---------------------------


def rewards_to_host(rewards: Array, library: str, dtype: Any) -> NDArray[Any]:
    """Give rewards (...) to NumPy, in float32 or float64 as their library computes them, without a
    copy where they are that already; `dtype` is the result's."""
    if rewards.dtype != dtype or dtype_name(dtype) not in ("float32", "float64"):
        xp = registry.namespace(library)
        # Integers in float64 only where that is their library's default.
        rewards = as_dtype(rewards, xp.float64 if dtype_name(dtype) == "float64" else xp.float32)
    return to_host(rewards)


def k_to_host(k: Any) -> Any:
    """Give an array of ks, whose values may be anything, to NumPy, () as an integer: what is in no
    group's 1..n stays so. Integers stay as they are."""
    if isinstance(k, int | tuple):
        return k
    values = np.clip(to_host(k), 0, np.iinfo(np.int32).max).astype(np.int64)
    return values if values.ndim else int(values)


def result_from_host(result: NDArray[Any], rewards: Array, library: str, dtype: Any) -> Array:
    """Give NumPy's result (...) the library and device of the rewards, and a dtype of theirs."""
    if library == "torch":
        tensor = registry.namespace(library).from_numpy(result)
        return tensor if tensor.dtype == dtype else tensor.to(dtype)
    import jax

    with np.errstate(over="ignore", under="ignore"):  # as a float16 may, without a word
        result = result.astype(dtype, copy=False)
    if rewards.committed:
        # Where they lie on a mesh, even of one device, their type may say so.
        is_like = result.shape == rewards.shape
        return jax.device_put(result, rewards.sharding if is_like else rewards.device)
    with jax.default_device(rewards.device):  # free to go where others are, as the rewards are
        return jax.device_put(result)


def as_dtype(x: Array, dtype: Any) -> Array:
    """Convert an array of any library: (...) → (...) of one of its dtypes."""
    return x.to(dtype) if library_of(x) == "torch" else x.astype(dtype)
