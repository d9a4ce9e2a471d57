"""One channel that deliveries come through: what is out on loan, and how it is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import takewhile

import aiormq
from aiormq.abc import DeliveredMessage

from task_activity_log.aio import Waiting
from task_activity_log.message import Delivery
from task_activity_log.rabbitmq import headers
from task_activity_log.rabbitmq.link import describe

_CANCEL_SECONDS = 3.0

_KEPT_IN_ORDER = 32
"""Up to so many messages that one frame gives back keep their order on RabbitMQ 3; more are shuffled (a large Erlang map
has none), and so are those of several frames when the queue is slow (it joins them). What a closed channel had comes
again in order, and counts as often: a failed delivery each. 4.0 keeps the order of any number."""


class RabbitDelivery(Delivery):
    """A delivery of one consumer, with the tag that settles it."""

    __slots__ = ("consumer", "tag")

    def __init__(self, consumer: Consumer, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self.consumer = consumer
        self.tag = tag
        self.body = body
        self.properties = headers.decode(header)
        # At the first delivery the header is the publisher's own, if there is one.
        count = self.properties.headers.get("x-delivery-count") if redelivered else None
        self.attempts = count if isinstance(count, int) else 0


class Consumer:
    """Consumes one queue through one channel. Delivery tags, and so all loans, die with the channel."""

    def __init__(self, channel: aiormq.abc.AbstractChannel, queue: str, waiting: Waiting[RabbitDelivery]) -> None:
        self._channel = channel
        self._queue = queue
        self._waiting = waiting
        self._unsettled: dict[int, None] = {}  # in the order delivered
        self._tag: str | None = None
        self._cancelled = asyncio.Event()
        self.prefetch = 0
        """How many may be on loan; 0 while not registered."""
        self.closed = False
        channel.on_consumer_cancel_callbacks.add(lambda _: self._cancelled.set())

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled."""
        return len(self._unsettled)

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """Take a delivery in. Called by the transport."""
        if self.closed:
            return
        self._unsettled[tag] = None
        self._waiting.put(RabbitDelivery(self, tag, redelivered, header, body))

    async def register(self, prefetch: int) -> None:
        """Consume with this prefetch, anew if need be: qos does not change a consumer that is there."""
        await self.cancel()  # what it has on loan stays so, and does not count against the new one's prefetch
        await self._channel.basic_qos(prefetch_count=prefetch)
        ok = await self._channel.basic_consume(self._queue, _taken_by_the_frame_reader)
        self._tag = ok.consumer_tag
        self.prefetch = prefetch

    async def cancel(self) -> None:
        """Let the broker send nothing more."""
        if self._tag is not None:
            tag, self._tag, self.prefetch = self._tag, None, 0
            await self._channel.basic_cancel(tag, timeout=_CANCEL_SECONDS)

    def has(self, tag: int) -> bool:
        """Whether a delivery is still on loan; those given back meanwhile come again."""
        return tag in self._unsettled

    async def acknowledge(self, tags: Sequence[int]) -> None:
        """Acknowledge what is on loan: one frame where everything delivered before is settled too, a frame each otherwise."""
        done = sorted(tag for tag in tags if tag in self._unsettled)
        for tag in done:
            del self._unsettled[tag]
        oldest = next(iter(self._unsettled), None)
        together = done if oldest is None else list(takewhile(oldest.__gt__, done))
        if together:
            await self._channel.basic_ack(together[-1], multiple=True, wait=False)
        for tag in done[len(together) :]:
            await self._channel.basic_ack(tag, wait=False)

    async def requeue(self) -> int:
        """Return all that is on loan to the queue at once, so that it comes again in its order; how many.

        With one frame; or by closing the channel, and with it the consumer, where one frame would shuffle them.
        """
        count = len(self._unsettled)
        if count:
            last = next(reversed(self._unsettled))
            self._unsettled.clear()
            if count > _KEPT_IN_ORDER and self._before_4():
                self.closed = True
                await self._channel.close()
            else:
                await self._channel.basic_nack(last, multiple=True, requeue=True)
        return count

    def _before_4(self) -> bool:
        version = self._channel.connection.server_properties.get("version")
        text = version.decode() if isinstance(version, bytes) else str(version)
        return text.startswith("3.")

    async def wait_lost(self) -> None:
        """Return never; raise when the channel closes or the broker cancels the consumer.

        Raises:
            ConnectionError: with the reason.
        """
        cancelled = asyncio.ensure_future(self._cancelled.wait())
        closing = self._channel.closing  # a lost connection closes its channels
        try:
            await asyncio.wait({cancelled, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelled.cancel()
        if self._cancelled.is_set():
            raise ConnectionError("the broker cancelled the consumer (was the queue deleted or moved?)")
        if self.closed:
            raise ConnectionError("what was in hand was given back")
        error = None if closing.cancelled() else closing.exception()
        raise ConnectionError("closed" if error is None else describe(error))


async def _taken_by_the_frame_reader(_: DeliveredMessage) -> None:
    raise AssertionError("the driver was handed a delivery")
