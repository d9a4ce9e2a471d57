"""The subscriber's loop: each reply that is news, once, acknowledged after the body of the loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar
from uuid import UUID

import aiormq

from task_activity_log.aio import Backoff
from task_activity_log.client.link import no_connection, options
from task_activity_log.client.messages import ClientError, Reply
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, describe
from task_activity_log.rabbitmq.reading import reading

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


async def subscribe(
    broker: str | LinkOptions,
    *,
    queue: str = "task_activity_log.replies",
    exchange: str = "task_activity_log.replies",
    routing_keys: Sequence[str] = (),
    everything: bool = False,
    prefetch: int = 100,
    remember: int = 100_000,
    most: int | None = None,
    on_connected: Callable[[], None] = lambda: None,
    on_outage: Callable[[str], None] = lambda _: None,
) -> AsyncGenerator[Reply, None]:
    """Yield the replies of a queue, and acknowledge each when the loop asks for the next.

    A loop that is left in the middle of its body (`break`, `return`, an exception) leaves that reply unacknowledged:
    it comes again. A lost connection is made again for as long as it takes.

    Args:
        broker: the URL.
        queue: whose replies to take.
        exchange: where the routing keys are bound.
        routing_keys: such as `stored.*` or `rejected`: read these through a queue of this subscriber alone instead, and
            take nothing from others. What is published while it is away, or between two connections, is not seen.
        everything: yield repeats, and records that are not newer than the last one yielded for their id, as well.
        prefetch: how many may wait here.
        remember: how many message_ids, and how many records' times, are remembered to tell those.
        most: end after so many; None: never.
        on_connected: told each time that it reads the queue from then on.
        on_outage: told why there is no connection.

    Raises:
        ClientError: the first connection cannot be made, or there is no such queue.
    """
    link = options(broker, on_outage)
    fresh = _Fresh(remember)
    backoff = Backoff(first=0.5)

    connected = False
    while True:
        try:
            with asking_the_driver():
                async with reading(
                    link, "subscriber", partial(_choose, queue, exchange, routing_keys, prefetch)
                ) as reader:
                    connected = True
                    backoff.reset()
                    on_connected()
                    while most is None or most > 0:
                        for delivery in await reader.take(prefetch):
                            reply = Reply.of(delivery)
                            if everything or fresh.is_news(reply):
                                yield reply
                                fresh.note(reply)
                                most = most and most - 1
                            await reader.acknowledge([delivery.tag])
                            if most == 0:
                                return
                    return
        except LOST as error:
            if not connected:
                raise no_connection(link, describe(error)) from error
            on_outage(describe(error))
        await asyncio.sleep(backoff.delay())


async def _choose(
    queue: str, exchange: str, routing_keys: Sequence[str], prefetch: int, channel: aiormq.abc.AbstractChannel
) -> tuple[str, int]:
    if not routing_keys:
        await channel.queue_declare(queue, passive=True)
        return queue, prefetch
    await channel.exchange_declare(exchange, passive=True)
    own = (await channel.queue_declare(exclusive=True, auto_delete=True)).queue or ""
    for key in routing_keys:
        await channel.queue_bind(own, exchange, key)
    return own, prefetch


class _Recent(Generic[K, V]):
    """The last few of a mapping."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        return self._items.get(key)

    def put(self, key: K, value: V) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._most:
            self._items.popitem(last=False)


class _Fresh:
    """What was yielded, by message_id and by record."""

    def __init__(self, most: int) -> None:
        self._seen: _Recent[str, bool] = _Recent(most)
        self._newest: _Recent[UUID, datetime] = _Recent(most)

    def is_news(self, reply: Reply) -> bool:
        if reply.message_id is not None and self._seen.get(reply.message_id):
            return False
        record = _record(reply)
        newest = record and self._newest.get(record.id)
        return newest is None or record.modified_dateutc > newest

    def note(self, reply: Reply) -> None:
        if reply.message_id is not None:
            self._seen.put(reply.message_id, True)
        if (record := _record(reply)) is not None:
            self._newest.put(record.id, record.modified_dateutc)


def _record(reply: Reply) -> Any:
    """The stored record; None for a problem, and for what cannot be read, which its reader shall see."""
    try:
        return None if reply.rejected else reply.record
    except ClientError:
        return None
