"""A broker with a queue in memory, and what the worker has of it: faithful in how messages come, go back and come again."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from task_activity_log.aio import Waiting
from task_activity_log.message import Delivery
from task_activity_log.pipeline.suspects import is_suspect

DELIVERY_LIMIT = 20


@dataclass(eq=False, slots=True)
class Queued:
    """A message in the queue or on loan."""

    message: Delivery
    position: int
    attempts: int = 0


@dataclass(slots=True, eq=False)
class Loan(Delivery):
    """A delivery of one channel. It dies with the channel."""

    queued: Queued = field(kw_only=True)
    epoch: int = field(kw_only=True)


class MemoryBroker:
    """One queue.

    What is returned comes again before what was never delivered. Quorum queues hand it out in the order returned
    (`by_position=False`); with `by_position` it comes in the order published, as from them too as long as a consumer has
    all that was returned in hand before it is interrupted again.
    """

    def __init__(self, settled: Callable[[Delivery], None], *, by_position: bool) -> None:
        """`settled` is told of each message that is acknowledged, before it is gone."""
        self._settled = settled
        self._by_position = by_position
        self._ready: deque[Queued] = deque()
        self._returned: deque[Queued] = deque()
        self._consumers: list[MemoryIntake] = []
        self._published = 0
        self.dead: list[Delivery] = []
        """Dead-lettered here, above the delivery limit."""
        self.unsettled = 0

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

    def requeue(self, loans: Sequence[Queued]) -> None:
        """In this order; it counts."""
        for queued in loans:
            queued.attempts += 1
            if queued.attempts > DELIVERY_LIMIT:
                self.dead.append(queued.message)
                self.unsettled -= 1
            else:
                self._returned.append(queued)
        if self._by_position:
            self._returned = deque(sorted(self._returned, key=lambda queued: queued.position))
        self.dispatch()

    def dispatch(self) -> None:
        """Hand out what can be, to each consumer in turn."""
        while (self._returned or self._ready) and (free := [one for one in self._consumers if one.has_room]):
            intake = free[0]
            self._consumers.remove(intake)
            self._consumers.append(intake)
            intake.deliver((self._returned or self._ready).popleft())


class MemoryIntake:
    """The worker's intake, paced as the real one is: one message at first, all of the prefetch once that was settled."""

    def __init__(self, broker: MemoryBroker, prefetch: int, before_consuming: Callable[[], Awaitable[object]]) -> None:
        self._broker = broker
        self._prefetch = prefetch
        self._before_consuming = before_consuming
        self._waiting: Waiting[Loan] = Waiting()
        self._loans: dict[Queued, None] = {}
        self._epoch = 0
        self._room = 0
        self._one_by_one = 0
        self._connected = False
        self._paused_by: set[str] = set()
        self._stopping = False
        self._lost = asyncio.Event()

    async def run(self) -> None:
        """Connect, and again whenever the connection is lost."""
        while True:
            self._lost.clear()
            await self._before_consuming()
            self._connected = True
            self._register(1)
            await self._lost.wait()
            await asyncio.sleep(0.5)

    def lose(self) -> None:
        """The connection is gone, and the broker knows: everything in hand goes back and counts."""
        self._connected = False
        self._epoch += 1
        self._room = 0
        self._broker.cancel(self)
        loans, self._loans = list(self._loans), {}
        self._waiting.clear()
        self._lost.set()
        self._broker.requeue(loans)

    @property
    def has_room(self) -> bool:
        return len(self._loans) < self._room

    def deliver(self, queued: Queued) -> None:
        self._loans[queued] = None
        message = queued.message
        self._waiting.put(Loan(message.body, message.properties, queued.attempts, queued=queued, epoch=self._epoch))

    def holds(self, loan: Loan) -> bool:
        """Whether it belongs to the present channel."""
        return loan.epoch == self._epoch and loan.queued in self._loans

    @property
    def in_hand(self) -> int:
        return len(self._loans)

    async def take(self, most: int) -> list[Loan]:
        return await self._waiting.take(most)

    def take_waiting(self, most: int) -> list[Loan]:
        return self._waiting.take_waiting(most)

    async def acknowledge(self, deliveries: Sequence[Loan]) -> None:
        await asyncio.sleep(0)
        mine = [loan for loan in deliveries if self.holds(loan)]
        for loan in mine:
            del self._loans[loan.queued]
            self._broker.settle(loan.queued)
        if self._room == 1 and mine:
            self._one_by_one = max(0, self._one_by_one - len(mine))
            if not self._one_by_one and not all(map(is_suspect, mine)):
                self._register(self._prefetch)
        self._broker.dispatch()

    async def prove(self, deliveries: Sequence[Loan]) -> None:
        await asyncio.sleep(0)
        if self._room == 1 and not self._one_by_one and not all(map(is_suspect, deliveries)):
            self._register(self._prefetch)

    async def pause(self, by: str) -> None:
        self._paused_by.add(by)
        await asyncio.sleep(0)
        self._cancel()

    async def resume(self, by: str) -> None:
        self._paused_by.discard(by)
        await asyncio.sleep(0)
        if not self._room:
            self._register(1)

    async def requeue(self, *, one_by_one: bool = False) -> int:
        self._waiting.clear()
        back = list(self._loans)
        self._loans = {}
        await asyncio.sleep(0)
        self._broker.requeue(back)
        self._one_by_one = len(back) if one_by_one else 0
        return len(back)

    async def stop(self) -> None:
        self._stopping = True
        self._waiting.close()
        self._cancel()

    def _register(self, room: int) -> None:
        if self._connected and not self._paused_by and not self._stopping:
            self._cancel()
            self._room = room
            self._broker.consume(self)

    def _cancel(self) -> None:
        self._room = 0
        self._broker.cancel(self)
