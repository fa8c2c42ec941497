# Everything runs in .venv, which the first target that needs it makes; the RL trainers, which ask for
# other versions of much, in .venv-torch-trainers and .venv-jax-trainers.
PYTHON ?= python3
BIN := .venv/bin
# The Python of the gpu- targets: one whose torch sees the GPU, with pytest, hypothesis and jax.
GPU_PYTHON ?= python3
GPU_DEVICE ?= cuda
# Nothing need be installed there, and nothing may keep JAX from the GPU or interpret kernels.
GPU_ENV = env -u JAX_PLATFORMS -u TRITON_INTERPRET -u PALLAS_INTERPRET \
	PYTHONPATH="$(CURDIR):$(CURDIR)/kernels$${PYTHONPATH:+:$$PYTHONPATH}"
# The processors that each of the two parts of the tests that run at a time is spread over.
WORKERS ?= $(shell echo $$((($$(getconf _NPROCESSORS_ONLN) + 1) / 2)))

# Without a TPU, libtpu looks for one at length and complains; with one: make demo JAX_PLATFORMS=tpu
export JAX_PLATFORMS ?= cpu
# A test module is compiled once, not by each process that runs tests.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-plain test-compiled test-interpreted test-all test-release test-integrations gpu-test gpu-bench gpu-session gpu-static tpu-static lint bench paper-quick paper readme-tables dist clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The version that is installed stands in the package.
.venv/installed: pyproject.toml constraints.txt pkpo_kernels/__init__.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[torch,jax,triton,tpu,cli,parquet,test,bench]'
	touch $@

demo: .venv/installed  ## set up, then verify, transform and evaluate a set of rollouts, with a plot
	mkdir -p demo
	$(BIN)/python -m bench.rollouts demo
	$(BIN)/pkpo info
	$(BIN)/pkpo verify
	$(BIN)/pkpo transform demo/trained.jsonl -k 8 -o demo/transformed.jsonl
	$(BIN)/pkpo passk demo/trained.jsonl -k 1,2,4,8,16 --against demo/base.jsonl --plot demo/passk.png
	@echo "The plot is at $(CURDIR)/demo/passk.png, the transformed rewards at demo/transformed.jsonl."

lint: .venv/installed  ## formatting, lints and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The kernels need processes of their own: interpreted, and executed as they are compiled for a GPU,
# on the machine of bench/ptx. Two parts run at a time, each on half of the processors: collecting
# tests takes a process a quarter of a minute, and more processes than processors slow each other.
PARTS := test-plain test-compiled test-interpreted
PARALLEL = @echo "Two parts run at a time; each is shown when it is done."; \
	$(MAKE) --no-print-directory --keep-going --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
OF_TRITON := tests/contract $(addprefix tests/kernels/test_,triton.py tables.py launches.py group_kernels.py group_launches.py)
INTERPRETED_TESTS := $(OF_TRITON) tests/kernels/test_pallas.py tests/kernels/test_pallas_packed.py \
	tests/backends/test_jax.py tests/backends/test_jax_triton.py
OF_PACKED := $(wildcard tests/kernels/test_packed*.py)
PTX_TESTS := $(OF_TRITON) $(OF_PACKED) tests/kernels/test_ptx_kernels.py
# What the environments of RL trainers are made around.
TRAINERS := torch jax
# The oldest Triton that pyproject.toml allows, and the newest that is tested.
TRITONS := 3.5.0 3.9.0

# Another Triton stands in front of .venv's own on the path.
define ptx_with_triton
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target build/triton-$(1) triton==$(1)
	PYTHONPATH=build/triton-$(1) TEST_DEVICE=ptx $(BIN)/python -m pytest -n auto $(OF_TRITON) \
		$(OF_PACKED)

endef

test: .venv/installed  ## set up, then lints, types, and the tests of everything, the kernels interpreted
	$(PARALLEL) $(PARTS) lint

# Here XLA's programs for CPUs are those that everybody gets: see tests/subjects.py.
test-all test-release: export XLA_AS_SHIPPED := 1
test-all: .venv/installed  ## what test leaves out: more shapes, dtypes and variants of the same
	$(PARALLEL) $(PARTS) CHOSEN="-m 'slow and not release'"

test-plain: .venv/installed
	$(PYTEST) $(CHOSEN)

