"""A grid of CTAs on one program, thousands of threads at a time.

Threads lie as (warp of the CTA, CTA, lane), so that one warp of all CTAs is a slice. Every thread
has a program counter, which is a basic block. Of the threads that may run, those in the lowest
block run next, so lanes that went apart meet again where the code joins. Which may run:

    "lockstep"  all of them
    "random"    those of one warp, drawn anew after every block; the same warp in all CTAs, or in
                some of them, where CTAs wait for each other

What is found, each with the line of the Triton source that it comes from:

    out of bounds    an access outside of the elements of any tensor, or of shared memory
    misaligned       an address that the width of the access does not divide
    uninitialised    shared memory is read that no thread has written
    race             two warps touch a byte, one of them writing, with no bar.sync between; in
                     global memory also two CTAs, until one has acquired what the other released;
                     atomic accesses race with others alone
    race in a warp   two lanes of a warp do, with no bar.sync or bar.warp.sync between (`strict`)
    endless          a CTA takes more steps than any kernel of ours
    partial warp     bar.sync, shfl.sync and the like where some lanes of the warp are elsewhere
    missing lane     shfl.sync or redux.sync of a lane that its mask leaves out
    deadlock         a barrier that not all threads of a CTA reach
    partly written   a tensor of which some elements have been written, and others not, but for what
                     a kernel fills with others (PARTLY_WRITTEN)

Registers and shared memory hold garbage in the beginning, another for every seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.ptx.counts import Counts
from bench.ptx.instructions import kind
from bench.ptx.memory import Array, Faults, Memory, Pointer, tagged
from bench.ptx.program import VIEWS, Block, Program

# Few enough for the processor's cache, enough that NumPy's own overhead does not count.
_THREADS_AT_A_TIME = 2048
# More steps of a CTA go nowhere.
_MOST_STEPS = 1_000_000
# Arguments of kernels that write what others do not.
PARTLY_WRITTEN = ("scratch_ptr", "results_ptr")
_LETTERS = {"U": "uint", "S": "int", "F": "float"}


class Launch:
    """Run a grid. What is left of it: `faults`, `counts`, and the tensors, written to.

    Args:
        program: of the kernel.
        grid: CTAs.
        arguments: a number, or a tensor on the CPU, for each of the program's parameters; what
          Triton adds behind those of the kernel is 0. Nothing but these tensors may be touched.
        shared_bytes: of a CTA, that the launch asks for, beside the program's own variables.
        order: "lockstep" or "random".
        seed: of the order, and of what nobody has written.
        strict: lanes of one warp race too.
        counting: wavefronts and sectors too, which takes a third of the time.
        first_cta: the number of the first: `grid` of them run.
        cooperative: all CTAs run at once, and may wait for each other.
    """

    def __init__(
        self,
        program: Program,
        grid: int,
        arguments: Sequence[int | float | Pointer],
        shared_bytes: int,
        *,
        order: str = "lockstep",
        seed: int = 0,
        strict: bool = True,
        counting: bool = True,
        first_cta: int = 0,
        cooperative: bool = False,
    ) -> None:
        if order not in ("lockstep", "random"):
            raise ValueError(f"order must be 'lockstep' or 'random'; got {order!r}")
        self.program, self.grid, self.order = program, grid, order
        self.shared_bytes = program.variables["global_smem"] + shared_bytes
        self.counting, self.cooperative = counting, cooperative
        self.rng = np.random.default_rng(seed)
        self.faults = Faults()
        pointers: list[Pointer] = []
        numbers: list[int | float] = []
        for argument in arguments:
            if isinstance(argument, Pointer):
                pointers.append(argument)
                numbers.append(tagged(len(pointers), argument.address))
            else:
                numbers.append(argument)
        self.memory = Memory(pointers, strict=strict, faults=self.faults)
        self.counts = Counts(program)
        self.per_cta = program.threads
        self.parameters = program.given(numbers)
        sizes = [
            kind(it.parts[-1]).bits // 8
            for it in program.instructions
            if it.space == "shared" and it.parts[0] in ("ld", "st")
        ]
        self._shared_piece = min([4, *sizes])
        at_a_time = grid if cooperative else max(1, _THREADS_AT_A_TIME // program.threads)
        with np.errstate(all="ignore"):
            for start in range(first_cta, first_cta + grid, at_a_time):
                self._run(np.arange(start, min(start + at_a_time, first_cta + grid)))
        for tensor in self.memory.tensors:
            if tensor.name in PARTLY_WRITTEN:
                continue
            if tensor.was_written.any() and tensor.written < 1:
                last = program.instructions[-1]
                self.faults.add("partly written", last, 1, f"{tensor.name}: {tensor.written:.2%}")

    # ---- The order of things -------------------------------------------------------------------

    def _run(self, ctas: Array) -> None:
        """All that these CTAs do."""
        program, count = self.program, len(ctas)
        threads = program.threads * count
        self.lanes = np.arange(threads)
        self.cta = self.lanes // 32 % count
        warp = self.lanes // (32 * count)
        in_cta = warp * 32 + self.lanes % 32
        self.number = ctas[self.cta] * program.threads + in_cta
        self.barriers = np.zeros(count, np.int32)
        self.warp_barriers = np.zeros(threads // 32, np.int32)
        self.special = _special_registers(in_cta, ctas[self.cta], program.threads, self.grid)
        self.views = self._registers(threads)
        self._favour = np.zeros(count, bool)
        self.memory.begin(count, program.threads)
        self.memory.share(self.shared_bytes, count, self._shared_piece, self.rng)

        counter = np.zeros(threads, np.int32)
        waiting, ended = np.zeros(threads, bool), np.zeros(threads, bool)
        steps = itertools.count()
        while not ended.all():
            if next(steps) > _MOST_STEPS:
                self.faults.add("endless", program.instructions[-1], 1, f"{_MOST_STEPS} steps")
                return
            able = ~(waiting | ended)
            # Where CTAs wait for each other, one that is whole at a barrier waits for no other.
            early = self.cooperative and waiting.reshape(-1, count, 32).all((0, 2)).any()
            if early or not able.any():
                self._release(waiting, ended)
                continue
            if self.order == "random":
                able &= warp == self.rng.choice(np.unique(warp[able]))
                if self.cooperative:
                    able &= self._favoured(able)[self.cta]
            number = counter[able].min()
            able &= counter == number
            self._step(program.blocks[number], _chosen(able), counter, waiting, ended)

    def _favoured(self, able: Array) -> Array:
        """Draw the CTAs that run on while others stand still, for some 20 steps: (CTAs,) bool."""
        if self.rng.random() < 0.05 or not self._favour[self.cta[able]].any():
            self._favour = self.rng.random(len(self.barriers)) < 0.5
            self._favour[self.rng.choice(self.cta[able])] = True
        return self._favour

    def _step(self, block: Block, lanes: Any, counter: Array, waiting: Array, ended: Array) -> None:
        """One block, for the threads `lanes`; then on to where each of them goes."""
        warps = len(np.unique(self.lanes[lanes] >> 5))
        self.counts.warps_in_block[block.number] += warps
        try:
            block.run(self, lanes)
        except Exception as error:
            error.add_note(f"in block {block.number} of {self.program.name}")
            raise
        after, end = block.number + 1, block.end
        counter[lanes] = after
        if end is None:
            return
        taken: Array = np.ones(len(self.lanes[lanes]), bool)
        if end.guard:
            taken = self.views[VIEWS.index("P1")][self.program.registers[end.guard][1], lanes]
            taken = taken ^ end.negated
        if end.parts[0] == "bra":
            if end.guard:
                self.counts.add_branch(self.lanes[lanes], taken, warps)
            counter[lanes] = np.where(taken, block.target, after)
            return
        lanes = self.those_of(lanes, taken)
        if lanes is None:
            return
        if end.opcode == "bar.sync":
            self._whole_warps(lanes, end.number, ended)
            waiting[lanes] = True
        else:
            ended[lanes] = True

    def _release(self, waiting: Array, ended: Array) -> None:
        """All CTAs whose threads have all come to the barrier go on."""
        count = len(self.barriers)
        missing = np.bincount(self.cta[~waiting], minlength=count)
        free = missing == 0
        if not free.any():
            last = self.program.instructions[-1]
            self.faults.add("deadlock", last, 1, "some threads wait, and the others have ended")
            ended[:] = True
            return
        self.barriers[free] += 1
        self.warp_barriers[free[self.cta[::32]]] += 1
        self.counts.barriers += int(free.sum())
        waiting[free[self.cta]] = False

    def those_of(self, lanes: Any, on: Array) -> Any:
        """Those of the threads whose guard is on; None if there are none."""
        if on.all():
            return lanes
        return self.lanes[lanes][on] if on.any() else None

    # ---- Registers -----------------------------------------------------------------------------

    def _registers(self, threads: int) -> list[Array]:
        """An array (registers, threads) for each of VIEWS."""
        banks: dict[int, Array] = {}
        for bits in (16, 32, 64):
            shape = (self.program.rows[str(bits)], threads)
            banks[bits] = self.rng.integers(0, 1 << bits, shape, f"u{bits // 8}")
        predicates = self.rng.integers(0, 2, (self.program.rows["1"], threads)).astype(bool)
        return [
            predicates if view == "P1" else banks[int(view[1:])].view(_LETTERS[view[0]] + view[1:])
            for view in VIEWS
        ]

    # ---- Memory --------------------------------------------------------------------------------

    def load(
        self, space: str, address: Array, size: int, count: int, number: int, lanes: Any
    ) -> list[Array]:
        active = self.lanes[lanes]
        address = np.broadcast_to(address, active.shape)
        if self.counting:
            self._count(space, address, active, size * count, number)
        at = self.program.instructions[number]
        return self.memory.load(space, address, size, count, self, active, at)

    def store(
        self,
        space: str,
        address: Array,
        size: int,
        values: Sequence[Array],
        number: int,
        lanes: Any,
    ) -> None:
        active = self.lanes[lanes]
        address = np.broadcast_to(address, active.shape)
        values = [np.broadcast_to(value, active.shape) for value in values]
        if self.counting:
            self._count(space, address, active, size * len(values), number)
        at = self.program.instructions[number]
        self.memory.store(space, address, size, values, self, active, at)

    def atomic(
        self, what: str, address: Array, size: int, values: Sequence[Array], number: int, lanes: Any
    ) -> Array:
        """atom.global: what was there, for every active thread, which all have a turn."""
        active = self.lanes[lanes]
        address = np.broadcast_to(address, active.shape)
        values = [np.broadcast_to(value, active.shape) for value in values]
        if self.counting:
            self._count("global", address, active, size, number)
        at = self.program.instructions[number]
        return self.memory.atomic(what, address, size, values, self, active, at)

    def _count(self, space: str, address: Array, active: Array, total: int, number: int) -> None:
        if space == "global":
            address = self.memory.aligned(address)
        self.counts.add_access(space, address, active, total, number)

    # Matrices of 8 rows of 16 bytes: lanes 8m … 8m+7 of a warp give the addresses of matrix m's
    # rows, lane i has the elements 2(i%4) and 2(i%4)+1 of row i//4 of each. Turned, rows are
    # columns.

    def load_matrices(
        self, address: Array, count: int, turned: bool, number: int, lanes: Any
    ) -> list[Array]:
        self._whole_warps(lanes, number)
        active = self.lanes[lanes]
        givers = active & 31 < 8 * count
        address = np.broadcast_to(address, active.shape)[givers]
        rows = np.stack(self.load("shared", address, 4, 4, number, active[givers]), 1)
        words = rows.reshape(-1, count, 8, 4)  # warp, matrix, row, word
        if turned:
            words = _transposed(words)
        return list(words.reshape(-1, count, 32).swapaxes(0, 1).reshape(count, -1))

    def store_matrices(
        self, address: Array, values: Sequence[Array], turned: bool, number: int, lanes: Any
    ) -> None:
        self._whole_warps(lanes, number)
        active, count = self.lanes[lanes], len(values)
        words = np.stack([np.broadcast_to(value, active.shape) for value in values])
        words = words.reshape(count, -1, 8, 4).swapaxes(0, 1)  # warp, matrix, row, word
        if turned:
            words = _transposed(words)
        givers = active & 31 < 8 * count
        address = np.broadcast_to(address, active.shape)[givers]
        columns = list(words.reshape(-1, 4).T)
        self.store("shared", address, 4, columns, number, active[givers])

    # ---- What lanes do together ----------------------------------------------------------------

    def warp_barrier(self, lanes: Any, number: int) -> None:
        self._whole_warps(lanes, number)
        self.warp_barriers[np.unique(self.lanes[lanes] >> 5)] += 1

    def shuffle(
        self, how: str, value: Array, other: Array, clamp: Array, mask: Array, number: int,
        lanes: Any,
    ) -> tuple[Array, Array]:  # fmt: skip
        """shfl.sync: another lane's value, and whether there is such a lane in the segment."""
        self._whole_warps(lanes, number)
        self._in_mask(mask, number, lanes)
        active = self.lanes[lanes]
        every = np.zeros(len(self.lanes), np.uint32)
        every[lanes] = value
        me, other = active & 31, np.asarray(other).astype(np.int64) & 31
        clamp = np.asarray(clamp).astype(np.int64)
        segment, clamp = (clamp >> 8) & 31, clamp & 31
        end = (me & segment) | (clamp & ~segment)
        source = {
            "up": me - other,
            "down": me + other,
            "bfly": me ^ other,
            "idx": (me & segment) | (other & ~segment),
        }[how]
        inside = source >= end if how == "up" else source <= end
        return every[(active & ~31) + np.where(inside, source, me)], inside

    def reduce(self, how: str, value: Array, mask: Array, number: int, lanes: Any) -> Array:
        """redux.sync: all lanes' values joined, for each of them."""
        self._whole_warps(lanes, number)
        self._in_mask(mask, number, lanes)
        joins: dict[str, Any] = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }
        # What lanes that are elsewhere would add is as undefined as the result.
        every = np.zeros(len(self.lanes), np.asarray(value).dtype)
        every[lanes] = value
        joined = joins[how].reduce(every.reshape(-1, 32), 1, dtype=every.dtype)
        return joined[self.lanes[lanes] >> 5]

    def _whole_warps(self, lanes: Any, number: int, ended: Array | None = None) -> None:
        """Find fault where only some lanes of a warp are here; those that have ended may miss."""
        active = self.lanes[lanes]
        if len(active) == len(self.lanes):
            return
        there = np.zeros(len(self.lanes), bool)
        there[active] = True
        if ended is not None:
            there |= ended
        warps = there.reshape(-1, 32)[np.unique(active >> 5)]
        partial = int((~warps.all(1)).sum())
        if partial:
            at = self.program.instructions[number]
            self.faults.add("partial warp", at, partial, "some lanes are elsewhere")

    def _in_mask(self, mask: Array, number: int, lanes: Any) -> None:
        active = self.lanes[lanes]
        inside = (np.asarray(mask).astype(np.int64) >> (active & 31)) & 1
        if not inside.all():
            at = self.program.instructions[number]
            self.faults.add("missing lane", at, int((inside == 0).sum()), "is not in the mask")


def _special_registers(in_cta: Array, cta: Array, per_cta: int, grid: int) -> dict[str, Array]:
    out = {"laneid": (in_cta % 32).astype(np.uint32)}
    along_x = {"tid": in_cta, "ctaid": cta, "ntid": per_cta, "nctaid": grid}
    for name, value in along_x.items():
        out[f"{name}.x"] = np.broadcast_to(np.asarray(value).astype(np.uint32), in_cta.shape)
        for axis in "yz":
            out[f"{name}.{axis}"] = np.full(in_cta.shape, name.startswith("n"), np.uint32)
    return out


def _chosen(able: Array) -> slice | Array:
    """As a slice where threads are neighbours: registers are then not copied."""
    lanes = np.flatnonzero(able)
    if lanes[-1] - lanes[0] + 1 == len(lanes):
        return slice(int(lanes[0]), int(lanes[-1]) + 1)
    return lanes


def _transposed(words: Array) -> Array:
    """(…, 8, 4) words, matrices of 8 by 8 halves, with rows for columns."""
    halves = np.ascontiguousarray(words, np.uint32).view(np.uint16)
    return np.ascontiguousarray(halves.swapaxes(-1, -2)).view(np.uint32)
