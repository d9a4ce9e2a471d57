"""Forty-five seconds of `make chaos`: the promises hold on real services under random faults."""

import os
import secrets

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

    The seed is a new one each time; CHAOS_SEED repeats one.
    """
    seed = int(os.environ.get("CHAOS_SEED", secrets.randbelow(10_000)))
    plan = Plan(seconds=45, seed=seed, workers=2, versions=True, rate=40, gap_seconds=1)
    result = run(plan, own_rabbitmq, own_postgresql, Journal(quiet=True))
    assert result.figures["sent"] > 100, "hardly anything happened"
    assert sum(result.journal.faults.values()) >= 5, "hardly anything went wrong"
    assert not result.failures, report(plan, result)
