# All that a person types. A fresh machine needs Python 3.11, git and make.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
PORT ?= 4200
BIN := .venv/bin
# The venv's own stamp: the hash of the lock file that it was made from.
STAMP := .venv/lock.sha256

.PHONY: help install run test test-all lint types deps docs bench ui serve clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The lock file names all that is needed in turn, so pip resolves nothing (--no-deps).
install: ## make .venv from the lock file, unless it is the same already
	@sha256sum requirements.lock | cmp -s - $(STAMP) || ( \
	  echo "installing requirements.lock into .venv (once; about 7 GB)" && \
	  rm -rf .venv && $(PYTHON) -m venv .venv && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	    -r requirements.lock && \
	  $(BIN)/python -m pip --disable-pip-version-check check && \
	  sha256sum requirements.lock > $(STAMP) )

run: install ## the whole pipeline on solar cells; OVERLAY=flows/overlays/NAME.yaml for other params
	@$(BIN)/python -m flows.train $(if $(OVERLAY),--overlay "$(OVERLAY)")

test: install lint types ## lint, types, layers and the quick tests
	$(BIN)/python -m pytest -m "not slow and not gpu and not bench and not browser"

test-all: install lint types ## as test, with the slow ones
	$(BIN)/python -m pytest -m "not gpu and not bench and not browser"

lint: install ## ruff and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install ## mypy --strict
	$(BIN)/mypy

deps: install ## write the code that each stage consists of into dvc.yaml
	@$(BIN)/python -m flows.deps

docs: install ## render the figures of all documents from data/reports
	@$(BIN)/python -m flows.docs

bench: install ## ratios of time, and memory (an hour); ONLY=NAME for one: decode, revalidate, ...
	@$(BIN)/python -m tests.benchmarks $(ONLY)

ui: install ## the Prefect UI with all runs, on 127.0.0.1:PORT
	@$(BIN)/python -m flows.server --port $(PORT)

serve: install ## the UI, a worker and the nightly schedule, on this machine
	@$(BIN)/python -m flows.server --port $(PORT) --worker

clean: ## delete checkpoints and overlays' workspaces; keeps the cache and all results
	rm -rf data/scratch .worktrees
	git worktree prune
