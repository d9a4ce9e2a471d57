"""Dead letters: a copy of each rejected message, with the reason (contract, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from pamqp import decode

from task_activity_log.broker.consumer import RabbitDelivery
from task_activity_log.broker.properties import Properties, encode_header, raw_headers
from task_activity_log.broker.publisher import Fate, Outgoing, Publisher
from task_activity_log.broker.replies import PERSISTENT
from task_activity_log.problem import Problem, Unavailable

_DROPPED = frozenset((b"CC", b"BCC", b"x-death", b"x-delivery-count"))
"""Not copied: the first two would send the copy elsewhere too, the others are the broker's own."""

_OURS = frozenset(
    (
        b"x-error-code",
        b"x-error-detail",
        b"x-original-user-id",
        b"x-original-expiration",
        b"x-headers-dropped",
    )
)
"""Replaced by those of this rejection when a replayed message brings them along."""

_DETAIL_BYTES = 1_000
_HEADERS_BYTES = 120_000
"""What headers may take so that they fit one frame of 128 KiB together with the other properties."""


class DeadLetters:
    """Keeps a copy of each rejected message in the dead-letter queue."""

    def __init__(self, publisher: Publisher, queue: str) -> None:
        self._publisher = publisher
        self._queue = queue

    async def keep(self, rejected: Sequence[tuple[RabbitDelivery, Problem]]) -> None:
        """Publish a copy of each and return when all are confirmed.

        Raises:
            Unavailable: the broker is away, or the queue is missing or takes nothing. Keep all of them again.
        """
        copies = [
            Outgoing("", self._queue, copied(delivery.properties, problem), delivery.body)
            for delivery, problem in rejected
        ]
        for fate in await self._publisher.publish(copies):
            if fate is not Fate.CONFIRMED:
                raise Unavailable(f"dead letters {fate.name.lower()}: {self._queue} does not take them")


def copied(original: Properties, problem: Problem) -> Properties:
    """The properties of a copy: the original's, what the broker would act on moved aside, and the reason."""
    headers: dict[str, object] = {
        "x-error-code": str(problem.code),
        "x-error-detail": problem.detail.encode()[:_DETAIL_BYTES].decode(errors="ignore"),
    }
    # The broker refuses a foreign user_id, and would expire the copy.
    if original.user_id is not None:
        headers["x-original-user-id"] = original.user_id
    if original.expiration is not None:
        headers["x-original-expiration"] = original.expiration
    if "x-first-seen" not in original.headers:
        headers["x-first-seen"] = datetime.now(UTC).isoformat(timespec="milliseconds")
    table = b"".join(
        entry
        for name, entry in raw_headers(original.table)
        if name not in _DROPPED and name not in _OURS and _readable(entry)
    )
    if len(table) + sum(len(encode_header(item)) for item in headers.items()) > _HEADERS_BYTES:
        table = b""
        headers["x-headers-dropped"] = True
        headers["x-first-seen"] = original.headers.get("x-first-seen", headers.get("x-first-seen"))
    return replace(
        original,
        delivery_mode=PERSISTENT,
        user_id=None,
        expiration=None,
        table=table,
        headers=headers,
        unreadable=None,
    )


def _readable(entry: bytes) -> bool:
    """Whether the drivers of others can read this header: one that they cannot would cost them their connection."""
    try:
        decode.field_table(len(entry).to_bytes(4, "big") + entry)
    except (ValueError, OverflowError, OSError, RecursionError, KeyError, IndexError):
        return False
    return True
