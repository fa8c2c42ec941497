"""What the public functions ask of their arguments, and how they say so where it is not met:
`argument must be …; got …`."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import compress
from operator import index
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

# NumPy, torch and JAX arrays share no static type; here it is whichever the caller works with.
Array = Any
Name = TypeVar("Name", bound=str)

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
# Up to here float64 holds every integer.
LARGEST_EXACT = 1 << 53

_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = _SHORT.maxlong = 80


def shown(value: Any) -> str:
    """Give repr(value), of what is long only the ends."""
    return _SHORT.repr(value)


def listed(names: Sequence[str]) -> str:
    """Join names with commas; of many only the ends.

    >>> listed(["a", "b"]), listed([f"s{i}" for i in range(64)])
    ('a, b', 's0, s1, s2, s3, …, s63 (64 in all)')
    """
    if len(names) <= 8:
        return ", ".join(names)
    return f"{', '.join(names[:4])}, …, {names[-1]} ({len(names)} in all)"


def library_of(array: Any) -> str | None:
    """Name the library of an array, "numpy", "torch" or "jax", without importing any of them; None
    for anything else."""
    for library, type_name in (("torch", "Tensor"), ("jax", "Array"), ("numpy", "ndarray")):
        module = sys.modules.get(library)
        if module is not None and isinstance(array, getattr(module, type_name, ())):
            return library
    return None


def dtype_name(dtype: Any) -> str:
    """Name a dtype: 'float32' for NumPy's, torch's and JAX's float32 alike."""
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")


# Names.


def checked_name(
    argument: str, name: Any, choices: Iterable[Name], *, or_none: bool = False
) -> Name:
    """Check that `name` is among `choices`; the error lists them and guesses.

    >>> checked_name("scale", "means", ("sum", "mean"))
    Traceback (most recent call last):
    ValueError: scale must be one of sum, mean; got 'means'; did you mean 'mean'?
    """
    names = tuple(choices)
    if isinstance(name, str) and name in names:
        return names[names.index(name)]
    known = ", ".join(repr(one) if "," in one else one for one in names)
    close = get_close_matches(name.lower(), names, 1) if isinstance(name, str) else []
    raise ValueError(
        f"{argument} must be {'None or ' if or_none else ''}one of {known};"
        f" got {shown(name)}{f'; did you mean {close[0]!r}?' if close else ''}"
    )


# Integers.


def is_integer(value: Any) -> bool:
    """Tell whether a value is a Python or NumPy integer, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def checked_integers(
    argument: str, values: Any, *, least: int | None = None, most: int | None = None
) -> tuple[int, ...]:
    """Check a sequence of integers, each by itself: (n,) → a tuple of n ints."""
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)):
        raise TypeError(f"{argument} must be a sequence of integers; got {shown(values)}")
    return tuple(
        checked_integer(f"{argument}[{i}]", value, least=least, most=most)
        for i, value in enumerate(values)
    )


def checked_integer(
    argument: str, value: Any, *, least: int | None = None, most: int | None = None
) -> int:
    """Check one integer, no bool, within least..most: → an int."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(not_integral(argument, value))
    try:
        integer = index(value)
    except TypeError:
        raise TypeError(not_integral(argument, value)) from None
    if least is not None and integer < least:
        raise ValueError(f"{argument} must be at least {least}; got {integer}")
    if most is not None and integer > most:
        raise ValueError(f"{argument} must be at most {most}; got {integer}")
    return integer


