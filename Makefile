# make run and make test do all the set-up themselves; `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
BIN := $(VENV)/bin
# Written last by set-up, so that an interrupted one starts over and a finished one is not repeated.
READY := $(VENV)/.ready
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && command -v "$$p" && break; done)
PROFILE ?= default
MLFLOW_PORT ?= 5000
PREFECT_PORT ?= 4200
POOL := local

.PHONY: run test smoke ui deploy worker lint setup clean help
.DEFAULT_GOAL := help

run: $(READY)  ## the whole chain (PROFILE=smoke for another profile)
	$(BIN)/prm run --profile $(PROFILE)

test: $(READY)  ## every test, file by file on two workers
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

smoke: $(READY)  ## the whole chain in about a minute, in runs/smoke
	$(BIN)/prm run --profile smoke

ui: $(READY)  ## MLflow and Prefect in the browser, until Ctrl-C (PROFILE, MLFLOW_PORT, PREFECT_PORT)
	@folder=$(if $(filter default,$(PROFILE)),.,runs/$(PROFILE)); trap 'kill $$(jobs -p) 2>/dev/null' EXIT; \
	echo "MLflow   http://127.0.0.1:$(MLFLOW_PORT)   (runs, models and aliases of $$folder)"; \
	echo "Prefect  http://127.0.0.1:$(PREFECT_PORT)   (flow runs and deployments)"; \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --workers 1 --host 127.0.0.1 --port $(MLFLOW_PORT) \
		--backend-store-uri "sqlite:///$$PWD/$$folder/mlflow.db" --default-artifact-root "$$PWD/$$folder/mlruns" & \
	$(BIN)/prefect --no-prompt server start --host 127.0.0.1 --port $(PREFECT_PORT) & \
	wait

# Both talk to the server that `make ui` starts, unless PREFECT_API_URL says otherwise.
deploy worker: export PREFECT_API_URL := $(or $(PREFECT_API_URL),http://127.0.0.1:$(PREFECT_PORT)/api)

deploy: $(READY)  ## register the nightly and the on-demand deployment with the Prefect server of `make ui`
	@$(BIN)/prefect work-pool inspect $(POOL) >/dev/null 2>&1 || $(BIN)/prefect work-pool create $(POOL) --type process
	$(BIN)/prefect --no-prompt deploy --all

worker: $(READY)  ## run what the deployments schedule, until Ctrl-C
	$(BIN)/prefect worker start --pool $(POOL)

lint: $(READY)  ## style and import direction
	$(BIN)/ruff check prm_core flows tests benchmarks
	$(BIN)/lint-imports

setup: $(READY)  ## install everything, once

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed and was not found; install it, or name it: make PYTHON=…"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "No virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV): about three minutes, once."
	@$(BIN)/python -m pip install --disable-pip-version-check -qq -r requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check -qq --no-build-isolation --no-deps -e .
	@# Every Python of this environment starts with telemetry off, so that `dvc` or `mlflow` typed by hand have it too.
	@$(BIN)/python -c 'import sysconfig, pathlib; pathlib.Path(sysconfig.get_path("purelib"), "prm_environment.pth").write_text("import prm_core.platform.environment; prm_core.platform.environment.apply()\n")'
	@# Without compiled modules imports take two to three times as long; pip does not compile where that is switched off.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@touch $@

clean:  ## remove what runs have written: artifacts, stores, other profiles' workspaces, DVC's cache (not data/, not .venv)
	rm -rf artifacts runs mlruns mlflow.db* .work .prefect .dvc/cache .dvc/tmp .pytest_cache .ruff_cache .hypothesis

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16
