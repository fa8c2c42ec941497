"""A driver for Triton whose GPU is `launch.Launch`.

Kernels are launched as ever: Triton specialises and compiles them for the GPU, with its cache, its
hooks and its grid; in the end the PTX is run here, on tensors in the CPU's memory. Or nothing is
run, and what would have been is kept: for AMD's GPUs too.

>>> import torch
>>> import pkpo_kernels as pk
>>> with Device() as device:  # doctest: +SKIP
...     pk.transform(torch.randn(64, 8), 2, implementation="triton")
...     print(device.launches[-1].run.counts.per_element(64 * 8, ctas=1))
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import torch
import triton
from pkpo_triton import groups, operators
from triton.backends.compiler import GPUTarget

from bench.ptx.launch import Launch
from bench.ptx.memory import Pointer
from bench.ptx.program import Program
from pkpo_kernels import _calls
from pkpo_kernels.backends import _devices

# GPUs, as Triton calls them, and the bytes of shared memory that a CTA may have.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


class Compiled(NamedTuple):
    """A kernel that was launched."""

    assembly: str  # PTX, or what AMD's assembler takes
    binary: bytes
    constants: dict[str, Any]
    num_warps: int
    shared_bytes: int  # that a launch asks for
    cooperative: bool  # all programs run at once


@dataclass(frozen=True)
class Launched:
    """A launch and what was asked for, by which it can be run again."""

    run: Launch
    kernel: Compiled
    arguments: dict[str, Any]  # as the kernel calls them: tensors and numbers, no constants


def run_ptx(
    ptx: str, grid: int, arguments: dict[str, Any], shared_bytes: int, **options: Any
) -> Launch:
    """Run a grid. A tensor's address may be given as its own: name → (tensor, address)."""
    given = []
    for name, value in arguments.items():
        tensor, address = value if isinstance(value, tuple) else (value, None)
        if isinstance(tensor, torch.Tensor):
            address = tensor.data_ptr() if address is None else address
            value = Pointer(name, tensor, address)
        given.append(value)
    return Launch(_program(ptx), grid, given, shared_bytes, **options)


@functools.lru_cache(128)
def _program(ptx: str) -> Program:
    return Program(ptx)


def _forget_launches() -> None:
    """Have calls prepared anew: launches are another driver's."""
    _calls.forget()
    operators.forget()
    groups.forget()


class Device:
    """What Triton takes for a GPU and its driver, as long as it is entered.

    Args:
        target: one of TARGETS.
        executes: launches are run, which only PTX can be.
        keep: kernels and launches are kept, in `kernels` and `launches`.
        change: PTX → PTX that is run instead, and may be faulty: then faults are kept, not raised.
        seed: of the first `Launch`; the next have the next.
        options: of every `Launch`.

    Attributes:
        launched: how many launches all devices have run.
    """

    launched = 0
    _active: ClassVar[list[Device]] = []

    def __init__(
        self,
        target: str = "sm_90",
        *,
        executes: bool = True,
        keep: bool = True,
        change: Callable[[str], str] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.target, self._max_shared_bytes = TARGETS[target]
        self._number = list(TARGETS).index(target)
        self.executes, self.keep = executes, keep
        self.change, self.options, self._seeds = change, options, itertools.count(seed)
        self.kernels: list[Compiled] = []
        self.launches: list[Launched] = []
        self.utils = self  # Triton asks it for device properties, and to load binaries
        self._files: dict[str, Any] = {}

    def __enter__(self) -> Device:
        if self in self._active:
            raise RuntimeError("a Device must be entered once at a time; it is entered already")
        _forget_launches()
        self._entered = ExitStack()
        triton.knobs.runtime.kernel_load_start_hook.add(self._about_to_load)
        self._active.append(self)
        triton.runtime.driver.set_active(self)
        # Here the library lets tensors on the CPU through to the kernels.
        for name, value in (("interprets_triton", True), ("no_triton_interpreter", None)):
            patch = mock.patch.object(_devices, name, lambda value=value: value)
            self._entered.enter_context(patch)
        return self

    def __exit__(self, *_: object) -> None:
        _forget_launches()
        self._entered.close()
        triton.knobs.runtime.kernel_load_start_hook.remove(self._about_to_load)
        self._active.remove(self)
        triton.runtime.driver.set_active(self._active[-1] if self._active else None)

    # ---- What Triton asks a driver -------------------------------------------------------------

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        # Triton keeps kernels by the device's number: no other GPU's may be taken for this one's.
        return self._number

    def get_current_stream(self, device: int) -> int:
        return 0

    @staticmethod
    def address_of(x: torch.Tensor) -> torch.Tensor:
        """Take tensors themselves from kernels that are prepared."""
        return x

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_device_properties(self, device: int) -> dict[str, int]:
        shared, warp = self._max_shared_bytes, self.target.warp_size
        return {"max_shared_mem": shared, "multiprocessor_count": 132, "warpSize": warp}

    def _about_to_load(
        self, module: Any, function: Any, name: str, metadata_group: dict[str, str], hash: str
    ) -> None:
        # The launcher is given the binary alone; the assembly lies beside it in Triton's cache.
        self._files = metadata_group

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        files = map(Path, self._files.values())
        assembly = next(file for file in files if file.suffix in (".ptx", ".amdgcn"))
        # module, function, registers, spilled words, threads of a CTA at most
        return name, (assembly.read_text(), binary), 0, 0, 1024

    def unload_module(self, module: str) -> None:
        """Forget a kernel, as Triton asks for from 3.9 on: there is nothing to be freed."""

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        kinds = list(source.signature.items())
        constants = {kinds[path[0]][0]: value for path, value in source.constants.items()}

        def launch(
            x: int, y: int, z: int, stream: int, function: tuple[str, bytes], *rest: Any
        ) -> None:
            assert y == z == 1, "grids have one axis here"
            arguments = {
                name: value
                # Behind the metadata of kernel and launch, and two hooks.
                for (name, kind), value in zip(kinds, rest[4:], strict=True)
                if kind != "constexpr"
            }
            how = metadata.num_warps, metadata.shared, metadata.launch_cooperative_grid
            kernel = Compiled(*function, constants, *how)
            # Triton keeps launchers, perhaps of a device that was entered before.
            triton.runtime.driver.active.run(kernel, x, arguments)

        return launch

    def run(self, kernel: Compiled, grid: int, arguments: dict[str, Any]) -> None:
        if self.keep:
            self.kernels.append(kernel)
        if not self.executes:
            return
        ptx = kernel.assembly if self.change is None else self.change(kernel.assembly)
        options = self.options | {"cooperative": kernel.cooperative, "seed": next(self._seeds)}
        run = run_ptx(ptx, grid, arguments, kernel.shared_bytes, **options)
        Device.launched += 1
        if self.keep:
            self.launches.append(Launched(run, kernel, arguments))
        if self.change is None:
            run.faults.check()
