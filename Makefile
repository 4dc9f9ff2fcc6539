# The commands for people. A fresh machine needs Python 3.11, git and make.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
PORT ?= 4200
BIN := .venv/bin
# The venv's own stamp: the hash of the lock file that it was made from.
STAMP := .venv/lock.sha256

.PHONY: help install run test test-all lint types deps docs bench ui serve clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# One test process per core, eight at most: each may need three gigabytes. In their own order: the
# longest files, with few tests, would come last otherwise, and the other processes wait.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# The lock file lists all indirect dependencies too, so pip resolves nothing (--no-deps).
install: ## make .venv from the lock file, unless it is up to date
	@sha256sum requirements.lock | cmp -s - $(STAMP) || ( \
	  echo "installing requirements.lock into .venv (once; about 7 GB)" && \
	  rm -rf .venv && $(PYTHON) -m venv .venv && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	    -r requirements.lock && \
	  $(BIN)/python -m pip --disable-pip-version-check check && \
	  sha256sum requirements.lock > $(STAMP) )

run: install ## run the whole pipeline; OVERLAY=flows/overlays/NAME.yaml for other params
	@$(BIN)/python -m flows.train $(if $(OVERLAY),--overlay "$(OVERLAY)")

test: install lint types ## check lint, types and layers, and run the quick tests
	$(PYTEST) -m "not slow and not gpu and not bench and not browser"

test-all: install lint types ## the same, with the slow tests
	$(PYTEST) -m "not gpu and not bench and not browser"

lint: install ## run ruff and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install ## run mypy --strict
	$(BIN)/mypy

deps: install ## write each stage's code dependencies into dvc.yaml
	@$(BIN)/python -m flows.deps

docs: install ## render the figures in all documents from data/reports
	@$(BIN)/python -m flows.docs

bench: install ## measure time ratios and memory (over an hour); ONLY=NAME for one: decode, revalidate, ...
	@$(BIN)/python -m tests.benchmarks $(ONLY)

ui: install ## start the Prefect UI with all runs, on 127.0.0.1:PORT
	@$(BIN)/python -m flows.server --port $(PORT)

serve: install ## start the UI, a worker and the nightly schedule on this machine
	@$(BIN)/python -m flows.server --port $(PORT) --worker

clean: ## delete checkpoints, and overlays' workspaces with their results; the cache stays
	rm -rf data/scratch .worktrees
	git worktree prune
