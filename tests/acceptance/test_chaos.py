"""Forty-five seconds of `make chaos`: the promises hold on real services under random faults."""

import os

import pytest

from sandbox import PostgreSQL, RabbitMQ
from tests.chaos.__main__ import report
from tests.chaos.plan import Journal, Plan
from tests.chaos.run import run


# The driver's finalizer warns about connections of a killed broker. They are the publishers', not the worker's.
@pytest.mark.filterwarnings("ignore:coroutine 'Connection.close':RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(420)  # 45 s of faults, then at most three minutes to process the remaining messages
def test_every_message_is_accounted_for(own_rabbitmq: RabbitMQ, own_postgresql: PostgreSQL) -> None:
    """With two workers, each message is answered or dead-lettered and applied once, and the newest versions win.

    CHAOS_SEED is the seed; tests/conftest.py chooses one if it is not set, and the head of the run's output names it.
    """
    plan = Plan(seconds=45, seed=int(os.environ["CHAOS_SEED"]), workers=2, versions=True, rate=40, gap_seconds=1)
    result = run(plan, own_rabbitmq, own_postgresql, Journal(quiet=True))
    assert result.figures["sent"] > 100, f"hardly anything happened: {report(plan, result)}"
    assert sum(result.journal.faults.values()) >= 5, f"hardly anything went wrong: {report(plan, result)}"
    assert not result.failures, report(plan, result)
