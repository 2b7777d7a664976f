# The two commands of the README, and what contributors need. Everything is installed into .venv.
PYTHON ?= python3
# An index with CPU builds of PyTorch, where there is one, saves some GB: make TORCH_INDEX=... reproduce
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep '^torch==' envs/cpu.lock)
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help reproduce test test-unit test-workflow test-slurm lint format schema lock clean

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

test: test-unit test-workflow test-slurm ## All tests that need no GPU

test-unit: $(READY) ## The fast part, under two minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/unit

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

format: $(READY) ## Format Python and Snakemake files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

schema: $(READY) ## Write the JSON schema and docs/configuration.md anew
	$(BIN)/python -m matvlm.schema

lock: ## Resolve envs/cpu.in anew into envs/cpu.lock
	PYTHON=$(PYTHON) envs/lock

clean: ## Remove everything that a run made, results aside
	rm -rf runs logs .snakemake
