"""Calls that were made before: what a first call has checked and prepared, the next one of its form
does at once.

A form is all that checks and preparations depend on. Only calls with plain tensors have one, whose
values neither depend on; what is compiled, traced or watched goes the long way every time, and so
do NumPy and JAX, where a call costs more than its checks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Any

# A call's arrays, such as (rewards, where, k) → the result
Again = Callable[..., Any]

# A form for every k that a run anneals through would be a leak: so many are kept, the latest made.
MOST_FORMS = 1024

_known: dict[Hashable, Again] = {}

_NEW = None, None  # found of a call that goes the long way


def find(
    function: str, rewards: Any, k: Any, where: Any, number: Any, *names: Any, ids: Any = None
) -> tuple[Hashable | None, Again | None]:
    """Find an eager call's form, and what serves it if one of the form was made before: (form,
    again), both None for a call that goes the long way.

    Args:
        function: that is called.
        rewards, k, where: its arrays, and an integer or several as k.
        number: an integer among its other arguments.
        names: the rest of them, and floats. What else is given for a name is equal to none.
        ids: one array more; what is no tensor has no form.
    """
    torch = sys.modules.get("torch")
    if torch is None or type(rewards) is not torch.Tensor or torch.compiler.is_dynamo_compiling():
        return _NEW
    inside = torch._C
    if (
        inside._len_torch_dispatch_stack()  # fake tensors, make_fx, profilers
        or inside._dispatch_tls_is_dispatch_key_included(inside.DispatchKey.PreDispatch)
        or inside._functorch.peek_interpreter_stack() is not None  # vmap, grad
        or inside._get_tracing_state() is not None  # jit.trace
    ):
        return _NEW
    of_k: Hashable = k
    if type(k) is not int:
        if type(k) is torch.Tensor:
            of_k = _lies(k, torch)
        elif type(k) is list or type(k) is tuple:
            of_k = tuple(k) if set(map(type, k)) == {int} else None
        else:
            return _NEW
    if type(number) is not int:  # True equals 1, and is no axis
        return _NEW
    of_where: Hashable = False
    if where is not None:
        of_where = _lies(where, torch) if type(where) is torch.Tensor else None
    if ids is not None:
        of_ids = _lies(ids, torch) if type(ids) is torch.Tensor else None
        if of_ids is None:
            return _NEW
        names = *names, of_ids
    lies, stream = _lies(rewards, torch), _stream(torch, rewards)
    if lies is None or of_k is None or of_where is None or stream is None:
        return _NEW
    form = function, lies, of_k, of_where, stream, torch.get_default_dtype(), number, names
    try:
        return form, _known.get(form)
    except TypeError:  # a list for a name, of which the checks will say so
        return _NEW


def _lies(x: Any, torch: Any) -> Hashable | None:
    """Describe a plain tensor as memory; None for one that is more, or less."""
    if x.layout is not torch.strided or x.is_neg() or x.is_nested:
        return None
    # What Triton compiles for depends on whether 16 divides an address.
    return x.dtype, x.shape, x.stride(), x.device, x.data_ptr() % 16 == 0


def remember(form: Hashable | None, again: Again) -> None:
    """Keep what serves calls of a form. It may hold no tensor of the call that it was made for."""
    if form is None:
        return
    _known[form] = again
    # Without a lock, which a signal handler or a fork may find taken: others may do this meanwhile.
    for oldest in list(_known)[: max(len(_known) - MOST_FORMS, 0)]:
        _known.pop(oldest, None)


def forget() -> None:
    """Forget all calls: for what changes under their feet, such as Triton's driver."""
    _known.clear()


def _stream(torch: Any, rewards: Any) -> Hashable | None:
    """Find where a call runs; None where the next one may not be served alike."""
    return _stream_of_gpu(torch, rewards.get_device()) if rewards.is_cuda else 0


def _stream_of_gpu(torch: Any, index: int) -> Hashable | None:
    """Find the current stream of a GPU; None if it is not the current one, and while a graph is
    captured, which needs tables of its own."""
    inside = torch._C  # which who has a tensor there need not have started
    if inside._cuda_getDevice() != index or inside._cuda_isCurrentStreamCapturing():
        return None
    stream: int = inside._cuda_getCurrentRawStream(index)
    return stream
