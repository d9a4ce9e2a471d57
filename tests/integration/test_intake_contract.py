"""One suite for two intakes: the real one on RabbitMQ, and the one in memory that the guarantee is tested with."""

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


class Held(ABC):
    """An intake that is held to the suite, and its queue."""

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


class InMemory(Held):
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


class OnRabbitMQ(Held):
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
async def _held(
    amqp_url: str | None, prefetch: int = 100, before_consuming: Callable[[], Awaitable[object]] = _at_once
) -> AsyncIterator[Held]:
    if amqp_url is None:
        async with _running(InMemory(prefetch, before_consuming)) as held:
            yield held
    else:
        async with Proxy.to(amqp_url) as proxy, await aio_pika.connect(amqp_url) as connection:
            await declare(connection, TOPOLOGY)
            channel = await connection.channel()
            async with _running(OnRabbitMQ(proxy, channel, prefetch, before_consuming)) as held:
                yield held


@asynccontextmanager
async def _running(held: Held) -> AsyncIterator[Held]:
    task = asyncio.create_task(held.intake.run())
    try:
        yield held
    finally:
        await end(task)


Hold = Callable[..., AbstractAsyncContextManager[Held]]


@pytest.fixture(params=["in memory", "on RabbitMQ"])
def hold(request: pytest.FixtureRequest, amqp_url: str) -> Hold:
    """Runs each intake in turn, with a queue that no other test uses."""
    return partial(_held, None if request.param == "in memory" else amqp_url)


def bodies(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.body.decode() for delivery in deliveries]


async def test_a_new_consumer_has_one_message_in_hand_until_one_is_settled(hold: Hold) -> None:
    """If it crashes the process, no other message was in hand, and none counts a failed delivery."""
    async with hold(prefetch=3) as held:
        await held.publish(*"abcdef")
        first = await held.intake.take(10)
        await held.left(5)
        assert (bodies(first), held.intake.in_hand) == (["a"], 1)
        await held.intake.acknowledge(first)
        assert bodies(await held.take(3)) == ["b", "c", "d"]
        await held.left(2)
        assert held.intake.in_hand == 3
        assert held.late == []


async def test_the_first_message_may_wait_for_its_reply(hold: Hold) -> None:
    """It proves the consumer, stays in hand, and does not count against the prefetch."""
    async with hold(prefetch=3) as held:
        await held.publish(*"abcdef")
        first = await held.intake.take(10)
        await held.intake.prove(first)
        rest = await held.take(3)
        assert bodies(rest) == ["b", "c", "d"]
        await held.left(2)
        assert held.intake.in_hand == 4
        await held.intake.acknowledge(rest[:2])
        assert bodies(await held.take(2)) == ["e", "f"]
        await held.intake.acknowledge(first)
        assert held.intake.in_hand == 3


async def test_the_prefetch_is_filled_up_as_messages_are_settled(hold: Hold) -> None:
    """Never more than the prefetch is in hand, and everything comes once, in the order published."""
    async with hold(prefetch=4) as held:
        await held.publish(*map(str, range(50)))
        taken: list[str] = []
        while len(taken) < 50:
            batch = await held.intake.take(3)
            assert held.intake.in_hand <= 4
            taken += bodies(batch)
            await held.intake.acknowledge(batch)
        assert taken == [str(number) for number in range(50)]
        assert held.intake.in_hand == 0
        await held.left(0)


async def test_a_suspect_does_not_prove_the_consumer(hold: Hold) -> None:
    """It may have crashed a worker twice. That it was settled says nothing about the next one, so that comes alone."""
    async with hold(prefetch=10) as held:
        await held.publish(*"abc")
        for attempts in range(SUSPICIOUS_FROM):
            [delivery] = await held.intake.take(10)
            assert (delivery.body, delivery.attempts) == (b"a", attempts)
            await held.lose()
        [suspect] = await held.intake.take(10)
        assert suspect.attempts == SUSPICIOUS_FROM
        await held.intake.prove([suspect])
        await held.intake.acknowledge([suspect])
        assert bodies(await held.intake.take(10)) == ["b"]
        await held.left(1)
        assert held.intake.in_hand == 1


