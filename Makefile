SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/lock.txt
STAMP := $(VENV)/.installed
SOURCES := crds engine gateway operator sheaf
UNIT := crds/tests engine/tests gateway/tests operator/tests sheaf/tests

.PHONY: help
help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(STAMP): $(LOCK) pyproject.toml
	@echo "installing into $(VENV) (the first time takes a few minutes: vLLM and torch are large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' $(LOCK))"
	@$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python -r $(LOCK)
	@$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --editable .
	@touch $@

.PHONY: install
install: $(STAMP) ## Install everything into .venv

.PHONY: lock
lock: ## Re-pin every dependency in requirements/lock.txt
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 \
	  --override requirements/overrides.txt --extra dev --extra cpu \
	  --output-file $(LOCK) pyproject.toml requirements/tools.in

.PHONY: lint
lint: $(STAMP) ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addsuffix /sheaf_crds,crds) engine/sheaf_engine gateway/sheaf_gateway operator/sheaf_operator sheaf/sheaf
	$(BIN)/lint-imports
