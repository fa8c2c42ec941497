"""The launches as torch operators, opaque to torch.compile, which calls them at once.

Defined by hand: `torch.library.custom_op` takes 50 µs a call, ten times what a launch does. Every
argument that is not None costs, a string or a dtype most: only a dtype that is not the rewards' own
is given.
"""

# torch.library has few types.
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from pkpo_triton import launch, matrices
from pkpo_triton.coefficients import Estimator, as_text, from_text
from pkpo_triton.launch import Launch

# Launches that programs come back to: with one more than so many all are made anew.
MOST_LAUNCHES = 256

_launches: dict[Hashable, Launch] = {}


def transform(
    rewards: torch.Tensor,
    k: int | torch.Tensor,
    where: torch.Tensor | None,
    estimator: Estimator,
    *,
    scale: str,
    undersized: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Transform every row, as `launch.transform`: at once, or as a part of a program."""
    if not is_watched(rewards):
        rest: Any = {"scale": scale, "undersized": undersized, "dtype": dtype}
        return launch.transform(rewards, k, where, estimator, **rest)
    static_k, dynamic_k = (k, None) if isinstance(k, int) else (0, k)
    rules = as_text(estimator, scale, undersized)
    other_dtype = None if dtype == rewards.dtype else dtype
    out: torch.Tensor = torch.ops.pkpo_triton.transform(
        rewards.detach(), static_k, dynamic_k, where, rules, other_dtype
    )
    return out


def max_at_k(
    rewards: torch.Tensor,
    ks: Sequence[int] | torch.Tensor,
    where: torch.Tensor | None,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Compute the mean of the best of k, as `launch.max_at_k`: at once, or as a part of a
    program."""
    if not is_watched(rewards):
        return launch.max_at_k(rewards, ks, where, dtype=dtype)
    static_ks, dynamic_ks = ([], ks) if isinstance(ks, torch.Tensor) else (list(ks), None)
    out: torch.Tensor = torch.ops.pkpo_triton.max_at_k(
        rewards.detach(), static_ks, dynamic_ks, where, dtype
    )
    return out


def is_watched(rewards: torch.Tensor) -> bool:
    """Tell whether torch must see an operator: it compiles, traces, transforms functions, or has
    tensors without memory."""
    return (
        torch.compiler.is_compiling()
        or type(rewards) not in (torch.Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def forget() -> None:
    """Forget all launches: for what changes under their feet, such as Triton's driver."""
    _launches.clear()
    matrices.forget()


# ---- What a program calls ----------------------------------------------------------------------

_LIBRARY = torch.library.Library("pkpo_triton", "DEF")
_LIBRARY.define(
    "transform(Tensor rewards, int k, Tensor? dynamic_k, Tensor? where, str rules,"
    " ScalarType? dtype=None) -> Tensor"
)
_LIBRARY.define(
    "max_at_k(Tensor rewards, int[] ks, Tensor? dynamic_ks, Tensor? where, ScalarType dtype)"
    " -> Tensor"
)


@torch.library.impl(_LIBRARY, "transform", "CompositeExplicitAutograd")
def _transform(
    rewards: torch.Tensor,
    k: int,
    dynamic_k: torch.Tensor | None,
    where: torch.Tensor | None,
    rules: str,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    form = _form(rewards, where, dynamic_k, k, rules, dtype)
    known = _launches.get(form)
    if known is None:
        estimator, scale, undersized = from_text(rules)
        rest: Any = {"scale": scale, "undersized": undersized, "dtype": dtype or rewards.dtype}
        arguments = (rewards, k if dynamic_k is None else dynamic_k, where, estimator)
        known = launch.prepared_transform(*arguments, **rest)
        if known is None:
            return launch.transform(*arguments, **rest)
        _keep(form, known)
    return known(rewards, where, dynamic_k)


@torch.library.impl(_LIBRARY, "max_at_k", "CompositeExplicitAutograd")
def _max_at_k(
    rewards: torch.Tensor,
    ks: Sequence[int],
    dynamic_ks: torch.Tensor | None,
    where: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    form = _form(rewards, where, dynamic_ks, tuple(ks), dtype)
    known = _launches.get(form)
    if known is None:
        either_ks = ks if dynamic_ks is None else dynamic_ks
        known = launch.prepared_max_at_k(rewards, either_ks, where, dtype=dtype)
        if known is None:
            return launch.max_at_k(rewards, either_ks, where, dtype=dtype)
        _keep(form, known)
    return known(rewards, where, dynamic_ks)


def _form(
    rewards: torch.Tensor, where: torch.Tensor | None, k: torch.Tensor | None, *rest: Hashable
) -> Hashable | None:
    """Describe a call by all that its launch depends on; None where that may be kept by nobody."""
    stream = _stream_to_keep(rewards)
    if stream is None:
        return None
    of_where = None if where is None else _lies(where)
    return stream, _lies(rewards), of_where, None if k is None else _lies(k), rest


def _stream_to_keep(x: torch.Tensor) -> int | None:
    """Find the current stream of a tensor's device, on which a launch may be kept that is prepared
    now; None where none may."""
    return _stream_of_gpu(x.get_device()) if x.is_cuda else 0


def _stream_of_gpu(index: int) -> int | None:
    """Find the current stream of a GPU; None if it is not the current one, and while a graph is
    captured, which needs tables of its own."""
    inside: Any = torch._C
    if inside._cuda_getDevice() != index or inside._cuda_isCurrentStreamCapturing():
        return None
    return int(inside._cuda_getCurrentRawStream(index))


def _lies(x: torch.Tensor) -> Hashable:
    return x.dtype, x.shape, x.stride(), x.device, x.data_ptr() % 16 == 0


def _keep(form: Hashable | None, made: Launch) -> None:
    if form is None:
        return
    if len(_launches) >= MOST_LAUNCHES:
        _launches.clear()
    _launches[form] = made


@torch.library.register_fake("pkpo_triton::transform", lib=_LIBRARY)
def _(
    rewards: torch.Tensor,
    k: int,
    dynamic_k: torch.Tensor | None,
    where: torch.Tensor | None,
    rules: str,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    either_k = k if dynamic_k is None else dynamic_k
    estimator, _, _ = from_text(rules)
    dtype = dtype or rewards.dtype
    chosen = matrices.plan_transform(rewards, either_k, where, estimator, dtype, any_rows=True)
    return matrices.empty_result(rewards, dtype, chosen)


@torch.library.register_fake("pkpo_triton::max_at_k", lib=_LIBRARY)
def _(
    rewards: torch.Tensor,
    ks: Sequence[int],
    dynamic_ks: torch.Tensor | None,
    where: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    n_ks = len(ks) if dynamic_ks is None else dynamic_ks.shape[0]
    return torch.empty((rewards.shape[0], n_ks), dtype=dtype, device=rewards.device)


# ---- torch.func.vmap: a batch of matrices is a matrix of more rows ------------------------------


@torch.library.register_vmap("pkpo_triton::transform", lib=_LIBRARY)
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    rewards: torch.Tensor,
    k: int,
    dynamic_k: torch.Tensor | None,
    where: torch.Tensor | None,
    rules: str,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, int]:
    batch = info.batch_size
    rewards = _batched(rewards, in_dims[0], batch)  # (batch, rows, n)
    where = None if where is None else _batched(where, in_dims[3], batch).flatten(0, 1)
    if dynamic_k is not None and (in_dims[2] is not None or dynamic_k.ndim):
        dynamic_k = _batched(dynamic_k, in_dims[2], batch)  # (batch,) or (batch, rows)
        of_rows = dynamic_k[:, None] if dynamic_k.ndim == 1 else dynamic_k
        dynamic_k = of_rows.expand(rewards.shape[:2]).flatten()
    out = torch.ops.pkpo_triton.transform(rewards.flatten(0, 1), k, dynamic_k, where, rules, dtype)
    return out.reshape(rewards.shape), 0


@torch.library.register_vmap("pkpo_triton::max_at_k", lib=_LIBRARY)
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    rewards: torch.Tensor,
    ks: Sequence[int],
    dynamic_ks: torch.Tensor | None,
    where: torch.Tensor | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, int]:
    batch = info.batch_size
    rewards = _batched(rewards, in_dims[0], batch)  # (batch, rows, n)
    where = None if where is None else _batched(where, in_dims[3], batch)
    best = torch.ops.pkpo_triton.max_at_k
    if in_dims[2] is None or dynamic_ks is None:
        where = None if where is None else where.flatten(0, 1)
        out = best(rewards.flatten(0, 1), ks, dynamic_ks, where, dtype)
        return out.reshape(*rewards.shape[:2], out.shape[1]), 0
    # All rows of a launch have the same ks.
    of_each = _batched(dynamic_ks, in_dims[2], batch)  # (batch, number of ks)
    out = [
        best(rewards[i], ks, of_each[i], None if where is None else where[i], dtype)
        for i in range(batch)
    ]
    return torch.stack(out), 0


def _batched(x: torch.Tensor, dim: int | None, batch: int) -> torch.Tensor:
    """Bring the dimension that is mapped over to the front, or repeat what has none: (...) →
    (batch, ...)."""
    return x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)
