"""Groups of a flat tensor by kernels that group by themselves, where some do: integer ids, and
blocks of which entries may be left out. The host learns nothing of the groups, and waits for
nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pkpo_kernels._entries import Entries, Rules
from pkpo_kernels.backends import registry
from pkpo_kernels.maths.weights import Array


def transform(entries: Entries, ids: Array | int, k: Any, rules: Rules) -> Array | None:
    """Transform entries by ids (N,), or in blocks of a size, k an integer, () or (N,) → (N,); None
    where no kernels do."""
    # Where a NaN alone leaves entries out, kernels see that themselves.
    drops_nan = entries.kept is None and entries.valid is not None
    where = None if drops_nan else entries.valid
    launch = prepared(entries, ids, where, k, rules, drops_nan=drops_nan)
    if launch is None:
        return None
    of_call = (None if isinstance(x, int) else x for x in (ids, where, k))
    return launch(entries.rewards, *of_call)


def prepared(
    entries: Entries,
    ids: Array | int,
    where: Array | None,
    k: Any,
    rules: Rules,
    *,
    drops_nan: bool,
) -> Callable[..., Array] | None:
    """Prepare what groups entries of this form by itself: `registry.GroupsByItself`; None where
    nothing does."""
    if entries.library != "torch" or entries.traced:
        return None
    backend = registry.choose(rules.implementation, "torch", entries.rewards).backend
    if not isinstance(backend, registry.GroupsByItself):
        return None
    return backend.prepared_by_id(
        *(entries.rewards, ids, where, k),
        estimator=rules.estimator,
        scale=rules.scale,
        undersized=rules.undersized,
        drops_nan=drops_nan,
        dtype=entries.dtype,
    )
