"""Tensors and shared memory as threads see them, and who touched which byte when.

A byte's last writer and reader are kept, each with the barriers that its CTA and its warp had come
through by then: two threads that touch a byte, one of them writing, without a barrier between race.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bench.ptx.program import Instruction

Array = np.ndarray[Any, np.dtype[Any]]

_NOBODY = -1
_SEVERAL = -2  # threads of more than one warp


class Threads(Protocol):
    """The threads that run at a time: arrays with one entry for each, unless said otherwise."""

    per_cta: int
    number: Array  # in the grid, without another thread's
    cta: Array  # counted from 0 among those that run
    barriers: Array  # that a CTA has come through: (CTAs,)
    warp_barriers: Array  # of a CTA or of the warp's own, that a warp has come through: (warps,)


@dataclass
class Fault:
    kind: str
    instruction: Instruction
    count: int
    example: str

    def __str__(self) -> str:
        at = self.instruction
        return (
            f"{self.kind}, {self.count} times: line {at.line} of the PTX: {at.text}\n"
            f"    at {at.where}\n    {self.example}"
        )


class PtxError(AssertionError):
    """What is wrong with a program that may still give the right result."""


@dataclass
class Faults:
    """What was found, once for an instruction and a kind."""

    found: dict[tuple[str, int], Fault] = field(default_factory=dict)

    def add(self, kind: str, at: Instruction, count: int, example: str) -> None:
        fault = self.found.setdefault((kind, at.number), Fault(kind, at, 0, example))
        fault.count += count

    @property
    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.found}

    def check(self) -> None:
        if self.found:
            raise PtxError("\n".join(map(str, self.found.values())))


class _Touched:
    """Who touched a piece of memory last, and after how many barriers of its CTA and its warp."""

    def __init__(self, pieces: int) -> None:
        def nobody(dtype: str) -> Array:
            return np.full(pieces, _NOBODY, dtype)

        self.writer, self.reader = nobody("i8"), nobody("i8")
        self.written, self.read = nobody("i4"), nobody("i4")
        self.written_in_warp, self.read_in_warp = nobody("i4"), nobody("i4")


class Tensor:
    """Global memory behind a pointer: the tensor's own, of which only elements may be touched."""

    def __init__(self, name: str, tensor: Any) -> None:
        self.name, self.base, self.piece = name, tensor.data_ptr(), tensor.element_size()
        extent = 1 + sum(
            (size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        elements = np.zeros(extent, bool)
        np.lib.stride_tricks.as_strided(elements, tuple(tensor.shape), tensor.stride())[...] = True
        self.is_element = elements
        # From a multiple of 16 on, so that words of any width are entries of an array.
        self.front = self.base % 16
        size = -(-(self.front + extent * self.piece) // 16) * 16
        pointer = (ctypes.c_uint8 * size).from_address(self.base - self.front)
        self.bytes = np.ctypeslib.as_array(pointer)
        self.touched = _Touched(-(-size // self.piece) + 1)

    @property
    def written(self) -> float:
        """The part of its elements that somebody has written."""
        first = self.front // self.piece
        writer = self.touched.writer[first : first + len(self.is_element)]
        return float((writer[self.is_element] != _NOBODY).mean())


class SharedMemory:
    """That of all CTAs that run at a time, one after the other: garbage until it is written."""

    name = "shared memory"

    def __init__(self, size: int, ctas: int, piece: int, rng: np.random.Generator) -> None:
        self.size, self.piece = size, piece
        self.stride = -(-size // 16) * 16 + 16
        self.bytes = rng.integers(0, 256, ctas * self.stride, np.uint8)
        self.touched = _Touched(ctas * self.stride // piece)


class Memory:
    """What loads and stores go to.

    Args:
        tensors: name → tensor on the CPU.
        strict: lanes of one warp race too where no barrier is between them.
        faults: takes what is found.
    """

    def __init__(self, tensors: Mapping[str, Any], *, strict: bool, faults: Faults) -> None:
        distinct: dict[int, Tensor] = {}
        for name, tensor in tensors.items():
            if not tensor.numel():
                continue
            new = Tensor(name, tensor)
            old = distinct.get(new.base)
            if old is None or len(old.is_element) * old.piece < len(new.is_element) * new.piece:
                distinct[new.base] = new
        self.tensors = sorted(distinct.values(), key=lambda tensor: tensor.base)
        self._bases = np.array([tensor.base - tensor.front for tensor in self.tensors], np.int64)
        self.shared = SharedMemory(0, 1, 4, np.random.default_rng(0))
        self.strict, self.faults = strict, faults

    def load(
        self, space: str, address: Array, size: int, count: int, threads: Threads, active: Array,
        at: Instruction,
    ) -> list[Array]:  # fmt: skip
        """`count` neighbouring words of `size` bytes for every active thread; 0 where it fails."""
        out = [np.zeros(len(active), f"u{size}") for _ in range(count)]
        total = size * count
        for chosen, memory, byte in self._reached(space, address, total, threads, active, at):
            self._read(memory, byte, total, threads, active[chosen], at)
            words = memory.bytes.view(f"u{size}")
            for word in range(count):
                out[word][chosen] = words[byte // size + word]
        return out

    def store(
        self, space: str, address: Array, size: int, values: Sequence[Array], threads: Threads,
        active: Array, at: Instruction,
    ) -> None:  # fmt: skip
        total = size * len(values)
        for chosen, memory, byte in self._reached(space, address, total, threads, active, at):
            words = memory.bytes.view(f"u{size}")
            mine = [value[chosen] for value in values]

            def all_there(words: Array = words, byte: Array = byte, mine: Any = mine) -> Array:
                same = [words[byte // size + i] == value for i, value in enumerate(mine)]
                return np.logical_and.reduce(same)

            self._write(memory, byte, total, all_there(), threads, active[chosen], at)
            for word, value in enumerate(mine):
                words[byte // size + word] = value
            lost = ~all_there()
            if lost.any():
                self._add("race", at, byte[lost], threads, active[chosen][lost], "lanes at once")

    def _reached(
        self, space: str, address: Array, total: int, threads: Threads, active: Array,
        at: Instruction,
    ) -> Iterator[tuple[Array, Any, Array]]:  # fmt: skip
        """(which of the active threads, the memory that they reach, its bytes), without those that
        reach nothing."""
        aligned = address % total == 0
        if not aligned.all():
            bad = ~aligned
            self._add("misaligned", at, address[bad], threads, active[bad], f"{total} bytes")
        if space == "shared":
            inside = (address >= 0) & (address + total <= self.shared.size)
            self._outside(at, address, aligned & ~inside, threads, active, "shared memory")
            chosen = np.flatnonzero(aligned & inside)
            start = threads.cta[active[chosen]] * self.shared.stride
            yield chosen, self.shared, start + address[chosen]
            return
        which = np.maximum(np.searchsorted(self._bases, address, "right") - 1, 0)
        for number in np.unique(which):
            tensor = self.tensors[number]
            own = aligned & (which == number)
            element, rest = np.divmod(address - tensor.base, tensor.piece)
            last = len(tensor.is_element) - 1
            inside = (element >= 0) & (rest + total <= tensor.piece * (last + 1 - element))
            for further in range(-(-total // tensor.piece)):
                inside &= tensor.is_element[np.clip(element + further, 0, last)]
            self._outside(at, address - tensor.base, own & ~inside, threads, active, tensor.name)
            chosen = np.flatnonzero(own & inside)
            yield chosen, tensor, address[chosen] - tensor.base + tensor.front

    def _outside(
        self, at: Instruction, byte: Array, bad: Array, threads: Threads, active: Array, name: str
    ) -> None:
        if bad.any():
            self._add("out of bounds", at, byte[bad], threads, active[bad], f"of {name}")

    def _add(
        self, kind: str, at: Instruction, byte: Array, threads: Threads, active: Array, what: str
    ) -> None:
        cta, thread = divmod(int(threads.number[active[0]]), threads.per_cta)
        example = f"thread {thread} of CTA {cta}, byte {int(byte[0])}: {what}"
        self.faults.add(kind, at, len(active), example)

    # ---- Who touched what ----------------------------------------------------------------------

    def _read(
        self, memory: Any, byte: Array, total: int, threads: Threads, active: Array, at: Instruction
    ) -> None:
        me, touched = threads.number[active], memory.touched
        now, now_in_warp = self._now(threads, active)
        for piece in _pieces(byte, total, memory.piece):
            writer = touched.writer[piece]
            if memory is self.shared and (writer == _NOBODY).any():
                bad = writer == _NOBODY
                self._add("uninitialised", at, byte[bad], threads, active[bad], "never written")
            meanwhile = touched.written[piece] == now
            self._race(writer, meanwhile, me, byte, threads, active, at, "written")
            meanwhile &= touched.written_in_warp[piece] == now_in_warp
            self._race_in_warp(writer, meanwhile, me, byte, threads, active, at)
            others = (touched.read[piece] == now) & (touched.reader[piece] >> 5 != me >> 5)
            touched.reader[piece] = np.where(others, _SEVERAL, me)
            touched.read[piece], touched.read_in_warp[piece] = now, now_in_warp
            # Where several warps read it at once, one of them stands there now.
            back = touched.reader[piece]
            lost = (back >> 5 != me >> 5) & (back != _SEVERAL)
            touched.reader[piece[lost]] = _SEVERAL

    def _write(
        self, memory: Any, byte: Array, total: int, there: Array, threads: Threads, active: Array,
        at: Instruction,
    ) -> None:  # fmt: skip
        """`there`: memory holds already what is written, so that order makes no difference."""
        me, touched = threads.number[active], memory.touched
        now, now_in_warp = self._now(threads, active)
        for piece in _pieces(byte, total, memory.piece):
            writer, reader = touched.writer[piece], touched.reader[piece]
            meanwhile = touched.written[piece] == now
            self._race(writer, meanwhile, me, byte, threads, active, at, "written", ~there)
            meanwhile = touched.read[piece] == now
            self._race(reader, meanwhile, me, byte, threads, active, at, "read", ~there)
            meanwhile = meanwhile & (touched.read_in_warp[piece] == now_in_warp) & ~there
            self._race_in_warp(reader, meanwhile, me, byte, threads, active, at)
            touched.writer[piece], touched.written[piece] = me, now
            touched.written_in_warp[piece] = now_in_warp

    @staticmethod
    def _now(threads: Threads, active: Array) -> tuple[Array, Array]:
        return threads.barriers[threads.cta[active]], threads.warp_barriers[active >> 5]

    @staticmethod
    def _apart(other: Array, meanwhile: Array, me: Array, threads: Threads) -> Array:
        """Whether another warp touched it with no barrier between, or another CTA at any time."""
        another = (other >> 5 != me >> 5) & (other != _NOBODY)
        elsewhere = (other // threads.per_cta != me // threads.per_cta) & (other >= 0)
        return another & (meanwhile | elsewhere)

    def _race(
        self, other: Array, meanwhile: Array, me: Array, byte: Array, threads: Threads,
        active: Array, at: Instruction, what: str, counts: Array | bool = True,
    ) -> None:  # fmt: skip
        bad = self._apart(other, meanwhile, me, threads) & counts
        if bad.any():
            first = int(other[bad][0])
            who = "several warps" if first == _SEVERAL else f"thread {first % threads.per_cta}"
            self._add("race", at, byte[bad], threads, active[bad], f"{what} by {who}")

    def _race_in_warp(
        self, other: Array, meanwhile: Array, me: Array, byte: Array, threads: Threads,
        active: Array, at: Instruction,
    ) -> None:  # fmt: skip
        bad = (other >> 5 == me >> 5) & (other != me) & meanwhile
        if self.strict and bad.any():
            self._add("race in a warp", at, byte[bad], threads, active[bad], "another lane's")


def _pieces(byte: Array, total: int, piece: int) -> Iterator[Array]:
    """The pieces of memory that an access of `total` bytes touches, one after the other."""
    for further in range(0, total, piece):
        yield (byte + further) // piece
