"""The counts of compiled kernels: nothing here needs a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from bench import gpu_static  # noqa: E402
from bench.gpu_static import Budget, Counts, PerElement, Variant  # noqa: E402

SM_90 = gpu_static.TARGETS["sm_90"]


@triton.jit
def copy(x_ptr, out_ptr, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    tl.store(out_ptr + places, tl.load(x_ptr + places))


@triton.jit
def shared_helper(x, y):
    return tl.where(x > y, x * y, x - y)


@triton.jit
def summing(x):
    return shared_helper(x, tl.sum(x, 1, keep_dims=True))


@triton.jit
def sorting(x):
    return shared_helper(tl.sort(x, 1), x)


@triton.jit
def either(x_ptr, out_ptr, PATH: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    places = rows[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + places)
    if PATH == "sorting":
        out = sorting(x)
    elif PATH == "summing" or tl.max(x) > 0:  # of the whole block
        out = summing(x)
    else:
        out = sorting(x)
    tl.store(out_ptr + places, out)


PATHS = {"sorting": (sorting,), "summing": (summing,), "elsewhere": (copy,)}
POINTERS = {"x_ptr": "*fp32", "out_ptr": "*fp32"}


def copy_variant(size: int = 1024) -> Variant:
    signature = POINTERS | {"SIZE": "constexpr"}
    return Variant("copy", copy, signature, {"SIZE": size}, tuple(POINTERS), 4, size, size)


def either_variant(path: str) -> Variant:
    signature = POINTERS | {"PATH": "constexpr", "ROWS": "constexpr", "N": "constexpr"}
    constants = {"PATH": path, "ROWS": 32, "N": 32}
    return Variant("either", either, signature, constants, tuple(POINTERS), 4, 32, 1024)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_a_copy_counts_as_one(target: str) -> None:
    variant = copy_variant()
    compiled = gpu_static.compile_variant(variant, gpu_static.TARGETS[target])
    figures = gpu_static.count(compiled)
    assert set(figures.paths) == {""}
    counts = figures.total
    # 1024 elements, 128 threads, 4 elements an access
    assert (counts.global_loads, counts.global_stores) == (2, 2)
    assert counts.shuffles == counts.barriers == counts.local == 0
    assert counts.shared_loads == counts.shared_stores == counts.shared_words == 0
    assert 0 < counts.alu < counts.instructions < 40
    assert compiled.usage.spilled_words == compiled.usage.shared_bytes == 0
    assert 8 <= compiled.usage.registers <= 40
    per_element = PerElement.of(counts, variant)
    assert per_element.instructions == counts.instructions / 8
    assert per_element.copy_fraction(gpu_static.bytes_per_element(variant)) == 1


def test_an_amd_kernel_tells_what_it_uses() -> None:
    usage = gpu_static.compile_variant(copy_variant(), gpu_static.TARGETS["gfx942"]).usage
    assert 0 < usage.registers <= 40
    assert (usage.spilled_words, usage.spilled_scalars, usage.shared_bytes) == (0, 0, 0)


def test_compilation_is_cold_and_leaves_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    stages: list[bool] = []
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda **told: stages.append(told["cache_hit"])
    )
    for _ in range(2):
        gpu_static.compile_variant(copy_variant(), SM_90)
    assert stages == [False, False]
    assert not list(tmp_path.iterdir())
    assert triton.knobs.cache.dir == os.environ["TRITON_CACHE_DIR"] == str(tmp_path)


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_paths_count_what_kernels_with_one_path_count(target: str) -> None:
    def counted(path: str) -> gpu_static.Figures:
        compiled = gpu_static.compile_variant(either_variant(path), gpu_static.TARGETS[target])
        return gpu_static.count(compiled, PATHS)

    both = counted("both")
    assert set(both.paths) == {"", "sorting", "summing"}
    assert both.total.instructions == sum(c.instructions for c in both.paths.values())
    for path in ("sorting", "summing"):
        alone = counted(path)
        assert set(alone.paths) == {""}  # it is always executed
        # The helper that both call is counted for each.
        assert both.paths[path].instructions > 0
        # Common code holds the maximum of the block besides.
        difference = both.on(path).instructions - alone.total.instructions
        assert 0 < difference < 120, (path, difference)
        assert 0 <= both.on(path).shuffles - alone.total.shuffles < 10
    assert both.paths["sorting"].shuffles > 5 * both.paths["summing"].shuffles > 0
    assert both.paths[""].global_loads > 0 == both.paths["sorting"].global_loads
    assert both.paths["sorting"].barriers == 0 < both.paths[""].barriers


def test_no_line_information_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.compilation, "disable_line_info", True)
    compiled = gpu_static.compile_variant(copy_variant(), SM_90)
    assert gpu_static.count(compiled).total.instructions > 0
    with pytest.raises(ValueError, match="no line information"):
        gpu_static.count(compiled, PATHS)


# Lines 1 to 3 of the PTX are of no path, 4 of path a, 5 of path b.
LINES = ["", "", "", "", "a", "b"]
LISTING = """
kernel:
.text.kernel:
	//## File ".nv_debug_ptx_txt", line 1
        /*0000*/                   LDC R1, c[0x0][0x28] ;
	//## File ".nv_debug_ptx_txt", line 4
        /*0010*/                   FMNMX R2, R2, R3, PT ;
        /*0020*/                   FADD R2, R2, R3 ;
	//## File ".nv_debug_ptx_txt", line 2
        /*0030*/              @!P0 BRA `(.L_a) ;
        /*0040*/                   LDS.128 R4, [R2] ;
        /*0050*/                   BRA.DIV UR4, `(.L_slow) ;
	//## File ".nv_debug_ptx_txt", line 5
        /*0060*/                   SHFL.BFLY PT, R2, R3, 0x1, 0x1f ;
        /*0070*/             @!UP1 BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_back:
	//## File ".nv_debug_ptx_txt", line 3
        /*0080*/                   IMAD R2, R2, R3, R4 ;
        /*0090*/                   BRA `(.L_end) ;
.L_a:
	//## File ".nv_debug_ptx_txt", line 4
        /*00a0*/                   STL [R1], R2 ;
        /*00b0*/                   NOP ;
.L_end:
	//## File ".nv_debug_ptx_txt", line 3
        /*00c0*/               @P1 EXIT ;
        /*00d0*/                   STG.E desc[UR6][R4.64], R2 ;
        /*00e0*/                   EXIT ;
.L_slow:
        /*00f0*/                   WARPSYNC.COLLECTIVE R7, `(.L_back) ;
        /*0100*/                   BRA `(.L_back) ;
.L_stop:
        /*0110*/                   BRA `(.L_stop);
        /*0120*/                   NOP;
