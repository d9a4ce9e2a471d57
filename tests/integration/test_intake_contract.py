"""One suite for two intakes: the real one on RabbitMQ, and the one in memory that the guarantee test uses."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol

import aio_pika
import pytest

from sandbox.proxy import Proxy
from task_activity_log.aio import end
from task_activity_log.message import Delivery
from task_activity_log.pipeline.ports import Intake as IntakePort
from task_activity_log.pipeline.suspects import SUSPICIOUS_FROM
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.topology import REQUEST_KEY, Topology, declare
from tests.memory_broker import MemoryBroker, MemoryIntake

TOPOLOGY = Topology()


class AnyIntake(IntakePort[Any], Protocol):
    """What both intakes have."""

    @property
    def consuming(self) -> bool: ...
    async def wait_consuming(self) -> None: ...
    async def stop(self) -> None: ...
    async def run(self) -> None: ...


class Bench(ABC):
    """An intake under test, and its queue."""

    intake: AnyIntake

    def __init__(self) -> None:
        self.late: list[int] = []

    @abstractmethod
    async def publish(self, *bodies: str) -> None:
        """Return once all are in the queue."""

    @abstractmethod
    async def count(self) -> int:
        """How many messages are in the queue and in nobody's hand."""

    @abstractmethod
    async def lose(self) -> None:
        """Cut the connection; return once the intake has noticed."""

    async def left(self, count: int) -> None:
        """Return once that many messages are in the queue: a quorum queue counts some milliseconds behind."""
        async with asyncio.timeout(60):
            while await self.count() != count:
                await asyncio.sleep(0)

    async def in_hand(self, count: int) -> None:
        """Return once that many deliveries have come."""
        async with asyncio.timeout(60):
            while self.intake.in_hand != count:
                await asyncio.sleep(0)

    async def take(self, count: int) -> list[Delivery]:
        """The next deliveries, however they are batched."""
        taken: list[Delivery] = []
        while len(taken) < count:
            taken += await self.intake.take(count - len(taken))
        return taken

    async def prove(self) -> None:
        """Settle one harmless message: from then on the consumer has its full prefetch."""
        await self.publish("first")
        await self.intake.acknowledge(await self.intake.take(1))


