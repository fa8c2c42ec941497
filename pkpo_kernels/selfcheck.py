"""Check the implementations on this machine: against the definitions, against exact gradients, and
on random shapes. Needs nothing but the package and the array libraries that are installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_kernels.api import SCALES, UNDERSIZED, max_at_k, transform
from pkpo_kernels.backends import registry
from pkpo_kernels.maths import reference
from pkpo_kernels.maths.estimators import ESTIMATORS, MAX_AT_K

# NumPy computes float64 in float64; the others are given float32.
TOLERANCES = {"numpy": 1e-11, "torch": 5e-6, "jax": 5e-6}
# Of an expectation over all that a policy can sample, where it is computed in float64.
EXACT_TOLERANCE = 1e-10
ENUMERATED_N = (1, 2, 3, 5, 7)
REFERENCE_N = (9, 64, 250)
ROWS = 8
# A policy over so many answers, sampled so many times: all of the outcomes are looked at.
ANSWERS = 3
# A group of one has no others to be compared with, and "sloo_minus_one" gives it no gradient.
SAMPLED_N = (2, 5)
RANDOM_CASES = 2
# Groups of so many samples, with this scale where the estimator has one: few programs to compile.
SPOILED_N = ((9, "sum"), (64, "mean"))
SPOILED_TOLERANCE = 5e-6
# What may befall a group: a sample is not finite, two are too far apart, all are near the largest.
FATES = ("as drawn", "NaN", "inf", "-inf", "overflow", "large", "large, one sign")

EVERYTHING = (*ESTIMATORS, MAX_AT_K.name)
# Divided by a deviation: without a scale, and biased.
NORMALIZED = tuple(name for name, estimator in ESTIMATORS.items() if estimator.normalized)
# Those whose expectation is the gradient.
UNBIASED = tuple(name for name in ESTIMATORS if name not in NORMALIZED)


@dataclass(frozen=True)
class Finding:
    """What one implementation of one estimator gave.

    Attributes:
        implementation, estimator: what was checked.
        against: "enumeration" of all subsets (small n, every k); "reference", the oracle in float64
          (larger n); "exact gradient" and "exact value": the derivative of max@k and pass@k, and
          max@k itself, in closed form, for a policy whose every outcome is enumerated; "rows that
          are not finite": a row with a NaN, an infinity or a range that overflows is NaN, whatever
          else is in its matrix, and rewards near the largest number give what the reference makes
          of small ones; "random shapes": the reference again, on shapes, masks, ks, options and
          rows that are not finite, drawn from the seed, the same for all implementations.
        cases: how many rows were compared.
        worst_error: the largest difference, relative to the size of the row's results or rewards;
          absolute for "exact gradient" and "exact value", whose rewards are of size 1. Infinite
          where the implementation raised an error.
        tolerance: what is allowed.
        worst_case: where the worst was seen, and the error that was raised there.
    """

    implementation: str
    estimator: str
    against: str
    cases: int
    worst_error: float
    tolerance: float
    worst_case: str

    @property
    def ok(self) -> bool:
        # A NaN is no number below the tolerance.
        return bool(self.worst_error <= self.tolerance)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is not finite is None."""
        error = self.worst_error if np.isfinite(self.worst_error) else None
        return asdict(self) | {"worst_error": error, "ok": self.ok}


class _Tally:
    """A finding in the making."""

    def __init__(self, implementation: str, estimator: str, against: str) -> None:
        self.implementation, self.estimator, self.against = implementation, estimator, against
        self.kind = registry.library_served(implementation)
        self.cases, self.worst, self.worst_case = 0, 0.0, "none"
        self.tolerance = TOLERANCES[self.kind]

    def compare(self, case: str, rows: int, error: Callable[[], float]) -> None:
        self.cases += rows
        # What breaks on a user's machine breaks in any way at all, and the rest is still to check.
        try:
            found = error()
        except Exception as raised:
            found = np.inf
            case = f"{case}: {type(raised).__name__}: {' '.join(str(raised).split())[:200]}"
        # A NaN stays the worst.
        if not found <= self.worst and not np.isnan(self.worst):
            self.worst, self.worst_case = found, case

    def finding(self) -> Finding:
        return Finding(
            self.implementation,
            self.estimator,
            self.against,
            self.cases,
            self.worst,
            self.tolerance,
            self.worst_case,
        )


