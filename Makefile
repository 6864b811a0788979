# Two commands do everything on a fresh machine: `make run` and `make test`.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first Python 3.11 or newer that really runs and can make virtual environments.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3 /usr/bin/python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$p" && break; done)
ENGINES ?= wasmer wasmtime
# Files of tests that run side by side; each starts its own servers. A third of their time they
# wait for timers and servers, so that three keep two processors busy.
PROCESSES ?= 3
ARGS ?=
PIP_INSTALL := pip install --quiet --disable-pip-version-check
# No file is installed whose SHA-256 is not in the lock file.
LOCKED := $(PIP_INSTALL) --require-hashes
# What builds the package is in the lock files too.
OURS := $(PIP_INSTALL) --no-deps --no-build-isolation -e .
# uv and pip-audit, apart from what they lock and audit.
TOOLS := .work/tools
# What builds the documentation as a site.
SITE := .work/site-tools
# Helm and the schemas of Kubernetes, which check the chart.
OPERATORS := .work/operators
# Tests that need no engine and no server of their own.
FAST := tests/unit tests/architecture tests/formats
# Half of their time they wait, so that one more keeps the processors busy.
FAST_PROCESSES = $(shell expr 1 + $(PROCESSES))
# Tests start some hundred Pythons: without compiled bytecode each takes 0.2 s of CPU longer.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/pytest
# All tests but those of test-polyglot and test-operators.
# What failed stands in a folder of its own, which no other run of pytest writes to meanwhile.
SUITE = $(PYTEST) -o cache_dir=.work/test-cache --ignore=tests/polyglot --ignore=tests/operators
CROWD = -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# The contract of the last release: what callers were promised.
RELEASED := v0.6.0.binpb

.DEFAULT_GOAL := help
.PHONY: help install engines run demo test unit watch check hooks format protos dist-protos dist publish client docs site lock audit bench faults soak attack fuzz verdicts hostile test-polyglot test-operators pictures clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

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

$(TOOLS)/.tools: requirements/tools.txt | $(BIN)/python
	@$(BIN)/python -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m $(LOCKED) --only-binary :all: -r requirements/tools.txt
	@touch $@

$(OPERATORS)/.tools: requirements/operators.txt | $(BIN)/python
	@$(BIN)/python -m venv $(OPERATORS)
	@$(OPERATORS)/bin/python -m $(LOCKED) --only-binary :all: -r requirements/operators.txt
	@touch $@

$(SITE)/.site: requirements/site.txt | $(BIN)/python
	@echo "installing what builds the site into $(SITE)"
	@$(BIN)/python -m venv $(SITE)
	@$(SITE)/bin/python -m $(LOCKED) --only-binary :all: -r requirements/site.txt
	@touch $@

install: $(VENV)/.server ## make .venv with wasmkilnd and wasmkiln in it

engines: install ## install the default engines, each in an environment of its own
	@$(BIN)/wasmkilnd engine install --keep-going $(ENGINES)

run: engines ## set up and serve in the foreground (ARGS="--listen …" is passed on)
	@exec $(BIN)/wasmkilnd serve $(ARGS)

demo: engines ## compile a real module with each engine, and show what each tier saves
	@$(BIN)/python bench/demo.py

test: $(VENV)/.dev ## run every test (FULL=1: long ones at full size; ARGS="-k …" is passed on)
	@rm -rf .work/test-cache
	@$(SUITE) $(CROWD) $(ARGS); code=$$?; \
	test $$code -eq 1 || exit $$code; \
	echo "make test: running what failed once more, alone: it passes if only the crowd was to blame"; \
	$(SUITE) -rap --last-failed --last-failed-no-failures none $(ARGS) || exit; \
	echo "make test: FAILED IN THE CROWD, PASSED ALONE: the tests that this last run names; mend them" >&2

unit: $(VENV)/.dev ## run the unit and architecture tests alone, in two minutes
	@$(PYTEST) -q -n $(FAST_PROCESSES) --dist worksteal $(FAST) $(ARGS)

watch: $(VENV)/.dev ## run those at every change, what failed last first (ARGS="-k …")
	@PYTEST_ADDOPTS="$(ARGS)" $(BIN)/watchfiles --verbosity warning --filter python \
		'$(PYTEST) -q -n $(FAST_PROCESSES) --dist worksteal --ff $(FAST)' client server tests

