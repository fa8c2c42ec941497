"""Schedules of k: the values themselves, and the same values in every array library."""

from __future__ import annotations

import math
import pickle
from typing import Any, cast

import numpy as np
import pytest

from pkpo_kernels.schedules import Schedule, cosine, linear, parse, piecewise_constant

SCHEDULES = (
    piecewise_constant([8, 1], [1000]),
    piecewise_constant([3], []),
    piecewise_constant([2, 16, 4], [-5, 700]),
    linear(8, 1, 300),
    linear(1, 64, 1000),
    linear(100, 1, 3),
    cosine(16, 1, 300),
    cosine(1, 9, 64),
    cosine(5, 5, 10),
)
STEPS = np.arange(-20, 1100)


def test_piecewise_constant_changes_at_its_boundaries() -> None:
    k_at = piecewise_constant([8, 4, 1], [100, 250])
    assert [k_at(step) for step in (-1, 0, 99, 100, 249, 250, 10**9)] == [8, 8, 8, 4, 4, 1, 1]


@pytest.mark.parametrize(("start", "end", "steps"), [(8, 1, 300), (1, 64, 1000), (100, 1, 3)])
def test_linear_is_the_nearest_integer_to_the_line(start: int, end: int, steps: int) -> None:
    k_at = linear(start, end, steps)
    for step in range(steps + 1):
        # In integers: |k − line| ≤ 1/2, times 2 · steps.
        off = 2 * steps * (k_at(step) - start) - 2 * (end - start) * step
        assert abs(off) <= steps
    assert (k_at(0), k_at(steps)) == (start, end)
    assert (k_at(-7), k_at(steps + 7)) == (start, end)


@pytest.mark.parametrize(("start", "end", "steps"), [(16, 1, 300), (1, 64, 1000), (100, 1, 3)])
def test_cosine_is_the_nearest_integer_to_the_wave(start: int, end: int, steps: int) -> None:
    k_at = cosine(start, end, steps)
    for step in range(steps + 1):
        wave = end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2
        assert abs(k_at(step) - wave) <= 0.5 + 1e-9
    assert (k_at(0), k_at(steps)) == (start, end)
    assert (k_at(-7), k_at(steps + 7)) == (start, end)


def test_a_half_goes_towards_the_end() -> None:
    assert linear(2, 1, 10)(4) == 2
    assert linear(2, 1, 10)(5) == 1
    assert linear(1, 2, 10)(5) == 2
    assert cosine(2, 1, 10)(4) == 2
    assert cosine(2, 1, 10)(5) == 1
    assert cosine(1, 2, 1000)(499) == 1
    assert cosine(1, 2, 1000)(500) == 2


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
class TestEveryLibrary:
    def expected(self, schedule: Schedule) -> np.ndarray[Any, Any]:
        return np.array([schedule(int(step)) for step in STEPS])

    def test_numpy(self, schedule: Schedule) -> None:
        out = schedule(STEPS)
        assert out.dtype == np.int64
        np.testing.assert_array_equal(out, self.expected(schedule))
        assert schedule(STEPS.reshape(20, 56)).shape == (20, 56)
        assert type(schedule(np.int32(3))) is int
        assert schedule(np.array(3, np.int8)).shape == ()

    def test_torch(self, schedule: Schedule) -> None:
        torch = pytest.importorskip("torch")
        for dtype in (torch.int64, torch.int32):
            out = schedule(torch.tensor(STEPS, dtype=dtype))
            assert out.dtype == torch.int64
            np.testing.assert_array_equal(out.numpy(), self.expected(schedule))
        assert schedule(torch.tensor(3)).shape == ()

    def test_jax(self, schedule: Schedule) -> None:
        jax = pytest.importorskip("jax")
        out = jax.jit(schedule)(STEPS.astype(np.int32))
        assert out.dtype == np.int32
        np.testing.assert_array_equal(out, self.expected(schedule))
        mapped = jax.vmap(schedule)(jax.numpy.asarray(STEPS, np.int32))
        np.testing.assert_array_equal(mapped, self.expected(schedule))


def test_jit_compiles_once_for_all_steps() -> None:
    jax = pytest.importorskip("jax")
    traces = []

    def step(t: Any) -> Any:
        traces.append(t)
        return cosine(16, 1, 300)(t)

    compiled = jax.jit(step)
    assert [int(compiled(t)) for t in (0, 150, 300)] == [16, 8, 1]
    assert len(traces) == 1


@pytest.mark.slow
def test_torch_compiles_without_a_graph_break() -> None:
    torch = pytest.importorskip("torch")
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(cosine(16, 1, 300), backend=backend, fullgraph=True)
    assert [int(compiled(torch.tensor(t))) for t in (0, 150, 300)] == [16, 8, 1]
    assert len(graphs) == 1
    assert torch.compile(cosine(16, 1, 300), fullgraph=True)(torch.tensor(150)) == 8
    of_integer = torch.compile(lambda x, t: x * cosine(16, 1, 300)(t), fullgraph=True)
    assert of_integer(torch.ones(()), 150) == 8


def test_a_boundary_beyond_int32_is_never_reached_in_jax() -> None:
    jnp = pytest.importorskip("jax.numpy")
    k_at = piecewise_constant([8, 4, 1], [10, 2**40])
    assert int(k_at(jnp.int32(2**31 - 1))) == 4
    assert k_at(2**40) == 1


