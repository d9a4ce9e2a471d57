"""Intake: deliveries from the requests queue, at the pace that is safe, over a connection that is rebuilt when lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import aio_pika
import structlog

from task_activity_log.aio import Waiting, end
from task_activity_log.message import Delivery
from task_activity_log.pipeline.suspects import is_suspect
from task_activity_log.rabbitmq.channel import open_channel, wait_closed
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.frames import FrameReader, Inbound
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, connect, describe, supervise
from task_activity_log.rabbitmq.pace import Pace, State
from task_activity_log.rabbitmq.queues import wait_forgotten
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

    `Pace` decides when and with which prefetch. `Consumer.close` is the only way in which a consumer ends that has messages
    in hand.
    """

    connected_since: float | None = None
    """When the present connection was opened (`time.monotonic`); None while there is none. Set by `_session`."""
    outage: str | None = None
    """Why there is no consumer; None once one is registered, and before the first connection ends. Set by `run`."""
    _consumer: Consumer | None = None  # set by `_register`
    _finish_until: float | None = None  # set by `stop`: when nothing more is taken (`time.monotonic`)
    _ready = False  # whether the present connection may consume; set by `_consume`
    _seen_others = False  # set at the first connection
    _suspects = False  # whether the last batch was a suspect; set by `take`

    def __init__(
        self,
        options: LinkOptions,
        topology: Topology,
        *,
        prefetch: int,
        batch_max: int,
        poison_from: int = 10,
        bounds: Bounds = UNBOUNDED,
        declare_topology: bool = True,
        before_consuming: Callable[[], Awaitable[object]] = _at_once,
        on_lost: Callable[[], None] = lambda: None,
        on_late: Callable[[int], None] = lambda _: None,
        on_suspects: Callable[[Sequence[Delivery]], None] = lambda _: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            options: how to reach the broker.
            topology: the names.
            prefetch: how many deliveries may be in hand once the consumer is proved.
            batch_max: how many deliveries may be processed together.
            poison_from: the attempts from which a message is rejected without being tried.
            bounds: how much a batch and what is in hand may weigh.
            declare_topology: whether to declare the queues, or only to check that they exist.
            before_consuming: awaited on each new connection. What is delivered in an outage uses up counted deliveries.
            on_lost: called when a connection that consumed is lost.
            on_late: called with the number of deliveries that could not be acknowledged any more.
            on_suspects: called with messages that may have crashed a worker, before the first of them is tried alone.
        """
        self._options, self._topology, self._bounds = options, topology, bounds
        self._prepare = declare if declare_topology else check
        self._before_consuming = before_consuming
        self._on_lost, self._on_late, self._on_suspects = on_lost, on_late, on_suspects
        self._waiting: Waiting[RabbitDelivery] = Waiting(bounds.batch)  # filled by the consumer
        self._pace = Pace(prefetch, batch_max, poison_from, single_active=topology.single_active_consumer)
        self._pacing = asyncio.Lock()  # held while a consumer is registered, acknowledges or is closed
        self._wanted = asyncio.Event()  # whether a channel is to be opened; set by `_repaced`
        self._registered = asyncio.Event()  # set by `_register`, cleared when the connection is lost

    @property
    def consuming(self) -> bool:
        """Whether a consumer is registered, or is about to be registered again."""
        return self._ready and self._pace.wanted > 0 and self._registered.is_set()

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
        await supervise("intake", self._explained_session, self._on_lost)

    async def _explained_session(self, established: Callable[[], None]) -> None:
        try:
            await self._session(established)
        except LOST as error:
            self.outage = describe(error).text
            raise

    async def _session(self, established: Callable[[], None]) -> None:
        async with connect(self._options, "intake") as (connection, frame_reader):
            self.connected_since = time.monotonic()
            tasks = (
                asyncio.create_task(self._consume(connection, frame_reader, established)),
                asyncio.create_task(_wait_lost(connection)),
                asyncio.create_task(
                    wait_forgotten(
                        connection,
                        self._topology.requests_queue,
                        lambda: self.consuming,
                        lambda: frame_reader.read_seconds,
                    )
                ),
            )
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                self.connected_since = None
                self._forget()
                await end(*tasks)
                _ = [task.cancelled() or task.exception() for task in tasks]  # read, or asyncio reports it

    async def _consume(
        self, connection: aio_pika.Connection, frame_reader: FrameReader, established: Callable[[], None]
    ) -> None:
        """Consume through one channel after the other."""
        await self._prepare(connection, self._topology)
        await self._warn_of_others(connection)
        await self._before_consuming()
        self._ready = True
        self._repaced()
        consumer = await self._register(connection, frame_reader)
        self.outage = None
        established()
        while True:
            if consumer is not None:
                await consumer.wait_ended()
            await self._wanted.wait()
            consumer = await self._register(connection, frame_reader)

    async def _register(self, connection: aio_pika.Connection, frame_reader: FrameReader) -> Consumer | None:
        """Open a channel and consume on it with the prefetch that is wanted; None if nothing is to be consumed."""
        if not self._pace.wanted:
            return None
        channel = await open_channel(connection)
        consumer = Consumer(
            channel,
            self._topology.requests_queue,
            self._waiting,
            single_active=self._topology.single_active_consumer,
            most_weight=self._bounds.in_hand,
        )
        frame_reader.channels[channel.number] = Inbound(deliver=consumer.deliver, full=consumer.full)
        async with self._pacing:
            self._consumer = consumer
            prefetch = self._pace.wanted
            if prefetch:
                await consumer.register(prefetch)
                self._pace.opened()
                self._registered.set()
                self._repaced()
        if not prefetch:
            await self._close()
        return consumer

    def _forget(self) -> None:
        """The connection is lost: everything in hand comes again."""
        if self._consumer is not None:
            self._consumer.abandon()
            self._consumer = None
        self._ready = False
        self._pace.closed()
        self._waiting.clear()
        self._registered.clear()
        self._repaced()

    def _repaced(self) -> None:
        """Let a channel be opened, or the next `take` return, if the pace says so now."""
        if self._ready and self._consumer is None and self._pace.wanted:
            self._wanted.set()
        else:
            self._wanted.clear()
        self._waiting.wake()

    async def _warn_of_others(self, connection: aio_pika.Connection) -> None:
        # At the first connection only: later ones may see this worker's own last consumer, which the broker still has.
        if self._seen_others:
            return
        self._seen_others = True
        others = await consumers(connection, self._topology)
        if others and not self._topology.single_active_consumer:
            log.warning("other_consumers", count=others, advice=_OTHERS)

    async def take(self, most: int) -> list[RabbitDelivery] | None:
        """The next batch: what is waiting, at least one, at most `most`; a suspect alone.

        Returns an empty list when nothing more is to be taken before `renew` was called, and None once `stop` was called
        and nothing is waiting, or its time is over.
        """
        while True:
            stopped = self._finish_until is not None
            if stopped and (not self._waiting or time.monotonic() >= (self._finish_until or 0)):
                return None
            if self._waiting and not self._pace.paused_by:
                waiting = self._waiting.peek(most)
                self._notice_suspects(waiting)
                if count := self._pace.batch(waiting, self.in_hand):
                    return self._waiting.take_waiting(count)
                return None if stopped else []
            await self._waiting.changed()

    def _notice_suspects(self, waiting: Sequence[RabbitDelivery]) -> None:
        before, self._suspects = self._suspects, is_suspect(waiting[0])
        if self._suspects and not before:
            self._on_suspects([delivery for delivery in waiting if is_suspect(delivery)])

    async def renew(self) -> None:
        """Return what is left in hand to the queue, in order, and consume again.

        To be called after `take` has returned an empty list, and when what was taken is finished.
        """
        await self._close()

    async def synchronize(self) -> None:
        """Return when the broker has read the acknowledgements so far, or the connection is lost."""
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                if self._consumer is not None:
                    await self._consumer.synchronize()

    def has(self, delivery: RabbitDelivery) -> bool:
        """Whether this delivery is not settled yet, neither here nor by a channel that was closed or lost."""
        return delivery.consumer is self._consumer and delivery.consumer.has(delivery.tag)

    async def acknowledge(self, deliveries: Sequence[RabbitDelivery]) -> None:
        """Acknowledge `deliveries`, or keep the acknowledgements back while the consumer is being closed.

        Those of a lost channel come again: counted as late, never an error.
        """
        late = len(deliveries)
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                consumer = self._consumer
                if consumer is not None:
                    handled = [delivery for delivery in deliveries if delivery.consumer is consumer]
                    tags = [delivery.tag for delivery in handled if consumer.has(delivery.tag)]
                    self._pace.settled(handled)
                    await self._settle(consumer, tags)
                    late -= len(tags) + consumer.forget_rejected(delivery.tag for delivery in handled)
        if late:
            self._on_late(late)
            log.info("settled_late", count=late)

    async def _settle(self, consumer: Consumer, tags: Sequence[int]) -> None:
        if self._pace.state in (State.CLOSED, State.CLOSING):
            consumer.keep(tags)  # an acknowledgement lets the broker send more
        elif self._pace.wanted > consumer.prefetch:
            await consumer.widen(self._pace.wanted, tags)
        else:
            await consumer.acknowledge(tags)

    async def prove(self, deliveries: Sequence[RabbitDelivery]) -> None:
        """These were processed safely, although they cannot be acknowledged yet: they prove the consumer all the same."""
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                consumer = self._consumer
                if consumer is not None:
                    self._pace.proved([delivery for delivery in deliveries if delivery.consumer is consumer])
                    await self._settle(consumer, ())

    async def pause(self, by: str) -> None:
        """Take nothing more until everybody who paused has resumed. What is in hand stays there until `requeue`."""
        self._pace.pause(by)
        self._repaced()

    async def resume(self, by: str) -> None:
        """Consume again, one message at a time at first if everything was requeued, unless others still pause."""
        self._pace.resume(by)
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                if self._consumer is not None:
                    await self._settle(self._consumer, ())  # what was kept back while it paused
        self._repaced()

    async def stop(self, finish_seconds: float = 0.0) -> None:
        """Let nothing more come, and take what is in hand for that long. What was taken may still be settled."""
        self._finish_until = time.monotonic() + finish_seconds
        self._pace.stop()
        self._repaced()

    async def requeue(self) -> int:
        """Return everything in hand to the queue, in order; returns how many messages.

        Nothing comes again before everybody who paused has resumed, and never after `stop`.
        """
        return await self._close()

    async def _close(self) -> int:
        count = 0
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                consumer, self._consumer = self._consumer, None
                self._waiting.clear()
                if consumer is not None:
                    try:
                        count = await consumer.close()
                    finally:
                        self._pace.closed(count)
        self._repaced()
        return count


async def _wait_lost(connection: aio_pika.Connection) -> None:
    """Raise ConnectionError with the reason once the connection is lost; never return."""
    if connection.transport is None:
        raise ConnectionError("closed")
    raise ConnectionError(await wait_closed(connection.transport.connection, asyncio.Event()))
