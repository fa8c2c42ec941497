"""The one way from JAX arrays to a backend: which one a program runs on which platform, and what
that makes of jit, vmap and arrays that lie on several devices.

Where a program runs is known when it is lowered, not when it is traced: until then it has a branch
for every platform of PLATFORMS.
"""

# JAX gives PartitionSpec and reshard no types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import NamedSharding, PartitionSpec

from pkpo_kernels.backends import xla
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.maths.weights import Estimator, GapWeights, host_weights

# implementation → platform → the backend that runs there. "default" is every other platform, and
# every matrix that no kernel takes, on any.
PLATFORMS: dict[str, dict[str, str]] = {
    "pallas": {"tpu": "pallas", "cuda": "jax_triton", "default": "xla"},
    "triton_jax": {"cuda": "jax_triton", "default": "xla"},
    "xla": {"default": "xla"},
    "pallas_interpret": {"default": "pallas_interpret"},
}


class Backend(Protocol):
    """What computes on a platform; the other arguments are those of `registry.Backend`."""

    def fits(self, rewards: jax.Array, where: jax.Array | None, dtype: Any) -> bool:
        """Tell whether it takes rewards (rows, N), where (rows, N) or None."""

    def transform_rows(
        self,
        rewards: jax.Array,
        k: int | jax.Array,
        where: jax.Array | None,
        *,
        weights: GapWeights | None,
        estimator: Estimator,
        scale: str,
        undersized: str,
        dtype: Any,
    ) -> jax.Array:
        """Transform rows → (rows, N) of dtype; weights (1, N−1) where the host knows them."""

    def max_at_k_rows(
        self,
        rewards: jax.Array,
        ks: Sequence[int | jax.Array],
        where: jax.Array | None,
        *,
        weights: Sequence[GapWeights | None],
        dtype: Any,
    ) -> jax.Array:
        """Estimate the best of each k → (rows, len(ks)) of dtype."""


def _backend(name: str) -> Backend:
    """Import a backend; a broken jax-triton is an ImportError."""
    if name == "pallas":
        from pkpo_kernels.backends import pallas

        return pallas.COMPILED
    if name == "pallas_interpret":
        from pkpo_kernels.backends import pallas

        return pallas.INTERPRETED
    if name == "jax_triton":
        from pkpo_kernels.backends import jax_triton

        return jax_triton
    return xla


def _backends(program: _Program, rewards: jax.Array, where: jax.Array | None) -> dict[str, Backend]:
    """List what computes for these rows: platform → backend."""
    # An export's symbolic sizes are no integers, and a kernel's grid is made of integers.
    if not all(isinstance(size, int) and size > 0 for size in rewards.shape):
        return {"default": xla}
    found: dict[str, Backend] = {}
    for platform, name in PLATFORMS[program.implementation].items():
        try:
            backend = _backend(name)
        except ImportError as error:
            if name == "jax_triton" and program.implementation == "triton_jax":
                raise
            if not (isinstance(error, ModuleNotFoundError) and error.name == name):
                warnings.warn(
                    f"{name} is installed and cannot be imported: {error}; mend or remove it: until"
                    " then programs for CUDA run XLA's operations",
                    RuntimeWarning,
                    stacklevel=2,
                )
            continue
        if backend.fits(rewards, where, program.dtype):
            found[platform] = backend
    return found if "default" in found else {**found, "default": xla}


# ---- From rows to a program --------------------------------------------------------------------


class _Program(NamedTuple):
    """What a program is compiled for."""

    implementation: str
    estimator: Estimator  # MAX_AT_K for max@k
    scale: str
    undersized: str
    dtype: np.dtype[Any]
    ks: tuple[int | None, ...]  # the static ones; None stands for the next of the dynamic ones


class JaxBackend(NamedTuple):
    """One of JAX's implementations, as `registry.Backend` has it."""

    implementation: str

    @classmethod
    def load(cls, implementation: str) -> JaxBackend:
        """Import what an implementation is named for.

        Raises:
            ImportError: it is installed and cannot be imported.
        """
        _backend(next(iter(PLATFORMS[implementation].values())))
        return cls(implementation)

    def transform_rows(
        self,
        rewards: jax.Array,
        k: int | jax.Array,
        where: jax.Array | None,
        *,
        estimator: Estimator,
        scale: str,
        undersized: str,
        dtype: Any,
    ) -> jax.Array:
        """Transform rows: rewards (rows, N), k an integer, () or (rows,), where (rows, N) or None
        → (rows, N) of dtype, a constant of the loss."""
        return self._rows(rewards, [k], where, estimator, scale, undersized, dtype)

    def max_at_k_rows(
        self,
        rewards: jax.Array,
        ks: Sequence[int | jax.Array],
        where: jax.Array | None,
        *,
        dtype: Any,
    ) -> jax.Array:
        """Estimate the best of each k: rewards (rows, N), each k an integer or (), where (rows, N)
        or None → (rows, len(ks)) of dtype, a constant of the loss."""
        return self._rows(rewards, list(ks), where, MAX_AT_K, "sum", "nan", dtype)

    def _rows(
        self,
        rewards: jax.Array,
        ks: Sequence[int | jax.Array],
        where: jax.Array | None,
        estimator: Estimator,
        scale: str,
        undersized: str,
        dtype: Any,
    ) -> jax.Array:
        # Within somebody's jit an integer is a constant anyway, and a kernel is faster for it.
        # Outside, it would mean another program for every k.
        in_a_program = isinstance(rewards, jax.core.Tracer)
        static = tuple(k if isinstance(k, int) and in_a_program else None for k in ks)
        dynamic = [jnp.asarray(k) for k, known in zip(ks, static, strict=True) if known is None]
        program = _Program(
            self.implementation, estimator, scale, undersized, jnp.dtype(dtype), static
        )
        weights = [_weights_on_host(program, rewards, k, where) for k in ks]
        # Pallas interpreted is compiled step by step: as part of no program of its own.
        run = _run if self.implementation == "pallas_interpret" else _run_in_one_program
        return run(lax.stop_gradient(rewards), dynamic, where, weights, program)


