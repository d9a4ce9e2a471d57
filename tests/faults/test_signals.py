"""SIGTERM and SIGKILL in each state that the process can be in."""

import asyncio
import signal

import pytest

from sandbox.proxy import Proxy
from tests.acceptance.test_process import running
from tests.asking import Connection
from tests.faults.conversation import conversing
from tests.serving import serving

COUNT = 300


@pytest.mark.parametrize("state", ["busy", "holding", "reconnecting", "killed"])
async def test_a_signal_in_each_state_loses_nothing(
    amqp_url: str, database_url: str, admin: Connection, state: str
) -> None:
    """After SIGTERM, when it exits with 0 within the drain limit, or SIGKILL, the next worker answers what is left."""
    async with Proxy.to(amqp_url) as broker, Proxy.to(database_url) as database, conversing(amqp_url) as talk:
        variables = {
            "AMQP_URL": broker.url,
            "DATABASE_URL": database.url,
            "WORKER_BATCH_MAX": "10",
            "WORKER_DRAIN_LIMIT_SECONDS": "8",
        }
        async with running(variables) as process:
            await process.ready()
            sent = {await talk.send() for _ in range(COUNT)}
            outcomes = await talk.outcomes(1)
            if state == "holding":
                database.refuse()
                database.cut()
                await process.event("holding")
            elif state == "reconnecting":
                broker.refuse()
                broker.cut()
                await process.event("broker_unavailable")
            if state == "killed":
                assert await process.end(signal.SIGKILL) == -signal.SIGKILL
            else:
                assert await process.end() == 0
        missing = sent
        async with serving(amqp_url, database_url), asyncio.timeout(60):
            while len(missing) > 1:  # all but the message whose reply was read above
                answer = await talk.answers.get()
                missing = missing - {str(answer.correlation_id)}
                outcomes.append(str(answer.headers["x-outcome"]))
        if state == "busy":
            assert outcomes == ["inserted"] * COUNT
        assert set(outcomes) <= {"inserted", "duplicate"}
    assert await admin.fetchval("SELECT count(*) FROM task_activity_log") == COUNT
