# Every target sets up what it needs in .venv; PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
BIN := .venv/bin
DISTRIBUTIONS := $(sort $(dir $(wildcard plugins/*/pyproject.toml)))
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml) constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench mutants results results-continual clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

demo: .venv/installed  ## make a model forget a style and look at the evidence
	$(BIN)/vu unlearn --method fade-sparse --seed 42

test: .venv/installed-dev  ## run the whole test suite
	$(BIN)/python -m pytest

lint: .venv/installed-dev  ## style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed-dev  ## run the documentation's own tests
	$(BIN)/python -m pytest tests/docs

bench: .venv/installed-dev  ## compare with the straightforward formulations; prints ratios
	$(BIN)/python benchmarks/run.py

mutants: .venv/installed-dev  ## apply wrong formulas one at a time; each must turn a test red
	$(BIN)/python tests/mutants/run.py

results: .venv/installed  ## repeat the measured runs and render docs/reference/results.md
	$(BIN)/python benchmarks/readme.py
	$(BIN)/python benchmarks/results.py

results-continual: .venv/installed  ## forgetting on classifiers, task after task and against retraining; resumable
	$(BIN)/python benchmarks/results.py --only continual-canvas --only few-shot-canvas --only digits

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vu needs Python 3.11 or newer; name one with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python $(PROJECTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . $(addprefix -e ./,$(DISTRIBUTIONS))
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:  ## remove the environment and everything that was built
	rm -rf .venv build dist *.egg-info plugins/*/build plugins/*/src/*.egg-info