async def test_acknowledging_out_of_order_leaves_the_others(hold: Hold) -> None:
    """Acknowledging the second of three messages must not acknowledge the first with it."""
    async with hold() as held:
        await held.prove()
        await held.publish(*"abc")
        taken = await held.take(3)
        await held.intake.acknowledge(taken[1:2])
        await held.intake.pause("store")
        assert await held.intake.requeue() == 2
        await held.intake.resume("store")
        for body in "ac":
            batch = await held.intake.take(1)
            assert bodies(batch) == [body]
            await held.intake.acknowledge(batch)
        await held.left(0)


async def test_nothing_comes_while_paused(hold: Hold) -> None:
    """What is in hand stays there and may be settled; new messages stay in the queue."""
    async with hold() as held:
        await held.prove()
        await held.publish(*"ab")
        taken = await held.take(2)
        await held.intake.pause("store")
        assert not held.intake.consuming
        assert held.intake.in_hand == 2
        await held.publish(*"cde")
        await held.intake.acknowledge(taken[:1])
        await held.intake.prove(taken)
        await held.left(3)
        assert (held.intake.in_hand, held.intake.take_waiting(10)) == (1, [])


async def test_consuming_goes_on_one_at_a_time_when_everybody_has_resumed(hold: Hold) -> None:
    """Though the consumer was proved before: nobody knows what comes next."""
    async with hold() as held:
        await held.prove()
        await held.intake.pause("store")
        await held.intake.pause("reply")
        await held.publish(*"abc")
        await held.intake.resume("store")
        assert not held.intake.consuming
        await held.left(3)
        await held.intake.resume("reply")
        first = await held.intake.take(10)
        await held.left(2)
        assert (bodies(first), held.intake.in_hand) == (["a"], 1)
        await held.intake.acknowledge(first)
        assert bodies(await held.take(2)) == ["b", "c"]


async def test_resuming_what_nobody_has_paused_changes_nothing(hold: Hold) -> None:
    """The consumer keeps its prefetch."""
    async with hold() as held:
        await held.prove()
        await held.intake.resume("store")
        await held.publish(*"abc")
        await held.in_hand(3)


async def test_what_is_requeued_comes_again_in_order(hold: Hold) -> None:
    """What was taken and what was still waiting, before what was published later; nothing stays behind."""
    async with hold() as held:
        await held.prove()
        await held.publish(*"abcde")
        await held.in_hand(5)
        await held.take(2)
        await held.intake.pause("store")
        assert await held.intake.requeue() == 5
        assert (held.intake.in_hand, held.intake.take_waiting(10)) == (0, [])
        assert await held.intake.requeue() == 0
        await held.publish("f")
        await held.left(6)
        await held.intake.resume("store")
        first = await held.intake.take(10)
        await held.intake.acknowledge(first)
        assert bodies(first + await held.take(5)) == list("abcdef")


async def test_what_is_requeued_for_suspects_comes_again_one_by_one(hold: Hold) -> None:
    """As many as went back. In bulk they would be requeued again for each suspect among them, which counts each time.

    The last suspects would pass for poison without ever having been tried.
    """
    async with hold() as held:
        await held.prove()
        await held.publish(*"abcdefgh")
        await held.in_hand(8)
        await held.intake.pause("suspect")
        assert await held.intake.requeue(one_by_one=True) == 8
        await held.intake.resume("suspect")
        for number, body in enumerate("abcdefgh", start=1):
            batch = await held.intake.take(10)
            await held.left(8 - number)
            assert (bodies(batch), held.intake.in_hand) == ([body], 1)
            await held.intake.prove(batch)
            await held.intake.acknowledge(batch)
        await held.publish(*"xyz")
        await held.in_hand(3)


async def test_without_suspects_what_is_requeued_comes_again_in_bulk(hold: Hold) -> None:
    """Once the first message of it is settled."""
    async with hold() as held:
        await held.prove()
        await held.publish(*"abcd")
        await held.in_hand(4)
        await held.intake.pause("store")
        assert await held.intake.requeue() == 4
        await held.intake.resume("store")
        await held.intake.acknowledge(await held.intake.take(10))
        await held.in_hand(3)


