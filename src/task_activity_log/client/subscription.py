"""The subscriber's loop: each new reply once, acknowledged after the body of the loop."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from task_activity_log import wire
from task_activity_log.aio import Backoff
from task_activity_log.client.connections import no_connection, options
from task_activity_log.client.messages import ClientError, Reply
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, describe
from task_activity_log.rabbitmq.queues import existing_queue, own_queue
from task_activity_log.rabbitmq.reading import reading


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

    If the loop is left in the middle of its body (`break`, `return`, an exception), that reply is not acknowledged and
    is delivered again. A lost connection is opened again, however long that takes.

    Args:
        broker: the URL.
        queue: the queue of the replies.
        exchange: the exchange that a queue of this subscriber's own is bound to.
        routing_keys: such as `stored.*` or `rejected`: read the replies with these keys through a queue of this
            subscriber's own, and take nothing from others. Replies that are published while it is not connected are
            missed.
        everything: also yield repeated replies, and records that are older than the last one yielded for their id or the
            same. (XML has only the milliseconds of `modified_dateutc`, so two states of one millisecond are both yielded.)
        prefetch: how many replies may be delivered ahead.
        remember: how many message_ids, and how many records' times, are remembered to recognize those.
        most: end after this many; None: never.
        on_connected: called each time that it begins to read the queue.
        on_outage: called with the reason each time that the connection is lost or cannot be opened again.

    Raises:
        ClientError: the first connection cannot be opened, or the queue does not exist.
    """
    link = options(broker)
    choice = own_queue(exchange, prefetch, routing_keys) if routing_keys else existing_queue(queue, prefetch)
    news = _News(remember)
    backoff = Backoff(first=0.5)

    connected = False
    while True:
        try:
            with asking_the_driver():
                async with reading(link, "subscriber", choice) as reader:
                    connected = True
                    backoff.reset()
                    on_connected()
                    while most is None or most > 0:
                        for delivery in await reader.take(prefetch):
                            reply = Reply.of(delivery)
                            if everything or news.is_news(reply):
                                yield reply
                                most = most and most - 1
                            await reader.acknowledge([delivery.tag])
                            if most == 0:
                                return
                    return
        except LOST as error:
            if not connected:
                raise no_connection(link, describe(error)) from error
            on_outage(describe(error).text)
        await asyncio.sleep(backoff.delay())


class _News:
    """Recognizes what was yielded before, by message_id and by record. Remembers the latest `most` of each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: OrderedDict[str | None, None] = OrderedDict()
        self._newest: OrderedDict[UUID, _State] = OrderedDict()

    def is_news(self, reply: Reply) -> bool:
        """Whether it is new; it is remembered then. Without a readable record, only its message_id counts."""
        if reply.message_id in self._seen:
            return False
        with suppress(ClientError):
            state = _State.of(reply)
            last = self._newest.get(reply.record.id)
            if last is not None and not state.may_follow(last):
                return False
            self._remember(self._newest, reply.record.id, state if last is None else state.after(last))
        if reply.message_id is not None:
            self._remember(self._seen, reply.message_id, None)
        return True

    def _remember(self, known: OrderedDict[Any, Any], key: object, value: object) -> None:
        known[key] = value
        known.move_to_end(key)
        if len(known) > self._most:
            known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _State:
    """Which state of a record a reply has. In XML its time is cut to milliseconds, so states of one millisecond look alike."""

    modified: datetime
    cut: bool
    """Whether `modified` has lost its microseconds."""
    content: int
    """The hash of the record."""

    @classmethod
    def of(cls, reply: Reply) -> Self:
        """The state that a reply has. Raises `ClientError` if it has no readable record."""
        record = reply.record
        return cls(record.modified_dateutc, wire.is_xml(wire.media_type(reply.content_type).name), hash(record))

    def may_follow(self, last: Self) -> bool:
        """Whether it is newer than the last state that was yielded, or may be: the newest state must not be skipped."""
        if not (self.cut or last.cut):
            return self.modified > last.modified
        mine, yielded = _milliseconds(self.modified), _milliseconds(last.modified)
        return mine > yielded or (mine == yielded and self.content != last.content)

    def after(self, last: Self) -> Self:
        """This state, with the latest time that is known of the two."""
        if self.modified >= last.modified:
            return self
        return replace(self, modified=last.modified, cut=last.cut)


def _milliseconds(instant: datetime) -> datetime:
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)
