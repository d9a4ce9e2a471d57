"""One suite for two intakes: the real one on RabbitMQ, and the one in memory that the guarantee is tested with."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import chain
from typing import Any, Protocol

import aio_pika
import pytest

from sandbox.proxy import Proxy
from task_activity_log.aio import end
from task_activity_log.message import Delivery
from task_activity_log.pipeline.ports import Intake as IntakePort
from task_activity_log.pipeline.suspects import SUSPECT_FROM
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.topology import REQUEST_KEY, Topology, declare
from tests.memory_broker import MemoryBroker, MemoryIntake
from tests.returned import make_suspicious

TOPOLOGY = Topology()
BATCH_MAX = 16


class AnyIntake(IntakePort[Any], Protocol):
    """What both intakes have."""

    @property
    def consuming(self) -> bool: ...
    @property
    def waiting(self) -> int: ...
    async def wait_consuming(self) -> None: ...
    async def stop(self, finish_seconds: float = 0.0) -> None: ...
    async def run(self) -> None: ...


class Held(ABC):
    """An intake that is held to the suite, and its queue."""

    intake: AnyIntake
    stand_by: AnyIntake
    """Another one for the same queue. It does not run before a test starts it."""

    def __init__(self) -> None:
        self.late: list[int] = []
        self._running: asyncio.Task[None] | None = None

    @abstractmethod
    async def publish(self, *bodies: str) -> None:
        """Return once all are in the queue."""

    @abstractmethod
    async def count(self) -> int:
        """How many messages are in the queue and in nobody's hand."""

    @abstractmethod
    async def return_some(self, before: int, count: int, times: int) -> None:
        """Have the first `before` messages delivered and returned once, and the `count` behind them that many times."""

    @abstractmethod
    async def lose(self) -> None:
        """Cut the connection; return once the intake has noticed."""

    def start(self) -> None:
        """Let the intake run, until the end of the test."""
        self._running = asyncio.create_task(self.intake.run())

    async def end(self) -> None:
        """End what `start` has started."""
        if self._running is not None:
            await end(self._running)

    async def left(self, count: int) -> None:
        """Return once that many messages are in the queue: a quorum queue counts some milliseconds behind."""
        async with asyncio.timeout(60):
            while await self.count() != count:
                await asyncio.sleep(0)

    async def all_arrived(self) -> None:
        """Return once everything has come that the broker sends because of what it was sent so far."""
        await self.intake.synchronize()  # its channel has handed the acknowledgements on to the queue,
        await self.count()  # the queue has given the channel what it had room for,
        await self.intake.synchronize()  # and the channel has sent that

    async def in_hand(self, count: int) -> None:
        """Return once that many deliveries have come."""
        async with asyncio.timeout(60):
            while self.intake.in_hand != count:
                await asyncio.sleep(0)

    async def take(self, count: int) -> list[Delivery]:
        """The next deliveries, however they are batched."""
        taken: list[Delivery] = []
        while len(taken) < count:
            taken += await self.batch(count - len(taken))
        return taken

    async def batch(self, most: int = 10) -> list[Delivery]:
        """The next batch, which is there, and may be empty."""
        batch = await self.intake.take(most)
        assert batch is not None
        return batch

    async def prove(self) -> None:
        """Settle one harmless message: from then on the consumer has its full prefetch."""
        await self.publish("first")
        await self.intake.acknowledge(await self.batch(1))


