"""What becomes of an array's operations, beside being computed: whether they make a program, or are
seen by others."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from pkpo_kernels.validation import library_of


def is_traced(array: Any) -> bool:
    """Tell whether an array's values are unknown: a program is being made, or a batch hidden, or
    its class says itself what becomes of operations, and may hold no values."""
    if array is None or isinstance(array, (int, list, tuple, np.ndarray)):
        return False
    library = library_of(array)
    if library == "jax":
        import jax

        return isinstance(array, jax.core.Tracer)
    if library == "torch":
        import torch

        return (
            torch.compiler.is_compiling()
            or type(array).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
            or torch._C._functorch.is_functorch_wrapped_tensor(array)
            or _is_inside_grad(torch)
            or torch._C._get_tracing_state() is not None  # jit.trace
            # make_fx with pre_dispatch
            or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0  # type: ignore[no-untyped-call]
            or (torch._C._len_torch_dispatch_stack() > 0 and _is_mode_of_tracing())
        )
    return False


def is_watched(array: Any) -> bool:
    """Tell whether a tensor is of a class of its own, or a mode sees torch's operations: then they
    must be torch's."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        return False
    is_plain = type(array) in (torch.Tensor, torch.nn.Parameter)
    return not is_plain or torch._C._len_torch_dispatch_stack() > 0


def _is_inside_grad(torch: Any) -> bool:
    """Tell whether a function of torch.func is being differentiated: then what becomes of any
    tensor has no memory that the host may read."""
    inside = torch._C._functorch
    stack = inside.get_interpreter_stack()
    if not stack:
        return False
    kinds = inside.TransformType.Grad, inside.TransformType.Jvp
    return any(one.key() in kinds for one in stack)


def _is_mode_of_tracing() -> bool:
    """Tell whether torch's operations are recorded or faked (those modes have a key), and not only
    watched, as by a counter of operations."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    modes = _get_current_dispatch_mode_stack()
    return any(getattr(mode, "_mode_key", None) is not None for mode in modes)
