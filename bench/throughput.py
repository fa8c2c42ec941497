"""How fast whole matrices are transformed, beside a plain copy and beside what else there is.

    python -m bench.throughput [--device auto|cpu|cuda|tpu] [--quick] [--out FOLDER]

What is compared, the arms: every implementation of pkpo_kernels that serves the device; the usual
ways to write the same transform (a sort form in eager torch and under torch.compile, two forms
under jax.jit, row by row in NumPy as in bench/listing.py); and two bounds, a plain copy and a sort
alone.

How: all in this one process; for each matrix the arms take turns, after a warm-up; medians, with
the 20th and 80th percentiles. On GPUs torch's arms are replayed from CUDA graphs and timed by CUDA
events, or called under CUDA events where an arm cannot be captured; JAX's arms are timed by wall
clock over many calls in a row. They go round several buffers, four times the L2 cache in all, so
that no call finds its input there. On CPUs single calls are timed by wall clock, caches as they
are. Forms that go row by row are timed on few rows; what is compared is their rate.

Rates are in GB/s of what a transform must at least move: 8 bytes an element of float32, one read
and one write (5 for bool, whose results are float32). Every rate is also given as a ratio to the
plain copy of the same library in the same turns. What the host does for one call is timed apart,
by eager calls on a matrix of 8 x 8.

No figure is given for an arm whose result, made in the very way that is timed, differs from the
reference in float64 on any of its first, middle and last rows. What else there is may fail; where
an implementation that serves by default has no figure, the exit code is 1.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import pkpo_kernels as pk
from bench import listing
from bench.records import (
    RESULTS,
    Device,
    as_json,
    figure,
    machine,
    origin,
    present,
    stem_of,
    write,
)
from bench.shapes import INPUTS, PLANS, TINY, K, Plan, Shape
from pkpo_kernels.backends import registry
from pkpo_kernels.maths.weights import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# What a result may differ by: relative to itself; to the largest result of its row; and to the
# largest reward there, for forms that cancel in float64, where the true result is 0.
RELATIVE, OF_LARGEST, OF_REWARDS = 5e-6, 2e-6, 1e-12

# Rows made on the host; the device repeats them to fill a matrix.
BLOCK_ELEMENTS = 1 << 22
# More buffers than this are never made, so tiny matrices may stay in the cache; the record says so.
MOST_BUFFERS = 64
FEWEST_SAMPLES, MOST_SAMPLES = 5, 40
# The least seconds of a sample, so that what starts and ends it does not count: of calls that are
# each waited for, of calls in a row on an accelerator, between events, of the host's own work.
CALLS_SPAN, ROW_SPAN, EVENT_SPAN, HOST_SPAN = 0.001, 0.02, 0.004, 0.02
HOST_SAMPLES = 15

# Elements that arms which go row by row, or are interpreted, are timed on.
FEW_ELEMENTS = 1 << 13
ROW_BY_ROW = ("reference", "pallas_interpret")
# Elements of NumPy's matrices where the device is not the CPU.
HOST_ELEMENTS = 1 << 24
# Bytes an element that an arm may hold at one time, besides its input: forms that work on whole
# matrices (sorted values, 64-bit places, gaps, sums, workspace), and those that work in blocks.
WHOLE_BYTES, BLOCKED_BYTES = 64, 16


@dataclass(frozen=True)
class Arm:
    """One thing that is timed.

    Attributes:
        name: what tables call it.
        library: "torch", "jax" or "numpy": whose copy it is compared with.
        call: a matrix → the result.
        proof: what the result is held against: "transform", "sort" or "copy".
        eager: what counts as a call for the host's work, where it is not `call`.
        elements: where given, it is timed on the first rows only, with about as many elements.
        bytes_per_element: the most memory that it may need, by estimate, besides its input.
    """

    name: str
    library: str
    call: Callable[[Array], Array]
    proof: str = "transform"
    eager: Callable[[Array], Array] | None = None
    elements: int | None = None
    bytes_per_element: int = WHOLE_BYTES


@dataclass(frozen=True)
class Stopwatch:
    """A way to time a call. `run(units)` → seconds a call, over units · calls_per_unit calls."""

    method: str
    run: Callable[[int], float]
    calls_per_unit: int = 1
    span: float = 0.0  # the seconds that a sample should take at least


class Library(ABC):
    """An array library on a device."""

    name: str
    # The matrix of an arm has at most so many elements.
    elements: int | None = None

    @abstractmethod
    def matrix(self, block: NDArray[Any], rows: int) -> Array:
        """The block of rows, repeated to so many rows, in new memory."""

    @abstractmethod
    def arms(self, like: Array) -> list[Arm]:
        """What can be timed on matrices like this one; the plain copy first."""

    @abstractmethod
    def rows(self, matrix: Array, places: Sequence[int]) -> NDArray[np.float64]:
        """Some rows of a result, on the host."""

    def serves(self, dtype: np.dtype[Any]) -> bool:
        """Whether its arms are run on rewards of this dtype."""
        return dtype != np.bool_

    @abstractmethod
    def wait(self, result: Array) -> None:
        """Until the result is there."""

    def stopwatch(self, arm: Arm, buffers: Sequence[Array]) -> tuple[Stopwatch, Array]:
        """A stopwatch for the arm, and the result for one of the buffers, made as it is timed."""
        return wall_clock(arm.call, buffers, self.wait, span=CALLS_SPAN)

    def free_bytes(self) -> int | None:
        """Memory left on the device, where that can be told."""
        return None

    @abstractmethod
    def release(self, *, programs: bool) -> None:
        """Give back memory that is cached, and on request the compiled programs."""


def wall_clock(
    call: Callable[[Array], Array],
    buffers: Sequence[Array],
    wait: Callable[[Array], None],
    *,
    wait_each: bool = True,
    span: float = 0.0,
) -> tuple[Stopwatch, Array]:
    """A stopwatch by the host's clock; unless `wait_each`, it waits for the last call only."""
    turns = cycle(buffers)

    def run(calls: int) -> float:
        start = time.perf_counter()
        for buffer in islice(turns, calls):
            result = call(buffer)
            if wait_each:
                wait(result)
        wait(result)
        return (time.perf_counter() - start) / calls

    result = call(next(turns))
    wait(result)
    return Stopwatch("wall clock", run, span=span), result


