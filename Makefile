# make run        the quickstart: a virtual environment, then two benchmarks of a real model on this machine
# make examples   speech, segmentation and recommendation with real weights and data, after
#                 apt-get install pocketsphinx-testdata mricron-data
# make evidence   hours: full-length tests of the echo backend, and submission trees of them (drafts), in evidence/
# make test       the whole test suite       make lint   ruff and mypy       make clean   what the others made
#
# Python 3.11 or 3.12: the first that runs, or the one you name (make run PYTHON=/path/to/python3.12).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run examples evidence test lint clean

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check -qq install --no-warn-conflicts -c constraints.txt
# Packages for what they carry, without their own dependencies, which are large and not needed: 20 labelled ImageNet
# photos (the quickstart); ratings of films, and networks that find the brain in a scan of a head (the examples).
PHOTOS := foolbox==3.3.4
ALONE := recbole==1.2.1 deepbet==1.0.2
TESTS ?=
# Files of tests that run at once: their time budgets are meant for two on two cores.
JOBS ?= 2
# How many tests of `make evidence` run at once, and more options for manifests/evidence/make_trees.py.
LANES ?= 6
EVIDENCE ?=

VERSION_CHECK := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for name in python3 python3.12 python3.11 python; do \
	"$$name" -c '$(VERSION_CHECK)' 2>/dev/null && echo "$$name" && break; done)
endif

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

run: $(VENV)/.installed
	$(BIN)/loadgrid run manifests/quickstart.yaml

examples: $(VENV)/.exemplary
	$(BIN)/python manifests/examples/train_movielens.py
	$(BIN)/loadgrid run manifests/examples

evidence: $(VENV)/.installed
	$(BIN)/python manifests/evidence/make_trees.py --lanes $(LANES) $(EVIDENCE)

test: $(VENV)/.tested
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --durations=15 --durations-min=1 $(TESTS)

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find orchestrator workers tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so an install that broke off is begun again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "LoadGrid needs Python 3.11 or 3.12, and none was found." \
		"Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c '$(VERSION_CHECK)' 2>/dev/null || { echo "LoadGrid needs Python 3.11 or 3.12;" \
		"$(PYTHON) is $$("$(PYTHON)" --version 2>/dev/null || echo 'no program that runs here')." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments:" \
		"install its venv module (Debian, Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	@echo "Installing LoadGrid into $(VENV) (minutes the first time: torch and Ray are large) ..."
	@"$(PYTHON)" -m venv $(VENV)
	@$(INSTALL) -e ".[quickstart]"
	@$(INSTALL) --no-deps $(PHOTOS)
	@touch $@

$(VENV)/.exemplary: $(VENV)/.installed
	@echo "Installing what the examples need into $(VENV) ..."
	@$(INSTALL) -e ".[quickstart,benchmarks,examples]"
	@$(INSTALL) --no-deps $(ALONE)
	@touch $@

$(VENV)/.tested: $(VENV)/.exemplary
	@echo "Installing the test tools into $(VENV) ..."
	@$(INSTALL) -e ".[quickstart,benchmarks,examples,test]"
	@touch $@
