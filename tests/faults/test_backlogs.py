"""Backlogs of long messages: what is in hand is bounded in bytes, and nothing else suffers from that."""

import asyncio
import time
from typing import Any
from uuid import uuid4

import aio_pika
import asyncpg

from sandbox.proxy import Proxy
from task_activity_log.service import Service
from tests.faults.conversation import TOPOLOGY, Conversation, conversing, until
from tests.serving import serving

LIMIT = 32 * 2**20
SETTINGS: dict[str, Any] = {"WORKER_MEMORY_LIMIT_BYTES": str(LIMIT), "WORKER_AMQP_HEARTBEAT_SECONDS": "1"}
BODY = 200_000
HALF = LIMIT // 2 // BODY
"""How many bodies are half of the memory."""


async def publish(talk: Conversation, *bodies: bytes) -> None:
    exchange = await talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
    messages = [aio_pika.Message(body, message_id=str(uuid4())) for body in bodies]
    await asyncio.gather(*(exchange.publish(message, "upsert", mandatory=True) for message in messages))


def long(size: int = BODY) -> bytes:
    return f'{{"id":"{uuid4()}","subject":"{"a" * size}"}}'.encode()


def lost_connections(service: Service) -> float:
    samples = [sample for metric in service.metrics.registry.collect() for sample in metric.samples]
    return sum(s.value for s in samples if s.name == "task_activity_log_connections_lost_total")


async def test_an_outage_under_a_backlog_of_long_messages(amqp_url: str, database_url: str) -> None:
    """The connection is not read for several heartbeats, and neither side takes the other for dead."""
    async with Proxy.to(database_url) as database, conversing(amqp_url) as talk:
        async with serving(amqp_url, database.url, **SETTINGS) as service:
            await talk.send()
            await talk.outcomes(1)
            database.hold()
            for _ in range(4):
                await publish(talk, *(long() for _ in range(HALF // 2)))
            await until(lambda: service.in_hand >= HALF * 3 // 4)
            began = time.monotonic()
            await until(lambda: time.monotonic() - began > 8)
            assert service.in_hand <= HALF + 2
            assert service.status.not_alive() == []
            database.resume()
            # A statement that was given up when the outage began may have been committed: then its requests are duplicates.
            outcomes = await talk.outcomes(HALF // 2 * 4)
            assert set(outcomes) <= {"inserted", "duplicate"}
            rows = await asyncpg.connect(database_url)
            assert await rows.fetchval("SELECT count(*) FROM task_activity_log") == len(outcomes) + 1
            await rows.close()
            await until(lambda: service.in_hand == 0)
            assert lost_connections(service) == 0


async def test_messages_above_the_memory_are_rejected_one_by_one(amqp_url: str, database_url: str) -> None:
    """Each is longer than all that may be in hand. Those behind them are answered, and the copies are whole."""
    bodies = [long(LIMIT // 4 + 1_000) for _ in range(3)]  # RabbitMQ 4 takes at most 16 MiB
    async with conversing(amqp_url) as talk:
        await publish(talk, bodies[0], b'{"id":"%s"}' % str(uuid4()).encode(), *bodies[1:])
        settings = SETTINGS | {"WORKER_MEMORY_LIMIT_BYTES": str(LIMIT // 2)}
        async with serving(amqp_url, database_url, **settings) as service:
            assert await talk.outcomes(4) == ["inserted"] + ["rejected"] * 3
            await until(lambda: service.in_hand == 0)
            assert lost_connections(service) == 0
        kept = await talk.kept()
        assert sorted(message.body for message in kept) == sorted(bodies)
        assert {message.headers["x-error-code"] for message in kept} == {"body_too_large"}