def host_integers(argument: str, value: Any) -> NDArray[Any]:
    """Check integers of any shape: (...) → (...) NumPy's, as objects where they are too large."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{argument} must be plain integers; got a masked array: pass its data")
    if isinstance(value, (list, tuple)):
        _check_entries(argument, argument, value)
    try:
        array = np.asarray(value)
        if isinstance(value, (list, tuple)):
            leaves = list(_leaves(value))
            if not all(map(is_integer, leaves)):
                raise TypeError
            if array.dtype.kind == "f":  # NumPy's way with integers of many sizes
                array = np.array(leaves, object).reshape(array.shape)
    except (ValueError, TypeError):
        array = np.asarray(None)
    if array.dtype.kind not in "iu" and not (
        array.dtype == object and array.size and all(map(is_integer, array.flat))
    ):
        raise TypeError(not_integral(argument, value, "an integer or integers"))
    return array


def not_integral(argument: str, value: object, right: str = "an integer") -> str:
    """Say that a value is no integer, and what it is."""
    dtype = getattr(value, "dtype", None)
    got = f"{type(value).__name__} of dtype {dtype_name(dtype)}" if dtype else shown(value)
    return f"{argument} must be {right}; got {got}"


# Arrays.


def checked_array(argument: str, value: Any) -> tuple[Array, str]:
    """Check an array or a nested list: (...) → (...), dense and plain, of numbers of any dtype; and
    its library."""
    library = library_of(value)
    if library == "torch":
        _check_plain_tensor(argument, value)
        return value.resolve_neg(), library  # a view may be marked as negated, which memory is not
    if library == "jax":
        return value, library
    _check_dense(argument, value)
    if isinstance(value, (list, tuple)):
        _check_entries(argument, argument, value)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        ragged = isinstance(error, ValueError) and isinstance(value, (list, tuple))
        raise ValueError(_not_rows(argument, value, _PAD if ragged else str(error))) from None
    if array.dtype == object:
        if array.ndim == 0:
            raise TypeError(
                f"{argument} must be an array or a nested list of numbers; got {shown(value)}"
            )
        if any(isinstance(entry, (list, tuple, np.ndarray)) for entry in array.flat):
            raise ValueError(_not_rows(argument, value, _PAD))
        _check_entries(argument, argument, array.tolist())
    # As this machine keeps numbers, whatever machine has written them.
    return array.astype(array.dtype.newbyteorder("="), copy=False), "numpy"


_PAD = "pad, and pass where= to leave the padding out"


def _not_rows(argument: str, value: Any, why: str) -> str:
    """Say that a value is no array, or has rows of many lengths."""
    return (
        f"{argument} must be an array or a nested list of equally long rows; got"
        f" {shown(value)}: {why}"
    )


def _check_plain_tensor(argument: str, tensor: Any) -> None:
    """Raise for tensors that do not lie in memory by strides, or know more than their numbers."""
    torch = sys.modules["torch"]
    name = type(tensor).__name__
    if name == "DTensor":
        what, advice = "a DTensor", f"pass {argument}.to_local(), with whole groups on every rank"
    elif name == "MaskedTensor":
        what = "a MaskedTensor"
        advice = f"pass {argument}.get_data(), and where={argument}.get_mask()"
    elif tensor.is_nested:
        what = "a nested one"
        advice = (
            f"pass torch.nested.to_padded_tensor({argument}, 0.0), and where= to leave the padding"
            " out"
        )
    elif tensor.layout != torch.strided:
        what, advice = f"one of layout {tensor.layout}", f"pass {argument}.to_dense()"
    elif tensor.is_quantized:
        what, advice = "a quantized one", f"pass {argument}.dequantize()"
    else:
        return
    raise TypeError(f"{argument} must be a dense, local tensor; got {what}: {advice}")


def _check_dense(argument: str, value: Any) -> None:
    """Raise for masked and for sparse arrays."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{argument} must be a plain array; got a masked array: pass its data, and where=~mask"
        )
    # SciPy's sparse arrays, and JAX's, which are no jax.Array; NumPy would make objects of them.
    if hasattr(value, "todense") and not isinstance(value, np.ndarray):
        raise TypeError(
            f"{argument} must be a dense array; got a sparse {type(value).__name__}:"
            f" pass {argument}.todense()"
        )


# What a nested list may hold without a closer look.
_PLAIN = {int, float, bool}
# Real numbers among objects, which NumPy makes of integers beyond 64 bits and what is beside them.
_REAL = (int, float, np.integer, np.floating)


def _check_entries(argument: str, path: str, rows: Sequence[Any]) -> None:
    """Raise for what NumPy would take apart or turn into objects; for each row its entries' types
    are looked at, not its numbers."""
    for entry_type in set(map(type, rows)) - _PLAIN:
        at = next(i for i, entry in enumerate(rows) if type(entry) is entry_type)
        library = library_of(rows[at])
        if library in ("torch", "jax"):
            what, stack = {
                "torch": ("torch tensors", "torch.stack"),
                "jax": ("JAX arrays", "jnp.stack"),
            }[library]
            lengths = ", those of many lengths padded, with where= to leave the padding out"
            raise TypeError(
                f"{argument} must be one array; got {what} in a list: pass {stack}({argument})"
                f"{lengths if argument == 'rewards' else ''}"
            )
        if rows[at] is None:
            raise TypeError(
                f"{argument} must be numbers; got None at {path}[{at}]: put NaN there where groups"
                " have ids, else any number, and pass where= to leave it out"
            )
        if issubclass(entry_type, (list, tuple)):
            for i, row in enumerate(rows):
                if type(row) is entry_type:
                    _check_entries(argument, f"{path}[{i}]", row)
        else:
            _check_dense(f"{path}[{at}]", rows[at])


