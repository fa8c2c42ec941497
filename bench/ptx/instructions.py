"""What every PTX instruction computes, as one table over NumPy arrays: a value a thread.

The instructions and their values are those of NVIDIA's PTX ISA, chapter "Instruction Set". What is
not in the table raises. Memory, and what the lanes of a warp do together: see `launch`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

Array = Any  # of NumPy, or one of its scalars


class UnknownInstructionError(NotImplementedError):
    """An instruction that the machine does not have."""


class Operation(NamedTuple):
    """An instruction with its types: reads sources, one value a thread, gives a result."""

    result: str
    sources: tuple[str, ...]
    compute: Callable[..., Array]


# ---- Types -------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A type of PTX as the machine holds it."""

    letter: str  # u, s, f, bf or p
    bits: int

    @property
    def numpy(self) -> str:
        """A bfloat16 is computed with as the float32 that it is the upper half of."""
        if self.letter == "bf":
            return "float32"
        names = {"u": f"uint{self.bits}", "s": f"int{self.bits}", "f": f"float{self.bits}"}
        return names.get(self.letter, "bool")


@cache
def kind(name: str) -> Kind:
    """The kind of a PTX type: "b32" is unsigned, "f16x2" a word of 32 bits."""
    if name == "pred":
        return Kind("p", 1)
    found = re.fullmatch(r"(bf|[fsub])(\d+)(x2)?", name)
    if not found:
        raise UnknownInstructionError(f"a type .{name}")
    if found[3]:
        return Kind("u", 2 * int(found[2]))
    return Kind({"b": "u"}.get(found[1], found[1]), int(found[2]))


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


def _with_signed_zeros(out: Array, a: Array, b: Array, negative: Array) -> Array:
    zeros = (a == 0) & (b == 0)
    if not np.any(zeros):
        return out
    return np.where(zeros, np.where(negative, -0.0, 0.0).astype(np.asarray(out).dtype), out)


def float_min(a: Array, b: Array) -> Array:
    """The smaller, −0 being smaller than +0; of a NaN and a number the number."""
    return _with_signed_zeros(np.fmin(a, b), a, b, np.signbit(a) | np.signbit(b))


def float_max(a: Array, b: Array) -> Array:
    return _with_signed_zeros(np.fmax(a, b), a, b, np.signbit(a) & np.signbit(b))


def nan_min(a: Array, b: Array) -> Array:
    """The smaller, −0 being smaller than +0; NaN where one is."""
    return _with_signed_zeros(np.minimum(a, b), a, b, np.signbit(a) | np.signbit(b))


def nan_max(a: Array, b: Array) -> Array:
    return _with_signed_zeros(np.maximum(a, b), a, b, np.signbit(a) & np.signbit(b))


def with_positive_nans(compute: Callable[..., Array]) -> Callable[..., Array]:
    """A NaN that is computed has no sign on a GPU; the processor here may give it one."""

    def computed(*operands: Array) -> Array:
        out = compute(*operands)
        nan = np.isnan(out)
        return np.where(nan, out.dtype.type(np.nan), out) if nan.any() else out

    return computed


