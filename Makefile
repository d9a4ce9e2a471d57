# Everything below sets itself up: it takes Python 3.11 or newer, make, and a network the first time.

PYTHON := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup demo run test test-dotnet test-tls test-examples test-deploy test-image check format bench bench-quick bench-stages bench-wire chaos fuzz docs sandbox lock clean

help:  ## show what there is
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

setup:
	@.ci/setup

demo: setup  ## see it work: publish three messages, read the replies (about 20 seconds)
	@$(PYTHON) -m sandbox.demo

run: setup  ## run the worker against a private RabbitMQ and PostgreSQL until Ctrl-C
	@$(PYTHON) -m sandbox -- sh -c '.venv/bin/task-activity-log migrate && exec .venv/bin/task-activity-log run'

test: setup  ## run all tests, against real services
	@$(PYTHON) -m pytest -n 2 $(ARGS)

test-dotnet: setup  ## let real .NET serializers write requests and read replies (needs Mono: see tests/dotnet/mono.py)
	@$(PYTHON) -m pytest tests/dotnet/interop.py $(ARGS)

test-tls: setup  ## speak mutual TLS with a RabbitMQ and a PostgreSQL of its own (needs their binaries)
	@$(PYTHON) -m pytest tests/tls/mutual.py $(ARGS)

test-examples: setup  ## run the examples of the documentation (needs Node and npm)
	@$(PYTHON) -m pytest tests/examples/examples.py $(ARGS)

test-deploy: setup  ## ask all queries of dashboard and alerts of a real Prometheus (installs it where it may)
	@$(PYTHON) -m pytest tests/deploy/observed.py $(ARGS)

test-image: setup  ## build the image and run it, locked up, beside real services (needs Docker)
	@$(PYTHON) -m pytest tests/deploy/image.py $(ARGS)

check: setup  ## lint, format, types, architecture, locks, generated documents, manifests, alerts
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	$(PYTHON) tools/lock.py --check
	$(PYTHON) tools/audit.py
	$(PYTHON) tools/settings_table.py --check
	$(PYTHON) tools/telemetry_tables.py --check
	$(PYTHON) tools/contract_files.py --check
	$(PYTHON) tools/deploy_check.py

format: setup  ## format the code and mend what can be mended
	@$(PYTHON) -m ruff check --fix
	@$(PYTHON) -m ruff format

bench: setup  ## measure the worker beside its peers, and how it grows (an hour; ARGS=drain for that alone, --help)
	@$(PYTHON) -m sandbox -- sh -c '.venv/bin/task-activity-log migrate && exec $(PYTHON) -m benchmarks $(ARGS)'

bench-quick: setup  ## the same in under two minutes: one short round of drain, latency and publish
	@$(PYTHON) -m sandbox -- sh -c '.venv/bin/task-activity-log migrate && exec $(PYTHON) -m benchmarks --quick $(ARGS)'

bench-stages: setup  ## measure the worker's CPU time stage by stage, without services
	@$(PYTHON) -m benchmarks.stages

bench-wire: setup  ## measure decoding and encoding against bare pydantic
	@$(PYTHON) -m benchmarks.wire

chaos: setup  ## kill, freeze and cut everything for SECONDS (60), from SEED (random), with WORKERS; more in ARGS (--order, …)
	@$(PYTHON) -m tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

fuzz: setup  ## fuzz the wire, a million inputs for each format (installs atheris, which wants Python up to 3.12)
	@$(PYTHON) -m pip --disable-pip-version-check -q install atheris
	@$(PYTHON) -m tests.fuzz.wire json -runs=1000000
	@$(PYTHON) -m tests.fuzz.wire xml -runs=1000000

docs: setup  ## write the generated parts of the documents
	@$(PYTHON) tools/settings_table.py
	@$(PYTHON) tools/telemetry_tables.py
	@$(PYTHON) tools/contract_files.py
	@$(PYTHON) tools/deploy_check.py --write

sandbox: setup  ## start a private RabbitMQ and PostgreSQL and keep them until Ctrl-C
	@$(PYTHON) -m sandbox

lock: setup  ## resolve the dependencies anew into requirements.lock and requirements-dev.lock
	@$(PYTHON) tools/lock.py

clean:  ## remove what was built and cached, the environment too
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
