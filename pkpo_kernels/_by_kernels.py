"""Flat tensors that kernels serve as they lie: by integer ids, and in blocks of which entries may
be left out, where kernels group by themselves; in blocks of which none may, as a matrix. The host
learns nothing of the groups, and waits for nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pkpo_kernels import _calls
from pkpo_kernels._entries import Entries, Rules
from pkpo_kernels.backends import registry
from pkpo_kernels.maths.weights import Array

# rewards (N,), ids (N,) or None for blocks, where (N,) or None, k (), or anything where it was
# prepared for an integer → (N,)
Launch = Callable[[Array, Array | None, Array | None, Any], Array]


def transform(entries: Entries, ids: Array | int, k: Any, rules: Rules) -> Array | None:
    """Transform entries by ids (N,), or in blocks of a size, k an integer, () or (N,) → (N,); None
    where no kernels do."""
    launch = prepared(entries, ids, k, rules)
    if launch is None:
        return None
    return launch(entries.rewards, None if isinstance(ids, int) else ids, entries.kept, k)


def prepared(entries: Entries, ids: Array | int, k: Any, rules: Rules) -> Launch | None:
    """Prepare what transforms entries of this form, unless a call has done so before; None where no
    kernels do."""
    if entries.library != "torch" or entries.traced:
        return None
    block, tensor = (ids, None) if isinstance(ids, int) else (0, ids)
    names = rules.estimator.name, *rules[1:], entries.drops_nan, entries.dtype
    form, launch = _calls.find(
        "by_kernels", entries.rewards, k, entries.kept, block, *names, ids=tensor
    )
    if launch is None:
        backend = registry.choose(rules.implementation, "torch", entries.rewards).backend
        if block and entries.kept is None and not entries.drops_nan:
            # What has no form may be watched, and operators may have to be seen.
            launch = None if form is None else _of_matrix(backend, entries, block, k, rules)
        elif isinstance(backend, registry.GroupsByItself):
            launch = _of_groups(backend, entries, ids, k, rules)
        if launch is not None:
            _calls.remember(form, launch)
    return launch


def _of_groups(
    backend: registry.GroupsByItself, entries: Entries, ids: Array | int, k: Any, rules: Rules
) -> Launch | None:
    """Prepare what groups entries of this form."""

    def contiguous(rewards: Any, ids: Any, where: Any) -> tuple[Any, Any, Any]:
        return (
            rewards.contiguous(),
            ids if ids is None or isinstance(ids, int) else ids.contiguous(),
            None if where is None else where.contiguous(),
        )

    given = entries.rewards, ids, entries.kept
    tensors = contiguous(*given)
    launch = backend.prepared_by_id(
        *tensors,
        k,
        estimator=rules.estimator,
        scale=rules.scale,
        undersized=rules.undersized,
        drops_nan=entries.drops_nan,  # kernels see themselves where there is one
        dtype=entries.dtype,
    )
    if launch is None or all(x is y for x, y in zip(given, tensors, strict=True)):
        return launch
    return lambda rewards, ids, where, k: launch(*contiguous(rewards, ids, where), k)


def _of_matrix(backend: Any, entries: Entries, n: int, k: Any, rules: Rules) -> Launch | None:
    """Prepare what transforms blocks of n entries, all of them valid."""
    scale = rules.of_equal_groups().scale
    if (
        not isinstance(backend, registry.Prepares)
        or not (isinstance(k, int) and k <= rules.estimator.largest_k(n))
        or isinstance(scale, float)
        or not entries.rewards.is_contiguous()
    ):
        return None
    launch = backend.prepared_transform(
        entries.rewards.reshape(-1, n),
        k,
        None,
        estimator=rules.estimator,
        scale=scale,
        undersized=rules.undersized,
        dtype=entries.dtype,
    )
    if launch is None:
        return None
    return lambda rewards, ids, where, k: launch(rewards, None, None)
