"""Messages that may have killed a worker before: which they are, and which others must not overtake them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

from task_activity_log.message import Delivery

D = TypeVar("D", bound=Delivery)

SUSPICIOUS_FROM = 2
"""A message that comes for the third time was twice in the hands of a worker that went away. Once is any restart."""


def is_suspect(delivery: Delivery) -> bool:
    """Whether the message must be tried alone, with nothing else in hand."""
    return delivery.attempts >= SUSPICIOUS_FROM


def part(batch: Sequence[D], poison_from: int) -> tuple[list[D], list[D]]:
    """Split a batch into what can go on and the suspects.

    What was delivered `poison_from` times goes on: it is not tried again, only answered and dead-lettered.
    """
    go_on: list[D] = []
    suspects: list[D] = []
    for delivery in batch:
        tried_alone = is_suspect(delivery) and delivery.attempts < poison_from
        (suspects if tried_alone else go_on).append(delivery)
    return go_on, suspects


def may_mention(suspect: Delivery, identifier: UUID) -> bool:
    """Whether a suspect may be about this record. It is not decoded, as that may be what kills.

    Its body is searched for the 32 digits, hyphens or not. Where they could hide behind escapes or in UTF-16, the
    answer is yes.
    """
    body = suspect.body.lower()
    if b"\\u" in body or b"&#" in body or b"\0" in body:
        return True
    return identifier.hex.encode() in re.sub(rb"[^0-9a-f]+", b"", body)