def _weights_on_host(
    program: _Program, rewards: jax.Array, k: Any, where: jax.Array | None
) -> GapWeights | None:
    """Weigh rows whose n and k the host knows, in float64 and rounded once: (1, N−1). They are
    operands: a new k compiles nothing."""
    n = rewards.shape[-1]
    if where is not None or not isinstance(k, int) or not isinstance(n, int):
        return None
    wide = np.float64 in (program.dtype, rewards.dtype)
    # With an axis of rows: JAX may be told to broadcast no missing one.
    weights = host_weights(program.estimator, n, [n], [k])
    compute = np.dtype(np.float64 if wide else np.float32)
    return GapWeights(weights.k_is_valid, *(np.asarray(weight, compute) for weight in weights[1:]))


def _run(
    rewards: jax.Array,
    dynamic: Sequence[jax.Array],
    where: jax.Array | None,
    weights: Sequence[GapWeights | None],
    program: _Program,
) -> jax.Array:
    backends = _backends(program, rewards, where)
    branches = {name: partial(_call, backend, program) for name, backend in backends.items()}
    if set(backends.values()) == {xla}:
        return branches["default"](rewards, dynamic, where, weights)
    if set(branches) == {"default"}:
        return _batching(branches["default"], program)(rewards, dynamic, where, weights)

    def by_platform(*operands: Any) -> jax.Array:
        return lax.platform_dependent(*operands, **branches)

    return _batching(by_platform, program)(rewards, dynamic, where, weights)


_run_in_one_program = jax.jit(_run, static_argnames=("program",))


def _call(
    backend: Backend,
    program: _Program,
    rewards: jax.Array,
    dynamic: Sequence[jax.Array],
    where: jax.Array | None,
    weights: Sequence[GapWeights | None],
) -> jax.Array:
    rest = iter(dynamic)
    ks = [next(rest) if k is None else k for k in program.ks]
    if program.estimator is MAX_AT_K:
        return backend.max_at_k_rows(rewards, ks, where, weights=weights, dtype=program.dtype)
    return backend.transform_rows(
        rewards,
        ks[0],
        where,
        weights=weights[0],
        estimator=program.estimator,
        scale=program.scale,
        undersized=program.undersized,
        dtype=program.dtype,
    )


# ---- vmap --------------------------------------------------------------------------------------


def _batching(compute: Callable[..., jax.Array], program: _Program) -> Callable[..., jax.Array]:
    """compute(rewards (rows, N), dynamic ks, where, weights) → (rows, columns): the same function,
    which under vmap takes more rows. Kernels have no batching rule of their own."""

    @custom_vmap
    def of_rows(*operands: Any) -> jax.Array:
        return compute(*operands)

    @of_rows.def_vmap
    def of_more_rows(
        size: int,
        batched: Sequence[Any],
        rewards: jax.Array,
        dynamic: Sequence[jax.Array],
        where: jax.Array | None,
        weights: Sequence[GapWeights | None],
    ) -> tuple[jax.Array, bool]:
        def with_batch(is_batched: bool, x: jax.Array) -> jax.Array:
            return x if is_batched else jnp.broadcast_to(x, (size, *x.shape))

        rewards = with_batch(batched[0], rewards)
        rows, n = rewards.shape[1:]
        # They are the same for all elements, and yet batched, with all else, where vmap makes
        # selects of lax.cond's branches.
        weights = jax.tree.map(
            lambda is_batched, x: jnp.resize(x, x.shape[1:]) if is_batched else x,
            batched[3],
            weights,
        )
        if where is not None:
            where = with_batch(batched[2], where)
        if program.estimator is MAX_AT_K and any(batched[1]):
            # A kernel has the same ks for all its rows: one launch for each element of the batch.
            dynamic = [with_batch(of_k, k) for of_k, k in zip(batched[1], dynamic, strict=True)]
            each = lambda one: of_rows(*one, weights)  # noqa: E731
            return lax.map(each, (rewards, dynamic, where)), True
        if program.estimator is not MAX_AT_K and dynamic and (batched[1][0] or dynamic[0].ndim > 0):
            k = with_batch(batched[1][0], dynamic[0]).reshape(size, -1)
            dynamic = [jnp.broadcast_to(k, (size, rows)).reshape(-1)]
        flat = rewards.reshape(-1, n), dynamic, None if where is None else where.reshape(-1, n)
        out = of_rows(*flat, weights)
        return out.reshape(size, rows, out.shape[-1]), True

    return of_rows


# ---- Arrays on several devices -----------------------------------------------------------------
#
# Of an array on a mesh with Explicit axes, which `jax.make_mesh` makes, the type says how it lies,
# inside jit too; a concrete array says it itself, on Auto axes as well. There the computation goes
# inside `jax.shard_map`: no group moves, and a kernel sees whole rows. What a program does along
# Auto axes is left to the compiler, and along Manual axes to its author.


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
