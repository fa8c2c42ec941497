"""JAX arrays that lie on several devices: every device computes the groups that it holds.

Of an array on a mesh with Explicit axes, which `jax.make_mesh` makes, the type says how it lies,
inside jit too; a concrete array says it itself, on Auto axes as well. There the computation goes
inside `jax.shard_map`: no group moves, and a kernel sees whole rows. What a program does along
Auto axes is left to the compiler, and along Manual axes to its author.
"""

# JAX gives PartitionSpec and reshard no types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import NamedSharding, PartitionSpec


class Layout(NamedTuple):
    """How groups lie on a mesh."""

    mesh: Any  # a Mesh, or inside a program an AbstractMesh
    leading: tuple[Any, ...]  # for every axis but that of the samples what it is divided over


def layout_of(rewards: jax.Array, k: Any, where: jax.Array | None, axis: int) -> Layout | None:
    """How rewards (..., n) lie, or what goes with them if they lie nowhere in particular; None
    where that is not handled here.

    Raises:
        ValueError: the samples of a group lie on several devices.
    """
    for array in (rewards, where, k):
        sharding = _sharding(array)
        if sharding is not None:
            break
    else:
        return None
    if array is k:
        return Layout(sharding.mesh, (None,) * (rewards.ndim - 1))
    leading = [*sharding.spec, *[None] * (rewards.ndim - len(sharding.spec))]
    samples = leading.pop(axis)
    if array is rewards and math.prod(sharding.mesh.shape[a] for a in _names(samples)) > 1:
        if not _axes(sharding.mesh, "Explicit"):
            return None  # the compiler gathers them
        whole = ", ".join(map(repr, (*leading[:axis], None, *leading[axis:])))
        raise ValueError(
            f"rewards must have all samples of a group on one device; got axis {axis} sharded over"
            f" {samples!r}: reshard them, with jax.reshard(rewards, jax.P({whole}))"
        )
    return Layout(sharding.mesh, tuple(leading))


def _sharding(array: Any) -> NamedSharding | None:
    """How an array lies, as far as that is known, and where this module handles it."""
    if not isinstance(array, jax.Array):
        return None
    is_known = not isinstance(array, jax.core.Tracer) and len(array.devices()) > 1
    if is_known and not _axes(jax.sharding.get_abstract_mesh(), "Manual"):
        return array.sharding if isinstance(array.sharding, NamedSharding) else None
    of_type = jax.typeof(array).sharding
    return of_type if _axes(of_type.mesh, "Explicit") else None


def _axes(mesh: Any, *kinds: str) -> frozenset[str]:
    """The axes of a mesh that are of these types."""
    types = {getattr(jax.sharding.AxisType, kind) for kind in kinds}
    return frozenset(a for a, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t in types)


def _names(one: Any) -> tuple[str, ...]:
    """The mesh axes that one entry of a PartitionSpec names."""
    return one if isinstance(one, tuple) else () if one is None else (one,)


def one_shard(rewards: jax.Array) -> jax.Array:
    """What one device holds of a concrete array; a tracer as it is."""
    if isinstance(rewards, jax.core.Tracer) or not rewards.addressable_shards:
        return rewards
    return rewards.addressable_shards[0].data


Compute = Callable[..., jax.Array]
Spec = tuple[Any, ...]  # the entries of a PartitionSpec, one for each axis of an array


def on_every_device(
    compute: Compute,
    groups: Any,
    k: int | tuple[int, ...] | jax.Array,
    options: Mapping[str, Hashable],
    layout: Layout,
    reduces: bool,
) -> jax.Array:
    """compute(groups, k, **options), every device for the groups that it holds.

    Args:
        compute: gives the shape of the rewards or, where it reduces, their leading shape and that
          of k behind it.
        groups: a named tuple with `rewards` (..., n), `where` (..., n) or None, and `axis`, the
          samples'; its other fields are hashable.
        k: where compute reduces the same for all groups, else what broadcasts against the leading
          shape.
        layout: how the groups lie.
    """
    known = None if isinstance(k, jax.Array) else k
    if known is not None and not isinstance(groups.rewards, jax.core.Tracer):
        # Outside a program it would mean another one for every k.
        k, known = jnp.asarray(k), None
    return _on_every_device(
        lax.stop_gradient(groups.rewards),
        k if known is None else None,
        groups.where,
        compute=compute,
        groups=groups._replace(rewards=None, where=None),
        known_k=known,
        options=tuple(options.items()),
        layout=layout,
        reduces=reduces,
    )


