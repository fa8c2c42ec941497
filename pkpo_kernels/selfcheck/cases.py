"""One call with any shape, mask, k and options, and how far its result is from what is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.selfcheck.findings import Tally
from pkpo_kernels.selfcheck.subjects import NORMALIZED, UNBIASED, computed


@dataclass(frozen=True)
class Case:
    """Rewards and options, the same for every implementation.

    Attributes:
        estimator: the name of what is to be computed.
        rewards: (..., n, ...) float64 that is finite and exact in float32, or bool.
        spoiled: in the shape of rewards: a NaN or an infinity that takes the place of the reward, 1
          or −1 where the largest number of the dtype does, 0 where nothing does. Or None.
        large: True for groups that are given multiplied by a power of two that brings them near the
          largest number, 1 along the axis of samples. Or None.
        k, options: of the call; the mask is among them.
        expected: of the rewards as they stand, NaN for groups with something spoiled.
        text: says which case it is.
    """

    estimator: str
    rewards: NDArray[Any]
    spoiled: NDArray[np.float64] | None
    large: NDArray[np.bool_] | None
    k: Any
    options: dict[str, Any]
    expected: NDArray[np.float64]
    text: str

    @classmethod
    def of(
        cls,
        estimator: str,
        rewards: NDArray[Any],
        where: NDArray[np.bool_] | None,
        spoiled: NDArray[np.float64] | None,
        large: NDArray[np.bool_] | None,
        k: Any,
        options: dict[str, Any],
        text: str,
    ) -> Case:
        """Put a case together: rewards, where, spoiled (..., n) and large (..., 1), whose samples
        then move to the axis that the options name."""
        axis = options["axis"]
        rewards = np.moveaxis(rewards, -1, axis)
        if spoiled is not None and large is not None:
            spoiled, large = np.moveaxis(spoiled, -1, axis), np.moveaxis(large, -1, axis)
        if where is not None:
            options = options | {"where": np.moveaxis(where, -1, axis)}
        want = computed(estimator, rewards, k, "reference", **options)
        if spoiled is not None:
            valid = options.get("where", np.True_)
            lost = ((spoiled != 0) & valid).any(axis=axis, keepdims=True)
            lost = lost.squeeze(axis) if estimator == MAX_AT_K.name else lost & valid
            want = np.where(lost, np.nan, want)
        return cls(estimator, rewards, spoiled, large, k, options, want, text)

    @property
    def n(self) -> int:
        """The number of samples of a group."""
        return int(self.rewards.shape[self.options["axis"]])

    def given(self, dtype: str) -> NDArray[Any]:
        """Make the rewards in this dtype, spoiled and large as they are; bool stays bool."""
        if self.spoiled is None or self.large is None:
            return self.rewards if self.rewards.dtype == np.bool_ else self.rewards.astype(dtype)
        limits = np.finfo(dtype)
        rewards = np.ldexp(self.rewards.astype(dtype), (limits.maxexp - 1) * self.large)
        put = np.where(np.isfinite(self.spoiled), self.spoiled * limits.max, self.spoiled)
        return np.where(self.spoiled == 0, rewards, put.astype(dtype))

    def compare(self, tally: Tally, dtype: str | None = None) -> None:
        """Enter into the tally what its implementation makes of this case."""
        if dtype is None:
            dtype = "float64" if tally.library == "numpy" else "float32"

        def error(dtype: str = dtype) -> float:
            got = computed(
                self.estimator,
                self.given(dtype),
                self.k,
                tally.implementation,
                dtype=dtype,
                **self.options,
            )
            return self._error(got, dtype)

        tally.compare(f"{self.text}, {dtype}", max(1, self.rewards.size // self.n), error)

    def _error(self, got: NDArray[np.float64], dtype: str) -> float:
        """Find the worst error of all rows, relative to the largest result of the row or to its
        terms."""
        want, axis = self.expected, self.options["axis"]
        if got.shape != want.shape or not np.array_equal(np.isnan(got), np.isnan(want)):
            return np.inf
        got, want = np.where(np.isnan(got), 0, got), np.nan_to_num(want)
        if self.estimator == MAX_AT_K.name:
            got, want = np.expand_dims(got, axis), np.expand_dims(want, axis)
        if self.large is not None and self.estimator not in NORMALIZED:
            got = _scaled_down(got, want, self.large, np.finfo(dtype))
        size = np.abs(want).max(axis=axis, keepdims=True)
        largest = np.abs(self.rewards.astype(np.float64)).max(axis=axis, keepdims=True)
        if self.estimator == MAX_AT_K.name:
            size = largest
        elif self.estimator in UNBIASED:
            # What is left of terms that cancel may be small; the terms are k/n of the rewards.
            k = np.expand_dims(self.k, axis) if np.ndim(self.k) else np.asarray(self.k)
            share = k if self.options["scale"] == "mean" else k / self.n
            size = np.maximum(size, share * largest)
        else:
            size = np.maximum(size, 1.0)  # in units of a deviation
        return float((np.abs(got - want) / np.where(size > 0, size, 1)).max())


def _scaled_down(
    got: NDArray[np.float64], want: NDArray[np.float64], large: NDArray[np.bool_], limits: Any
) -> NDArray[np.float64]:
    """Divide the results of large groups by the power of two that their rewards were multiplied by:
    got, want (..., n), large (..., 1) → (..., n).

    An infinity is right where the right result is at least the largest number of the dtype, and
    where it is smaller as wrong as that number.
    """
    got = np.ldexp(got, -(limits.maxexp - 1) * large)
    limit = np.where(large, np.ldexp(float(limits.max), 1 - limits.maxexp), np.inf)
    endless = np.copysign(np.maximum(np.abs(want), limit), got)
    return np.where(np.isinf(got), endless, got)
