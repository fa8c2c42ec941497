"""PTX text → basic blocks, each compiled to a Python function over NumPy arrays of threads.

A register is a row of an array, with one entry a thread. What an instruction becomes is one line,

    F32[7, L] = compute3(F32[2, L], constant9)

where L are the threads that run the block. Memory and what lanes do together are calls of the
machine M, which is a `launch.Launch`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.ptx.instructions import UnknownInstructionError, from_bf16, kind, operation, to_bf16

# Where registers are: by their bits, which U, S and F read as numbers without a sign, with one,
# and as floats.
VIEWS = ("U16", "S16", "F16", "U32", "S32", "F32", "U64", "S64", "F64", "P1")
_SPECIAL = re.compile(r"%((?:n?tid|n?ctaid)\.[xyz]|laneid)")
_EVERY_LANE = ("-1", "0xffffffff", "4294967295")
_NAME = re.compile(r"%?[A-Za-z_$][\w$]*(?:\.[xyz]\b)?")


@dataclass
class Instruction:
    number: int
    line: int  # of the PTX text, counted from 1
    where: str  # the line of the Triton source, and the calls that it was inlined through
    guard: str  # a predicate that switches it on, or ""
    negated: bool  # … that switches it off
    opcode: str
    operands: list[str]
    text: str

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def ends_block(self) -> bool:
        if self.parts[0] == "bar" and self.parts[1] != "warp":
            # Another barrier than the CTA's first, of all its threads, would be one of its own.
            if self.opcode != "bar.sync" or self.operands != ["0"]:
                raise UnknownInstructionError(f"line {self.line}: {self.text}")
            return True
        return self.parts[0] in ("bra", "ret", "exit")

    @property
    def space(self) -> str:
        """Of memory: "global", "shared" or "param"; "" for what touches none."""
        parts = (part.removesuffix("::cta") for part in self.parts)
        return next((part for part in parts if part in ("global", "shared", "param")), "")


@dataclass
class Block:
    """Instructions run one after the other, and the one that says how it goes on: a branch, a
    barrier, a return; None where the next block just follows."""

    number: int
    instructions: list[Instruction] = field(default_factory=list)
    end: Instruction | None = None
    target: int = -1  # of a branch
    run: Callable[[Any, Any], None] = lambda machine, lanes: None


class Program:
    """The one kernel of a PTX module.

    Attributes:
        name: of the kernel.
        threads: of a CTA.
        parameters: name → PTX type, in order.
        instructions: all of them, by number.
        blocks: in the order of the text.
        registers: name → its bits, "1" for a predicate, and its row among those.
        rows: bits → how many registers.

    Raises:
        UnknownInstructionError: for an instruction that the machine does not have.
    """

    def __init__(self, ptx: str) -> None:
        header = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{", ptx, re.DOTALL)
        kernels = len(re.findall(r"^[^/\n]*\.entry\b", ptx, re.MULTILINE))
        if header is None or kernels != 1:
            raise ValueError(f"ptx must hold one kernel (.entry); got {kernels}")
        self.name = header[1]
        found = re.findall(r"\.param\s+\.(\w+)[^,]*?(\w+)\s*(?:,|$)", header[2].strip())
        self.parameters = {name: type_ for type_, name in found}
        threads = re.search(r"\.reqntid\s+([\d, ]+)", header[3])
        if threads is None or not threads[1].strip().isdecimal() or int(threads[1]) % 32:
            raise ValueError(
                "ptx must say how many threads a CTA has (.reqntid), whole warps along x;"
                f" got {threads and threads[0].strip()}"
            )
        self.threads = int(threads[1])
        self.instructions: list[Instruction] = []
        self.registers: dict[str, tuple[str, int]] = {}
        self.rows: Counter[str] = Counter()
        self.blocks = [Block(0)]
        self._parse(ptx[header.end() :], ptx.count("\n", 0, header.end()) + 1)
        for block in self.blocks:
            block.run = self._compiled(block)

    # ---- Parsing -------------------------------------------------------------------------------

    def _parse(self, body: str, first_line: int) -> None:
        labels: dict[str, int] = {}
        scopes, opened = [_Scope("")], 0
        for line, where, statement in _statements(body, first_line):
            if statement == "{":
                opened += 1
                scopes.append(_Scope(f"${opened}"))
            elif statement == "}":
                scopes.pop()
                if not scopes:
                    break
            elif statement.endswith(":"):
                self._next_block()
                if statement in labels:
                    raise UnknownInstructionError(f"line {line}: {statement} a second time")
                labels[statement] = self.blocks[-1].number
            elif statement.startswith(".reg"):
                scopes[-1].declare(statement)
            elif statement.startswith("."):
                if not statement.startswith(".pragma"):
                    raise UnknownInstructionError(f"line {line}: {statement}")
            else:
                self._append(line, where, statement, scopes)
        for block in self.blocks:
            if block.end is not None and block.end.parts[0] == "bra":
                block.target = labels[f"{block.end.operands[0]}:"]

    def _append(self, line: int, where: str, statement: str, scopes: list[_Scope]) -> None:
        found = re.match(r"(?:@(!?)(%?[\w$]+)\s+)?([\w.:]+)\s*(.*)$", statement, re.DOTALL)
        assert found, statement
        negated, guard, opcode, operands = found.groups()
        it = Instruction(
            number=len(self.instructions),
            line=line,
            where=where,
            guard=self._register(_resolved(guard, scopes), scopes) if guard else "",
            negated=bool(negated),
            opcode=opcode,
            operands=[_resolved(operand, scopes) for operand in operands_of(operands)],
            text=statement,
        )
        for operand in it.operands:
            for name in _NAME.findall(operand):
                self._register(name, scopes)
        self.instructions.append(it)
        if it.ends_block:
            self.blocks[-1].end = it
            self._next_block(always=True)
        else:
            self.blocks[-1].instructions.append(it)

    def _register(self, name: str, scopes: list[_Scope]) -> str:
        bits = next((scope.bits(name) for scope in reversed(scopes) if scope.bits(name)), None)
        if bits and name not in self.registers:
            self.registers[name] = bits, self.rows[bits]
            self.rows[bits] += 1
        return name

    def _next_block(self, always: bool = False) -> None:
        if always or self.blocks[-1].instructions:
            self.blocks.append(Block(len(self.blocks)))

    # ---- From instructions to Python -----------------------------------------------------------

    def _compiled(self, block: Block) -> Callable[[Any, Any], None]:
        names: dict[str, Any] = {"np": np, "from_bf16": from_bf16, "to_bf16": to_bf16}
        lines = ["def run(M, L):", f"    {', '.join(VIEWS)} = M.views", "    everybody = L"]
        for it in block.instructions:
            try:
                code = list(_Emitter(self, it, names).lines())
            except UnknownInstructionError as error:
                raise UnknownInstructionError(
                    f"{error} in line {it.line}: {it.text}\n    at {it.where}"
                ) from None
            if it.guard:
                sign = "~" if it.negated else ""
                row = self.registers[it.guard][1]
                lines.append(f"    L = M.those_of(everybody, {sign}P1[{row}, everybody])")
                lines.append("    if L is not None:")
                lines += [f"        {line}" for line in code]
                lines.append("    L = everybody")
            else:
                lines += [f"    {line}" for line in code]
        exec(compile("\n".join(lines), f"<block {block.number} of {self.name}>", "exec"), names)
        run: Callable[[Any, Any], None] = names["run"]
        return run


class _Scope:
    """The registers that are declared between two braces."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self._families: dict[str, str] = {}  # %r → 32, for all of %r0, %r1 …
        self._names: dict[str, str] = {}

    def declare(self, statement: str) -> None:
        found = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement, re.DOTALL)
        assert found, statement
        bits = str(kind(found[1]).bits)
        for name in operands_of(found[2]):
            family = re.match(r"(%?[\w$]+)<\d+>$", name)
            if family:
                self._families[family[1]] = bits
            else:
                self._names[name] = bits

    def bits(self, name: str) -> str | None:
        """Of a register that is declared here, as written or as resolved."""
        name = name.removesuffix(self.suffix)
        family = re.match(r"(%?[A-Za-z_$]+)\d+$", name)
        return self._names.get(name) or (self._families.get(family[1]) if family else None)


