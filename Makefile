# Every target sets up what it needs: that takes Python 3.11 or newer, make, and a network the first time.

# Where it is set, each of some hundred processes of the tests would compile the sources.
unexport PYTHONDONTWRITEBYTECODE

PYTHON := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup demo console run test test-dotnet test-tls test-failover test-cluster test-examples test-deploy test-browser screenshot test-image check format bench bench-quick bench-profile bench-stages bench-wire chaos fuzz docs sandbox lock dist clean

help:  ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup:
	@.ci/setup

demo: setup  ## try it: publish three messages, and read the replies and the dead letter (about 20 seconds)
	@$(PYTHON) -m sandbox.demo

console: setup  ## run the web console with 300 dead letters, a worker and a load until Ctrl-C, and print its URL
	@$(PYTHON) -m sandbox.console

run: setup  ## run the worker with a private RabbitMQ and PostgreSQL until Ctrl-C
	@$(PYTHON) -m sandbox.run

# Most tests wait for services and not for a processor: five at a time on any machine. They are given out two by two,
# or one process would have most of the slow ones.
test: setup  ## run the tests on real services, without the groups below, which need tools of their own
	@$(PYTHON) -m pytest -n 5 --maxschedchunk=2 $(ARGS)

test-dotnet: setup  ## test with real .NET serializers (needs Mono; the message says what to install)
	@$(PYTHON) -m pytest -m dotnet $(ARGS)

test-tls: setup  ## test mutual TLS (needs the binaries of RabbitMQ and PostgreSQL)
	@$(PYTHON) -m pytest -m tls $(ARGS)

test-failover: setup  ## test PostgreSQL's replication and failover (needs its binaries)
	@$(PYTHON) -m pytest -m failover $(ARGS)

test-cluster: setup  ## test RabbitMQ clusters: nodes that die, partitions, full disks, failover (needs root)
	@$(PYTHON) -m pytest -m cluster $(ARGS)

test-examples: setup  ## run the examples of the documentation (needs Node.js and npm)
	@$(PYTHON) -m pytest -m examples $(ARGS)

test-deploy: setup  ## ask a Prometheus every query of the dashboard and the alerts (needs Prometheus, installs it if it may)
	@$(PYTHON) -m pytest -m deploy $(ARGS)

test-browser: setup  ## look at every page of the console with Chromium (installs it if it may); SCREENSHOTS=DIR keeps screenshots
	@$(PYTHON) -m pytest -m "" tests/browser $(ARGS)

screenshot: setup  ## make docs/console.png with the tests
	@SCREENSHOTS=docs $(PYTHON) -m pytest -m browser -k readme tests/browser

test-image: setup  ## build the container image and run it next to real services (needs Docker)
	@$(PYTHON) -m pytest -m image $(ARGS)

check: setup  ## check style, types, architecture, locks, generated files, manifests, alerts and workflows
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	$(PYTHON) -m tools.words
	$(PYTHON) -m tools.links
	$(PYTHON) -m tools.lock --check
	$(PYTHON) -m tools.audit
	$(PYTHON) -m tools.settings_table --check
	$(PYTHON) -m tools.telemetry_tables --check
	$(PYTHON) -m tools.contract_files --check
	$(PYTHON) -m tools.prometheus_rule --check
	$(PYTHON) -m tools.partition_manifests --check
	$(PYTHON) -m tools.runbook_rows --check
	$(PYTHON) -m tools.deploy_check
	$(PYTHON) -m tools.workflow_check

format: setup  ## format the code, and fix what ruff can fix
	@$(PYTHON) -m ruff check --fix
	@$(PYTHON) -m ruff format

bench: setup  ## compare the speed of the worker with other programs (an hour; ARGS=drain for one scenario, ARGS=--help)
	@$(PYTHON) -m sandbox -- sh -c '.venv/bin/task-activity-log migrate && exec $(PYTHON) -m benchmarks $(ARGS)'

bench-quick: setup  ## one short round of drain, latency and publish (under two minutes)
	@$(PYTHON) -m sandbox -- sh -c '.venv/bin/task-activity-log migrate && exec $(PYTHON) -m benchmarks --quick $(ARGS)'

bench-profile: setup  ## show where the CPU time of the worker goes while it drains a queue
	@$(PYTHON) -m sandbox -- sh -c '.venv/bin/task-activity-log migrate && exec $(PYTHON) -m benchmarks.profiling $(ARGS)'

bench-stages: setup  ## measure the CPU time of each stage of the worker, without services
	@$(PYTHON) -m benchmarks.stages

bench-wire: setup  ## compare decoding and encoding with pydantic alone
	@$(PYTHON) -m benchmarks.wire

chaos: setup  ## account for every message under random faults; SECONDS (60), SEED (random), WORKERS, more in ARGS (--no-outages, --order, …)
	@$(PYTHON) -m tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

fuzz: setup  ## try 20 times as many examples as the tests do, and fuzz the decoders (installs atheris: Python 3.12 or older)
	@EXAMPLES_TIMES=20 $(PYTHON) -m pytest -n 2 --timeout 3600 $$(grep -rlE '^from hypothesis' tests/unit --include='test_*.py')
	@$(PYTHON) -m pip --disable-pip-version-check -q install atheris
	@$(PYTHON) -m tests.fuzz.wire json -runs=1000000
	@$(PYTHON) -m tests.fuzz.wire xml -runs=1000000

docs: setup  ## write the generated files and tables
	@$(PYTHON) -m tools.settings_table
	@$(PYTHON) -m tools.telemetry_tables
	@$(PYTHON) -m tools.contract_files
	@$(PYTHON) -m tools.prometheus_rule
	@$(PYTHON) -m tools.partition_manifests
	@$(PYTHON) -m tools.runbook_rows

sandbox: setup  ## run a private RabbitMQ and PostgreSQL until Ctrl-C
	@$(PYTHON) -m sandbox

lock: setup  ## resolve the dependencies into the lock files (ARGS=--upgrade takes the newest versions)
	@$(PYTHON) -m tools.lock $(ARGS)

dist: setup  ## build wheel, sdist and SBOM into dist/, and check them
	@$(PYTHON) -m tools.dist

clean:  ## remove the environment, and what was built and cached
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
