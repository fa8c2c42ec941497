"""What the machine for PTX executes of compiled kernels, and how machine code is counted by it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from pkpo_triton.plan import OPTIONS  # noqa: E402
from typer import BadParameter  # noqa: E402

from bench import gpu_static  # noqa: E402
from bench.gpu_static import Budget, Figures, figures_of  # noqa: E402
from bench.ptx import sass  # noqa: E402
from bench.ptx.driver import Device  # noqa: E402
from bench.ptx.usage import usage_of  # noqa: E402
from bench.records import beside_others, listed, read_table, write_table  # noqa: E402
from bench.variants import KINDS, Variant  # noqa: E402

SIZE = 1024


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


def launched(kernel: Any, x: Any, target: str = "sm_90", **constants: Any) -> Device:
    """Launch two programs."""
    with Device(target, executes=target.startswith("sm")) as device:
        options = {"num_warps": 4, "num_stages": 1, **OPTIONS}
        kernel[(2,)](x, torch.empty_like(x), **constants, SIZE=SIZE, **options)
    return device


def figures(kernel: Any, x: Any, target: str = "sm_90", **constants: Any) -> Figures:
    (launch,) = launched(kernel, x, target, **constants).launches
    return figures_of(launch, x.numel())


# ---- Executing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["sm_90", *(pytest.param(it, marks=pytest.mark.slow) for it in ("sm_80", "sm_100"))]
)
def test_a_copy_counts_as_one(target: str) -> None:
    (launch,) = launched(copy, torch.randn(2 * SIZE), target).launches
    got = figures_of(launch, 2 * SIZE)
    assert (got.loaded, got.least_loaded, got.stored, got.least_stored) == (4, 4, 4, 4)
    assert got.shuffles == got.wavefronts == got.least_wavefronts == got.barriers == 0
    assert got.global_wavefronts == 2
    # 4 warps for 1024 elements, and every instruction once for each of them.
    every = [it.opcode for it in sass.instructions_of(launch.kernel.binary)]
    assert got.instructions == len(every) * 128 / 1024
    assert sum(opcode.startswith("LDG.E.128") for opcode in every) == 2
    assert 0 < got.alu < got.instructions < 5
    assert got.of_copy(8) == 1
    usage = usage_of(launch.kernel)
    assert usage.spilled_words == usage.shared_bytes == 0 and 8 <= usage.registers <= 40


@pytest.mark.slow
def test_a_branch_is_counted_where_it_is_taken() -> None:
    positive = torch.rand(2 * SIZE) + 1
    of_maximum = []
    for path, x in (("neighbours", positive), ("scan", -positive)):
        got, alone = figures(either, x, PATH="both"), figures(either, x, PATH=path)
        of_maximum.append((got.shuffles - alone.shuffles, got.wavefronts - alone.wavefronts))
        assert 0 < got.instructions - alone.instructions < 10, path
        assert 0 < got.ptx - alone.ptx < 10, path
    # What both pay for is the same.
    assert of_maximum[0] == of_maximum[1] > (0, 0)


def test_what_is_only_compiled_is_not_executed() -> None:
    device = launched(copy, torch.ones(2 * SIZE), "gfx942")
    (kernel,) = device.kernels
    assert not device.launches and kernel.constants["SIZE"] == SIZE and kernel.num_warps == 4
    usage = usage_of(kernel)
    assert 0 < usage.registers <= 40
    assert (usage.spilled_words, usage.spilled_scalars, usage.shared_bytes) == (0, 0, 0)


def test_a_wrong_result_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = Variant(16).rewards("normal", 2)
    call = Variant.call
    monkeypatch.setattr(
        Variant, "call", lambda self, x, *by: call(self, x, *by) + 1e-3 * (x.dtype == torch.double)
    )
    with pytest.raises(ValueError, match="n=16 float32 must be right"):
        gpu_static.execute(Variant(16), rewards, "sm_90")


def test_rewards_are_of_their_kind() -> None:
    of = {kind: Variant(16).rewards(kind, 32) for kind in KINDS}
    assert set(of["two_values"].unique().tolist()) == {0, 1}
    assert set(of["four_values"].unique().tolist()) == {0, 1, 2, 3}
    assert len(of["normal"].unique()) == 32 * 16
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
    with pytest.raises(BadParameter, match=r"name kernels of the table; got \['n=7'\]; there are"):
        gpu_static.measure_all("sm_90", only=["n=7"])


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
    got = sass.counted(SimpleNamespace(run=run, kernel=SimpleNamespace(binary=b"")))
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
    exchange = nothing._replace(shuffles=13, wavefronts=18, least_wavefronts=4, global_wavefronts=2)
    assert exchange.of_copy(8) == pytest.approx(0.5, rel=0.01)


def test_a_row_of_what_is_executed() -> None:
    row = gpu_static.measure(Variant(16), "sm_90")
    assert (row.kernel, row.n, row.dtype) == ("n=16 float32", 16, "float32")
    assert row.normal is not None and 20 < row.normal.instructions < 30
    assert row.of_copy == row.two_values_of_copy == 1
    told = dict(zip(*listed([row._asdict()], gpu_static.COLUMNS), strict=True))
    assert told["kernel"] == "n=16 float32"
    assert told["normal_instructions"] == f"{row.normal.instructions:.1f}"


def test_a_row_of_what_is_not_executed() -> None:
    row = gpu_static.measure(Variant(8), "gfx942")
    assert row.registers > 0 and row.compile_seconds > 0
    assert row.normal is row.two_values is row.of_copy is None
    told = dict(zip(*listed([row._asdict()], gpu_static.COLUMNS), strict=True))
    assert told["normal_instructions"] == "–"
