"""How the Triton kernels meet torch: operators, launches, and what is compiled.

Run with TRITON_INTERPRET=1, with TEST_DEVICE=ptx, or with TEST_DEVICE=cuda on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
from subjects import DEVICE, INTERPRETED, TRITON_RUNS

import pkpo_kernels as pk

torch = pytest.importorskip("torch")
if not TRITON_RUNS:
    reason = "needs TRITON_INTERPRET=1, or TEST_DEVICE=ptx or cuda"
    pytest.skip(reason, allow_module_level=True)

from pkpo_triton import coefficients, matrices, operators  # noqa: E402
from pkpo_triton import launch as launches  # noqa: E402
from pkpo_triton import plan as plans  # noqa: E402

# Once is enough: on the machine for PTX.
pytestmark = pytest.mark.costly("interpreted")


class TestTorch:
    def test_gradients_stop(self) -> None:
        rewards = torch.randn(4, 8, device=DEVICE, requires_grad=True)
        assert not pk.transform(rewards, 2, implementation="triton").requires_grad

    def test_the_operators_pass_opcheck(self) -> None:
        rewards = torch.randn(4, 8, device=DEVICE)
        where = torch.ones(4, 8, dtype=torch.bool, device=DEVICE)
        k = torch.tensor(3, device=DEVICE)
        ops = torch.ops.pkpo_triton
        for name in ("sloo_minus_one", "passk_training") if INTERPRETED else ("sloo_minus_one",):
            rules = coefficients.as_text(pk.ESTIMATORS[name], "sum", "zero")
            for mask, hidden in ((None, None), (where, k)):
                arguments = (rewards, 2, hidden, mask, rules, torch.float32)
                torch.library.opcheck(ops.transform.default, arguments)
        for ks in (([1, 3], None), ([], k[None])):
            torch.library.opcheck(ops.max_at_k.default, (rewards, *ks, None, torch.float32))

    def test_compiles_whole_and_takes_new_ks_and_rows(self) -> None:
        torch._dynamo.reset()
        programs = 0

        def counting(graph: Any, inputs: Any) -> Any:
            nonlocal programs
            programs += 1
            return graph.forward

        @torch.compile(backend=counting, fullgraph=True, dynamic=True)
        def step(rewards: Any, k: Any) -> Any:
            return 2 * pk.transform(rewards * 1.0, k, implementation="triton")

        for rows, k in ((4, 2), (4, 3), (9, 3)):
            rewards = torch.randn(rows, 8, device=DEVICE)
            got = step(rewards, torch.tensor(k, device=DEVICE))
            want = 2 * pk.transform(rewards, k, implementation="torch")
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        assert programs == 1

    def test_fake_tensors_have_the_layout_of_real_ones(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        for rewards in (torch.randn(6, 8), torch.randn(8, 6).t(), torch.randn(12, 8)[::2]):
            real = pk.transform(rewards.to(DEVICE), 2, implementation="triton")
            with FakeTensorMode() as mode:
                chosen = plans.plan(rewards.shape[1], 4, masked=False, uniform=True)
                fake = matrices.empty_result(mode.from_tensor(rewards), torch.float32, chosen)
            assert fake.stride() == real.stride()

    def test_what_watches_tensors_sees_an_operator(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx

        def step(x: torch.Tensor, k: torch.Tensor) -> Any:
            best = pk.max_at_k(x, [1, 2], implementation="triton")
            return pk.transform(x, k, where=x > -1, implementation="triton"), best

        rewards, k = torch.randn(4, 8, device=DEVICE), torch.tensor(2, device=DEVICE)
        graph = make_fx(step)(rewards, k)
        # What the trace saw is no part of it.
        others, other_k = torch.randn(4, 8, device=DEVICE), torch.tensor(3, device=DEVICE)
        torch.testing.assert_close(graph(others, other_k), step(others, other_k), rtol=0, atol=0)
        with FakeTensorMode() as mode:
            values, best = step(mode.from_tensor(rewards), mode.from_tensor(k))
        assert values.shape == (4, 8) and best.shape == (4, 2) and best.device == rewards.device

    @pytest.mark.filterwarnings("ignore")  # torch.jit's of itself, and of shapes taken as given
    def test_what_transforms_functions_sees_an_operator(self) -> None:
        from torch.func import functionalize, grad, jvp, vmap

        def step(x: torch.Tensor) -> torch.Tensor:
            return pk.transform(x, 2, implementation="triton")

        cube, rewards = torch.randn(2, 4, 8, device=DEVICE), torch.randn(4, 8, device=DEVICE)
        want = pk.transform(rewards, 2, implementation="torch")
        of_cube = pk.transform(cube, 2, implementation="torch")
        for got, right in (
            (vmap(step)(cube), of_cube),
            (grad(lambda x: (x * step(x)).sum())(rewards), want),
            (jvp(lambda x: x + step(x), (rewards,), (rewards,))[1], rewards),
            (functionalize(step)(rewards), want),
            (torch.jit.trace(step, cube[0])(rewards), want),
        ):
            torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)

    @pytest.mark.costly("ptx")
    def test_a_batch_is_a_matrix_of_more_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch.func import vmap

        launched: list[Any] = []

        def form(rewards: torch.Tensor, *rest: Any) -> None:
            launched.append(rewards.shape)

        monkeypatch.setattr(operators, "_form", form)
        named = {"implementation": "triton"}
        cube = torch.randn(2, 4, 8, device=DEVICE)
        where, k = cube > -0.5, torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]], device=DEVICE)

        def values(x: torch.Tensor, k: Any, where: torch.Tensor) -> torch.Tensor:
            return pk.transform(x, k, where=where, undersized="clip", **named)

        def best(x: torch.Tensor, where: torch.Tensor, ks: Any = (1, 2)) -> torch.Tensor:
            return pk.max_at_k(x, ks, where=where, **named)

        for function, dims, *operands in (
            (values, (0, None, 0), cube, 2, where),
            (values, (2, None, 2), cube.movedim(0, 2), k[0, 1], where.movedim(0, 2)),
            (values, (0, 0, 0), cube, k[:, 0], where),
            (values, (0, 1, 0), cube, k.t(), where),
            (values, (None, 0, None), cube[0], k, where[0]),
            (values, (0, None, None), cube, k[1], where[0]),
            (best, (0, 0), cube, where),
            (best, (0, None), cube, where[1]),
            (best, (0, 0, None), cube, where, k[0]),
            (best, (0, None, 0), cube, where[1], k),
        ):
            apart = [
                function(
                    *(
                        x if dim is None else x.select(dim, one)
                        for x, dim in zip(operands, dims, strict=True)
                    )
                )
                for one in range(2)
            ]
            launched.clear()
            got = vmap(function, in_dims=dims)(*operands)
            # But for ks of its own, which all rows of a launch share.
            assert launched == (
                [(4, 8)] * 2 if dims == (0, None, 0) and function is best else [(8, 8)]
            )
            want = torch.stack(apart)
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.skipif(INTERPRETED, reason="nothing is prepared")
class TestPreparedLaunches:
    def prepared(self, rewards: torch.Tensor, k: Any = 2) -> Any:
        made = launches.prepared_transform(
            rewards,
            k,
            None,
            pk.ESTIMATORS["sloo_minus_one"],
            scale="sum",
            undersized="zero",
            dtype=rewards.dtype,
        )
        assert made is not None
        return made

    def test_the_second_launch_does_what_the_first_did(self) -> None:
        first, second = torch.randn(2, 40, 8, device=DEVICE)
        made = self.prepared(first)
        for rewards in (first, second, first):
            want = pk.transform(rewards, 2, implementation="torch")
            torch.testing.assert_close(made(rewards, None, 2), want, rtol=1e-5, atol=1e-6)

    def test_a_k_for_each_group_that_does_not_lie_in_order(self) -> None:
        rewards = torch.randn(2, 3, 8, device=DEVICE)
        spread = torch.tensor([[1, 2], [3, 4], [5, 6]], device=DEVICE).t()
        for k in (spread, spread[:1, 1:2].expand(2, 3)):
            want = pk.transform(rewards, k, implementation="torch")
            for _ in range(2):
                got = pk.transform(rewards, k, implementation="triton")
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)

    def test_a_k_elsewhere_is_not_read_as_it_lies(self) -> None:
        rewards = torch.randn(40, 8, device=DEVICE)
        elsewhere = torch.tensor(2, device="meta")
        estimator = pk.ESTIMATORS["sloo_minus_one"]
        rest: Any = {"scale": "sum", "undersized": "zero", "dtype": rewards.dtype}
        assert launches.prepared_transform(rewards, elsewhere, None, estimator, **rest) is None
        ks = elsewhere.reshape(1)
        assert launches.prepared_max_at_k(rewards, ks, None, dtype=rewards.dtype) is None

    def test_another_thread_may_be_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rewards = torch.randn(40, 8, device=DEVICE)
        made = self.prepared(rewards)
        want = pk.transform(rewards, 2, implementation="torch")
        entry = made._entry

        class Entry:
            """The kernel; as this call is about to compile it, another has done so."""

            arg_names = entry.arg_names

            def __getitem__(self, grid: Any) -> Any:
                monkeypatch.undo()
                made(rewards, None, 2)
                return entry[grid]

        monkeypatch.setattr(made, "_entry", Entry())
        for _ in range(2):
            torch.testing.assert_close(made(rewards, None, 2), want, rtol=1e-5, atol=1e-6)

    def test_hooks_are_told_as_of_any_launch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import triton

        rewards = torch.randn(40, 8, device=DEVICE)
        made = self.prepared(rewards)
        made(rewards, None, 2)
        launched: list[str] = []

        class Compiled:
            """Triton's own compiled kernel, of which it is seen how it is launched."""

            def __init__(self, compiled: Any) -> None:
                self.compiled = compiled

            def __getitem__(self, grid: Any) -> Any:
                launched.append("with hooks")
                return self.compiled[grid]

        def run(*arguments: Any) -> None:
            launched.append("run")
            compiled.run(*arguments)

        compiled = made._compiled
        monkeypatch.setattr(made, "_compiled", Compiled(compiled))
        monkeypatch.setattr(made, "_run", run)
        hook = triton.knobs.runtime.launch_enter_hook
        made(rewards, None, 2)
        hook.add(self.hook)
        try:
            made(rewards, None, 2)
        finally:
            hook.remove(self.hook)
        made(rewards, None, 2)
        assert launched == ["run", "with hooks", "run"]

    def hook(self, metadata: Any) -> None:
        pass

    def test_programs_keep_launches_apart(self) -> None:
        operators.forget()
        rules = coefficients.as_text(pk.ESTIMATORS["sloo_minus_one"], "sum", "zero")
        operator = torch.ops.pkpo_triton.transform.default
        flat = torch.randn(40 * 8 + 1, device=DEVICE)
        aligned, not_aligned = flat[:-1].view(40, 8), flat[1:].view(40, 8)
        mask = aligned > 0
        k = torch.tensor(3, device=DEVICE)
        calls = [
            (aligned, 2, None, None),
            (aligned, 3, None, None),
            (aligned, 0, k, None),
            (not_aligned, 2, None, None),
            (aligned[:20], 2, None, None),
            (aligned, 2, None, mask),
        ]
        for _ in range(2):
            for rewards, static_k, dynamic_k, where in calls:
                got = operator(rewards, static_k, dynamic_k, where, rules, torch.float32)
                either_k = static_k if dynamic_k is None else dynamic_k
                want = pk.transform(rewards, either_k, where=where, implementation="torch")
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
            assert len(operators._launches) == len(calls)


