# `make` alone says what there is. Everything is installed into .venv, and only when pyproject.toml has changed.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

# Tests mostly wait for brokers and databases. Each process starts its own, so more of them than this do not pay.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test test-unit test-slow simulate lint schemas bench clean

help:  ## Show this text
	@echo "forkjoin: a distributed fork-join orchestrator for agent workflows"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "All that is needed is Python 3.11 or newer; another one than the first that is found: make PYTHON=python3.12 run"
	@echo "Tests take RabbitMQ and Postgres from FORKJOIN_TEST_AMQP_URL and FORKJOIN_TEST_DATABASE_URL, else from Docker,"
	@echo "else they start private ones from this machine's rabbitmq-server and from a pip wheel, and stop them again."

run: $(VENV)/.embedded  ## Run the example workflow here, with nothing else installed, and print its output
	@$(BIN)/forkjoin run examples/parallel_workflow_example.json --input @examples/parallel_workflow_input.json

test: lint  ## Check style, types and layers, then run all tests but the slow ones
	@$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-unit: $(VENV)/.test  ## Run the tests that need neither RabbitMQ nor Postgres, in seconds
	@$(BIN)/python -m pytest tests/unit

test-slow: $(VENV)/.test  ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m slow

simulate: $(VENV)/.test  ## Run the system under simulated faults: make simulate SEEDS=0:10000, or SEEDS="42 --trace"
	@$(BIN)/python -m tests.simulation $(SEEDS)

REPEAT ?= 1
GROUP ?=

test-faults: $(VENV)/.test  ## Run all fault tests, slow ones too; GROUP=broker those of one group, REPEAT=20 so many times
	@$(BIN)/python -m pytest tests/faults$(if $(GROUP),/test_$(GROUP)*.py) --repeat $(REPEAT)

lint: $(VENV)/.test  ## Check style (ruff), types (mypy) and layers (import-linter)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

schemas: $(VENV)/.embedded  ## Write the published JSON Schemas and AsyncAPI document anew
	@$(BIN)/python -m schemas.export schemas/published

OPTIONS ?=

bench: $(VENV)/.bench  ## Measure speed, ours and that of others: make bench OPTIONS=--quick, or OPTIONS=--help
	@$(BIN)/python -m tests.benchmarks $(OPTIONS)

clean:  ## Delete .venv, caches and build products; .forkjoin, the data of local runs, stays
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.embedded: pyproject.toml | $(BIN)/python
	@echo "Installing forkjoin into $(VENV) ..."
	@$(PIP_INSTALL) '.[embedded]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	@echo "Installing forkjoin and its test tools into $(VENV) ..."
	@$(PIP_INSTALL) '.[test]'
	@touch $(VENV)/.embedded $@

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	@echo "Installing forkjoin, its test tools and what it is measured beside into $(VENV) ..."
	@$(PIP_INSTALL) '.[bench]'
	@touch $(VENV)/.embedded $(VENV)/.test $@

# A name on the PATH proves little (version managers put launchers there that refuse to start), so each is tried.
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)

$(BIN)/python:
	@for python in $(CANDIDATES); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$("$$python" --version) ..."; \
	        "$$python" -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); \
	        exit 1; \
	    fi; \
	done; \
	echo "forkjoin needs Python 3.11 or newer; missing, broken or older: $(CANDIDATES)." >&2; \
	echo "Install one, or name yours: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1
