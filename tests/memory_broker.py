"""A broker with one queue in memory, and an intake that consumes it.

The intake is paced by the product's own `Pace`. `tests/integration/test_intake_contract.py` runs one suite on it and on the
real intake.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from task_activity_log.aio import Waiting
from task_activity_log.message import Delivery
from task_activity_log.rabbitmq.pace import Pace, Register, Step

DELIVERY_LIMIT = 20


@dataclass(eq=False, slots=True)
class Queued:
    """A message in the queue or in hand."""

    message: Delivery
    position: int
    attempts: int = 0


@dataclass(slots=True, eq=False)
class Loan(Delivery):
    """One delivery of a message, as RabbitMQ tells it from others: a message that comes again has another tag."""

    queued: Queued = field(kw_only=True)
    channel: int = field(kw_only=True)
    """The number of its connection."""
    consumer: int = field(kw_only=True)
    """The number of the registration that it came by. Each has a prefetch of its own."""
    tag: int = field(kw_only=True)
    """Never used again by its intake."""


class MemoryBroker:
    """One queue.

    What is requeued comes again before what was never delivered. Quorum queues hand it out in the order requeued
    (`by_position=False`); with `by_position` it comes in the order published, which is also what quorum queues do as long
    as a consumer has everything that was requeued in hand before it is interrupted again.
    """

    def __init__(self, settled: Callable[[Delivery], None], *, by_position: bool) -> None:
        """`settled` is called with each message that is acknowledged, before it is gone."""
        self._settled = settled
        self._by_position = by_position
        self._ready: deque[Queued] = deque()
        self._requeued: deque[Queued] = deque()
        self._consumers: list[MemoryIntake] = []
        self._published = 0
        self.dead: list[Delivery] = []
        """What the broker itself has dead-lettered, above the delivery limit."""
        self.unsettled = 0

    @property
    def ready(self) -> int:
        """How many messages are in the queue and in nobody's hand."""
        return len(self._ready) + len(self._requeued)

    def publish(self, message: Delivery) -> None:
        self._published += 1
        self.unsettled += 1
        self._ready.append(Queued(message, self._published))
        self.dispatch()

    def consume(self, intake: "MemoryIntake") -> None:
        self._consumers.append(intake)
        self.dispatch()

    def cancel(self, intake: "MemoryIntake") -> None:
        if intake in self._consumers:
            self._consumers.remove(intake)

    def settle(self, queued: Queued) -> None:
        self._settled(queued.message)
        self.unsettled -= 1

    def requeue(self, back: Sequence[Queued]) -> None:
        """Return these in this order. It counts as a failed delivery of each."""
        for queued in back:
            queued.attempts += 1
            if queued.attempts > DELIVERY_LIMIT:
                self.dead.append(queued.message)
                self.unsettled -= 1
            else:
                self._requeued.append(queued)
        if self._by_position:
            self._requeued = deque(sorted(self._requeued, key=lambda queued: queued.position))
        self.dispatch()

    def dispatch(self) -> None:
        """Hand out what can be, to each consumer in turn."""
        while self.ready and (free := [one for one in self._consumers if one.has_room]):
            intake = free[0]
            self._consumers.remove(intake)
            self._consumers.append(intake)
            intake.deliver((self._requeued or self._ready).popleft())


class MemoryIntake:
    """What the worker has of the broker: the steps of the real `Intake`, taken on a queue in memory."""

    def __init__(
        self,
        broker: MemoryBroker,
        prefetch: int,
        before_consuming: Callable[[], Awaitable[object]],
        on_late: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._before_consuming = before_consuming
        self._on_late = on_late
        self._pace = Pace(prefetch)
        self._waiting: Waiting[Loan] = Waiting()
        self._unsettled: dict[int, Loan] = {}  # by tag, in the order delivered
        self._channel = self._consumer = self._tag = 0  # the last number of each
        self._room = 0  # how many more the present registration may be sent
        self.consuming = False
        """Whether a consumer is registered. Changed by `_take_step` and `_cancel` alone."""
        self._registered = asyncio.Event()
        self._lost = asyncio.Event()

    async def run(self) -> None:
        """Connect, and again whenever the connection is lost."""
        while True:
            self._lost.clear()
            await self._before_consuming()
            if not self._lost.is_set():
                self._channel += 1
                self._take_step(self._pace.connected())
                await self._lost.wait()
            await asyncio.sleep(0.5)

    def lose(self) -> None:
        """The connection is gone, and the broker knows: everything in hand goes back to the queue."""
        self._cancel()
        self._pace.lost()
        self._lost.set()
        self._registered.clear()
        self._requeue_all()

    async def wait_consuming(self) -> None:
        await self._registered.wait()

    @property
    def has_room(self) -> bool:
        return self._room > 0

    def deliver(self, queued: Queued) -> None:
        self._tag += 1
        self._room -= 1
        loan = Loan(
            queued.message.body, queued.message.properties, queued.attempts,
            queued=queued, channel=self._channel, consumer=self._consumer, tag=self._tag,
        )  # fmt: skip
        self._unsettled[loan.tag] = loan
        self._waiting.put(loan)

    def has(self, loan: Loan) -> bool:
        """Whether it is not settled, and its connection not lost."""
        return loan.tag in self._unsettled

    @property
    def in_hand(self) -> int:
        return len(self._unsettled)

    async def take(self, most: int) -> list[Loan]:
        return await self._waiting.take(most)

    def take_waiting(self, most: int) -> list[Loan]:
        return self._waiting.take_waiting(most)

    async def acknowledge(self, deliveries: Sequence[Loan]) -> None:
        await asyncio.sleep(0)
        handled = [loan for loan in deliveries if loan.channel == self._channel]
        unsettled = [loan for loan in handled if self.has(loan)]
        self._take_step(self._pace.settled(handled, len(unsettled)), unsettled)
        if late := len(deliveries) - len(unsettled):
            self._on_late(late)

    async def prove(self, deliveries: Sequence[Loan]) -> None:
        await asyncio.sleep(0)
        self._take_step(self._pace.proved() if deliveries else None)

    async def pause(self, by: str) -> None:
        await asyncio.sleep(0)
        self._take_step(self._pace.pause(by))

    async def resume(self, by: str) -> None:
        await asyncio.sleep(0)
        self._take_step(self._pace.resume(by))

    async def requeue(self, *, one_by_one: bool = False) -> int:
        await asyncio.sleep(0)
        count = self._requeue_all()
        self._take_step(self._pace.requeued(count, one_by_one=one_by_one))
        return count

    async def stop(self) -> None:
        self._waiting.close()
        self._take_step(self._pace.stop())

    def _take_step(self, step: Step | None, acknowledged: Sequence[Loan] = ()) -> None:
        if step is not None:
            self._cancel()
        for loan in acknowledged:
            del self._unsettled[loan.tag]
            self._broker.settle(loan.queued)
            self._room += self.consuming and loan.consumer == self._consumer
        if isinstance(step, Register):
            self._consumer += 1
            self._room = step.prefetch
            self.consuming = True
            self._registered.set()
            self._broker.consume(self)
        self._broker.dispatch()

    def _cancel(self) -> None:
        self._room = 0
        self.consuming = False
        self._broker.cancel(self)

    def _requeue_all(self) -> int:
        self._waiting.clear()
        back, self._unsettled = [loan.queued for loan in self._unsettled.values()], {}
        self._broker.requeue(back)
        return len(back)
