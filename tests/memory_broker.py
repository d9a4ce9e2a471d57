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
from task_activity_log.rabbitmq.pace import Pace, State

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
    tag: int = field(kw_only=True)
    """Never used again by its intake."""


class MemoryBroker:
    """One queue.

    What is requeued comes again before what was never delivered. Quorum queues hand it out in the order requeued
    (`by_position=False`); with `by_position` it comes in the order published, which is also what quorum queues do as long
    as a consumer has everything that was requeued in hand before it is interrupted again.
    """

    def __init__(
        self,
        settled: Callable[[Delivery], None],
        *,
        by_position: bool,
        single_active: bool = False,
        drops: bool = False,
    ) -> None:
        """No messages yet.

        Args:
            settled: called with each message that is acknowledged, before it is gone.
            by_position: see above.
            single_active: whether only one consumer gets messages, until its channel is closed or cancelled.
            drops: whether acknowledgements that come with the end of a channel are lost.
        """
        self._settled = settled
        self._by_position = by_position
        self._drops = drops
        self.single_active = single_active
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

    def return_some(self, attempts: Sequence[int]) -> None:
        """Let the first messages of the queue have been delivered and returned that often."""
        for count in attempts:
            self._requeued.append(self._ready.popleft())
            self._requeued[-1].attempts = count

    def consume(self, intake: "MemoryIntake") -> None:
        self._consumers.append(intake)
        self.dispatch()

    def cancel(self, intake: "MemoryIntake") -> None:
        """The next consumer may become the active one, whatever this one has in hand."""
        if intake in self._consumers:
            self._consumers.remove(intake)
        self.dispatch()

    def acknowledge(self, intake: "MemoryIntake", loans: Sequence[Loan]) -> None:
        """Settle these. The broker sends others in their place at once."""
        for loan in loans:
            intake.unsettled.pop(loan.tag, None)
            intake.room += intake in self._consumers
            self._settled(loan.queued.message)
            self.unsettled -= 1
        self.dispatch()

    def close(self, intake: "MemoryIntake", acknowledged: Sequence[Loan] = ()) -> int:
        """Close the channel, after these acknowledgements: all that it has in hand comes again; how many messages.

        Only then is the next consumer given anything.
        """
        left = len(intake.unsettled)
        if self._drops:
            intake.unsettled |= {loan.tag: loan for loan in acknowledged}
            intake.unsettled = dict(sorted(intake.unsettled.items()))
        else:
            self.acknowledge(intake, acknowledged)
        intake.room = 0
        back, intake.unsettled = intake.unsettled, {}
        self._requeue([loan.queued for loan in back.values()])
        self.cancel(intake)
        return left

    def _requeue(self, back: Sequence[Queued]) -> None:
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

    def dispatch(self) -> None:
        """Hand out what can be: to each consumer in turn, or to the active one."""
        while self.ready and (free := [one for one in self._receivers() if one.room > 0]):
            intake = free[0]
            if not self.single_active:
                self._consumers.remove(intake)
                self._consumers.append(intake)
            intake.deliver((self._requeued or self._ready).popleft())

    def _receivers(self) -> Sequence["MemoryIntake"]:
        return self._consumers[:1] if self.single_active else self._consumers


