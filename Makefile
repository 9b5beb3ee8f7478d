# One command each; every target prepares .venv/ by itself on first use. The work is done by reproduce.sh, which people
# without make call directly.

PYTHON ?=
PROFILE ?=
DATA_DIR ?=
SEEDS ?=
JOBS ?=
DEVICE ?=
ARGS ?=

export PYTHON

RUN := ./reproduce.sh
OPTIONS = $(if $(PROFILE),--profile '$(PROFILE)') $(if $(DATA_DIR),--data-dir '$(DATA_DIR)') \
          $(if $(SEEDS),--seeds '$(SEEDS)') $(if $(JOBS),--jobs '$(JOBS)') $(if $(DEVICE),--device '$(DEVICE)') $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup reproduce-all report test bench lint lock clean FORCE

help: ## List the targets
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST) | sed 's/reproduce-%  /reproduce-NAME/'
	@echo
	@echo "  NAME is one of:   $$(ls benchmarks/tables benchmarks/figures 2>/dev/null | sed -n 's/\.[^.]*$$//p' | sort -u | tr '\n' ' ')"
	@echo "  Variables:        PROFILE=smoke|short|paper DATA_DIR=... SEEDS=3 JOBS=1 DEVICE=auto|cpu|cuda PYTHON=python3"
	@echo "                    ARGS='...' is passed on as it is (make test ARGS='-k quant')"

setup: ## Prepare .venv/ (instant when it is up to date)
	@$(RUN) setup

reproduce-%: FORCE ## Run what is missing for a table, print it, write results/tables/
	@$(RUN) $* $(OPTIONS)

reproduce-all: ## All tables and figures
	@$(RUN) all $(OPTIONS)

report: ## Write results/report/index.html: every run, table and figure on one page
	@$(RUN) report $(ARGS)

test: ## Run the tests
	@$(RUN) test $(ARGS)

bench: ## Run the speed benchmarks
	@$(RUN) bench $(ARGS)

lint: ## ruff, format check, mypy
	@$(RUN) lint

lock: ## Refresh requirements.lock
	@$(RUN) lock $(ARGS)

clean: ## Remove .venv/ and caches (results stay)
	@$(RUN) clean
