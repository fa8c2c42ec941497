"""Arrays inside `jax.shard_map`, which knows of each over which axes of devices it varies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def alike(operands: Any) -> Any:
    """Let all arrays of a tree vary over the axes that one of them varies over; of any shapes."""
    axes = frozenset[Any]().union(*map(_axes_it_varies_over, jax.tree.leaves(operands)))
    varying: Callable[..., jax.Array] = lax.pcast

    def of_all_axes(x: jax.Array) -> jax.Array:
        missing = tuple(axes - _axes_it_varies_over(x))
        return varying(x, missing, to="varying") if missing else x

    return jax.tree.map(of_all_axes, operands) if axes else operands


def shape_like(shape: tuple[int, ...], dtype: Any, x: jax.Array) -> jax.ShapeDtypeStruct:
    """Describe an output that varies over the axes that x varies over."""
    if not _axes_it_varies_over(x):
        return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]
    kind = jax.typeof(x)
    # Under its name of JAX 0.10 and newer, or of the older ones.
    name = "manual_axis_type" if hasattr(kind, "manual_axis_type") else "vma"
    make: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct
    return make(shape, dtype, **{name: getattr(kind, name)})


def _axes_it_varies_over(x: jax.Array) -> frozenset[Any]:
    kind = jax.typeof(x)
    kind = getattr(kind, "manual_axis_type", kind)
    return frozenset(getattr(kind, "varying", getattr(kind, "vma", ())))
