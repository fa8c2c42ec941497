"""What PTX computes, on NumPy arrays of one value a thread, or on single values.

A bfloat16 is computed with as the float32 that it is the upper half of.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

Array = Any  # of NumPy, or one of its scalars

# ---- Floating point ----------------------------------------------------------------------------


def from_bf16(bits: Array) -> Array:
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x: Array) -> Array:
    bits = np.asarray(x, np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """a·b + c, rounded once: the sum in float64 is rounded to odd, so that rounding it again does
    no harm."""
    product = np.multiply(a, b, dtype=np.float64)
    total = np.atleast_1d(product + np.asarray(c, np.float64))
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    if inexact.any():
        bits += np.where(inexact, np.where((error > 0) == (total > 0), 1, -1), 0)
    return total.astype(np.float32)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """a·b + c, rounded once: the errors of product and sum are added in the end; what that does not
    settle is computed in fractions."""
    a, b, c = (np.atleast_1d(x) for x in np.broadcast_arrays(a, b, c))
    product = a * b
    split = 134217729.0
    high_a, high_b = a * split, b * split
    high_a, high_b = high_a - (high_a - a), high_b - (high_b - b)
    low_a, low_b = a - high_a, b - high_b
    low = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    total = product + c
    part = total - product
    error = ((product - (total - part)) + (c - part)) + low
    inexact = np.isfinite(total) & (total != 0) & (a != 0) & (b != 0)
    out = np.where(inexact, total + error, total)
    # Too small or too large for the errors to be exact, or perhaps half-way between two numbers.
    size = np.maximum(np.abs(product), np.abs(c))
    unsure = (np.abs(product) < 1e-250) | (size > 1e250) | (size > 2.0**60 * np.abs(total))
    unsure |= np.abs(2 * error) >= (1 - 2.0**-40) * np.spacing(np.abs(out))
    unsure |= np.isnan(error)
    unsure &= np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & (a != 0) & (b != 0) & (error != 0)
    for at in np.flatnonzero(unsure):
        exact = Fraction(float(a[at])) * Fraction(float(b[at])) + Fraction(float(c[at]))
        try:
            out[at] = float(exact)
        except OverflowError:
            out[at] = np.inf if exact > 0 else -np.inf
    return out


def nearly(function: Callable[..., Array], *arguments: Array) -> Array:
    """A float32 function of which the hardware promises no last bit: one unit in the last place
    off, or not, as a function of the arguments alone."""
    exact = np.asarray(function(*arguments), np.float32)
    mixed = np.full(exact.shape, 2654435761, np.uint32)
    for argument in arguments:
        mixed = (mixed ^ np.asarray(argument, np.float32).view(np.uint32)) * np.uint32(2246822519)
        mixed ^= mixed >> np.uint32(15)
    off = (mixed >> np.uint32(16)).astype(np.int32) % 3 - 1
    safe = np.isfinite(exact) & (np.abs(exact) > 1e-37) & (np.abs(exact) < 1e37)
    return np.where(safe, (exact.view(np.int32) + off).view(np.float32), exact)


def flushed(x: Array) -> Array:
    """0, of the same sign, for what is below float32's normal numbers (.ftz)."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def saturated(x: Array) -> Array:
    """Between 0 and 1 (.sat); +0 for a NaN."""
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1)) + x.dtype.type(0)


def with_signed_zeros(out: Array, a: Array, b: Array, negative: Array) -> Array:
    zeros = (a == 0) & (b == 0)
    if not np.any(zeros):
        return out
    return np.where(zeros, np.where(negative, -0.0, 0.0).astype(np.asarray(out).dtype), out)


def float_min(a: Array, b: Array) -> Array:
    """The smaller, −0 being smaller than +0; of a NaN and a number the number."""
    return with_signed_zeros(np.fmin(a, b), a, b, np.signbit(a) | np.signbit(b))


def float_max(a: Array, b: Array) -> Array:
    return with_signed_zeros(np.fmax(a, b), a, b, np.signbit(a) & np.signbit(b))


def nan_min(a: Array, b: Array) -> Array:
    """The smaller, −0 being smaller than +0; NaN where one is."""
    return with_signed_zeros(np.minimum(a, b), a, b, np.signbit(a) | np.signbit(b))


def nan_max(a: Array, b: Array) -> Array:
    return with_signed_zeros(np.maximum(a, b), a, b, np.signbit(a) & np.signbit(b))


def with_positive_nans(compute: Callable[..., Array]) -> Callable[..., Array]:
    """A NaN that is computed has no sign on a GPU; the processor here may give it one."""

    def computed(*operands: Array) -> Array:
        out = compute(*operands)
        nan = np.isnan(out)
        return np.where(nan, out.dtype.type(np.nan), out) if nan.any() else out

    return computed


def ordered(compare: Callable[..., Array], a: Array, b: Array) -> Array:
    return compare(a, b) & ~(np.isnan(a) | np.isnan(b))


def unordered(compare: Callable[..., Array], a: Array, b: Array) -> Array:
    return compare(a, b) | np.isnan(a) | np.isnan(b)


def as_number(compare: Callable[..., Array], a: Array, b: Array) -> Array:
    """1.0 where two floats compare so, else 0.0."""
    return np.asarray(ordered(compare, a, b)).astype(np.float32)