def implementation_arms(library: str, like: Array) -> list[Arm]:
    """An arm for every implementation of pkpo_kernels that can be used here on such a matrix."""
    return [
        Arm(
            f"pk {name}",
            library,
            partial(pk.transform, k=K, implementation=name),
            elements=FEW_ELEMENTS if name in ROW_BY_ROW else None,
            bytes_per_element=BLOCKED_BYTES,
        )
        for name, entry in registry.IMPLEMENTATIONS.items()
        if entry.library == library and entry.is_installed and not entry.is_interpreter
        if entry.unsupported(like) is None
    ]


def gap_weights(n: int) -> NDArray[np.float32]:
    """What the forms below multiply gaps with, made beforehand in their favour."""
    weights = pk.ESTIMATORS["sloo_minus_one"].weights(n, K).gap
    return np.asarray(weights, np.float32)


class Numpy(Library):
    """NumPy, on the host whatever the device."""

    name = "numpy"

    def __init__(self, device: str) -> None:
        self.device = device
        self.elements = None if device == "cpu" else HOST_ELEMENTS

    def matrix(self, block: NDArray[Any], rows: int) -> Array:
        return np.resize(block, (rows, block.shape[1]))

    def arms(self, like: Array) -> list[Arm]:
        target = np.empty(like.shape, np.float32)

        def copy(rewards: Array) -> Array:
            np.copyto(target, rewards)
            return target

        ours = implementation_arms("numpy", like) if self.device == "cpu" else []
        return [
            Arm("numpy copy", "numpy", copy, proof="copy", bytes_per_element=4),
            *ours,
            Arm(
                "numpy row by row (listing)",
                "numpy",
                lambda rewards: listing.transform(rewards, K),
                elements=FEW_ELEMENTS,
            ),
        ]

    def rows(self, matrix: Array, places: Sequence[int]) -> NDArray[np.float64]:
        return np.asarray(matrix[list(places)], np.float64)

    def wait(self, result: Array) -> None:
        """It is there already."""

    def free_bytes(self) -> int | None:
        return host_free_bytes()

    def release(self, *, programs: bool) -> None:
        """Nothing is held."""