async def test_acknowledging_what_was_requeued_is_late_and_not_an_error(hold: Hold) -> None:
    """It comes again as another delivery, which alone can be settled."""
    async with hold() as held:
        await held.publish("a")
        old = await held.intake.take(1)
        await held.intake.pause("store")
        assert await held.intake.requeue() == 1
        await held.intake.acknowledge(old)
        assert held.late == [1]
        await held.intake.resume("store")
        new = await held.intake.take(1)
        await held.intake.acknowledge(old)
        assert (held.late, held.intake.in_hand) == ([1, 1], 1)
        await held.intake.acknowledge(new)
        assert (held.late, held.intake.in_hand) == ([1, 1], 0)
        await held.left(0)


async def test_acknowledging_after_the_connection_was_lost_is_late_and_not_an_error(hold: Hold) -> None:
    """Delivery tags are only valid on their channel: everything in hand comes again, the first message alone."""
    async with hold() as held:
        await held.prove()
        await held.publish(*"abc")
        await held.in_hand(3)
        taken = await held.take(2)
        await held.lose()
        assert (held.intake.in_hand, held.intake.consuming) == (0, False)
        await held.intake.acknowledge(taken)
        assert held.late == [2]
        await held.intake.wait_consuming()
        [first] = await held.intake.take(10)
        await held.left(2)
        assert (first.body, first.attempts, held.intake.in_hand) == (b"a", 1, 1)
        await held.intake.acknowledge([*taken, first])
        assert held.late == [2, 2]
        assert [(delivery.body, delivery.attempts) for delivery in await held.take(2)] == [(b"b", 1), (b"c", 1)]


async def test_what_a_lost_connection_has_delivered_does_not_prove_the_next(hold: Hold) -> None:
    """It says nothing about what the next one has in hand."""
    async with hold() as held:
        await held.prove()
        await held.publish(*"abc")
        taken = await held.take(3)
        await held.lose()
        assert bodies(await held.intake.take(10)) == ["a"]
        await held.intake.acknowledge(taken)
        await held.left(2)
        assert held.intake.in_hand == 1


async def test_a_connection_that_is_opened_while_paused_consumes_nothing(hold: Hold) -> None:
    """The outage that it paused for goes on."""
    opened: asyncio.Queue[None] = asyncio.Queue()
    async with hold(before_consuming=lambda: opened.put(None)) as held:
        await held.intake.wait_consuming()
        await opened.get()
        await held.intake.pause("store")
        await held.publish("a")
        await held.lose()
        await opened.get()
        await held.left(1)
        assert not held.intake.consuming
        await held.intake.resume("store")
        assert bodies(await held.intake.take(10)) == ["a"]


async def test_nothing_is_consumed_before_the_worker_is_ready(hold: Hold) -> None:
    """While the database is away no consumer is registered: restarts in an outage do not count as failed deliveries."""
    asked, ready = asyncio.Event(), asyncio.Event()

    async def before_consuming() -> None:
        asked.set()
        await ready.wait()

    async with hold(before_consuming=before_consuming) as held:
        await held.publish("a")
        await asked.wait()
        await held.left(1)
        assert not held.intake.consuming
        await held.intake.pause("store")
        await held.intake.resume("store")
        assert not held.intake.consuming
        ready.set()
        [delivery] = await held.intake.take(10)
        assert delivery.attempts == 0


async def test_stopping_takes_nothing_more(hold: Hold) -> None:
    """What was begun is settled, everything else is requeued, and what is published later stays in the queue."""
    async with hold() as held:
        await held.prove()
        await held.publish(*map(str, range(10)))
        await held.in_hand(10)
        begun = await held.take(4)
        await held.intake.stop()
        assert not held.intake.consuming
        assert await held.intake.take(10) == []
        await held.publish("later")
        await held.intake.acknowledge(begun)
        assert held.intake.in_hand == 6
        assert await held.intake.requeue() == 6
        await held.intake.resume("store")
        await held.left(7)
        assert (held.intake.in_hand, held.intake.consuming) == (0, False)


async def test_stopping_ends_a_wait_for_the_next_batch(hold: Hold) -> None:
    """An idle worker stops at once."""
    async with hold() as held:
        await held.intake.wait_consuming()
        waiting = asyncio.create_task(held.intake.take(10))
        await asyncio.sleep(0)
        await held.intake.stop()
        assert await waiting == []
