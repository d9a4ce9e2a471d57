"""Publishes records as they are now, as replies with the outcome `snapshot`, for subscribers that have missed some."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from task_activity_log.client.connections import publishing, refusal
from task_activity_log.client.errors import ClientError
from task_activity_log.client.rate import Rate
from task_activity_log.client.routing import no_exchange
from task_activity_log.pipeline.reply import Reply, snapshot
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.exchange import routing_key
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.properties import properties_of
from task_activity_log.rabbitmq.publisher import MessageMax, Publisher
from task_activity_log.record import StoredTaskActivityLog
from task_activity_log.wire import JSON, Nulls

_AGAIN_SECONDS = 0.5
_TIMEOUT_SECONDS = 60.0
"""A broker that restarts with many queues, or on a busy machine, may need more than half of it."""
_BATCH = 500


class Interrupted(ClientError):
    """Not all records were sent. Those with ids up to `after` were; None: none were."""

    def __init__(self, text: str, after: UUID | None) -> None:
        super().__init__(text)
        self.after = after


@dataclass
class Sent:
    """How far it has come."""

    count: int = 0
    too_large: int = 0
    """How many records are longer than the broker takes. They are not sent."""
    after: UUID | None = None
    """The id of the last record that was sent."""
    unanswered: bool = False
    """Whether some behind it may have been sent: they were published, and the broker has not answered."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the records are sent."""

    exchange: str = "task_activity_log.replies"
    """The exchange of the replies, with the routing key `stored.snapshot`."""
    queue: str | None = None
    """Instead of the exchange, one queue."""
    media_type: str = JSON
    nulls: Nulls = "emit"

    def outgoing(self, reply: Reply) -> Outgoing:
        """The message with a record."""
        to = ("", self.queue) if self.queue is not None else (self.exchange, routing_key(reply))
        return Outgoing(*to, properties_of(reply), reply.body)


async def resend(
    broker: str | LinkOptions,
    pages: AsyncIterable[Sequence[StoredTaskActivityLog]],
    target: Target,
    *,
    rate: float = 500.0,
    sent: Sent,
    on_sent: Callable[[int], None] = lambda _: None,
    on_waiting: Callable[[str], None] = lambda _: None,
) -> None:
    """Publish these records in their order, at most `rate` per second, each confirmed by the broker.

    A record has the same message_id each time it is sent, until it is changed. What the broker refuses, or what is lost with a
    connection, is sent again for a minute. `sent` is kept up to date, and `on_sent` is called with how many more were sent.
    `on_waiting` is called with the reason when nothing is taken.

    Raises:
        Interrupted: no queue takes them, or the broker is away or refuses.
    """
    limit = MessageMax()
    pace = Rate(rate)
    size = max(1, min(_BATCH, int(rate / 10)))
    async with publishing(broker, "snapshots", limit) as publisher:
        async for page in pages:
            for start in range(0, len(page), size):
                batch = page[start : start + size]
                await pace.wait(len(batch))
                replies = [snapshot(record, target.media_type, target.nulls) for record in batch]
                await _Batch(publisher, limit, target, sent, on_waiting).publish(replies)
                sent.after = batch[-1].id
                on_sent(len(batch))


async def resend_one(broker: str | LinkOptions, record: StoredTaskActivityLog, target: Target) -> int:
    """Publish one record, as `resend` does; how many were sent: none if it is longer than the broker takes."""

    async def page() -> AsyncIterator[Sequence[StoredTaskActivityLog]]:
        yield [record]

    sent = Sent()
    await resend(broker, page(), target, sent=sent)
    return sent.count


class _Batch:
    """Publishes some records until the broker has all of them."""

    def __init__(
        self, publisher: Publisher, limit: MessageMax, target: Target, sent: Sent, on_waiting: Callable[[str], None]
    ) -> None:
        self._on_waiting, self._publisher = on_waiting, publisher
        self._limit = limit
        self._target = target
        self._sent = sent

    async def publish(self, replies: Sequence[Reply]) -> None:
        """Raises `Interrupted` if the broker has taken none of them for a while."""
        until, told = time.monotonic() + _TIMEOUT_SECONDS, ""
        while replies:
            replies, before = self._fitting(replies), len(replies)
            left, reason = await self._once(replies)
            if len(left) < before:
                until = time.monotonic() + _TIMEOUT_SECONDS
            elif time.monotonic() > until:
                raise self._interrupted(reason)
            elif reason != told:
                self._on_waiting(told := reason)
            replies = left
            if left:
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _once(self, replies: Sequence[Reply]) -> tuple[Sequence[Reply], str]:
        """Publish these once; those that the broker has not taken, and why."""
        self._sent.unanswered = True
        try:
            fates = await self._publisher.publish([self._target.outgoing(reply) for reply in replies])
        except Unavailable as error:
            return replies, error.reason
        self._sent.unanswered = Fate.LOST in fates or Fate.UNCONFIRMED in fates
        left = [reply for reply, fate in zip(replies, fates, strict=True) if fate is not Fate.CONFIRMED]
        self._sent.count += len(replies) - len(left)
        if Fate.LOST in fates and (why := self._no_way()):
            self._sent.unanswered = False  # the broker has taken none of them
            raise self._interrupted(why)
        if Fate.RETURNED in fates:
            queue, exchange = self._target.queue, self._target.exchange
            none = f"queue {queue} does not exist" if queue else f"no queue is bound to exchange {exchange}"
            raise self._interrupted(none)
        return left, self._publisher.last_reason if Fate.LOST in fates else "the broker refuses them: is a queue full?"

    def _no_way(self) -> str:
        """Why nothing at all can be published, if that is why the last channel was closed; otherwise empty."""
        reason = self._publisher.last_reason
        if reason.startswith("ACCESS_REFUSED"):
            return f"{refusal(reason)}: see Permissions in docs/subscribing.md"
        return no_exchange(self._target.exchange) if reason.startswith("NOT_FOUND") else ""

    def _fitting(self, replies: Sequence[Reply]) -> Sequence[Reply]:
        """Those that the broker's limit allows, as far as it is known: it says so when it closes a channel."""
        most = self._limit.known
        fitting = [reply for reply in replies if most is None or len(reply.body) <= most]
        self._sent.too_large += len(replies) - len(fitting)
        return fitting

    def _interrupted(self, reason: str) -> Interrupted:
        sent = self._sent
        nothing = "no record is confirmed" if sent.unanswered else "nothing was sent"
        how_far = f"{sent.count:,} sent, then" if sent.count else nothing
        return Interrupted(f"{how_far}: {reason}", sent.after)
