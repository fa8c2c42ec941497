"""The kernels as they ship, on the machine that executes PTX: what only it can show.

Run with TEST_DEVICE=ptx. Their results are the business of the contract and of
test_triton.py and test_launches.py, which run there too.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from subjects import ON_PTX

import pkpo_kernels as pk

torch = pytest.importorskip("torch")
if not ON_PTX:
    pytest.skip("needs TEST_DEVICE=ptx", allow_module_level=True)

import pkpo_triton  # noqa: E402
from pkpo_triton import groups as of_groups  # noqa: E402
from pkpo_triton.plan import packed_plan, plan  # noqa: E402
from triton.runtime import JITFunction  # noqa: E402

from bench.ptx import launch as machine  # noqa: E402
from bench.ptx.driver import Device, Launched, run_ptx  # noqa: E402


@pytest.fixture
def device() -> Iterator[Device]:
    """One that keeps its launches, in the place of the session's own."""
    with Device() as device:
        yield device


# ---- Addresses ---------------------------------------------------------------------------------


class Case(NamedTuple):
    n: int
    rows: int
    masked: bool = False
    k_a_row: bool = False
    max_at_k: bool = False
    by_samples: bool = False
    dtype: str = "float32"


def launched(case: Case, device: Device, rng: np.random.Generator) -> list[Launched]:
    rewards = torch.from_numpy(rng.standard_normal((case.rows, case.n)).astype(np.float32))
    rewards = rewards.to(getattr(torch, case.dtype))
    if case.by_samples:
        rewards = rewards.t().contiguous().t()
    options: dict[str, Any] = {"implementation": "triton"}
    if case.masked:
        options["where"] = torch.from_numpy(rng.random((case.rows, case.n)) < 0.8)
    device.launches.clear()
    if case.max_at_k:
        pk.max_at_k(rewards, [1, 2], **options)
    else:
        k: Any = torch.from_numpy(rng.integers(1, 4, case.rows)) if case.k_a_row else 2
        pk.transform(rewards, k, **options)
    return device.launches


def block_rows(case: Case) -> int:
    usual = not (case.k_a_row or case.max_at_k or case.by_samples)
    itemsize = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()
    rest: Any = {"itemsize": itemsize, "masked": case.masked}
    packed = packed_plan(case.n, usual=usual, backend="cuda", **rest)
    if packed is not None:
        return packed.block_rows
    uniform = not (case.masked or case.k_a_row or case.max_at_k)
    chosen = plan(case.n, itemsize, masked=case.masked, uniform=uniform)
    return 1 if chosen is None else chosen.block_rows


FAR = [
    Case(16, 70),
    Case(16, 70, masked=True, dtype="bfloat16"),
    Case(8, 300, masked=True, k_a_row=True),
    Case(9, 300, max_at_k=True, masked=True),
    pytest.param(Case(8, 1100), marks=pytest.mark.slow),
    pytest.param(Case(8, 300, by_samples=True), marks=pytest.mark.slow),
    pytest.param(Case(64, 70), marks=pytest.mark.slow),
    pytest.param(Case(100, 40, masked=True, k_a_row=True), marks=pytest.mark.slow),
    pytest.param(Case(64, 70, dtype="bfloat16", max_at_k=True), marks=pytest.mark.slow),
    pytest.param(Case(8193, 3, masked=True, k_a_row=True), marks=pytest.mark.slow),
    pytest.param(Case(8193, 3, max_at_k=True), marks=pytest.mark.slow),
    pytest.param(Case(8192, 3), marks=pytest.mark.release),
]


