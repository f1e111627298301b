SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Every engine start would compile torch and vLLM again where this is set.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/lock.txt
STAMP := $(VENV)/.installed
SOURCES := crds engine gateway operator sheaf
UNIT := crds/tests engine/tests gateway/tests operator/tests sheaf/tests
PURE := sheaf_crds sheaf_engine.notices sheaf_engine.timing sheaf_gateway.admission sheaf_gateway.continuation sheaf_gateway.gossip sheaf_gateway.routing sheaf_gateway.warming sheaf_operator.planning

.PHONY: help
help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-21s %s\n", $$1, $$2}'

$(STAMP): $(LOCK) pyproject.toml
	@echo "installing into $(VENV) (the first time takes a few minutes: vLLM and torch are large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' $(LOCK))"
	@$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python -r $(LOCK)
	@$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --editable .
	@touch $@

.PHONY: install
install: $(STAMP) ## Install everything into .venv

.PHONY: lock
lock: ## Re-pin every dependency in requirements/lock.txt
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 \
	  --override requirements/overrides.txt --extra dev --extra cpu \
	  --output-file $(LOCK) pyproject.toml requirements/tools.in
	for image in operator gateway engine-agent; do \
	  $(BIN)/uv pip compile --quiet --no-header --no-annotate --generate-hashes --python-version 3.11 \
	    --override requirements/overrides.txt --constraint $(LOCK) --extra $${image%-agent} \
	    --output-file requirements/$$image.txt pyproject.toml; \
	done

.PHONY: lint
lint: $(STAMP) ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addsuffix /sheaf_crds,crds) engine/sheaf_engine gateway/sheaf_gateway operator/sheaf_operator sheaf/sheaf
	$(BIN)/lint-imports

.PHONY: format
format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: generate
generate: $(STAMP) ## Write everything that is generated: CRDs, docs/api.md, parts of the chart
	$(BIN)/python -m sheaf_crds.generate
	$(BIN)/python charts/generate.py

.PHONY: verify
verify: $(STAMP) ## Regenerate everything that is generated and fail on a difference
	$(BIN)/python -m sheaf_crds.generate --check
	$(BIN)/python charts/generate.py --check

.PHONY: unit
unit: $(STAMP) ## Unit tests; the pure rooms at 100 % branch coverage
	$(BIN)/python -m pytest $(UNIT) --cov-config=pyproject.toml --cov-branch $(PURE:%=--cov=%) --cov-report=term

.PHONY: e2e
e2e: e2e-local e2e-cluster ## The whole system: real vLLM, real processes, a real Kubernetes

E2E := $(BIN)/python -m pytest e2e --timeout=900 -p no:randomly --durations=10

.PHONY: e2e-local
e2e-local: $(STAMP) ## What runs on one machine without Kubernetes
	$(E2E) -m "not cluster"

.PHONY: e2e-cluster
e2e-cluster: $(STAMP) ## What runs in a real Kubernetes
	$(E2E) -m cluster

# Kubernetes' binaries are built once a machine, for some minutes, beside the tests that do not need them.
.PHONY: test
test: $(STAMP) ## Everything
	@$(BIN)/python e2e/cluster packages || :
	@nice $(BIN)/python e2e/cluster build & build=$$!; \
	$(MAKE) --no-print-directory lint verify unit e2e-local || { status=$$?; kill $$build 2>/dev/null; wait $$build; exit $$status; }; \
	wait $$build || :; $(MAKE) --no-print-directory e2e-cluster

.PHONY: test-crash
test-crash: $(STAMP) ## Kill the operator before and after each of its writes to a real API server
	SHEAF_CRASH_SWEEP=1 $(BIN)/python -m pytest e2e/crash --timeout=3600 -p no:randomly -s

.PHONY: cluster
cluster: $(STAMP) ## Start a real Kubernetes on this machine, with Sheaf's images in its nodes, and leave it up
	@$(BIN)/python e2e/cluster build
	@$(BIN)/python e2e/cluster up
	@$(BIN)/python e2e/cluster images
	@$(BIN)/python e2e/cluster kubeconfig