def programs() -> int:
    """How many transforms are compiled."""
    from pkpo_triton import kernel

    return sum(len(cache[0]) for cache in kernel.transform_kernel.device_caches.values())


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
class TestWhatIsCompiled:
    @pytest.mark.parametrize("n", [16, 64])
    def test_a_new_k_is_no_new_program(self, n: int) -> None:
        pk.transform(torch.randn(64, n, device=DEVICE), 4, implementation="triton")
        before = programs()
        for k in (1, 2, 15, 16):
            rewards = torch.randn(64 + k, n, device=DEVICE)
            pk.transform(rewards, k, implementation="triton")
        assert programs() == before

    @pytest.mark.slow  # compiles six kernels
    def test_nothing_is_compiled_after_warming_up(self) -> None:
        # Of a dtype and a length that no other test asks for together.
        calls = ("transform", "transform, where", "max_at_k")
        for dynamic_k in (False, True):
            pk.warm_up(9, calls, dtype="float16", dynamic_k=dynamic_k, implementation="triton")
        before = programs()
        assert before >= 4
        flat = torch.randn(80 * 9, device=DEVICE).half()
        mask = torch.ones(80 * 9 + 1, dtype=torch.bool, device=DEVICE)
        for rows in (3, 64, 80):
            rewards, where = flat[: rows * 9].view(rows, 9), mask[1 : rows * 9 + 1].view(rows, 9)
            assert where.data_ptr() % 16
            for k in (1, 9, torch.tensor(4), torch.tensor(4, dtype=torch.int32)):
                k = k.to(DEVICE) if isinstance(k, torch.Tensor) else k
                pk.transform(rewards, k, implementation="triton")
                pk.transform(rewards, k, where=where, implementation="triton")
            pk.max_at_k(rewards, [1, 2, 9], implementation="triton")
        assert programs() == before

    @pytest.mark.costly("ptx")
    def test_few_rows_and_many_are_two_programs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(matrices, "FEW_ROWS", 600)
        before = programs()
        for rows, compiled in ((2, 1), (64, 1), (599, 1), (600, 2), (1000, 2), (599, 2)):
            # Of a dtype and a length that no other test asks for together.
            rewards = torch.randn(rows, 6, device=DEVICE).bfloat16()
            got = pk.transform(rewards, 2, implementation="triton")
            want = pk.transform(rewards, 2, implementation="torch")
            torch.testing.assert_close(got, want, rtol=2e-2, atol=1e-3)
            assert programs() == before + compiled

    def test_every_class_of_strides_is_one_program(self) -> None:
        # Of a dtype and a length that no other test asks for together.
        before = programs()
        # Neighbouring rows, and all others.
        for step, compiled in ((11, 1), (48, 2), (13, 2), (32, 2), (11, 2), (19, 2)):
            for k in (1, 2, 10, 11):
                rewards = torch.randn(64, step, device=DEVICE).half()[:, :11]
                pk.transform(rewards, k, implementation="triton")
            assert programs() == before + compiled
