"""Intake: deliveries from the requests queue, at the pace that is safe, over a connection that is rebuilt when lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import aio_pika
import structlog

from task_activity_log.aio import Waiting
from task_activity_log.rabbitmq.channel import open_channel
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.frames import FrameReader, Inbound
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, connect, supervise
from task_activity_log.rabbitmq.pace import Pace, Register, Step
from task_activity_log.rabbitmq.topology import Topology, check, consumers, declare
from task_activity_log.rabbitmq.weight import UNBOUNDED, Bounds

log = structlog.get_logger(__name__)


_OTHERS = (
    "Across workers a later message for a record may be applied before an earlier one, unless publishers send x-version."
    " WORKER_SINGLE_ACTIVE_CONSUMER keeps the order, too: others then stand by."
)


async def _at_once() -> None:
    pass


class Intake:
    """Consumes the requests queue, and consumes it again whenever the connection is lost.

    `Pace` decides when and with which prefetch; here its steps are taken, in the order that keeps messages in order.
    """

    def __init__(
        self,
        options: LinkOptions,
        topology: Topology,
        *,
        prefetch: int,
        bounds: Bounds = UNBOUNDED,
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
            bounds: how much a batch and what is in hand may weigh.
            declare_topology: whether to declare the queues, or only to check that they exist.
            before_consuming: awaited on each new connection before it consumes. What is delivered while the database is
                away uses up deliveries that the broker counts.
            on_lost: called when a connection that consumed is lost.
            on_late: called with the number of deliveries that could not be acknowledged any more.
        """
        self._options = options
        self._topology = topology
        self._prepare = declare if declare_topology else check
        self._before_consuming = before_consuming
        self._on_lost = on_lost
        self._on_late = on_late
        self._waiting: Waiting[RabbitDelivery] = Waiting(bounds.batch)  # filled by the consumer
        self._bounds = bounds
        self._pace = Pace(prefetch)
        self._pacing = asyncio.Lock()  # held while `_pace` is asked and its step is taken
        self._consumer: Consumer | None = None  # the present connection's; set by `_consume`
        self._registered = asyncio.Event()  # set by `_take_step`, cleared when the connection is lost
        self._seen_others = False  # set at the first connection
        self.connected_since: float | None = None
        """When the present connection was opened (`time.monotonic`); None while there is none. Set by `_session`."""

    @property
    def consuming(self) -> bool:
        """Whether a consumer is registered."""
        return self._consumer is not None and self._consumer.registered

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled."""
        return 0 if self._consumer is None else self._consumer.in_hand

    @property
    def waiting(self) -> int:
        """How many of them were not taken yet."""
        return len(self._waiting)

    async def wait_consuming(self) -> None:
        """Return once a consumer is registered."""
        await self._registered.wait()

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
        await self._warn_of_others(connection)
        channel = await open_channel(connection)
        consumer = Consumer(channel, self._topology.requests_queue, self._waiting, most_weight=self._bounds.in_hand)
        frame_reader.channels[channel.number] = Inbound(deliver=consumer.deliver, full=consumer.full)
        lost = asyncio.ensure_future(consumer.wait_lost())
        gate = asyncio.ensure_future(self._before_consuming())
        try:
            await asyncio.wait({lost, gate}, return_when=asyncio.FIRST_COMPLETED)
            if gate.done():
                gate.result()
                self._consumer = consumer
                async with self._pacing:
                    await self._take_step(consumer, self._pace.connected())
                established()
            await lost
        finally:
            gate.cancel()
            lost.cancel()
            consumer.abandon()
            self._consumer = None
            self._pace.lost()
            self._waiting.clear()
            self._registered.clear()

    async def _warn_of_others(self, connection: aio_pika.Connection) -> None:
        # At the first connection only: later ones may see this worker's own last consumer, which the broker still has.
        if self._seen_others:
            return
        self._seen_others = True
        others = await consumers(connection, self._topology)
        if others and not self._topology.single_active_consumer:
            log.warning("other_consumers", count=others, advice=_OTHERS)

    async def _take_step(self, consumer: Consumer, step: Step | None, acknowledged: Sequence[int] = ()) -> None:
        """Do what `_pace` has said, and acknowledge these tags in between."""
        if step is not None:
            # Cancel before acknowledging: the acknowledgement lets the broker send the old consumer another message,
            # and one nack for messages of two consumers requeues them in any order.
            await consumer.cancel()
        if acknowledged:
            await consumer.acknowledge(acknowledged)
        if isinstance(step, Register):
            await consumer.register(step.prefetch)
            self._registered.set()

    async def take(self, most: int) -> list[RabbitDelivery]:
        """The next batch: what is waiting, at least one, at most `most`. Empty once `stop` was called."""
        return await self._waiting.take(most)

    def take_waiting(self, most: int) -> list[RabbitDelivery]:
        """What is waiting now, at most `most`."""
        return self._waiting.take_waiting(most)

    async def acknowledge(self, deliveries: Sequence[RabbitDelivery]) -> None:
        """Acknowledge `deliveries`. Those of a lost channel come again: counted as late, never an error."""
        late = len(deliveries)
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                consumer = self._consumer
                if consumer is not None:
                    handled = [delivery for delivery in deliveries if delivery.consumer is consumer]
                    tags = [delivery.tag for delivery in handled if consumer.has(delivery.tag)]
                    await self._take_step(consumer, self._pace.settled(handled, len(tags)), tags)
                    late -= len(tags)
        if late:
            self._on_late(late)
            log.info("settled_late", count=late)

    async def prove(self, deliveries: Sequence[RabbitDelivery]) -> None:
        """These were processed safely, although they cannot be acknowledged yet: they prove the consumer all the same."""
        await self._ask_pace(lambda: self._pace.proved(deliveries))

    async def pause(self, by: str) -> None:
        """Let nothing more come until everybody who paused has resumed. What is in hand stays there."""
        await self._ask_pace(lambda: self._pace.pause(by))

    async def resume(self, by: str) -> None:
        """Consume again, one message at a time at first, unless others still pause."""
        await self._ask_pace(lambda: self._pace.resume(by))

    async def stop(self) -> None:
        """Take nothing more, neither from the broker nor from what is waiting. What was taken may still be settled."""
        self._waiting.close()
        await self._ask_pace(self._pace.stop)

    async def requeue(self, *, one_by_one: bool = False) -> int:
        """Return everything in hand to the queue, in order, while paused or stopped; returns how many messages.

        With `one_by_one` that many come again one at a time; see `Pace.requeued`.
        """
        count = 0
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                self._waiting.clear()
                consumer = self._consumer
                if consumer is not None:
                    count = await consumer.requeue()
                    await self._take_step(consumer, self._pace.requeued(count, one_by_one=one_by_one))
        return count

    async def _ask_pace(self, decide: Callable[[], Step | None]) -> None:
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                step = decide()
                if self._consumer is not None:
                    await self._take_step(self._consumer, step)