test-interpreted: .venv/installed
	TRITON_INTERPRET=1 PALLAS_INTERPRET=1 $(PYTEST) $(CHOSEN) $(INTERPRETED_TESTS)

test-compiled: .venv/installed
	TEST_DEVICE=ptx $(PYTEST) $(CHOSEN) $(PTX_TESTS)

test-release: .venv/installed  ## what both leave out: all GPUs, every variant, wheels, fuzzing, trainers
	$(PARALLEL) $(PARTS) CHOSEN="-m release"
	$(foreach triton,$(TRITONS),$(call ptx_with_triton,$(triton)))
	$(BIN)/pkpo verify --fuzz 5
	$(MAKE) test-integrations

# A trainer is installed as it is, with what it imports listed: most would choose another torch or jax,
# and SkyRL another Python, which it does without.
.venv-%-trainers/installed: tests/integrations/requirements-%.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*-trainers
	.venv-$*-trainers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$* numpy pytest
	.venv-$*-trainers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--ignore-requires-python -r $< -e .
	touch $@

# The conftest of all other tests asks for what these environments lack, and the trainers warn.
define integrations
	.venv-$(1)-trainers/bin/python -m pytest --confcutdir=tests/integrations -W default --no-header \
		--disable-warnings tests/integrations

endef

test-integrations: $(TRAINERS:%=.venv-%-trainers/installed)  ## in the RL trainers themselves, each of the integrations
	$(foreach library,$(TRAINERS),$(call integrations,$(library)))

gpu-test:  ## on a machine with an NVIDIA GPU: the contract and all else that the kernels promise
	$(GPU_ENV) TEST_DEVICE=$(GPU_DEVICE) $(GPU_PYTHON) -m pytest -m 'not release' \
		tests/kernels/test_gpu.py $(OF_TRITON) $(OF_PACKED)

gpu-bench:  ## there too: throughput against a copy, torch eager, torch.compile and torch.sort
	$(GPU_ENV) $(GPU_PYTHON) -m bench.throughput --device $(GPU_DEVICE) $(GPU_BENCH)

gpu-session:  ## there too: the most telling of both within ten minutes, files in build/gpu-session
	OUT="$${OUT:-build/gpu-session}" GPU_PYTHON="$(GPU_PYTHON)" GPU_SESSION_DEVICE=$(GPU_DEVICE) \
		bench/gpu_session.sh

gpu-static: .venv/installed  ## without a GPU: execute the compiled kernels' PTX, count what they do
	$(BIN)/python -m bench.gpu_static

tpu-static: .venv/installed  ## without a TPU: count the bundles of the compiled kernels
	set -e; for chip in $$($(BIN)/python -c "from bench.tpu_compiler import CHIPS; print(*CHIPS)"); do \
		$(BIN)/python -m bench.tpu_static --chip $$chip; done  # libtpu knows one chip a process

# Threads of one library that wait for work would take the processors from the next.
bench: export OMP_WAIT_POLICY := PASSIVE
bench: .venv/installed  ## throughput, accuracy, groups and host time on this machine, tables and plots in bench/results
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.accuracy
	$(BIN)/python -m bench.grouping
	$(BIN)/python -m bench.host

# Where the paper's experiments write; those that bench/paper/README.md shows are in bench/paper/results.
PAPER_OUT ?= build/paper

paper-quick: .venv/installed  ## the paper's toy and softmax policies: figures, and what must hold, in a minute
	$(BIN)/python -m bench.paper toy --out $(PAPER_OUT)
	$(BIN)/python -m bench.paper policies --out $(PAPER_OUT)

paper: paper-quick  ## all of the paper's experiments, in a quarter of an hour
	$(BIN)/python -m bench.paper arc --out $(PAPER_OUT)
	$(BIN)/python -m bench.paper strings --out $(PAPER_OUT)

readme-tables: .venv/installed  ## the tables of bench/README.md and bench/paper/README.md from their results
	$(BIN)/python -m bench.readme_tables

dist: .venv/installed  ## a wheel and an sdist, checked, and `pkpo verify` of the wheel installed alone
	@git diff --quiet HEAD || { echo "commit first: what is released is what git has"; exit 1; }
	rm -rf dist build/installed
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python tests/released.py dist
	$(PYTHON) -m venv build/installed
	build/installed/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd build && installed/bin/pkpo verify

clean:  ## remove everything that was made
	rm -rf .venv .venv-*-trainers demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