class InMemory(Bench):
    def __init__(self, prefetch: int, before_consuming: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._broker = MemoryBroker(lambda _: None, by_position=False)
        self.intake = self._memory = MemoryIntake(self._broker, prefetch, before_consuming, self.late.append)

    async def publish(self, *bodies: str) -> None:
        for body in bodies:
            self._broker.publish(Delivery(body.encode()))

    async def count(self) -> int:
        return self._broker.ready

    async def lose(self) -> None:
        self._memory.lose()


class OnRabbitMQ(Bench):
    def __init__(
        self,
        proxy: Proxy,
        channel: aio_pika.abc.AbstractChannel,
        prefetch: int,
        before_consuming: Callable[[], Awaitable[object]],
    ) -> None:
        super().__init__()
        self._proxy = proxy
        self._channel = channel
        self._lost = asyncio.Event()
        self.intake = Intake(
            LinkOptions(proxy.url),
            TOPOLOGY,
            prefetch=prefetch,
            before_consuming=before_consuming,
            on_lost=self._lost.set,
            on_late=self.late.append,
        )

    async def publish(self, *bodies: str) -> None:
        exchange = await self._channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
        for body in bodies:
            await exchange.publish(aio_pika.Message(body.encode()), REQUEST_KEY)

    async def count(self) -> int:
        queue = await self._channel.declare_queue(TOPOLOGY.requests_queue, passive=True)
        return queue.declaration_result.message_count or 0

    async def lose(self) -> None:
        self._lost.clear()
        self._proxy.cut()
        await self._lost.wait()


async def _at_once() -> None:
    pass


@asynccontextmanager
async def _start(
    amqp_url: str | None, prefetch: int = 100, before_consuming: Callable[[], Awaitable[object]] = _at_once
) -> AsyncIterator[Bench]:
    if amqp_url is None:
        async with _running(InMemory(prefetch, before_consuming)) as bench:
            yield bench
    else:
        async with Proxy.to(amqp_url) as proxy, await aio_pika.connect(amqp_url) as connection:
            await declare(connection, TOPOLOGY)
            channel = await connection.channel()
            async with _running(OnRabbitMQ(proxy, channel, prefetch, before_consuming)) as bench:
                yield bench


@asynccontextmanager
async def _running(bench: Bench) -> AsyncIterator[Bench]:
    task = asyncio.create_task(bench.intake.run())
    try:
        yield bench
    finally:
        await end(task)


Start = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture(params=["in memory", "on RabbitMQ"])
def start(request: pytest.FixtureRequest, amqp_url: str) -> Start:
    """Starts an intake, in memory or on RabbitMQ, with a queue that no other test uses."""
    return partial(_start, None if request.param == "in memory" else amqp_url)


def bodies(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.body.decode() for delivery in deliveries]


async def test_a_new_consumer_has_one_message_in_hand_until_one_is_settled(start: Start) -> None:
    """If it crashes the process, no other message was in hand, and none counts a failed delivery."""
    async with start(prefetch=3) as bench:
        await bench.publish(*"abcdef")
        first = await bench.intake.take(10)
        await bench.left(5)
        assert (bodies(first), bench.intake.in_hand) == (["a"], 1)
        await bench.intake.acknowledge(first)
        assert bodies(await bench.take(3)) == ["b", "c", "d"]
        await bench.left(2)
        assert bench.intake.in_hand == 3
        assert bench.late == []


async def test_the_first_message_may_wait_for_its_reply(start: Start) -> None:
    """It proves the consumer, stays in hand, and does not count against the prefetch."""
    async with start(prefetch=3) as bench:
        await bench.publish(*"abcdef")
        first = await bench.intake.take(10)
        await bench.intake.prove(first)
        rest = await bench.take(3)
        assert bodies(rest) == ["b", "c", "d"]
        await bench.left(2)
        assert bench.intake.in_hand == 4
        await bench.intake.acknowledge(rest[:2])
        assert bodies(await bench.take(2)) == ["e", "f"]
        await bench.intake.acknowledge(first)
        assert bench.intake.in_hand == 3


async def test_the_prefetch_is_filled_up_as_messages_are_settled(start: Start) -> None:
    """Never more than the prefetch is in hand, and everything comes once, in the order published."""
    async with start(prefetch=4) as bench:
        await bench.publish(*map(str, range(50)))
        taken: list[str] = []
        while len(taken) < 50:
            batch = await bench.intake.take(3)
            assert bench.intake.in_hand <= 4
            taken += bodies(batch)
            await bench.intake.acknowledge(batch)
        assert taken == [str(number) for number in range(50)]
        assert bench.intake.in_hand == 0
        await bench.left(0)


async def test_a_suspect_does_not_prove_the_consumer(start: Start) -> None:
    """It may have crashed a worker twice. That it was settled says nothing about the next one, so that comes alone."""
    async with start(prefetch=10) as bench:
        await bench.publish(*"abc")
        for attempts in range(SUSPICIOUS_FROM):
            [delivery] = await bench.intake.take(10)
            assert (delivery.body, delivery.attempts) == (b"a", attempts)
            await bench.lose()
        [suspect] = await bench.intake.take(10)
        assert suspect.attempts == SUSPICIOUS_FROM
        await bench.intake.acknowledge([suspect])
        assert bodies(await bench.intake.take(10)) == ["b"]
        await bench.left(1)
        assert bench.intake.in_hand == 1


async def test_a_suspect_that_stays_in_hand_does_not_keep_others_out(start: Start) -> None:
    """It was processed, but cannot be acknowledged yet: its row is locked. Others would wait for that lock, too."""
    async with start(prefetch=10) as bench:
        await bench.publish(*"abc")
        for _ in range(SUSPICIOUS_FROM):
            await bench.intake.take(10)
            await bench.lose()
        [suspect] = await bench.intake.take(10)
        assert suspect.attempts == SUSPICIOUS_FROM
        await bench.intake.prove([suspect])
        assert bodies(await bench.take(2)) == ["b", "c"]
        assert bench.intake.has(suspect)
        await bench.intake.acknowledge([suspect])
        assert not bench.intake.has(suspect)


async def test_acknowledging_out_of_order_leaves_the_others(start: Start) -> None:
    """Acknowledging the second of three messages must not acknowledge the first with it."""
    async with start() as bench:
        await bench.prove()
        await bench.publish(*"abc")
        taken = await bench.take(3)
        await bench.intake.acknowledge(taken[1:2])
        await bench.intake.pause("store")
        assert await bench.intake.requeue() == 2
        await bench.intake.resume("store")
        for body in "ac":
            batch = await bench.intake.take(1)
            assert bodies(batch) == [body]
            await bench.intake.acknowledge(batch)
        await bench.left(0)


async def test_nothing_comes_while_paused(start: Start) -> None:
    """What is in hand stays there and may be settled; new messages stay in the queue."""
    async with start() as bench:
        await bench.prove()
        await bench.publish(*"ab")
        taken = await bench.take(2)
        await bench.intake.pause("store")
        assert not bench.intake.consuming
        assert bench.intake.in_hand == 2
        await bench.publish(*"cde")
        await bench.intake.acknowledge(taken[:1])
        await bench.intake.prove(taken)
        await bench.left(3)
        assert (bench.intake.in_hand, bench.intake.take_waiting(10)) == (1, [])


async def test_consuming_goes_on_one_at_a_time_when_everybody_has_resumed(start: Start) -> None:
    """Though the consumer was proved before: nobody knows what comes next."""
    async with start() as bench:
        await bench.prove()
        await bench.intake.pause("store")
        await bench.intake.pause("reply")
        await bench.publish(*"abc")
        await bench.intake.resume("store")
        assert not bench.intake.consuming
        await bench.left(3)
        await bench.intake.resume("reply")
        first = await bench.intake.take(10)
        await bench.left(2)
        assert (bodies(first), bench.intake.in_hand) == (["a"], 1)
        await bench.intake.acknowledge(first)
        assert bodies(await bench.take(2)) == ["b", "c"]


async def test_resuming_what_nobody_has_paused_changes_nothing(start: Start) -> None:
    """The consumer keeps its prefetch."""
    async with start() as bench:
        await bench.prove()
        await bench.intake.resume("store")
        await bench.publish(*"abc")
        await bench.in_hand(3)


async def test_what_is_requeued_comes_again_in_order(start: Start) -> None:
    """What was taken and what was still waiting, before what was published later; nothing stays behind."""
    async with start() as bench:
        await bench.prove()
        await bench.publish(*"abcde")
        await bench.in_hand(5)
        await bench.take(2)
        await bench.intake.pause("store")
        assert await bench.intake.requeue() == 5
        assert (bench.intake.in_hand, bench.intake.take_waiting(10)) == (0, [])
        assert await bench.intake.requeue() == 0
        await bench.publish("f")
        await bench.left(6)
        await bench.intake.resume("store")
        first = await bench.intake.take(10)
        await bench.intake.acknowledge(first)
        assert bodies(first + await bench.take(5)) == list("abcdef")


async def test_what_is_requeued_for_suspects_comes_again_one_by_one(start: Start) -> None:
    """As many as went back. In bulk they would be requeued again for each suspect among them, which counts each time.

    The last suspects would pass for poison without ever having been tried.
    """
    async with start() as bench:
        await bench.prove()
        await bench.publish(*"abcdefgh")
        await bench.in_hand(8)
        await bench.intake.pause("suspect")
        assert await bench.intake.requeue(one_by_one=True) == 8
        await bench.intake.resume("suspect")
        for number, body in enumerate("abcdefgh", start=1):
            batch = await bench.intake.take(10)
            await bench.left(8 - number)
            assert (bodies(batch), bench.intake.in_hand) == ([body], 1)
            await bench.intake.prove(batch)
            await bench.intake.acknowledge(batch)
        await bench.publish(*"xyz")
        await bench.in_hand(3)


async def test_without_suspects_what_is_requeued_comes_again_in_bulk(start: Start) -> None:
    """Once the first message of it is settled."""
    async with start() as bench:
        await bench.prove()
        await bench.publish(*"abcd")
        await bench.in_hand(4)
        await bench.intake.pause("store")
        assert await bench.intake.requeue() == 4
        await bench.intake.resume("store")
        await bench.intake.acknowledge(await bench.intake.take(10))
        await bench.in_hand(3)


async def test_acknowledging_what_was_requeued_is_late_and_not_an_error(start: Start) -> None:
    """It comes again as another delivery, which alone can be settled."""
    async with start() as bench:
        await bench.publish("a")
        old = await bench.intake.take(1)
        await bench.intake.pause("store")
        assert await bench.intake.requeue() == 1
        await bench.intake.acknowledge(old)
        assert bench.late == [1]
        await bench.intake.resume("store")
        new = await bench.intake.take(1)
        await bench.intake.acknowledge(old)
        assert (bench.late, bench.intake.in_hand) == ([1, 1], 1)
        await bench.intake.acknowledge(new)
        assert (bench.late, bench.intake.in_hand) == ([1, 1], 0)
        await bench.left(0)


async def test_acknowledging_after_the_connection_was_lost_is_late_and_not_an_error(start: Start) -> None:
    """Delivery tags are only valid on their channel: everything in hand comes again, the first message alone."""
    async with start() as bench:
        await bench.prove()
        await bench.publish(*"abc")
        await bench.in_hand(3)
        taken = await bench.take(2)
        await bench.lose()
        assert (bench.intake.in_hand, bench.intake.consuming) == (0, False)
        await bench.intake.acknowledge(taken)
        assert bench.late == [2]
        await bench.intake.wait_consuming()
        [first] = await bench.intake.take(10)
        await bench.left(2)
        assert (first.body, first.attempts, bench.intake.in_hand) == (b"a", 1, 1)
        await bench.intake.acknowledge([*taken, first])
        assert bench.late == [2, 2]
        assert [(delivery.body, delivery.attempts) for delivery in await bench.take(2)] == [(b"b", 1), (b"c", 1)]


async def test_what_a_lost_connection_has_delivered_does_not_prove_the_next(start: Start) -> None:
    """It says nothing about what the next one has in hand."""
    async with start() as bench:
        await bench.prove()
        await bench.publish(*"abc")
        taken = await bench.take(3)
        await bench.lose()
        assert bodies(await bench.intake.take(10)) == ["a"]
        await bench.intake.acknowledge(taken)
        await bench.left(2)
        assert bench.intake.in_hand == 1


async def test_a_connection_that_is_opened_while_paused_consumes_nothing(start: Start) -> None:
    """The outage that it paused for goes on."""
    opened: asyncio.Queue[None] = asyncio.Queue()
    async with start(before_consuming=lambda: opened.put(None)) as bench:
        await bench.intake.wait_consuming()
        await opened.get()
        await bench.intake.pause("store")
        await bench.publish("a")
        await bench.lose()
        await opened.get()
        await bench.left(1)
        assert not bench.intake.consuming
        await bench.intake.resume("store")
        assert bodies(await bench.intake.take(10)) == ["a"]


async def test_nothing_is_consumed_before_the_worker_is_ready(start: Start) -> None:
    """While the database is away no consumer is registered: restarts in an outage do not count as failed deliveries."""
    asked, ready = asyncio.Event(), asyncio.Event()

    async def before_consuming() -> None:
        asked.set()
        await ready.wait()

    async with start(before_consuming=before_consuming) as bench:
        await bench.publish("a")
        await asked.wait()
        await bench.left(1)
        assert not bench.intake.consuming
        await bench.intake.pause("store")
        await bench.intake.resume("store")
        assert not bench.intake.consuming
        ready.set()
        [delivery] = await bench.intake.take(10)
        assert delivery.attempts == 0


async def test_stopping_takes_nothing_more(start: Start) -> None:
    """What was begun is settled, everything else is requeued, and what is published later stays in the queue."""
    async with start() as bench:
        await bench.prove()
        await bench.publish(*map(str, range(10)))
        await bench.in_hand(10)
        begun = await bench.take(4)
        await bench.intake.stop()
        assert not bench.intake.consuming
        assert await bench.intake.take(10) == []
        await bench.publish("later")
        await bench.intake.acknowledge(begun)
        assert bench.intake.in_hand == 6
        assert await bench.intake.requeue() == 6
        await bench.intake.resume("store")
        await bench.left(7)
        assert (bench.intake.in_hand, bench.intake.consuming) == (0, False)


async def test_stopping_ends_a_wait_for_the_next_batch(start: Start) -> None:
    """An idle worker stops at once."""
    async with start() as bench:
        await bench.intake.wait_consuming()
        waiting = asyncio.create_task(bench.intake.take(10))
        await asyncio.sleep(0)
        await bench.intake.stop()
        assert await waiting == []
