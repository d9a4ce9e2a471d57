"""A message that crashes the worker is found and rejected, and no other message is rejected because of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import aio_pika
import pytest

from task_activity_log.aio import end
from task_activity_log.message import Delivery
from task_activity_log.pipeline import batches
from task_activity_log.pipeline.request import Request, Rules, decode
from task_activity_log.pipeline.suspects import SUSPECT_FROM
from task_activity_log.pipeline.trials import CRASHES_MAX
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.service import Service
from task_activity_log.settings import load
from tests import audit_trigger
from tests.asking import Connection
from tests.faults.conversation import SINGLE_ACTIVE, TOPOLOGY, conversing
from tests.numbered import backlog

OTHERS = 1000


class Crash(Exception):
    """Stands for the crash of a process: its connections are lost, and none of its deliveries is settled."""


class Fleet:
    """Workers that are started again when they crash."""

    def __init__(self, amqp_url: str, database_url: str, **variables: str) -> None:
        self._variables = {
            "AMQP_URL": amqp_url,
            "DATABASE_URL": database_url,
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": "0",
            "WORKER_BATCH_MAX": "50",
            **variables,
        }
        self._services: dict[int, Service] = {}
        self._stopping = False
        self.crashes = 0

    async def run(self, number: int) -> None:
        """Run one of the workers, and start it again after each crash."""
        while not self._stopping:
            self._services[number] = service = Service(load(self._variables))
            with suppress(ExceptionGroup):
                await service.run()
                return
            self.crashes += 1

    def drain(self) -> None:
        """Drain all workers."""
        self._stopping = True
        for service in self._services.values():
            service.drain()


@pytest.mark.parametrize("workers", [1, 3])
async def test_a_message_that_crashes_the_worker_is_rejected_alone(
    amqp_url: str, database_url: str, admin: Connection, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """It is ahead of a thousand other messages: all of them are stored, and it becomes the only dead letter."""
    crashing = UUID(int=1)

    def crash_on_it(delivery: Delivery, rules: Rules) -> Request[Delivery]:
        request = decode(delivery, rules)
        if request.record.id == crashing:
            raise Crash
        return request

    monkeypatch.setattr(batches, "decode", crash_on_it)
    async with conversing(amqp_url) as talk:
        await talk.send(crashing)
        await asyncio.gather(*(talk.send() for _ in range(OTHERS)))
        fleet = Fleet(amqp_url, database_url)
        running = [asyncio.create_task(fleet.run(number)) for number in range(workers)]
        outcomes = await talk.outcomes(OTHERS + 1, seconds=100)
        fleet.drain()
        await asyncio.gather(*running)
        assert outcomes == ["inserted"] * OTHERS + ["rejected"]
        # After ten deliveries it is rejected without being decoded. A busy worker requeues it, to take it again alone;
        # that counts as a delivery, so with several workers there may be fewer crashes.
        assert fleet.crashes == 10 if workers == 1 else 3 <= fleet.crashes <= 10
        assert [message.headers["x-error-code"] for message in await talk.kept()] == ["poison_message"]
    assert await admin.fetchval("SELECT count(*) FROM task_activity_log") == OTHERS


async def test_messages_that_crash_a_single_active_worker_are_rejected_alone(
    amqp_url: str, database_url: str, admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything stays in hand with them, to keep the order, so that all have the same attempts. Only what crashes workers
    while it is tried alone is rejected."""
    crashing = {UUID(int=1), UUID(int=2)}

    def crash_on_them(delivery: Delivery, rules: Rules) -> Request[Delivery]:
        request = decode(delivery, rules)
        if request.record.id in crashing:
            raise Crash
        return request

    monkeypatch.setattr(batches, "decode", crash_on_them)
    await audit_trigger.install(admin)
    talking = conversing(amqp_url, answers=False, topology=SINGLE_ACTIVE)
    async with backlog(amqp_url, records=10) as sent, talking as talk:
        await sent.send(30)
        await talk.send(UUID(int=1))
        await sent.send(30)
        await talk.send(UUID(int=2))
        await sent.send(340)
        fleet = Fleet(amqp_url, database_url, WORKER_SINGLE_ACTIVE_CONSUMER="true")
        running = [asyncio.create_task(fleet.run(number)) for number in range(2)]
        async with asyncio.timeout(100):
            while await sent.dead_letters() < 2 or await sent.answered() < 402:
                await asyncio.sleep(0.05)
        fleet.drain()
        await asyncio.gather(*running)
        # The first one crashes ten workers. The second one has come as often, and is tried three times.
        assert fleet.crashes == 10 + CRASHES_MAX
        assert [message.headers["x-error-code"] for message in await talk.kept()] == ["poison_message"] * 2
        assert await sent.disorder(admin) == []


