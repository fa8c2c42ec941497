"""One instruction of PTX → the lines of Python that compute it for many threads at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.ptx.arithmetic import from_bf16
from bench.ptx.instructions import UnknownInstructionError, kind, operation

if TYPE_CHECKING:
    from bench.ptx.program import Instruction, Program

_SPECIAL = re.compile(r"%((?:n?tid|n?ctaid)\.[xyz]|laneid)")
_EVERY_LANE = ("-1", "0xffffffff", "4294967295")


def operands_of(text: str) -> list[str]:
    """Split at commas that are outside of brackets."""
    out, depth = [""], 0
    for letter in text:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and not depth:
            out.append("")
        else:
            out[-1] += letter
    return [operand.strip() for operand in out] if text.strip() else []


class Emitter:
    """Lines of Python for one instruction; `names` takes what they refer to."""

    def __init__(self, program: Program, it: Instruction, names: dict[str, Any]) -> None:
        self.program, self.it, self.names = program, it, names

    def lines(self) -> Iterator[str]:
        it, first = self.it, self.it.parts[0]
        if first in ("ld", "st"):
            yield from self._memory(load=first == "ld")
        elif first in ("atom", "red"):
            yield from self._atomic()
        elif first in ("ldmatrix", "stmatrix"):
            yield from self._matrices(load=first == "ldmatrix")
        elif first in ("shfl", "redux"):
            yield from self._among_lanes(first)
        elif it.opcode == "bar.warp.sync" and it.operands[0] in _EVERY_LANE:
            yield f"M.warp_barrier(L, {it.number})"
        elif first == "mov" and "{" in "".join(it.operands):
            yield from self._regrouped()
        else:
            known = operation(it.opcode)
            sources = [
                self._read(operand, name)
                for operand, name in zip(it.operands[1:], known.sources, strict=True)
            ]
            call = f"{self._named('compute', known.compute)}({', '.join(sources)})"
            result, _, inverse = it.operands[0].partition("|")
            if inverse and known.sources[-1] == "pred":
                raise UnknownInstructionError(it.opcode)
            yield self._write(result, known.result, call)
            if inverse:
                yield self._write(inverse, "pred", f"~{self._read(result, 'pred')}")

    def _named(self, what: str, value: Any) -> str:
        name = f"{what}{len(self.names)}"
        self.names[name] = value
        return name

    def _slot(self, operand: str, type_: str) -> tuple[str, str]:
        """Where the register of an operand is read as that type, and what it holds there: "same",
        or "bf16" bits, or a "wider" word."""
        letter, bits = kind(type_)
        own, row = self.program.registers[operand]
        if letter == "bf":
            return f"U16[{row}, L]", "bf16"
        if int(own) == bits:
            return f"{letter.upper()}{bits}[{row}, L]", "same"
        return f"{'S' if letter == 's' else 'U'}{own}[{row}, L]", "wider"

    def _read(self, operand: str, type_: str) -> str:
        """An operand as a value of that type, for the threads L."""
        if special := _SPECIAL.fullmatch(operand):
            return f"M.special[{special[1]!r}][L]"
        if operand not in self.program.registers:
            return self._named("constant", self._constant(operand, type_))
        slot, holds = self._slot(operand, type_)
        if holds == "bf16":
            return f"from_bf16({slot})"
        if holds == "wider":  # st.b8 of a register of 16 bits, and the like: its lower bits
            known = kind(type_)
            return f"{slot}.astype(np.uint{known.bits}).view(np.{known.numpy})"
        return slot

    def _constant(self, text: str, type_: str) -> Any:
        """A number in the text, or where a variable lies in shared memory."""
        if text in self.program.variables:
            return np.array(self.program.variables[text], f"uint{kind(type_).bits}")[()]
        return _immediate(text, type_)

    def _write(self, operand: str, type_: str, value: str) -> str:
        slot, holds = self._slot(operand, type_)
        return f"{slot} = to_bf16({value})" if holds == "bf16" else f"{slot} = {value}"

    def _address(self, operand: str) -> str:
        found = re.fullmatch(r"\[\s*(\S+?)\s*(?:\+\s*(-?\w+)\s*)?\]", operand)
        assert found, operand
        base, offset = found[1], int(found[2] or "0", 0)
        if base in self.program.registers:
            base = f"U{self.program.registers[base][0]}[{self.program.registers[base][1]}, L]"
        else:
            base = str(self._constant(base, "u64"))
        return f"np.asarray({base}).astype(np.int64) + {offset}"

    def _group(self, operand: str) -> list[str]:
        return operands_of(operand.strip("{} ")) if operand.startswith("{") else [operand]

    def _memory(self, *, load: bool) -> Iterator[str]:
        it, type_ = self.it, self.it.parts[-1]
        known = {"ld", "st", "global", "shared", "shared::cta", "param", "v2", "v4", type_}
        hints = r"(L1|L2)::.*|evict_\w+"
        if re.fullmatch(r"ld\.global\.(gpu\.acquire|acquire\.gpu)\.b(32|64)", it.opcode):
            # As if 0 were added.
            address, bits = self._address(it.operands[1]), kind(type_).bits
            access = f"'add', {address}, {bits // 8}, (np.uint{bits}(0),)"
            yield f"t = M.atomic({access}, {it.number}, L)"
            yield self._write(it.operands[0], f"u{bits}", "t")
            return
        if any(part not in known and not re.fullmatch(hints, part) for part in it.parts):
            raise UnknownInstructionError(it.opcode)
        address, data = it.operands if not load else reversed(it.operands)
        if it.space == "param":
            value = f"M.parameters[{address.strip('[] ')!r}].view(np.{kind(type_).numpy})"
            yield self._write(data, type_, value)
            return
        names, bits = self._group(data), kind(type_).bits
        access = f"{it.space!r}, {self._address(address)}, {bits // 8}"
        if load:
            yield f"t = M.load({access}, {len(names)}, {it.number}, L)"
            for index, name in enumerate(names):
                if name != "_":
                    signed = f".view(np.int{bits})" if type_[0] == "s" else ""
                    bank = "s" if type_[0] == "s" else "u"
                    yield self._write(name, f"{bank}{bits}", f"t[{index}]{signed}")
        else:
            values = "".join(f"{self._read(name, f'u{bits}')}, " for name in names)
            yield f"M.store({access}, ({values}), {it.number}, L)"

    def _atomic(self) -> Iterator[str]:
        it, type_ = self.it, self.it.parts[-1]
        # Other CTAs may be anywhere on the GPU.
        order, scope = r"(\.(relaxed|acquire|release|acq_rel))?", r"(\.(gpu|sys))?"
        what = rf"({order}{scope}|{scope}{order})\.(add\.[us](32|64)|(exch|cas)\.b(32|64))"
        if not re.fullmatch(rf"(atom|red)\.global{what}", it.opcode):
            raise UnknownInstructionError(it.opcode)
        # red: what was there is of no interest.
        result, address, *values = ["_"] * (it.parts[0] == "red") + it.operands
        bits = kind(type_).bits
        given = "".join(f"{self._read(value, f'u{bits}')}, " for value in values)
        access = f"{it.parts[-2]!r}, {self._address(address)}, {bits // 8}, ({given})"
        yield f"t = M.atomic({access}, {it.number}, L)"
        if result != "_":
            yield self._write(result, f"u{bits}", "t")

    def _matrices(self, *, load: bool) -> Iterator[str]:
        it = self.it
        kinds = r"(ld|st)matrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16"
        if not re.fullmatch(kinds, it.opcode):
            raise UnknownInstructionError(it.opcode)
        address, data = it.operands if not load else reversed(it.operands)
        names, turned = self._group(data), "trans" in it.parts
        if load:
            arguments = f"{self._address(address)}, {len(names)}, {turned}, {it.number}"
            yield f"t = M.load_matrices({arguments}, L)"
            for number, name in enumerate(names):
                yield self._write(name, "u32", f"t[{number}]")
        else:
            values = "".join(f"{self._read(name, 'u32')}, " for name in names)
            arguments = f"{self._address(address)}, ({values}), {turned}, {it.number}"
            yield f"M.store_matrices({arguments}, L)"

    def _among_lanes(self, what: str) -> Iterator[str]:
        it = self.it
        if what == "redux":
            if not re.fullmatch(r"redux\.sync\.(add|min|max|and|or|xor)\.[bsu]32", it.opcode):
                raise UnknownInstructionError(it.opcode)
            value, mask = (
                self._read(it.operands[1], it.parts[-1]),
                self._read(it.operands[2], "u32"),
            )
            call = f"M.reduce({it.parts[2]!r}, {value}, {mask}, {it.number}, L)"
            yield self._write(it.operands[0], it.parts[-1], call)
            return
        if not re.fullmatch(r"shfl\.sync\.(up|down|bfly|idx)\.b32", it.opcode):
            raise UnknownInstructionError(it.opcode)
        result, _, inside = it.operands[0].partition("|")
        arguments = ", ".join(self._read(operand, "u32") for operand in it.operands[1:])
        yield f"t, inside = M.shuffle({it.parts[2]!r}, {arguments}, {it.number}, L)"
        yield self._write(result, "u32", "t")
        if inside:
            yield self._write(inside, "pred", "inside")

    def _regrouped(self) -> Iterator[str]:
        """mov between a register and several that make it up, the lowest first."""
        it, bits = self.it, kind(self.it.parts[-1]).bits
        to, of = it.operands
        if of.startswith("{"):
            names = self._group(of)
            each = bits // len(names)
            terms = [
                f"(np.asarray({self._read(name, f'u{each}')}).astype(np.uint{bits})"
                f" << np.uint{bits}({each * number}))"
                for number, name in enumerate(names)
            ]
            yield self._write(to, f"u{bits}", " | ".join(terms))
        else:
            names = self._group(to)
            each = bits // len(names)
            yield f"t = np.array({self._read(of, f'u{bits}')})"
            for number, name in enumerate(names):
                if name != "_":
                    part = f"(t >> np.uint{bits}({each * number})).astype(np.uint{each})"
                    yield self._write(name, f"u{each}", part)


def _immediate(text: str, type_: str) -> Any:
    """A number in the text, as one of the type: by its bits where it is written as 0f… or 0d…."""
    letter, bits = kind(type_)
    try:
        if letter == "p":
            return np.bool_(int(text, 0) != 0)
        if re.match("0[fFdD]", text):
            raw, size = int(text[2:], 16), 32 if text[1] in "fF" else 64
        else:
            raw, size = int(text.rstrip("U"), 0), bits
    except ValueError:
        raise UnknownInstructionError(f"an operand {text}") from None
    if letter == "bf":
        return from_bf16(np.array(raw, np.uint16))[()]
    if size != bits:
        raise UnknownInstructionError(f"an operand {text} of {bits} bits")
    return np.array(raw & ((1 << bits) - 1), f"uint{bits}").view(kind(type_).numpy)[()]
