"""Suspects: messages that may have crashed a worker. How many messages are processed together with them.

A crash returns everything in hand to the queue, and RabbitMQ counts a failed delivery of each message. So does an orderly
return, because closing a channel counts too; so the count makes a batch smaller, and nothing else (see `trials`). The more
often a message was returned, the fewer others are in its batch:

    earlier attempts    messages in a batch
    0 or 1              WORKER_BATCH_MAX
    2                   a quarter of that
    3                   a quarter of that
    4                   a quarter of that
    5 and more          1

Such a smaller batch is stored when everything before it is settled, and is settled before anything else is stored. So a
message that is tried alone, a suspect, is the oldest one in hand if it crashes the process, and comes again first. When a
partition is handed over, nothing is returned that was returned more than once before.
"""

from __future__ import annotations

from collections.abc import Sequence

from task_activity_log.message import Delivery

_HARMLESS = 1
"""A message with this many earlier attempts was unsettled once when a channel closed. That happens at any restart."""

ALONE_FROM = 5
"""A message with this many earlier attempts is a suspect. A few restarts in a row do not lead to that."""


def is_suspect(delivery: Delivery) -> bool:
    """Whether a message must be tried alone."""
    return delivery.attempts >= ALONE_FROM


def is_doubtful(delivery: Delivery) -> bool:
    """Whether a message was returned so often that the batch that it is in must be smaller."""
    return delivery.attempts > _HARMLESS


def is_smaller(batch: Sequence[Delivery]) -> bool:
    """Whether a batch has messages for which it was kept small, and everything before it must be settled first."""
    return any(map(is_doubtful, batch))


def batch_length(waiting: Sequence[Delivery], batch_max: int) -> int:
    """How many of the messages that wait, from the first one on, make up the next batch."""
    most = batch_max
    for count, delivery in enumerate(waiting[:batch_max]):
        if is_doubtful(delivery):
            most = min(most, 1 if is_suspect(delivery) else max(1, batch_max >> 2 * (delivery.attempts - _HARMLESS)))
            if count >= most:
                return max(count, 1)
    return min(len(waiting), most)