@partial(jax.jit, static_argnames=("compute", "groups", "known_k", "options", "layout", "reduces"))
def _on_every_device(
    rewards: jax.Array,
    k: jax.Array | None,
    where: jax.Array | None,
    *,
    compute: Compute,
    groups: Any,
    known_k: int | tuple[int, ...] | None,
    options: tuple[tuple[str, Hashable], ...],
    layout: Layout,
    reduces: bool,
) -> jax.Array:
    def of_arrays(rewards: jax.Array, k: jax.Array | None, where: jax.Array | None) -> jax.Array:
        here = groups._replace(rewards=rewards, where=where)
        return compute(here, known_k if k is None else k, **dict(options))

    leading = layout.leading
    samples = (*leading[: groups.axis], None, *leading[groups.axis :])
    of_k: Spec = () if k is None else (None,) * k.ndim
    out = samples
    if reduces:
        several = isinstance(known_k, tuple) if k is None else k.ndim > 0
        out = (*leading, None) if several else leading
    elif k is not None:
        # Aligned from the right, as it broadcasts.
        aligned = leading[len(leading) - k.ndim :]
        of_k = tuple(
            None if size == 1 else names for size, names in zip(k.shape, aligned, strict=True)
        )
    return _divided(of_arrays, layout.mesh, (samples, of_k, samples), out)(rewards, k, where)


def _divided(
    compute: Callable[..., jax.Array], mesh: Any, in_specs: Sequence[Spec], out_spec: Spec
) -> Callable[..., jax.Array]:
    """compute, from arrays (or None) that lie on the mesh as in_specs say."""

    @custom_vmap
    def of_arrays(*arrays: jax.Array | None) -> jax.Array:
        placed = [
            None if x is None else _placed(x, mesh, spec)
            for x, spec in zip(arrays, in_specs, strict=True)
        ]
        return jax.shard_map(
            compute,
            mesh=mesh,
            in_specs=tuple(PartitionSpec(*spec) for spec in in_specs),
            out_specs=PartitionSpec(*out_spec),
            # Without names: all axes, but for those that vmap has mapped away.
            axis_names=_axes(mesh, "Explicit", "Auto") if _axes(mesh, "Manual") else frozenset(),
            # Pallas's interpreter knows of no axes to check.
            check_vma=False,
        )(*placed)

    # An axis that vmap maps away is no part of a type any more: JAX's own rule cannot divide it.
    @of_arrays.def_vmap
    def of_a_batch(
        size: int, batched: Sequence[bool | None], *arrays: jax.Array | None
    ) -> tuple[jax.Array, bool]:
        names = next(
            _spec(x)[0] for x, is_batched in zip(arrays, batched, strict=True) if is_batched
        )
        of_batch = _divided(
            jax.vmap(compute, in_axes=[0 if is_batched else None for is_batched in batched]),
            mesh,
            [
                (names, *spec) if is_batched else spec
                for spec, is_batched in zip(in_specs, batched, strict=True)
            ],
            (names, *out_spec),
        )
        return of_batch(*arrays), True

    return of_arrays


def _placed(x: jax.Array, mesh: Any, spec: Spec) -> jax.Array:
    """x where the Explicit axes of a spec want it, which jax.shard_map insists on."""
    explicit = _axes(mesh, "Explicit")
    if not explicit:
        return x
    of_type = PartitionSpec(
        *(tuple(a for a in _names(one) if a in explicit) or None for one in spec)
    )
    return jax.sharding.reshard(x, NamedSharding(mesh, of_type))


def _spec(x: Any) -> Spec:
    spec = jax.typeof(x).sharding.spec
    return (*spec, *[None] * (x.ndim - len(spec)))