def host_free_bytes() -> int | None:
    """The host's free memory, where the system tells."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


class Torch(Library):
    """torch on the CPU or on an NVIDIA GPU."""

    name = "torch"

    def __init__(self, device: str) -> None:
        import torch

        self.torch = torch
        self.device = torch.device(device)
        self.cuda = device == "cuda"
        # Of the matrix at hand: its graphs, and the memory that they share.
        self.graphs: list[Any] = []
        self.pool: Any = None

        def sort_form(rewards: Array, weights: Array) -> Array:
            ordered, places = torch.sort(rewards.to(torch.float32), dim=-1)
            sums = torch.cumsum(weights * torch.diff(ordered, dim=-1), dim=-1)
            return torch.zeros_like(ordered).scatter_(-1, places[:, 1:], sums)

        self.sort_form = sort_form
        self.compiled = torch.compile(sort_form, dynamic=False)

    def matrix(self, block: NDArray[Any], rows: int) -> Array:
        repeats = -(-rows // len(block))
        return self.torch.from_numpy(block).to(self.device).repeat(repeats, 1)[:rows]

    def arms(self, like: Array) -> list[Arm]:
        torch = self.torch
        rows, n = like.shape
        target = torch.empty((rows, n), device=self.device)
        weights = torch.from_numpy(gap_weights(n)).to(self.device)
        if self.cuda:
            self.graphs, self.pool = [], torch.cuda.graph_pool_handle()
        return [
            Arm("torch copy", "torch", target.copy_, proof="copy", bytes_per_element=4),
            *implementation_arms("torch", like),
            Arm("torch eager, sort form", "torch", lambda x: self.sort_form(x, weights)),
            Arm("torch.compile, sort form", "torch", lambda x: self.compiled(x, weights)),
            Arm("torch.sort alone", "torch", lambda x: torch.sort(x, dim=-1).values, proof="sort"),
        ]

    def rows(self, matrix: Array, places: Sequence[int]) -> NDArray[np.float64]:
        some: NDArray[np.float64] = matrix[list(places)].double().cpu().numpy()
        return some

    def serves(self, dtype: np.dtype[Any]) -> bool:
        return True

    def wait(self, result: Array) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def stopwatch(self, arm: Arm, buffers: Sequence[Array]) -> tuple[Stopwatch, Array]:
        if not self.cuda:
            return super().stopwatch(arm, buffers)
        try:
            return self._graph_replay(arm, buffers)
        except self.torch.OutOfMemoryError:
            raise
        except Exception:
            self.torch.cuda.synchronize()
            self.pool = self.torch.cuda.graph_pool_handle()
            return self._events(arm, buffers)

    def _graph_replay(self, arm: Arm, buffers: Sequence[Array]) -> tuple[Stopwatch, Array]:
        """One graph that goes once round the buffers."""
        graph = self.torch.cuda.CUDAGraph()
        # Graphs of one matrix share their memory: they never run at one time, and what one leaves
        # behind nobody reads but the proof, at once.
        # Of this thread alone: JAX's may do as they like meanwhile.
        with self.torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            for buffer in buffers:
                result = arm.call(buffer)
        if result.is_floating_point():
            result.fill_(math.nan)  # nothing stale may pass for a result
        graph.replay()
        self.torch.cuda.synchronize()
        self.graphs.append(graph)
        run = self._by_events(graph.replay, len(buffers))
        return Stopwatch("CUDA graph, events", run, len(buffers), EVENT_SPAN), result

    def _events(self, arm: Arm, buffers: Sequence[Array]) -> tuple[Stopwatch, Array]:
        turns = cycle(buffers)
        result = arm.call(next(turns))
        self.torch.cuda.synchronize()
        run = self._by_events(lambda: arm.call(next(turns)), 1)
        return Stopwatch("CUDA events", run, 1, EVENT_SPAN), result

    def _by_events(self, launch: Callable[[], Any], calls: int) -> Callable[[int], float]:
        cuda = self.torch.cuda
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)

        def run(units: int) -> float:
            # A launch ahead keeps the device busy while the host queues the others, so that the
            # first event does not run before they are there. One long launch needs none.
            if units > 1:
                launch()
            start.record()
            for _ in range(units):
                launch()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3 / (units * calls)

        return run

    def free_bytes(self) -> int | None:
        cuda = self.torch.cuda
        if not self.cuda:
            return host_free_bytes()
        return int(cuda.mem_get_info()[0] + cuda.memory_reserved() - cuda.memory_allocated())

    def release(self, *, programs: bool) -> None:
        self.graphs = []
        if programs:
            self.torch.compiler.reset()
        if self.cuda:
            self.torch.cuda.empty_cache()


class Jax(Library):
    """JAX on the device that it takes by itself."""

    name = "jax"

    def __init__(self, device: str) -> None:
        import jax

        self.jax: Any = jax
        self.device = device
        found = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if found != device:
            raise RuntimeError(f"JAX runs on {found} here")
        # Made once: every jax.jit of a function compiles it anew.
        self.jitted: dict[str, Callable[[Array], Array]] = {}
        jnp, lax = jax.numpy, jax.lax

        def sums_beneath(ordered: Array, weights: Array) -> Array:
            sums = jnp.cumsum(weights * jnp.diff(ordered, axis=1), axis=1)
            return jnp.pad(sums, ((0, 0), (1, 0)))

        @jax.jit
        def sort_form(rewards: Array, weights: Array) -> Array:
            places = lax.broadcasted_iota(jnp.int32, rewards.shape, 1)
            ordered, places = lax.sort((rewards, places), num_keys=1)
            rows = lax.broadcasted_iota(jnp.int32, rewards.shape, 0)
            sums = sums_beneath(ordered, weights)
            return jnp.zeros_like(rewards).at[rows, places].set(sums, unique_indices=True)

        @jax.jit
        def argsort_form(rewards: Array, weights: Array) -> Array:
            order = jnp.argsort(rewards, axis=1)
            ordered = jnp.take_along_axis(rewards, order, axis=1)
            inverse = jnp.argsort(order, axis=1)
            return jnp.take_along_axis(sums_beneath(ordered, weights), inverse, axis=1)

        self.sort_form, self.argsort_form = sort_form, argsort_form

    def matrix(self, block: NDArray[Any], rows: int) -> Array:
        jnp = self.jax.numpy
        repeats = -(-rows // len(block))
        # The copy is JAX's own: on CPUs it may take in a NumPy array without one.
        return jnp.tile(jnp.array(block, copy=True), (repeats, 1))[:rows]

    def arms(self, like: Array) -> list[Arm]:
        weights = self.jax.numpy.asarray(gap_weights(like.shape[1]))
        copy = self._jit("copy", self.jax.numpy.copy)
        return [
            Arm("jax copy", "jax", copy, proof="copy", bytes_per_element=4),
            *(
                replace(arm, call=self._jit(arm.name, arm.call), eager=arm.call)
                for arm in implementation_arms("jax", like)
            ),
            Arm("jax.jit, sort form", "jax", lambda x: self.sort_form(x, weights)),
            Arm("jax.jit, argsort form", "jax", lambda x: self.argsort_form(x, weights)),
        ]

    def _jit(self, name: str, call: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return self.jitted.setdefault(name, self.jax.jit(call))

    def rows(self, matrix: Array, places: Sequence[int]) -> NDArray[np.float64]:
        return np.asarray(matrix[np.array(places)], np.float64)

    def wait(self, result: Array) -> None:
        result.block_until_ready()

    def stopwatch(self, arm: Arm, buffers: Sequence[Array]) -> tuple[Stopwatch, Array]:
        if self.device == "cpu":  # where calls in a row would run side by side
            return super().stopwatch(arm, buffers)
        return wall_clock(arm.call, buffers, self.wait, wait_each=False, span=ROW_SPAN)

    def free_bytes(self) -> int | None:
        if self.device == "cpu":
            return host_free_bytes()
        held = self.jax.devices()[0].memory_stats() or {}
        return held.get("bytes_limit", 0) - held.get("bytes_in_use", 0) or None

    def release(self, *, programs: bool) -> None:
        if programs:
            self.jax.clear_caches()


class Oracle:
    """What the rows of a matrix should become, from the reference in float64."""

    def __init__(self, block: NDArray[Any]) -> None:
        self.block = block
        self.known: dict[int, NDArray[np.float64]] = {}

    def given(self, places: Sequence[int]) -> NDArray[np.float64]:
        """The rewards of these rows."""
        return np.asarray(self.block[np.array(places) % len(self.block)], np.float64)

    def expected(self, places: Sequence[int], proof: str) -> NDArray[np.float64]:
        """What an arm should make of these rows."""
        if proof == "copy":
            return self.given(places)
        if proof == "sort":
            return np.sort(self.given(places), axis=1)
        for place in places:
            row = place % len(self.block)
            if row not in self.known:
                self.known[row] = pk.transform(self.given([row]), K, implementation="reference")[0]
        return np.stack([self.known[place % len(self.block)] for place in places])


def places_to_prove(rows: int) -> list[int]:
    """The first, the middle and the last rows.

    >>> places_to_prove(10), places_to_prove(1)
    ([0, 1, 4, 5, 8, 9], [0])
    """
    chosen = {0, 1, rows // 2 - 1, rows // 2, rows - 2, rows - 1}
    return sorted(place for place in chosen if 0 <= place < rows)


def disagreement(
    got: NDArray[np.float64],
    expected: NDArray[np.float64],
    rewards: NDArray[np.float64] | None,
) -> float | None:
    """None where every value is within the tolerance; else the worst error over its row's largest.

    Where a row's largest is 0, the error itself. NaN never agrees. Without the rewards that results
    are of, they must be equal.
    """
    if got.shape != expected.shape:
        return math.nan
    largest = np.abs(expected).max(axis=-1, keepdims=True)
    allowed: NDArray[np.float64] = np.zeros_like(largest)
    if rewards is not None:
        allowed = RELATIVE * np.abs(expected) + OF_LARGEST * largest
        allowed += OF_REWARDS * np.abs(rewards).max(axis=-1, keepdims=True)
    error = np.abs(got - expected)
    if bool(np.all(error <= allowed)):
        return None
    return float(np.max(error / np.where(largest > 0, largest, 1.0)))


@dataclass(frozen=True)
class Summary:
    """Of samples of a time: the median, and the percentiles that hold the middle 60 % of them."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        p20, median, p80 = np.quantile(samples, (0.2, 0.5, 0.8)).tolist()
        return cls(median, p20, p80)

    @property
    def spread(self) -> float:
        """Half the distance between the percentiles, relative to the median."""
        return (self.p80 - self.p20) / 2 / self.median


