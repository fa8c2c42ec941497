"""What the machine for PTX executes of compiled kernels, and how machine code is counted by it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from pkpo_triton import packed, packed_long  # noqa: E402
from pkpo_triton.plan import OPTIONS  # noqa: E402

import pkpo_kernels as pk  # noqa: E402
from bench import gpu_compile, gpu_static, sass  # noqa: E402
from bench.gpu_compile import TARGETS  # noqa: E402
from bench.gpu_static import Budget, Figures  # noqa: E402
from bench.records import beside_others, read_table, write_table  # noqa: E402
from bench.variants import Variant, shipped, transform_variant, usual_variant  # noqa: E402
from pkpo_kernels.maths.estimators import ESTIMATORS  # noqa: E402

POINTERS = {"x_ptr": "*fp32", "out_ptr": "*fp32"}
SIZE = 1024
slow = partial(pytest.param, marks=pytest.mark.slow)


@triton.jit
def copy(x_ptr, out_ptr, SIZE: tl.constexpr):
    places = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out_ptr + places, tl.load(x_ptr + places))


@triton.jit
def either(x_ptr, out_ptr, PATH: tl.constexpr, SIZE: tl.constexpr):
    places = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x = tl.load(x_ptr + places)
    if PATH == "scan":
        out = tl.cumsum(x, 0)
    elif PATH == "neighbours" or tl.max(x, 0) > 0:  # of the whole program
        out = tl.reshape(x, [SIZE // 2, 2])
        out = tl.reshape(out - tl.sum(out, 1, keep_dims=True), [SIZE])
    else:
        out = tl.cumsum(x, 0)
    tl.store(out_ptr + places, out)


def variant_of(kernel: Any, **constants: Any) -> Variant:
    constants = {**constants, "SIZE": SIZE}
    signature = POINTERS | dict.fromkeys(constants, "constexpr")
    return Variant("a kernel", kernel, signature, constants, tuple(POINTERS), 4, 32, SIZE)


def figures(variant: Variant, x: Any, target: str = "sm_90", **other: Any) -> Figures:
    """Of two programs; `other` constants than those that are compiled."""

    def call() -> None:
        options = {"num_warps": variant.num_warps, "num_stages": 1, **OPTIONS}
        variant.kernel[(2,)](x, torch.empty_like(x), **variant.constants | other, **options)

    with gpu_compile.compiled_cold(variant, TARGETS[target]) as compiled:
        return gpu_static.execute(compiled, call)


# ---- Executing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["sm_90", slow("sm_80"), slow("sm_100")])
def test_a_copy_counts_as_one(target: str) -> None:
    got = figures(variant_of(copy), torch.randn(2 * SIZE), target)
    assert (got.loaded, got.least_loaded, got.stored, got.least_stored) == (4, 4, 4, 4)
    assert got.shuffles == got.wavefronts == got.least_wavefronts == got.barriers == 0
    # 4 warps for 1024 elements, and every instruction once for each of them.
    compiled = gpu_compile.compile_variant(variant_of(copy), TARGETS[target])
    every = [
        instruction.opcode for instruction in sass.instructions_of(compiled.kernel.asm["cubin"])
    ]
    assert got.instructions == len(every) * 128 / 1024
    assert sum(opcode.startswith("LDG.E.128") for opcode in every) == 2
    assert 0 < got.alu < got.instructions < 5
    assert got.of_copy(8) == 1
    usage = compiled.usage
    assert usage.spilled_words == usage.shared_bytes == 0 and 8 <= usage.registers <= 40


@pytest.mark.slow
def test_a_branch_is_counted_where_it_is_taken() -> None:
    positive, both = torch.rand(2 * SIZE) + 1, variant_of(either, PATH="both")
    of_maximum = []
    for path, x in (("neighbours", positive), ("scan", -positive)):
        got, alone = figures(both, x), figures(variant_of(either, PATH=path), x)
        of_maximum.append((got.shuffles - alone.shuffles, got.wavefronts - alone.wavefronts))
        assert 0 < got.instructions - alone.instructions < 10, path
        assert 0 < got.ptx - alone.ptx < 10, path
    # What both pay for is the same.
    assert of_maximum[0] == of_maximum[1] > (0, 0)


def test_another_kernel_than_the_compiled_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be what is launched"):
        figures(variant_of(either, PATH="scan"), torch.rand(2 * SIZE), PATH="neighbours")


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether Triton's cache had each of the kernels that it was asked for."""
    found: list[bool] = []
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda **told: found.append(told["cache_hit"])
    )
    yield found


def test_compilation_is_cold_and_leaves_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hits: list[bool]
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        gpu_compile.compile_variant(variant_of(copy), TARGETS["sm_90"])
    assert hits == [False, False]
    assert not list(tmp_path.iterdir())
    assert triton.knobs.cache.dir == os.environ["TRITON_CACHE_DIR"] == str(tmp_path)


