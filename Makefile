# Two commands do everything on a fresh machine: `make run` and `make test`.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first Python 3.11 or newer that really runs and can make virtual environments.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3 /usr/bin/python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$p" && break; done)
ENGINES ?= wasmtime wasmer
# Files of tests that run side by side; each starts its own servers. A third of their time they
# wait for timers and servers, so that three keep two processors busy.
PROCESSES ?= 3
ARGS ?=
PIP_INSTALL := pip install --quiet --disable-pip-version-check
# No file is installed whose SHA-256 is not in the lock file.
LOCKED := $(PIP_INSTALL) --require-hashes
# What builds the package is in the lock files too.
OURS := $(PIP_INSTALL) --no-deps --no-build-isolation -e .
# Tests that need no engine and no server of their own.
FAST := tests/unit tests/architecture tests/formats
# Half of their time they wait, so that one more keeps the processors busy.
FAST_PROCESSES = $(shell expr 1 + $(PROCESSES))
# Tests start some hundred Pythons: without compiled bytecode each takes 0.2 s of CPU longer.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/pytest
# All tests but those of test-polyglot and test-operators.
# What failed stands in a folder of its own, which no other run of pytest writes to meanwhile.
CACHE = -o cache_dir=.work/$@-cache
SUITE = $(PYTEST) $(CACHE) --ignore=tests/polyglot --ignore=tests/operators
CROWD = -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
BY_LANGUAGE = -n 2 --no-loadscope-reorder
# Run tests side by side, then what failed once more, alone. $1: pytest and its files. $2: how.
define in_crowd
	@rm -rf .work/$@-cache
	@$1 $2 $(ARGS); code=$$?; \
	test $$code -eq 1 || exit $$code; \
	echo "make $@: running what failed once more, alone: it passes if only the crowd was to blame"; \
	$1 -rap --last-failed --last-failed-no-failures none $(ARGS) || exit; \
	echo "make $@: FAILED IN THE CROWD, PASSED ALONE: the tests that this last run names; mend them" >&2
endef
# Words of pip-audit, and of errors that it does not catch, where the data cannot be had.
NO_DATA := Could not connect|ConnectionError|ServiceError|Timeout|Max retries|could not be audited
# The contract of the last release: what callers were promised.
RELEASED := v0.7.0.binpb

.DEFAULT_GOAL := help
.PHONY: help run demo test unit check protos site lock audit dist publish bench \
	test-polyglot test-operators test-pythons soak faults attack hostile verdicts large fuzz clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "  make %-18s %s%s\n", $$1, \
		(length($$1) > 18 ? "\n                          " : ""), $$2 }' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv and ensurepip was found. Install one (on Debian and Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "creating $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.server: pyproject.toml requirements/server.txt | $(BIN)/python
	@echo "installing wasmkiln[server] into $(VENV)"
	@$(BIN)/python -m $(LOCKED) --only-binary :all: -r requirements/server.txt
	@$(BIN)/python -m $(OURS)
	@touch $@

$(VENV)/.dev: pyproject.toml requirements/dev.txt | $(BIN)/python
	@echo "installing wasmkiln[dev] into $(VENV)"
	@$(BIN)/python -m $(LOCKED) -r requirements/dev.txt
	@$(BIN)/python -m $(OURS)
	@touch $@ $(VENV)/.server

run: $(VENV)/.server ## set everything up, and serve in the foreground (ARGS="--listen …")
	@$(BIN)/wasmkilnd engine install --keep-going $(ENGINES)
	@exec $(BIN)/wasmkilnd serve $(ARGS)

demo: $(VENV)/.dev ## compile a real module, and show what each tier saves
	@$(BIN)/wasmkilnd engine install --keep-going $(ENGINES)
	@$(BIN)/python bench/demo.py $(ARGS)

test: $(VENV)/.dev ## run every test (FULL=1: long ones at full size; ARGS="-k …")
	$(call in_crowd,$(SUITE),$(CROWD))

unit: $(VENV)/.dev ## run the unit and architecture tests alone, in two minutes
	@$(PYTEST) -q -n $(FAST_PROCESSES) --dist worksteal $(FAST) $(ARGS)

check: $(VENV)/.dev ## format, lint, types, imports, contract, fresh generated files
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@told="$$($(BIN)/lint-imports --no-cache --no-logo)" || { echo "$$told" >&2; exit 1; }
	@$(BIN)/bump-my-version bump --dry-run --new-version 0.0.0
	@cd protos && ../$(BIN)/buf lint
	@cd protos && ../$(BIN)/buf breaking --against $(RELEASED)
	@$(MAKE) --no-print-directory protos
	@git diff --exit-code -- client/wasmkiln/v1 man deploy/helm/wasmkiln/values.schema.json || { echo "generated files were not fresh: they are now; commit them" >&2; exit 1; }

protos: $(VENV)/.dev ## generate stubs, man pages and what the chart knows of settings
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=client --pyi_out=client --grpc_python_out=client protos/wasmkiln/v1/*.proto
	@$(BIN)/python -m scripts.reference

site: $(VENV)/.dev ## build the documentation as a site in .work/site/html, and check it
	@$(BIN)/python -m scripts.site

lock: $(VENV)/.server ## lock dependencies and engines by SHA-256 (ARGS=--upgrade: to the newest)
	@$(BIN)/python scripts/lock.py $(ARGS)

audit: $(VENV)/.dev ## ask for known vulnerabilities of what the lock files name
	@mkdir -p .work && $(BIN)/pip-audit --strict --progress-spinner off --disable-pip --require-hashes -r requirements/dev.txt 2>.work/audit; \
	code=$$?; cat .work/audit >&2; test $$code -eq 0 || ! grep -Eq "$(NO_DATA)" .work/audit && exit $$code; echo "audit: skipped: the index here has no data on vulnerabilities"

dist publish: $(VENV)/.dev ## build a release in dist/; check that it may be published
	@$(BIN)/python -m scripts.$(if $(filter dist,$@),release,publish)

bench: $(VENV)/.dev ## measure each figure beside its yardstick, in one run
	@$(BIN)/python -m bench $(ARGS)

test-polyglot test-operators: $(VENV)/.dev ## test clients in other languages; test with operators' tools
	@$(BIN)/python -m tests.$(@:test-%=%).toolchains
	$(call in_crowd,$(if $(filter %operators,$@),OPERATORS,POLYGLOT)=all $(PYTEST) $(CACHE) tests/$(@:test-%=%),$(if $(filter %operators,$@),$(CROWD),$(BY_LANGUAGE)))

test-pythons soak faults attack hostile verdicts large fuzz: $(VENV)/.dev ## long runs, of minutes each (ARGS=--help)
	@$(BIN)/$(if $(filter fuzz,$@),pytest tests/fuzz --hypothesis-profile fuzz --timeout 0,python -m tests.$(@:test-%=%)) $(or $(ARGS),$(if $(filter verdicts,$@),--generate 1000))

clean: ## remove .venv, caches and what tests left in .work (engines and data stay)
	@rm -rf $(VENV) .work .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