@dataclass(kw_only=True)
class Outcome:
    """What became of an arm.

    `outcome` is "measured", or else "disagrees", "skipped" or "failed", with the reason and no
    figure at all.
    """

    arm: str
    library: str
    outcome: str = "measured"
    reason: str = ""
    first_call_seconds: float | None = None  # with all that is compiled on the way
    method: str = ""
    samples: int = 0
    calls_per_sample: int = 0

    @property
    def of(self) -> str:
        """What was timed, beside the arm."""
        return "host"

    def give_up(self, outcome: str, reason: str) -> None:
        self.outcome, self.reason = outcome, reason


@dataclass(kw_only=True)
class HostCost(Outcome):
    """What one eager call costs the host, in microseconds."""

    microseconds: float | None = None
    microseconds_p20: float | None = None
    microseconds_p80: float | None = None
    of_copy: float | None = None


@dataclass(kw_only=True)
class Measurement(Outcome):
    """One arm on one matrix; a line of the CSV file."""

    input: str
    rows: int
    n: int
    rows_timed: int
    bytes_per_element: int
    working_set_bytes: int = 0
    cold_cache: bool = False
    milliseconds: float | None = None
    milliseconds_p20: float | None = None
    milliseconds_p80: float | None = None
    gb_per_s: float | None = None
    gb_per_s_p20: float | None = None
    gb_per_s_p80: float | None = None
    of_copy: float | None = None

    @property
    def of(self) -> str:
        return f"{Shape(self.rows, self.n)} {self.input}"

    def set_figures(self, time: Summary) -> None:
        """Enter the seconds of a call. The 20th percentile of the rate is from the 80th of time."""
        gigabytes = self.rows_timed * self.n * self.bytes_per_element / 1e9
        self.milliseconds = 1e3 * time.median
        self.milliseconds_p20 = 1e3 * time.p20
        self.milliseconds_p80 = 1e3 * time.p80
        self.gb_per_s = gigabytes / time.median
        self.gb_per_s_p20 = gigabytes / time.p80
        self.gb_per_s_p80 = gigabytes / time.p20