_COMPARISONS: dict[str, Callable[..., Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def ordered(compare: Callable[..., Array], a: Array, b: Array) -> Array:
    return compare(a, b) & ~(np.isnan(a) | np.isnan(b))


def unordered(compare: Callable[..., Array], a: Array, b: Array) -> Array:
    return compare(a, b) | np.isnan(a) | np.isnan(b)


def _to_integer(rounding: Callable[[Array], Array], name: str, of_nan: int, x: Array) -> Array:
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


def _wide(a: Array) -> Array:
    a = np.asarray(a)
    return a.astype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")


def _shift_left(a: Array, n: Array) -> Array:
    a = np.asarray(a)
    bits = 8 * a.dtype.itemsize
    return np.where(n < bits, a << np.minimum(n, bits - 1).astype(a.dtype), a.dtype.type(0))


def _shift_right(a: Array, n: Array) -> Array:
    a = np.asarray(a)
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(n, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(n < bits, shifted, a.dtype.type(0))


def _add_halves(a: Array, b: Array) -> Array:
    """Two sums of 16 bits in one word: no carry goes from the lower to the upper."""
    lower = np.uint32(0xFFFF)
    return ((a + b) & lower) | ((a & ~lower) + (b & ~lower))


def _join(low: Array, high: Array) -> Array:
    return (np.asarray(high).astype(np.uint64) << np.uint64(32)) | np.asarray(low, np.uint64)


def _funnel(direction: str, mode: str, low: Array, high: Array, n: Array) -> Array:
    """The word that comes out of two, shifted by up to 32 bits."""
    n = n & np.uint32(31) if mode == "wrap" else np.minimum(n, np.uint32(32))
    both, n = _join(low, high), np.asarray(n).astype(np.uint64)
    if direction == "l":
        return ((both << n) >> np.uint64(32)).astype(np.uint32)
    return (both >> n).astype(np.uint32)


def _extract(a: Array, position: Array, length: Array) -> Array:
    """A field of bits; where it is signed, its sign fills what is above."""
    a = np.asarray(a)
    bits = 8 * a.dtype.itemsize
    position, length = (np.asarray(x & np.uint32(255)).astype(np.int64) for x in (position, length))
    field = _shift_right(a, position).view(f"u{a.dtype.itemsize}")
    one = field.dtype.type(1)
    mask = np.where(length >= bits, ~field.dtype.type(0), _shift_left(one, length) - one)
    field = field & mask
    if a.dtype.kind == "i":
        top = np.minimum(position + length - 1, bits - 1)
        negative = (length > 0) & (((a >> np.maximum(top, 0).astype(a.dtype)) & 1) != 0)
        field = np.where(negative, field | ~mask, field)
    return field.view(a.dtype) if field.ndim else field[()].view(a.dtype)


def _permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    both, selector = _join(a, b), np.asarray(selector).astype(np.uint64)
    out: Array = np.uint32(0)
    for place in range(4):
        pick = (selector >> np.uint64(4 * place)) & np.uint64(15)
        byte = (both >> ((pick & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        # The highest bit of a pick asks for eight copies of the byte's sign.
        byte = np.where(pick & np.uint64(8), (byte >> np.uint64(7)) * np.uint64(255), byte)
        out = out | (byte.astype(np.uint32) << np.uint32(8 * place))
    return out


def _any_function(a: Array, b: Array, c: Array, table: Array) -> Array:
    """Bit by bit, what the table of eight entries says of the three operands' bits."""
    out: Array = np.uint32(0)
    for place in range(8):
        x = a if place & 4 else ~a
        y = b if place & 2 else ~b
        z = c if place & 1 else ~c
        out = out | np.where((table >> place) & 1, x & y & z, np.uint32(0))
    return out


def _halves(name: str, high: Array, low: Array) -> Array:
    """Two floats, rounded to 16 bits, in one word."""
    low, high = (
        to_bf16(x) if name == "bf16" else np.asarray(x, np.float16).view(np.uint16)
        for x in (low, high)
    )
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def _in_pairs(function: Callable[..., Array], *pairs: Array) -> Array:
    """A float32 function, for both floats of each word of 64 bits."""
    low, high = (
        function(*((np.asarray(x) >> shift).astype(np.uint32).view(np.float32) for x in pairs))
        for shift in (np.uint64(0), np.uint64(32))
    )
    low, high = (np.asarray(x, np.float32).view(np.uint32).astype(np.uint64) for x in (low, high))
    return low | (high << np.uint64(32))


# ---- The table ---------------------------------------------------------------------------------

_INTEGER = r"[su](16|32|64)"
_BITS = r"b(16|32|64)"
_FLOAT = r"f(16|32|64)|bf16"
_ROUNDED = r"f(32|64)"
_HALF_NAMES = ("f16", "bf16")

# Opcode but for its type, the types it may have, "result: sources" where t is the type, and w twice
# as wide, and what it computes.
_Row = tuple[str, str, str, Callable[..., Array]]
_TABLE: list[_Row] = [
    (r"mov", rf"[su](16|32|64)|{_BITS}|{_FLOAT}|pred", "t: t", lambda a: a),
    (r"add", _INTEGER, "t: t t", np.add),
    (r"sub", _INTEGER, "t: t t", np.subtract),
    (r"add", "[su]16x2", "t: t t", _add_halves),
    (r"add(\.rn)?", _FLOAT, "t: t t", np.add),
    (r"sub(\.rn)?", _FLOAT, "t: t t", np.subtract),
    (r"mul(\.rn)?", _FLOAT, "t: t t", np.multiply),
    (r"mul\.lo", _INTEGER, "t: t t", np.multiply),
    (r"mad\.lo", _INTEGER, "t: t t t", lambda a, b, c: a * b + c),
    (r"mul\.wide", r"[su](16|32)", "w: t t", lambda a, b: _wide(a) * _wide(b)),
    (r"mad\.wide", r"[su](16|32)", "w: t t w", lambda a, b, c: _wide(a) * _wide(b) + c),
    (r"mul\.hi", r"[su]32", "t: t t", lambda a, b: _high(_wide(a) * _wide(b), a)),
    (r"fma\.rn", "f32", "t: t t t", fma32),
    (r"fma\.rn", "f64", "t: t t t", fma64),
    (r"add(\.rn)?", "f32x2", "t: t t", partial(_in_pairs, np.add)),
    (r"sub(\.rn)?", "f32x2", "t: t t", partial(_in_pairs, np.subtract)),
    (r"mul(\.rn)?", "f32x2", "t: t t", partial(_in_pairs, np.multiply)),
    (r"fma\.rn", "f32x2", "t: t t t", partial(_in_pairs, fma32)),
    (r"div\.full", "f32", "t: t t", partial(nearly, np.divide)),
    (r"div\.rn", _ROUNDED, "t: t t", np.divide),
    (r"div\.rn\.ftz", "f32", "t: t t", lambda a, b: flushed(np.divide(flushed(a), flushed(b)))),
    (r"sqrt\.rn", _ROUNDED, "t: t", np.sqrt),
    (r"sqrt\.approx", "f32", "t: t", partial(nearly, np.sqrt)),
    (r"sqrt\.approx\.ftz", "f32", "t: t", lambda a: flushed(nearly(np.sqrt, flushed(a)))),
    (r"neg", r"s(16|32|64)", "t: t", np.negative),
    (r"neg", _FLOAT, "t: t", np.negative),
    (r"abs", rf"s(16|32|64)|{_FLOAT}", "t: t", np.abs),
    (r"min", _INTEGER, "t: t t", np.minimum),
    (r"max", _INTEGER, "t: t t", np.maximum),
    (r"min", _FLOAT, "t: t t", float_min),
    (r"max", _FLOAT, "t: t t", float_max),
    (r"min\.NaN", _FLOAT, "t: t t", nan_min),
    (r"max\.NaN", _FLOAT, "t: t t", nan_max),
    (r"and", f"{_BITS}|pred", "t: t t", np.bitwise_and),
    (r"or", f"{_BITS}|pred", "t: t t", np.bitwise_or),
    (r"xor", f"{_BITS}|pred", "t: t t", np.bitwise_xor),
    (r"not", f"{_BITS}|pred", "t: t", np.invert),
    (r"lop3", "b32", "t: t t t u32", _any_function),
    (r"shl", _BITS, "t: t u32", _shift_left),
    (r"shr", r"[bsu](16|32|64)", "t: t u32", _shift_right),
    *(
        (rf"shf\.{direction}\.{mode}", "b32", "t: t t u32", partial(_funnel, direction, mode))
        for direction in "lr"
        for mode in ("wrap", "clamp")
    ),
    (r"bfe", r"[su](32|64)", "t: t u32 u32", _extract),
    (r"prmt", "b32", "t: t t t", _permute_bytes),
    (r"popc", r"b(32|64)", "u32: t", np.bitwise_count),
    (
        r"selp",
        rf"[su](16|32|64)|{_BITS}|{_FLOAT}",
        "t: t t pred",
        lambda a, b, p: np.where(p, a, b),
    ),
    (r"cvta\.to\.(global|shared)", "u64", "t: t", lambda a: a),
]
for _name, _compare in _COMPARISONS.items():
    _TABLE += [
        (rf"setp\.{_name}", rf"{_INTEGER}|{_BITS}", "pred: t t", _compare),
        (rf"setp\.{_name}", _FLOAT, "pred: t t", partial(ordered, _compare)),
        (rf"setp\.{_name}u", _FLOAT, "pred: t t", partial(unordered, _compare)),
    ]
_TABLE += [
    *(
        (rf"setp\.{name}", r"u(16|32|64)", "pred: t t", _COMPARISONS[same])
        for name, same in _UNSIGNED.items()
    ),
    (r"setp\.nan", _FLOAT, "pred: t t", lambda a, b: np.isnan(a) | np.isnan(b)),
    (r"setp\.num", _FLOAT, "pred: t t", lambda a, b: ~(np.isnan(a) | np.isnan(b))),
]


def _high(product: Array, like: Array) -> Array:
    return (product >> product.dtype.type(32)).astype(np.asarray(like).dtype)


_ROUNDINGS = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def _conversion(modifiers: str, to: str, of: str) -> Operation | None:
    """cvt: between any two types, rounded as C does unless the opcode says otherwise."""
    if to.removesuffix("x2") in _HALF_NAMES and to.endswith("x2") and of == "f32":
        known = modifiers == ".rn"
        return Operation(to, (of, of), partial(_halves, to[:-2])) if known else None
    target, source = kind(to), kind(of)
    floats = ("f", "bf")
    if source.letter in floats and target.letter not in floats:
        rounding = _ROUNDINGS.get(modifiers[1:])
        if rounding is None:
            return None
        # A NaN is 0, or of 64 bits, and of 64 bits' doubles, the highest bit alone.
        of_nan = 0
        if 64 in (source.bits, target.bits):
            of_nan = 1 << (target.bits - 1) if target.letter == "u" else -(1 << (target.bits - 1))
        return Operation(to, (of,), partial(_to_integer, rounding, target.numpy, of_nan))
    # To a narrower float, and from an integer, PTX asks for a rounding; else there is none.
    rounds = target.letter in floats and (source.letter not in floats or target.bits < source.bits)
    if modifiers != (".rn" if rounds else ""):
        return None
    if target.letter == "bf" and of != "f32":
        return None  # by way of float32 it would be rounded twice
    return Operation(to, (of,), lambda a: np.asarray(a).astype(target.numpy))


@cache
def operation(opcode: str) -> Operation:
    """The operation of an opcode, such as "add.s32".

    Raises:
        UnknownInstructionError: it is not in the table.
    """
    name, _, last = opcode.rpartition(".")
    if converted := re.fullmatch(r"cvt((?:\.\w+?)?)\.(\w+)\.(\w+)", opcode):
        found = _conversion(*converted.groups())
        if found is not None:
            return found
    # A comparison may be joined with a predicate: setp.lt.and.f32 p, a, b, q.
    joined = re.fullmatch(r"(setp\.\w+)\.(and|or|xor)", name)
    if joined:
        inner = operation(f"{joined[1]}.{last}")
        join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[joined[2]]

        def compute(a: Array, b: Array, c: Array) -> Array:
            return join(inner.compute(a, b), c)

        return Operation("pred", (*inner.sources, "pred"), compute)
    for pattern, types, signature, function in _TABLE:
        if re.fullmatch(pattern, name) and re.fullmatch(types, last):
            wide = last[0] + str(2 * kind(last).bits)
            letters = {"t": last, "w": wide}
            result, sources = signature.split(":")
            named = tuple(letters.get(letter, letter) for letter in sources.split())
            computed = {"add", "sub", "mul", "fma", "div", "sqrt", "min", "max"}
            if last[0] == "f" and last in ("f16", "f32", "f64") and name.split(".")[0] in computed:
                function = with_positive_nans(function)
            return Operation(letters.get(result, result), named, function)
    raise UnknownInstructionError(opcode)
