"""The tables that kernels read, on a device: made once, the latest kept.

What they hold: `pkpo_triton.tables`. They are copied to the device from pinned memory, without
waiting; a stream that uses one waits on the device for the copy, not on the host.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import triton
from torch.utils._python_dispatch import _disable_current_modes

from pkpo_triton import tables
from pkpo_triton.coefficients import Estimator, both_coefficients
from pkpo_triton.plan import Plan

# A table for every k that a run anneals through would be a leak: so many are kept, the latest used.
MOST_TABLES = 256

_T = TypeVar("_T")
_Key = tuple[str, torch.device, tuple[Any, ...]]


@dataclass
class _Table:
    values: torch.Tensor
    source: torch.Tensor | None  # pinned memory must outlive the copy
    copied: torch.cuda.Event | None = None  # None once it is known to be there
    streams: set[int] = field(default_factory=set)  # that use it
    captured: bool = False


_tables: OrderedDict[_Key, _Table] = OrderedDict()  # the latest used last
_captured: list[torch.Tensor] = []  # what replays of graphs read


def factorials(largest: int, device: torch.device) -> torch.Tensor:
    """Get 0!, 1!, …, for every number up to at least `largest`: (2, size), see
    `tables.factorials`."""
    return _on_device("factorials", device, (tables.factorials_size(largest),))


def inverses(samples_per_thread: int, device: torch.device) -> torch.Tensor:
    """Get 1/(j − index_shift) for sample j of a row: see `tables.inverses`."""
    return _on_device("inverses", device, (samples_per_thread,))


def chain(chosen: Plan, unread: torch.Tensor) -> torch.Tensor:
    """Get what a running product reads for each sample; a placeholder where it reads nothing."""
    if chosen.threads_per_row == 1:
        return unread
    return inverses(chosen.samples_per_thread, unread.device)


def ratios(n: int, k: int, index_shift: int, chosen: Plan, device: torch.device) -> torch.Tensor:
    """Get r_j for sample j of a row: see `tables.ratios`. Only the latest are kept."""
    arguments = (n, k, index_shift, chosen.samples_per_thread, chosen.threads_per_row)
    return _on_device("ratios", device, arguments)


def packed(weights: tables.PackedWeights, device: torch.device) -> torch.Tensor:
    """Get what a packed kernel reads of an estimator. Only the latest are kept."""
    return _on_device(weights.table, device, weights.arguments)


def coefficients(estimator: Estimator, device: torch.device) -> torch.Tensor:
    """Get an estimator's coefficients for k ≥ 2 and for k = 1: (2, 13)."""
    above, at_k_1 = both_coefficients(estimator)
    return _on_device("coefficients", device, (tuple(above), tuple(at_k_1)))


def whole_numbers(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Get some integers: (count,) int64."""
    return _on_device("whole_numbers", device, numbers)


def _on_device(what: str, device: torch.device, arguments: tuple[Any, ...]) -> torch.Tensor:
    """Get a table, made now unless it is there."""
    key = (what, device, arguments)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    table = _tables.pop(key, None)
    if table is None:
        if capturing:
            # It is the graph's, and holds nothing before a replay, which copies from here again.
            # Made here: while a stream is being captured no other thread may ask for pinned memory.
            source = _numbers(key)
            _captured.append(source)
            return source.to(device, non_blocking=True)
        table = _in_worker_thread(_made, key)
    if capturing and not table.captured:
        table.captured = True
        _captured.append(table.values)
    elif device.type == "cuda" and not capturing:
        # A graph being captured may neither ask nor wait for what is not part of it. It need not:
        # torch.cuda.graph waits for the device before it begins.
        _follow(table)
    _tables[key] = table
    if len(_tables) > MOST_TABLES:
        _tables.popitem(last=False)
    return table.values


def _follow(table: _Table) -> None:
    """Have the current stream wait for the copy, and the memory, once freed, for the stream."""
    device = table.values.device
    if table.copied is not None:
        if table.copied.query():  # type: ignore[no-untyped-call]
            table.copied = None
        else:
            torch.cuda.current_stream(device).wait_event(table.copied)
    stream = triton.runtime.driver.active.get_current_stream(device.index)
    if stream not in table.streams:
        table.streams.add(stream)
        with _disable_current_modes():  # tables are real, whatever the tensors around them are
            table.values.record_stream(torch.cuda.current_stream(device))


def _in_worker_thread(make: Callable[[_Key], _T], key: _Key) -> _T:
    """Run make(key) in a fresh thread: it is in no mode of torch's, such as a default device
    or fake tensors, and its memory is in no graph's pool, which torch.compile sets up for a first
    run and which may hold nothing that outlives the graph's."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            made = thread.submit(make, key)
        except RuntimeError:  # the interpreter is about to end, and starts no more threads
            return make(key)
        return made.result()


def _made(key: _Key) -> _Table:
    device = key[1]
    if device.type != "cuda":
        return _Table(_numbers(key), None)
    with torch.cuda.device(device):
        source = _numbers(key)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        table = _Table(source.to(device, non_blocking=True), source, copied)
        copied.record()
    return table


def _numbers(key: _Key) -> torch.Tensor:
    what, device, arguments = key
    makers: dict[str, Callable[..., Any]] = {
        "factorials": tables.factorials,
        "inverses": tables.inverses,
        "ratios": tables.ratios,
        "gap_weights": tables.gap_weights,
        "row_weights": tables.row_weights,
        "coefficients": lambda *both: both,
    }
    if what == "whole_numbers":
        numbers = torch.tensor(arguments, dtype=torch.int64)
    else:
        numbers = torch.tensor(makers[what](*arguments), dtype=torch.float64).to(torch.float32)
    return numbers.pin_memory() if device.type == "cuda" else numbers