@pytest.fixture(autouse=True)
def as_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are those for many rows, of which there are few here."""
    from pkpo_triton import matrices as of_launches

    monkeypatch.setattr(of_launches, "FEW_ROWS", 0)


@pytest.mark.parametrize("case", FAR, ids=str)
def test_rows_beyond_two_to_the_31_elements(
    case: Case, device: Device, rng: np.random.Generator
) -> None:
    """Programs whose numbers are so large run on pointers that lie as far in front of a tensor."""
    rows_a_program = block_rows(case)
    first = (2**30 - 4096) // rows_a_program
    for launch in launched(case, device, rng):
        far = {}
        results = {}
        for name, value in launch.arguments.items():
            if isinstance(value, torch.Tensor) and value.shape[:1] == (case.rows,):
                step = value.stride(0) if case.rows > 1 else value[0].numel()
                distance = first * rows_a_program * step * value.element_size()
                far[name] = (value, value.data_ptr() - distance)
                if name == "out_ptr":
                    results[name] = value.clone()
                    value.fill_(0)
            else:
                far[name] = value + first * rows_a_program if name == "n_rows" else value
        assert results
        far_run = run_ptx(
            launch.kernel.assembly,
            launch.run.grid,
            far,
            launch.kernel.shared_bytes,
            first_cta=first,
        )
        far_run.faults.check()
        for name, want in results.items():
            assert torch.equal(launch.arguments[name], want)


# ---- Planted bugs ------------------------------------------------------------------------------


class Mutant(NamedTuple):
    kind: str
    line: int  # of the PTX, from 0
    text: str


def mutants(ptx: str) -> Iterator[Mutant]:
    """Every program that differs in one line: a barrier less, a guard less, another address, …"""
    for number, line in enumerate(ptx.splitlines()):
        if "bar.sync" in line or "bar.warp.sync" in line:
            yield Mutant("barrier", number, "")
        if re.search(r"@!?%p\d+\s+(ld|st|atom|red)\.global", line):
            yield Mutant("guard", number, re.sub(r"@!?%p\d+\s+", "", line))
        if "atom.global" in line or "red.global" in line:
            yield Mutant("atomic", number, "")
        if "acquire" in line or "release" in line:
            weaker = line.replace("release", "relaxed").replace(".gpu.acquire", "")
            yield Mutant("order", number, weaker)
        if found := re.search(r"shfl\.sync\.(?:bfly|up)\.b32\s+[^,]+, %\w+, (\d+),", line):
            other = 2 if found[1] == "1" else int(found[1]) // 2
            yield Mutant(
                "shuffle", number, line[: found.start(1)] + str(other) + line[found.end(1) :]
            )
        elif found := re.search(
            r"((?:ld|st)\.shared\S*.*|(?:ld|st)matrix.*)\[(%\w+)(?:\+(\d+))?\]", line
        ):
            moved = f"[{found[2]}+{int(found[3] or 0) + 16}]"
            start = found.end(1)
            yield Mutant("address", number, line[:start] + moved + line[found.end() :])


def matrices(n: int, rng: np.random.Generator) -> list[Any]:
    """Rows that take every way through a kernel and show the whole of its sort: a full block, and
    a row more, so that every guard holds back most of its lanes."""
    chosen = plan(n, 4, masked=False, uniform=True)
    assert chosen is not None
    # And eight rows at least, one for each four samples that a thread of several reads at a time.
    block = block_rows(Case(n, 1))
    rows = -(-8 // block) * block + 1
    normal = rng.standard_normal((rows, n))
    kinds = [normal, np.sort(normal), np.sort(normal)[:, ::-1], np.round(normal), normal + 1e3]
    mixed = np.choose(np.arange(rows)[:, None] % len(kinds), kinds)
    near_ties = 1 + np.argsort(normal) * 2.0**-23
    # What makes a row NaN is known to one thread alone, and so is one of two values.
    infinite, irregular, wide, anywhere, one_large = (mixed.copy() for _ in range(5))
    infinite[::2, 0], infinite[1::2, n - 1] = np.inf, -np.inf
    irregular[:, 0] = np.nan
    wide[:, 0], wide[:, n - 1] = 3e38, -3e38
    # In all that a row's first thread reads in turn: it may be read again one thread further.
    at = np.arange(rows) * 4 * chosen.threads_per_row
    anywhere[np.arange(rows), (at + at // n) % n] = np.nan
    # Only at one end, so that the threads of the other hear of it.
    one_large[::2, 0], one_large[1::2, 0] = -1e37, 1e37
    # In order, all but the first for a thread's last and the next one's first four. Of what comes
    # from elsewhere, from two threads in front, the row there, the second thread itself, four
    # samples further or behind a row that is not positive, nothing shows that. Each row has another
    # range, and so another step of what is sorted in fixed point.
    each = min(chosen.samples_per_thread, n // 2)
    border = np.arange(rows * n).reshape(rows, n) + 1.0 - rows // 2 * n
    border[:, 0] -= np.arange(rows)
    border[:, each : 2 * each] = border[:, each, None]
    for i in range(4):
        border[:, each + i :: each] = border[:, each::each]
    border[1:, n - each - 1] = border[1:, n - each] + 2.0**-12
    levels = rng.integers(0, 2, (rows, n))
    # Neighbours alike, so that what comes from another row is no help.
    pattern = np.arange(rows) // 4 % 3
    levels[pattern == 0], levels[pattern == 1] = np.arange(n) == n - 1, np.arange(n) != 0
    # Large ones are scaled, and their results scaled back.
    large = 1e37 * normal
    out: list[Any] = [mixed, near_ties, infinite, irregular, wide, anywhere, large, one_large]
    out += [border, levels, 1 - levels]
    # Blocks of two values, but for one thread: the last lane of a warp, and so the last to be heard
    # of, in its first samples or in its last.
    rows_of_warp = max(1, 32 // chosen.threads_per_row)
    first = (chosen.threads_per_row - 1) * chosen.vector
    for row in (min(rows_of_warp, rows) - 1, rows - 2):
        for samples in (slice(first, first + 3), slice(n - 3, n)):
            almost = levels.astype(float)
            almost[row] = np.arange(n) % 2
            almost[row, samples] = [0, 1, 0.5]
            out.append(almost)
    return [torch.from_numpy(x.astype(np.float32)) for x in out]


def calls(inputs: list[Any]) -> Iterator[functools.partial[Any]]:
    """By an estimator for which gaps weigh in the row offset too, and so does the largest reward.
    Of rows that are not finite, and in several threads, an offset of NaN tells all of these: such
    rows also by an estimator that has none."""
    for estimator in ("sloo", "sloo_minus_one"):
        for x in inputs:
            if estimator == "sloo" or (x.shape[1] > 32 and not x.isfinite().all()):
                options: Any = {"estimator": estimator, "implementation": "triton"}
                yield functools.partial(pk.transform, x, 2, **options)


# Kind and function of what may go unnoticed, and how often, because it changes nothing. For a
# barrier the machine itself shows it: without it no order of two warps' accesses matters.
HARMLESS = {
    # It spares blocks the question whether they have two values, which then has the last word.
    ("shuffle", "may_have_two_values"): 1,
    # Of a row's last thread the sum is not used: with two threads there is nothing to add.
    ("shuffle", "prefix_sums"): 1,
    # A thread writes first where it itself has read last.
    ("barrier", "to_tile"): 1,
    # The keys that are searched for the next bit are stored again, the same as before.
    ("barrier", "find"): 10,
    # What else is loaded is of no account …
    ("guard", "_place"): 5,
    ("guard", "_rank"): 4,
    # … and what else is stored overwritten, or the same as what is there.
    ("guard", "_insert"): 2,
    # All lanes may store the same 0.
    ("guard", "_free_slot"): 3,
    # All may ask what one asks, and what that hears goes to all through a barrier; who need not
    # wait asks once.
    ("guard", "_wait_for_all"): 3,
    ("barrier", "_wait_for_all"): 4,
}


@functools.cache
def functions() -> dict[str, list[tuple[range, str]]]:
    """Every function of the kernels, by the file it stands in: its lines and its name."""
    out: dict[str, list[tuple[range, str]]] = {}
    for module in pkgutil.iter_modules(pkpo_triton.__path__, "pkpo_triton."):
        for name, function in vars(importlib.import_module(module.name)).items():
            if isinstance(function, JITFunction) and function.fn.__module__ == module.name:
                source, first = inspect.getsourcelines(function.fn)
                file = module.name.split(".")[1] + ".py"
                out.setdefault(file, []).append((range(first, first + len(source)), name))
    return out


def functions_at(where: str) -> set[str]:
    """The functions of the kernels that an instruction was inlined through."""
    return {
        name
        for file, line in re.findall(r"(\w+\.py):(\d+)", where)
        for lines, name in functions().get(file, ())
        if int(line) in lines
    }


@pytest.mark.any_length
@pytest.mark.parametrize(
    ("n", "share"),
    [
        (16, 0.05),
        pytest.param(8, 0.05, marks=pytest.mark.slow),
        pytest.param(24, 0.05, marks=pytest.mark.slow),
        pytest.param(32, 0.05, marks=pytest.mark.slow),
        pytest.param(64, 0.03, marks=pytest.mark.slow),
        pytest.param(128, 0.03, marks=pytest.mark.slow),
        pytest.param(256, 0.03, marks=pytest.mark.release),
        pytest.param(512, 0.03, marks=pytest.mark.release),
        pytest.param(8, 1.0, marks=pytest.mark.release),
        pytest.param(16, 1.0, marks=pytest.mark.release),
        pytest.param(24, 1.0, marks=pytest.mark.release),
        pytest.param(32, 1.0, marks=pytest.mark.release),
        pytest.param(64, 1.0, marks=pytest.mark.release),
        pytest.param(1024, 1.0, marks=pytest.mark.release),
    ],
)
def test_planted_bugs_are_noticed(
    n: int, share: float, device: Device, rng: np.random.Generator
) -> None:
    """A barrier dropped, a guard dropped, an address of shared memory moved, a shuffle's lane
    changed: each is seen as a fault or in a result."""
    cases = list(calls(matrices(n, rng)))
    kinds = {"address", "barrier"}
    if packed_plan(n, usual=True, backend="cuda") is None:
        kinds.add("shuffle" if n > 8 else "guard")
    plant(cases, device, share, kinds, rng)


def plant(
    cases: list[functools.partial[Any]],
    device: Device,
    share: float,
    kinds: set[str],
    rng: np.random.Generator,
    *,
    but: str = "nowhere",
    **options: Any,
) -> None:
    """Change a share of the lines that the calls of a kernel run, one at a time, of these kinds at
    least, but for those of a file: every change is noticed, but for those that are HARMLESS."""
    good = [call() for call in cases]
    ptx = device.kernels[0].assembly
    program = device.launches[0].run.program
    ran = sum(launch.run.counts.executed for launch in device.launches)
    where = {
        it.line - 1: it.where
        for it in program.instructions
        if ran[it.number] and but not in it.where
    }
    every = [mutant for mutant in mutants(ptx) if mutant.line in where]
    assert {mutant.kind for mutant in every} >= kinds
    lines = ptx.splitlines()
    missed, harmless = [], Counter[tuple[str, str]]()
    chosen = [mutant for mutant in every if rng.random() < share]
    for mutant in chosen:
        changed = "\n".join([*lines[: mutant.line], mutant.text, *lines[mutant.line + 1 :]])
        with Device(change=lambda _, text=changed: text, counting=False, **options) as faulty:
            for call, want in zip(cases, good, strict=True):
                got = call()
                if faulty.launches[-1].run.faults.found or not same(got, want):
                    break
            else:
                known = {(mutant.kind, name) for name in functions_at(where[mutant.line])}
                harmless.update(known & HARMLESS.keys())
                if known & HARMLESS.keys():
                    continue
                at = f"{mutant.kind}, line {mutant.line + 1}: {lines[mutant.line].strip()}"
                missed.append(f"{at}\n    {where[mutant.line]}")
    assert chosen
    assert all(count <= HARMLESS[known] for known, count in harmless.items()), harmless
    assert not missed, f"{len(missed)} of {len(chosen)}:\n" + "\n".join(missed)


@pytest.mark.any_length
@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.slow)])
def test_planted_bugs_among_programs_are_noticed(
    share: float, device: Device, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where programs wait for each other, and orders are weakened."""
    monkeypatch.setattr(of_groups, "most_programs", lambda device: 3)
    monkeypatch.setattr(machine, "_MOST_STEPS", 5_000)
    n = 170
    ids = torch.from_numpy(rng.integers(0, 30, n) * 64)
    ids[60:140] = 5
    rewards = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
    rewards[100:110] = 0
    unscored = rewards.clone()
    unscored[::7] = torch.nan
    rest: Any = {"implementation": "triton", "estimator": "sloo"}
    cases = [functools.partial(pk.transform_groups, x, ids, 3, **rest) for x in (unscored, rewards)]
    kinds = {"barrier", "guard", "atomic", "order", "shuffle"}
    plant(cases, device, share, kinds, rng, but="sorted_row.py", order="random")


def same(got: Any, want: Any) -> bool:
    return bool(((got == want) | (got.isnan() & want.isnan())).all())