def _resolved(text: str, scopes: list[_Scope]) -> str:
    """With the names of inner scopes told apart from those of others."""

    def told_apart(match: re.Match[str]) -> str:
        for scope in reversed(scopes):
            if scope.bits(match[0]):
                return match[0] + scope.suffix
        return match[0]

    return _NAME.sub(told_apart, text)


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


def _statements(body: str, first_line: int) -> Iterator[tuple[int, str, str]]:
    """(line, place in the Triton source, statement) without its semicolon; a label with its colon;
    a brace around statements alone."""
    where, pending, begun = "", "", 0
    for line, raw in enumerate(body.splitlines(), first_line):
        if re.match(r"\s*\.loc\b", raw):
            where = _source_line(raw)
            continue
        for letter in raw.split("//")[0] + " ":
            text = pending.strip()
            if not text:
                begun = line
            if letter == ";" or (letter in "{}" and not text):
                yield begun, where, text or letter
                pending = ""
            elif letter == ":" and re.fullmatch(r"[\w$]+", text):
                yield begun, where, f"{text}:"
                pending = ""
            else:
                pending += letter


def _source_line(directive: str) -> str:
    """Of a .loc: its comment, and the line of the caller where Triton does not write it there."""
    comment = directive.partition("//")[2].strip()
    caller = re.search(r"inlined_at \d+ (\d+)", directive)
    return f"{comment} @[ line {caller[1]} ]" if caller else comment


