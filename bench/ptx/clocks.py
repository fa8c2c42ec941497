"""What CTAs that run at once know of each other, by which accesses of theirs are in order.

One thread releases what its CTA has done before a barrier; what one acquires, the others of its CTA
know behind the next.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Threads(Protocol):
    """The threads that run at a time: arrays with one entry for each, unless said otherwise."""

    per_cta: int
    number: Array  # in the grid, without another thread's
    cta: Array  # counted from 0 among those that run
    barriers: Array  # that a CTA has come through: (CTAs,)
    warp_barriers: Array  # of a CTA or of the warp's own, that a warp has come through: (warps,)


class Clocks:
    """Count releases, for some CTAs that begin to run and know nothing of each other yet."""

    def __init__(self, ctas: int, per_cta: int) -> None:
        self._known = np.zeros((ctas, ctas), np.int64)  # by each CTA, of each one's releases
        self._learned = np.zeros((ctas, ctas), np.int64)  # by one of its threads …
        self._learned_at = np.zeros(ctas, np.int64)  # … since so many barriers
        self._touched_at = np.full((ctas, per_cta), -1, np.int64)  # each thread, by the same count
        self._released: dict[int, Array] = {}  # address → what who acquires there learns

    def moments(self, threads: Threads) -> Array:
        """Count what each CTA knows that all have come to: (CTAs,). Accesses at different counts
        are in order."""
        return self._known_by_all(threads).min(1)

    def touched(self, threads: Threads, active: Array) -> None:
        """Note that threads have read global memory, or written to it."""
        cta = threads.cta[active]
        self._touched_at[cta, threads.number[active] % threads.per_cta] = threads.barriers[cta]

    def order(self, parts: Collection[str], address: int, threads: Threads, thread: int) -> bool:
        """Have a CTA learn, and say, what an atomic access of one thread is for → whether it
        releases what others of its CTA have touched since the last barrier."""
        cta = int(threads.cta[thread])
        if ("acquire" in parts or "acq_rel" in parts) and address in self._released:
            self._known_by_all(threads)
            np.maximum(self._learned[cta], self._released[address], out=self._learned[cta])
            self._learned_at[cta] = threads.barriers[cta]
        if "release" not in parts and "acq_rel" not in parts:
            return False
        known = self._known_by_all(threads)[cta]
        known[cta] += 1
        self._released[address] = np.maximum(known, self._released.get(address, 0))
        since = self._touched_at[cta] == threads.barriers[cta]
        since[threads.number[thread] % threads.per_cta] = False
        return bool(since.any())

    def _known_by_all(self, threads: Threads) -> Array:
        behind = threads.barriers > self._learned_at
        np.maximum(self._known, self._learned, out=self._known, where=behind[:, None])
        return self._known
