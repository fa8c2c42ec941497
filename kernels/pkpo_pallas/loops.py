"""Loops over samples, and blocks of code that the compiler keeps apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from pkpo_pallas.block import ONE, Block
from pkpo_pallas.plan import LANES, SUBLANES


class Index(NamedTuple):
    """Of a sample, or of a group of samples: first + offset."""

    first: Any
    offset: int
    step: int = 1  # first is a multiple of it

    @property
    def value(self) -> Any:
        """Add up the index itself."""
        return self.first + self.offset

    @property
    def as_float(self) -> Any:
        """Give the index as a number, or once for each row: (8, 128)."""
        if isinstance(self.first, int):
            return float(self.value)
        return jnp.full((SUBLANES, LANES), self.value).astype(jnp.float32)

    def split(self, size: int) -> tuple[Any, Any]:
        """Divide by a size: value // size and value % size, with as little arithmetic as can be."""
        if isinstance(self.first, int):
            return divmod(self.value, size)
        if self.step % size == 0:
            return divided(self.first, size) + self.offset // size, self.offset % size
        if size % self.step == 0 and self.offset < self.step:
            return divided(self.first, size), _remainder(self.first, size) + self.offset
        return divided(self.value, size), _remainder(self.value, size)


def isolated(block: Block, body: Callable[[], None]) -> None:
    """Run a body as a block of code by itself: a loop of one iteration, which the compiler does not
    know to be one.

    LLO schedules a block of code as a whole, and would keep what one part of it stores and the next
    one loads in registers, which it then spills. Sorting so takes 4 % fewer bundles at n = 32 and
    64 (9 of 73 more at n = 8); on v4, 5 % fewer at 32; merging so, 1 % and half of the spills at
    128.
    """
    lax.fori_loop(0, block.operands.integers_ref[ONE], without_carry(lambda _: body()), 0)


def each_tile(block: Block, body: Callable[[Any], None]) -> None:
    """Run body(index) for the tiles of a block."""
    n_tiles = block.variant.plan.tiles
    if n_tiles == 1:
        body(0)
    else:
        lax.fori_loop(0, n_tiles, without_carry(body), 0)


def each_row_block(
    block: Block, body: Callable[[Any], None], unroll: int = SUBLANES, count: int = SUBLANES
) -> None:
    """Run body(b) for every 128 rows of a tile, or for as many more as make `count`."""
    unroll = min(unroll, count) if block.variant.plan.unrolled > 1 else 1
    lax.fori_loop(0, count, without_carry(body), 0, unroll=unroll)


def each_iteration(
    unrolled: int,
    n: int,
    body: Callable[[Any, int, Any], Any],
    carry: Any,
    *,
    down: bool = False,
) -> Any:
    """Run body(first, count, carry) for up to `unrolled` of n at a time."""
    full, rest = divmod(n, unrolled)

    def iteration(i: Any, carry: Any) -> Any:
        return body((full - 1 - i if down else i) * unrolled, unrolled, carry)

    if rest and down:
        carry = body(full * unrolled, rest, carry)
    if full == 1:
        carry = body(0, unrolled, carry)
    elif full:
        carry = lax.fori_loop(0, full, iteration, carry)
    if rest and not down:
        carry = body(full * unrolled, rest, carry)
    return carry


def each_sample(
    unrolled: int, n: int, body: Callable[[Index, Any], Any], carry: Any, *, down: bool = False
) -> Any:
    """Run body(index, carry) for n samples one by one, `unrolled` of them an iteration."""

    def iteration(first: Any, count: int, carry: Any) -> Any:
        for c in range(count - 1, -1, -1) if down else range(count):
            carry = body(Index(first, c, unrolled), carry)
        return carry

    return each_iteration(unrolled, n, iteration, carry, down=down)


def without_carry(body: Callable[[Any], None]) -> Callable[[Any, Any], Any]:
    """Make a loop's iteration of a body that hands nothing on."""

    def iteration(i: Any, carry: Any) -> Any:
        body(i)
        return carry

    return iteration


def divided(x: Any, size: int) -> Any:
    """Divide x ≥ 0 by a size, rounding down: JAX's own // handles negative ones, at a cost."""
    if isinstance(x, int):
        return x // size
    if size & (size - 1):
        return lax.div(x, size)
    return lax.shift_right_logical(x, size.bit_length() - 1)


def _remainder(x: Any, size: int) -> Any:
    return lax.rem(x, size) if size & (size - 1) else x & (size - 1)
