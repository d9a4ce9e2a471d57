"""Questions to the broker while the connection is not read: their answers cannot arrive, and that is no failure."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest

from task_activity_log.aio import Waiting
from task_activity_log.message import Properties
from task_activity_log.rabbitmq import channel as channel_module
from task_activity_log.rabbitmq import consumer as consumer_module
from task_activity_log.rabbitmq.channel import answered
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.headers import encode
from task_activity_log.rabbitmq.weight import Budget
from tests import virtual_time

HEADER = encode(Properties(), 0)


class Channel:
    """A channel whose answers come when a test says so."""

    number = 1

    def __init__(self) -> None:
        self.on_consumer_cancel_callbacks: set[Any] = set()
        self.asked: list[asyncio.Future[None]] = []
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connection = SimpleNamespace(write_queue=asyncio.Queue[Any]())

    async def basic_qos(self, prefetch_count: int) -> None:
        assert prefetch_count == 10
        self.asked.append(asyncio.get_running_loop().create_future())
        await self.asked[-1]


class Bench:
    """A consumer that may have 10,000 bytes in hand."""

    def __init__(self) -> None:
        self.channel = Channel()
        self.consumer = Consumer(cast("Any", self.channel), "queue", Waiting[RabbitDelivery](), budget=Budget(10_000))
        self.consumer._registered_as, self.consumer.prefetch = "tag", 10

    def deliver(self, tag: int, size: int) -> None:
        self.consumer.deliver(tag, False, HEADER, b"x" * size)


def run(act: Callable[[Bench], Any]) -> None:
    async def main() -> None:
        await act(Bench())

    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time(), time=lambda: 0.0)
    with (
        patch.object(consumer_module, "time", clock),
        patch.object(channel_module, "time", clock),
    ):
        virtual_time.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


class TestSynchronize:
    """It returns when the broker has read what was sent."""

    def test_the_answer_is_waited_for(self) -> None:
        """However long others take to read it, as long as deliveries arrive."""

        async def act(bench: Bench) -> None:
            asking = asyncio.create_task(bench.consumer.synchronize())
            for tag in range(1, 6):
                await asyncio.sleep(8)
                bench.deliver(tag, 1)
            assert not asking.done()
            bench.channel.asked[0].set_result(None)
            await asking

        run(act)

    def test_while_the_connection_is_not_read_a_moment_is_enough(self) -> None:
        """The answer is behind deliveries for which there is no room. It is not asked again before that answer is there."""

        async def act(bench: Bench) -> None:
            bench.deliver(1, 9_000)
            for _ in range(3):
                before = now()
                await bench.consumer.synchronize()
                assert now() - before == pytest.approx(0.1)
                await asyncio.sleep(60)
            assert len(bench.channel.asked) == 1
            bench.consumer._unsettled.clear()
            bench.channel.asked[0].set_result(None)
            asking = asyncio.create_task(bench.consumer.synchronize())
            await asyncio.sleep(1)
            assert not asking.done()
            bench.channel.asked[1].set_result(None)
            await asking

        run(act)

    def test_a_broker_that_does_not_answer_is_given_up(self) -> None:
        """If nothing arrives for ten seconds although the connection is read."""

        async def act(bench: Bench) -> None:
            bench.deliver(1, 1)
            with pytest.raises(TimeoutError):
                await bench.consumer.synchronize()
            assert 10 < now() < 11
            with pytest.raises(ConnectionError, match="did not answer in time"):
                await bench.consumer.wait_ended()

        run(act)


class TestAnswered:
    """The broker's answer is waited for while the connection is read, and not counted while it is not."""

    def test_the_time_while_the_connection_is_not_read_does_not_count(self) -> None:
        """Other partitions may have all the room. The channel of one that is handed over is closed later then."""

        async def act(_: Bench) -> None:
            read_from = 300.0
            asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            asking = asyncio.create_task(answered(asked, 3.0, lambda: max(0.0, now() - read_from)))
            await asyncio.sleep(read_from + 2)
            asked.set_result("closed")
            assert await asking == "closed"

        run(act)

    def test_a_broker_that_does_not_answer_is_given_up(self) -> None:
        """When the connection was read for that long."""

        async def act(_: Bench) -> None:
            asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            with pytest.raises(TimeoutError):
                await answered(asked, 3.0, lambda: 100.0)
            assert 3 < now() < 4
            assert asked.cancelled()

        run(act)

    def test_a_channel_is_closed_although_the_connection_is_not_read_for_long(self) -> None:
        """What the other consumers have in hand may take minutes. Giving up would lose all of it."""

        async def act(bench: Bench) -> None:
            bench.consumer._read_seconds = lambda: 0.0
            bench.deliver(1, 1)
            closing = asyncio.create_task(bench.consumer.close())
            await asyncio.sleep(60)
            assert not closing.done()
            bench.channel.closing.set_result(None)
            assert await closing == 1

        run(act)
