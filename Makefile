# Two commands do everything on a fresh machine: `make serve` and `make test`.
PORT ?= 8080
MODEL ?= default
ARGS ?=
# Where `make r1-lite` keeps its state: it goes on from there.
R1_LITE ?= $(HOME)/.cache/deepseek-r1/r1-lite
PYTHON ?= python3
# Another wheel index for torch, for machines where the pin would be a CUDA build of several GB (see README).
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
export PYTHON TORCH_INDEX VENV

.PHONY: serve test prove lint types bench peers r1-lite docs clean
.DEFAULT_GOAL := serve

$(VENV)/.ready: pyproject.toml constraints.txt deploy/environment.sh $(wildcard csrc/*)
	@sh deploy/environment.sh serve

$(VENV)/.ready-dev: $(VENV)/.ready
	@sh deploy/environment.sh dev

serve: $(VENV)/.ready
	@exec $(BIN)/deepseek-r1 serve "$(MODEL)" --port "$(PORT)" $(ARGS)

test: lint types
	@sh deploy/environment.sh browser
	@$(BIN)/python -m pytest -q

prove: $(VENV)/.ready-dev
	@$(BIN)/python tests/prove.py $(ARGS)

lint: $(VENV)/.ready-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check -q .
	@$(BIN)/codespell
	@$(BIN)/lint-imports --no-logo --no-cache

types: $(VENV)/.ready-dev
	@$(BIN)/mypy

bench: $(VENV)/.ready-dev
	@$(BIN)/python benchmarks/against_transformers.py $(ARGS)

# The engines that `deepseek-benchmark --compare` measures against, each in an environment of its own.
peers:
	@sh deploy/peers.sh $(ARGS)

# A small reasoning model with its control, evaluation and report; ARGS="--only publish" then puts it into the package.
r1-lite: $(VENV)/.ready-dev
	@exec $(BIN)/python recipes/r1_lite.py "$(R1_LITE)" $(ARGS)

docs: $(VENV)/.ready-dev
	@$(BIN)/python docs/generate_cli.py
	@$(BIN)/python tests/parity/family_table.py --write

clean:
	@rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