@dataclass
class Runner:
    """An arm that is ready and proven, with the samples of its time."""

    outcome: Outcome
    stopwatch: Stopwatch
    units: int
    repetitions: int
    samples: list[float] = field(default_factory=list)


def takes_part(turn: int, turns: int, repetitions: int) -> bool:
    """Whether an arm with fewer repetitions than turns runs in this turn; they are spread evenly.

    >>> [turn for turn in range(6) if takes_part(turn, 6, 2)]
    [2, 5]
    """
    return (turn + 1) * repetitions // turns > turn * repetitions // turns


def in_turns(runners: Sequence[Runner]) -> Iterator[tuple[Outcome, Summary]]:
    """Take every runner's samples, round by round; → the times of those that came through."""
    turns = max((runner.repetitions for runner in runners), default=0)
    for turn in range(turns):
        for runner in runners:
            due = takes_part(turn, turns, runner.repetitions)
            if not due or runner.outcome.outcome != "measured":
                continue
            try:
                runner.samples.append(runner.stopwatch.run(runner.units))
            except Exception as error:
                runner.outcome.give_up("failed", in_short(error))
    for runner in runners:
        if runner.outcome.outcome == "measured":
            runner.outcome.samples = len(runner.samples)
            yield runner.outcome, Summary.of(runner.samples)


