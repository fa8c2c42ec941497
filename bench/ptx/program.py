"""PTX text → basic blocks, each compiled to a Python function over NumPy arrays of threads.

A register is a row of an array, with one entry a thread. What an instruction becomes is one line,

    F32[7, L] = compute3(F32[2, L], constant9)

where L are the threads that run the block. Memory and what lanes do together are calls of the
machine M, which is a `launch.Launch`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.ptx.arithmetic import from_bf16, to_bf16
from bench.ptx.emit import Emitter, operands_of
from bench.ptx.instructions import UnknownInstructionError, kind

# Where registers are: by their bits, which U, S and F read as numbers without a sign, with one,
# and as floats.
VIEWS = ("U16", "S16", "F16", "U32", "S32", "F32", "U64", "S64", "F64", "P1")
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
        variables: name → where it lies in shared memory; "global_smem", what a launch asks for,
          lies behind all others.

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
        self.variables = {"global_smem": 0}
        self.blocks = [Block(0)]
        self._parse(ptx[header.end() :], ptx.count("\n", 0, header.end()) + 1)
        for block in self.blocks:
            block.run = self._compiled(block)

    def given(self, arguments: Sequence[int | float]) -> dict[str, Any]:
        """Give each parameter its argument, or 0, as bits: ld.param may read them as another type
        of the same size."""
        out = {}
        padded = [*arguments, *[0] * (len(self.parameters) - len(arguments))]
        for (name, type_), value in zip(self.parameters.items(), padded, strict=True):
            letter, bits = kind(type_)
            if letter == "f":
                out[name] = np.array(value, f"f{bits // 8}").view(f"u{bits // 8}")[()]
            else:
                out[name] = np.array(int(value) & ((1 << bits) - 1), f"u{bits // 8}")[()]
        return out

    # ---- Parsing -------------------------------------------------------------------------------

    def _parse(self, body: str, first_line: int) -> None:
        labels: dict[str, int] = {}  # with what tells their scopes apart
        branches: list[tuple[Block, str, list[str]]] = []
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
                label = statement[:-1] + scopes[-1].suffix
                if label in labels:
                    raise UnknownInstructionError(f"line {line}: {statement} a second time")
                labels[label] = self.blocks[-1].number
            elif statement.startswith(".reg"):
                scopes[-1].declare(statement)
            elif statement.startswith(".shared"):
                self._set_aside(line, statement, scopes[-1])
            elif statement.startswith("."):
                if not statement.startswith(".pragma"):
                    raise UnknownInstructionError(f"line {line}: {statement}")
            else:
                block = self.blocks[-1]
                self._append(line, where, statement, scopes)
                if block.end is not None and block.end.parts[0] == "bra":
                    label = block.end.operands[0]
                    branches.append((block, label, [label + it.suffix for it in scopes]))
        for block, label, candidates in branches:
            found = [labels[it] for it in reversed(candidates) if it in labels]
            if not found:
                raise UnknownInstructionError(f"no label {label} to branch to")
            block.target = found[0]

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

    def _set_aside(self, line: int, statement: str, scope: _Scope) -> None:
        """Lay out a variable in shared memory, all of them from multiples of 128 on."""
        found = re.fullmatch(r"\.shared\s+\.align\s+\d+\s+\.(\w+)\s+(\w+)\[(\d+)\]", statement)
        if found is None:
            raise UnknownInstructionError(f"line {line}: {statement}")
        type_, name, count = found.groups()
        free = self.variables["global_smem"]
        self.variables[scope.name(name)] = free
        size = kind(type_).bits // 8 * int(count)
        self.variables["global_smem"] = free + -(-size // 128) * 128

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
                code = list(Emitter(self, it, names).lines())
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
    """What is declared between two braces: registers, and variables in shared memory."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self._families: dict[str, str] = {}  # %r → 32, for all of %r0, %r1 …
        self._names: dict[str, str] = {}
        self._variables: set[str] = set()

    def name(self, variable: str) -> str:
        """Declare a variable: the name that tells it from those of other scopes."""
        self._variables.add(variable)
        return variable + self.suffix

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

    def declares(self, name: str) -> bool:
        return name in self._variables or bool(self.bits(name))

    def bits(self, name: str) -> str | None:
        """Of a register that is declared here, as written or as resolved."""
        name = name.removesuffix(self.suffix)
        family = re.match(r"(%?[A-Za-z_$]+)\d+$", name)
        return self._names.get(name) or (self._families.get(family[1]) if family else None)


def _resolved(text: str, scopes: list[_Scope]) -> str:
    """With the names of inner scopes told apart from those of others."""

    def told_apart(match: re.Match[str]) -> str:
        for scope in reversed(scopes):
            if scope.declares(match[0]):
                return match[0] + scope.suffix
        return match[0]

    return _NAME.sub(told_apart, text)


def _statements(body: str, first_line: int) -> Iterator[tuple[int, str, str]]:
    """(line, line of the Triton source, statement) without its semicolon; a label with its colon;
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
