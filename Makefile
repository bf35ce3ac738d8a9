# Two commands to know: `make run` and `make test`. Both set up what they need in .venv, once.

SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-emit-index-url
# File by file, since what a file's tests share is dear; in their order, for the dear files to be in the middle.
TWO_AT_ONCE := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help run test test-fast lint format bench bench-peers bench-photos lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/serving-ready ## serve the Space at http://localhost:7860
	@echo "==> Starting the server; Ctrl-C stops it"
	@$(BIN)/python app.py

test: $(VENV)/development-ready ## run every test
	@echo "==> Running every test (make test-fast leaves out the slow ones)"
	@$(BIN)/python -m pytest $(TWO_AT_ONCE) -m "not alone" && together=0 || together=1; \
		echo "==> Now those that run alone"; $(BIN)/python -m pytest -m alone && exit $$together

test-fast: $(VENV)/development-ready ## run the tests that take seconds
	@$(BIN)/python -m pytest $(TWO_AT_ONCE) -m "not slow"

lint: $(VENV)/development-ready ## check style and types
	@rm -f cifar/serving/gradio/components.pyi  # Gradio's; mypy would read it in place of the source
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/development-ready ## mend style where a machine can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/development-ready ## measure serving beside the tutorial's stack (needs wrk; about 10 minutes)
	PYTHONPATH=. $(BIN)/python benchmarks/serving.py

bench-peers: $(VENV)/development-ready ## the same beside plain Gradio, LitServe and BentoML (into .venv-peers)
	@test -x .venv-peers/bin/bentoml || { $(PYTHON) -m venv .venv-peers && \
		.venv-peers/bin/pip install --quiet -r benchmarks/peers/requirements.txt; }
	PYTHONPATH=. $(BIN)/python benchmarks/serving.py --peers .venv-peers/bin/python

bench-photos: $(VENV)/development-ready ## measure preprocessing; PHOTOS=DIR holds photographs DIR/<class>/*.jpg
	@test -n "$(PHOTOS)" || { echo "Name a folder of photographs by class: make bench-photos PHOTOS=DIR"; exit 1; }
	PYTHONPATH=. $(BIN)/python benchmarks/preprocessing.py --photos $(PHOTOS)

lock: $(VENV)/development-ready ## pin requirements*.in into requirements*.txt
	$(COMPILE) requirements.in -o requirements.txt
	$(COMPILE) requirements-serve.in -c requirements.txt -o requirements-serve.txt
	$(COMPILE) requirements-dev.in -o requirements-dev.txt

clean: ## remove .venv and caches, keep data, runs and models
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache

$(VENV)/serving-ready: requirements.txt | $(VENV)/bin/pip
	@echo "==> Installing what serving and training need (1.5 GB on disk, a few minutes, once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/development-ready: requirements-dev.txt $(VENV)/serving-ready
	@echo "==> Installing what tests and checks need"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/bin/pip:
	@echo "==> Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed. Name another one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(MAKE) --no-print-directory .venv-package
	@$(PYTHON) -m venv $(VENV)

# Debian and Ubuntu keep a part of Python's venv in a package of its own.
.PHONY: .venv-package
.venv-package:
	@package=python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo=sudo; \
	else echo "Python's venv is missing. Install it, then run make again: sudo apt-get install $$package"; exit 1; fi; \
	echo "==> Installing $$package"; \
	$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$package >/dev/null
