"""Dead letters: a copy of each rejected message, with the reason (contract, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from task_activity_log.aio import Slices
from task_activity_log.message import PERSISTENT, Properties
from task_activity_log.problem import Problem, Unavailable
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import encode, readable_headers
from task_activity_log.rabbitmq.publisher import Fate, Outgoing, Publisher

_DROPPED = frozenset((b"CC", b"BCC", b"x-death", b"x-delivery-count"))
"""Headers that are not copied: the first two would send the copy to more queues, the broker sets the others itself."""

_DETAIL_BYTES = 1_000
_BROKERS_BYTES = 1_024
"""Kept free in the frame: the broker adds headers of its own when it redelivers a message."""
_FIRST_SEEN_BYTES = 100
"""The longest valid `x-first-seen` entry, including its name. A longer one is not a time, and could fill the frame."""


class DeadLetters:
    """Keeps a copy of each rejected message in the dead-letter queue."""

    def __init__(self, publisher: Publisher, queue: str) -> None:
        self._publisher = publisher
        self._queue = queue

    async def keep(self, rejected: Sequence[tuple[RabbitDelivery, Problem]]) -> None:
        """Publish a copy of each message and return when all are confirmed.

        Raises:
            Unavailable: the broker is away, or the queue is missing or refuses the copies. Keep all of them again.
        """
        slices = Slices()
        copies: list[Outgoing] = []
        for delivery, problem in rejected:
            properties = copied(delivery.properties, problem, self._publisher.header_max)
            copies.append(Outgoing("", self._queue, properties, delivery.body))
            if slices.over(len(properties.table)):
                await slices.next()
        for fate in await self._publisher.publish(copies):
            if fate is not Fate.CONFIRMED:
                raise Unavailable(f"dead letters {fate.value}", f"{self._queue} does not take them")


def copied(original: Properties, problem: Problem, header_max: int) -> Properties:
    """The properties of a copy: those of the original, with the reason in headers.

    What the broker would act on is moved to headers as well. A header that other programs' drivers cannot read would end
    their connections, and is left out. If the content header came too close to `header_max` bytes,
    the publisher's headers are left out.
    """
    headers: dict[str, object] = {
        "x-error-code": str(problem.code),
        "x-error-detail": problem.detail.encode()[:_DETAIL_BYTES].decode(errors="ignore"),
    }
    # The broker would refuse another user's user_id, and would let the copy expire.
    if original.user_id is not None:
        headers["x-original-user-id"] = original.user_id
    if original.expiration is not None:
        headers["x-original-expiration"] = original.expiration
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    if "x-first-seen" not in original.headers:
        headers["x-first-seen"] = now
    ours = {name.encode() for name in headers}  # a replayed message has those of its last rejection
    entries = readable_headers(original.table, without=_DROPPED | ours)
    copy = replace(
        original,
        delivery_mode=PERSISTENT,
        user_id=None,
        expiration=None,
        table=b"".join(entry for _, entry in entries),
        headers=headers,
        unreadable=None,
    )
    if len(encode(copy, 0)) > header_max - _BROKERS_BYTES:
        headers["x-headers-dropped"] = True
        seen = (entry for name, entry in entries if name == b"x-first-seen" and len(entry) <= _FIRST_SEEN_BYTES)
        copy.table = next(seen, b"")
        if not copy.table:
            headers["x-first-seen"] = now
    return copy
