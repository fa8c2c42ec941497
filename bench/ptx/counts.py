"""What a launch executes and moves, counted instruction by instruction.

An access of a warp is as many wavefronts as the worst bank of shared memory has different words to
give, a phase of 128 bytes at a time; the least it could be is one a phase. In global memory it is
as many sectors of 32 bytes as it touches, and in each phase a wavefront for every line of 128 bytes
(on an H100 ncu counted 0.4 an element more, for whatever it was).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bench.ptx.program import Program

Array = np.ndarray[Any, np.dtype[Any]]

_BANKS = 32
_SECTOR = 32
_LINE = 128


class PerElement(NamedTuple):
    """A launch's figures, an element; instructions and shuffles are a thread's."""

    instructions: float  # of PTX
    shuffles: float
    wavefronts: float  # of shared memory, times 32
    least_wavefronts: float  # that the same accesses take without conflicts
    global_wavefronts: float  # of global memory, times 32
    loaded: float  # bytes of sectors
    least_loaded: float  # bytes that were asked for
    stored: float
    least_stored: float
    barriers: float  # of a CTA


class Counts:
    """For every instruction or block, by its number.

    Attributes:
        warps_in_block: how many warps ran through it.
        wavefronts, least_wavefronts: of shared memory.
        global_wavefronts, sectors, bytes: of global memory.
        barriers: times that a CTA came through one.
        branches, diverged: warps at a conditional branch; those of them that went both ways.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.warps_in_block = np.zeros(len(program.blocks), np.int64)

        def none() -> Array:
            return np.zeros(len(program.instructions), np.int64)

        self.wavefronts, self.least_wavefronts = none(), none()
        self.global_wavefronts, self.sectors, self.bytes = none(), none(), none()
        self.barriers = self.branches = self.diverged = 0

    def add_branch(self, lanes: Array, taken: Array, warps: int) -> None:
        both = len(np.unique(lanes[taken] >> 5)) + len(np.unique(lanes[~taken] >> 5))
        self.branches += warps
        self.diverged += both - warps

    def add_access(self, space: str, address: Array, lanes: Array, total: int, number: int) -> None:
        """Of `total` bytes a lane."""
        warps, row = np.unique(lanes >> 5, return_inverse=True)
        table = np.full((len(warps), 32), -1, np.int64)
        table[row, lanes & 31] = address
        self.bytes[number] += total * len(lanes)
        if space == "global":
            # A lane's bytes are aligned, and 16 at most: they lie in one sector.
            self.sectors[number] += int(_distinct(np.where(table < 0, -1, table // _SECTOR)).sum())
        words = max(1, total // 4)
        for phase in np.split(table, words, axis=1):
            if space == "global":
                lines = _distinct(np.where(phase < 0, -1, phase // _LINE))
                self.global_wavefronts[number] += int(lines.sum())
                continue
            word = np.where(phase[..., None] < 0, -1, phase[..., None] // 4 + np.arange(words))
            ordered = np.sort(word.reshape(len(warps), -1), 1)
            bank = ordered % _BANKS + _BANKS * np.arange(len(warps))[:, None]
            load = np.bincount(bank[_first_of_each(ordered)], minlength=_BANKS * len(warps))
            self.wavefronts[number] += int(load.reshape(-1, _BANKS).max(1).sum())
            self.least_wavefronts[number] += int((ordered >= 0).any(1).sum())

    @property
    def executed(self) -> Array:
        """How many warps executed each instruction."""
        out = np.zeros(len(self._program.instructions), np.int64)
        for block, warps in zip(self._program.blocks, self.warps_in_block, strict=True):
            ending = [] if block.end is None else [block.end]
            out[[it.number for it in (*block.instructions, *ending)]] = warps
        return out

    def per_element(self, elements: int, ctas: int) -> PerElement:
        program, executed = self._program, self.executed

        def those(*starts: str) -> Array:
            return np.array([it.opcode.startswith(starts) for it in program.instructions])

        loads, stores = those("ld.global"), those("st.global")
        return PerElement(
            instructions=32 * executed.sum() / elements,
            shuffles=32 * executed[those("shfl", "redux")].sum() / elements,
            wavefronts=32 * self.wavefronts.sum() / elements,
            least_wavefronts=32 * self.least_wavefronts.sum() / elements,
            global_wavefronts=32 * self.global_wavefronts.sum() / elements,
            loaded=_SECTOR * self.sectors[loads].sum() / elements,
            least_loaded=self.bytes[loads].sum() / elements,
            stored=_SECTOR * self.sectors[stores].sum() / elements,
            least_stored=self.bytes[stores].sum() / elements,
            barriers=self.barriers / ctas,
        )


def _first_of_each(ordered: Array) -> Array:
    """Where in sorted rows a number ≥ 0 stands for the first time."""
    first = ordered >= 0
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    return first


def _distinct(rows: Array) -> Array:
    return _first_of_each(np.sort(rows, 1)).sum(1)
