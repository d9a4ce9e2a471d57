"""Half a minute of `make chaos`: the promises hold on real services under random faults."""

import os

import pytest

from sandbox import PostgreSQL, RabbitMQ
from tests.chaos.__main__ import report
from tests.chaos.plan import ASKERS, BODIES, ROWS, Journal, Plan
from tests.chaos.run import Result, run

SEED = int(os.environ["CHAOS_SEED"])
"""tests/conftest.py chooses one if it is not set, and the head of the run's output names it."""

pytestmark = pytest.mark.timeout(420)  # some twenty seconds of faults, then at most three to process what is left


def play(plan: Plan, broker: RabbitMQ, database: PostgreSQL) -> Result:
    """Run a plan, and see that something happened and that every message is accounted for."""
    result = run(plan, broker, database, Journal(quiet=True))
    assert result.figures["sent"] > 100, f"hardly anything happened: {report(plan, result)}"
    assert sum(result.journal.faults.values()) >= 3, f"hardly anything went wrong: {report(plan, result)}"
    assert not result.failures, report(plan, result)
    return result


def test_every_message_is_accounted_for(own_rabbitmq: RabbitMQ, own_postgresql: PostgreSQL) -> None:
    """With two workers, each message is answered or dead-lettered and applied once, and the newest versions win."""
    play(Plan(seconds=20, seed=SEED, workers=2, versions=True, rate=40, gap_seconds=1), own_rabbitmq, own_postgresql)


def test_nobody_waits_because_of_others(own_rabbitmq: RabbitMQ, own_postgresql: PostgreSQL) -> None:
    """Rows are locked, bodies cost much and replies cannot be placed; everybody else is answered within five seconds.

    The five seconds are those of a quiet machine (`tests.chaos.account`).
    """
    # Without slow rows: to find one takes a second, and several in a row would leave nothing of the five on a busy machine.
    hostile = (ROWS, BODIES, ASKERS)
    plan = Plan(seconds=12, seed=SEED, workers=2, versions=True, rate=30, gap_seconds=1, outages=False, hostile=hostile)
    result = play(plan, own_rabbitmq, own_postgresql)
    assert result.figures["innocent messages whose answers were timed"] > 100