@pytest.mark.parametrize("boundary, want", [(2**70, 8), (-(2**40), 1), (-(2**70), 1)])
def test_boundaries_that_no_step_comes_to(boundary: int, want: int) -> None:
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    k_at = piecewise_constant([8, 1], [boundary])
    steps: list[Any] = [3, np.array(3), torch.tensor(3), jnp.int32(3)]
    assert [int(k_at(step)) for step in steps] == [want] * 4


def test_steps_without_a_sign() -> None:
    jnp = pytest.importorskip("jax.numpy")
    k_at = piecewise_constant([8, 1], [150])
    steps: list[Any] = [jnp.uint32(2**31 + 5), jnp.uint8(200), np.array(2**63 + 5, np.uint64)]
    assert [int(k_at(step)) for step in [*steps, np.uint8(200)]] == [1] * 4
    assert int(k_at(jnp.uint8(149))) == 8


def test_they_say_what_they_are() -> None:
    assert repr(linear(8, 1, 300)) == "linear(start=8, end=1, steps=300)"
    assert repr(cosine(8, 1, 300)) == "cosine(start=8, end=1, steps=300)"
    assert (
        repr(piecewise_constant([8, 1], [5])) == "piecewise_constant(values=[8, 1], boundaries=[5])"
    )
    assert eval(repr(linear(8, 1, 300))) == linear(8, 1, 300)
    assert pickle.loads(pickle.dumps(linear(8, 1, 300)))(0) == 8
    assert hash(linear(8, 1, 300)) == hash(linear(8, 1, 300))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_text_reads_as_the_schedule_that_wrote_it(schedule: Schedule) -> None:
    again = parse(str(schedule))
    assert again == schedule and hash(again) == hash(schedule)
    assert (again.values, again.boundaries) == (schedule.values, schedule.boundaries)


@pytest.mark.parametrize(
    ("text", "values", "boundaries"),
    [
        ("8@0,4@200,1@400", [8, 4, 1], [200, 400]),
        ("8,4@200,1@400", [8, 4, 1], [200, 400]),
        (" 8 @ 0 , 1 @ 400 ", [8, 1], [400]),
        ("8", [8], []),
        ("8@0", [8], []),
        ("2,16@-5,4@0", [2, 16, 4], [-5, 0]),
    ],
)
def test_text_is_read(text: str, values: list[int], boundaries: list[int]) -> None:
    assert parse(text) == piecewise_constant(values, boundaries)


def test_a_schedule_is_written_as_pairs() -> None:
    assert str(piecewise_constant([8, 4, 1], [200, 400])) == "8@0,4@200,1@400"
    assert str(piecewise_constant([3], [])) == "3"
    # Its first k holds before step -5, not from 0.
    assert str(piecewise_constant([2, 16, 4], [-5, 700])) == "2,16@-5,4@700"
    assert piecewise_constant([2, 1], [700]) != piecewise_constant([2, 1], [701])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"text must be k@step,k@step,… like '8@0,4@200,1@400'; got ''"),
        ("8@0,4", "text must be k@step"),
        ("8@0,4@200,", "text must be k@step"),
        ("8.0@0", "text must be k@step"),
        ("8@0;4@200", "text must be k@step"),
        ("8@100,4@200", "text must begin at step 0.*got '8@100,4@200', which begins at 100"),
        ("8@0,4@200,1@200", "got '8@0,4@200,1@200': boundaries must be strictly increasing"),
        ("8@0,0@200", r"got '8@0,0@200': values\[1\] must be at least 1; got 0"),
    ],
)
def test_text_that_is_no_schedule(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_schedule_is_read_from_a_string_alone() -> None:
    with pytest.raises(TypeError, match="text must be a string like '8@0,4@200,1@400'; got 8"):
        parse(cast(Any, 8))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: linear(0, 1, 5), ValueError, "start must be at least 1; got 0"),
        (lambda: linear(1, -2, 5), ValueError, "end must be at least 1; got -2"),
        (
            lambda: linear(2**31, 1, 5),
            ValueError,
            "start must be at most 2147483647; got 2147483648",
        ),
        (lambda: cosine(1, 2, 0), ValueError, "steps must be at least 1; got 0"),
        (lambda: cosine(cast(Any, 1.0), 2, 5), TypeError, "start must be an integer; got 1.0"),
        (lambda: cosine(True, 2, 5), TypeError, "start must be an integer; got True"),
        (
            lambda: piecewise_constant([8, 0], [5]),
            ValueError,
            r"values\[1\] must be at least 1; got 0",
        ),
        (
            lambda: piecewise_constant([8, 1], []),
            ValueError,
            r"values must have one more entry than boundaries; got 2 values \[8, 1\] "
            r"and 0 boundaries \[\]",
        ),
        (
            lambda: piecewise_constant([8, 4, 1], [5, 5]),
            ValueError,
            r"boundaries must be strictly increasing; got \[5, 5\]",
        ),
        (
            lambda: piecewise_constant([8, 1], cast(Any, [5.5])),
            TypeError,
            r"boundaries\[0\] must be an integer; got 5.5",
        ),
        (
            lambda: piecewise_constant(cast(Any, 8), []),
            TypeError,
            "values must be a sequence of integers",
        ),
    ],
)
def test_arguments_are_checked_when_built(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_a_step_must_be_integral() -> None:
    torch = pytest.importorskip("torch")
    jnp = pytest.importorskip("jax.numpy")
    steps = (1.5, True, "3", [1, 2], np.array([1.0]), torch.tensor(1.0), torch.tensor(True))
    for step in (*steps, jnp.float32(1), None):
        with pytest.raises(TypeError, match="step must be an integer or an array of integers"):
            linear(8, 1, 300)(step)
