"""What every PTX instruction computes, as one table over NumPy arrays: a value a thread.

The instructions and their values are those of NVIDIA's PTX ISA, chapter "Instruction Set". What is
not in the table raises. Memory, and what the lanes of a warp do together: see `launch`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from bench.ptx.arithmetic import (
    Array,
    add_halves,
    any_function,
    as_number,
    divide,
    extract,
    float_max,
    float_min,
    flushed,
    fma32,
    fma64,
    funnel,
    halves,
    in_pairs,
    insert,
    nan_max,
    nan_min,
    nearly,
    ordered,
    permute_bytes,
    saturated,
    shift_left,
    shift_right,
    to_integer,
    unordered,
    wide,
    with_positive_nans,
)


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


# ---- The table ---------------------------------------------------------------------------------

_COMPARISONS: dict[str, Callable[..., Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
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
    (r"add", "[su]16x2", "t: t t", add_halves),
    (r"add(\.rn)?", _FLOAT, "t: t t", np.add),
    (r"sub(\.rn)?", _FLOAT, "t: t t", np.subtract),
    (r"mul(\.rn)?", _FLOAT, "t: t t", np.multiply),
    (r"mul\.sat", "f32", "t: t t", lambda a, b: saturated(np.multiply(a, b))),
    (r"mul\.lo", _INTEGER, "t: t t", np.multiply),
    (r"mad\.lo", _INTEGER, "t: t t t", lambda a, b, c: a * b + c),
    (r"mul\.wide", r"[su](16|32)", "w: t t", lambda a, b: wide(a) * wide(b)),
    (r"mad\.wide", r"[su](16|32)", "w: t t w", lambda a, b, c: wide(a) * wide(b) + c),
    (r"mul\.hi", r"[su](16|32)", "t: t t", lambda a, b: _high(wide(a) * wide(b), a)),
    (r"fma\.rn", "f32", "t: t t t", fma32),
    (r"fma\.rn", "f64", "t: t t t", fma64),
    (r"add(\.rn)?", "f32x2", "t: t t", partial(in_pairs, np.add)),
    (r"sub(\.rn)?", "f32x2", "t: t t", partial(in_pairs, np.subtract)),
    (r"mul(\.rn)?", "f32x2", "t: t t", partial(in_pairs, np.multiply)),
    (r"fma\.rn", "f32x2", "t: t t t", partial(in_pairs, fma32)),
    (r"div", r"[su](32|64)", "t: t t", divide),
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
    (r"lop3", "b32", "t: t t t u32", any_function),
    (r"shl", _BITS, "t: t u32", shift_left),
    (r"shr", r"[bsu](16|32|64)", "t: t u32", shift_right),
    *(
        (rf"shf\.{direction}\.{mode}", "b32", "t: t t u32", partial(funnel, direction, mode))
        for direction in "lr"
        for mode in ("wrap", "clamp")
    ),
    (r"bfe", r"[su](32|64)", "t: t u32 u32", extract),
    (r"bfi", r"b(32|64)", "t: t t u32 u32", insert),
    (r"prmt", "b32", "t: t t t", permute_bytes),
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
        (rf"set\.{_name}\.f32", "f32", "t: t t", partial(as_number, _compare)),
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
    half = product.dtype.type(4 * product.dtype.itemsize)
    return (product >> half).astype(np.asarray(like).dtype)


_ROUNDINGS = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def _conversion(modifiers: str, to: str, of: str) -> Operation | None:
    """cvt: between any two types, rounded as C does unless the opcode says otherwise."""
    if to.removesuffix("x2") in _HALF_NAMES and to.endswith("x2") and of == "f32":
        known = modifiers == ".rn"
        return Operation(to, (of, of), partial(halves, to[:-2])) if known else None
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
        return Operation(to, (of,), partial(to_integer, rounding, target.numpy, of_nan))
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
