"""What a priority does, by the version of the broker: the table in docs/publishing.md."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import aio_pika
import aiormq

from sandbox import RabbitMQ
from task_activity_log.client import TaskActivityLog, TaskActivityLogClient, Upsert
from task_activity_log.rabbitmq.topology import Topology, declare
from task_activity_log.rabbitmq.version import number

TOPOLOGY = Topology()


async def delivered(amqp_url: str, count: int) -> list[str]:
    """The message_ids of what waits in the requests queue, in the order in which a consumer gets it."""
    found: list[str] = []
    complete = asyncio.Event()

    async def take(message: aiormq.abc.DeliveredMessage) -> None:
        found.append(str(message.header.properties.message_id))
        if len(found) == count:
            complete.set()

    async with await aiormq.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.basic_qos(prefetch_count=count)
        await channel.basic_consume(TOPOLOGY.requests_queue, take)
        async with asyncio.timeout(60):
            await complete.wait()
    return found


async def sent(amqp_url: str, priorities: Sequence[int | None]) -> list[str]:
    """What a consumer gets of one upsert for each of these priorities, sent in this order: the priorities and the places."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
    async with TaskActivityLogClient(amqp_url) as client:
        await client.send_many(
            Upsert.of(TaskActivityLog(id=uuid4()), message_id=f"{priority}/{place}", priority=priority)
            for place, priority in enumerate(priorities)
        )
    return await delivered(amqp_url, len(priorities))


async def test_a_priority_has_the_effect_that_is_documented(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    """None before 4.0, two levels until 4.2, 32 from 4.3 on; no priority is the same as 4."""
    found = [name.split("/")[0] for name in await sent(amqp_url, [0, 3, None, 4, 5, 31, 32, 255])]
    if number(rabbitmq.version) < (4, 0):
        assert found == ["0", "3", "None", "4", "5", "31", "32", "255"]
    elif number(rabbitmq.version) < (4, 3):
        high = [each for each in found if each in ("5", "31", "32", "255")]
        assert (high, [each for each in found if each not in high]) == (
            ["5", "31", "32", "255"],
            ["0", "3", "None", "4"],
        )
        assert sum(each in high for each in found[:6]) == 4  # two of three deliveries
    else:
        assert found == ["31", "32", "255", "5", "None", "4", "3", "0"]


async def test_single_upserts_come_before_a_bulk_that_was_sent_earlier(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    """With the priorities that are documented. What has the same priority stays in its order."""
    single, bulk = (5, None) if number(rabbitmq.version) < (4, 3) else (None, 2)
    found = await sent(amqp_url, [bulk] * 60 + [single] * 3)
    singles = [f"{single}/{place}" for place in (60, 61, 62)]
    assert [name for name in found if name in singles] == singles
    assert [name for name in found if name not in singles] == [f"{bulk}/{place}" for place in range(60)]
    last = max(found.index(name) for name in singles)
    if number(rabbitmq.version) < (4, 0):
        assert last == 62
    else:
        assert last < 6