@pytest.mark.parametrize("workers", [1, 3])
async def test_crashes_without_a_guilty_message_reject_no_message(
    amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Workers crash three times with many messages in hand. Many were delivered several times, and all are stored."""
    crashes = 0

    def crash_three_times(delivery: Delivery, rules: Rules) -> Request[Delivery]:
        nonlocal crashes
        assert isinstance(delivery, RabbitDelivery)
        if crashes < 3 and delivery.consumer.in_hand > 20:
            crashes += 1
            raise Crash
        return decode(delivery, rules)

    monkeypatch.setattr(batches, "decode", crash_three_times)
    async with conversing(amqp_url) as talk:
        await asyncio.gather(*(talk.send() for _ in range(OTHERS // 2)))
        fleet = Fleet(amqp_url, database_url)
        running = [asyncio.create_task(fleet.run(number)) for number in range(workers)]
        outcomes = await talk.outcomes(OTHERS // 2, seconds=100)
        fleet.drain()
        await asyncio.gather(*running)
        assert crashes == 3
        assert set(outcomes) <= {"inserted", "duplicate"}
        assert await talk.kept() == []


async def test_a_message_that_was_returned_in_good_order_is_never_rejected(amqp_url: str, database_url: str) -> None:
    """However often: each return counts as a delivery, as hand-overs, outages and drains do."""
    async with conversing(amqp_url, topology=SINGLE_ACTIVE) as talk:
        await talk.send()
        intake = Intake(LinkOptions(amqp_url), SINGLE_ACTIVE, prefetch=4, batch_max=1)
        running = asyncio.create_task(intake.run())
        for attempts in range(15):
            taken = await intake.take(1)
            assert taken is not None
            assert [delivery.attempts for delivery in taken] == [attempts]
            await intake.requeue()
        await end(running)
        fleet = Fleet(amqp_url, database_url, WORKER_SINGLE_ACTIVE_CONSUMER="true")
        worker = asyncio.create_task(fleet.run(0))
        assert await talk.outcomes(1) == ["inserted"]
        assert await talk.kept() == []
        fleet.drain()
        await worker


async def test_competing_workers_store_together_what_was_returned_often(amqp_url: str, database_url: str) -> None:
    """Without a single active consumer outages and rolling updates make no suspects either: nothing is taken one by one."""
    async with conversing(amqp_url) as talk:
        await asyncio.gather(*(talk.send() for _ in range(OTHERS // 2)))
        for _ in range(SUSPECT_FROM - 1):
            async with handing(amqp_url, OTHERS // 2) as intake:
                await intake.requeue()
        settings = {"WORKER_BATCH_MAX": "50", "HTTP_HOST": "127.0.0.1", "HTTP_PORT": "0"}
        service = Service(load({"AMQP_URL": amqp_url, "DATABASE_URL": database_url, **settings}))
        worker = asyncio.create_task(service.run())
        assert await talk.outcomes(OTHERS // 2, seconds=100) == ["inserted"] * (OTHERS // 2)
        service.drain()
        await worker
        value = service.metrics.registry.get_sample_value
        assert value("task_activity_log_suspects_total") == 0
        # The first one comes alone, and proves the consumer.
        assert (value("task_activity_log_batch_size_count") or 0) < OTHERS // 10
        assert await talk.kept() == []


@asynccontextmanager
async def handing(amqp_url: str, count: int) -> AsyncIterator[Intake]:
    """An intake with `count` messages in hand. It has the pace of a single active consumer: it need not be proved."""
    intake = Intake(LinkOptions(amqp_url), SINGLE_ACTIVE, prefetch=count, batch_max=1, declare_topology=False)
    running = asyncio.create_task(intake.run())
    async with asyncio.timeout(60):
        while intake.waiting < count:
            await asyncio.sleep(0.01)
    yield intake
    await end(running)


async def test_a_delivery_count_that_a_publisher_sends_is_ignored(amqp_url: str, database_url: str) -> None:
    """A shovel copies the header x-delivery-count from another queue; the message is treated like any other."""
    async with conversing(amqp_url) as talk:
        exchange = await talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
        message = aio_pika.Message(b'{"id": "%s"}' % str(UUID(int=2)).encode(), headers={"x-delivery-count": 15})
        await exchange.publish(message, "upsert")
        fleet = Fleet(amqp_url, database_url)
        running = asyncio.create_task(fleet.run(0))
        assert await talk.outcomes(1) == ["inserted"]
        fleet.drain()
        await running