def verify(implementations: Sequence[str] | None = None, *, seed: int = 0) -> Iterator[Finding]:
    """Check implementations; yields one `Finding` after another.

    Args:
        implementations: names from `available_implementations()`; None checks all available
          ones but the interpreted.
        seed: of the random rewards, policies and shapes; at least 0.

    Raises:
        ValueError: a name is unknown or cannot be used here, or the seed is negative; raised before
          anything is computed.

    >>> all(finding.ok for finding in verify(["numpy"]))
    True
    """
    return _findings(_checked(implementations, seed), seed)


def count_findings(implementations: Sequence[str] | None = None) -> int:
    """How many findings `verify` will yield."""
    each = 4 * len(EVERYTHING) + len(UNBIASED) + 1
    return each * len(_checked(implementations, 0))


def fuzz(
    implementations: Sequence[str] | None = None,
    *,
    seed: int = 0,
    minutes: float,
    progress: Callable[[float], None] = lambda seconds: None,
) -> list[Finding]:
    """Check implementations on random shapes, masks, ks and options until the time is over.

    Args:
        implementations, seed: as for `verify`. Case i of a seed is the same on every machine.
        minutes: how long, above 0; the case at hand is finished.
        progress: is told after each case how many seconds have passed.

    Returns:
        A finding for each implementation and estimator, "random shapes" as in `verify`.

    Raises:
        ValueError: as `verify` does, or minutes is not above 0; raised before anything is computed.

    >>> {finding.ok for finding in fuzz(["numpy"], seed=1, minutes=0.001)}
    {True}
    """
    if not 0 < minutes < np.inf:
        raise ValueError(f"minutes must be above 0; got {minutes}")
    names = _checked(implementations, seed)
    tallies = {(i, e): _Tally(i, e, "random shapes") for e in EVERYTHING for i in names}
    start = time.monotonic()
    index = 0
    while (seconds := time.monotonic() - start) < 60 * minutes:
        progress(seconds)
        # Beyond the cases that `verify` has looked at.
        index += 1
        for estimator in EVERYTHING:
            case = _drawn_case(seed, RANDOM_CASES + index, estimator)
            for implementation in names:
                case.compare(tallies[implementation, estimator])
    return [tally.finding() for tally in tallies.values()]


def _checked(implementations: Sequence[str] | None, seed: int) -> tuple[str, ...]:
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}")
    if implementations is None:
        available = registry.available_implementations()
        # What simulates a chip is there to be looked at, and takes minutes.
        return tuple(
            name
            for name, reason in available.items()
            if reason is None and not registry.IMPLEMENTATIONS[name].is_interpreter
        )
    for name in implementations:
        registry.choose(name, registry.library_served(name))
    return tuple(implementations)


def _findings(implementations: tuple[str, ...], seed: int) -> Iterator[Finding]:
    for implementation in implementations:
        for estimator in EVERYTHING:
            yield _by_rows(implementation, estimator, "enumeration", ENUMERATED_N, seed)
            yield _by_rows(implementation, estimator, "reference", REFERENCE_N, seed)
            if estimator in UNBIASED:
                yield _by_expectation(implementation, estimator, "exact gradient", seed)
            if estimator == MAX_AT_K.name:
                yield _by_expectation(implementation, estimator, "exact value", seed)
            yield _by_rule(implementation, estimator, seed)
            tally = _Tally(implementation, estimator, "random shapes")
            for index in range(RANDOM_CASES):
                _drawn_case(seed, index, estimator).compare(tally)
            yield tally.finding()


def _largest_k(estimator: Any, n: int) -> int:
    return int(ESTIMATORS[estimator].largest_k(n)) if estimator in ESTIMATORS else n


