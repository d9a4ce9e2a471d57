"""One queue that the intake consumes: through one channel after the other, at its pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from math import inf
from typing import TypeAlias

import aio_pika
import structlog

from task_activity_log.aio import Backoff, Waiting
from task_activity_log.rabbitmq.channel import open_channel
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.frames import FrameReader, Inbound
from task_activity_log.rabbitmq.link import LOST, Outage, OutageKind, asking_the_driver, broker_failed, describe
from task_activity_log.rabbitmq.pace import Pace, State
from task_activity_log.rabbitmq.weight import Budget

log = structlog.get_logger(__name__)

_HAND_OVER = "hand-over"
_CONNECTION_LOST_SECONDS = 0.2
"""A lost connection ends all its consumers. That is noticed within this time and logged once, not for each queue."""
_ARRIVES_SECONDS = 1.0
"""How long a stop waits for the next message of an isolated queue. It comes in milliseconds if there is one."""
_ISOLATED_SECONDS = 5.0
"""For how long nothing must have been in hand before a queue that is isolated is consumed as before."""
_APART_SECONDS = 30.0
"""How long a queue keeps its own connection after it was isolated: there may be more such messages."""
_DELIVERED_AGAIN_SECONDS = 0.02
"""How long after a failed delivery the next one is tried. What is behind it waits until the delivery limit is reached."""
_DELIVERED_AGAIN = 200
"""How often, if nothing else is delivered: the broker dead-letters ten such messages by then (`x-delivery-limit`: 20)."""

Connected: TypeAlias = Callable[[], AbstractAsyncContextManager[tuple[aio_pika.Connection, FrameReader]]]
"""A connection, for as long as the context lasts."""


class QueueIntake:
    """Consumes a queue of the present connection whenever its pace says so.

    `Pace` decides when and with which prefetch. `Consumer.close` is the only way in which a consumer ends that has messages
    in hand.
    """

    outage: str | None = None
    """Why it has no consumer although others of the connection have; None if it has one. Set by `keep_consuming`."""
    consumer: Consumer | None = None
    """The present one. Set by `_register`, reset by `close` and `forget`."""
    registrations = 0
    """How often a consumer was registered. Set by `_register`."""
    _isolated_at = -inf  # when it was last isolated (`time.monotonic`); set by `isolate`
    _quiet_since = -inf  # since when nothing has happened (`time.monotonic`); set by `isolate` and `leave_isolation`
    _seen = (0, 0, 0)  # `seen` at the last look; set by `leave_isolation`
    _ready = False  # whether the present connection may consume; set by `consume`

    def __init__(
        self,
        queue: str,
        pace: Pace,
        waiting: Waiting[RabbitDelivery],
        *,
        budget: Budget | None = None,
        is_partition: bool = False,
    ) -> None:
        """Consume nothing yet.

        Args:
            queue: its name.
            pace: decides when to consume it, and with which prefetch.
            waiting: where deliveries are put; shared with other queues.
            budget: how much may be in hand; shared with other queues. None: any number of bytes.
            is_partition: whether its messages are published by record, with the hash slot as routing key.
        """
        self.queue = queue
        self.pace = pace
        self._waiting = waiting
        self._budget = budget
        self._is_partition = is_partition
        self._pacing = asyncio.Lock()  # held while a consumer is registered, acknowledges or is closed
        self._wanted = asyncio.Event()  # whether a channel is to be opened; set by `repaced`
        self.registered = asyncio.Event()
        """Set when a consumer is registered, cleared when the connection is lost."""
        self._registered_again = asyncio.Event()  # set with it, cleared by `renew`

    @property
    def consuming(self) -> bool:
        """Whether a consumer is registered, or is about to be registered again."""
        waits = self.pace.stopping or self.pace.paused_by - {_HAND_OVER}
        return self._ready and not waits and self.registered.is_set()

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled."""
        return 0 if self.consumer is None else self.consumer.in_hand

    def in_hand_up_to(self, delivery: RabbitDelivery) -> int:
        """How many deliveries are not settled, of those up to and with this one."""
        return delivery.consumer.in_hand_up_to(delivery.tag)

    @property
    def seen(self) -> tuple[int, int, int]:
        """Something that changes with each delivery, registration and settlement."""
        consumer = self.consumer
        return (
            (self.registrations, 0, 0)
            if consumer is None
            else (self.registrations, consumer.last_tag, consumer.in_hand)
        )

    @property
    def active(self) -> bool:
        """Whether the present consumer was given a message: a queue with a single active consumer gives it to no other."""
        return self.consumer is not None and self.consumer.active

    async def consume(
        self, connection: aio_pika.Connection, frame_reader: FrameReader, established: Callable[[], None]
    ) -> None:
        """Consume through one channel after the other; never return.

        Raises:
            One of `link.LOST`: the connection or the channel is lost, or the broker has cancelled the consumer.
        """
        self._ready = True
        self.repaced()
        consumer = await self._register(connection, frame_reader)
        established()
        while True:
            if consumer is not None:
                await consumer.wait_ended()
            await self._wanted.wait()
            consumer = await self._register(connection, frame_reader)

    async def keep_consuming(
        self,
        connected: Connected,
        established: Callable[[], None],
        restore: Callable[[], Awaitable[object]],
        *,
        alone: bool = False,
    ) -> None:
        """As `consume`, but a queue that takes no consumer is tried again, and does not disturb others; never return.

        Args:
            connected: the connection that queues share, or opens one for this queue alone.
            alone: which of them it is. If the broker ends one for this queue alone by an error of its own, it has failed to
                deliver a message of this queue, which is isolated then.
            established: called after each attempt, also a failed one: others need not wait for a queue without a leader.
            restore: awaited if the queue does not exist.
        """
        backoff, failed_deliveries = Backoff(first=1.0, most=30.0), 0

        def began() -> None:
            self.outage = None
            backoff.reset()
            established()

        outage: Outage | None = None
        while True:
            missing = outage is not None and outage.kind is OutageKind.NOT_FOUND
            error = await self._consume_until_lost(connected, began, restore if missing else None)
            outage, failed_delivery = describe(error), alone and broker_failed(error)
            failed_deliveries = 0 if self.active else failed_deliveries + failed_delivery
            self._lost(outage)
            established()
            if failed_delivery and failed_deliveries < _DELIVERED_AGAIN:
                self.isolate()
                await asyncio.sleep(_DELIVERED_AGAIN_SECONDS)
                continue
            await asyncio.sleep(_CONNECTION_LOST_SECONDS)
            delay = backoff.delay()
            log.warning("partition_unavailable", queue=self.queue, reason=outage.text, retry_in_seconds=round(delay, 1))
            await asyncio.sleep(delay)

    async def _consume_until_lost(
        self, connected: Connected, established: Callable[[], None], restore: Callable[[], Awaitable[object]] | None
    ) -> BaseException:
        try:
            with asking_the_driver():
                if restore is not None:
                    await restore()
                async with connected() as (connection, frame_reader):
                    await self.consume(connection, frame_reader, established)
        except LOST as error:
            return error
        raise AssertionError("`consume` has returned")

    def _lost(self, outage: Outage) -> None:
        """This queue has no consumer any more: what it has in hand comes again, and is not processed."""
        self.outage = outage.text
        self._waiting.remove(lambda delivery: delivery.consumer is self.consumer)
        self.forget()

    async def _register(self, connection: aio_pika.Connection, frame_reader: FrameReader) -> Consumer | None:
        """Open a channel and consume on it with the prefetch that is wanted; None if nothing is to be consumed."""
        if not self.pace.wanted:
            return None
        channel = await open_channel(connection)
        consumer = Consumer(
            channel,
            self.queue,
            self._waiting,
            single_active=self.pace.single_active,
            budget=self._budget,
            read_seconds=lambda: frame_reader.read_seconds,
        )
        routed = consumer.route if self._is_partition else None
        frame_reader.channels[channel.number] = Inbound(deliver=consumer.deliver, routed=routed, full=consumer.full)
        async with self._pacing:
            self.consumer = consumer
            prefetch = self.pace.wanted
            if prefetch:
                await consumer.register(prefetch)
                self.pace.opened()
                self.registrations += 1
                self.registered.set()
                self._registered_again.set()
                self.repaced()
        if not prefetch:
            await self.close()
        return consumer

    def forget(self) -> None:
        """The connection is lost: everything in hand comes again."""
        if self.consumer is not None:
            self.consumer.abandon()
            self.consumer = None
        self._ready = False
        self.pace.closed()
        self.registered.clear()
        self.repaced()

    def repaced(self) -> None:
        """Let a channel be opened, or the next `Intake.take` decide again, if the pace says so now."""
        if self._ready and self.consumer is None and self.pace.wanted:
            self._wanted.set()
        else:
            self._wanted.clear()
        self._waiting.wake()

    async def synchronize(self) -> None:
        """Return when the broker has read the acknowledgements so far, or the connection is lost."""
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                if self.consumer is not None:
                    await self.consumer.synchronize()

    async def acknowledge(self, deliveries: Sequence[RabbitDelivery]) -> int:
        """Acknowledge `deliveries`, or keep the acknowledgements back while the consumer is being closed.

        Returns how many of them are settled by that, or were rejected before: the others were of a channel that is lost.
        """
        acknowledged = 0
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                consumer = self.consumer
                if consumer is not None:
                    handled = [delivery for delivery in deliveries if delivery.consumer is consumer]
                    tags = [delivery.tag for delivery in handled if consumer.has(delivery.tag)]
                    self.pace.settled(handled)
                    await self._settle(consumer, tags)
                    acknowledged = len(tags) + consumer.forget_rejected(delivery.tag for delivery in handled)
        return acknowledged

    async def _settle(self, consumer: Consumer, tags: Sequence[int]) -> None:
        if self.pace.state in (State.CLOSED, State.CLOSING):
            consumer.keep(tags)  # an acknowledgement lets the broker send more
        elif self.pace.wanted > consumer.prefetch:
            await consumer.widen(self.pace.wanted, tags)
        else:
            await consumer.acknowledge(tags)

    async def prove(self, deliveries: Sequence[RabbitDelivery]) -> None:
        """These were processed safely, although they cannot be acknowledged yet: they prove the consumer all the same."""
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                consumer = self.consumer
                if consumer is not None:
                    self.pace.proved([delivery for delivery in deliveries if delivery.consumer is consumer])
                    await self._settle(consumer, ())

    async def resume(self, by: str) -> None:
        """Consume again, unless others still pause, and acknowledge what was kept back."""
        self.pace.resume(by)
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                if self.consumer is not None:
                    await self._settle(self.consumer, ())
        self.repaced()

    async def renew(self) -> None:
        """Consume through a new channel; return when the queue has registered it. Does nothing if something is in hand.

        Messages that arrive meanwhile are returned in order, and come again.
        """
        before, registrations = self.consumer, self.registrations
        self._registered_again.clear()
        await self.close(unless_in_hand=True)
        if self.consumer is not before and registrations == self.registrations:
            await self._registered_again.wait()

    async def close(self, *, unless_active: bool = False, unless_in_hand: bool = False) -> int:
        """Return everything in hand to the queue, in order; how many messages. It is consumed again if the pace says so.

        With `unless_active` nothing happens if a message has arrived, because it may be under way, or if the queue is isolated
        (see `hand_over`). With `unless_in_hand` nothing happens if something is in hand; and if nothing arrives meanwhile, the
        next consumer begins with the same prefetch.
        """
        count = 0
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                if (unless_active and (self.active or self.pace.isolated)) or (unless_in_hand and self.in_hand):
                    return 0
                consumer, self.consumer = self.consumer, None
                if consumer is not None:
                    self._waiting.remove(lambda delivery: delivery.consumer is consumer)
                    try:
                        count = await consumer.close()
                    finally:
                        self.pace.closed(count, still_proved=unless_in_hand and not count)
        self.repaced()
        return count

    def isolate(self) -> None:
        """Consume one message at a time from the next registration on; see `Pace.isolate`."""
        self.pace.isolate()
        self._isolated_at = self._quiet_since = time.monotonic()

    @property
    def was_isolated(self) -> bool:
        """Whether it is isolated, or was a short while ago."""
        return self.pace.isolated or time.monotonic() - self._isolated_at < _APART_SECONDS

    async def leave_isolation(self) -> None:
        """Consume with the full prefetch again if nothing is in hand: then nothing that was returned before is still to come.

        Most queues were isolated because of another one. A message that has to wait must not hold them up for long.
        """
        if self._seen != self.seen:
            # After each acknowledgement nothing is in hand until the next message arrives, which may be on its way.
            self._seen, self._quiet_since = self.seen, time.monotonic()
        if time.monotonic() - self._quiet_since < _ISOLATED_SECONDS or not self.pace.isolated:
            return
        if await self._cancelled_while_empty():
            self.pace.leave_isolation()
            await self.close(unless_in_hand=True)  # if something has arrived: once that is finished

    async def _cancelled_while_empty(self) -> bool:
        """Let the broker send nothing more if nothing is in hand. Otherwise the close would return what is on its way."""
        with suppress(*LOST), asking_the_driver():
            async with self._pacing:
                if self.consumer is not None and self.consumer.is_empty:
                    await self.consumer.cancel()
                    return True
        return False

    async def next_arrives(self) -> None:
        """Wait a moment for the next message if the queue is isolated and nothing of it is in hand; then let none come.

        The broker may have sent it already. If it arrives after the last one was taken, it is returned behind all others
        that were returned before.
        """
        if not self.pace.isolated:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_ARRIVES_SECONDS):
                while self.consumer is not None and self.consumer.is_empty:
                    await self._waiting.changed()
        await self._cancelled_while_empty()

    async def hand_over(self, alone: Callable[[], AbstractAsyncContextManager[object]], seconds: float) -> int | None:
        """Leave the queue to the next consumer in line, in order, and stand at the end of the line.

        What is returned counts as a failed delivery. If something in hand was returned several times before, and cannot be
        finished now, the queue is kept. So is one that is isolated: what arrives meanwhile would be returned behind the others
        that were returned. What waits of it is taken before what waits of other queues.

        Args:
            alone: held while everything that is not finished is returned.
            seconds: how long what is in hand may take until then; in the second half of it nothing more is taken.

        Returns:
            How many messages were returned; None if the queue is kept.
        """
        if self.pace.isolated:
            return None
        self.pace.pause(_HAND_OVER)
        self.repaced()
        try:
            if (consumer := self.consumer) is not None:
                # The records of other queues are others, so their order does not matter.
                self._waiting.put_first(lambda delivery: delivery.consumer is consumer)
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds / 2):
                        await consumer.empty()
                if consumer.doubtful:
                    return None
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds / 2):
                        await consumer.finish()
            async with alone():
                return await self.close()
        finally:
            await self.resume(_HAND_OVER)