def in_short(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


class Bench:
    """One run: the libraries of a device, and what a plan has them do.

    Attributes:
        remarks: what was left out and why, as it was said.
    """

    def __init__(
        self,
        device: str,
        libraries: Sequence[Library],
        plan: Plan,
        *,
        cache_bytes: int = 0,
        only: Sequence[str] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self.device, self.libraries, self.plan = device, libraries, plan
        self.cache_bytes, self.only, self._say = cache_bytes, only, say
        self.remarks: list[str] = []
        self.start = time.perf_counter()

    def host_costs(self) -> list[HostCost]:
        """What a call costs the host: eager calls on a tiny matrix, by wall clock."""
        block = INPUTS["gaussian"](np.random.default_rng(0), TINY)
        outcomes: list[HostCost] = []
        runners: list[Runner] = []
        for library in self.libraries:
            matrix = library.matrix(block, TINY.rows)
            clock = partial(
                wall_clock,
                wait=library.wait,
                wait_each=self.device == "cpu",
                span=HOST_SPAN,
            )
            for arm in self._chosen(library, matrix):
                outcome = HostCost(arm=arm.name, library=arm.library)
                outcomes.append(outcome)
                call = arm.eager or arm.call
                runner = self._runner(
                    outcome, library, replace(arm, call=call), [matrix], Oracle(block), clock
                )
                if runner is not None:
                    runners.append(replace(runner, repetitions=HOST_SAMPLES))
        for found, seconds in in_turns(runners):
            assert isinstance(found, HostCost)
            found.microseconds = 1e6 * seconds.median
            found.microseconds_p20, found.microseconds_p80 = 1e6 * seconds.p20, 1e6 * seconds.p80
        copies = {o.library: o.microseconds for o in outcomes if o.arm == f"{o.library} copy"}
        for outcome in outcomes:
            copy = copies.get(outcome.library)
            if outcome.microseconds is not None and copy is not None:
                outcome.of_copy = outcome.microseconds / copy
        self._close(outcomes, f"{TINY}, host", programs=True)
        return outcomes

    def matrices(self, advance: Callable[[str], None]) -> Iterator[list[Measurement]]:
        """Every arm on every matrix of the plan, shape by shape."""
        for index, shape in enumerate(self.plan.shapes):
            left = self.plan.seconds - (time.perf_counter() - self.start)
            deadline = time.perf_counter() + left / (len(self.plan.shapes) - index)
            found: list[Measurement] = []
            for place, name in enumerate(self.plan.inputs):
                advance(f"{shape} {name}")
                # The first input is always there, unless all of the time is gone.
                if time.perf_counter() > deadline and (place > 0 or left <= 0):
                    self.say(f"{shape} {name}: skipped: the run's time for this shape is used up")
                    continue
                found += self.matrix(shape, name)
            for library in self.libraries:
                library.release(programs=True)
            yield found

    def matrix(self, shape: Shape, name: str) -> list[Measurement]:
        """Every arm on one matrix, in turns."""
        rows_of_block = min(shape.rows, max(1, BLOCK_ELEMENTS // shape.n))
        rng = np.random.default_rng(shape.n)
        block = INPUTS[name](rng, Shape(rows_of_block, shape.n))
        oracle = Oracle(block)
        outcomes: list[Measurement] = []
        runners: list[Runner] = []
        for library in self.libraries:
            if library.serves(block.dtype):
                for outcome, runner in self._prepared(library, shape, name, block, oracle):
                    outcomes.append(outcome)
                    runners += [] if runner is None else [runner]
        for found, seconds in in_turns(runners):
            assert isinstance(found, Measurement)
            found.set_figures(seconds)
        copies = {o.library: o.gb_per_s for o in outcomes if o.arm == f"{o.library} copy"}
        for outcome in outcomes:
            copy = copies.get(outcome.library)
            if outcome.gb_per_s is not None and copy is not None:
                outcome.of_copy = outcome.gb_per_s / copy
        runners.clear()
        self._close(outcomes, f"{shape} {name}", programs=False)
        return outcomes

    def say(self, remark: str) -> None:
        """Print what is left out, and keep it."""
        self.remarks.append(remark)
        self._say(remark)

    def _prepared(
        self, library: Library, shape: Shape, name: str, block: NDArray[Any], oracle: Oracle
    ) -> Iterator[tuple[Measurement, Runner | None]]:
        """The library's arms on this matrix, each ready to run or given up."""
        rows = shape.rows
        if library.elements is not None:
            rows = min(rows, max(1, library.elements // shape.n))
        matrix_bytes = rows * shape.n * block.itemsize
        cache = self.cache_bytes if library.elements is None else 0
        count = max(2, min(MOST_BUFFERS, -(-4 * cache // matrix_bytes)))
        lacking = no_room(library, count * matrix_bytes)
        if lacking:
            self.say(f"{shape} {name}, all of {library.name}: skipped: {lacking}")
            return
        buffers = [library.matrix(block, rows) for _ in range(count)]
        for arm in self._chosen(library, buffers[0]):
            few = rows if arm.elements is None else min(rows, max(1, arm.elements // shape.n))
            inputs = buffers if few == rows else [buffer[:few] for buffer in buffers]
            working_set = count * few * shape.n * block.itemsize
            outcome = Measurement(
                arm=arm.name,
                library=arm.library,
                input=name,
                rows=shape.rows,
                n=shape.n,
                rows_timed=few,
                bytes_per_element=block.itemsize + 4,
                working_set_bytes=working_set,
                cold_cache=0 < 4 * cache <= working_set,
            )
            yield outcome, self._runner(outcome, library, arm, inputs, oracle, None)

    def _chosen(self, library: Library, like: Array) -> list[Arm]:
        """The arms asked for, always with the plain copy."""
        arms = library.arms(like)
        if not self.only:
            return arms
        return [
            arm
            for arm in arms
            if arm.proof == "copy" or any(text in arm.name for text in self.only)
        ]

    def _runner(
        self,
        outcome: Outcome,
        library: Library,
        arm: Arm,
        buffers: Sequence[Array],
        oracle: Oracle,
        clock: Callable[..., tuple[Stopwatch, Array]] | None,
    ) -> Runner | None:
        """The arm warm, proven and with a number of repetitions; None where it was given up."""
        rows, n = buffers[0].shape
        lacking = no_room(library, rows * n * arm.bytes_per_element)
        if lacking:
            outcome.give_up("skipped", lacking)
            return None
        try:
            for call in range(2):
                start = time.perf_counter()
                library.wait(arm.call(buffers[0]))
                seconds = time.perf_counter() - start
                if call == 0:
                    outcome.first_call_seconds = seconds
            if seconds > self.plan.call_seconds:
                limit = f"at most {self.plan.call_seconds:g} s fits the run"
                outcome.give_up("skipped", f"one call takes {seconds:.1f} s; {limit}")
                return None
            watch, result = (
                library.stopwatch(arm, buffers) if clock is None else clock(arm.call, buffers)
            )
            places = places_to_prove(rows)
            got, expected = library.rows(result, places), oracle.expected(places, arm.proof)
            del result
            # A copy and a sort only move rewards: they have no tolerance.
            rewards = oracle.given(places) if arm.proof == "transform" else None
            error = disagreement(got, expected, rewards)
            if error is not None:
                outcome.give_up("disagrees", f"the worst error is {error:.1e} of its row's largest")
                return None
            each = watch.run(1) * watch.calls_per_unit
        except Exception as error:
            outcome.give_up("failed", in_short(error))
            library.release(programs=False)
            return None
        units = max(1, math.ceil(watch.span / each))
        fitting = int(self.plan.arm_seconds / (units * each))
        outcome.method, outcome.calls_per_sample = watch.method, units * watch.calls_per_unit
        return Runner(outcome, watch, units, min(MOST_SAMPLES, max(FEWEST_SAMPLES, fitting)))

    def _close(self, outcomes: Sequence[Outcome], where: str, *, programs: bool) -> None:
        for outcome in outcomes:
            if outcome.outcome != "measured":
                self.say(f"{where}, {outcome.arm}: {outcome.outcome}: {outcome.reason}")
        for library in self.libraries:
            library.release(programs=programs)


def no_room(library: Library, needed: int) -> str:
    """Why so many bytes do not fit; empty where they do, or where nobody can tell."""
    free = library.free_bytes()
    if free is None or needed <= free:
        return ""
    return f"needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"


def opened(device: str, say: Callable[[str], None]) -> list[Library]:
    """The libraries that can be used with the device; the first is the one that matters most."""
    if device == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # The GPU's memory is shared with torch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    libraries: list[Library] = []
    for library in (Torch, Jax, Numpy):
        if library is Torch and device == "tpu":
            continue
        try:
            libraries.append(library(device))
        except (ImportError, RuntimeError) as error:
            say(f"{library.name}'s arms are left out: {in_short(error)}")
    return libraries


def default_arm(library: Library) -> str:
    """The arm of the implementation that serves this library's arrays by default."""
    like = library.matrix(INPUTS["gaussian"](np.random.default_rng(0), TINY), TINY.rows)
    return f"pk {registry.default_implementation(library.name, like)}"


def without_figures(
    defaults: Sequence[str], costs: Sequence[HostCost], measurements: Sequence[Measurement]
) -> list[str]:
    """Where the arms that serve by default have no figure, and why: a line each.

    Of the defaults that were timed at all: `--arm` may have chosen others.
    """
    lines: list[str] = []
    for name in defaults:
        outcomes = [o for o in (*costs, *measurements) if o.arm == name]
        lines += [
            f"{o.of}, {name}: {o.outcome}: {o.reason}" for o in outcomes if o.outcome != "measured"
        ]
        if outcomes and not any(isinstance(o, Measurement) for o in outcomes):
            lines.append(f"{name}: no matrix was reached")
    return lines


def as_csv(record: dict[str, Any]) -> bytes:
    """A line for each measurement, all of its fields, with what it was measured on and of what."""
    where = {
        "device": record["device"]["name"],
        "driver": record["device"].get("driver"),
        "date": record["date"],
        "commit": record["commit"],
        **{f"{name} version": found for name, found in record["versions"].items()},
    }
    text = io.StringIO(newline="")
    names = [column.name for column in fields(Measurement)]
    writer = csv.DictWriter(text, [*names, *where], lineterminator="\n")
    writer.writeheader()
    writer.writerows(result | where for result in record["results"])
    return text.getvalue().encode()


def rates_table(name: str, shapes: Sequence[Shape], measurements: Sequence[Measurement]) -> Table:
    """Of one input: a line an arm, a column a shape."""
    size = {m.bytes_per_element for m in measurements if m.input == name}
    title = f"{name}: GB/s at {'/'.join(map(str, sorted(size)))} bytes an element"
    table = Table(title=f"{title}, ± half of p20 to p80, ratio to copy", box=box.SIMPLE)
    table.add_column("arm")
    for shape in shapes:
        table.add_column(f"n={shape.n}\n{shape.rows} rows", justify="right")
    lines: dict[str, dict[Shape, str]] = {}
    for m in measurements:
        if m.input == name:
            lines.setdefault(m.arm, {})[Shape(m.rows, m.n)] = _rate(m)
    for arm, cells in lines.items():
        table.add_row(arm, *(cells.get(shape, "") for shape in shapes))
    return table


def _rate(m: Measurement) -> str:
    if m.gb_per_s is None or m.gb_per_s_p20 is None or m.gb_per_s_p80 is None:
        return m.outcome
    spread = 100 * (m.gb_per_s_p80 - m.gb_per_s_p20) / 2 / m.gb_per_s
    ratio = "" if m.of_copy is None else f" {figure(m.of_copy)}x"
    return f"{figure(m.gb_per_s)} ±{spread:.0f}%{ratio}"


def host_table(costs: Sequence[HostCost]) -> Table:
    """What a call costs the host."""
    table = Table(title=f"one eager call on {TINY.rows} x {TINY.n}, wall clock", box=box.SIMPLE)
    table.add_column("arm")
    for column in ("µs", "p20 to p80", "of its library's copy"):
        table.add_column(column, justify="right")
    for cost in costs:
        if cost.microseconds is None:
            table.add_row(cost.arm, cost.outcome, "", "")
            continue
        low, high = cost.microseconds_p20 or 0, cost.microseconds_p80 or 0
        ratio = "" if cost.of_copy is None else f"{figure(cost.of_copy)}x"
        table.add_row(
            cost.arm, figure(cost.microseconds), f"{figure(low)} to {figure(high)}", ratio
        )
    return table


Curves = dict[str, tuple[list[int], list[float]]]


def rate_curves(measurements: Sequence[Measurement], name: str) -> Curves:
    """Of one input: arm → (every n, GB/s there)."""
    curves: Curves = {}
    for m in sorted(measurements, key=lambda m: m.n):
        if m.input == name and m.gb_per_s is not None:
            ns, rates = curves.setdefault(m.arm, ([], []))
            ns.append(m.n)
            rates.append(m.gb_per_s)
    return curves


def speedup_curves(measurements: Sequence[Measurement], name: str, default: str) -> Curves:
    """Of one input: arm → (every n, how many times as fast the default arm is there)."""
    ours = {
        (m.rows, m.n): m.gb_per_s
        for m in measurements
        if m.input == name and m.arm == default and m.gb_per_s is not None
    }
    over = [
        replace(m, gb_per_s=ours[m.rows, m.n] / m.gb_per_s)
        for m in measurements
        if m.arm != default and m.gb_per_s and (m.rows, m.n) in ours
    ]
    return {
        arm: curve for arm, curve in rate_curves(over, name).items() if not arm.endswith(" copy")
    }


def plots(measurements: Sequence[Measurement], default: str, title: str) -> dict[str, bytes]:
    """ "rates" and "speedup" → a PNG file; a panel for each input."""
    inputs = list(dict.fromkeys(m.input for m in measurements))

    def draw_rates(axes: Axes, name: str) -> None:
        for arm, (ns, rates) in rate_curves(measurements, name).items():
            style = "--" if arm.endswith(" copy") else "-"
            width = 2.5 if arm == default else 1.2
            axes.plot(ns, rates, style, marker=".", lw=width, label=arm, color=colour(arm))
        axes.set_ylabel("GB/s")

    def draw_speedup(axes: Axes, name: str) -> None:
        for arm, (ns, ratios) in speedup_curves(measurements, name, default).items():
            axes.plot(ns, ratios, marker=".", label=arm, color=colour(arm))
        axes.axhline(1, color="black", lw=0.8)
        axes.set_ylabel(f"{default}: times as fast")

    arms = list(dict.fromkeys(m.arm for m in measurements))

    def colour(arm: str) -> tuple[float, float, float, float]:
        from matplotlib import colormaps

        # The strong ones of its ten pairs first.
        place = arms.index(arm) % 20
        return colormaps["tab20"](2 * place if place < 10 else 2 * place - 19)

    return {
        "rates": _panels(inputs, draw_rates, f"throughput, k={K}, {title}"),
        "speedup": _panels(inputs, draw_speedup, f"{default} over the others, k={K}, {title}"),
    }


def _panels(inputs: Sequence[str], draw: Callable[[Axes, str], None], title: str) -> bytes:
    from matplotlib.figure import Figure

    # A Figure made without pyplot needs no display and leaves no state behind.
    across = min(3, len(inputs))
    down = -(-len(inputs) // across)
    canvas = Figure(figsize=(1.5 + 4.2 * across, 1.8 + 3.2 * down), layout="constrained")
    panels = canvas.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
    handles: dict[str, Any] = {}
    for axes, name in zip(panels, inputs, strict=False):
        draw(axes, name)
        axes.set(title=name, xlabel="n, samples per task", xscale="log", yscale="log")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        lines, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    for axes in list(panels)[len(inputs) :]:
        axes.set_visible(False)
    canvas.suptitle(title)
    if handles:
        canvas.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=across + 1
        )
    content = io.BytesIO()
    canvas.savefig(content, format="png", dpi=130)
    return content.getvalue()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.auto,
    quick: Annotated[bool, typer.Option("--quick", help="Few shapes, two inputs.")] = False,
    out: Annotated[Path, typer.Option(help="The folder of the results.")] = RESULTS,
    shape: Annotated[
        list[str] | None, typer.Option(help="ROWSxN instead of the plan's; may be repeated.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Only arms with this in their names, and copies; may be repeated."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="For the whole run, instead of the plan's.")
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="What is measured, where git is not there to ask.")
    ] = None,
) -> None:
    """Measure every transform against a plain copy and against what else there is."""
    try:
        chosen = present(device)
        plan = PLANS[chosen, quick]
        if shape:
            plan = replace(plan, shapes=tuple(map(Shape.parse, shape)))
        if seconds is not None:
            plan = replace(plan, seconds=seconds)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    out.mkdir(parents=True, exist_ok=True)

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:

        def say(remark: str) -> None:
            progress.console.print(remark, markup=False, highlight=False, soft_wrap=True)

        libraries = opened(chosen, say)
        where = machine(chosen)
        bench = Bench(
            chosen,
            libraries,
            plan,
            cache_bytes=where.get("l2_bytes", 0),
            only=arm or (),
            say=say,
        )
        defaults = [default_arm(library) for library in libraries]
        default = defaults[0]
        costs: list[HostCost] = []
        measurements: list[Measurement] = []
        record: dict[str, Any] = {
            "complete": False,
            **origin(where, commit),
            "k": K,
            "plan": asdict(plan) | {"shapes": list(map(str, plan.shapes))},
            "default": default,
        }
        stem = stem_of("throughput", record)
        bar = progress.add_task("host", total=1 + len(plan.shapes) * len(plan.inputs))

        def advance(what: str) -> None:
            progress.update(bar, description=what, advance=1)

        def keep(shapes: int) -> None:
            """Write what there is: a run that is cut short leaves the shapes that it has."""
            record.update(
                complete=shapes == len(plan.shapes),
                seconds=round(time.perf_counter() - bench.start, 1),
                remarks=bench.remarks,
                host=list(map(asdict, costs)),
                results=list(map(asdict, measurements)),
            )
            write(out / f"{stem}.json", as_json(record))
            write(out / f"{stem}.csv", as_csv(record))

        costs += bench.host_costs()
        keep(0)
        for finished, found in enumerate(bench.matrices(advance), 1):
            measurements += found
            keep(finished)

    console = Console(width=None if Console().is_terminal else 200)
    for name in plan.inputs:
        console.print(rates_table(name, plan.shapes, measurements))
    console.print(host_table(costs))
    written = [f"{stem}.json", f"{stem}.csv"]
    if find_spec("matplotlib") is None:
        typer.echo("no plots: matplotlib is not installed")
    elif measurements:
        for kind, content in plots(measurements, default, where["name"]).items():
            write(out / f"{stem}-{kind}.png", content)
            written.append(f"{stem}-{kind}.png")
    typer.echo(f"{record['seconds']:.0f} s; in {out}: {', '.join(written)}")
    faults = without_figures(defaults, costs, measurements)
    for line in faults:
        typer.echo(f"what serves by default has no figure: {line}", err=True)
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