class _Emitter:
    """Lines of Python for one instruction; `names` takes what they refer to."""

    def __init__(self, program: Program, it: Instruction, names: dict[str, Any]) -> None:
        self.program, self.it, self.names = program, it, names

    def lines(self) -> Iterator[str]:
        it, first = self.it, self.it.parts[0]
        if first in ("ld", "st"):
            yield from self._memory(load=first == "ld")
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

    def _read(self, operand: str, type_: str) -> str:
        """An operand as a value of that type, for the threads L."""
        letter, bits = kind(type_)
        if special := _SPECIAL.fullmatch(operand):
            return f"M.special[{special[1]!r}][L]"
        if operand not in self.program.registers:
            return self._named("constant", _immediate(operand, type_))
        own, row = self.program.registers[operand]
        if letter == "bf":
            return f"from_bf16(U16[{row}, L])"
        if int(own) == bits:
            return f"{letter.upper()}{bits}[{row}, L]"
        # st.b8 of a register of 16 bits, and the like: its lower bits.
        return f"U{own}[{row}, L].astype(np.uint{bits}).view(np.{kind(type_).numpy})"

    def _write(self, operand: str, type_: str, value: str) -> str:
        letter, bits = kind(type_)
        own, row = self.program.registers[operand]
        if letter == "bf":
            return f"U16[{row}, L] = to_bf16({value})"
        if int(own) == bits:
            return f"{letter.upper()}{bits}[{row}, L] = {value}"
        return f"{'S' if letter == 's' else 'U'}{own}[{row}, L] = {value}"

    def _address(self, operand: str) -> str:
        found = re.fullmatch(r"\[\s*(\S+?)\s*(?:\+\s*(-?\w+)\s*)?\]", operand)
        assert found, operand
        base, offset = found[1], int(found[2] or "0", 0)
        if base in self.program.registers:
            base = f"U{self.program.registers[base][0]}[{self.program.registers[base][1]}, L]"
        else:
            base = str(_immediate(base, "u64"))
        return f"np.asarray({base}).astype(np.int64) + {offset}"

    def _group(self, operand: str) -> list[str]:
        return operands_of(operand.strip("{} ")) if operand.startswith("{") else [operand]

    def _memory(self, *, load: bool) -> Iterator[str]:
        it, type_ = self.it, self.it.parts[-1]
        known = {"ld", "st", "global", "shared", "shared::cta", "param", "v2", "v4", type_}
        hints = r"(L1|L2)::.*|evict_\w+"
        if any(part not in known and not re.fullmatch(hints, part) for part in it.parts):
            raise UnknownInstructionError(it.opcode)
        place, data = it.operands if not load else reversed(it.operands)
        if it.space == "param":
            value = f"M.parameters[{place.strip('[] ')!r}].view(np.{kind(type_).numpy})"
            yield self._write(data, type_, value)
            return
        names, bits = self._group(data), kind(type_).bits
        address = f"{it.space!r}, {self._address(place)}, {bits // 8}"
        if load:
            yield f"t = M.load({address}, {len(names)}, {it.number}, L)"
            for place_, name in enumerate(names):
                if name != "_":
                    signed = f".view(np.int{bits})" if type_[0] == "s" else ""
                    bank = "s" if type_[0] == "s" else "u"
                    yield self._write(name, f"{bank}{bits}", f"t[{place_}]{signed}")
        else:
            values = "".join(f"{self._read(name, f'u{bits}')}, " for name in names)
            yield f"M.store({address}, ({values}), {it.number}, L)"

    def _matrices(self, *, load: bool) -> Iterator[str]:
        it = self.it
        kinds = r"(ld|st)matrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16"
        if not re.fullmatch(kinds, it.opcode):
            raise UnknownInstructionError(it.opcode)
        place, data = it.operands if not load else reversed(it.operands)
        names, turned = self._group(data), "trans" in it.parts
        if load:
            arguments = f"{self._address(place)}, {len(names)}, {turned}, {it.number}"
            yield f"t = M.load_matrices({arguments}, L)"
            for number, name in enumerate(names):
                yield self._write(name, "u32", f"t[{number}]")
        else:
            values = "".join(f"{self._read(name, 'u32')}, " for name in names)
            yield f"M.store_matrices({self._address(place)}, ({values}), {turned}, {it.number}, L)"

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
    if text == "global_smem":
        return np.array(0, f"uint{bits}")[()]  # the launch's shared memory begins at 0
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
