PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LEAN := $(VENV)/.installed-lean

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all test-nightly lint types format docs reference figures data clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## create the virtual environment with everything, and the schema of configs/

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[quickstart,dev]"
	$(BIN)/python -m fc_lightning.cli.schema configs/schema.json
	@touch $@ $(LEAN)

$(LEAN): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[quickstart]"
	@touch $@

quickstart: $(LEAN) ## fine-tune the small model on the shipped data
	$(BIN)/python main.py fit --config configs/quickstart.yaml

test: install ## run the quick tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: install ## run the slow tests too, as continuous integration does
	$(BIN)/python -m pytest -m "not nightly" $(PYTEST_ARGS)

test-nightly: install ## run the long tables: every adapter and setting, random configurations, the quickstart and its agent
	$(BIN)/python -m pytest -m nightly $(PYTEST_ARGS)

lint: install ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install ## check types
	$(BIN)/mypy

format: install ## fix style and formatting in place
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: install ## build the documentation into build/docs; a broken link fails
	$(BIN)/python -m mkdocs build --strict --quiet

reference: install ## write docs/reference.md and docs/compatibility.md from the code
	$(BIN)/python scripts/make_reference.py
	$(BIN)/python scripts/make_compatibility.py

figures: install ## draw the figures of the documentation
	$(BIN)/python scripts/make_figures.py

data: install ## write the quickstart's data
	$(BIN)/python scripts/make_quickstart_data.py

clean: ## remove caches and build outputs (not the virtual environment, not runs/)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
