"""What a trainer logs of a step's rewards: pass@k, max@k, and how many groups give any signal.

Everything comes from `transform_groups`, and so runs where it does: on the device, under jit.
"""

from __future__ import annotations

from typing import Any

from pkpo_kernels._entries import Entries
from pkpo_kernels.backends import registry
from pkpo_kernels.groups import transform_groups
from pkpo_kernels.maths.weights import Array
from pkpo_kernels.validation import checked_array, checked_integers, checked_mask, dtype_name


def group_metrics(
    rewards: Array,
    ks: Any,
    *,
    groups: Any = None,
    where: Any = None,
    k: Any = None,
) -> dict[str, Array]:
    """Summarise a step's rewards, flat (N,) with group ids or a matrix (..., n), as scalars on
    their device.

    Args:
        rewards: (N,) with `groups`, or (..., n) without: n samples of one task in each row. NaN is
          a sample that could not be scored.
        ks: the ks of pass@k and max@k, integers ≥ 1.
        groups: as for `transform_groups`.
        where: as for `transform_groups`, or in the shape of a matrix of rewards.
        k: the k that is trained with, as for `transform_groups`; None leaves out what depends on
          it.

    Returns:
        A dict of () arrays (floats, in NumPy):

        - "pass@k", "max@k" for each of ks: the means over the groups with at least k samples, NaN
          where there is none. For pass@k a sample is correct whose reward is greater than 0.
        - "groups", and "group_size_min", "group_size_mean", "group_size_max", of groups with a
          valid sample.
        - "signal": the share of groups of which any sample gets an advantage other than 0 at the
          trained k. (That rewards differ is not enough: a single failure among n samples cannot
          lower the best of k = 2.)
        - "undersized": the share of groups with fewer samples than the trained k.
        - "advantage_abs_mean", "advantage_abs_max": over valid samples, for estimator
          "sloo_minus_one" at scale "batch_mean".

    Raises:
        ValueError, TypeError: as `transform_groups` does.

    >>> metrics = group_metrics([0.0, 1.0, 0.0, 0.0, 2.0], [1, 2], groups=list("abaab"), k=2)
    >>> metrics["pass@2"], metrics["max@2"], metrics["signal"], metrics["group_size_max"]
    (0.5, 1.0, 0.5, 3.0)
    """
    ks = checked_integers("ks", ks if hasattr(ks, "__len__") else [ks], least=1)
    if groups is None:
        rewards, where, groups = _flat(rewards, where)
    entries = Entries.of(rewards, where)
    xp = registry.namespace(entries.library)
    rewards = entries.rewards
    if dtype_name(rewards.dtype) in ("float16", "bfloat16"):
        rewards = (
            rewards.to(xp.float32) if entries.library == "torch" else rewards.astype("float32")
        )
    is_valid = rewards == rewards if entries.valid is None else entries.valid

    def sums(values: Array, k: Any) -> Array:
        """s (Eq 19) of every sample, which over a group adds up to k times its max@k."""
        options: Any = {"where": is_valid, "estimator": "s", "scale": "sum"}
        return transform_groups(values, groups, k, **options)

    # Of ones at k=1 it is 1/n, which over all samples adds up to the number of groups.
    share = sums(is_valid, 1)
    sizes = xp.where(is_valid, xp.round(1 / xp.where(is_valid, share, 1)), 0)

    def mean(of_groups: Array, among: Array) -> Array:
        """The mean over groups of what adds up to it, over those that `among` names."""
        number = xp.round(xp.sum(xp.where(among, share, 0)))
        return xp.sum(of_groups) / xp.where(number > 0, number, xp.nan)

    found: dict[str, Array] = {}
    for one in ks:
        found[f"pass@{one}"] = mean(sums(rewards > 0, one) / one, sizes >= one)
        found[f"max@{one}"] = mean(sums(rewards, one) / one, sizes >= one)
    found["groups"] = xp.round(xp.sum(share))
    found["group_size_mean"] = mean(is_valid, is_valid)
    if entries.n:
        found["group_size_min"] = xp.amin(xp.where(is_valid, sizes, xp.inf))
        found["group_size_max"] = xp.amax(sizes)
    if k is not None:
        advantages = transform_groups(rewards, groups, k, where=is_valid)
        magnitude = xp.abs(advantages)
        # The largest of a group is its max@n.
        any_signal = sums(magnitude > 0, _whole(xp.clip(sizes, 1, None)))
        found["signal"] = mean(share * any_signal, is_valid)
        found["undersized"] = mean(xp.where(sizes < k, share, 0), is_valid)
        found["advantage_abs_mean"] = xp.sum(magnitude) / xp.sum(is_valid)
        if entries.n:
            found["advantage_abs_max"] = xp.amax(magnitude)
    return {key: float(x) if entries.library == "numpy" else x for key, x in found.items()}


def _flat(rewards: Any, where: Any) -> tuple[Array, Array, int]:
    """Flatten a matrix and its mask (..., n) → (N,), and n."""
    rewards, library = checked_array("rewards", rewards)
    if len(rewards.shape) < 2:
        raise ValueError(
            "rewards must be (..., n) where there are no groups;"
            f" got shape {tuple(rewards.shape)}: pass groups="
        )
    if where is not None:
        where = checked_mask(where, rewards, library).reshape(-1)
    return rewards.reshape(-1), where, int(rewards.shape[-1])


def _whole(x: Array) -> Array:
    return x.long() if hasattr(x, "long") else x.astype("int32")
