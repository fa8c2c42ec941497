"""What each instruction of the machine that executes PTX computes.

Values are those of NVIDIA's PTX ISA, chapter "Instruction Set".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hand_written import kernel, run  # noqa: E402

from bench.ptx.arithmetic import fma32, from_bf16, to_bf16  # noqa: E402
from bench.ptx.instructions import (  # noqa: E402
    _TABLE,
    UnknownInstructionError,
    kind,
    operation,
)

INF, NAN = float("inf"), float("nan")
TINY = 2.0**-149  # float32's smallest number


def bits(value: float, type_: str) -> int:
    """A number as it lies in a register of that type."""
    letter, width = kind(type_)
    if letter == "bf":
        return int(to_bf16(np.float32(value)))
    if letter == "f":
        code = {16: "<e", 32: "<f", 64: "<d"}[width]
        return int.from_bytes(struct.pack(code, value), "little")
    return int(value) & ((1 << width) - 1)


def number(raw: int, type_: str) -> Any:
    letter, width = kind(type_)
    if letter == "bf":
        return float(from_bf16(np.uint16(raw)))
    if letter == "p":
        return bool(raw)
    return np.array(raw, f"uint{width}").view(kind(type_).numpy)[()].item()


def executed(opcode: str, sources: Sequence[Any]) -> Any:
    """What an instruction computes from values of its types, in a kernel of its own."""
    known = operation(opcode)
    text, registers = [], []
    for place, (value, type_) in enumerate(zip(sources, known.sources, strict=True)):
        if type_ == "pred":
            text.append(f"setp.ne.s32 %p{place}, {int(value)}, 0;")
            registers.append(f"%p{place}")
        else:
            name = {16: "%rs", 32: "%r", 64: "%rd"}[kind(type_).bits] + str(place)
            text.append(f"mov.b{kind(type_).bits} {name}, {bits(value, type_)};")
            registers.append(name)
    width = kind(known.result).bits
    result = {1: "%p9", 16: "%rs9", 32: "%r9", 64: "%rd9"}[width]
    text.append(f"{opcode} {result}, {', '.join(registers)};")
    if width == 1:
        text.append("selp.b32 %r9, 1, 0, %p9;")
        result, width = "%r9", 32
    out = torch.zeros(32, dtype=torch.int64)
    text += ["mul.wide.u32 %rd20, %tid.x, 8;", "ld.param.u64 %rd21, [out];"]
    text += ["add.s64 %rd20, %rd20, %rd21;", "mov.b64 %rd22, 0;", "st.global.b64 [%rd20], %rd22;"]
    text.append(f"st.global.b{width} [%rd20], {result};")
    run(text, {"out": out})
    assert (out == out[0]).all()
    raw = int(out[0]) & ((1 << width) - 1)
    return number(raw, known.result)


# Opcode, operands, result.
CASES: list[tuple[str, tuple[Any, ...], Any]] = [
    ("mov.b32", (7,), 7),
    ("mov.f64", (-0.5,), -0.5),
    ("add.s32", (2**31 - 1, 1), -(2**31)),
    ("add.s64", (2**31 - 1, 1), 2**31),
    ("add.s16", (2**15 - 1, 1), -(2**15)),
    ("sub.u32", (1, 2), 2**32 - 1),
    ("add.u16x2", (0x0001FFFF, 0xFFFF0002), 0x00000001),
    ("add.f32", (1.0, 2.0**-24), 1.0),
    ("add.rn.f32", (1.0, 3 * 2.0**-24), 1 + 2.0**-22),
    ("add.f32", (TINY, TINY), 2 * TINY),
    ("add.f64", (1.0, 2.0**-52), 1 + 2.0**-52),
    ("add.f16", (1.0, 2.0**-11), 1.0),
    ("add.bf16", (1.0, 2.0**-8), 1.0),
    ("sub.f32", (3e38, -3e38), INF),
    ("sub.f32", (INF, INF), NAN),
    ("sub.rn.f64", (1.0, 2.0), -1.0),
    ("mul.f32", (2.0**-100, 2.0**-49), TINY),
    ("mul.f32", (INF, 0.0), NAN),
    ("mul.rn.bf16", (1 + 2.0**-7, 1 + 2.0**-7), 1 + 2.0**-6),
    ("mul.lo.s32", (2**31 - 1, 2), -2),
    ("mul.lo.s64", (2**40, 3), 3 * 2**40),
    ("mul.hi.s32", (-(2**31), 4), -2),
    ("mul.hi.u32", (2**31, 4), 2),
    ("mul.hi.u16", (40000, 2731), 1666),
    ("mul.wide.u32", (2**32 - 1, 2), 2**33 - 2),
    ("mul.wide.s32", (-1, 2), -2),
    ("mul.wide.s16", (-300, 300), -90000),
    ("mad.lo.s32", (2**16, 2**16, 5), 5),
    ("mad.wide.u32", (2**32 - 1, 8, 1), 2**35 - 7),
    ("mad.wide.s32", (-3, 8, 2**40), 2**40 - 24),
    ("mul.sat.f32", (0.5, 0.75), 0.375),
    ("mul.sat.f32", (2.0**100, 2.0**100), 1.0),
    ("mul.sat.f32", (-2.0, 3.0), 0.0),
    ("mul.sat.f32", (INF, 0.0), 0.0),
    ("fma.rn.f32", (1 + 2.0**-12, 1 + 2.0**-12, -1 - 2.0**-11), 2.0**-24),
    ("fma.rn.f64", (1 + 2.0**-30, 1 + 2.0**-30, -1 - 2.0**-29), 2.0**-60),
    ("fma.rn.f32", (INF, 1.0, -INF), NAN),
    ("fma.rn.f64", (-0.0, 1.0, -0.0), -0.0),
    ("fma.rn.f64", (1e308, 2.0, -1.5e308), 5e307),
    ("fma.rn.f64", (1e300, 1e-300, -1.0), float(Fraction(1e300) * Fraction(1e-300) - 1)),
    ("fma.rn.f64", (2.0**1000, 2.0**-1000, 0.5), 1.5),
    ("fma.rn.f64", (2.0**1000, 0.0, 0.5), 0.5),
    ("fma.rn.f64", (1.0 + 2.0**-52, 2.0**-53, 1.0), 1 + 2.0**-52),
    # (1, 2) and (1, 1), the first in the upper half.
    ("add.f32x2", (0x3F80000040000000, 0x3F8000003F800000), 0x4000000040400000),
    ("sub.f32x2", (0x3F80000040000000, 0x3F8000003F800000), 0x000000003F800000),
    ("mul.rn.f32x2", (0x3F80000040000000, 0x3F8000003F800000), 0x3F80000040000000),
    (
        "fma.rn.f32x2",
        (0x3F80000040000000, 0x3F8000003F800000, 0x3F80000040000000),
        0x4000000040800000,
    ),
    ("div.s32", (-7, 2), -3),
    ("div.s32", (7, -2), -3),
    ("div.s64", (-(2**40), -3), 2**40 // 3),
    ("div.u32", (2**32 - 1, 2), 2**31 - 1),
    ("div.rn.f32", (1.0, 3.0), float(np.float32(1) / np.float32(3))),
    ("div.rn.f64", (1.0, 3.0), 1 / 3),
    ("div.rn.f32", (1.0, -0.0), -INF),
    ("div.rn.ftz.f32", (TINY, 2.0**-140), NAN),
    ("div.full.f32", (1.0, INF), 0.0),
    ("sqrt.rn.f32", (2.0,), float(np.sqrt(np.float32(2)))),
    ("sqrt.rn.f64", (2.0,), 2**0.5),
    ("sqrt.approx.f32", (-1.0,), NAN),
    ("sqrt.approx.ftz.f32", (TINY,), 0.0),
    ("neg.s32", (-(2**31),), -(2**31)),
    ("neg.f32", (0.0,), -0.0),
    ("abs.s32", (-5,), 5),
    ("abs.f32", (-INF,), INF),
    ("min.s32", (-1, 1), -1),
    ("min.u32", (2**32 - 1, 1), 1),
    ("max.s64", (-1, 1), 1),
    ("max.u16", (65535, 1), 65535),
    ("min.f32", (0.0, -0.0), -0.0),
    ("max.f32", (-0.0, 0.0), 0.0),
    ("min.f32", (NAN, 1.0), 1.0),
    ("max.f32", (1.0, NAN), 1.0),
    ("max.f64", (NAN, NAN), NAN),
    ("min.bf16", (2.0, -2.0), -2.0),
    ("min.NaN.f32", (1.0, NAN), NAN),
    ("min.NaN.f32", (0.0, -0.0), -0.0),
    ("max.NaN.f32", (-0.0, 0.0), 0.0),
    ("max.NaN.f32", (1.0, 2.0), 2.0),
    ("and.b32", (0b1100, 0b1010), 0b1000),
    ("or.b16", (0b1100, 0b1010), 0b1110),
    ("xor.b64", (0b1100, 1 << 40), (1 << 40) | 0b1100),
    ("and.pred", (True, False), False),
    ("or.pred", (True, False), True),
    ("xor.pred", (True, True), False),
    ("not.b32", (0,), 2**32 - 1),
    ("not.pred", (True,), False),
    # a ^ b ^ c, and "b where a, else c": the manual's tables.
    ("lop3.b32", (0b1100, 0b1010, 0b1001, 0x96), 0b1111),
    ("lop3.b32", (0b1100, 0b1010, 0b1001, 0xCA), 0b1001),
    ("shl.b32", (1, 31), 2**31),
    ("shl.b32", (1, 32), 0),
    ("shl.b16", (0x8001, 1), 2),
    ("shl.b64", (1, 40), 2**40),
    ("shr.u32", (2**31, 31), 1),
    ("shr.u32", (2**31, 99), 0),
    ("shr.s32", (-(2**31), 99), -1),
    ("shr.b64", (2**63, 63), 1),
    ("shr.s16", (-4, 1), -2),
    ("shf.l.wrap.b32", (0x80000000, 1, 1), 3),
    ("shf.l.wrap.b32", (0x80000000, 1, 33), 3),
    ("shf.l.clamp.b32", (5, 1, 33), 5),
    ("shf.r.wrap.b32", (2, 1, 1), 0x80000001),
    ("shf.r.clamp.b32", (2, 1, 40), 1),
    ("bfe.u32", (0xABCD1234, 8, 8), 0x12),
    ("bfe.s32", (0x0000F000, 12, 4), -1),
    ("bfe.u32", (0xFFFFFFFF, 28, 8), 0xF),
    ("bfe.s32", (-8, 2, 32), -2),
    ("bfe.u32", (0xFFFFFFFF, 4, 0), 0),
    ("bfe.s64", (1 << 40, 40, 1), -1),
    ("bfi.b32", (0xAB, 0x11111111, 8, 8), 0x1111AB11),
    ("bfi.b32", (0xABC, 0, 28, 8), 0xC0000000),
    ("bfi.b32", (0xFFFFFFFF, 0x12345678, 4, 0), 0x12345678),
    ("bfi.b32", (0xFFFFFFFF, 0x12345678, 32, 8), 0x12345678),
    ("bfi.b32", (7, 8, 0, 32), 7),
    ("bfi.b32", (7, 8, 256, 2), 11),  # the lowest eight bits of where and how many
    ("bfi.b64", (0x3, 0, 62, 64), 3 << 62),
    ("prmt.b32", (0x03020100, 0x07060504, 0x3715), 0x03070105),
    ("prmt.b32", (0x80, 0, 0x8888), 0xFFFFFFFF),
    ("popc.b32", (0xF0F0,), 8),
    ("popc.b64", (2**64 - 1,), 64),
    ("selp.b32", (1, 2, True), 1),
    ("selp.f32", (1.0, 2.0, False), 2.0),
    ("selp.b16", (1, 2, True), 1),
    ("cvta.to.global.u64", (12345,), 12345),
    ("set.le.f32.f32", (1.0, 1.0), 1.0),
    ("set.le.f32.f32", (1.0, 0.5), 0.0),
    ("set.le.f32.f32", (-0.0, 0.0), 1.0),
    ("set.le.f32.f32", (NAN, 1.0), 0.0),
    ("set.lt.f32.f32", (1.0, 1.0), 0.0),
    ("set.gt.f32.f32", (1.0, -INF), 1.0),
    ("set.ge.f32.f32", (-1.0, 1.0), 0.0),
    ("set.eq.f32.f32", (NAN, NAN), 0.0),
    ("set.ne.f32.f32", (1.0, 2.0), 1.0),
    ("setp.lt.s32", (-1, 1), True),
    ("setp.lt.u32", (2**32 - 1, 1), False),
    ("setp.lo.u32", (1, 2), True),
    ("setp.ls.u32", (2, 2), True),
    ("setp.hi.u32", (1, 2), False),
    ("setp.hs.u64", (2**40, 2), True),
    ("setp.eq.b32", (3, 3), True),
    ("setp.ne.b16", (3, 3), False),
    ("setp.gt.s64", (2**40, 2**39), True),
    ("setp.le.s32", (3, 3), True),
    ("setp.ge.s16", (-1, 0), False),
    ("setp.eq.f32", (0.0, -0.0), True),
    ("setp.eq.f32", (NAN, NAN), False),
    ("setp.ne.f32", (NAN, 1.0), False),
    ("setp.neu.f32", (NAN, 1.0), True),
    ("setp.lt.f32", (1.0, NAN), False),
    ("setp.ltu.f32", (1.0, NAN), True),
    ("setp.gt.f64", (1.0, 0.5), True),
    ("setp.geu.f64", (NAN, 0.5), True),
    ("setp.le.f16", (1.0, 1.0), True),
    ("setp.ge.bf16", (1.0, 2.0), False),
    ("setp.equ.f32", (1.0, 1.0), True),
    ("setp.leu.f32", (2.0, 1.0), False),
    ("setp.gtu.f32", (2.0, 1.0), True),
    ("setp.nan.f32", (1.0, NAN), True),
    ("setp.num.f32", (1.0, NAN), False),
    ("setp.lt.and.s32", (1, 2, False), False),
    ("setp.lt.or.f32", (2.0, 1.0, True), True),
    ("setp.eq.xor.b32", (1, 1, True), False),
    ("cvt.rn.f32.s32", (2**24 + 1,), 2.0**24),
    ("cvt.rn.f32.u32", (2**32 - 1,), 2.0**32),
    ("cvt.rn.f64.s32", (-7,), -7.0),
    ("cvt.rn.f32.f64", (1 + 2.0**-40,), 1.0),
    ("cvt.f64.f32", (0.5,), 0.5),
    ("cvt.f32.f16", (65504.0,), 65504.0),
    ("cvt.f32.bf16", (2.0**100,), 2.0**100),
    ("cvt.rn.f16.f32", (1e6,), INF),
    ("cvt.rn.bf16.f32", (1 + 2.0**-8,), 1.0),
    ("cvt.rn.bf16.f32", (1 + 3 * 2.0**-8,), 1 + 2.0**-6),
    ("cvt.rn.f16x2.f32", (1.0, -2.0), 0x3C00C000),
    ("cvt.rn.bf16x2.f32", (1.0, -2.0), 0x3F80C000),
    ("cvt.rzi.s32.f32", (-2.9,), -2),
    ("cvt.rzi.s32.f32", (1e20,), 2**31 - 1),
    ("cvt.rzi.s32.f32", (NAN,), 0),
    ("cvt.rni.s32.f32", (2.5,), 2),
    ("cvt.rmi.s32.f64", (-2.1,), -3),
    ("cvt.rpi.u32.f32", (2.1,), 3),
    ("cvt.rzi.s64.f64", (1e30,), 2**63 - 1),
    ("cvt.rzi.s64.f32", (NAN,), -(2**63)),
    ("cvt.rzi.u32.f64", (NAN,), 2**31),
    ("cvt.s64.s32", (-1,), -1),
    ("cvt.u64.u32", (2**32 - 1,), 2**32 - 1),
    ("cvt.u32.u64", (2**32 + 5,), 5),
    ("cvt.u32.u16", (65535,), 65535),
    ("cvt.s32.s16", (-2,), -2),
]


@pytest.mark.parametrize(
    ("opcode", "sources", "want"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES]
)
def test_an_instruction_computes(opcode: str, sources: tuple[Any, ...], want: Any) -> None:
    got = executed(opcode, sources)
    np.testing.assert_array_equal(got, want)
    assert np.signbit(got) == np.signbit(want)


def test_every_row_of_the_table_is_tested() -> None:
    split = [opcode.rpartition(".") for opcode, _, _ in CASES]
    for name, types, _, _ in _TABLE:
        assert any(
            re.fullmatch(name, opcode) and re.fullmatch(types, type_) for opcode, _, type_ in split
        ), (name, types)


@pytest.mark.parametrize(
    "opcode",
    [
        "cvt.rn.bf16.s32",
        "div.approx.f32",
        "add.sat.s32",
        "add.ftz.f32",
        "fma.rn.bf16",
        "cvt.rn.bf16.f64",
        "brev.b32",
        "add.q7",
    ],
)
def test_what_is_not_in_the_table_raises(opcode: str) -> None:
    with pytest.raises(UnknownInstructionError):
        operation(opcode)
    text = [".loc 1 7 0 // kernels.py:7:3", f"{opcode} %r1, %r2, %r3;"]
    with pytest.raises(UnknownInstructionError, match=r"(?s)line 6: \w+\..*at kernels.py:7:3"):
        kernel(text, {})


def test_a_fused_product_is_rounded_once(rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal(300).astype(np.float32) for _ in range(2))
    c = (-a * b * (1 + 2.0 ** rng.integers(-30, 0, 300))).astype(np.float32)
    for x, y, z, got in zip(a, b, c, fma32(a, b, c), strict=True):
        want = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        below, above = (np.nextafter(got, np.float32(side)) for side in (-np.inf, np.inf))
        error = abs(Fraction(float(got)) - want)
        assert all(error <= abs(Fraction(float(other)) - want) for other in (below, above))


def test_approximate_functions_are_a_unit_off_and_repeat(rng: np.random.Generator) -> None:
    a, b = (rng.uniform(0.1, 10, 1000).astype(np.float32) for _ in range(2))
    got = operation("div.full.f32").compute(a, b)
    units = np.abs(got.view(np.int32) - (a / b).view(np.int32))
    assert set(units) == {0, 1}
    np.testing.assert_array_equal(got, operation("div.full.f32").compute(a, b))
