"""Checks against exact gradients: the expectation of what an implementation gives, over all that a
policy can sample, is the derivative of max@k."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.maths.estimators import MAX_AT_K
from pkpo_kernels.selfcheck.findings import Finding, Tally
from pkpo_kernels.selfcheck.subjects import (
    computed,
    computes_float64,
    float64_allowed,
    largest_k,
)

# Of an expectation over all that a policy can sample, where it is computed in float64.
EXACT_TOLERANCE = 1e-10
# A policy over so many answers, sampled so many times: all of the outcomes are looked at.
ANSWERS = 3
# A group of one has no others to be compared with, and "sloo_minus_one" gives it no gradient.
SAMPLED_N = (2, 5)


def against_closed_form(implementation: str, estimator: str, seed: int) -> Finding:
    """Compare with max@k in closed form: the expectation of Σ_i out_i · ∇ log p(sample_i) with its
    gradient ("exact gradient"), and that of its estimate with its value ("exact value")."""
    estimates_value = estimator == MAX_AT_K.name
    against = "exact value" if estimates_value else "exact gradient"
    tally = Tally(implementation, estimator, against)
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(ANSWERS)
    policy = np.exp(logits) / np.exp(logits).sum()
    # What each answer earns. Of all that is sampled, the first is most of it pass@k.
    earned = {
        "pass@k": np.array([0.0, 1.0, 0.0]),
        "max@k, tied": np.array([0.5, -1.0, 0.5]),
        "max@k": rng.standard_normal(ANSWERS).astype(np.float32).astype(np.float64),
    }
    with float64_allowed(tally.library):
        dtype = "float32"
        if computes_float64(implementation):
            tally.tolerance = EXACT_TOLERANCE
            dtype = "float64"
        for n in SAMPLED_N:
            answers = np.indices((ANSWERS,) * n).reshape(n, -1).T  # (outcomes, n)
            chance = policy[answers].prod(axis=1)  # (outcomes,)
            for k in range(1, largest_k(estimator, n) + 1):
                for name, rewards in earned.items():

                    def error(
                        rewards: Any = rewards,
                        k: int = k,
                        answers: Any = answers,
                        chance: Any = chance,
                    ) -> float:
                        got = computed(estimator, rewards[answers], k, implementation, dtype=dtype)
                        value, gradient = best_of_k(policy, rewards, k)
                        if estimates_value:
                            return abs(float(chance @ got) - value)
                        # The gradient of log p(answer) by the logits.
                        score = np.eye(ANSWERS)[answers] - policy  # (outcomes, n, ANSWERS)
                        expectation = np.einsum("s,si,sia->a", chance, got, score)
                        return float(np.abs(expectation - gradient).max())

                    tally.compare(f"n={n} k={k} {name}", len(answers), error)
    return tally.finding()


def best_of_k(
    policy: NDArray[np.float64], rewards: NDArray[np.float64], k: int
) -> tuple[float, NDArray[np.float64]]:
    """Compute max@k of a policy over a few answers, in closed form, and its gradient; pass@k where
    rewards are 0 and 1: (answers,) → a number and (answers,).

    Args:
        policy: (answers,) the probability of each: the softmax of its logits.
        rewards: (answers,) what each earns.
        k: how many answers are sampled.

    Returns:
        E[max of k] = r_(L) − Σ_l (r_(l+1) − r_(l)) · F_l^k, where r_(1) < … < r_(L) are the rewards
        that there are and F_l the chance to earn at most r_(l); and its derivative by the logits.

    >>> best_of_k(np.array([0.75, 0.25]), np.array([0.0, 1.0]), 2)
    (0.4375, array([-0.28125,  0.28125]))
    """
    levels = np.unique(rewards)
    at_most = (rewards <= levels[:, None]).astype(np.float64)
    reached = at_most @ policy
    steps = np.diff(levels)
    value = levels[-1] - steps @ reached[:-1] ** k
    # ∂F_l / ∂logit_a = p_a · ([r_a ≤ r_(l)] − F_l)
    slopes = k * reached[:, None] ** (k - 1) * policy * (at_most - reached[:, None])
    return float(value), -steps @ slopes[:-1]
