"""A kernel that is ready to be launched: who launches it again asks Triton for nothing but that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton

from pkpo_triton.matrices import as_bytes

_RUNTIME = triton.knobs.runtime


class PreparedKernel:
    """A kernel, its grid and all its arguments but the tensors of a call.

    Args:
        entry: the entry kernel, whose first arguments are a call's tensors.
        grid: how many programs.
        arguments: the others, in the kernel's order.
        constants: its constants, and how it is compiled.
    """

    __slots__ = (
        *("_arguments", "_compiled", "_constants", "_entry", "_first", "_grid", "_last", "_run"),
        *("_stream", "address_of", "is_compiled"),
    )

    def __init__(
        self, entry: Any, grid: int, arguments: Sequence[Any], constants: dict[str, Any]
    ) -> None:
        self._entry, self._grid = entry, (grid, 1, 1)
        self._arguments, self._constants = tuple(arguments), constants
        self.is_compiled = False
        # Of a tensor the launcher would ask the driver whether a GPU can read it.
        self.address_of: Callable[[torch.Tensor], Any] = torch.Tensor.data_ptr
        # By the first call: what goes to Triton's launcher before a call's tensors and after them.
        self._compiled: Any = None
        self._run: Any = None
        self._first: tuple[Any, ...] = ()
        self._last: tuple[Any, ...] = ()
        self._stream = 0

    def launch(self, addresses: tuple[Any, ...]) -> None:
        """Launch it, once it is compiled, for `address_of` each of a call's tensors, on the device
        and the stream that it was compiled on."""
        # A chain's functions, or a hook itself.
        enter, leave = _RUNTIME.launch_enter_hook, _RUNTIME.launch_exit_hook
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
            self._compiled[self._grid](*addresses, *self._last, stream=self._stream)
        else:  # the same without what hooks are told
            self._run(*self._first, *addresses, *self._last)

    def compile(self, tensors: Sequence[torch.Tensor | None]) -> None:
        """Compile it, if it is not interpreted, and launch it."""
        # Of bools the kernel reads the bytes.
        of_call = [as_bytes(x) for x in tensors]
        compiled = self._entry[self._grid](*of_call, *self._arguments, **self._constants)
        if compiled is None:
            return
        names = self._entry.arg_names[len(tensors) + len(self._arguments) :]
        arguments = *self._arguments, *(self._constants[name] for name in names)
        driver = triton.runtime.driver.active
        # A driver that is no GPU's may want to see tensors.
        at = self.address_of = getattr(driver, "address_of", self.address_of)
        # These stay where they are.
        self._last = tuple(at(x) if isinstance(x, torch.Tensor) else x for x in arguments)
        self._stream = driver.get_current_stream(driver.get_current_device())
        compiled[self._grid]  # loads it
        loaded = self._stream, compiled.function, compiled.packed_metadata, None, None, None
        self._run, self._first = compiled.run, (*self._grid, *loaded)
        self._compiled = compiled
        # The last: from here on other threads, which may have done all this too, use it.
        self.is_compiled = True


def device_of(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Have kernels run on the tensor's own device, whichever is the current one."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
