# Everything here works in a fresh checkout with only Python 3.11 or newer (with venv), git and make.
#
#   make demo    a real service on this machine: two replicas of a small language model behind one endpoint
#   make test    checks, unit tests, and tests that start the real command (what CI runs)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CODE := src tests scripts $(wildcard benchmarks)

.PHONY: help demo test check format lock dist clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile
	@echo 'make check   lint, format, types and layers only'
	@echo 'make format  let ruff rewrite the code'
	@echo 'make lock    resolve requirements/*.txt anew (needs the package index)'
	@echo 'make dist    build the wheel and the source archive into dist/'
	@echo 'make clean   remove everything that was built or installed here'

# Two stages, so that the demo does not wait for test tools: what the product needs, then what its developers need.
# Each stage is redone when its lock or pyproject.toml is newer than the last installation.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'SkyServe needs Python 3.11 or newer, but "$(PYTHON)" is: '"$$($(PYTHON) --version 2>&1)"; \
	  echo 'hint: name another one, as in: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo 'hint: on Debian and Ubuntu the venv module is a package of its own: apt-get install python3-venv'; exit 1; }

$(VENV)/.run-ready: requirements/run.txt pyproject.toml | $(BIN)/python
	@echo 'Installing SkyServe into $(VENV) ...'
	@$(PIP) install --require-hashes -r requirements/run.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev-ready: requirements/dev.txt $(VENV)/.run-ready
	@echo 'Installing the test tools into $(VENV) ...'
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@

demo: $(VENV)/.run-ready
	@$(BIN)/python scripts/demo.py

test: check
	$(BIN)/python -m pytest

check: $(VENV)/.dev-ready
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# One lock for Linux and macOS and every supported Python. The run lock is a subset of the dev lock: same versions.
LOCK := $(VENV)/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

lock: $(BIN)/python
	@$(BIN)/python -m venv $(VENV)/lock
	@$(VENV)/lock/bin/python -m pip --disable-pip-version-check --quiet install uv
	$(LOCK) --upgrade --extra dev --output-file requirements/dev.txt pyproject.toml requirements/build.in
	$(LOCK) --upgrade --constraint requirements/dev.txt --output-file requirements/run.txt pyproject.toml requirements/build.in

dist: $(VENV)/.dev-ready
	@$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	@$(BIN)/python -m hatchling build --target sdist

clean:
	rm -rf $(VENV) .demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