def inexact_integers(value: Any, array: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Find integers beyond 2^53, where float64 does not tell neighbours apart: (...) → (...) bool,
    or None where there is none.

    Args:
        value: as it was given: a list may hold integers that NumPy has made floats of.
        array: (...) what NumPy makes of it.
    """
    kind = array.dtype.kind
    if not array.size or array.dtype.itemsize < 8 or kind not in "iufO":
        return None
    if kind == "f" and not isinstance(value, (list, tuple)):
        return None
    if kind == "O":
        if not all(isinstance(entry, _REAL) for entry in array.flat):
            return None
        array = _integers_among(array.flat, array.shape)
    # Not beyond it alone: 2^53 + 1 may have been rounded.
    if not ((array >= LARGEST_EXACT) | (array <= -LARGEST_EXACT)).any():
        return None
    if kind == "f":
        array = _integers_among(_leaves(value), array.shape)
    beyond = ((array > LARGEST_EXACT) | (array < -LARGEST_EXACT)).astype(bool)
    return beyond if beyond.any() else None


def _integers_among(entries: Iterable[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Take integers as objects, 0 in the place of other numbers: → of a shape."""
    integers = [entry if is_integer(entry) else 0 for entry in entries]
    return np.array(integers, object).reshape(shape)


def first_inexact(value: Any, array: NDArray[Any], inexact: NDArray[np.bool_]) -> Any:
    """Find the first of such integers as it was given: value, array and inexact (...) as for, and
    from, `inexact_integers`."""
    entries = _leaves(value) if isinstance(value, (list, tuple)) else array.flat
    return next(compress(entries, inexact.flat))


def not_exact(argument: str, value: Any) -> str:
    """Say that an integer is beyond 2^53."""
    return (
        f"{argument} must be integers of at most 2**53 in magnitude, beyond which float64 confuses"
        f" neighbours; got {value}: subtract what they have in common, or pass floats"
    )


def _leaves(nested: Any) -> Iterator[Any]:
    """Iterate over the numbers of nested lists."""
    for entry in nested:
        if isinstance(entry, (list, tuple, np.ndarray)):
            yield from _leaves(entry)
        else:
            yield entry


def checked_axis(axis: Any, shape: Sequence[int]) -> int:
    """Count the axis of the samples from the front, and check that the shape has it."""
    if len(shape) == 0:
        raise ValueError("rewards must have an axis of samples; got a scalar")
    at = checked_integer("axis", axis)
    if not -len(shape) <= at < len(shape):
        raise ValueError(
            f"axis must be within {-len(shape)}..{len(shape) - 1} for rewards of shape"
            f" {tuple(shape)}; got {axis}"
        )
    return at % len(shape)


def checked_library(argument: str, value: Any, library: str, beside: str) -> Array:
    """Check that an array (...) is of the library of what goes with it."""
    value, of = checked_array(argument, value)
    if of != library:
        raise TypeError(
            f"{argument} must be of the same array library as {beside} ({library}); got"
            f" a {of} array"
        )
    return value


def check_device(argument: str, tensor: Array, rewards: Array, library: str) -> None:
    """Check that what goes with tensors of rewards lies where they do."""
    if library == "torch" and tensor.device != rewards.device:
        raise ValueError(
            f"{argument} must be on the device of rewards, {rewards.device}; got {tensor.device}"
        )


def checked_mask(where: Any, rewards: Array, library: str) -> Array:
    """Check a mask against the rewards (...), which are of this library: → (...) bool."""
    where = checked_library("where", where, library, "rewards")
    if dtype_name(where.dtype) != "bool":
        raise TypeError(f"where must be of dtype bool; got {dtype_name(where.dtype)}")
    if tuple(where.shape) != tuple(rewards.shape):
        raise ValueError(
            f"where must have the shape of rewards, {tuple(rewards.shape)};"
            f" got {tuple(where.shape)}"
        )
    check_device("where", where, rewards, library)
    return where
