"""States of a broker in which the requests queue takes no consumer, or ends it. The worker and `check` name the queue."""

import asyncio
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from sandbox import RabbitMQ
from task_activity_log.cli.check import findings
from task_activity_log.rabbitmq import consumer
from task_activity_log.settings import load
from tests.asking import Connection
from tests.broker_control import consumer_timeout, on_raft, silenced
from tests.faults.conversation import TOPOLOGY, conversing, until
from tests.serving import serving

QUEUE = TOPOLOGY.requests_queue
NO_MAJORITY = f"not consuming: queue {QUEUE} takes no consumer: it has no leader, or no majority"
FAILED = (
    f"not consuming: queue {QUEUE} takes no consumer (INTERNAL_ERROR): it has no leader, or RabbitMQ cannot deliver its first"
    " message"
)


async def broken(amqp_url: str, database_url: str, broker: RabbitMQ) -> list[tuple[str, str]]:
    """What `check` calls broken."""
    urls = {
        "AMQP_URL": amqp_url,
        "DATABASE_URL": database_url,
        "MANAGEMENT_URL": broker.management_url,
        "HTTP_PORT": "0",
    }
    return [(one.what, one.found) for one in await findings(load(urls), patient=False) if one.verdict == "broken"]


async def test_a_requests_queue_without_a_leader_is_named(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, database_url: str
) -> None:
    """Its Raft process does not exist. When it is back, the worker consumes."""
    async with conversing(own_amqp_url) as talk:
        await on_raft(own_rabbitmq, own_amqp_url, QUEUE, "ra:stop_server(quorum_queues, Raft)")
        assert (f"queue {QUEUE}", "has no leader") in await broken(own_amqp_url, database_url, own_rabbitmq)
        async with serving(own_amqp_url, database_url, consuming=False) as service:
            await until(lambda: FAILED in service.status.not_ready())
            await on_raft(own_rabbitmq, own_amqp_url, QUEUE, "ra:restart_server(quorum_queues, Raft)")
            await service.wait_consuming()
            assert service.status.not_ready() == []
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]


async def test_a_requests_queue_that_does_not_answer_is_named(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without a majority. The worker tries again, and consumes when the queue answers."""
    monkeypatch.setattr(consumer, "_ANSWER_SECONDS", 1.0)
    async with conversing(own_amqp_url) as talk:
        async with silenced(own_rabbitmq, own_amqp_url, QUEUE):
            async with asyncio.timeout(60), serving(own_amqp_url, database_url, consuming=False) as service:
                await until(lambda: NO_MAJORITY in service.status.not_ready())
        async with serving(own_amqp_url, database_url):
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]


async def test_after_a_consumer_timeout_the_worker_consumes_again(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, database_url: str, admin: Connection
) -> None:
    """RabbitMQ 4.3 cancels the consumer, earlier releases close its channel. What waited is answered once the row is free."""
    identifier = uuid4()
    async with consumer_timeout(own_rabbitmq, own_amqp_url, 2000), conversing(own_amqp_url) as talk:
        with capture_logs() as events:
            async with serving(own_amqp_url, database_url):
                await talk.send(identifier)
                assert await talk.outcomes(1) == ["inserted"]
                async with admin.transaction():
                    await admin.execute("SELECT FROM task_activity_log WHERE id = $1 FOR UPDATE", identifier)
                    await talk.send(identifier, subject="late")
                    await until(lambda: [event for event in events if event["event"] == "broker_unavailable"] != [])
                assert (await talk.outcomes(1)) == ["updated"]
    [reason] = {event["reason"] for event in events if event["event"] == "broker_unavailable"}
    assert ("consumer timeout" if own_rabbitmq.version >= "4.3" else "acknowledgement on channel") in reason
