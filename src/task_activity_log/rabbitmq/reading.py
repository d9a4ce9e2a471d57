"""A queue read by a subscriber, or by a person who looks at it: one session, without supervision of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress

import aio_pika
import aiormq

from task_activity_log.aio import Waiting
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.frames import Inbound
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, connect

PREFETCH_MAX = 65_535
"""AMQP has two bytes for it."""

_BACK_SECONDS = 2.0


class Reader(Consumer):
    """A consumer whose deliveries are taken here."""

    def __init__(self, channel: aiormq.abc.AbstractChannel, queue: str) -> None:
        self.queue = queue
        self._arrived: Waiting[RabbitDelivery] = Waiting()
        super().__init__(channel, queue, self._arrived)
        self._ended = asyncio.ensure_future(self.wait_lost())
        self._ended.add_done_callback(self._close)

    def _close(self, ended: asyncio.Future[None]) -> None:
        _ = ended.cancelled() or ended.exception()  # seen, also where nobody takes any more
        self._arrived.close()

    async def take(self, most: int) -> list[RabbitDelivery]:
        """What has been delivered, at least one, at most `most`.

        Raises:
            ConnectionError: the link is lost, or the queue gone. What was delivered and not accepted comes again.
        """
        deliveries = await self._arrived.take(most)
        if not deliveries:
            await self._ended
        return deliveries

    async def requeue_some(self, deliveries: Collection[RabbitDelivery]) -> None:
        """Return these to the queue, in their order, and keep the others."""
        for delivery in deliveries:
            self._unsettled.pop(delivery.tag, None)
            await self._channel.basic_nack(delivery.tag, requeue=True)

    async def remove(self, deliveries: Collection[RabbitDelivery]) -> int:
        """Accept these, and return when the broker has read that; how many were still on loan.

        The driver only queues an acknowledgement, and drops it if the connection is closed at once.
        """
        tags = [delivery.tag for delivery in deliveries if self.has(delivery.tag)]
        await self.acknowledge(tags)
        await self._channel.basic_qos(prefetch_count=PREFETCH_MAX)  # a channel's frames are read in their order
        return len(tags)

    async def end(self) -> int:
        """Return everything that was not accepted; how many."""
        self._ended.cancel()
        back = self.in_hand
        with suppress(*LOST), asking_the_driver():
            await self.cancel()
            await self.requeue()
        self.closed = True
        return back


@asynccontextmanager
async def reading(
    options: LinkOptions,
    purpose: str,
    choose: Callable[[aiormq.abc.AbstractChannel], Awaitable[tuple[str, int]]],
    *,
    until_back: bool = False,
) -> AsyncIterator[Reader]:
    """Consume a queue; what was not accepted is returned to it at the end.

    Args:
        options: how to reach the broker.
        purpose: the link's name in the broker's management.
        choose: declares or looks at the queue, and says its name and how many may be on loan; 0 for none at all.
        until_back: end only when what was returned is in the queue, or after two seconds: others may have taken it.

    Raises:
        One of `LOST`: nobody answers, or the broker refuses, for one because there is no such queue.
    """
    async with connect(options, purpose) as (connection, frame_reader):
        opened = await connection.channel(publisher_confirms=False)  # held: the driver only has it weakly
        channel = await opened.get_underlay_channel()
        queue, prefetch = await choose(channel)
        reader = Reader(channel, queue)
        frame_reader.channels[channel.number] = Inbound(deliver=reader.deliver)
        try:
            if prefetch:
                await reader.register(min(prefetch, PREFETCH_MAX))
            yield reader
        finally:
            back = await reader.end()
            if until_back and back:
                await _until_back(connection, queue, back)


async def _until_back(connection: aio_pika.Connection, queue: str, count: int) -> None:
    """Wait until the queue has that many again: RabbitMQ puts them back in its own time, and who looks sees none until then."""
    with suppress(*LOST), asking_the_driver():
        async with asyncio.timeout(_BACK_SECONDS):
            channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
            while ((await channel.queue_declare(queue, passive=True)).message_count or 0) < count:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)
