# The two commands of the README, and what contributors need. Everything is installed into .venv, for GPUs into
# .venv-gpu.
PYTHON ?= python3
# An index with CPU builds of PyTorch, where there is one, saves some GB: make TORCH_INDEX=... reproduce
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep '^torch==' envs/cpu.lock)
READY := $(VENV)/.ready
GPU_READY := .venv-gpu/.ready

.DEFAULT_GOAL := help
.PHONY: help reproduce gpu test test-unit test-processes test-workflow test-slurm lint format schema lock clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): envs/cpu.lock pyproject.toml
	@echo "installing into $(VENV) (about 2 GB)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(INSTALL) --no-deps -r envs/cpu.lock
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: $(READY) ## From data to tables, figures and verdicts: the preset tiny, in results/tiny
	$(BIN)/snakemake all

gpu: $(GPU_READY) ## .venv-gpu with torch for CUDA and the kernels of mamba-ssm (docs/gpu.md)

$(GPU_READY): envs/gpu.lock envs/gpu.post-deploy.sh pyproject.toml
	@echo "installing into .venv-gpu (some GB)"
	$(PYTHON) -m venv .venv-gpu
	PATH="$(CURDIR)/.venv-gpu/bin:$$PATH" bash envs/gpu.post-deploy.sh
	@touch $@

test: test-unit test-processes test-workflow test-slurm ## All tests that need no GPU

test-unit: $(READY) ## The fast part, under two minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not processes" tests/unit

test-processes: $(READY) ## Trainings in processes of their own, interrupted and resumed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m processes tests/unit

test-workflow: $(READY) ## Whole runs of the smallest preset
	$(BIN)/pytest tests/workflow

test-slurm: $(READY) ## On a Slurm that the tests start; skipped where there can be none
	$(BIN)/pytest -n 2 --dist loadfile tests/slurm

lint: $(READY) ## ruff, snakefmt, snakemake --lint, and the drift of generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/python -m matvlm.schema --check
	$(BIN)/python -m matvlm.report.compare --check

format: $(READY) ## Format Python and Snakemake files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

schema: $(READY) ## Write the JSON schema and docs/configuration.md anew
	$(BIN)/python -m matvlm.schema

lock: ## Resolve envs/cpu.in and envs/gpu.in anew into the locks
	PYTHON=$(PYTHON) envs/lock

clean: ## Remove everything that a run made, results aside
	rm -rf runs logs .snakemake
