"""Forty-five seconds of `make chaos`: what is promised, on real services under random faults."""

import os

import pytest

from sandbox import PostgreSQL, RabbitMQ
from tests.chaos.__main__ import report
from tests.chaos.plan import Journal, Plan
from tests.chaos.run import run


# The driver's finalizer, of a connection that a killed broker has left: it is the publishers', not the worker's.
@pytest.mark.filterwarnings("ignore:coroutine 'Connection.close':RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(420)  # 45 s of faults, then at most three minutes to work off what is left
def test_every_message_is_accounted_for(own_rabbitmq: RabbitMQ, own_postgresql: PostgreSQL) -> None:
    """Two workers: sent = answered + dead-lettered, each applied once, the newest versions win.

    CHAOS_SEED is the seed; tests/conftest.py chooses one if it is not set, and the head of the run's output names it.
    """
    plan = Plan(seconds=45, seed=int(os.environ["CHAOS_SEED"]), workers=2, versions=True, rate=40, gap_seconds=1)
    result = run(plan, own_rabbitmq, own_postgresql, Journal(quiet=True))
    assert result.figures["sent"] > 100, f"hardly anything happened: {report(plan, result)}"
    assert sum(result.journal.faults.values()) >= 5, f"hardly anything went wrong: {report(plan, result)}"
    assert not result.failures, report(plan, result)