class MemoryIntake:
    """What the worker has of the broker: the steps of the real `Intake`, taken on a queue in memory."""

    def __init__(
        self,
        broker: MemoryBroker,
        prefetch: int,
        batch_max: int,
        before_consuming: Callable[[], Awaitable[object]],
        on_late: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._before_consuming = before_consuming
        self._on_late = on_late
        self._pace = Pace(prefetch, batch_max, single_active=broker.single_active)
        self._waiting: Waiting[Loan] = Waiting()
        self._kept: dict[int, Loan] = {}  # finished, with the acknowledgement kept back
        self._tag = 0  # the last one
        self._registered = 0  # the prefetch; 0 while there is no consumer
        self._ready = False  # whether there is a connection that may consume
        self._finish_until: float | None = None
        self._changed = asyncio.Event()
        self._consuming = asyncio.Event()
        self.unsettled: dict[int, Loan] = {}
        """By tag, in the order delivered. Changed by the broker too."""
        self.room = 0
        """How many more the present registration may be sent. Changed by the broker too."""
        self.proved: set[int] = set()
        """The tags of what was processed safely before it could be acknowledged: it was parked, or its reply waits."""
        self.in_hand_when_tried = 0
        """How many were in hand when the last batch was taken, or the last suspect of a batch was about to be tried."""

    async def run(self) -> None:
        """Connect, and again whenever the connection is lost."""
        while True:
            self._changed.clear()
            await self._before_consuming()
            self._ready = True
            while self._ready:
                if self._pace.wanted and self._pace.state is State.CLOSED:
                    self._pace.opened()
                    self._register(self._pace.wanted)
                await self._changed.wait()
                self._changed.clear()
            await asyncio.sleep(0.5)

    def _register(self, prefetch: int) -> None:
        self._registered = self.room = prefetch
        self._consuming.set()
        self._broker.consume(self)

    def lose(self) -> None:
        """The connection is gone, and the broker knows: everything in hand goes back to the queue."""
        self._ready = False
        self._consuming.clear()
        self._close(())
        self._pace.closed()
        self._repaced()

    def _close(self, acknowledged: Sequence[Loan]) -> int:
        self.unsettled |= {loan.tag: loan for loan in self._kept.values() if loan not in acknowledged}
        self.unsettled = dict(sorted(self.unsettled.items()))
        self._kept.clear()
        self._waiting.clear()
        self._registered = 0
        return self._broker.close(self, acknowledged)

    def _repaced(self) -> None:
        self._changed.set()
        self._waiting.wake()

    @property
    def consuming(self) -> bool:
        return self._consuming.is_set() and self._pace.wanted > 0

    async def wait_consuming(self) -> None:
        await self._consuming.wait()

    def deliver(self, queued: Queued) -> None:
        self._tag += 1
        self.room -= 1
        loan = Loan(queued.message.body, queued.message.properties, queued.attempts, queued=queued, tag=self._tag)
        self.unsettled[loan.tag] = loan
        if self._registered:
            self._waiting.put(loan)

    def has(self, delivery: Loan) -> bool:
        return delivery.tag in self.unsettled

    @property
    def in_hand(self) -> int:
        return len(self.unsettled)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def take(self, most: int) -> list[Loan] | None:
        while True:
            stopped = self._finish_until is not None
            now = asyncio.get_running_loop().time()
            if stopped and (not self._waiting or now >= (self._finish_until or 0)):
                return None
            if self._waiting and not self._pace.paused_by:
                self.in_hand_when_tried = self.in_hand
                if count := self._pace.batch(self._waiting.peek(most), self.in_hand):
                    return self._waiting.take_waiting(count)
                return None if stopped else []
            await self._waiting.changed()

    def coming(self, most: int) -> list[Loan]:
        return self._waiting.peek(most)

    def set_apart(self, suspects: Sequence[Loan]) -> bool:
        self.in_hand_when_tried = self.in_hand
        count = sum(1 for tag in self.unsettled if tag <= suspects[-1].tag)
        return self._pace.set_apart(suspects[0], self.in_hand, count)

    async def renew(self) -> None:
        await self.requeue()

    async def synchronize(self) -> None:
        await asyncio.sleep(0)

    async def acknowledge(self, deliveries: Sequence[Loan]) -> None:
        await asyncio.sleep(0)
        unsettled = [loan for loan in deliveries if self.has(loan)]
        self._pace.settled(unsettled)
        self._settle(unsettled)
        if late := len(deliveries) - len(unsettled):
            self._on_late(late)

    async def prove(self, deliveries: Sequence[Loan]) -> None:
        await asyncio.sleep(0)
        self.proved.update(loan.tag for loan in deliveries)
        self._pace.proved([loan for loan in deliveries if self.has(loan)])
        self._settle(())

    def holds_up(self, loan: Loan) -> bool:
        return self.has(loan) and self._pace.holds_up

    def _settle(self, finished: Sequence[Loan]) -> None:
        for loan in finished:
            del self.unsettled[loan.tag]
            self._kept[loan.tag] = loan
        if self._pace.state in (State.CLOSED, State.CLOSING):
            return
        kept = list(self._kept.values())
        self._kept.clear()
        if self._pace.wanted > self._registered:
            self.room = 0
            self._broker.cancel(self)
            self._broker.acknowledge(self, kept)
            self._register(self._pace.wanted)
        else:
            self._broker.acknowledge(self, kept)

    async def pause(self, by: str) -> None:
        await asyncio.sleep(0)
        self._pace.pause(by)
        self._repaced()

    async def resume(self, by: str) -> None:
        await asyncio.sleep(0)
        self._pace.resume(by)
        self._settle(())
        self._repaced()

    async def requeue(self) -> int:
        await asyncio.sleep(0)
        count = self._close(list(self._kept.values()))
        self._pace.closed(count)
        self._repaced()
        return count

    async def stop(self, finish_seconds: float = 0.0) -> None:
        self._finish_until = asyncio.get_running_loop().time() + finish_seconds
        self._pace.stop()
        self._repaced()
