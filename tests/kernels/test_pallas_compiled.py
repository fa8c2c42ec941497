"""The Pallas kernels, compiled by libtpu for chips that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.records import RESULTS, read_table

pytest.importorskip("libtpu")

ROOT = Path(__file__).parents[2]

# Every regime, dtype, and kind of mask and k, on one line each: a shape, and what is asked of it.
COMPILE = """
import sys
from bench.tpu_compiler import Compiler
from bench.tpu_static import ELEMENTS
import pkpo_kernels as pk
compiler = Compiler(sys.argv[1])
import jax.numpy as jnp
import jax
from pkpo_pallas.plan import chip
with jax.sharding.use_abstract_mesh(compiler.mesh):
    longest = chip().longest

def compiles(n, dtype, masked=False, per_row=False, best=False, estimator="sloo_minus_one"):
    # Smaller matrices would lie in VMEM; XLA's sorts take long to compile for larger ones.
    rows = ELEMENTS // n // 1024 * 1024 if n <= longest else 4096
    x = compiler.array((rows, n), jnp.dtype(dtype))
    lengths = compiler.array((rows,), jnp.int32) if masked else None
    k = compiler.array((rows,) if per_row else (), jnp.int32)
    def program(x, k, lengths):
        # With producers, as in a train step.
        x = ~x if dtype == "bool" else 2 * x
        where = None if lengths is None else jnp.arange(n) < lengths[:, None]
        if best:
            return pk.max_at_k(x, [1, 2], where=where)
        return pk.transform(x, k, where=where, estimator=estimator)
    compiled, _ = compiler.compile(program, x, k, lengths)
    text = compiled.as_text()
    assert "tpu_custom_call" in text, (n, dtype)
    # What the program moves beyond what the kernel reads and writes, which is not counted, and what
    # the producers do. Where XLA fetches onto the chip what there is one of for each row, that
    # counts up to four times.
    item = x.dtype.itemsize
    floor = x.size * (item + masked + (4 if dtype == "bool" else item))
    fetched = f"s32[{rows}]{{0:T(1024)S(" in text
    counted = x.size * (2 * item + masked) + rows * (4 * masked + 16 * fetched * (masked + per_row))
    moved = 1 + (compiled.cost_analysis()["bytes accessed"] - counted) / floor
    if dtype in ("float32", "bfloat16", "bool") and n <= longest and not best:
        # XLA's own layout fills rows up to whole eights.
        limit = (1.1 if n >= 128 else 1.05) * (-n % 8 + n) / n
        assert moved < limit, (n, dtype, moved)

cases = eval(sys.argv[2])
for case in cases:
    compiles(**case)
"""

SHORT = [
    {"n": 8, "dtype": "bfloat16", "masked": True},
    {"n": 32, "dtype": "bool", "masked": True, "per_row": True},
]
# One of every regime …
REGIMES = [
    {"n": 16, "dtype": "float16", "best": True},
    {"n": 64, "dtype": "float32", "masked": True, "per_row": True},
    {"n": 128, "dtype": "float32", "estimator": "passk_training"},
    {"n": 300, "dtype": "int32", "masked": True},
]
# … and others of the same.
CASES = [
    *SHORT,
    *REGIMES,
    {"n": 1, "dtype": "float32"},
    {"n": 12, "dtype": "float32", "per_row": True, "estimator": "passk_training"},
    {"n": 100, "dtype": "float32", "masked": True, "best": True},
    {"n": 128, "dtype": "bool", "best": True},
    {"n": 256, "dtype": "bfloat16", "masked": True, "per_row": True},
    {"n": 1024, "dtype": "float32", "masked": True, "estimator": "passk_training"},
    {"n": 1024, "dtype": "bool"},
]
# Sorted by XLA, whatever the chip.
LONG = {"n": 5000, "dtype": "float32", "masked": True}
LONGEST = {
    "v5e": {"n": 4096, "dtype": "float32", "per_row": True},
    "v4": {"n": 1024, "dtype": "bfloat16", "masked": True, "per_row": True},
    "v5p": {"n": 2048, "dtype": "float32", "masked": True},
    "v6e": {"n": 4096, "dtype": "bfloat16", "masked": True},
}


def run(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.mark.slow
def test_short_rows_compile() -> None:
    run("-c", COMPILE, "v5e", repr(SHORT))


ALONG_AN_AXIS = """
from bench.tpu_compiler import Compiler
Compiler("v5e")
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from pkpo_kernels import distributed

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = Mesh(np.array(devices).reshape(2, 2), ("hosts", "samples"))
axes = ("hosts", "samples")
def part(rewards, ids, k):
    return distributed.transform_groups(rewards, ids, k, axis_name=axes)