@pytest.mark.parametrize(
    "variant",
    [
        usual_variant(16),
        slow(transform_variant(5)),
        slow(transform_variant(8, "bfloat16", masked=True)),
        slow(usual_variant(128)),
        *(pytest.param(variant, marks=pytest.mark.release) for variant in shipped()),
    ],
    ids=lambda variant: variant.name,
)
def test_what_the_variants_say_is_what_the_library_launches_and_right(
    variant: Variant, hits: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = gpu_static.launch

    def checked(variant: Variant, rewards: torch.Tensor) -> None:
        got, want = launch(variant, rewards), launch(variant, rewards.double(), "torch")
        rtol = {"bf16": 8e-3, "fp16": 1e-3}.get(gpu_static.dtype(variant), 5e-6)
        atol = min(rtol, 1e-6) * float(want.abs().max())
        torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol)

    monkeypatch.setattr(gpu_static, "launch", checked)
    gpu_static.measure(variant, "sm_90")
    # Compiled ahead of time, and found by the launches on all kinds of rewards
    assert hits == [False, True]


def test_every_variant_is_called_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    for name in ("transform", "max_at_k"):

        def called(rewards: Any, k: Any, name: str = name, **options: Any) -> None:
            calls.append({"name": name, "rewards": rewards, "k": k, **options})

        monkeypatch.setattr(pk, name, called)
    for variant in shipped():
        gpu_static.launch(variant, gpu_static.rewards_of(variant, "normal"))
        call, constants = calls.pop(), variant.constants
        assert call["rewards"].numel() == 2 * variant.elements
        assert str(call["rewards"].dtype).removeprefix("torch.") in variant.name
        assert call["name"] == ("max_at_k" if variant.name.startswith("max@k") else "transform")
        if variant.kernel in (packed.packed_kernel, packed_long.packed_long_kernel):
            masked = {"where"} if "where" in variant.name else set[str]()
            assert call.keys() == {"name", "rewards", "k", "implementation", *masked}
            assert type(call["k"]) is int
            continue
        assert ("where" in call) == constants["MASKED"] == ("where" in variant.name)
        if call["name"] == "transform":
            estimator = ESTIMATORS[call["estimator"]]
            assert estimator.index_shift == constants["INDEX_SHIFT"]
            assert estimator.normalized == constants["NORMALIZED"]
            kind = {None: "int", 0: "scalar", 1: "row"}[getattr(call["k"], "ndim", None)]
            assert kind == constants["K"]


def test_rewards_are_of_their_kind() -> None:
    variant = transform_variant(16)
    of = {kind: gpu_static.rewards_of(variant, kind) for kind in gpu_static.KINDS}
    assert set(of["two_values"].unique().tolist()) == {0, 1}
    assert set(of["four_values"].unique().tolist()) == {0, 1, 2, 3}
    assert len(of["normal"].unique()) > variant.elements
    apart = (of["near_ties"] - 1) * 2**23
    assert torch.equal(apart.sort(1).values, torch.arange(16.0).expand_as(apart))


def test_rows_stand_beside_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "figures.csv"
    before = [{"kernel": name, "n": n, "x": 1} for name, n in (("a", 8), ("b", 8), ("c", 64))]
    write_table(file, before, {"commit": "old"})
    figures = Figures(*map(float, range(len(Figures._fields))))
    row = gpu_static.Row("b", 8, "fp32", 1, 256, 0.5, 9, 0, 0, 64, normal=figures)
    write_table(file, beside_others([row._asdict()], file, "kernel"), {"commit": "new"})
    told = {row["kernel"]: (row["x"], row["normal_alu"], row["commit"]) for row in read_table(file)}
    assert told == {"a": ("1", "", "old"), "b": ("", "1.0", "new"), "c": ("1", "", "old")}


def test_only_kernels_of_the_table() -> None:
    with pytest.raises(ValueError, match=r"name kernels of the table; got \['n=7'\]"):
        gpu_static.measure_all("sm_90", only=["n=7"])


def test_an_amd_kernel_tells_what_it_uses() -> None:
    usage = gpu_compile.compile_variant(variant_of(copy), TARGETS["gfx942"]).usage
    assert 0 < usage.registers <= 40
    assert (usage.spilled_words, usage.spilled_scalars, usage.shared_bytes) == (0, 0, 0)


# ---- Machine code ------------------------------------------------------------------------------

