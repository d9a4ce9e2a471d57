# Everything below sets itself up: it takes Python 3.11 or newer, make, and a network the first time.

PYTHON := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup demo run test check format bench sandbox lock clean

help:  ## show what there is
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup:
	@.ci/setup

demo: setup  ## see it work: publish three messages, read the replies (about 20 seconds)
	@$(PYTHON) -m sandbox.demo

run: setup  ## run the worker against a private RabbitMQ and PostgreSQL until Ctrl-C
	@$(PYTHON) -m sandbox -- sh -c '.venv/bin/task-activity-log migrate && exec .venv/bin/task-activity-log run'

test: setup  ## run all tests, against real services
	@$(PYTHON) -m pytest -n 2 $(ARGS)

check: setup  ## lint, format, types, architecture, locks
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(PYTHON) -m importlinter
	$(PYTHON) .ci/lock.py --check

format: setup  ## format the code and mend what can be mended
	@$(PYTHON) -m ruff check --fix
	@$(PYTHON) -m ruff format

bench: setup  ## measure throughput and latency
	@$(PYTHON) -m sandbox -- $(PYTHON) -m benchmarks $(ARGS)

sandbox: setup  ## start a private RabbitMQ and PostgreSQL and keep them until Ctrl-C
	@$(PYTHON) -m sandbox

lock: setup  ## resolve the dependencies anew into requirements.lock and requirements-dev.lock
	@$(PYTHON) .ci/lock.py

clean:  ## remove what was built and cached, the environment too
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
