"""Intake: deliveries from the requests queue, at the pace that is safe, over a connection that is rebuilt when lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import aio_pika
import structlog

from task_activity_log.aio import Waiting
from task_activity_log.pipeline.suspects import is_suspect
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.frames import FrameReader, Inbound
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, connect, supervise
from task_activity_log.rabbitmq.topology import Topology, check, consumers, declare

log = structlog.get_logger(__name__)


_OTHERS = (
    "Across workers a later message for a record may be applied before an earlier one, unless publishers send x-version."
    " WORKER_SINGLE_ACTIVE_CONSUMER keeps the order, too: others then stand by."
)


async def _at_once() -> None:
    pass


class Intake:
    """Consumes the requests queue, and consumes it again whenever the link is lost.

    Every lost connection counts as a failed delivery for everything in hand. So a new consumer starts with one message
    at a time, and gets the full prefetch once a message that is not suspicious was settled: a message that kills the
    process takes no others with it.
    """

    def __init__(
        self,
        options: LinkOptions,
        topology: Topology,
        *,
        prefetch: int,
        declare_topology: bool = True,
        before_consuming: Callable[[], Awaitable[object]] = _at_once,
        on_lost: Callable[[], None] = lambda: None,
        on_late: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            options: how to reach the broker.
            topology: the names.
            prefetch: how many deliveries may be in hand once the consumer is proved.
            declare_topology: whether to declare the queues, or only to look whether they are there.
            before_consuming: awaited before each first registration on a new connection: what is delivered while the
                database is away burns delivery counts.
            on_lost: told when a consumer is lost.
            on_late: told how many were accepted too late.
        """
        self._options = options
        self._topology = topology
        self._prefetch = prefetch
        self._prepare = declare if declare_topology else check
        self._before_consuming = before_consuming
        self._on_lost = on_lost
        self._on_late = on_late
        self._waiting: Waiting[RabbitDelivery] = Waiting()
        self._consumer: Consumer | None = None
        self._paused_by: set[str] = set()
        self._one_by_one = 0
        self._pacing = asyncio.Lock()  # registering and cancelling are several steps
        self._stopping = False
        self._first = True
        self._registered = asyncio.Event()
        self._lost = asyncio.Event()
        self.connected_since: float | None = None
        """When the present connection was opened (`time.monotonic`); None while there is none."""

    @property
    def consuming(self) -> bool:
        """Whether a consumer is registered."""
        return self._consumer is not None and self._consumer.prefetch > 0

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled."""
        return 0 if self._consumer is None else self._consumer.in_hand

    @property
    def waiting(self) -> int:
        """How many of them nobody has taken yet."""
        return len(self._waiting)

    async def wait_consuming(self) -> None:
        """Return once a consumer is registered."""
        await self._registered.wait()

    async def wait_lost(self) -> None:
        """Return once the consumer that was registered is gone."""
        await self._lost.wait()

    async def run(self) -> None:
        """Keep consuming until cancelled."""
        await supervise("intake", self._session, self._on_lost)

    async def _session(self, established: Callable[[], None]) -> None:
        async with connect(self._options, "intake") as (connection, frame_reader):
            self.connected_since = time.monotonic()
            try:
                await self._consume(connection, frame_reader, established)
            finally:
                self.connected_since = None

    async def _consume(
        self, connection: aio_pika.Connection, frame_reader: FrameReader, established: Callable[[], None]
    ) -> None:
        await self._prepare(connection, self._topology)
        if self._first:
            self._first = False
            await self._warn_of_others(connection)
        opened = await connection.channel(publisher_confirms=False)  # held: the driver only has it weakly
        channel = await opened.get_underlay_channel()
        consumer = Consumer(channel, self._topology.requests_queue, self._waiting)
        frame_reader.channels[channel.number] = Inbound(deliver=consumer.deliver)
        lost = asyncio.ensure_future(consumer.wait_lost())
        gate = asyncio.ensure_future(self._before_consuming())
        try:
            await asyncio.wait({lost, gate}, return_when=asyncio.FIRST_COMPLETED)
            if gate.done():
                gate.result()
                self._consumer = consumer
                await self._begin(consumer)
                established()
            await lost
        finally:
            gate.cancel()
            lost.cancel()
            # What was delivered here comes again; settling it later is late, not an error.
            consumer.closed = True
            self._consumer = None
            self._waiting.clear()
            self._registered.clear()
            self._lost.set()

    async def _warn_of_others(self, connection: aio_pika.Connection) -> None:
        # At the first connection only: later ones may find this worker's own consumer, not given up by the broker yet.
        others = await consumers(connection, self._topology)
        if others and not self._topology.single_active_consumer:
            log.warning("other_consumers", count=others, advice=_OTHERS)

    async def _begin(self, consumer: Consumer) -> None:
        async with self._pacing:
            if not self._stopping and not self._paused_by and consumer.prefetch == 0:
                await consumer.register(1)
                self._lost.clear()
                self._registered.set()

    async def _prove(self, consumer: Consumer, handled: Sequence[RabbitDelivery], settled: Sequence[int] = ()) -> None:
        """Settle, and give the consumer its full prefetch if it has shown that it survives what is not suspicious."""
        async with self._pacing:
            proved = consumer.prefetch == 1 < self._prefetch and not all(map(is_suspect, handled))
            proved = proved and not (self._one_by_one or self._stopping or self._paused_by)
            if proved:
                # Before the acknowledgement, which lets the next message come: what one frame gives back of two
                # consumers comes again in any order.
                await consumer.cancel()
            await consumer.acknowledge(settled)
            if proved:
                await consumer.register(self._prefetch)

    async def take(self, most: int) -> list[RabbitDelivery]:
        """The next batch: what is waiting, at least one, at most `most`. Empty once `stop` was called."""
        return await self._waiting.take(most)

    def take_waiting(self, most: int) -> list[RabbitDelivery]:
        """What is waiting now, at most `most`."""
        return self._waiting.take_waiting(most)

    async def acknowledge(self, deliveries: Sequence[RabbitDelivery]) -> None:
        """Acknowledge `deliveries`. Those of a lost channel come again: counted as late, never an error."""
        late = 0
        by_consumer: dict[Consumer, list[RabbitDelivery]] = {}
        for delivery in deliveries:
            by_consumer.setdefault(delivery.consumer, []).append(delivery)
        for consumer, accepted in by_consumer.items():
            late += len(accepted)
            if consumer.closed:
                continue
            with suppress(*LOST), asking_the_driver():
                tags = [delivery.tag for delivery in accepted if consumer.has(delivery.tag)]
                if consumer.prefetch == 1:
                    self._one_by_one = max(0, self._one_by_one - len(tags))
                await self._prove(consumer, accepted, tags)
                late -= len(tags)
        if late:
            self._on_late(late)
            log.info("settled_late", count=late)

    async def prove(self, deliveries: Sequence[RabbitDelivery]) -> None:
        """These did no harm, though they are not settled yet: they prove the consumer as if they were."""
        consumer = self._consumer
        if consumer is not None:
            with suppress(*LOST), asking_the_driver():
                await self._prove(consumer, deliveries)

    async def pause(self, by: str) -> None:
        """Let nothing more come, until everybody who paused has resumed. What is in hand stays there."""
        self._paused_by.add(by)
        async with self._pacing:
            await self._cancel()

    async def resume(self, by: str) -> None:
        """Consume again, from one message at a time on."""
        self._paused_by.discard(by)
        if self._consumer is not None:
            with suppress(*LOST), asking_the_driver():
                await self._begin(self._consumer)

    async def requeue(self, *, one_by_one: bool = False) -> int:
        """Return all that is in hand to the queue, in its order, while paused or stopped; returns how many.

        With `one_by_one` so many come back one at a time: taken in bulk they would have to be given back again, which
        counts each time.
        """
        self._waiting.clear()
        if self._consumer is None:
            return 0
        with suppress(*LOST), asking_the_driver():
            count = await self._consumer.requeue()
            self._one_by_one = count if one_by_one else 0
            return count
        return 0

    async def stop(self) -> None:
        """Take nothing more, from the broker or from what waits. What is under way goes on."""
        self._stopping = True
        self._waiting.close()
        async with self._pacing:
            await self._cancel()

    async def _cancel(self) -> None:
        if self._consumer is not None:
            with suppress(*LOST), asking_the_driver():
                await self._consumer.cancel()
