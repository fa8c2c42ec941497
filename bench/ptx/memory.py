"""Tensors and shared memory as threads see them, and who touched which byte when.

Of every piece of memory is kept which threads, from the lowest to the highest number, have read and
written it: ever; since its CTA's last barrier; and since its warp's last. Where such a range holds
another CTA, warp or lane than the one that comes now, and one of them writes, they race. Of atomic
accesses the same is kept: they race with all others, and not among themselves.

A pointer carries the number of the argument that it was passed as in its upper bits, which no
address uses: an access belongs to that tensor, whichever other lies where it reaches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bench.ptx.clocks import Clocks, Threads
from bench.ptx.program import Instruction

Array = np.ndarray[Any, np.dtype[Any]]

_NOBODY = -1
_TAG = 48  # bits of an address
_MOST_BARRIERS = 32  # bits of their count


class Pointer(NamedTuple):
    """A tensor on the CPU as a kernel's argument."""

    name: str
    tensor: Any
    address: int  # its own, but for who wants to see addresses far away


def tagged(number: int, address: int) -> int:
    """What is passed for the tensor argument of that number, counted from 1."""
    return (number << _TAG) + address


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


class _Range:
    """The lowest and the highest thread that touched each piece of memory since some moment, which
    is a number."""

    def __init__(self, pieces: int) -> None:
        self.low = np.full(pieces, _NOBODY, np.int64)
        self.high = np.full(pieces, _NOBODY, np.int64)
        self.since = np.full(pieces, _NOBODY, np.int64)

    def holds_another(self, piece: Array, me: Array, together: int, moment: Array) -> Array:
        """Whether another did than me: of another lot of so many threads."""
        low, high = self.low[piece] // together, self.high[piece] // together
        return (self.since[piece] == moment) & ((low != me // together) | (high != me // together))

    def add(self, piece: Array, me: Array, moment: Array) -> None:
        new = self.since[piece] != moment
        self.low[piece[new]], self.high[piece[new]] = np.iinfo(np.int64).max, _NOBODY
        self.since[piece] = moment
        np.minimum.at(self.low, piece, me)
        np.maximum.at(self.high, piece, me)


_SINCE_BARRIER, _SINCE_ALL, _SINCE_WARP_BARRIER = range(3)


class _Moment(NamedTuple):
    """Since when one of a piece's ranges counts for some threads, and how many of these are one."""

    which: int
    moment: Array
    together: int


class _Bytes:
    """A stretch of memory, from a multiple of 16 on, so that words of any width are entries of an
    array; and who touched it, in pieces of so many bytes."""

    def __init__(self, memory: Array, piece: int) -> None:
        self.memory, self.piece = memory, piece
        pieces = -(-len(memory) // piece) + 16 // piece
        self.written = np.zeros(pieces, bool)
        self.writers, self.readers, self.atomics = (
            [_Range(pieces) for _ in range(3)] for _ in range(3)
        )


class Tensor:
    """A tensor argument: of all that lies behind a pointer only its elements may be touched."""

    def __init__(self, pointer: Pointer) -> None:
        self.name, tensor = pointer.name, pointer.tensor
        self.base, self.itemsize = tensor.data_ptr(), tensor.element_size()
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((size - 1) * step for size, step in steps) if tensor.numel() else 0
        self.is_element = np.zeros(extent, bool)
        strided = np.lib.stride_tricks.as_strided
        strided(self.is_element, tuple(tensor.shape), tuple(tensor.stride()))[...] = True
        self.was_written = np.zeros(extent, bool)
        self.first = self.base // 16 * 16
        self.end = -(-(self.base + extent * self.itemsize) // 16) * 16
        self.bytes: _Bytes  # that of all tensors that overlap
        self.offset: int  # of its base there

    @property
    def written(self) -> float:
        """The part of its elements that somebody has written."""
        return float(self.was_written[self.is_element].mean())


def _lay_out(tensors: Sequence[Tensor]) -> None:
    """Give tensors that overlap the same memory."""
    together: list[Tensor] = []
    for tensor in [*sorted(tensors, key=lambda tensor: tensor.first), None]:
        if together and (tensor is None or tensor.first >= max(one.end for one in together)):
            first, end = together[0].first, max(one.end for one in together)
            memory = (ctypes.c_uint8 * (end - first)).from_address(first)
            shared = _Bytes(np.ctypeslib.as_array(memory), min(one.itemsize for one in together))
            for one in together:
                one.bytes, one.offset = shared, one.base - first
            together = []
        if tensor is not None:
            together.append(tensor)


class Memory:
    """What loads and stores go to.

    Args:
        pointers: the arguments that are tensors.
        strict: lanes of one warp race too where no barrier is between them.
        faults: takes what is found.
    """

    def __init__(self, pointers: Sequence[Pointer], *, strict: bool, faults: Faults) -> None:
        self._begins = np.array([0, *(pointer.address for pointer in pointers)], np.int64)
        self.tensors = [Tensor(pointer) for pointer in pointers]
        _lay_out([tensor for tensor in self.tensors if len(tensor.is_element)])
        self.strict, self.faults = strict, faults
        self.begin(1, 1)

    def begin(self, ctas: int, per_cta: int) -> None:
        """Begin to run some CTAs, which know nothing of each other."""
        self._clocks = Clocks(ctas, per_cta)

    def aligned(self, address: Array) -> Array:
        """Give addresses of global memory as if every tensor began where a GPU's allocations do."""
        number = address >> _TAG
        known = (number > 0) & (number < len(self._begins))
        return np.where(known, address - self._begins[np.where(known, number, 0)], address)

    def share(self, size: int, ctas: int, piece: int, rng: np.random.Generator) -> None:
        """Shared memory for CTAs, one after the other: garbage until it is written."""
        self._shared_size, self._stride = size, -(-size // 16) * 16 + 16
        self._shared = _Bytes(rng.integers(0, 256, ctas * self._stride, np.uint8), piece)

    def load(
        self, space: str, address: Array, size: int, count: int, threads: Threads, active: Array,
        at: Instruction,
    ) -> list[Array]:  # fmt: skip
        """`count` neighbouring words of `size` bytes for every active thread; 0 where it fails."""
        out = [np.zeros(len(active), f"u{size}") for _ in range(count)]
        total = size * count
        for chosen, where, byte in self._reached(space, address, total, threads, active, at):
            self._read(where, byte, total, threads, active[chosen], at)
            words = where.memory.view(f"u{size}")
            for word in range(count):
                out[word][chosen] = words[byte // size + word]
        return out

    def store(
        self, space: str, address: Array, size: int, values: Sequence[Array], threads: Threads,
        active: Array, at: Instruction,
    ) -> None:  # fmt: skip
        total = size * len(values)
        reached = self._reached(space, address, total, threads, active, at, writes=True)
        for chosen, where, byte in reached:
            words = where.memory.view(f"u{size}")
            mine = [value[chosen] for value in values]

            def all_there(words: Array = words, byte: Array = byte, mine: Any = mine) -> Array:
                same = [words[byte // size + i] == value for i, value in enumerate(mine)]
                return np.logical_and.reduce(same)

            self._write(where, byte, total, all_there(), threads, active[chosen], at)
            for word, value in enumerate(mine):
                words[byte // size + word] = value
            lost = ~all_there()
            if lost.any():
                self._add("race", at, byte[lost], threads, active[chosen][lost], "lanes at once")

    def atomic(
        self, what: str, address: Array, size: int, values: Sequence[Array], threads: Threads,
        active: Array, at: Instruction,
    ) -> Array:  # fmt: skip
        """Exchange, add to, or compare and swap a word for every active thread, in their order →
        what was there; 0 where it fails."""
        out = np.zeros(len(active), f"u{size}")
        reached = self._reached("global", address, size, threads, active, at, writes=True)
        for chosen, where, byte in reached:
            piece, every_byte, every = _pieces(where, byte, size, active[chosen])
            moments = self._moments(where, threads, every)
            for ranges, done in ((where.writers, "written"), (where.readers, "read")):
                self._race(ranges, moments, piece, every_byte, threads, every, at, done)
            self._record(where.atomics, moments, piece, threads, every)
            words = where.memory.view(f"u{size}")
            *compared, new = (value[chosen] for value in values)
            for turn, (thread, word) in enumerate(zip(chosen, byte // size, strict=True)):
                old = out[thread] = words[word]
                if self._clocks.order(at.parts, int(address[thread]), threads, active[thread]):
                    early = "released before others of its CTA, which touch memory, are here"
                    me = np.array([thread])
                    self._add("race", at, address[me], threads, active[me], early)
                if what == "add":
                    words[word] = old + new[turn]
                elif what == "exch" or old == compared[0][turn]:
                    words[word] = new[turn]
        self._clocks.touched(threads, active)
        return out

    def _reached(
        self, space: str, address: Array, total: int, threads: Threads, active: Array,
        at: Instruction, *, writes: bool = False,
    ) -> Iterator[tuple[Array, _Bytes, Array]]:  # fmt: skip
        """(which of the active threads, the memory that they reach, its bytes), without those that
        reach nothing."""
        aligned = address % total == 0
        if not aligned.all():
            bad = ~aligned
            self._add("misaligned", at, address[bad], threads, active[bad], f"{total} bytes")
        if space == "shared":
            inside = (address >= 0) & (address + total <= self._shared_size)
            self._outside(at, address, aligned & ~inside, threads, active, "shared memory")
            chosen = np.flatnonzero(aligned & inside)
            start = threads.cta[active[chosen]] * self._stride
            yield chosen, self._shared, start + address[chosen]
            return
        which, address = (address >> _TAG) - 1, address & ((1 << _TAG) - 1)
        for number in np.unique(which):
            own = aligned & (which == number)
            tensor = self.tensors[number] if 0 <= number < len(self.tensors) else None
            if tensor is None or not len(tensor.is_element):
                name = "no tensor" if tensor is None else tensor.name
                self._outside(at, address, own, threads, active, name)
                continue
            element, rest = np.divmod(address - tensor.base, tensor.itemsize)
            last = len(tensor.is_element) - 1
            inside = (element >= 0) & (rest + total <= tensor.itemsize * (last + 1 - element))
            reached = [
                np.clip(element + further, 0, last)
                for further in range(-(-total // tensor.itemsize))
            ]
            for one in reached:
                inside &= tensor.is_element[one]
            self._outside(at, address - tensor.base, own & ~inside, threads, active, tensor.name)
            chosen = np.flatnonzero(own & inside)
            if writes:
                for one in reached:
                    tensor.was_written[one[chosen]] = True
            yield chosen, tensor.bytes, address[chosen] - tensor.base + tensor.offset

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
        self, where: _Bytes, byte: Array, total: int, threads: Threads, active: Array,
        at: Instruction,
    ) -> None:  # fmt: skip
        piece, byte, active = _pieces(where, byte, total, active)
        bad = ~where.written[piece]
        if where is self._shared and bad.any():
            self._add("uninitialised", at, byte[bad], threads, active[bad], "never written")
        if where is not self._shared:
            self._clocks.touched(threads, active)
        moments = self._moments(where, threads, active)
        self._race(where.writers, moments, piece, byte, threads, active, at, "written")
        self._race(where.atomics, moments, piece, byte, threads, active, at, "changed")
        self._record(where.readers, moments, piece, threads, active)

    def _write(
        self, where: _Bytes, byte: Array, total: int, there: Array, threads: Threads,
        active: Array, at: Instruction,
    ) -> None:  # fmt: skip
        """`there`: memory holds already what is written, so that order makes no difference."""
        piece, byte, active = _pieces(where, byte, total, active)
        if where is not self._shared:
            self._clocks.touched(threads, active)
        differs = ~np.tile(there, len(piece) // len(there)) if len(there) else ~there
        moments = self._moments(where, threads, active)
        if differs.any():
            self._race(where.writers, moments, piece, byte, threads, active, at, "written", differs)
            self._race(where.readers, moments, piece, byte, threads, active, at, "read", differs)
        self._race(where.atomics, moments, piece, byte, threads, active, at, "changed")
        self._record(where.writers, moments, piece, threads, active)
        where.written[piece] = True

    def _moments(self, where: _Bytes, threads: Threads, active: Array) -> list[_Moment]:
        """For each of a piece's ranges that is needed."""
        me = threads.number[active]
        # A count says nothing of another CTA's, or another warp's.
        barriers = threads.barriers[threads.cta[active]].astype(np.int64)
        moment = (me // threads.per_cta << _MOST_BARRIERS) + barriers
        moments = [_Moment(_SINCE_BARRIER, moment, 32)]
        if where is not self._shared:
            since = self._clocks.moments(threads)[threads.cta[active]]
            moments.append(_Moment(_SINCE_ALL, since, threads.per_cta))
        if self.strict:
            barriers = threads.warp_barriers[active >> 5].astype(np.int64)
            moment = (me >> 5 << _MOST_BARRIERS) + barriers
            moments.append(_Moment(_SINCE_WARP_BARRIER, moment, 1))
        return moments

    def _race(
        self, ranges: Sequence[_Range], moments: Sequence[_Moment], piece: Array,
        byte: Array, threads: Threads, active: Array, at: Instruction, what: str,
        counts: Array | bool = True,
    ) -> None:  # fmt: skip
        me = threads.number[active]
        for which, moment, together in moments:
            range_ = ranges[which]
            bad = range_.holds_another(piece, me, together, moment) & counts
            if bad.any():
                first = int(range_.low[piece[bad]][0])
                cta, thread = divmod(first, threads.per_cta)
                kind = "race" if together > 1 else "race in a warp"
                who = f"{what} by others, one of them thread {thread} of CTA {cta}"
                self._add(kind, at, byte[bad], threads, active[bad], who)
                counts = counts & ~bad

    @staticmethod
    def _record(
        ranges: Sequence[_Range], moments: Sequence[_Moment], piece: Array,
        threads: Threads, active: Array,
    ) -> None:  # fmt: skip
        me = threads.number[active]
        for which, moment, _ in moments:
            ranges[which].add(piece, me, moment)


def _pieces(where: _Bytes, byte: Array, total: int, active: Array) -> tuple[Array, Array, Array]:
    """The pieces of memory that accesses of `total` bytes touch, all first ones before all second
    ones, and for each the access's byte and thread."""
    offsets = np.arange(0, total, where.piece)
    piece = (byte + offsets[:, None]) // where.piece
    return piece.ravel(), np.tile(byte, len(offsets)), np.tile(active, len(offsets))
