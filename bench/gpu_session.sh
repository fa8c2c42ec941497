#!/usr/bin/env bash
# Everything that is asked of a GPU that can be had for ten minutes, the most telling first.
#
#     OUT=FOLDER bench/gpu_session.sh [COMMIT]
#
# It needs this tree and a Python with torch, Triton, pytest, pytest-xdist, hypothesis, typer and rich,
# which see a GPU; no git, no network, and nothing of the tree installed. Where the GPU's kernels are
# wrong it stops at once; any other step may fail, and the next runs. Each has a limit of its own, and
# all together end within 560 s. The exit code is 0 where every step's was.
#
# In FOLDER, as far as the session came: session.log, verify.json, gpu.xml, contract.xml, the tables of
# bench.grouping and bench.kernels, and the table and the plot of bench.throughput, whole after every
# matrix. Eight files, no folders.
#
# Variables: GPU_PYTHON, the Python (python3). GPU_SESSION_DEVICE=cpu tries the session itself on a
# machine without a GPU: the same steps, of fewer tests and small shapes, which say nothing of kernels.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
OUT=${OUT:?must name the folder of the results}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit
COMMIT=${1:-$(git describe --always --dirty --exclude='*' 2>/dev/null || echo unknown)}
PYTHON=${GPU_PYTHON:-python3}
DEVICE=${GPU_SESSION_DEVICE:-cuda}
LOG=$OUT/session.log
TOTAL=560
RESERVED=0 # seconds, for the steps to come

# The packages of kernels/ are importable where they are installed, and else from here.
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
# Each of them would quietly keep the GPU out of it.
unset JAX_PLATFORMS TRITON_INTERPRET PALLAS_INTERPRET
# JAX leaves torch its memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
# Tests turn warnings into errors, those of plugins that happen to be there too.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TEST_DEVICE=$DEVICE DEVICE

OUTCOMES=$(mktemp)
log() { echo "$@" | tee -a "$LOG"; }

# What the driver says of the GPUs and their state.
gpus() {
  local query=name,driver_version,memory.total,memory.free,clocks.sm,clocks.mem,temperature.gpu
  log "$(timeout 15 nvidia-smi --query-gpu="$query" --format=csv,noheader 2>&1)"
}

# Run a command for so many seconds at most, and note what became of it: step NAME SECONDS COMMAND…
step() {
  local name=$1 limit=$2 begun=$SECONDS left size code
  shift 2
  # What outlives its interrupt is killed ten seconds later.
  left=$((TOTAL - 10 - RESERVED - SECONDS))
  if ((limit > left)); then limit=$left; fi
  if ((limit < 5)); then
    log "== $name: not run, no time is left"
    echo "$name: not run" >>"$OUTCOMES"
    return 1
  fi
  log "== $name: at most $limit s"
  # Through the file, not through a pipe: what a step leaves running would hold a pipe open.
  size=$(stat -c %s "$LOG")
  timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$LOG" 2>&1
  code=$?
  tail -c "+$((size + 1))" "$LOG"
  log "== $name: exit code $code, $((SECONDS - begun)) s, $SECONDS s in all"
  case $code in
    0) echo "$name: ok, $((SECONDS - begun)) s" ;;
    124 | 137) echo "$name: cut off after $((SECONDS - begun)) s" ;;
    *) echo "$name: failed with exit code $code, $((SECONDS - begun)) s" ;;
  esac >>"$OUTCOMES"
  return "$code"
}

# Say what became of every step, and exit with 1 unless all went well.
finish() {
  log "== summary: $SECONDS s on $DEVICE, commit $COMMIT"
  log "$(cat "$OUTCOMES")"
  local code=0
  if grep -qv ': ok, ' "$OUTCOMES" || ! [ -s "$OUTCOMES" ]; then code=1; fi
  rm -f "$OUTCOMES"
  exit "$code"
}

