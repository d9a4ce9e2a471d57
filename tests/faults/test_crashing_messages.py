"""A message that kills the process: it is found and set aside, and takes no other with it."""

import asyncio
from contextlib import suppress
from uuid import UUID

import aio_pika
import pytest

from task_activity_log.message import Delivery
from task_activity_log.pipeline import worker
from task_activity_log.pipeline.request import Request, Rules, decode
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.service import Service
from task_activity_log.settings import load
from tests.asking import Connection
from tests.faults.conversation import TOPOLOGY, conversing

OTHERS = 1000


class Killed(Exception):
    """The end of a process, in its place: its connections are gone, and nothing of what it had in hand is settled."""


class Colony:
    """Workers that are started again when they end."""

    def __init__(self, amqp_url: str, database_url: str) -> None:
        self._variables = {
            "AMQP_URL": amqp_url,
            "DATABASE_URL": database_url,
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": "0",
            "WORKER_BATCH_MAX": "50",
        }
        self._services: dict[int, Service] = {}
        self._stopping = False
        self.deaths = 0

    async def live(self, number: int) -> None:
        """One of them, over all its lives."""
        while not self._stopping:
            self._services[number] = service = Service(load(self._variables))
            with suppress(ExceptionGroup):
                await service.run()
                return
            self.deaths += 1

    def drain(self) -> None:
        """End them all in good order."""
        self._stopping = True
        for service in self._services.values():
            service.drain()


@pytest.mark.parametrize("workers", [1, 3])
async def test_a_killer_at_the_head_takes_nobody_with_it(
    amqp_url: str, database_url: str, admin: Connection, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """It comes before a thousand others: all of them are stored, and of the killer there is one dead letter."""
    killer = UUID(int=1)

    def deadly(delivery: Delivery, rules: Rules) -> Request[Delivery]:
        request = decode(delivery, rules)
        if request.record.id == killer:
            raise Killed
        return request

    monkeypatch.setattr(worker, "decode", deadly)
    async with conversing(amqp_url) as talk:
        await talk.send(killer)
        await asyncio.gather(*(talk.send() for _ in range(OTHERS)))
        colony = Colony(amqp_url, database_url)
        living = [asyncio.create_task(colony.live(number)) for number in range(workers)]
        outcomes = await talk.outcomes(OTHERS + 1, seconds=100)
        colony.drain()
        await asyncio.gather(*living)
        assert outcomes == ["inserted"] * OTHERS + ["rejected"]
        # From ten deliveries on it is not tried. Before RabbitMQ 4.3 one that a busy worker of several gave back, to have
        # it alone, counts as a delivery too.
        assert colony.deaths == 10 if workers == 1 else 3 <= colony.deaths <= 10
        assert [message.headers["x-error-code"] for message in await talk.kept()] == ["poison_message"]
    assert await admin.fetchval("SELECT count(*) FROM task_activity_log") == OTHERS


@pytest.mark.parametrize("workers", [1, 3])
async def test_workers_that_die_with_full_hands_make_no_poison(
    amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Three deaths, of nothing in the messages: many are suspects then, and all are stored."""
    deaths = 0

    def mortal(delivery: Delivery, rules: Rules) -> Request[Delivery]:
        nonlocal deaths
        assert isinstance(delivery, RabbitDelivery)
        if deaths < 3 and delivery.consumer.in_hand > 20:
            deaths += 1
            raise Killed
        return decode(delivery, rules)

    monkeypatch.setattr(worker, "decode", mortal)
    async with conversing(amqp_url) as talk:
        await asyncio.gather(*(talk.send() for _ in range(OTHERS // 2)))
        colony = Colony(amqp_url, database_url)
        living = [asyncio.create_task(colony.live(number)) for number in range(workers)]
        outcomes = await talk.outcomes(OTHERS // 2, seconds=100)
        colony.drain()
        await asyncio.gather(*living)
        assert deaths == 3
        assert set(outcomes) <= {"inserted", "duplicate"}
        assert await talk.kept() == []


async def test_a_count_that_a_publisher_made_up_counts_for_nothing(amqp_url: str, database_url: str) -> None:
    """A shovel copies the header x-delivery-count of another queue: the message is as good as any."""
    async with conversing(amqp_url) as talk:
        exchange = await talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
        message = aio_pika.Message(b'{"id": "%s"}' % str(UUID(int=2)).encode(), headers={"x-delivery-count": 15})
        await exchange.publish(message, "upsert")
        colony = Colony(amqp_url, database_url)
        living = asyncio.create_task(colony.live(0))
        assert await talk.outcomes(1) == ["inserted"]
        colony.drain()
        await living
