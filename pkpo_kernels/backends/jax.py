"""The one way from JAX arrays to a backend: which one a program runs on which platform, and what
that makes of jit and vmap. (Arrays that lie on several devices: `jax_meshes`.)

Where a program runs is known when it is lowered, not when it is traced: until then it has a branch
for every platform of PLATFORMS.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from pkpo_kernels.backends import xla
from pkpo_kernels.backends._installed import import_jax_triton
from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.maths.weights import LONGEST_KEPT, Estimator, GapWeights, host_weights

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
        import_jax_triton()
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
    make = _kept_weights if n <= LONGEST_KEPT else _weights
    return make(program.estimator, n, k, np.dtype(np.float64 if wide else np.float32))


def _weights(estimator: Estimator, n: int, k: int, dtype: np.dtype[Any]) -> GapWeights:
    # With an axis of rows: JAX may be told to broadcast no missing one.
    weights = host_weights(estimator, n, [n], [k])
    return GapWeights(weights.k_is_valid, *(np.asarray(weight, dtype) for weight in weights[1:]))


_kept_weights = lru_cache(64)(_weights)


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
