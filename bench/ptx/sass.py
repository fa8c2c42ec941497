"""The machine code that ptxas makes of PTX, counted by what was executed of the PTX.

An instruction of SASS counts as often as the line of PTX that it was made for was executed. What
ptxas moved out of a branch, or put under a predicate instead, counts as if it were still behind
that branch, and a loop that it unrolled with each of its copies.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import triton

from bench.ptx.driver import Launched

# Opcodes, without what follows the first point, that go to the ALU pipe: 16 lanes of a scheduler's
# 32, so one instruction every two cycles. NVIDIA publishes no such list: this one follows the
# throughputs in its programming guide for 8.0 and 9.0 (what has 64 results a cycle and SM), and
# MOV, P2R, R2P and VOTE are taken to belong here; later architectures may differ. Not among them:
# FADD, FMUL, FFMA, IMAD and their kin (the FMA pipe, at full rate), POPC, FLO, BREV, MUFU and
# wide conversions (a quarter of the ALU's rate), U… (the uniform datapath).
ALU_TABLE = {
    "minima, maxima": "FMNMX FMNMX3 IMNMX VIMNMX VIMNMX3 VIADDMNMX HMNMX2 VHMNMX",
    "comparisons, selections": "FSETP ISETP FSET ISET FSEL SEL FCHK",
    "sums of integers": "IADD IADD3 VIADD VIADD3 ISCADD LEA IABS VABSDIFF VABSDIFF4 SAD",
    "bits and bytes": "LOP LOP3 LOP32I SHF SHL SHR BMSK SGXT PRMT MOV MOV32I",
    "predicates, votes on them": "PLOP3 PSETP PSET P2R R2P CSET CSETP VOTE",
    "narrowing conversions": "F2FP I2FP I2IP",
}
ALU = frozenset(opcode for opcodes in ALU_TABLE.values() for opcode in opcodes.split())


class Instruction(NamedTuple):
    """Of SASS."""

    opcode: str
    line: int  # of the PTX that it was made for


def nvidia_tool(tool: Any, options: Sequence[str], cubin: bytes) -> str:
    """The output of a tool that Triton carries."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool.path, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions_of(cubin: bytes) -> list[Instruction]:
    """The machine code of a kernel, without what no warp of ours comes to."""
    options = ["--print-code", "--print-line-info-ptx"]
    return listed(nvidia_tool(triton.knobs.nvidia.nvdisasm, options, cubin))


# Subroutines, for numbers that are hard to divide by; code for warps whose lanes went apart; and a
# jump to itself, with which padding begins. All of them lie behind the kernel's own code.
BEHIND = re.compile(
    r"(?:CALL|BRA\.DIV)[^;\n]*`\(([^)]+)\)|^(\S+):\n[^\n]*BRA `\(\2\)", re.MULTILINE
)
LISTED = re.compile(
    r"^(?P<label>\S+):$|^\s*//## File .*, line (?P<line>\d+)"
    r"|^\s*/\*\w{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);"
)


def listed(listing: str) -> list[Instruction]:
    """The instructions of nvdisasm's listing up to what lies behind a kernel."""
    behind = {label for found in BEHIND.findall(listing) for label in found}
    out: list[Instruction] = []
    line, labels, targets = 0, set(), set()
    for found in filter(None, map(LISTED.match, listing.splitlines())):
        if found["label"] in behind:
            break
        if found["label"]:
            labels.add(found["label"])
        elif found["line"]:
            line = int(found["line"])
        elif found["opcode"] != "NOP":
            out.append(Instruction(found["opcode"], line))
            if re.match(r"BRA\b(?!\.DIV)", found["opcode"]):
                targets |= set(re.findall(r"`\(([^)]+)\)", found["operands"]))
    if lost := targets - labels:
        raise ValueError(f"{lost} must lie in front of what no warp comes to")
    return out


def counted(launched: Launched) -> tuple[int, int]:
    """How many instructions of SASS, and of those for the ALU, the warps of a launch execute."""
    counts, program = launched.run.counts, launched.run.program
    warps = {
        it.line: int(executed)
        for it, executed in zip(program.instructions, counts.executed, strict=True)
    }
    lines = sorted(warps)
    total = alu = 0
    for instruction in instructions_of(launched.kernel.binary):
        # The brace that a kernel begins with stands for its first line.
        executed = warps[lines[bisect_left(lines, instruction.line)]]
        total += executed
        alu += executed * (instruction.opcode.split(".")[0] in ALU)
    return total, alu