check: $(VENV)/.dev ## format, lint, types, imports, contract, whether generated files are fresh
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@told="$$($(BIN)/lint-imports --no-cache --no-logo)" || { echo "$$told" >&2; exit 1; }
	@$(BIN)/python scripts/version.py
	@cd protos && ../$(BIN)/buf lint
	@cd protos && ../$(BIN)/buf breaking --against $(RELEASED)
	@$(MAKE) --no-print-directory protos client docs
	@git diff --exit-code -- client/wasmkiln/v1 client/wasmkiln/client.py client/wasmkiln/_blocking_*.py man deploy/helm/wasmkiln/values.schema.json || { echo "generated files were not fresh: they are now; commit them" >&2; exit 1; }

hooks: $(VENV)/.dev ## have git run `make check` before each commit
	@$(BIN)/pre-commit install

format: $(VENV)/.dev ## format the code and mend what can be mended
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

protos: $(VENV)/.dev ## generate the stubs under client/ from protos/
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=client --pyi_out=client --grpc_python_out=client protos/wasmkiln/v1/*.proto

dist-protos: $(VENV)/.dev ## pack the contract for a release: archive and descriptor set, in dist/
	@$(BIN)/python -m scripts.dist_protos $(ARGS)

dist: $(VENV)/.dev ## build all files of a release, in dist/
	@$(BIN)/python -m scripts.release $(ARGS)

publish: $(VENV)/.dev $(TOOLS)/.tools ## publish a release, after checks and a question (ARGS=--dry-run)
	@$(BIN)/python -m scripts.publish --uv $(TOOLS)/bin/uv $(ARGS)

client: $(VENV)/.dev ## generate the blocking client from the one for asyncio
	@$(BIN)/python scripts/blocking_client.py
	@$(BIN)/ruff format --quiet client/wasmkiln/client.py client/wasmkiln/_blocking_*.py

docs: $(VENV)/.dev ## generate man pages and what the chart knows of settings
	@$(BIN)/python scripts/commands.py
	@$(BIN)/python scripts/chart_settings.py

site: $(SITE)/.site $(VENV)/.dev ## build the documentation as a site, and check its links, in .work/site/html
	@$(BIN)/python -m scripts.site $(SITE)/bin/zensical

lock: $(TOOLS)/.tools $(VENV)/.server ## lock dependencies and engines by SHA-256 (ARGS=--upgrade: to the newest)
	@$(BIN)/python scripts/lock.py $(TOOLS)/bin/uv $(ARGS)

audit: $(TOOLS)/.tools ## ask for known vulnerabilities of what the lock files name
	@$(TOOLS)/bin/python scripts/audit.py

bench: $(VENV)/.dev ## measure each figure beside its yardstick, in one run
	@$(BIN)/python -m bench $(ARGS)

faults: $(VENV)/.dev ## make Redis sick in every way under load, and count what callers notice
	@$(BIN)/python -m tests.faults $(ARGS)

soak: $(VENV)/.dev ## do all at once and kill everything, for five minutes (ARGS="--seconds N")
	@$(BIN)/python -m tests.soak $(ARGS)

attack: $(VENV)/.dev ## attack a running daemon in every known way (ARGS="--only NAME")
	@$(BIN)/python -m tests.attack $(ARGS)

fuzz: $(VENV)/.dev ## feed 20,000 inputs to each reader of bytes from outside (ARGS="-k …")
	@$(BIN)/pytest tests/fuzz --hypothesis-profile fuzz --timeout 0 $(ARGS)

verdicts: $(VENV)/.dev ## compare verdicts on 5,000 generated modules with the engines' (ARGS=FOLDER)
	@$(BIN)/python -m tests.verdicts $(or $(ARGS),--generate 1000)

hostile: $(VENV)/.dev ## compile modules that are made to hurt, for nine minutes (ARGS="--only NAME")
	@$(BIN)/python -m tests.hostile $(ARGS)

test-polyglot: $(VENV)/.dev ## build and run clients and hosts in other languages (ARGS="-k go")
	@$(BIN)/python -m tests.polyglot.toolchains
	@POLYGLOT=all $(PYTEST) tests/polyglot -s $(ARGS)

test-operators: $(VENV)/.dev $(TOOLS)/.tools $(OPERATORS)/.tools ## run what operators use: browser, Prometheus, Envoy, chart (ARGS="-k page")
	@$(BIN)/python -m tests.operators.toolchains
	@OPERATORS=all $(PYTEST) tests/operators $(CROWD) $(ARGS)

pictures: $(VENV)/.dev ## draw the pictures of the status page in docs/, in five minutes
	@$(BIN)/python -m tests.operators.toolchains chromium
	@$(BIN)/python -m tests.operators.pictures docs/how-to

clean: ## remove .venv, caches and what tests left in .work (the state directory stays)
	@rm -rf $(VENV) .work .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
