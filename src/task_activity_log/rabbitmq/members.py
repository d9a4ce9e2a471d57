"""How many workers consume the partitions, and how many of them are short: counted by the broker.

A passive declare of a queue with a single active consumer does not count those who stand by. So each worker also consumes
two queues that nobody publishes to, and the broker counts their consumers: `workers`, as long as it is connected, and
`workers.short`, as long as it has less than its share of the partitions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import aio_pika
from aiormq.abc import AbstractChannel, DeliveredMessage

from task_activity_log.rabbitmq.channel import answered, open_channel
from task_activity_log.rabbitmq.topology import Topology

T = TypeVar("T")

_ANSWER_SECONDS = 10.0


class Members:
    """One worker among those of a connection's broker."""

    _short: str | None = None  # the consumer tag on the queue of those who are short; set by `say_short`

    def __init__(self, channel: AbstractChannel, topology: Topology, read_seconds: Callable[[], float]) -> None:
        """To be created by `join`."""
        self._read_seconds = read_seconds
        self._channel = channel
        self._topology = topology

    async def count(self) -> tuple[int, int]:
        """How many workers there are, and how many of them are short.

        Raises:
            One of `link.LOST`: the connection is lost.
        """
        workers = await self._answered(self._channel.queue_declare(self._topology.workers_queue, passive=True))
        short = await self._answered(self._channel.queue_declare(self._topology.short_workers_queue, passive=True))
        return workers.consumer_count or 0, short.consumer_count or 0

    async def say_short(self, short: bool) -> None:
        """Let the others know whether this worker is short.

        Raises:
            One of `link.LOST`: the connection is lost.
        """
        if short and self._short is None:
            ok = await self._answered(
                self._channel.basic_consume(self._topology.short_workers_queue, _ignored, no_ack=True)
            )
            self._short = ok.consumer_tag
        elif not short and self._short is not None:
            tag, self._short = self._short, None
            await self._answered(self._channel.basic_cancel(tag))

    async def _answered(self, asking: Awaitable[T]) -> T:
        return await answered(asking, _ANSWER_SECONDS, self._read_seconds)


async def join(connection: aio_pika.Connection, topology: Topology, read_seconds: Callable[[], float]) -> Members:
    """Become one of the workers, until the connection is lost.

    `read_seconds` says for how long the connection has been read without a pause, because there is room.

    Raises:
        One of `link.LOST`: the connection is lost, or the broker refuses.
    """
    channel = await open_channel(connection)
    await channel.basic_consume(topology.workers_queue, _ignored, no_ack=True, timeout=_ANSWER_SECONDS)
    return Members(channel, topology, read_seconds)


async def _ignored(_: DeliveredMessage) -> None:
    """What somebody publishes to these queues is of no use. It is taken, so that it does not stay there."""