program = jax.shard_map(part, mesh=mesh, in_specs=(P(axes), P(axes), P()), out_specs=P(axes))
spread, same = NamedSharding(mesh, P(axes)), NamedSharding(mesh, P())
operands = [
    jax.ShapeDtypeStruct((4096,), jnp.float32, sharding=spread),
    jax.ShapeDtypeStruct((4096,), jnp.int32, sharding=spread),
    jax.ShapeDtypeStruct((), jnp.int32, sharding=same),
]
text = jax.jit(program).lower(*operands).compile().as_text()
assert "all-gather" in text and "all-reduce" not in text
"""


@pytest.mark.slow
def test_groups_along_the_axes_of_four_chips_compile() -> None:
    run("-c", ALONG_AN_AXIS)


@pytest.mark.release
def test_one_of_every_regime_compiles() -> None:
    run("-c", COMPILE, "v5e", repr([*REGIMES, LONGEST["v5e"]]))


@pytest.mark.release
@pytest.mark.parametrize("chip", LONGEST)
def test_every_regime_compiles_and_the_kernel_is_what_runs(chip: str) -> None:
    run("-c", COMPILE, chip, repr([*CASES, LONGEST[chip], *[LONG] * (chip == "v5e")]))


@pytest.mark.slow
def test_schedules_stay_within_their_budget(tmp_path: Path) -> None:
    run("-m", "bench.tpu_static", "--quick", "--out", str(tmp_path))
    got = read_table(tmp_path / "tpu-static-v5e.csv")
    kept = read_table(RESULTS / "tpu-static-v5e.csv")
    budget = {(row["n"], row["dtype"], row["path"]): row for row in kept}
    assert got
    for row in got:
        before = budget[row["n"], row["dtype"], row["path"]]
        took, takes = (float(it["bundles"]) + float(it["delays"]) for it in (before, row))
        assert takes <= 1.05 * took, row
        assert float(row["bytes_over_floor"]) <= 1.05, row


def test_loops_are_counted_with_their_turns_and_delays() -> None:
    from bench.tpu_compiler import schedule

    text = """
     0   :  { %1 = sfence }
   0x1 LB: > { %s1_s0 = sphi 0 } /* Start region 9 */
   0x2 LB: >> { %s2_s0 = sphi 0 } /* Start region 5 :: Start region 6 */
   0x3   : >> { %7 = vst [vmem:[#allocation13_spill] sm:$0xff] %v1 ;;  %p1_p0 = scmp.ge.s32.totalorder %s2_s0, 4 /* loop exit test */ }
   0x4   : >> { %9 = sbr.rel (!%p1_p0) target = $region5 }
   0x5 LB: >> { %s3_s0 = sphi 0 } /* Start region 7 */
   0x6   : >> { %p2_p0 = scmp.ge.s32.totalorder %s3_s0, %s8_s0 /* loop exit test */ }
   0x7   : >> { %9 = sbr.rel (!%p2_p0) target = $region7 }
   0x8   : > { %p3_p0 = scmp.ge.s32.totalorder %s1_s0, 99 /* loop exit test */ }
   0x9   : > { %10 = sbr.rel (!%p3_p0) target = $region9 }
   0xa   :  { %2 = sfence }
"""  # noqa: E501
    # Before, delays stand where they are: behind the second of the inner loop, and the last.
    lines = [line.replace("/* loop exit test */ ", "") for line in text.splitlines()]
    empty = " 0x63   :  {  }"
    before = "\n".join([*lines[:5], empty, empty, *lines[5:-2], empty, *lines[-2:]])
    found = schedule(text, before)
    # One of the grid's loop at its head, four turns of three, one turn of three, two at the end.
    assert (found.bundles, found.spills) == (1 + 4 * 3 + 3 + 2, 4)
    assert found.delays == 4 * 2 + 1
    with pytest.raises(ValueError, match="zip"):
        schedule(text, before.replace("%2 = sfence", ""))
