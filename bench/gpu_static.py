# Triton has no types, so its decorator makes every kernel an untyped function.
# mypy: disallow-untyped-decorators=False
"""What the Triton kernels compile to, counted without a GPU.

    python -m bench.gpu_static [--quick] [--json FILE] [--target sm_90]

Every kernel that pkpo_triton ships is compiled ahead of time, beside two others that sort the same
rows, and the machine code is disassembled and counted: issue slots, the half-rate ALU pipe and the
exchange of data between lanes, each an element, next to what an H200 has of it while it copies the
same bytes. That gives an upper bound of the speed, as a fraction of a copy. **Nothing is run**:

- Latency, occupancy, bank conflicts and memory itself are not looked at.
- A loop's body is counted once, so only kernels without loops over their data are comparable. A
  subroutine's body, such as the slow case of a division, is counted once too.
- A condition inside a path counts as met, on both sides if it has two.
- A predicated instruction takes its issue slot whether its predicate holds or not.

A kernel has paths that exclude each other (uniform branches), so counts are kept apart by path. A
path is a set of jit functions. Triton's PTX tells in the comments of its .loc directives the whole
stack of inlined calls, and the cubin tells the PTX line of every instruction. A basic block
belongs to the path that most of its instructions were written for, and so do the blocks that run
only together with it (dominators). Whatever a compiler moved in front of the branch runs always,
and is counted as common code.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import multiprocessing
import os
import platform
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.language as tl
from pkpo_triton import variants
from pkpo_triton.plan import OPTIONS
from pkpo_triton.variants import Variant
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch._inductor.runtime import triton_helpers
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench import commit_id
from bench.shapes import MEASURED_N

RESULTS = Path(__file__).parent / "results"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
H200 = "sm_90"
ARMS_N = tuple(n for n in MEASURED_N if n <= 4096)
QUICK_N = 32
WORKERS = 2

# ---- What an H200 has while it copies ----------------------------------------------------------

COPY_BYTES_PER_SECOND = 4.3e12  # measured, device to device, reads and writes together
SMS, CLOCK = 132, 1.98e9
SCHEDULERS, LANES = 4, 32  # a scheduler issues one instruction of 32 lanes a cycle
ALU_LANES = 64  # an SM's: half of what is issued
EXCHANGE_LANES = 32  # an SM's shuffles, and its shared memory's banks of 4 bytes


class Budget(NamedTuple):
    """What there is for one element, in lane operations, in the time that its copy takes."""

    instructions: float
    alu: float
    exchanged: float

    @classmethod
    def of(cls, bytes_per_element: int) -> Budget:
        """With 8 bytes (float32, read and written): 62 issue slots, 31 on the ALU, 15.6 lanes."""
        cycles = SMS * CLOCK * bytes_per_element / COPY_BYTES_PER_SECOND
        return cls(cycles * SCHEDULERS * LANES, cycles * ALU_LANES, cycles * EXCHANGE_LANES)


# ---- Compiling ---------------------------------------------------------------------------------


class Usage(NamedTuple):
    """What one program, or one thread of it, holds."""

    registers: int  # a thread's; on AMD its vector registers
    spilled_words: int  # of 32 bits, that a thread keeps in memory
    spilled_scalars: int  # on AMD, scalar registers kept in lanes of vector registers
    shared_bytes: int  # a program's


@dataclass(frozen=True)
class Compiled:
    """A variant for a target: Triton's CompiledKernel, the processor seconds it took, its usage."""

    variant: Variant
    target: GPUTarget
    kernel: Any
    seconds: float
    usage: Usage