class InMemory(Held):
    def __init__(self, prefetch: int, single_active: bool, before_consuming: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._broker = MemoryBroker(lambda _: None, by_position=False, single_active=single_active)
        self.intake = self._memory = MemoryIntake(self._broker, prefetch, BATCH_MAX, before_consuming, self.late.append)
        self.stand_by = MemoryIntake(self._broker, prefetch, BATCH_MAX, before_consuming)

    async def publish(self, *bodies: str) -> None:
        for body in bodies:
            self._broker.publish(Delivery(body.encode()))

    async def count(self) -> int:
        return self._broker.ready

    async def return_some(self, before: int, count: int, times: int) -> None:
        self._broker.return_some([1] * before + [times] * count)

    async def lose(self) -> None:
        self._memory.lose()


class OnRabbitMQ(Held):
    def __init__(
        self,
        amqp_url: str,
        proxy: Proxy,
        channel: aio_pika.abc.AbstractChannel,
        topology: Topology,
        prefetch: int,
        before_consuming: Callable[[], Awaitable[object]],
    ) -> None:
        super().__init__()
        self._amqp_url = amqp_url
        self._proxy = proxy
        self._channel = channel
        self._lost = asyncio.Event()
        self.intake = Intake(
            LinkOptions(proxy.url),
            topology,
            prefetch=prefetch,
            batch_max=BATCH_MAX,
            before_consuming=before_consuming,
            on_lost=self._lost.set,
            on_late=self.late.append,
        )
        self.stand_by = Intake(LinkOptions(amqp_url), topology, prefetch=prefetch, batch_max=BATCH_MAX)

    async def publish(self, *bodies: str) -> None:
        exchange = await self._channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
        for body in bodies:
            await exchange.publish(aio_pika.Message(body.encode()), REQUEST_KEY)

    async def count(self) -> int:
        queue = await self._channel.declare_queue(TOPOLOGY.requests_queue, passive=True)
        return queue.declaration_result.message_count or 0

    async def return_some(self, before: int, count: int, times: int) -> None:
        await make_suspicious(self._amqp_url, before, count, times)

    async def lose(self) -> None:
        self._lost.clear()
        self._proxy.cut()
        await self._lost.wait()


async def _at_once() -> None:
    pass


@asynccontextmanager
async def _held(
    amqp_url: str | None,
    prefetch: int = 100,
    before_consuming: Callable[[], Awaitable[object]] = _at_once,
    *,
    single_active: bool = False,
    started: bool = True,
) -> AsyncIterator[Held]:
    if amqp_url is None:
        async with _ending(InMemory(prefetch, single_active, before_consuming), started=started) as held:
            yield held
    else:
        topology = Topology(single_active_consumer=single_active)
        async with Proxy.to(amqp_url) as proxy, await aio_pika.connect(amqp_url) as connection:
            await declare(connection, topology)
            channel = await connection.channel()
            on_rabbitmq = OnRabbitMQ(amqp_url, proxy, channel, topology, prefetch, before_consuming)
            async with _ending(on_rabbitmq, started=started) as held:
                yield held


@asynccontextmanager
async def _ending(held: Held, *, started: bool) -> AsyncIterator[Held]:
    if started:
        held.start()
    try:
        yield held
    finally:
        await held.end()


@asynccontextmanager
async def _running(intake: AnyIntake) -> AsyncIterator[None]:
    task = asyncio.create_task(intake.run())
    try:
        yield
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
        first = await held.batch(10)
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
        first = await held.batch(10)
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
            batch = await held.batch(3)
            assert held.intake.in_hand <= 4
            taken += bodies(batch)
            await held.intake.acknowledge(batch)
        assert taken == [str(number) for number in range(50)]
        assert held.intake.in_hand == 0
        await held.left(0)


async def test_a_suspect_does_not_prove_the_consumer(hold: Hold) -> None:
    """It may have crashed workers. That it was settled says nothing about the next one, so that comes alone."""
    async with hold(prefetch=10) as held:
        await held.publish(*"abc")
        for attempts in range(SUSPECT_FROM):
            [delivery] = await held.batch(10)
            assert (delivery.body, delivery.attempts) == (b"a", attempts)
            await held.lose()
        [suspect] = await held.batch(10)
        assert suspect.attempts == SUSPECT_FROM
        await held.intake.prove([suspect])
        await held.intake.acknowledge([suspect])
        assert bodies(await held.batch(10)) == ["b"]
        await held.left(1)
        assert held.intake.in_hand == 1


@pytest.mark.parametrize("single_active", [False, True])
async def test_a_suspect_whose_connection_is_lost_is_not_set_apart(hold: Hold, single_active: bool) -> None:
    """While the worker looked for its marks, or finished what was before it. It comes again, through another consumer."""
    async with hold(single_active=single_active) as held:
        await held.publish("a")
        lost = await held.batch(1)
        await held.lose()
        assert not held.intake.set_apart(lost)
        assert bodies(await held.batch(1)) == ["a"]


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
            batch = await held.batch(1)
            assert bodies(batch) == [body]
            await held.intake.acknowledge(batch)
        await held.left(0)


async def test_nothing_is_taken_while_paused(hold: Hold) -> None:
    """What is in hand may be settled. The broker sends nothing in its place, and the rest is returned in order."""
    async with hold(prefetch=3) as held:
        await held.prove()
        await held.publish(*"abcdef")
        taken = await held.take(2)
        await held.in_hand(3)
        await held.intake.pause("store")
        assert not held.intake.consuming
        nothing = asyncio.create_task(held.intake.take(10))
        await held.intake.acknowledge(taken[:1])
        await held.intake.prove(taken)
        await held.all_arrived()
        await held.left(3)
        assert held.intake.in_hand == 2
        assert await held.intake.requeue() == 2
        await held.left(5)
        assert not nothing.done()
        await held.intake.resume("store")
        assert bodies(await nothing or []) == ["b"]
        assert held.late == []


async def test_a_pause_without_a_return_ends_as_if_it_had_not_been(hold: Hold) -> None:
    """The acknowledgements that were kept back are sent, and the broker sends others in their place."""
    async with hold(prefetch=3) as held:
        await held.prove()
        await held.publish(*"abcdef")
        taken = await held.take(3)
        await held.intake.pause("store")
        await held.intake.acknowledge(taken)
        await held.intake.resume("store")
        assert bodies(await held.take(3)) == ["d", "e", "f"]
        assert held.intake.in_hand == 3


async def test_consuming_goes_on_one_at_a_time_when_everybody_has_resumed(hold: Hold) -> None:
    """Though the consumer was proved before: nobody knows what comes next."""
    async with hold() as held:
        await held.prove()
        await held.intake.pause("store")
        await held.intake.pause("reply")
        assert await held.intake.requeue() == 0
        await held.publish(*"abc")
        await held.intake.resume("store")
        assert not held.intake.consuming
        await held.left(3)
        await held.intake.resume("reply")
        first = await held.batch()
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
        assert (held.intake.in_hand, held.intake.waiting) == (0, 0)
        assert await held.intake.requeue() == 0
        await held.publish("f")
        await held.left(6)
        await held.intake.resume("store")
        first = await held.batch(10)
        await held.intake.acknowledge(first)
        assert bodies(first + await held.take(5)) == list("abcdef")


async def test_suspects_with_others_in_hand_are_returned_and_come_again_one_by_one(hold: Hold) -> None:
    """As many as went back. In bulk they would be requeued again for each suspect among them, which counts each time.

    The last suspects would pass for poison without ever having been tried.
    """
    async with hold(started=False) as held:
        await held.publish(*"abcdefghijkl")
        await held.return_some(before=2, count=4, times=SUSPECT_FROM)
        held.start()
        first = await held.batch()
        await held.intake.acknowledge(first)
        await held.in_hand(11)
        first += await held.batch()
        assert bodies(first) == ["a", "b"]
        assert await held.batch() == []
        await held.intake.acknowledge(first[1:])
        await held.intake.renew()
        for number, body in enumerate("cdefghijkl", start=1):
            batch = await held.batch()
            await held.left(10 - number)
            assert (bodies(batch), held.intake.in_hand) == ([body], 1)
            await held.intake.prove(batch)
            await held.intake.acknowledge(batch)
        await held.publish(*"xyz")
        await held.in_hand(3)
        assert held.late == []


async def test_a_single_active_consumer_gives_whole_batches_whatever_was_returned_before(hold: Hold) -> None:
    """Hand-overs, drains and lost connections count as attempts. Marks of crashes divide a batch after it was taken."""
    async with hold(single_active=True, started=False) as held:
        await held.publish(*(f"{number:02}" for number in range(40)))
        await held.return_some(before=20, count=20, times=SUSPECT_FROM)
        held.start()
        await held.in_hand(40)
        batches = [bodies(await held.batch(BATCH_MAX)) for _ in range(3)]
        assert [len(batch) for batch in batches] == [BATCH_MAX, BATCH_MAX, 40 - 2 * BATCH_MAX]
        assert list(chain(*batches)) == [f"{number:02}" for number in range(40)]


async def test_without_suspects_what_is_requeued_comes_again_in_bulk(hold: Hold) -> None:
    """Once the first message of it is settled."""
    async with hold() as held:
        await held.prove()
        await held.publish(*"abcd")
        await held.in_hand(4)
        await held.intake.pause("store")
        assert await held.intake.requeue() == 4
        await held.intake.resume("store")
        await held.intake.acknowledge(await held.batch(10))
        await held.in_hand(3)


async def test_acknowledging_what_was_requeued_is_late_and_not_an_error(hold: Hold) -> None:
    """It comes again as another delivery, which alone can be settled."""
    async with hold() as held:
        await held.publish("a")
        old = await held.batch(1)
        await held.intake.pause("store")
        assert await held.intake.requeue() == 1
        await held.intake.acknowledge(old)
        assert held.late == [1]
        await held.intake.resume("store")
        new = await held.batch(1)
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
        [first] = await held.batch(10)
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
        assert bodies(await held.batch(10)) == ["a"]
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
        assert bodies(await held.batch(10)) == ["a"]


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
        [delivery] = await held.batch(10)
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
        assert await held.intake.take(10) is None
        await held.intake.acknowledge(begun)
        assert held.intake.in_hand == 6
        assert await held.intake.requeue() == 6
        await held.publish("later")
        await held.intake.resume("store")
        await held.left(7)
        assert (held.intake.in_hand, held.intake.consuming) == (0, False)
        assert held.late == []


async def test_after_stopping_the_rest_in_hand_is_taken(hold: Hold) -> None:
    """Nothing comes in place of what is finished, so it ends."""
    async with hold(prefetch=4) as held:
        await held.prove()
        await held.publish(*"abcdefghij")
        await held.in_hand(4)
        await held.intake.stop(finish_seconds=600)
        taken = []
        while batch := await held.intake.take(2):
            taken += bodies(batch)
            await held.intake.acknowledge(batch)
            await held.all_arrived()
        assert batch is None
        assert taken == ["a", "b", "c", "d"]
        assert await held.intake.requeue() == 0
        await held.left(6)


async def test_a_single_active_consumer_has_all_that_was_returned_in_hand(hold: Hold) -> None:
    """A quorum queue puts what is returned behind what was returned before. So its parts must not be returned apart."""
    async with hold(prefetch=6, single_active=True) as held:
        await held.publish(*"abcdefgh")
        for attempts in range(4):
            await held.in_hand(6)
            taken = await held.take(6)
            assert bodies(taken) == list("abcdef")
            assert {delivery.attempts for delivery in taken} == {attempts}
            await held.lose()
        await held.intake.acknowledge(await held.take(6))
        assert bodies(await held.take(2)) == ["g", "h"]


async def test_a_consumer_that_stands_by_is_given_everything_in_order(hold: Hold) -> None:
    """Nothing before the active one has ended, and then first what was returned, also what had arrived meanwhile."""
    async with hold(prefetch=5, single_active=True) as held:
        await held.publish(*map(str, range(20)))
        await held.in_hand(5)
        finished = await held.take(3)
        async with _running(held.stand_by):
            await held.stand_by.wait_consuming()
            await held.intake.acknowledge(finished[:1])
            await held.take(1)
            await held.in_hand(5)
            await held.intake.stop()
            await held.intake.acknowledge(finished[1:])
            assert held.stand_by.in_hand == 0
            assert await held.intake.requeue() == 3
            again: list[str] = []
            while len(again) < 17:
                batch = await held.stand_by.take(4)
                again += bodies(batch or [])
                await held.stand_by.acknowledge(batch or [])
            assert again == [str(number) for number in range(3, 20)]


async def test_stopping_ends_a_wait_for_the_next_batch(hold: Hold) -> None:
    """An idle worker stops at once."""
    async with hold() as held:
        await held.intake.wait_consuming()
        waiting = asyncio.create_task(held.intake.take(10))
        await asyncio.sleep(0)
        await held.intake.stop()
        assert await waiting is None
