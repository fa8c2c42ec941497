"""Rows too long for VMEM: what is left of them once XLA has sorted them, a scan."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pkpo_pallas.varying import shape_like

# Terms of a row that a grid step takes, and rows.
BLOCK_TERMS = 256
BLOCK_ROWS = 1024
# Terms that an iteration takes.
_UNROLLED = 32


def prefix_sums(terms: jax.Array, *, interpret: Any = False) -> jax.Array:
    """Sum each row's terms up to each: terms ≥ 0 (rows, m) in float32 → (rows, m).

    What the additions of a row lose to rounding is added up beside them, so that the error does not
    grow along the row. A term of 0 leaves the sum as it is, to the bit.
    """
    rows, m = terms.shape
    terms = terms.T
    block = pl.BlockSpec((BLOCK_TERMS, BLOCK_ROWS), lambda i, j: (j, i))
    call = pl.pallas_call(
        _kernel,
        out_shape=shape_like(terms.shape, terms.dtype, terms),
        grid=(-(-rows // BLOCK_ROWS), -(-m // BLOCK_TERMS)),
        in_specs=[block],
        out_specs=block,
        scratch_shapes=[pltpu.VMEM((2, BLOCK_ROWS), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )
    # With 64 bits Python's numbers would be int64 and float64, which Mosaic does not lower.
    with jax.enable_x64(False):
        return call(terms).T


def _kernel(terms_ref: Any, sums_ref: Any, carry_ref: Any) -> None:
    @pl.when(pl.program_id(1) == 0)
    def start_sums() -> None:
        carry_ref[...] = jnp.zeros_like(carry_ref)

    def iteration(i: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, lost = carry
        terms = terms_ref[pl.ds(i * _UNROLLED, _UNROLLED), :]
        sums = []
        for c in range(_UNROLLED):
            term = terms[c : c + 1]
            larger = total + term
            # Exactly what the addition loses (Knuth 1969).
            rest = larger - total
            lost = lost + ((total - (larger - rest)) + (term - rest))
            total = larger
            sums.append(total + lost)
        sums_ref[pl.ds(i * _UNROLLED, _UNROLLED), :] = jnp.concatenate(sums)
        return total, lost

    start = (carry_ref[pl.ds(0, 1), :], carry_ref[pl.ds(1, 1), :])
    total, lost = lax.fori_loop(0, BLOCK_TERMS // _UNROLLED, iteration, start)
    carry_ref[pl.ds(0, 1), :], carry_ref[pl.ds(1, 1), :] = total, lost
