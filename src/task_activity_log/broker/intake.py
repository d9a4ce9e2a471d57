"""Intake: deliveries from the requests queue, and how they are settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile

import aio_pika
import aiormq
import structlog
from aiormq.abc import DeliveredMessage

from task_activity_log.batch import Waiting
from task_activity_log.broker import properties
from task_activity_log.broker.frames import Inbound, Tap
from task_activity_log.broker.link import LOST, LinkOptions, connect, describe, supervise
from task_activity_log.broker.topology import Topology, check, declare

log = structlog.get_logger(__name__)


class RabbitDelivery:
    """A message on loan from RabbitMQ until it is settled; the worker's `Delivery`."""

    __slots__ = ("_properties", "body", "consumer", "redelivered", "tag")

    def __init__(self, consumer: Consumer, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self.consumer = consumer
        self.tag = tag
        self.redelivered = redelivered
        self.body = body
        self._properties = properties.decode(header)

    @property
    def properties(self) -> properties.Properties:
        """All that the message came with."""
        return self._properties

    @property
    def content_type(self) -> str | None:
        """AMQP property content_type."""
        return self._properties.content_type

    @property
    def content_encoding(self) -> str | None:
        """AMQP property content_encoding."""
        return self._properties.content_encoding

    @property
    def correlation_id(self) -> str | None:
        """AMQP property correlation_id."""
        return self._properties.correlation_id

    @property
    def reply_to(self) -> str | None:
        """AMQP property reply_to."""
        return self._properties.reply_to

    @property
    def message_id(self) -> str | None:
        """AMQP property message_id."""
        return self._properties.message_id

    @property
    def timestamp(self) -> int | None:
        """AMQP property timestamp, as sent: seconds, or milliseconds where it is above 2^32-1."""
        return self._properties.timestamp

    @property
    def headers(self) -> Mapping[str, object]:
        """AMQP headers."""
        return self._properties.headers

    @property
    def unreadable(self) -> str | None:
        """Which properties could not be decoded, in words; None when all could."""
        return self._properties.unreadable


class Consumer:
    """One registered consumer: its channel, and the delivery tags that are out on loan. Tags die with the channel."""

    def __init__(self, channel: aiormq.abc.AbstractChannel, waiting: Waiting[RabbitDelivery]) -> None:
        self._channel = channel
        self._waiting = waiting
        self._on_loan: dict[int, None] = {}  # in the order delivered
        self.tag = ""
        self.gone = asyncio.Event()
        """Set when the broker has cancelled the consumer."""
        self.closed = False

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled."""
        return len(self._on_loan)

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """Take a delivery in. Called by the transport."""
        if self.closed:
            return
        self._on_loan[tag] = None
        self._waiting.put(RabbitDelivery(self, tag, redelivered, header, body))

    async def accept(self, tags: Sequence[int]) -> None:
        """Acknowledge: one frame where everything delivered before is settled too, a frame each otherwise."""
        for tag in tags:
            self._on_loan.pop(tag, None)
        oldest = next(iter(self._on_loan), None)
        done = sorted(tags)
        together = done if oldest is None else list(takewhile(oldest.__gt__, done))
        if together:
            await self._channel.basic_ack(together[-1], multiple=True, wait=False)
        for tag in done[len(together) :]:
            await self._channel.basic_ack(tag, wait=False)

    async def stop(self) -> None:
        """Let the broker send nothing more."""
        await self._channel.basic_cancel(self.tag, timeout=_CANCEL_SECONDS)

    async def give_back(self) -> int:
        """Return everything on loan to the queue with one frame; returns how many that were."""
        count = len(self._on_loan)
        if count:
            await self._channel.basic_nack(next(reversed(self._on_loan)), multiple=True, requeue=True)
            self._on_loan.clear()
        return count


_CANCEL_SECONDS = 3.0


class Intake:
    """Consumes the requests queue over a connection of its own, and consumes again whenever that is lost."""

    def __init__(
        self,
        options: LinkOptions,
        topology: Topology,
        *,
        prefetch: int,
        declare_topology: bool = True,
        on_lost: Callable[[], None] = lambda: None,
        on_late: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._options = options
        self._topology = topology
        self._prefetch = prefetch
        self._prepare = declare if declare_topology else check
        self._on_lost = on_lost
        self._on_late = on_late
        self._waiting: Waiting[RabbitDelivery] = Waiting()
        self._consumer: Consumer | None = None
        self._stopping = False
        self._registered = asyncio.Event()
        self._lost = asyncio.Event()
        self.connected_since: float | None = None
        """When the present connection was opened (`time.monotonic`); None while there is none."""

    @property
    def consuming(self) -> bool:
        """Whether a consumer is registered."""
        return self._consumer is not None and not self._stopping

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled."""
        return 0 if self._consumer is None else self._consumer.in_hand

    async def run(self) -> None:
        """Keep consuming until cancelled."""
        await supervise("intake", self._session, self._on_lost)

    async def _session(self, established: Callable[[], None]) -> None:
        async with connect(self._options, "intake") as (connection, tap):
            self.connected_since = time.monotonic()
            try:
                await self._consume(connection, tap, established)
            finally:
                self.connected_since = None

    async def _consume(self, connection: aio_pika.Connection, tap: Tap, established: Callable[[], None]) -> None:
        await self._prepare(connection, self._topology)
        opened = await connection.channel(publisher_confirms=False)  # held: the driver only has it weakly
        channel = await opened.get_underlay_channel()
        consumer = Consumer(channel, self._waiting)
        tap.channels[channel.number] = Inbound(deliver=consumer.deliver)
        channel.on_consumer_cancel_callbacks.add(lambda _: consumer.gone.set())
        await channel.basic_qos(prefetch_count=self._prefetch)
        if self._stopping:
            return
        ok = await channel.basic_consume(self._topology.requests_queue, _taken_by_the_tap)
        consumer.tag = ok.consumer_tag or ""
        self._consumer = consumer
        self._lost.clear()
        self._registered.set()
        established()
        try:
            await _until_lost(channel, consumer)
        finally:
            # What was delivered here comes again; settling it later is late, not an error.
            consumer.closed = True
            self._consumer = None
            self._waiting.clear()
            self._registered.clear()
            self._lost.set()

    async def wait_consuming(self) -> None:
        """Return once a consumer is registered."""
        await self._registered.wait()

    async def wait_lost(self) -> None:
        """Return once the consumer that was registered is gone."""
        await self._lost.wait()

    async def take(self, most: int) -> list[RabbitDelivery]:
        """The next batch: what is waiting, at least one, at most `most`. Empty once `stop` was called."""
        return await self._waiting.take(most)

    async def accept(self, deliveries: Sequence[RabbitDelivery]) -> None:
        """Acknowledge `deliveries`. Those of a lost channel come again: counted as late, never an error."""
        by_consumer: dict[Consumer, list[int]] = {}
        for delivery in deliveries:
            by_consumer.setdefault(delivery.consumer, []).append(delivery.tag)
        for consumer, tags in by_consumer.items():
            try:
                if consumer.closed:
                    raise ConnectionError
                await consumer.accept(tags)
            except LOST:
                self._on_late(len(tags))
                log.info("settled_late", count=len(tags))

    async def stop(self) -> None:
        """Take nothing more, from the broker or from what waits. What is under way goes on."""
        self._stopping = True
        self._waiting.close()
        if self._consumer is not None:
            with suppress(*LOST):
                await self._consumer.stop()

    async def give_back(self) -> int:
        """Return to the queue what was prefetched and not begun; returns how many. Call it after `stop`."""
        if self._consumer is None:
            return 0
        try:
            return await self._consumer.give_back()
        except LOST:
            return 0


async def _taken_by_the_tap(_: DeliveredMessage) -> None:
    raise AssertionError("a delivery has passed the tap")


async def _until_lost(channel: aiormq.abc.AbstractChannel, consumer: Consumer) -> None:
    gone = asyncio.ensure_future(consumer.gone.wait())
    closing = channel.closing  # a lost connection closes its channels
    try:
        await asyncio.wait({gone, closing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if consumer.gone.is_set():
        raise ConnectionError("the broker cancelled the consumer (was the queue deleted or moved?)")
    if not closing.cancelled() and (error := closing.exception()) is not None:
        raise ConnectionError(describe(error))