def _by_rows(
    implementation: str, estimator: str, against: str, sizes: tuple[int, ...], seed: int
) -> Finding:
    tally = _Tally(implementation, estimator, against)
    for n in sizes:
        ks = range(1, n + 1) if against == "enumeration" else (1, 2, 8, n // 2, n - 1, n)
        for k in (k for k in ks if k <= _largest_k(estimator, n)):
            for name, rewards, want in _expected(estimator, against, n, k, seed):

                def error(rewards: Any = rewards, k: int = k, want: Any = want) -> float:
                    given = as_given(rewards, tally.kind)
                    got = _on_host(_call(estimator, given, k, implementation))
                    size = max(float(np.abs(rewards).max()), float(np.abs(want).max()))
                    worst = float(np.abs(got - want).max())
                    return worst / size if size else worst

                tally.compare(f"n={n} k={k} {name}", ROWS, error)
    return tally.finding()


@lru_cache(maxsize=512)  # The oracle takes its time, and all implementations are asked the same.
def _expected(
    estimator: str, against: str, n: int, k: int, seed: int
) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Name, rewards (ROWS, n) and what is right, for each kind of rewards."""
    found = []
    for name, rewards in _rewards(np.random.default_rng((seed, n, k)), n).items():
        if against == "reference":
            want = np.asarray(_call(estimator, rewards, k, "reference"), np.float64)
        else:
            of_row: Callable[[Any, int], Any] = (
                reference.ENUMERATIONS[estimator]
                if estimator in ESTIMATORS
                else reference.enumerate_max_at_k
            )
            want = np.array([of_row(row, k) for row in rewards])
        found.append((name, rewards, want))
    return found


def _rewards(rng: np.random.Generator, n: int) -> dict[str, NDArray[np.float64]]:
    """(ROWS, n) of each kind, exact in float32."""
    return {
        "gaussian": rng.standard_normal((ROWS, n)).astype(np.float32).astype(np.float64),
        "0/1": rng.integers(0, 2, (ROWS, n)).astype(np.float64),
        "five levels": rng.integers(-2, 3, (ROWS, n)) / 2.0,
    }


def _by_expectation(implementation: str, estimator: str, against: str, seed: int) -> Finding:
    tally = _Tally(implementation, estimator, against)
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(ANSWERS)
    policy = np.exp(logits) / np.exp(logits).sum()
    # What each answer earns. Of all that is sampled, the first is most of it pass@k.
    earned = {
        "pass@k": np.array([0.0, 1.0, 0.0]),
        "max@k, tied": np.array([0.5, -1.0, 0.5]),
        "max@k": rng.standard_normal(ANSWERS).astype(np.float32).astype(np.float64),
    }
    with _float64_allowed(tally.kind):
        if _computes_float64(implementation):
            tally.tolerance = EXACT_TOLERANCE
            dtype = "float64"
        else:
            dtype = "float32"
        for n in SAMPLED_N:
            answers = np.indices((ANSWERS,) * n).reshape(n, -1).T
            for k in range(1, _largest_k(estimator, n) + 1):
                for name, rewards in earned.items():

                    def error(rewards: Any = rewards, k: int = k, answers: Any = answers) -> float:
                        given = as_given(rewards[answers], tally.kind, dtype)
                        got = _on_host(_call(estimator, given, k, implementation))
                        value, gradient = best_of_k(policy, rewards, k)
                        chance = policy[answers].prod(axis=1)
                        if estimator == MAX_AT_K.name:
                            return abs(float(chance @ got) - value)
                        # The gradient of log p(answer) by the logits.
                        score = np.eye(ANSWERS)[answers] - policy
                        expectation = np.einsum("s,si,sia->a", chance, got, score)
                        return float(np.abs(expectation - gradient).max())

                    tally.compare(f"n={n} k={k} {name}", len(answers), error)
    return tally.finding()


def best_of_k(
    policy: NDArray[np.float64], rewards: NDArray[np.float64], k: int
) -> tuple[float, NDArray[np.float64]]:
    """max@k of a policy over a few answers, in closed form; pass@k where rewards are 0 and 1.

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


def _by_rule(implementation: str, estimator: str, seed: int) -> Finding:
    tally = _Tally(implementation, estimator, "rows that are not finite")
    tally.tolerance = SPOILED_TOLERANCE
    with _float64_allowed(tally.kind):
        dtypes = ["float32", *(["float64"] if _computes_float64(implementation) else [])]
        for n, scale in SPOILED_N:
            for dtype in dtypes:
                _spoiled_case(seed, n, scale, estimator).compare(tally, dtype)
    return tally.finding()


@dataclass(frozen=True)
class _Case:
    """Random rewards and options, the same for every implementation.

    Attributes:
        rewards: float64 that is finite and exact in float32, or bool.
        spoiled: in the shape of rewards: a NaN or an infinity that takes the place of the reward, 1
          or −1 where the largest number of the dtype does, 0 where nothing does. Or None.
        large: True for groups that are given multiplied by a power of two that brings them near the
          largest number, 1 along the axis of samples. Or None.
        expected: of the rewards as they stand, NaN for groups with something spoiled.
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
        k: Any,
        options: dict[str, Any],
        text: str,
        rng: np.random.Generator,
        fates: NDArray[np.int64] | None,
    ) -> _Case:
        """Rewards (..., n), where (..., n) or None, fates (...): indices into FATES, or None."""
        spoiled, large = None, None
        if fates is not None:
            rewards, spoiled, large = _befallen(rng, rewards, where, fates)
        axis = options["axis"]
        rewards = np.moveaxis(rewards, -1, axis)
        if spoiled is not None and large is not None:
            spoiled, large = np.moveaxis(spoiled, -1, axis), np.moveaxis(large, -1, axis)
        if where is not None:
            options = options | {"where": np.moveaxis(where, -1, axis)}
        want = np.asarray(_call(estimator, rewards, k, "reference", **options), np.float64)
        if spoiled is not None:
            valid = options.get("where", np.True_)
            lost = ((spoiled != 0) & valid).any(axis=axis, keepdims=True)
            lost = lost.squeeze(axis) if estimator == MAX_AT_K.name else lost & valid
            want = np.where(lost, np.nan, want)
        return cls(estimator, rewards, spoiled, large, k, options, want, text)

    def given(self, dtype: str) -> NDArray[Any]:
        """The rewards in this dtype; bool stays bool."""
        if self.spoiled is None or self.large is None:
            return self.rewards if self.rewards.dtype == np.bool_ else self.rewards.astype(dtype)
        limits = np.finfo(dtype)
        rewards = np.ldexp(self.rewards.astype(dtype), (limits.maxexp - 1) * self.large)
        put = np.where(np.isfinite(self.spoiled), self.spoiled * limits.max, self.spoiled)
        return np.where(self.spoiled == 0, rewards, put.astype(dtype))

    def compare(self, tally: _Tally, dtype: str | None = None) -> None:
        """Enter into the tally what its implementation makes of this case."""
        if dtype is None:
            dtype = "float64" if tally.kind == "numpy" else "float32"

        def error(dtype: str = dtype) -> float:
            kind = tally.kind
            options = dict(self.options)
            if "where" in options:
                options["where"] = as_given(options["where"], kind)
            given = as_given(self.given(dtype), kind, dtype)
            got = _on_host(_call(self.estimator, given, self.k, tally.implementation, **options))
            return self._error(got, dtype)

        tally.compare(f"{self.text}, {dtype}", max(1, self.rewards.size // self.n), error)

    @property
    def n(self) -> int:
        return int(self.rewards.shape[self.options["axis"]])

    def _error(self, got: NDArray[np.float64], dtype: str) -> float:
        """The worst over all rows, relative to the largest result of the row or to its terms."""
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
    """Results for large groups, by the power of two that their rewards were multiplied by.

    An infinity is right where the right result is at least the largest number of the dtype, and
    where it is smaller as wrong as that number.
    """
    got = np.ldexp(got, -(limits.maxexp - 1) * large)
    limit = np.where(large, np.ldexp(float(limits.max), 1 - limits.maxexp), np.inf)
    endless = np.copysign(np.maximum(np.abs(want), limit), got)
    return np.where(np.isinf(got), endless, got)


@lru_cache(maxsize=64)
def _drawn_case(seed: int, index: int, estimator: str) -> _Case:
    """Case `index` of the seed, a different one for each estimator."""
    rng = np.random.default_rng((seed, index, EVERYTHING.index(estimator)))
    n = round(2 ** rng.uniform(1, 8.5))
    leading = tuple(rng.integers(1, 6, rng.integers(0, 3)).tolist())
    axis = int(rng.integers(0, len(leading) + 1))
    kinds: dict[str, Callable[[], NDArray[Any]]] = {
        "gaussian": lambda: rng.standard_normal((*leading, n)),
        "far from 0": lambda: rng.standard_normal((*leading, n)) + 100,
        "of many sizes": lambda: np.exp(4 * rng.standard_normal((*leading, n))),
        "five levels": lambda: rng.integers(-2, 3, (*leading, n)) / 2,
        "0/1": lambda: rng.integers(0, 2, (*leading, n)).astype(np.float64),
        "bool": lambda: rng.integers(0, 2, (*leading, n)).astype(np.bool_),
        "all equal": lambda: np.ones((*leading, n)) * rng.standard_normal((*leading, 1)),
    }
    kind = str(rng.choice(list(kinds)))
    rewards = kinds[kind]()
    if kind != "bool":
        rewards = rewards.astype(np.float32).astype(np.float64)
    masked = bool(rng.integers(0, 2))
    where = rng.random(rewards.shape) < rng.uniform(0.3, 1) if masked else None
    # Small ks are what people train with: each size of k as often as the others.
    share = rng.random(leading if rng.integers(0, 2) and estimator != MAX_AT_K.name else ())
    ks = (_largest_k(estimator, n) ** share).round().astype(int)
    k = int(ks) if ks.ndim == 0 else ks
    options: dict[str, Any] = {"axis": axis}
    if estimator != MAX_AT_K.name:
        options["scale"] = "sum" if estimator in NORMALIZED else str(rng.choice(SCALES))
        options["undersized"] = str(rng.choice(UNDERSIZED))
    # In one of three half of the groups are not finite, or nearly so.
    drawn = np.asarray(rng.integers(0, len(FATES), leading) * rng.integers(0, 2, leading))
    fates = None if kind == "bool" or rng.random() < 2 / 3 else drawn
    said = ", ".join(f"{name}={value!r}" for name, value in options.items())
    text = f"case {index} of seed {seed}: {leading} groups of n={n}, k={ks.tolist()}, {kind}"
    text += f"{', masked' if masked else ''}{', spoiled' if fates is not None else ''}, {said}"
    return _Case.of(estimator, rewards, where, k, options, text, rng, fates)


@lru_cache(maxsize=64)
def _spoiled_case(seed: int, n: int, scale: str, estimator: str) -> _Case:
    """Groups of n samples of every fate, whole and with samples left out, each with a k."""
    rng = np.random.default_rng((seed, n))
    fates = np.tile(np.arange(len(FATES)), 4)
    gaussian, levels = rng.standard_normal((2, len(fates) // 2, n))
    rewards = np.concatenate([gaussian, levels.round()]).astype(np.float32).astype(np.float64)
    where = rng.random(rewards.shape) < 0.7
    where[: len(FATES)] = where[-len(FATES) :] = True
    options: dict[str, Any] = {"axis": 1}
    k: Any = 2
    if estimator != MAX_AT_K.name:
        k = rng.integers(1, _largest_k(estimator, n) + 1, len(fates))
        options["scale"] = "sum" if estimator in NORMALIZED else scale
        options["undersized"] = UNDERSIZED[n % len(UNDERSIZED)]
    return _Case.of(estimator, rewards, where, k, options, f"n={n}, {options}", rng, fates)


def _befallen(
    rng: np.random.Generator,
    rewards: NDArray[np.float64],
    where: NDArray[np.bool_] | None,
    fates: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """rewards (..., n), where (..., n) or None, fates (...) → rewards, spoiled, large of a case."""
    rewards, spoiled = rewards.copy(), np.zeros(rewards.shape)
    names = np.asarray(np.array(FATES)[fates])
    for group in np.ndindex(fates.shape):
        row, name = rewards[group], names[group]
        valid = np.arange(len(row)) if where is None else np.flatnonzero(where[group])
        if name in ("NaN", "inf", "-inf"):
            # Wherever it is: a sample that is left out touches nothing.
            spoiled[group][rng.integers(len(row))] = float(name)
        elif name == "overflow" and len(valid) > 1:
            low, high = rng.choice(valid, 2, replace=False)
            spoiled[group][low], spoiled[group][high] = -1, 1
        elif name == "large":
            # Below 2, and so is the range: the power of two for it makes both finite.
            row *= 0.99 / max(1.0, np.abs(row).max())
        elif name == "large, one sign":
            row[:] = np.copysign(1.5 + 0.2 * row / max(1.0, np.abs(row).max()), row[0])
    large = np.char.startswith(names, "large")[..., None]
    return rewards.astype(np.float32).astype(np.float64), spoiled, large


def as_given(values: NDArray[Any], kind: str, dtype: str = "float32") -> Any:
    """Rewards or a mask as a user of the library would have them: on its accelerator if it has one.

    NumPy's are left as they are; of the others bool stays bool, and numbers become of the dtype.
    """
    xp = registry.namespace(kind)
    if kind == "numpy":
        return values
    target = xp.bool_ if kind == "jax" else xp.bool
    if values.dtype != np.bool_:
        target = getattr(xp, dtype)
    if kind == "jax":
        return xp.asarray(values, target)
    return xp.asarray(values, dtype=target, device="cuda" if xp.cuda.is_available() else "cpu")


def _float64_allowed(kind: str) -> AbstractContextManager[Any]:
    """Where JAX may make arrays of float64."""
    if kind != "jax":
        return nullcontext()
    import jax

    # Older versions of JAX have it elsewhere.
    home: Any = jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")
    return home.enable_x64(True)


def _computes_float64(implementation: str) -> bool:
    """Whether it takes float64 and the device has it."""
    entry = registry.IMPLEMENTATIONS[implementation]
    if entry.library == "jax":
        import jax

        if jax.default_backend() == "tpu":
            return False
    return entry.unsupported(as_given(np.zeros((1, 1)), entry.library, "float64")) is None


def _on_host(out: Any) -> NDArray[np.float64]:
    return np.asarray(out.cpu() if hasattr(out, "cpu") else out, np.float64)


def _call(estimator: Any, array: Any, k: Any, implementation: Any, **options: Any) -> Any:
    if estimator == MAX_AT_K.name:
        return max_at_k(array, k, implementation=implementation, **options)
    return transform(array, k, estimator=estimator, implementation=implementation, **options)
