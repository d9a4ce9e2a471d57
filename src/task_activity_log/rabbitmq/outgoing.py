"""A message to be published, and what may become of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from task_activity_log.message import Properties
from task_activity_log.rabbitmq.headers import Templated


@dataclass(slots=True)  # not frozen, which would take three times as long to make
class Outgoing:
    """A message to be published. It is not changed."""

    exchange: str
    routing_key: str
    properties: Properties | Templated
    body: bytes
    mandatory: bool = True


class Fate(Enum):
    """What became of a published message; the value is the word for it in logs and metrics."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"
    """No queue takes messages at that address."""
    NACKED = "refused"
    """A queue is full, or could not write the message."""
    UNCONFIRMED = "unconfirmed"
    """The broker has not answered in time. It may have the message, and may still answer."""
    LOST = "lost"
    """The channel or the connection ended before the answer. This message may be the reason."""