# Kernels are compiled on the host, for minutes in all: by all its processors but one.
workers=$(($(nproc) > 16 ? 15 : $(nproc) > 2 ? $(nproc) - 1 : 1))
tests=("$PYTHON" -m pytest -q -p no:cacheprovider -p xdist -n "$workers" --maxfail=12 --tb=short
  --durations=5 -W default) # warnings of versions that the tests have not met are no failures

: >"$LOG"
if [ "$DEVICE" = cuda ]; then
  implementations=(triton torch)
  chosen=()
  measured=(--quick)
else
  log "== a rehearsal on the $DEVICE: nothing of this is about kernels"
  implementations=(numpy torch)
  chosen=(-k "numpy and enumeration")
  measured=(--quick --shape 1024x16 --shape 64x256)
fi

gpus
# What there is here, and whether one kernel of each kind is right: short rows, rows over several
# threads, long ones, and those that the library sorts.
step facts 150 "$PYTHON" - <<'P'
import os
import sys

import numpy
import torch
import triton

device = os.environ["DEVICE"]
versions = {m.__name__: m.__version__ for m in (numpy, torch, triton)}
print("python", sys.version.split()[0], *(f"{name} {found}" for name, found in versions.items()))
rewards = torch.randn(257, 64, device=device)
print("rewards on", rewards.device, "of CUDA", torch.version.cuda, flush=True)
import pkpo_kernels as pk
from pkpo_kernels.backends import registry

default = registry.default_implementation("torch", rewards)
assert default == ("triton" if device == "cuda" else "numpy"), default
for n in (8, 64, 1024, 16384):
    rewards = torch.randn(257, n, device=device)
    got = pk.transform(rewards, 4).double().cpu().numpy()
    want = pk.transform(rewards.double().cpu().numpy(), 4)
    error = (abs(got - want).max(axis=1) / abs(want).max(axis=1)).max()
    print(f"n={n}: worst error {error:.1e} of its row's largest", flush=True)
    assert error < 5e-6

# Nothing of the session needs JAX but some candidates of the throughput.
try:
    import jax

    print("jax", jax.__version__, "on", jax.devices())
except Exception as error:
    print("no jax:", error)
P
case $? in
  0 | 124 | 137) ;; # what is slow is not wrong
  *) log "== stopped: there is no use in the rest"; finish ;;
esac

RESERVED=220
# What verify would compile one after another, for minutes, on all processors.
if [ "$DEVICE" = cuda ]; then step warm 90 "$PYTHON" -m bench.gpu_warm verify; fi
step verify 90 "$PYTHON" -m pkpo_kernels verify --report "$OUT/verify.json" \
  "${implementations[@]/#/--implementation=}"

step gpu-tests 110 "${tests[@]}" --junitxml="$OUT/gpu.xml" \
  tests/kernels/test_gpu.py tests/kernels/test_group_kernels.py tests/kernels/test_group_launches.py
if [ "$DEVICE" = cuda ]; then step packed 120 "${tests[@]}" -m "" tests/kernels/test_packed*.py; fi
step contract 130 "${tests[@]}" --junitxml="$OUT/contract.xml" "${chosen[@]}" \
  tests/contract tests/kernels/test_triton.py tests/kernels/test_tables.py tests/kernels/test_launches.py
# Ids of groups beside a matrix: its smallest shape, in seconds.
step groups 40 "$PYTHON" -m bench.grouping --device "$DEVICE" --commit "$COMMIT" --out "$OUT" --quick
# What is being compiled when its time is over needs longer.
if [ "$DEVICE" = cuda ]; then
  RESERVED=100
  step kernels 90 "$PYTHON" -m bench.kernels --device "$DEVICE" --quick --commit "$COMMIT" --out "$OUT"
fi
# All that is left.
RESERVED=0
left=$((TOTAL - 10 - SECONDS))
step throughput "$left" "$PYTHON" -m bench.throughput --device "$DEVICE" --commit "$COMMIT" \
  --out "$OUT" --seconds $((left * 2 / 3)) "${measured[@]}"

gpus
finish
