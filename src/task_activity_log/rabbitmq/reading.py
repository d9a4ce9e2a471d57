"""A queue that a subscriber reads, or an operator inspects: one connection, which is not rebuilt when lost."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

import aio_pika
from aiormq.abc import AbstractChannel

from task_activity_log.aio import Waiting
from task_activity_log.rabbitmq.channel import open_channel
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.frames import Inbound
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, connect
from task_activity_log.rabbitmq.queues import Choice, Found

PREFETCH_MAX = 65_535
"""The largest prefetch of AMQP 0-9-1, which has two bytes for it."""

_BACK_SECONDS = 2.0


class Reader(Consumer):
    """A consumer with a queue of its own in this process, where its deliveries are taken from."""

    def __init__(self, channel: AbstractChannel, found: Found) -> None:
        self.found = found
        """The queue, as it was before this reader consumed it."""
        self._arrived: Waiting[RabbitDelivery] = Waiting()
        super().__init__(channel, found.queue, self._arrived)
        self._ended = asyncio.ensure_future(self.wait_ended())
        self._ended.add_done_callback(self._close)

    def _close(self, ended: asyncio.Future[None]) -> None:
        _ = ended.cancelled() or ended.exception()  # read, or asyncio reports it where nobody takes any more
        self._arrived.close()

    async def take(self, most: int) -> list[RabbitDelivery]:
        """What has been delivered, at least one, at most `most`.

        Raises:
            ConnectionError: the connection is lost, or the queue is gone. What was not acknowledged comes again.
        """
        deliveries = await self._arrived.take(most)
        if not deliveries:
            await self._ended
        return deliveries

    async def remove(self, deliveries: Collection[RabbitDelivery]) -> int:
        """Acknowledge these, and return when the broker has read that; how many were not settled before.

        The driver only queues an acknowledgement, and drops it if the connection is closed at once.
        """
        tags = [delivery.tag for delivery in deliveries if self.has(delivery.tag)]
        await self.acknowledge(tags)
        await self._channel.basic_qos(prefetch_count=PREFETCH_MAX)  # the broker reads a channel's frames in order
        return len(tags)

    async def end(self) -> int:
        """Return everything that was not acknowledged to the queue; how many messages."""
        self._ended.cancel()
        back = self.in_hand
        with suppress(*LOST), asking_the_driver():
            await self.close()
        self.abandon()
        return back


@asynccontextmanager
async def reading(
    options: LinkOptions,
    purpose: str,
    choose: Choice,
    *,
    until_back: bool = False,
) -> AsyncIterator[Reader]:
    """Consume a queue; what was not acknowledged is returned to it at the end.

    Args:
        options: how to reach the broker.
        purpose: the connection's name in the broker's management.
        choose: which queue, and with which prefetch: see `rabbitmq.queues`.
        until_back: end only when what was returned is in the queue, or after two seconds: others may have taken it.

    Raises:
        One of `LOST`: nobody answers, or the broker refuses, for example because there is no such queue.
    """
    async with connect(options, purpose) as (connection, frame_reader):
        channel = await open_channel(connection)
        found = await choose(channel)
        reader = Reader(channel, found)
        frame_reader.channels[channel.number] = Inbound(deliver=reader.deliver)
        try:
            if found.prefetch:
                await reader.register(min(found.prefetch, PREFETCH_MAX))
            yield reader
        finally:
            back = await reader.end()
            if until_back and back:
                await _until_back(connection, found.queue, back)


async def _until_back(connection: aio_pika.Connection, queue: str, count: int) -> None:
    """Wait until the queue has `count` messages: RabbitMQ requeues in its own time, and shows none of them until then."""
    with suppress(*LOST), asking_the_driver():
        async with asyncio.timeout(_BACK_SECONDS):
            channel = await open_channel(connection)
            while ((await channel.queue_declare(queue, passive=True)).message_count or 0) < count:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)
