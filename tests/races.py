"""A detector of races for Pallas's interpreter, for kernels that touch the same memory very often.

JAX's own compares every access with all that came before it, which takes minutes where a kernel has
a loop. But what one core does is in order, and of its accesses to one range only the latest
matters: what is not ordered with an earlier one is not ordered with it either.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any, ClassVar

from jax._src.pallas.mosaic.interpret import race_detection_state, vector_clock


class Races:
    """The accesses of one launch; `found` is of all launches."""

    found: ClassVar[list[str]] = []

    def __init__(self, num_cores: int) -> None:
        self.races_found = False
        self._lock = threading.Lock()
        # By buffer, by (device, core), by range: a clock, and the range as it was given.
        self._reads: Any = defaultdict(lambda: defaultdict(dict))
        self._writes: Any = defaultdict(lambda: defaultdict(dict))

    def check_read(self, *access: Any, source_info: Any = None) -> None:
        self._check(self._reads, (self._writes,), *access)

    def check_write(self, *access: Any, source_info: Any = None) -> None:
        self._check(self._writes, (self._reads, self._writes), *access)

    def _check(
        self, kept: Any, others: Any, device: Any, core: Any, clock: Any, buffer: Any, where: Any
    ) -> None:
        ends = tuple((i.start, i.stop, i.step) if isinstance(i, slice) else i for i in where)
        with self._lock:
            for accesses in others:
                for of_core, ranges in accesses[buffer].items():
                    if of_core == (device, core):
                        continue
                    for earlier, place in ranges.values():
                        if vector_clock.ordered(earlier, clock):
                            continue
                        if race_detection_state._ranges_overlap(where, place):
                            self.races_found = True
                            self.found.append(f"{buffer}: {where} and {place}")
            kept[buffer][device, core][ends] = (clock, where)
