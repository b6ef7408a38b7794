PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

LOWEST := .venv-lowest

.PHONY: help setup run test lowest soak coverage mutation check format bench gpu-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## make .venv and install the project with exact versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "HoPE Lab needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

run: setup  ## the built-in study: train, search, evaluate, report
	$(BIN)/hope run study=quickstart

check: setup  ## lint, format, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_imports.py

test: check  ## the checks and the whole default test suite, on two processes
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lowest:  ## the smoke study and the quick tests with the oldest versions that pyproject.toml allows
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[dev]'
	rm -rf $(LOWEST)/store
	$(LOWEST)/bin/hope run study=smoke store=$(LOWEST)/store
	$(LOWEST)/bin/pytest -q -n 2 --dist loadfile -m 'not slow and not soak' tests/hope_core tests/pipelines tests/reports

soak: setup  ## the tests that take minutes, and a study killed at random moments
	$(BIN)/pytest -q -m soak
	$(BIN)/python -m tests.experiments.kills --kills 10 study=smoke

coverage: setup  ## branches that the default test suite takes; prints the files below 90 %
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -q -n 2 --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --sort=cover | awk 'NR < 3 || /^TOTAL/ || $$NF + 0 < 90'

mutation: setup  ## small faults in positions, frequencies, fingerprint and statistics: which does no test notice?
	$(BIN)/python -m tests.mutation

bench: setup  ## speed and memory as ratios in one run
	$(BIN)/python -m tests.bench

gpu-check: setup  ## training steps of a 2B-sized model on a CUDA device: speed, memory, cost of variants
	$(BIN)/python -m tests.bench.gpu_check

format: setup  ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and the outputs
	rm -rf $(VENV) $(LOWEST) outputs
