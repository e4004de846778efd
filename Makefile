# Everything below sets itself up: `make demo` and `make test` are all that a fresh machine needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help setup demo serve test test-slow test-wheel check docs constraints

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(INSTALLED)  ## An environment in VENV with the exact versions of constraints.txt

# torch first: what is built or resolved after it must see the one version that we test with
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

demo: $(INSTALLED)  ## The whole life of a tiny model, into runs/demo
	$(BIN)/terminus demo

serve: $(INSTALLED)  ## A page to draw on, with nano
	$(BIN)/terminus serve nano

test: $(INSTALLED)  ## The tests, offline, in two processes
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(INSTALLED)  ## The tests that take minutes
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

test-wheel: $(INSTALLED)  ## The wheel, installed and run outside the repository; minutes
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow tests/test_wheel.py

check: $(INSTALLED)  ## Lint, format, types and layers: the quick part of the house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

docs: $(INSTALLED)  ## The documentation, into build/site; a broken link is an error
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

constraints:  ## constraints.txt from pyproject.toml; versions stay where they can, UPGRADE=1 takes the newest
	test -x build/uv/bin/uv || $(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet uv
	build/uv/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --quiet \
		--custom-compile-command "make constraints" $(if $(UPGRADE),--upgrade) --output-file constraints.txt