def compile_variant(variant: Variant, target: GPUTarget) -> Compiled:
    """Compile from the beginning, whatever Triton's cache on disk holds."""
    places = {name: (place,) for place, name in enumerate(variant.signature)}
    source = ASTSource(
        fn=variant.kernel,
        signature=variant.signature,
        constexprs={places[name]: value for name, value in variant.constants.items()},
        attrs={places[name]: [["tt.divisibility", 16]] for name in variant.divisible},
    )
    # scope() puts the setting back, and the environment variable that it is written through to.
    with tempfile.TemporaryDirectory() as empty, triton.knobs.cache.scope():
        triton.knobs.cache.dir = empty
        start = processor_seconds()
        options = {"num_warps": variant.num_warps, "num_stages": 1, **OPTIONS}
        kernel = triton.compile(source, target=target, options=options)
        seconds = processor_seconds() - start
    usage = nvidia_usage(kernel) if target.backend == "cuda" else amd_usage(kernel)
    return Compiled(variant, target, kernel, seconds, usage)


def processor_seconds() -> float:
    """This process's and its children's: ptxas is one. As long as the compilation itself takes, but
    the same beside other work."""
    return sum(os.times()[:4])


def nvidia_usage(kernel: Any) -> Usage:
    text = nvidia_tool(triton.knobs.nvidia.cuobjdump, ["-res-usage"], kernel.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    # The binary's own figure of shared memory holds what is reserved for the system, and lacks what
    # the launch asks for.
    return Usage(registers, (stack + local) // 4, 0, kernel.metadata.shared)


def amd_usage(kernel: Any) -> Usage:
    def metadata(key: str) -> int:
        found = re.search(rf"^\s*\.{key}:\s*(\d+)", kernel.asm["amdgcn"], re.MULTILINE)
        assert found, key
        return int(found[1])

    return Usage(
        metadata("vgpr_count"),
        metadata("private_segment_fixed_size") // 4,
        metadata("sgpr_spill_count"),
        kernel.metadata.shared,  # asked for at the launch, so the binary's own figure is 0
    )


def nvidia_tool(tool: Any, options: Sequence[str], cubin: bytes) -> str:
    """The output of a tool that Triton carries."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool.path, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ---- Counting ----------------------------------------------------------------------------------

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


@dataclass(frozen=True)
class Counts:
    """SASS instructions by what they occupy. One is executed by the 32 lanes of a warp."""

    instructions: int = 0
    alu: int = 0
    shuffles: int = 0
    shared_loads: int = 0
    shared_stores: int = 0
    shared_words: int = 0  # that the shared loads and stores move for each lane
    global_loads: int = 0
    global_stores: int = 0
    barriers: int = 0
    local: int = 0  # loads and stores of spilled registers

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )

    @classmethod
    def of(cls, opcodes: Iterable[str]) -> Counts:
        opcodes = [opcode for opcode in opcodes if opcode != "NOP"]
        families = Counter(opcode.split(".")[0] for opcode in opcodes)

        def total(*names: str) -> int:
            return sum(families[name] for name in names)

        return cls(
            instructions=len(opcodes),
            alu=total(*ALU),
            shuffles=total("SHFL"),
            shared_loads=total("LDS", "LDSM"),
            shared_stores=total("STS", "STSM"),
            shared_words=sum(map(shared_words, opcodes)),
            global_loads=total("LDG", "LDGSTS"),
            global_stores=total("STG"),
            barriers=total("BAR"),
            local=total("LDL", "STL"),
        )


def shared_words(opcode: str) -> int:
    """The words of each lane that an instruction moves from or to shared memory."""
    family, *modifiers = opcode.split(".")
    if family in ("LDS", "STS"):
        return 4 if "128" in modifiers else 2 if "64" in modifiers else 1
    if family in ("LDSM", "STSM"):  # so many matrices of 128 bytes
        return int(modifiers[-1]) if modifiers[-1] in ("2", "4") else 1
    return 0


@dataclass(frozen=True)
class Figures:
    """The counts of a compiled kernel by path: "" for common code, and every path that it has."""

    paths: Mapping[str, Counts]

    def on(self, path: str) -> Counts:
        """What is executed where that path is taken, common code included."""
        return self.paths[""] + self.paths.get(path, Counts())

    @property
    def total(self) -> Counts:
        return sum(self.paths.values(), Counts())


# A set of paths: the name of each, and the jit functions that are called on it alone.
Paths = Mapping[str, Collection[Any]]
# Code for warps whose lanes went apart, behind BRA.DIV: it is there, but no lane of ours goes there
DIVERGED = "(diverged)"


def count(compiled: Compiled, paths: Paths | None = None) -> Figures:
    """Count the machine code of a kernel for an NVIDIA GPU, by the paths that it has."""
    paths = paths or {}
    assert compiled.target.backend == "cuda", compiled.target
    options = ["--print-code", "--print-line-info-ptx"]
    cubin = compiled.kernel.asm["cubin"]
    listing = nvidia_tool(triton.knobs.nvidia.nvdisasm, options, cubin)
    blocks = basic_blocks(listing)
    lines = path_of_lines(compiled.kernel.asm["ptx"], paths)
    opcodes: dict[str, list[str]] = {"": []}
    for block, path in zip(blocks, path_of_blocks(blocks, lines), strict=True):
        if path is not None:
            opcodes.setdefault(path, []).extend(i.opcode for i in block.instructions)
    return Figures({path: Counts.of(found) for path, found in opcodes.items()})


class Instruction(NamedTuple):
    opcode: str
    line: int | None  # of the PTX


@dataclass
class Block:
    """A basic block: it is entered at its beginning and left at its end."""

    instructions: list[Instruction]
    targets: list[str]  # the labels that it may jump to
    falls_through: bool = True
    # It may end the program, on a condition perhaps
    leaves: bool = False
    # The labels that it jumps to when the warp's lanes went apart
    diverged: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


LABEL = re.compile(r"^(\S+):\s*$")
PTX_LINE = re.compile(r'^\s*//## File "[^"]*", line (\d+)')
SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
JUMPS = ("BRA", "JMP", "BRX", "JMX", "CALL", "WARPSYNC")
ENDS = ("EXIT", "RET")


def basic_blocks(listing: str) -> list[Block]:
    """The blocks of nvdisasm's listing, in its order."""
    blocks = [Block([], [])]
    labels: list[str] = []
    line: int | None = None

    def begin() -> None:
        if blocks[-1].instructions:
            blocks.append(Block([], []))

    for text in listing.splitlines():
        if found := LABEL.match(text):
            begin()
            labels.append(found[1])
        elif found := PTX_LINE.match(text):
            line = int(found[1])
        elif found := SASS.match(text):
            block = blocks[-1]
            block.labels += tuple(labels)
            labels.clear()
            predicate, opcode, operands = found.groups()
            block.instructions.append(Instruction(opcode, line))
            family = opcode.split(".")[0]
            if family in JUMPS:
                targets = re.findall(r"`\(([^)]+)\)", operands)
                if opcode.startswith("BRA.DIV"):
                    block.diverged = tuple(targets)
                else:
                    block.targets = targets
                # A branch has its condition in front of it, or as an operand beside its target.
                always = predicate is None and operands.strip().startswith("`(")
                block.falls_through = not (family in ("BRA", "JMP") and always)
                begin()
            elif family in ENDS:
                block.leaves = True
                block.falls_through = predicate is not None
                begin()
    return [block for block in blocks if block.instructions]


def path_of_lines(ptx: str, paths: Paths) -> list[str]:
    """The path of every line of PTX: of the innermost call to one of the paths' functions."""
    ranges = []
    for path, functions in paths.items():
        for function in functions:
            source, first = inspect.getsourcelines(function.fn)
            name = Path(inspect.getsourcefile(function.fn) or "").name
            ranges.append((name, range(first, first + len(source)), path))
    # Such as: .loc 2 388 40 // standard.py:388:40 @[ mine.py:11:19 @[ mine.py:24:20 ] ]
    location = re.compile(r"^\s*\.loc\s[\d\s]+//\s*(.*)$")
    frame = re.compile(r"([^\s\[\]]+):(\d+):\d+")
    lines, current, located = [""], "", False  # counted from 1
    for text in ptx.splitlines():
        if found := location.match(text):
            located = True
            frames = [(file, int(line)) for file, line in frame.findall(found[1])]
            current = next(
                (
                    path
                    for file, line in frames
                    for name, lines_of_path, path in ranges
                    if file == name and line in lines_of_path
                ),
                "",
            )
        lines.append(current)
    if paths and not located:
        raise ValueError("the PTX has no line information; TRITON_DISABLE_LINE_INFO leaves it out")
    return lines


def path_of_blocks(blocks: Sequence[Block], lines: Sequence[str]) -> list[str | None]:
    """The path of every block; None for those that nothing reaches, which are padding."""
    usual, all_edges = edges(blocks)
    reached, reached_usually = reachable(all_edges), reachable(usual)
    dominators = dominating(usual, reached_usually)
    leaving = [at for at, block in enumerate(blocks) if at in reached_usually and block.leaves]
    # The same on the graph turned round, from an end that every way out goes to
    end = len(blocks)
    backwards: list[set[int]] = [set() for _ in range(end + 1)]
    for at in reached_usually:
        for after in usual[at]:
            backwards[after].add(at)
    backwards[end] = set(leaving)
    postdominators = dominating(backwards, reachable(backwards, end), end)
    always = set.intersection(*(dominators[at] for at in leaving)) if leaving else {0}

    voted: dict[int, str] = {}
    for at in reached_usually:
        votes = Counter(lines[i.line] for i in blocks[at].instructions if i.line is not None)
        path, most = max(votes.items(), key=lambda item: item[1], default=("", 0))
        voted[at] = "" if at in always or most == votes[""] else path

    def together(at: int) -> str:
        """The path without which a block of common code does not run."""
        for sets in (dominators, postdominators):
            # The nearest has most others around it.
            around = sorted(sets.get(at, set()), key=lambda other: -len(sets[other]))
            for other in around:
                if voted.get(other):
                    return voted[other]
        return ""

    result: list[str | None] = []
    for at in range(len(blocks)):
        if at not in reached:
            result.append(None)
        elif at not in reached_usually:
            result.append(DIVERGED)
        elif at in always:
            result.append("")
        else:
            result.append(voted[at] or together(at))
    return result


def edges(blocks: Sequence[Block]) -> tuple[list[set[int]], list[set[int]]]:
    """The blocks that follow each, without and with those for diverged warps."""
    place = {label: at for at, block in enumerate(blocks) for label in block.labels}
    usual: list[set[int]] = []
    for at, block in enumerate(blocks):
        after = {place[label] for label in block.targets if label in place}
        if block.falls_through and at + 1 < len(blocks):
            after.add(at + 1)
        usual.append(after)
    with_diverged = [
        after | {place[label] for label in block.diverged if label in place}
        for after, block in zip(usual, blocks, strict=True)
    ]
    return usual, with_diverged


def reachable(graph: Sequence[set[int]], start: int = 0) -> set[int]:
    found, waiting = {start}, [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def dominating(graph: Sequence[set[int]], nodes: set[int], start: int = 0) -> dict[int, set[int]]:
    """node → the nodes, itself included, that every way to it from the start goes through."""
    before: dict[int, set[int]] = {node: set() for node in nodes}
    for node in nodes:
        for after in graph[node] & nodes:
            before[after].add(node)
    found = {node: nodes if node != start else {start} for node in nodes}
    changed = True
    while changed:
        changed = False
        for node in sorted(nodes - {start}):
            new = {node} | set.intersection(*(found[other] for other in before[node]))
            if new != found[node]:
                found[node], changed = new, True
    return found


# ---- Figures an element ------------------------------------------------------------------------


class PerElement(NamedTuple):
    """What an element costs, in lane operations."""

    instructions: float
    alu: float
    shuffles: float
    exchanged: float  # lanes of shuffles and words of shared memory

    @classmethod
    def of(cls, counts: Counts, variant: Variant) -> PerElement:
        lanes = variant.num_warps * LANES / variant.elements
        return cls(
            counts.instructions * lanes,
            counts.alu * lanes,
            counts.shuffles * lanes,
            (counts.shuffles + counts.shared_words) * lanes,
        )

    def copy_fraction(self, bytes_per_element: int) -> float:
        """The most that it can reach of an H200's copy of the same bytes."""
        have = Budget.of(bytes_per_element)
        needs = (
            (self.instructions, have.instructions),
            (self.alu, have.alu),
            (self.exchanged, have.exchanged),
        )
        return min(1.0, *(has / need for need, has in needs if need))


def dtype(variant: Variant) -> str:
    """Triton's name for that of the rewards, which are the first pointer."""
    return next(kind[1:] for kind in variant.signature.values() if kind.startswith("*"))


def bytes_per_element(variant: Variant) -> int:
    """A reward, read once, and its result, written once; a mask beside them is not counted."""

    def size(kind: str) -> int:
        found = re.search(r"\d+", kind)
        assert found, variant.signature
        return max(1, int(found[0]) // 8)  # a bool is a byte

    results = (kind for name, kind in variant.signature.items() if name.startswith("out"))
    return size(dtype(variant)) + size(next(results, dtype(variant)))


# ---- Arms beside ours --------------------------------------------------------------------------


@triton.jit
def sort_scan_scatter(
    x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    w_ptr: tl.tensor,
    n_rows: tl.tensor,
    N: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """The whole transform as one writes it with Triton's library: tl.sort, tl.cumsum, a scatter.

    tl.sort carries no payload, so key and place share an int64. The sum of w[j] (s[j] − s[j−1]) is
    rearranged to use no neighbour, which Triton has no cheap way to; it cancels, but counts least.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    places = tl.arange(0, N)
    inside = rows[:, None] < n_rows
    starts = rows[:, None].to(tl.int64) * N
    x = tl.load(x_ptr + starts + places[None, :], mask=inside, other=0.0)

    bits = x.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as an integer, ordered as the floats are
    pairs = tl.sort((ordered.to(tl.int64) << 32) | places[None, :].to(tl.int64), 1)
    place = (pairs & 0xFFFFFFFF).to(tl.int32)
    ordered = (pairs >> 32).to(tl.int32)
    s = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)

    w = tl.load(w_ptr + places)
    fall = w - tl.load(w_ptr + places + 1)  # of the weight to the next; the table ends with a 0
    terms = fall[None, :] * s
    out = tl.cumsum(terms, 1) - terms + w[None, :] * s
    tl.store(out_ptr + starts + place, out, mask=inside)


@triton.jit
def inductor_sort(
    x_ptr: tl.tensor,
    values_ptr: tl.tensor,
    places_ptr: tl.tensor,
    ROWS: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """What Inductor generates for torch.sort of (rows, N), line by line, without any transform.

    Below a warp's width it masks the samples, from there on it does not; a number of rows that
    every block divides is not masked.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    place = tl.arange(0, N)[None, :]
    count = N
    if N < 32:
        x = tl.load(
            x_ptr + (place + N * row), place < count, eviction_policy="evict_first", other=0.0
        )
    else:
        x = tl.load(x_ptr + (place + N * row), None, eviction_policy="evict_first")
    keys = tl.broadcast_to(x, [ROWS, N])
    indices = tl.broadcast_to(place.to(tl.int16), [ROWS, N])
    if N < 32:
        keys, indices = triton_helpers.sort_with_index(keys, indices, count, 1)
        tl.store(values_ptr + (place + N * row), keys, place < count)
        tl.store(places_ptr + (place + N * row), indices.to(tl.int64), place < count)
    else:
        keys, indices = triton_helpers.sort_with_index(keys, indices, None, 1)
        tl.store(values_ptr + (place + N * row), keys, None)
        tl.store(places_ptr + (place + N * row), indices.to(tl.int64), None)


def sort_arm(n: int) -> Variant:
    """32 elements a thread: of 4 to 32, what counts fewest, give or take one in a hundred."""
    elements = 4096
    return Variant(
        name="tl.sort on int64 + scan + scatter",
        kernel=sort_scan_scatter,
        signature={
            "x_ptr": "*fp32",
            "out_ptr": "*fp32",
            "w_ptr": "*fp32",
            "n_rows": "i32",
            "N": "constexpr",
            "ROWS": "constexpr",
        },
        constants={"N": n, "ROWS": elements // n},
        divisible=("x_ptr", "out_ptr", "w_ptr"),
        num_warps=4,
        n=n,
        elements=elements,
    )


# n → rows a program, and warps: of the configurations that Inductor (torch 2.13) itself tries with
# many rows, the one that counts fewest an element. It tries 1, 8, 32 and 128 rows of up to 4096
# elements with 2 warps, and nothing else than these from 256 on.
INDUCTOR = {8: (128, 2), 16: (32, 2), 32: (32, 2), 64: (32, 2), 128: (8, 2), 256: (4, 1)}


def inductor_arm(n: int) -> Variant:
    rows, num_warps = INDUCTOR[n]
    return Variant(
        name="Inductor's sort_with_index, alone",
        kernel=inductor_sort,
        signature={
            "x_ptr": "*fp32",
            "values_ptr": "*fp32",
            "places_ptr": "*i64",
            "ROWS": "constexpr",
            "N": "constexpr",
        },
        constants={"ROWS": rows, "N": n},
        divisible=("x_ptr", "values_ptr", "places_ptr"),
        num_warps=num_warps,
        n=n,
        elements=rows * n,
    )


def arms() -> Iterator[Variant]:
    yield from map(sort_arm, ARMS_N)
    # Above 512 samples Inductor generates no sort: it calls ATen's.
    yield from map(inductor_arm, INDUCTOR)


@functools.cache
def catalogue() -> tuple[Variant, ...]:
    """All that is compiled, in an order that every process finds again."""
    return (*variants.shipped(), *arms())


# ---- The table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The figures of a compiled variant.

    What comes of counting is None for AMD's GPUs, and so is for all but the H200 what fraction of
    its copy is allowed. Every kernel is set against a copy of the transform's own bytes.
    """

    kernel: str
    n: int
    dtype: str
    num_warps: int
    elements: int  # of a program
    compile_seconds: float  # of processors
    registers: int
    spilled_words: int
    spilled_scalars: int
    shared_bytes: int
    barriers: int | None = None  # on the general path
    general: PerElement | None = None
    two_levels: PerElement | None = None  # None too for a kernel without that path
    copy_fraction: float | None = None
    two_levels_copy_fraction: float | None = None
    counts: Mapping[str, Counts] | None = None  # of a program's warp, by path


def measure(place: int, target_name: str) -> Row:
    """The row of one variant of the catalogue, which cannot be sent to another process itself."""
    variant = catalogue()[place]
    compiled = compile_variant(variant, TARGETS[target_name])
    row: dict[str, Any] = {
        "kernel": variant.name,
        "n": variant.n,
        "dtype": dtype(variant),
        "num_warps": variant.num_warps,
        "elements": variant.elements,
        "compile_seconds": compiled.seconds,
        **compiled.usage._asdict(),
    }
    if compiled.target.backend == "cuda":
        figures = count(compiled, variants.PATHS)
        row["counts"] = figures.paths
        row["barriers"] = figures.on("general").barriers
        row["general"] = PerElement.of(figures.on("general"), variant)
        if "two_levels" in figures.paths:
            row["two_levels"] = PerElement.of(figures.on("two_levels"), variant)
        if target_name == H200:
            size = bytes_per_element(variant)
            row["copy_fraction"] = row["general"].copy_fraction(size)
            if "two_levels" in row:
                row["two_levels_copy_fraction"] = row["two_levels"].copy_fraction(size)
    return Row(**row)


def warm_up(target_name: str) -> None:
    """Load everything, so that no row is charged for it."""
    compile_variant(sort_arm(ARMS_N[0]), TARGETS[target_name])


def measure_all(target_name: str, largest_n: int | None = None) -> list[Row]:
    chosen = [
        place
        for place, variant in enumerate(catalogue())
        if largest_n is None or variant.n <= largest_n
    ]
    # The longest first, so that no process is left alone with one in the end
    longest_first = sorted(chosen, key=lambda place: -catalogue()[place].n)
    progress = Progress(
        TextColumn("compiling for {task.fields[target]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    rows: dict[int, Row] = {}
    with (
        progress,
        # Not forked: torch and LLVM have threads
        ProcessPoolExecutor(
            WORKERS, multiprocessing.get_context("spawn"), warm_up, (target_name,)
        ) as pool,
    ):
        task = progress.add_task("", total=len(chosen), target=target_name)
        futures = {pool.submit(measure, place, target_name): place for place in longest_first}
        try:
            for future in as_completed(futures):
                place = futures[future]
                try:
                    rows[place] = future.result()
                except Exception as error:
                    variant = catalogue()[place]
                    error.add_note(f"in {variant.name}, n={variant.n}, {dtype(variant)}")
                    raise
                progress.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sorted((rows[place] for place in chosen), key=lambda row: row.n)


def table(rows: Sequence[Row], target_name: str) -> Table:
    caption = (
        "A static count of compiled code: nothing was run. An element's instructions, ALU "
        "instructions and shuffles, on the general path (two-level: where a row has at most two "
        "values); barriers of a program; of copy: the most that they allow of an H200's copy of "
        "the same bytes; s: processor seconds of a cold compilation."
    )
    out = Table(title=f"Triton kernels for {target_name}", caption=caption)
    out.add_column("n", justify="right")
    out.add_column("kernel", no_wrap=True)
    out.add_column("dtype")
    numbers = ("instr.", "two-level", "ALU", "shuffles", "regs", "spilled", "KiB", "barriers")
    for column in (*numbers, "of copy", "two-level", "s"):
        out.add_column(column, justify="right")

    def shown(value: float | None, digits: int = 1) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.n != row.n:
            out.add_section()
        general, two_levels = row.general, row.two_levels
        out.add_row(
            str(row.n),
            row.kernel,
            row.dtype,
            shown(general and general.instructions),
            shown(two_levels and two_levels.instructions),
            shown(general and general.alu),
            shown(general and general.shuffles),
            str(row.registers),
            str(row.spilled_words),
            shown(row.shared_bytes / 1024),
            shown(row.barriers, 0),
            shown(row.copy_fraction, 2),
            shown(row.two_levels_copy_fraction, 2),
            shown(row.compile_seconds),
        )
    return out


def record(rows: Sequence[Row], target_name: str) -> dict[str, Any]:
    """What the JSON file holds."""

    def plain(row: Row) -> dict[str, Any]:
        named = {
            name: None if value is None else value._asdict()
            for name, value in (("general", row.general), ("two_levels", row.two_levels))
        }
        return asdict(row) | named

    return {
        "what": "static counts of compiled code; nothing was run",
        "target": target_name,
        "compiled_on": f"{os.cpu_count()} cores, {platform.machine()}, {WORKERS} at a time",
        "commit": commit_id(),
        "versions": {name: version(name) for name in ("triton", "torch")}
        | {"ptxas": triton.knobs.nvidia.ptxas.version},
        "budget_float32": Budget.of(8)._asdict(),
        "rows": [plain(row) for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"only n up to {QUICK_N}; no file")
    parser.add_argument("--json", type=Path, help="the file of figures, instead of bench/results/…")
    parser.add_argument("--target", choices=TARGETS, default=H200)
    arguments = parser.parse_args()
    target: str = arguments.target
    rows = measure_all(target, QUICK_N if arguments.quick else None)
    Console(width=160).print(table(rows, target))
    file: Path | None = arguments.json
    if file is None and not arguments.quick:
        file = RESULTS / f"gpu-static-{target}.json"
    if file is not None:
        file.write_text(json.dumps(record(rows, target), indent=1) + "\n")


if __name__ == "__main__":
    main()
