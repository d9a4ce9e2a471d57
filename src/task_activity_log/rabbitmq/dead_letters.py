"""Dead letters: a copy of each rejected message, with the reason (contract, section 6)."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from task_activity_log.aio import Slices
from task_activity_log.message import PERSISTENT, Properties
from task_activity_log.pipeline.request import MESSAGE_ID_MAX
from task_activity_log.problem import Problem, Unavailable
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import (
    BROKERS_HEADERS,
    NEEDED_HEADERS,
    OWN_HEADERS,
    TABLE_TOO_LONG,
    TOO_MANY,
    encode,
    readable_headers,
)
from task_activity_log.rabbitmq.link import LOST, asking_the_driver
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import MessageMax, Publisher, must_be_bare

log = structlog.get_logger(__name__)

_NOT_COPIED = BROKERS_HEADERS | {name.encode() for name in OWN_HEADERS}
_DETAIL_BYTES = 1_000
_BROKERS_BYTES = 1_024
"""Kept free in the frame: the broker adds headers of its own when it redelivers a message."""
_LONGEST_KEPT = {b"x-first-seen": 100, **dict.fromkeys(NEEDED_HEADERS, 4 * MESSAGE_ID_MAX + 100)}
"""The publisher's headers that stay if the others do not fit, and the longest valid entry of each in bytes, with its name. A
longer one could fill the frame."""


class DeadLetters:
    """Keeps a copy of each rejected message in the dead-letter queue."""

    def __init__(self, publisher: Publisher, queue: str, message_max: MessageMax | None = None) -> None:
        """Keep nothing yet. `message_max` is the broker's largest message, as far as it is known."""
        self._publisher = publisher
        self._queue = queue
        self._message_max = message_max or MessageMax()
        self._bare = False
        """Whether copies have what is needed alone, because the broker has ended the connection that published them."""

    async def keep(self, rejected: Sequence[tuple[RabbitDelivery, Problem]]) -> None:
        """Publish a copy of each message and return when all are confirmed.

        A message that is larger than the broker takes now (its limit was lowered while the message waited) is rejected
        instead: the broker then dead-letters the message itself, without the reason.

        Raises:
            Unavailable: the broker is away, or the queue is missing or refuses the copies. Keep all of them again.
        """
        most = self._message_max.known
        if most is not None:
            large = [delivery for delivery, _ in rejected if len(delivery.body) > most]
            rejected = [(delivery, problem) for delivery, problem in rejected if len(delivery.body) <= most]
            await self._leave_to_the_broker(large)
        slices = Slices()
        copies: list[Outgoing] = []
        for delivery, problem in rejected:
            properties = _copy(delivery, problem, self._publisher.header_max, bare=self._bare)
            copies.append(Outgoing("", self._queue, properties, delivery.body))
            if slices.over(len(properties.table)):
                await slices.next()
        fates = await self._publisher.publish(copies)
        if Fate.NACKED in fates:
            self._publisher.renew()
        if Fate.RETURNED in fates:
            self._publisher.restore()
        self._bare = must_be_bare(self._publisher, fates, was_bare=self._bare)
        for fate in fates:
            if fate is Fate.LOST:
                raise Unavailable("publisher connection lost", self._publisher.last_reason)
            if fate is not Fate.CONFIRMED:
                raise Unavailable(f"dead letters {fate.value}", f"queue {self._queue} does not take them")

    async def _leave_to_the_broker(self, deliveries: Sequence[RabbitDelivery]) -> None:
        for delivery in deliveries:
            with suppress(*LOST), asking_the_driver():  # on a lost channel: the message is delivered again
                await delivery.consumer.reject(delivery.tag)
        if deliveries:
            log.warning("dead_lettered_by_broker", count=len(deliveries))


def _copy(delivery: RabbitDelivery, problem: Problem, header_max: int, *, bare: bool) -> Properties:
    taken = datetime.fromtimestamp(delivery.taken, UTC)
    return copied(delivery.properties, problem, header_max, taken, redelivered=delivery.redelivered, bare=bare)


def copied(
    original: Properties,
    problem: Problem,
    header_max: int,
    taken: datetime,
    *,
    redelivered: bool = False,
    bare: bool = False,
) -> Properties:
    """The properties of a copy: those of the original, with the reason in headers.

    What the broker would act on is moved to headers as well. A header that other programs' drivers cannot read would end
    their connections, and is left out. If the content header came too close to `header_max` bytes, or not all headers were read,
    only those of the publisher's headers stay that determine how the request is processed.

    The same is done if `bare`. What the broker might act on is left out then as well: a type, or an address for the reply.

    `taken` is when the rejected delivery arrived. No request behind it was stored before, except if it was `redelivered`.
    """
    headers = _reasons(original, problem, taken, redelivered)
    entries = readable_headers(original.table, without=_NOT_COPIED)
    copy = replace(
        original,
        delivery_mode=PERSISTENT,
        user_id=None,
        expiration=None,
        table=b"".join(entry for _, entry in entries),
        headers=headers,
        unreadable=None,
    )
    unread = any(reason in (original.unreadable or "") for reason in (TABLE_TOO_LONG, TOO_MANY))
    if bare or unread or len(encode(copy, 0)) > header_max - _BROKERS_BYTES:
        headers["x-headers-dropped"] = True
        first = {name: entry for name, entry in reversed(entries) if len(entry) <= _LONGEST_KEPT.get(name, 0)}
        copy.table = b"".join(first.values())
        if b"x-first-seen" not in first:
            headers["x-first-seen"] = headers["x-last-seen"]
    if bare:
        copy.type = copy.reply_to = copy.cluster_id = None
    return copy


def _reasons(original: Properties, problem: Problem, taken: datetime, redelivered: bool) -> dict[str, object]:
    headers: dict[str, object] = {
        "x-error-code": str(problem.code),
        "x-error-detail": problem.detail.encode()[:_DETAIL_BYTES].decode(errors="ignore"),
    }
    # The broker would refuse another user's user_id, and would let the copy expire.
    if original.user_id is not None:
        headers["x-original-user-id"] = original.user_id
    if original.expiration is not None:
        headers["x-original-expiration"] = original.expiration
    seen_at = taken.isoformat(timespec="milliseconds")
    headers["x-last-seen"] = seen_at
    if "x-first-seen" not in original.headers:
        headers["x-first-seen"] = seen_at
    if redelivered:
        headers["x-redelivered"] = True
    return headers
