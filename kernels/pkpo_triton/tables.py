"""Numbers that kernels read and that depend on nothing but the length of rows: made once a device.

Tables are copied to the device on the current stream, from pinned memory, without waiting; another
stream that uses one waits on the device for the copy, not on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pkpo_triton import weights


@dataclass
class _Table:
    values: torch.Tensor
    source: torch.Tensor  # pinned memory must outlive the copy
    copied: torch.cuda.Event | None = None  # None once it is known to be there


_tables: dict[tuple[str, torch.device, torch.dtype, Any], _Table] = {}
_captured: list[torch.Tensor] = []


def factorials(largest: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """0!, 1!, … as mantissa · 65536^exponent, for every number up to at least `largest`.

    Returns:
        (2, size): the mantissas, in [1, 65536), and the exponents.
    """
    return _on_device("factorials", device, dtype, weights.factorials_size(largest))


def inverses(chunk: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(2, chunk, MOST_LANES): 1/(j − lag) for sample j = lane · chunk + c, 0 where j ≤ lag; first
    for a lag of 0, then of 1."""
    return _on_device("inverses", device, dtype, chunk)


def forms(
    numbers: tuple[tuple[int, ...], ...], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """An estimator's form for k ≥ 2 and for k = 1, as `pkpo_triton.Weights` orders it: (2, 13)."""
    return _on_device("form", device, dtype, numbers)


def _on_device(what: str, device: torch.device, dtype: torch.dtype, size: Any) -> torch.Tensor:
    key = (what, device, dtype, size)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    table = _tables.get(key)
    if table is None:
        table = _made(what, device, dtype, size)
        if capturing:
            # It is the graph's, and holds nothing before a replay, which copies from here again.
            _captured.append(table.source)
        else:
            _tables[key] = table
    elif table.copied is not None and not capturing:
        # A graph being captured may neither ask nor wait for what is not part of it. It need not:
        # torch.cuda.graph waits for the device before it begins.
        if table.copied.query():  # type: ignore[no-untyped-call]
            table.copied = None
        else:
            torch.cuda.current_stream(device).wait_event(table.copied)
    return table.values


def _made(what: str, device: torch.device, dtype: torch.dtype, size: Any) -> _Table:
    makers = {"factorials": _factorials, "inverses": _inverses, "form": torch.tensor}
    source = makers[what](size).to(dtype)
    if device.type != "cuda":
        return _Table(source.to(device), source)
    source = source.pin_memory()
    values = source.to(device, non_blocking=True)
    copied = None
    if not torch.cuda.is_current_stream_capturing():
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(device))
    return _Table(values, source, copied)


def _factorials(size: int) -> torch.Tensor:
    return torch.tensor(weights.factorials(size), dtype=torch.float64)


def _inverses(chunk: int) -> torch.Tensor:
    return torch.tensor(weights.inverses(chunk), dtype=torch.float64)
