"""Flat rewards with group ids: check the arguments, group the entries, compute, put all back.

    pk.transform_groups(rewards, groups, k=8)    # (N,), N ids → (N,)

An *entry* is one element of the flat array; a *sample* one attempt, of one entry or several; a
*group* all samples of a task.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, get_args, overload

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels import _by_kernels, _calls, _grouping
from pkpo_kernels._entries import (
    Entries,
    GroupScale,
    NaN,
    Rules,
    as_bool,
    checked_k,
    checked_scale,
    entries_kept,
)
from pkpo_kernels._tracing import is_traced
from pkpo_kernels.backends import registry
from pkpo_kernels.maths.estimators import ESTIMATORS
from pkpo_kernels.maths.weights import Array
from pkpo_kernels.typing import (
    DeviceArray,
    EstimatorName,
    Floating,
    ImplementationName,
    IntegerArray,
    JaxArray,
    TorchTensor,
    Undersized,
)
from pkpo_kernels.validation import (
    checked_array,
    checked_library,
    checked_name,
)

EntryIds = Sequence[Hashable] | NDArray[Any] | TorchTensor | JaxArray


@overload
def transform_groups(
    rewards: NDArray[Floating],
    groups: int | EntryIds,
    k: int | np.integer[Any] | IntegerArray | Sequence[int],
    *,
    samples: EntryIds | None = ...,
    where: NDArray[Any] | Sequence[Any] | None = ...,
    estimator: EstimatorName = ...,
    scale: GroupScale | float = ...,
    undersized: Undersized = ...,
    nan: NaN = ...,
    implementation: ImplementationName | None = ...,
) -> NDArray[Floating]: ...
@overload
def transform_groups(
    rewards: NDArray[np.bool_ | np.integer[Any]] | Sequence[float],
    groups: int | EntryIds,
    k: int | np.integer[Any] | IntegerArray | Sequence[int],
    *,
    samples: EntryIds | None = ...,
    where: NDArray[Any] | Sequence[Any] | None = ...,
    estimator: EstimatorName = ...,
    scale: GroupScale | float = ...,
    undersized: Undersized = ...,
    nan: NaN = ...,
    implementation: ImplementationName | None = ...,
) -> NDArray[np.float64]: ...
@overload
def transform_groups(
    rewards: DeviceArray,
    groups: int | EntryIds,
    k: int | np.integer[Any] | IntegerArray | Sequence[int] | TorchTensor | JaxArray,
    *,
    samples: EntryIds | None = ...,
    where: DeviceArray | None = ...,
    estimator: EstimatorName = ...,
    scale: GroupScale | float = ...,
    undersized: Undersized = ...,
    nan: NaN = ...,
    implementation: ImplementationName | None = ...,
) -> DeviceArray: ...


def transform_groups(
    rewards: Array,
    groups: Any,
    k: Any,
    *,
    samples: Any = None,
    where: Any = None,
    estimator: EstimatorName = "sloo_minus_one",
    scale: GroupScale | float = "batch_mean",
    undersized: Undersized = "zero",
    nan: NaN = "drop",
    implementation: ImplementationName | None = None,
) -> Array:
    """Transform flat rewards with group ids, (N,) → (N,): `transform` on every group, of whatever
    size, its entries in any order. The outcome is a constant of the loss.

    Args:
        rewards: (N,) floating, integer or bool, one for each entry: a NumPy array or list, a
          torch.Tensor, a jax.Array or a tracer. A NaN is a sample that could not be scored.
        groups: which group each entry belongs to: N hashable ids in a list or an array of strings
          or objects (1 and "1" are two ids), integers (N,) of any library, or integer rows (N, S),
          where equal rows are one group (in a program and on a GPU a sort for each column: number
          long rows outside). Or an integer n, the size of a group, not their number: contiguous
          blocks of n entries. Inside jax.jit and torch.compile ids are integers, and any ids, any
          number of groups and any k are one program.
        k: an integer ≥ 1, or one for each entry, which must not vary within a group. In torch and
          JAX arrays of theirs, too, () or (N,): where one is less than 1, or varies where the host
          cannot see it (on a GPU, in a program), its group counts as undersized. Too large a k is
          no error: `undersized` decides for each group.
        samples: N ids, as for groups. Entries of one group and sample are one sample (a trajectory
          of several turns): its reward is that of its last valid entry, and all its entries that
          `where` keeps get the result.
        where: (N,) or (N, T) of any dtype, not 0 for what is kept; (N, T), a mask of tokens, keeps
          an entry with any token. What is left out gets 0 and is no part of its group.
        estimator: a name from `ESTIMATORS`.
        scale: what the loss needs. "batch_mean" (the default) for losses that average over all
          entries: × N / G, with N all entries, those left out too, and G the groups with a valid
          sample. "mean" × the group's own size, for a mean over every group, "sum" for a sum (the
          paper's), and a number where a trainer counts otherwise. ("passk_training" is a mean
          already: there "batch_mean" is × N / (G · own size), and "mean" is refused.)
        undersized: what groups with too few samples for k get: "zero", "nan", or "clip" (the
          largest k that they admit).
        nan: "drop" leaves entries out whose reward is NaN; "propagate" makes their group NaN, and
          spares a GPU the mask. An infinity makes its group NaN.
        implementation: a name from `available_implementations()`, or None to choose: whatever lies
          on a CPU outside a program is computed by NumPy, which is faster there and compiles
          nothing. Kernels serve blocks, and ids outside a program: of tensors by default, of JAX
          where one is named, since a matrix of new shape is a new program. "torch" and "xla" serve
          all.

    Returns:
        (N,) of the same library, device and floating dtype, in the same order (integers and bool:
        the library's default float).

    Raises:
        ValueError: an argument's value is wrong: lengths that differ, N not a multiple of a block,
          k < 1, a k that varies within a group, an id that is None or NaN, an unknown name.
        TypeError: an argument's type or dtype is wrong, or arrays of two libraries are mixed among
          rewards, where and k.

    Source: Walder & Karkhanis 2025, "Pass@K Policy Optimization", arXiv 2505.15201.

    >>> transform_groups([0.0, 1.0, 0.0, 3.0, 2.0], ["a", "b", "a", "a", "b"], 2, scale="sum")
    array([0., 0., 0., 2., 1.])
    >>> transform_groups([0.0, 1.0, 0.0, 3.0], 2, k=2)
    array([0., 2., 0., 6.])
    """
    form = again = ids = None
    if samples is None and type(scale) in (str, float):
        block, ids = (groups, None) if type(groups) is int else (0, groups)
        names = estimator, scale, undersized, nan, implementation
        form, again = _calls.find("transform_groups", rewards, k, where, block, *names, ids=ids)
    if again is not None:
        return again(rewards, ids, where, k)
    chosen = ESTIMATORS[checked_name("estimator", estimator, ESTIMATORS)]
    rules = Rules(
        chosen,
        checked_scale(scale, chosen),
        checked_name("undersized", undersized, get_args(Undersized)),
        implementation,
    )
    traced = any(map(is_traced, (rewards, groups, samples, where, k)))
    entries = Entries.of(rewards, where, checked_name("nan", nan, get_args(NaN)), traced)
    as_checked = checked_k(k, entries)
    out = _grouping.transform(entries, groups, samples, as_checked, rules)
    # Where NumPy serves, its work is more than the checks; ks in a list become a tensor each time.
    is_plain = form is not None and not entries.traced and entries.rewards.dtype == rewards.dtype
    is_plain = is_plain and isinstance(as_checked, type(k))
    if is_plain and (implementation not in (None, "numpy") or not entries.on_cpu):
        _calls.remember(form, _again(entries, groups, where, k, rules))
    return out


def _again(entries: Entries, groups: Array | int, where: Any, k: Any, rules: Rules) -> _calls.Again:
    """Serve calls of the form of one that was checked: blocks, or ids in a tensor, a mask in one or
    none, k in one or an integer."""
    torch, there, n = registry.namespace("torch"), entries.rewards.device, entries.n
    block, ids = (groups, None) if isinstance(groups, int) else (0, groups)

    def to_there(ids: Any, where: Any, k: Any) -> tuple[Any, Any, Any]:
        return (
            None if ids is None else ids.to(there),
            None if where is None else entries_kept(where),
            min(k, n + 1) if isinstance(k, int) else k.to(there, torch.int64),
        )

    arrays = to_there(ids, where, k)
    launch = None
    if ids is None or ids.ndim == 1:
        launch = _by_kernels.prepared(entries, block or arrays[0], arrays[2], rules)
    lie_there = arrays[0] is ids and arrays[1] is where and (isinstance(k, int) or arrays[2] is k)
    if launch is not None and lie_there:
        return launch
    of_form = entries._replace(rewards=None, kept=None, valid=None)

    def again(rewards: Array, ids: Array | None, where: Array | None, k: Any) -> Array:
        ids, where, k = to_there(ids, where, k)
        if launch is not None:
            return launch(rewards, ids, where, k)
        of_call = of_form.of_another(rewards, where)
        return _grouping.of_library(of_call, block or ids, None, k, rules)

    return again


def to_tokens(advantages: Array, mask: Array) -> Array:
    """Give every token its entry's advantage: advantages (N,), mask (N, T) of any dtype → (N, T) in
    the dtype of the advantages, 0 where the mask is.

    Raises:
        ValueError: the shapes do not fit.
        TypeError: arrays of two libraries.

    >>> to_tokens(np.array([2.0, -1.0]), np.array([[1, 1, 0], [1, 0, 0]]))
    array([[ 2.,  2.,  0.],
           [-1.,  0.,  0.]])
    """
    advantages, library = checked_array("advantages", advantages)
    mask = checked_library("mask", mask, library, "advantages")
    if len(advantages.shape) != 1 or tuple(mask.shape[:-1]) != tuple(advantages.shape):
        raise ValueError(
            "mask must be (N, T) for advantages (N,);"
            f" got {tuple(mask.shape)} for {tuple(advantages.shape)}"
        )
    xp = registry.namespace(library)
    return xp.where(as_bool(mask), advantages[:, None], xp.zeros_like(advantages)[:, None])
