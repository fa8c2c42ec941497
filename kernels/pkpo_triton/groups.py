"""Groups by ids on a GPU: what `group_kernels` needs, and how it is launched."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
import triton

from pkpo_triton import table_cache
from pkpo_triton.coefficients import UNDERSIZED, Estimator
from pkpo_triton.group_kernels import (
    ALL,
    BLOCK,
    BLOCK_OF_GROUP,
    PHASES,
    STEP,
    capacity_for,
    cleared_size,
    groups_kernel,
    scratch_size,
)
from pkpo_triton.matrices import runs_on
from pkpo_triton.operators import is_watched
from pkpo_triton.plan import LONGEST_ON_CHIP, OPTIONS
from pkpo_triton.prepared import PreparedKernel, device_of
from pkpo_triton.sorted_row import MOST_K

# An entry is compared with all of its group, which more entries than these would take too long for
# where they are one.
MOST_ENTRIES = 1 << 18
# Blocks, which are a matrix as they lie, are spared the operations around it alone.
MOST_ENTRIES_IN_BLOCKS = 1 << 16

# All programs must run at once: so many warps of a multiprocessor, of so many registers a thread.
PROGRAMS_OF_ONE = 16
MOST_REGISTERS = 128
# What CUDA says where they cannot: of a part of a GPU that passes for the whole, say.
REFUSALS = ("too many blocks in cooperative launch", "operation not supported")


def prepared_by_id(
    rewards: torch.Tensor,
    ids: torch.Tensor | int,
    where: torch.Tensor | None,
    k: int | torch.Tensor,
    **options: Any,
) -> GroupLaunch | None:
    """Prepare the transform of entries of this form by their ids, on their device and its current
    stream: see `GroupLaunch`; None where it takes more than launches of kernels."""
    tensors = [x for x in (rewards, ids, where) if isinstance(x, torch.Tensor)]
    most = MOST_ENTRIES_IN_BLOCKS if isinstance(ids, int) else MOST_ENTRIES
    if (
        is_watched(rewards)
        or not 1 <= rewards.shape[0] <= most
        or any(x.device != rewards.device or not x.is_contiguous() for x in tensors)
        or torch.float64 in (rewards.dtype, options["dtype"])
        or (isinstance(k, torch.Tensor) and k.ndim > 0)
        or runs_on() not in ("cuda", "")
    ):
        return None
    return GroupLaunch(rewards, ids, where, k, **options)


def most_programs(device: torch.device) -> int:
    """Count how many programs run at once on a device."""
    if runs_on() == "":  # one after the other
        return 1 << 20
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return PROGRAMS_OF_ONE * int(properties["multiprocessor_count"])


# By device, stream and capacity: on one stream each call finds it as the one before has left it.
_scratches: WeakValueDictionary[Any, torch.Tensor] = WeakValueDictionary()
# Of CUDA's streams a number that means another one in each thread.
_STREAM_OF_THREAD = 2


def forget() -> None:
    """Forget all scratch: for another driver, which may leave it in any state."""
    _scratches.clear()


def _kept_scratch(capacity: int, device: torch.device) -> torch.Tensor | None:
    """Get the scratch of the current stream of a device; None where one would be shared."""
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():  # replays may run on any stream
            return None
        stream = torch.cuda.current_stream(device).cuda_stream
    if stream == _STREAM_OF_THREAD:
        return None
    key = device, stream, capacity
    scratch = _scratches.get(key)
    if scratch is None:
        scratch = _scratches[key] = _new_scratch(capacity, device)
    return scratch


def _new_scratch(capacity: int, device: torch.device) -> torch.Tensor:
    """Make memory for `Scratch` as it is in the beginning."""
    scratch = torch.empty(scratch_size(capacity), dtype=torch.int32, device=device)
    scratch[: cleared_size(capacity)].zero_()
    return scratch


# The kernels that are launched, and the scratch that is kept for them, if it is.
_How = tuple[Sequence[PreparedKernel], torch.Tensor | None]


class GroupLaunch:
    """The launches for entries of one form, on the device and the stream that it was made on.

    Args:
        rewards: (N,) floating, integer or bool, contiguous, 1 ≤ N ≤ MOST_ENTRIES; not float64.
        ids: (N,) integers of at most 64 bits, contiguous: equal in a group; or the size of blocks.
        where: (N,) bool, contiguous: which entries are samples of their group; the others get 0.
        k: at least 1, or an integer on the device, (), whose value may be anything.
        estimator: as `coefficients.Estimator` says.
        scale: "sum", "mean" for values times a group's samples, "batch_mean" for N over the number
          of groups (and over a group's samples, where an estimator is a mean already), or a factor.
        undersized: what groups get that do not admit k: "zero", "nan" or "clip".
        drops_nan: a reward that is NaN is left out; else its group becomes NaN.
        dtype: of the result, not float64. Computed in float32.
    """

    __slots__ = ("_capacity", "_constants", "_empty", "_how", "_prepared", "_reads_k")

    def __init__(
        self,
        rewards: torch.Tensor,
        ids: torch.Tensor | int,
        where: torch.Tensor | None,
        k: int | torch.Tensor,
        *,
        estimator: Estimator,
        scale: str | float,
        undersized: str,
        drops_nan: bool,
        dtype: torch.dtype,
    ) -> None:
        n, device = rewards.shape[0], rewards.device
        self._capacity = capacity_for(n)
        of_dtype = functools.partial(torch.empty_like, dtype=dtype)
        self._empty = torch.empty_like if dtype == rewards.dtype else of_dtype
        self._reads_k = isinstance(k, torch.Tensor)
        factorials = table_cache.factorials(max(n, LONGEST_ON_CHIP) + 1, device)
        by_group = scale == "batch_mean"
        arguments = (
            table_cache.coefficients(estimator, device),
            factorials,
            n,
            self._capacity,
            ids if isinstance(ids, int) else 1,
            factorials.shape[1],
            min(k, MOST_K) if isinstance(k, int) else 0,
            int(estimator.requires_k_lt_n),
            UNDERSIZED.index(undersized),
            int(scale == "mean"),
            int(estimator.counted_from_top),
            int(by_group),
            int(by_group and estimator.normalized),
            float(n) if by_group else 1.0 if isinstance(scale, str) else scale,
        )
        constants: dict[str, Any] = {
            "BY_ID": not isinstance(ids, int),
            "K": "int" if isinstance(k, int) else "scalar",
            "MASKED": where is not None,
            "DROPS_NAN": drops_nan and rewards.is_floating_point(),
            "INDEX_SHIFT": estimator.index_shift,
            "NORMALIZED": estimator.normalized,
            "BLOCK": BLOCK,
            "STEP": STEP,
            "BLOCK_OF_GROUP": BLOCK_OF_GROUP,
            "num_warps": 1,
            **OPTIONS,
        }
        self._prepared = functools.partial(
            PreparedKernel,
            groups_kernel,
            min(triton.cdiv(n, BLOCK), most_programs(device)),
            arguments,
        )
        self._constants = constants
        if runs_on() == "cuda":
            at_once = {"launch_cooperative_grid": True, "maxnreg": MOST_REGISTERS}
            launch = self._prepared(constants | at_once | {"PHASE": ALL})
            with device_of(rewards):
                self._how: _How = (launch,), _kept_scratch(self._capacity, device)
        else:
            self._how = self._phases_apart()

    def _phases_apart(self) -> _How:
        """Prepare a launch for each phase, with scratch of its own for each call, since another
        thread's may come between."""
        return [self._prepared(self._constants | {"PHASE": phase}) for phase in PHASES], None

    def __call__(
        self,
        rewards: torch.Tensor,
        ids: torch.Tensor | None,
        where: torch.Tensor | None,
        k: torch.Tensor | int,
    ) -> torch.Tensor:
        """Transform entries: rewards, ids unless they are blocks, where (N,), k (), or anything if
        the host knew it → (N,)."""
        launches, scratch = self._how
        if scratch is None:
            scratch = _new_scratch(self._capacity, rewards.device)
        out = self._empty(rewards)
        of_device: Any = k if self._reads_k else None
        tensors = rewards, ids, where, of_device, scratch, out
        try:
            _launch(launches, tensors)
        except RuntimeError as error:
            if len(launches) > 1 or not any(words in str(error) for words in REFUSALS):
                raise
            # Nothing has run. The next calls know.
            self._how = self._phases_apart()
            return self(rewards, ids, where, k)
        return out


def _launch(launches: Sequence[PreparedKernel], tensors: Sequence[torch.Tensor | None]) -> None:
    """Launch kernels, for a call's tensors, on the device of the last."""
    for one in launches:
        if one.is_compiled:
            at = one.address_of
            one.launch(tuple([None if x is None else at(x) for x in tensors]))
        else:
            assert tensors[-1] is not None
            with device_of(tensors[-1]):
                one.compile(tensors)
