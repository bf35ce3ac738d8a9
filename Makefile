# Most people need `make run`, `make training` and `make test`. Each first installs its packages into .venv, once.

SHELL := /bin/sh
# TensorFlow has releases for Python 3.11 to 3.13; serving works with 3.14 too. The first one that fits is taken.
PYTHON ?= $(shell \
	fits() { for python in python3 python3.13 python3.12 python3.11 python3.14; do \
		$$python -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$1))" 2>/dev/null && echo $$python && return; done; false; }; \
	fits 13 || fits 14)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes
FAILED = { echo "The packages were not installed. If pip found no version of one, it does not reach the package index: check the network (HTTPS_PROXY, PIP_INDEX_URL), then run make again."; exit 1; }
COMPILE := uv pip compile --universal --python-version 3.11
# Whole files are given to the processes, because the tests of a file share expensive fixtures. Three processes keep two cores busy: tests of
# servers mostly wait.
AT_ONCE := --dist=loadfile --no-loadscope-reorder --numprocesses
ALONE := $$(grep --recursive --files-with-matches --include='*.py' 'pytest\.mark\.alone' tests) -m

.DEFAULT_GOAL := help
.PHONY: help run training test test-day test-fast lint format bench bench-photos lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/serving-ready ## serve the Space at http://localhost:7860
	@echo "==> Starting the server; press Ctrl-C to stop it"
	@$(BIN)/python app.py

training: $(VENV)/training-ready ## install what training and export need: TensorFlow
	@echo "==> Ready. Next: $(BIN)/python -m cifar train --data cifar10 --out runs/first"

test: $(VENV)/development-ready ## run every test
	@echo "==> Running every test, three at once (make test-fast leaves out the slow ones)"
	@$(BIN)/python -m pytest $(AT_ONCE)=3 -m "not alone" && together=0 || together=1; \
		echo "==> Running the tests that need the whole machine, one after the other"; \
		$(BIN)/python -m pytest $(ALONE) alone && exit $$together

test-day: $(VENV)/development-ready ## run every test but the nightly ones
	@echo "==> Running every test but fuzzing, Prometheus and several hosts"
	@$(BIN)/python -m pytest $(AT_ONCE)=3 -m "not alone and not nightly" && together=0 || together=1; \
		echo "==> Running the tests that need the whole machine, one after the other"; \
		$(BIN)/python -m pytest $(ALONE) "alone and not nightly" && exit $$together

test-fast: $(VENV)/development-ready ## run the tests that take seconds
	@echo "==> Running the fast tests, two at once"
	@$(BIN)/python -m pytest $(AT_ONCE)=2 -m "not slow"

lint: $(VENV)/development-ready ## check style and types
	@rm -f cifar/serving/gradio/components.pyi  # written by Gradio; mypy would read it instead of the source
	@echo "==> Checking style and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/development-ready ## fix style automatically where possible
	@echo "==> Fixing style"
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/development-ready ## measure serving beside the tutorial's stack (needs wrk; about 12 minutes)
	@echo "==> Measuring the server and the tutorial's stack"
	$(BIN)/python -m benchmarks.serving

bench-photos: $(VENV)/development-ready ## measure preprocessing; PHOTOS=DIR holds photographs DIR/<class>/*.jpg
	@test -n "$(PHOTOS)" || { echo "Name a folder of photographs by class: make bench-photos PHOTOS=DIR"; exit 1; }
	@echo "==> Measuring preprocessing"
	PYTHONPATH=. $(BIN)/python benchmarks/preprocessing.py --photos $(PHOTOS)

lock: $(VENV)/development-ready ## pin requirements*.in into requirements*.txt
	@echo "==> Pinning the packages"
	@# Long options without `--quiet`: Renovate reads the command from the head of each file, and accepts few.
	@PATH=$(BIN):$$PATH; set -e; \
	$(COMPILE) --output-file requirements.txt requirements.in >/dev/null; \
	$(COMPILE) --generate-hashes --constraint requirements.txt --output-file requirements-train.txt requirements.in >/dev/null; \
	$(COMPILE) --generate-hashes --constraint requirements.txt --output-file requirements-serve.txt requirements-serve.in >/dev/null; \
	$(COMPILE) --generate-hashes --output-file requirements-dev.txt requirements-dev.in >/dev/null

clean: ## remove .venv and caches, keep data, runs and models
	@echo "==> Removing .venv and caches"
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache

$(VENV)/serving-ready: requirements-serve.txt | $(VENV)/bin/pip
	@echo "==> Installing the packages for serving (0.7 GB on disk, a minute or two, once)"
	@$(INSTALL) -r requirements-serve.txt || $(FAILED)
	@touch $@

$(VENV)/training-ready: requirements-train.txt requirements-keras2.txt | $(VENV)/bin/pip
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] > (3, 13))' || \
		{ echo "Training needs Python 3.11, 3.12 or 3.13, because TensorFlow has no release for $$($(BIN)/python --version)."; \
		echo "Install one of them, then run: make clean && make training PYTHON=python3.13"; exit 1; }
	@echo "==> Installing the packages for training (1.5 GB on disk, a few minutes, once)"
	@$(INSTALL) -r requirements-train.txt || $(FAILED)
	@$(INSTALL) --no-deps -r requirements-keras2.txt || $(FAILED)
	@touch $(VENV)/serving-ready $@

$(VENV)/development-ready: requirements-dev.txt $(VENV)/training-ready
	@echo "==> Installing the packages for tests and checks"
	@$(INSTALL) -r requirements-dev.txt || $(FAILED)
	@touch $@

$(VENV)/bin/pip:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
		{ echo "Python 3.11, 3.12, 3.13 or 3.14 is needed (3.14 serves, but cannot train). Install one, or name it: make run PYTHON=/path/to/python3.12"; exit 1; }
	@echo "==> Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(MAKE) --no-print-directory .venv-package
	@$(PYTHON) -m venv $(VENV)

# Debian and Ubuntu ship a part of Python's venv in a separate package.
.PHONY: .venv-package
.venv-package:
	@package=python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo=sudo; \
	else echo "Python's venv is missing. Install it, then run make again: sudo apt-get install $$package"; exit 1; fi; \
	echo "==> Installing $$package"; \
	$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$package >/dev/null