"""


def test_blocks_and_their_paths() -> None:
    blocks = gpu_static.basic_blocks(LISTING)
    opcodes = [[i.opcode.split(".")[0] for i in block.instructions] for block in blocks]
    paths = gpu_static.path_of_blocks(blocks, LINES)
    assert list(zip(opcodes, paths, strict=True)) == [
        # mostly of path a, but always executed
        (["LDC", "FMNMX", "FADD", "BRA"], ""),
        # of no path's lines, but followed by path b in every case
        (["LDS", "BRA"], "b"),
        (["SHFL", "BAR"], "b"),
        # of no path's lines, but behind path b in every case
        (["IMAD", "BRA"], "b"),
        (["STL", "NOP"], "a"),
        # a condition to end on, and what is left without it
        (["EXIT"], ""),
        (["STG", "EXIT"], ""),
        (["WARPSYNC"], gpu_static.DIVERGED),
        (["BRA"], gpu_static.DIVERGED),
        (["BRA"], None),
        (["NOP"], None),
    ]


def test_counts_by_what_they_occupy() -> None:
    opcodes = ("FMNMX", "FADD", "LDS.128", "STS.U8", "LDSM.16.M88.4", "SHFL.IDX", "BAR.SYNC", "NOP")
    counts = Counts.of((*opcodes, "STL"))
    assert counts == Counts(
        instructions=8,
        alu=1,
        shuffles=1,
        shared_loads=2,
        shared_stores=1,
        shared_words=9,
        barriers=1,
        local=1,
    )
    assert counts + Counts() == counts


def test_the_budget_is_that_of_a_copy() -> None:
    assert Budget.of(8) == pytest.approx((62.2, 31.1, 15.6), abs=0.1)
    assert Budget.of(4) == pytest.approx([half / 2 for half in Budget.of(8)])
    assert PerElement(124.4, 1, 1, 1).copy_fraction(8) == pytest.approx(0.5, rel=0.01)
    assert PerElement(1, 1, 1, 31.2).copy_fraction(8) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(
    ("rewards", "results", "size"),
    [("*fp32", "*fp32", 8), ("*bf16", "*bf16", 4), ("*i1", "*fp32", 5)],
)
def test_the_bytes_of_an_element(rewards: str, results: str, size: int) -> None:
    variant = copy_variant()._replace(signature={"x_ptr": rewards, "k": "i32", "out_ptr": results})
    assert gpu_static.bytes_per_element(variant) == size


def test_the_whole_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_static, "catalogue", lambda: (gpu_static.inductor_arm(8),))
    row = gpu_static.measure(0, "sm_90")
    assert (row.n, row.dtype, row.two_levels) == (8, "fp32", None)
    assert row.general is not None and 50 < row.general.instructions < 80
    assert row.copy_fraction is not None and 0.5 < row.copy_fraction < 1
    assert gpu_static.record([row], "sm_90")["rows"][0]["general"]["alu"] == row.general.alu
    assert gpu_static.table([row], "sm_90").row_count == 1


INTERPRETED = """
import numpy as np, torch
from bench import gpu_static as g

n, rows = 16, 5
x = torch.randn(rows, n)
w = torch.rand(n + 1)
w[n] = 0
out, s, place = torch.empty_like(x), torch.empty_like(x), torch.empty(rows, n, dtype=torch.int64)
g.sort_scan_scatter[(3,)](x, out, w, rows, n, 2)
sorted_x, order = x.double().sort(1)
steps = torch.diff(sorted_x, dim=1, prepend=torch.zeros(rows, 1)) * w[:n]
expected = torch.zeros(rows, n, dtype=torch.double).scatter_(1, order, steps.cumsum(1))
np.testing.assert_allclose(out, expected, atol=1e-5)
g.inductor_sort[(rows,)](x, s, place, 1, n)
assert torch.equal(s.double(), sorted_x) and torch.equal(place, order)
"""


@pytest.mark.slow
def test_the_arms_compute_what_they_are_said_to() -> None:
    """In a process of its own, where Triton's interpreter takes the compiler's place."""
    root = Path(__file__).parents[1]
    search = os.pathsep.join([*sys.path, str(root)])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": search}
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, cwd=root, check=True)
