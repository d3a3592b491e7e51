# Every command creates its environment in .venv on the first run. It needs only python3 (3.10 or
# newer), make, and git. To choose another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# An explicitly chosen interpreter replaces an environment of another version.
EXACT     := $(if $(filter command environment,$(firstword $(origin PYTHON))),--exact)
BOOTSTRAP := $(PYTHON) tools/bootstrap.py --venv $(VENV) $(EXACT)

# Tests wait for servers and workers, so two more processes than cores keep all cores busy.
PROCESSES := $$(($$(getconf _NPROCESSORS_ONLN) + 2))

.DEFAULT_GOAL := help
.PHONY: help demo test test-newest test-all lint format docs screenshots bench constraints release-check clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; \
	    do printf '  make %-14s %s\n' "$$name" "$$text"; done

demo: ## Run the example app on 336,776 flights, with and without offload
	@$(BOOTSTRAP) demo
	@$(BIN)/python -m worker_example.demo $(ARGS)

test: ## Run all tests (select with ARGS="-k name")
	@$(BOOTSTRAP) test
	@$(BIN)/python tools/programs.py 'chromium-headless-shell|chromium' prometheus
	-@$(BIN)/python -m compileall -q offload benchmarks tests # once, not in every process
	@unset PYTHONDONTWRITEBYTECODE; \
	    $(BIN)/python -m pytest -n $(PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-newest: ## Run the fast tests on the newest version of every dependency
	@$(BOOTSTRAP) test
	@$(BIN)/python tools/test_all.py newest $(ARGS)

test-all: ## Run the fast tests on every Python found and on the lowest dependencies
	@$(BOOTSTRAP) test
	@$(BIN)/python tools/test_all.py $(ARGS)

lint: ## Check style, types, and import contracts
	@$(BOOTSTRAP) dev
	@status=0; for check in "ruff check ." "ruff format --check ." mypy lint-imports; do \
	    echo "$$check"; $(BIN)/$$check || status=1; \
	done; exit $$status

format: ## Format the code and apply automatic fixes
	@$(BOOTSTRAP) dev
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

docs: ## Build the documentation site in build/site, and check its links
	@$(BOOTSTRAP) --venv .venvs/docs docs
	@.venvs/docs/bin/python tools/docs.py

screenshots: ## Take the dashboard screenshots of the documentation
	@$(BOOTSTRAP) test
	@$(BIN)/python tools/programs.py chromium redis-server
	@$(BIN)/python -m tools.screenshots $(ARGS)

bench: ## Run the benchmarks
	@$(BOOTSTRAP) bench
	@$(BIN)/python -m benchmarks $(ARGS)

constraints: ## Write the newest versions of all dependencies to constraints.txt
	@$(PYTHON) tools/constraints.py

release-check: ## Build wheel, sdist, and SBOM in dist/, and check them
	@$(BOOTSTRAP) --venv .venvs/release release
	@.venvs/release/bin/python tools/release_check.py $(ARGS)

clean: ## Remove everything that these commands created
	rm -rf $(VENV) .venvs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	    .import_linter_cache *.egg-info tests/monitoring/grafana/node_modules
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
