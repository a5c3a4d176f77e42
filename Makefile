# make run | make test | make check: see README.md.
PYTHON ?= python3.11
VENV := .venv/bin
ARGS ?=

.PHONY: help setup run test fuzz soak bench check lint lock audit clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/ /' | sort | awk '{printf "make %-8s %s\n", $$1, substr($$0, index($$0, $$2))}'

setup: .venv/service.stamp  ## Install the service and the stock predictor's environment.
	@$(VENV)/python -m predictor install

run: setup models/placement/v1/bundle.json  ## Train if need be, start the InferenceService, predict (ARGS=--once to end then).
	@$(VENV)/placement up $(ARGS)

models/placement/v1/bundle.json: | .venv/service.stamp
	@$(VENV)/placement train --storage models --version v1

test: .venv/dev.stamp  ## Run all tests (ARGS are pytest's).
	@$(VENV)/python -m predictor install kserve-mlserver kserve-sklearnserver
	@$(VENV)/python -m pytest $(ARGS)

fuzz: .venv/dev.stamp  ## Tens of thousands of hostile inputs, others each time (FUZZ_EXAMPLES=10000 a test).
	@$(VENV)/python -m predictor install kserve-mlserver
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-10000} $(VENV)/python -m pytest tests/unit/test_candidate_schema.py tests/e2e/test_hostile_input.py \
		tests/e2e/test_openapi_conformance.py $(ARGS)

soak: .venv/dev.stamp  ## Rollouts, canaries, outages and overload under load (ARGS='--minutes 30').
	@$(VENV)/python -m predictor install kserve-mlserver kserve-sklearnserver
	@$(VENV)/python -m tests.soak.run $(ARGS)

bench: setup  ## Measure beside others, and write docs/benchmarks.md (ARGS=--quick: in two minutes).
	@command -v wrk > /dev/null || echo "bench: better numbers with wrk (Debian: apt-get install wrk)" >&2
	@$(VENV)/placement bench --report docs/benchmarks.md $(ARGS)

lint: .venv/dev.stamp  ## Check style and types.
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy

check: lint test  ## Lint, types and tests.

lock: .venv/dev.stamp  ## Resolve all lock files anew.
	@requirements/lock

audit: .venv/service.stamp  ## Known vulnerabilities in the lock files, and the image's SBOM (ARGS are pip-audit's).
	@$(VENV)/python requirements/audit.py $(ARGS)

clean:  ## Remove what was installed, but no model.
	@rm -rf .venv .runtimes .run build *.egg-info

.venv/%.stamp: requirements/%.txt requirements/uv.txt pyproject.toml
	@requirements/install "$(PYTHON)" $*
