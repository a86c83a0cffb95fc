# `make` lists the targets. Needs Python 3.11 with pip and venv, and make; everything else is installed into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HOT := $(wildcard exodus/*/*.pxd exodus/*/*/*.pxd)  # the types of what is compiled; a changed source runs uncompiled until the next `make install`
KEYS ?= 200000
WRITES ?= 2000
PATH_TAKEN ?= commit
SEED ?= 1
TOPOLOGY ?= standalone
APPROVE ?= auto
NAME ?=

.PHONY: help install demo test unit fault e2e lint fix types imports duplicates audit bench docs up down clean

help:  ## list the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

APPLICATIONS := tests/support/jobs/requirements.txt

# Every file that pip may install is named with its hash; nothing is built but Exodus itself, by the pinned setuptools and Cython.
PINNED := --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all:

$(STAMP): pyproject.toml constraints.txt setup.py $(HOT) $(APPLICATIONS)
	$$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/pip install $(PINNED) -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/pip check --disable-pip-version-check
	$(BIN)/python -m venv $(VENV)/applications
	$(VENV)/applications/bin/pip install $(PINNED) -r $(APPLICATIONS)
	touch $(STAMP)

install: $(STAMP)  ## make .venv with the pinned versions

demo: $(STAMP)  ## a whole migration under application writes (KEYS WRITES PATH_TAKEN SEED TOPOLOGY KEEP=1 APPROVE=ask)
	$(BIN)/exodus demo --keys $(KEYS) --writes $(WRITES) --path-taken $(PATH_TAKEN) --seed $(SEED) --approve $(APPROVE) --topology $(TOPOLOGY) $(if $(KEEP),--keep)

test: $(STAMP)  ## every test, and what lint checks; five files at a time (tests/support/schedule.py)
	$(BIN)/python -m pytest tests -n 5 --dist loadfile --no-loadscope-reorder \
	  || $(BIN)/python -m tests.support.once_more

unit: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest tests/unit tests/property

fault: $(STAMP)  ## tests that kill and stall processes
	$(BIN)/python -m pytest tests/fault

e2e: $(STAMP)  ## tests through a real Prefect server and worker
	$(BIN)/python -m pytest tests/e2e

lint: $(STAMP)  ## formatter, linter, types, import contract, duplicates
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) types imports duplicates audit

types: $(STAMP)  ## the type checker
	$(BIN)/mypy exodus flows tasks blocks examples benchmarks

imports: $(STAMP)  ## the import contract
	$(BIN)/lint-imports

duplicates: $(STAMP)  ## places that share eight lines or more
	$(BIN)/pylint exodus flows tasks blocks examples benchmarks

# Absent or without its database it says so and fails nothing: the other checks need no network.
AUDIT := $(shell command -v pip-audit)

audit: $(STAMP)  ## known vulnerabilities of what constraints.txt pins, where pip-audit is installed
ifeq ($(AUDIT),)
	@echo "pip-audit is not installed: known vulnerabilities were NOT looked up (pipx install pip-audit)"
else
	@said=$$($(AUDIT) --disable-pip --require-hashes --progress-spinner off -r constraints.txt 2>&1); status=$$?; \
	case "$$said" in \
	*"Found "[0-9]*" known"*) echo "$$said"; exit $$status;; \
	esac; \
	absent=$$(echo "$$said" | grep -c "could not be audited"); \
	if [ $$status -ne 0 ] || [ $$absent -gt 0 ]; then \
	  echo "pip-audit did not reach its database: $$absent packages were NOT looked up"; \
	else echo "pip-audit: no known vulnerability"; fi
endif

fix: $(STAMP)  ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## every benchmark, short form (NAME=backfill for one, FULL=1 for the long form)
	$(BIN)/pip install $(PINNED) -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks $(NAME) $(if $(FULL),--full)

docs: $(STAMP)  ## write docs/reference/ from the code
	$(BIN)/python docs/reference/generate.py

up: $(STAMP)  ## the stack, left running; decisions are asked of you
	$(BIN)/exodus up

down: $(STAMP)  ## stop the stack
	$(BIN)/exodus down

clean:  ## remove what was built
	rm -rf build .exodus .mypy_cache .ruff_cache .pytest_cache .hypothesis
