"""Every kernel that ships, each by a call of the library that launches it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

import pkpo_kernels as pk

K = 2  # all gaps of a row weigh something, so that none of its numbers may be left out
VALID = 0.75  # of the samples of rows with a mask

# Rewards of so many kinds, by the names of their figures.
KINDS = ("normal", "two_values", "four_values", "near_ties")


class Variant(NamedTuple):
    """A call: of rows of n samples, one after the other."""

    n: int
    dtype: str = "float32"
    masked: bool = False
    k: str = "int"  # or "scalar", in memory, or "row", one for each
    estimator: str = "sloo_minus_one"  # or "max@k", which is a function of its own

    @property
    def name(self) -> str:
        """Name it: by what is not as usual."""
        traits = [f"n={self.n} {self.dtype}"]
        if self.masked:
            traits.append("where")
        if self.k != "int":
            traits.append(f"k {self.k}")
        if self.estimator not in ("sloo_minus_one", "max@k"):
            traits.append(self.estimator)
        return ("max@k " if self.estimator == "max@k" else "") + ", ".join(traits)

    def rewards(self, kind: str, rows: int) -> torch.Tensor:
        """Make rewards (rows, n) of one of KINDS; of bools there is only one."""
        normal = torch.randn(rows, self.n, generator=torch.Generator().manual_seed(0))
        dtype: torch.dtype = getattr(torch, self.dtype)
        if kind == "two_values" or dtype == torch.bool:
            return (normal > 0).to(dtype)
        if kind == "four_values":
            return (normal.abs() * 2).floor().clamp(max=3).to(dtype)
        if kind == "near_ties":
            return (1 + normal.argsort(1) * 2.0**-23).to(dtype)
        return normal.to(dtype)

    def call(self, rewards: torch.Tensor, implementation: Any = "triton") -> torch.Tensor:
        """Call the library with rewards (rows, n)."""
        options: dict[str, Any] = {"implementation": implementation}
        if self.masked:
            generator = torch.Generator().manual_seed(1)
            options["where"] = torch.rand(rewards.shape, generator=generator) < VALID
        if self.estimator == "max@k":
            return pk.max_at_k(rewards, K, **options)
        scalar = torch.tensor(K)
        ks: dict[str, Any] = {"int": K, "scalar": scalar, "row": torch.full(rewards.shape[:1], K)}
        options["estimator"] = self.estimator
        return pk.transform(rewards, ks[self.k], **options)


def shipped() -> Iterator[Variant]:
    """Every regime, with and without a mask; every dtype in a thread of its own and in several;
    every kind of k."""
    for n in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192):
        yield Variant(n)
    # No powers of two, and no multiples of four.
    for n in (12, 24, 40, 80, 100, 300, 1000, 5, 10, 26, 102, 1002):
        yield Variant(n)
    for dtype in ("bfloat16", "float16"):
        yield Variant(32, dtype)
        yield Variant(128, dtype)
        yield Variant(512, dtype)
        yield Variant(64, dtype, masked=True)
        yield Variant(26, dtype, masked=True)
        yield Variant(102, dtype)
    yield Variant(32, "bool", masked=True)
    yield Variant(128, "bool")
    for n in (16, 32, 64, 100, 128, 256, 512):
        yield Variant(n, masked=True)
    for n in (8, 4096):
        yield Variant(n, masked=True, estimator="sloo")
    for n in (32, 128):
        yield Variant(n, k="scalar")
        yield Variant(n, masked=True, k="row", estimator="passk_training")
        yield Variant(n, masked=True, estimator="max@k")


def long_rows() -> Iterator[Variant]:
    """What finishes rows that the library has sorted."""
    for dtype in ("float32", "bool"):
        yield Variant(16384, dtype, k="row", estimator="passk_training")
        yield Variant(16384, dtype, masked=True, k="row", estimator="passk_training")
        yield Variant(16384, dtype, masked=True, estimator="max@k")