def to_integer(rounding: Callable[[Array], Array], name: str, of_nan: int, x: Array) -> Array:
    """Rounded, kept within the integers there are."""
    nan = np.isnan(x)
    limits = np.iinfo(name)
    x = rounding(np.asarray(x, np.float64))
    # 2^63 itself is one too many, and float64 has nothing between it and the last below.
    largest = float(limits.max) if limits.bits < 64 else np.nextafter(float(limits.max), 0)
    inside = np.clip(np.nan_to_num(x), float(limits.min), largest).astype(name)
    out = np.where(x > largest, np.array(limits.max, name), inside)
    return np.where(nan, np.array(of_nan, name), out)


# ---- Integers and bits -------------------------------------------------------------------------


def wide(a: Array) -> Array:
    a = np.asarray(a)
    return a.astype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")


def shift_left(a: Array, n: Array) -> Array:
    a = np.asarray(a)
    bits = 8 * a.dtype.itemsize
    return np.where(n < bits, a << np.minimum(n, bits - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: Array, n: Array) -> Array:
    a = np.asarray(a)
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(n, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(n < bits, shifted, a.dtype.type(0))


def add_halves(a: Array, b: Array) -> Array:
    """Two sums of 16 bits in one word: no carry goes from the lower to the upper."""
    lower = np.uint32(0xFFFF)
    return ((a + b) & lower) | ((a & ~lower) + (b & ~lower))


def join(low: Array, high: Array) -> Array:
    return (np.asarray(high).astype(np.uint64) << np.uint64(32)) | np.asarray(low, np.uint64)


def funnel(direction: str, mode: str, low: Array, high: Array, n: Array) -> Array:
    """The word that comes out of two, shifted by up to 32 bits."""
    n = n & np.uint32(31) if mode == "wrap" else np.minimum(n, np.uint32(32))
    both, n = join(low, high), np.asarray(n).astype(np.uint64)
    if direction == "l":
        return ((both << n) >> np.uint64(32)).astype(np.uint32)
    return (both >> n).astype(np.uint32)


def extract(a: Array, position: Array, length: Array) -> Array:
    """A field of bits; where it is signed, its sign fills what is above."""
    a = np.asarray(a)
    bits = 8 * a.dtype.itemsize
    position, length = (np.asarray(x & np.uint32(255)).astype(np.int64) for x in (position, length))
    field = shift_right(a, position).view(f"u{a.dtype.itemsize}")
    one = field.dtype.type(1)
    mask = np.where(length >= bits, ~field.dtype.type(0), shift_left(one, length) - one)
    field = field & mask
    if a.dtype.kind == "i":
        top = np.minimum(position + length - 1, bits - 1)
        negative = (length > 0) & (((a >> np.maximum(top, 0).astype(a.dtype)) & 1) != 0)
        field = np.where(negative, field | ~mask, field)
    return field.view(a.dtype) if field.ndim else field[()].view(a.dtype)


def insert(a: Array, b: Array, position: Array, length: Array) -> Array:
    """b, with a field of bits replaced by the lowest bits of a."""
    b = np.asarray(b)
    position, length = (np.asarray(x & np.uint32(255)).astype(np.int64) for x in (position, length))
    one = b.dtype.type(1)
    every = ~b.dtype.type(0)
    ones = np.where(length >= 8 * b.dtype.itemsize, every, shift_left(one, length) - one)
    field = shift_left(ones, position)
    return (b & ~field) | (shift_left(a, position) & field)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    both, selector = join(a, b), np.asarray(selector).astype(np.uint64)
    out: Array = np.uint32(0)
    for index in range(4):
        pick = (selector >> np.uint64(4 * index)) & np.uint64(15)
        byte = (both >> ((pick & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        # The highest bit of a pick asks for eight copies of the byte's sign.
        byte = np.where(pick & np.uint64(8), (byte >> np.uint64(7)) * np.uint64(255), byte)
        out = out | (byte.astype(np.uint32) << np.uint32(8 * index))
    return out


def any_function(a: Array, b: Array, c: Array, table: Array) -> Array:
    """Bit by bit, what the table of eight entries says of the three operands' bits."""
    out: Array = np.uint32(0)
    for index in range(8):
        x = a if index & 4 else ~a
        y = b if index & 2 else ~b
        z = c if index & 1 else ~c
        out = out | np.where((table >> index) & 1, x & y & z, np.uint32(0))
    return out


def halves(name: str, high: Array, low: Array) -> Array:
    """Two floats, rounded to 16 bits, in one word."""
    low, high = (
        to_bf16(x) if name == "bf16" else np.asarray(x, np.float16).view(np.uint16)
        for x in (low, high)
    )
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def in_pairs(function: Callable[..., Array], *pairs: Array) -> Array:
    """A float32 function, for both floats of each word of 64 bits."""
    low, high = (
        function(*((np.asarray(x) >> shift).astype(np.uint32).view(np.float32) for x in pairs))
        for shift in (np.uint64(0), np.uint64(32))
    )
    low, high = (np.asarray(x, np.float32).view(np.uint32).astype(np.uint64) for x in (low, high))
    return low | (high << np.uint64(32))


def divide(a: Array, b: Array) -> Array:
    """Divide integers, rounding towards 0; what is divided by 0 is unspecified."""
    magnitude = np.abs(a) // np.abs(np.where(b == 0, 1, b))
    quotient: Array = np.where((np.asarray(a) < 0) ^ (np.asarray(b) < 0), -magnitude, magnitude)
    return quotient.astype(np.asarray(a).dtype)
