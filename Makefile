# Commands to run, test and measure the project: make help lists them.
PYTHON ?= python3.11
VENV := .venv/bin
ARGS ?=
# Processes that run tests. They often wait, so there may be more than cores.
WORKERS ?= 3
QUICK_WORKERS ?= 6
# Each process that tests start would otherwise compile all modules, where the environment turns bytecode off.
PYTEST := PYTHONDONTWRITEBYTECODE= $(VENV)/python -m pytest

.PHONY: help setup run engines test test-cluster quick fuzz soak attacks notebook pipeline bench check lint lock audit clean

help:  ## List the commands.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/ /' | sort | awk '{printf "make %-12s %s\n", $$1, substr($$0, index($$0, $$2))}'

setup: .venv/service.stamp  ## Install the service and the default predictor's environment.
	@$(VENV)/python -m predictor install

run: setup models/placement/v1/bundle.json  ## Train a first version if there is none, start the InferenceService, predict (ARGS=--once stops then).
	@$(VENV)/placement up $(if $(findstring --model,$(ARGS)),,-f inferenceservice/placement.yaml) $(ARGS)

models/placement/v1/bundle.json: | .venv/service.stamp
	@$(VENV)/placement train --storage models --version v1

engines: .runtimes/engines/engines.stamp  ## Install Ray, Spark and Dask for `placement score` and `train --backend`, in .runtimes/engines.

test: .venv/dev.stamp  ## Run all tests (ARGS go to pytest).
	@$(VENV)/python -m predictor install kserve-mlserver kserve-sklearnserver
	@$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-cluster: .venv/dev.stamp  ## Run the tests in the cluster with KServe that KUBECONFIG names (ARGS go to pytest).
	@$(PYTEST) tests/cluster $(ARGS)

quick: .venv/dev.stamp  ## Check changed files, run unit and integration tests (ARGS go to pytest).
	@changed=$$(git diff --name-only --diff-filter=d HEAD -- '*.py'; git ls-files --others --exclude-standard -- '*.py'); \
	if [ -n "$$changed" ]; then \
		$(VENV)/ruff check $$changed && $(VENV)/ruff format --check $$changed && $(VENV)/mypy; fi
	@$(PYTEST) -n $(QUICK_WORKERS) --dist worksteal tests/unit tests/integration $(ARGS)

fuzz: .venv/dev.stamp  ## Send tens of thousands of random hostile inputs (FUZZ_EXAMPLES=10000 per test).
	@$(VENV)/python -m predictor install kserve-mlserver
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-10000} $(PYTEST) tests/unit/test_candidate_schema.py \
		tests/e2e/test_hostile_input.py tests/e2e/test_openapi_conformance.py $(ARGS)

soak: .venv/dev.stamp  ## Test rollouts, canaries, outages and overload under load (ARGS='--minutes 30').
	@$(VENV)/python -m predictor install kserve-mlserver kserve-sklearnserver
	@$(VENV)/python -m tests.soak.run $(ARGS)

attacks: .venv/dev.stamp  ## Attack a transformer and print its peak memory and an honest client's results.
	@$(VENV)/python -m predictor install kserve-mlserver
	@$(VENV)/python -m tests.soak.attacks $(ARGS)

notebook: setup  ## Open the lesson, from the candidates to the service, in JupyterLab (ARGS go to it).
	@$(VENV)/python -m notebooks $(ARGS)

pipeline: setup  ## Train, gate and roll out a version with Kubeflow Pipelines on this machine (ARGS go to it).
	@$(VENV)/python -m pipelines $(ARGS)

bench: setup  ## Compare with other systems and write docs/benchmarks.md (ARGS=--quick takes five minutes).
	@command -v wrk > /dev/null || echo "bench: better numbers with wrk (Debian: apt-get install wrk)" >&2
	@$(VENV)/placement bench --report docs/benchmarks.md $(ARGS)

lint: .venv/dev.stamp  ## Check style and types.
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy

check: lint test  ## Check style and types, then run all tests.

lock: .venv/dev.stamp  ## Update all lock files.
	@requirements/lock

audit: .venv/service.stamp  ## Check the lock files for known vulnerabilities, write the image's SBOM (ARGS go to pip-audit).
	@$(VENV)/python requirements/audit.py $(ARGS)

clean:  ## Remove installed environments and logs, but no models.
	@rm -rf .venv .runtimes .run build *.egg-info

.venv/%.stamp: requirements/%.txt requirements/uv.txt pyproject.toml
	@requirements/install "$(PYTHON)" $*

.runtimes/engines/%.stamp: requirements/%.txt requirements/uv.txt pyproject.toml
	@requirements/install "$(PYTHON)" $* .runtimes/engines