.PHONY: cluster-down
cluster-down: $(STAMP) ## End that Kubernetes; only its imported images stay on disk
	@$(BIN)/python e2e/cluster down

.PHONY: demo
demo: $(STAMP) ## Serve two real models and four adapters on this machine and ask them (KEEP=1 stays up)
	@$(BIN)/python -m sheaf.demo $(if $(KEEP),--keep)

.PHONY: clean
clean: ## Remove the environment and every cache in this folder
	rm -rf $(VENV) bench-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

.PHONY: bench-kernels
bench-kernels: $(STAMP) ## The multi-LoRA kernels against stock vLLM's, side by side
	$(BIN)/python bench/kernels/bench_kernels.py $(ARGS)

.PHONY: bench-engine
bench-engine: $(STAMP) ## Real vLLM with Sheaf's kernels and without, side by side
	$(BIN)/python bench/kernels/bench_engine.py $(ARGS)

.PHONY: bench-routing
bench-routing: $(STAMP) ## Routing policies of peers beside Sheaf's, simulated (TRACE=path for a real trace)
	$(BIN)/python bench/routing/bench_routing.py $(if $(TRACE),--trace $(TRACE)) $(ARGS)

# The peers have an environment of their own, beside the caches; without them the rest is measured.
PEERS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sheaf/bench/peers
$(PEERS)/.installed: bench/gateway/peers.txt
	@{ $(BIN)/uv venv --quiet --clear --python $(BIN)/python $(PEERS) && \
	  $(BIN)/uv pip install --quiet --python $(PEERS)/bin/python -r $< && touch $@; } || \
	  echo "the peers of $< could not be installed and are left out"

.PHONY: bench-gateway
bench-gateway: $(STAMP) $(PEERS)/.installed ## Gateways side by side, each on one core: requests, streamed chunks, added latency
	$(BIN)/python bench/gateway/bench_gateway.py $(ARGS)

.PHONY: bench-gateways
bench-gateways: $(STAMP) ## One gateway beside several, that tell each other of their requests and that do not (TRACE=path)
	$(BIN)/python bench/routing/bench_gateways.py $(if $(TRACE),--trace $(TRACE)) $(ARGS)

.PHONY: bench-memory
bench-memory: $(STAMP) ## The gateway's memory over a million requests of every kind (ARGS="--requests N")
	$(BIN)/python bench/gateway/bench_memory.py $(ARGS)

.PHONY: bench-streams
bench-streams: $(STAMP) ## What a chunk costs in the gateway, with the journal of continued streams and without
	$(BIN)/python bench/streams/bench_chunk_cost.py $(ARGS)

.PHONY: bench-spot
bench-spot: $(STAMP) ## Capacity policies on spot markets, simulated (SPOT=traces TRACE=requests)
	$(BIN)/python bench/spot/bench_spot.py $(if $(SPOT),--spot $(SPOT)) $(if $(TRACE),--trace $(TRACE)) $(ARGS)

.PHONY: bench-autoscaling
bench-autoscaling: $(STAMP) ## Autoscalers of peers beside Sheaf's, simulated (TRACE=path for a real trace)
	$(BIN)/python bench/autoscaling/bench_autoscaling.py $(if $(TRACE),--trace $(TRACE)) $(ARGS)

.PHONY: bench-simulator
bench-simulator: $(STAMP) ## The simulator against the emulator fleet in real time (on a quiet machine)
	$(BIN)/python bench/simulator/bench_simulator.py $(if $(TRACE),--trace $(TRACE)) $(ARGS)

.PHONY: bench-simulator-speed
bench-simulator-speed: $(STAMP) ## What a simulated request costs in processor time, over 8, 100 and 1,000 pods
	$(BIN)/python bench/simulator/bench_speed.py $(ARGS)

.PHONY: bench-operator
bench-operator: $(STAMP) ## The operator on a large fleet of pretended nodes and engines
	$(BIN)/python bench/operator/bench_scale.py $(ARGS)
