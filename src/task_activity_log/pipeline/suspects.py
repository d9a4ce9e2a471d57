"""Suspects: messages that may have crashed a worker. Which messages they are, and which others must not overtake them."""

import re
from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

from task_activity_log.message import Delivery

D = TypeVar("D", bound=Delivery)

SUSPICIOUS_FROM = 2
"""A message with this many earlier attempts was unsettled at the end of a worker twice. Once is normal at any restart."""


def is_suspect(delivery: Delivery) -> bool:
    """Whether the message must be tried alone, while no other delivery is unsettled."""
    return delivery.attempts >= SUSPICIOUS_FROM


def part(batch: Sequence[D], poison_from: int) -> tuple[list[D], list[D]]:
    """Split a batch into the deliveries that can be processed now, and the suspects.

    A message with `poison_from` attempts is among the first: it is not tried again, only answered and dead-lettered.
    """
    go_on: list[D] = []
    suspects: list[D] = []
    for delivery in batch:
        tried_alone = is_suspect(delivery) and delivery.attempts < poison_from
        (suspects if tried_alone else go_on).append(delivery)
    return go_on, suspects


def may_mention(suspect: Delivery, identifier: UUID) -> bool:
    """Whether a suspect may be about this record. The suspect is not decoded, because decoding may be what crashes.

    Its body is searched for the 32 digits, with or without hyphens. If the digits could be hidden by escapes or by
    UTF-16, the answer is True.
    """
    body = suspect.body.lower()
    if b"\\u" in body or b"&#" in body or b"\0" in body:
        return True
    return identifier.hex.encode() in re.sub(rb"[^0-9a-f]+", b"", body)