LISTING = """
kernel:
.text.kernel:
	//## File ".nv_debug_ptx_txt", line 1
        /*0000*/                   LDC R1, c[0x0][0x28] ;
	//## File ".nv_debug_ptx_txt", line 4
        /*0010*/                   FMNMX R2, R2, R3, PT ;
        /*0020*/                   FADD R2, R2, R3 ;
        /*0030*/              @!P0 BRA `(.L_a) ;
	//## File ".nv_debug_ptx_txt", line 5
        /*0040*/                   BRA.DIV UR4, `(.L_slow) ;
        /*0050*/                   CALL.REL.NOINC `($__internal_0_$__division) ;
        /*0060*/             @!UP1 BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_back:
        /*0070*/                   EXIT ;
.L_a:
	//## File ".nv_debug_ptx_txt", line 6
        /*0080*/                   SEL R1, R1, R2, P0 ;
        /*0090*/                   NOP ;
        /*00a0*/                   EXIT ;
.L_slow:
	//## File ".nv_debug_ptx_txt", line 5
        /*00b0*/                   WARPSYNC.COLLECTIVE R7, `(.L_back) ;
        /*00c0*/                   BRA `(.L_back) ;
        .weak           $__internal_0_$__division
$__internal_0_$__division:
        /*00d0*/                   FMNMX R2, R2, R3, PT ;
        /*00e0*/                   RET.REL.NODEC R2 `(kernel) ;
.L_stop:
        /*00f0*/                   BRA `(.L_stop);
        /*0100*/                   NOP;
"""


def test_what_lies_behind_a_kernel_is_none_of_it() -> None:
    opcodes = [(i.opcode.split(".")[0], i.line) for i in sass.listed(LISTING)]
    in_front = [("LDC", 1), ("FMNMX", 4), ("FADD", 4), ("BRA", 4)]
    branch = [("BRA", 5), ("CALL", 5), ("BAR", 5), ("EXIT", 5)]
    assert opcodes == [*in_front, *branch, ("SEL", 6), ("EXIT", 6)]
    # Without subroutines, up to the padding
    alone = LISTING.replace("BRA.DIV UR4, `(.L_slow)", "NOP").replace("CALL.REL.NOINC", "NOP;")
    assert sass.listed(alone)[-1] == ("RET.REL.NODEC", 5)


def test_code_that_goes_on_behind_is_an_error() -> None:
    with pytest.raises(ValueError, match="L_slow"):
        sass.listed(LISTING.replace("@!P0 BRA `(.L_a)", "@!P0 BRA `(.L_slow)"))


def test_machine_code_counts_as_often_as_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "nvidia_tool", lambda *_: LISTING)
    executed = {3: 8, 4: 8, 5: 6, 6: 2}  # line 1 is no instruction: it stands for line 3
    run = SimpleNamespace(
        program=SimpleNamespace(instructions=[SimpleNamespace(line=line) for line in executed]),
        counts=SimpleNamespace(executed=list(executed.values())),
    )
    got = sass.counted(SimpleNamespace(run=run, cubin=b""))
    assert got == (4 * 8 + 4 * 6 + 2 * 2, 8 + 2)  # ALU: FMNMX, SEL


# ---- The table ---------------------------------------------------------------------------------


def test_the_budget_is_that_of_a_copy() -> None:
    assert Budget.of(8) == pytest.approx((66.1, 33.0, 16.5), abs=0.1)
    assert Budget.of(4) == pytest.approx([half / 2 for half in Budget.of(8)])
    nothing = Figures(*[0.0] * len(Figures._fields))
    assert nothing.of_copy(8) == 1
    assert nothing._replace(instructions=132.2, alu=1).of_copy(8) == pytest.approx(0.5, rel=0.01)
    assert nothing._replace(alu=66.1).of_copy(8) == pytest.approx(0.5, rel=0.01)
    # Conflicts count.
    exchange = nothing._replace(shuffles=13, wavefronts=20, least_wavefronts=4)
    assert exchange.of_copy(8) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(
    ("rewards", "results", "size"),
    [("*fp32", "*fp32", 8), ("*bf16", "*bf16", 4), ("*u8", "*fp32", 5)],
)
def test_the_bytes_of_an_element(rewards: str, results: str, size: int) -> None:
    signature = {"x_ptr": rewards, "k": "i32", "out_ptr": results}
    variant = variant_of(copy)._replace(signature=signature)
    assert gpu_static.bytes_per_element(variant) == size


def test_a_row_of_what_is_executed() -> None:
    row = gpu_static.measure_named("n=16 float32", "sm_90")
    assert (row.n, row.dtype) == (16, "fp32")
    assert row.normal is not None and 20 < row.normal.instructions < 30
    assert row.of_copy == row.two_values_of_copy == 1
    told = dict(zip(*gpu_static.lines([row]), strict=True))
    assert told["n"] == "16" and told["SASS"] == f"{row.normal.instructions:.1f}"


def test_a_row_of_what_is_not_executed() -> None:
    row = gpu_static.measure_named("n=8 float32", "gfx942")
    assert row.registers > 0 and row.compile_seconds > 0
    assert row.normal is row.two_values is row.of_copy is None
    assert dict(zip(*gpu_static.lines([row]), strict=True))["SASS"] == "–"
