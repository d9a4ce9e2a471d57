"""One channel that deliveries come through: which of them are not settled yet, and how they are settled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import takewhile
from math import inf

from aiormq.abc import AbstractChannel, DeliveredMessage

from task_activity_log.aio import Waiting
from task_activity_log.message import Delivery
from task_activity_log.rabbitmq import headers
from task_activity_log.rabbitmq.channel import wait_closed
from task_activity_log.rabbitmq.weight import weigh

_CANCEL_SECONDS = 3.0

_KEPT_IN_ORDER = 32
"""RabbitMQ 3 keeps the order of at most this many messages that one nack requeues (larger Erlang maps are unordered), and
mixes up those of several nacks when the queue is slow and joins them. Closing the channel keeps any number in order, at
the same cost of one failed delivery each. RabbitMQ 4 has no limit."""


class RabbitDelivery(Delivery):
    """A delivery of one consumer, with the tag that settles it."""

    __slots__ = ("consumer", "tag", "weight")

    def __init__(self, consumer: Consumer, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self.consumer = consumer
        self.tag = tag
        self.body = body
        self.properties = headers.decode(header)
        # At the first delivery a header of this name is the publisher's own.
        count = self.properties.headers.get("x-delivery-count") if redelivered else None
        self.attempts = count if isinstance(count, int) else 0
        self.weight = weigh(body, header, len(self.properties.headers))


class Consumer:
    """Consumes one queue through one channel. Delivery tags die with the channel, and its deliveries come again."""

    def __init__(
        self, channel: AbstractChannel, queue: str, waiting: Waiting[RabbitDelivery], *, most_weight: float = inf
    ) -> None:
        """Consume nothing yet. `waiting` is where deliveries are put; `full` says whether they weigh `most_weight`."""
        self._channel = channel
        self._queue = queue
        self._waiting = waiting
        self._unsettled: dict[int, int] = {}  # the weight of each by its tag, in the order delivered
        self._most_weight = most_weight
        self._weight = 0  # at least that of all unsettled deliveries: it is not lowered when they are settled
        self._registered_as: str | None = None  # the consumer tag; None while not registered
        self._cancelled = asyncio.Event()  # set by the driver when the broker cancels the consumer
        self._abandoned = False  # set by `abandon` alone
        channel.on_consumer_cancel_callbacks.add(lambda _: self._cancelled.set())

    @property
    def registered(self) -> bool:
        """Whether the broker may send messages."""
        return self._registered_as is not None

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled."""
        return len(self._unsettled)

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """Take a delivery in. Called by the frame reader."""
        if self._abandoned:
            return
        delivery = RabbitDelivery(self, tag, redelivered, header, body)
        self._unsettled[tag] = delivery.weight
        self._weight += delivery.weight
        self._waiting.put(delivery, delivery.weight)

    def full(self, arriving: int) -> bool:
        """Whether something is in hand that leaves no room for a body of `arriving` bytes. Called by the frame reader."""
        if self._weight + arriving > self._most_weight:
            self._weight = sum(self._unsettled.values())
        return bool(self._unsettled) and self.registered and self._weight + arriving > self._most_weight

    async def register(self, prefetch: int) -> None:
        """Consume with this prefetch, which does not count what is in hand already.

        A consumer that is registered must be cancelled first: basic.qos changes only those that come later.
        """
        await self._channel.basic_qos(prefetch_count=prefetch)
        ok = await self._channel.basic_consume(self._queue, _not_called)
        self._registered_as = ok.consumer_tag

    async def cancel(self) -> None:
        """Let the broker send nothing more. What is in hand stays there."""
        if self._registered_as is not None:
            tag, self._registered_as = self._registered_as, None
            await self._channel.basic_cancel(tag, timeout=_CANCEL_SECONDS)

    def has(self, tag: int) -> bool:
        """Whether a delivery is not settled yet. One that was requeued meanwhile comes again."""
        return tag in self._unsettled

    async def acknowledge(self, tags: Iterable[int]) -> None:
        """Acknowledge those that are not settled: with one frame where all older ones are settled, else a frame each."""
        done = sorted(filter(self.has, tags))
        for tag in done:
            del self._unsettled[tag]
        oldest = next(iter(self._unsettled), None)
        together = done if oldest is None else list(takewhile(oldest.__gt__, done))
        if together:
            await self._channel.basic_ack(together[-1], multiple=True, wait=False)
        for tag in done[len(together) :]:
            await self._channel.basic_ack(tag, wait=False)

    async def requeue(self) -> int:
        """Return everything in hand to the queue so that it comes again in order; returns how many messages.

        With one nack, or where that would change their order by closing the channel, and with it the consumer.
        """
        count = len(self._unsettled)
        if count:
            last = next(reversed(self._unsettled))
            self._unsettled.clear()
            if count > _KEPT_IN_ORDER and self._before_4():
                self.abandon()
                await self._channel.close()
            else:
                await self._channel.basic_nack(last, multiple=True, requeue=True)
        return count

    async def requeue_some(self, deliveries: Iterable[RabbitDelivery]) -> None:
        """Return these to the queue, in their order, and keep the others in hand."""
        for delivery in deliveries:
            self._unsettled.pop(delivery.tag, None)
            await self._channel.basic_nack(delivery.tag, requeue=True)

    def _before_4(self) -> bool:
        version = self._channel.connection.server_properties.get("version")
        text = version.decode() if isinstance(version, bytes) else str(version)
        return text.startswith("3.")

    def abandon(self) -> None:
        """Forget what is in hand and ignore what still arrives: the channel ends, and all of it comes again."""
        self._abandoned = True
        self._unsettled.clear()

    async def wait_lost(self) -> None:
        """Raise once the channel is closed or the broker has cancelled the consumer; never return.

        Raises:
            ConnectionError: with the reason.
        """
        reason = await wait_closed(self._channel, self._cancelled)
        if self._cancelled.is_set():
            raise ConnectionError("the broker cancelled the consumer (was the queue deleted or moved?)")
        raise ConnectionError("the channel was closed to requeue what was in hand" if self._abandoned else reason)


async def _not_called(_: DeliveredMessage) -> None:
    raise AssertionError("the frame reader has left a delivery to the driver")
