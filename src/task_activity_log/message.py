"""An AMQP message: its body and properties, and how often it was delivered before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

APP_ID: Final = "task-activity-log-worker"
"""The `app_id` of everything that the worker publishes of its own."""
PERSISTENT: Final = 2
"""The `delivery_mode` of a message that the broker writes to disk."""
_MILLISECONDS_FROM: Final = 2**32


@dataclass(slots=True)
class Properties:
    """The properties of one message. Absent ones are None."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Mapping[str, object] = field(default_factory=dict)
    """Header values by name. Tables and arrays inside stay the bytes that they are: nothing here needs them."""
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    """As sent, in seconds or milliseconds: see `sent`."""
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None
    table: bytes = b""
    """The header table as sent, without its length. When encoding it comes before `headers`, byte for byte."""
    unreadable: str | None = None
    """Which properties could not be decoded, in words; None when all could."""

    @property
    def sent(self) -> float | None:
        """`timestamp` in seconds since 1970; None if it is absent.

        A number from 2^32 on is taken for milliseconds: as seconds it would be later than the year 2106.
        """
        if self.timestamp is None or self.timestamp < _MILLISECONDS_FROM:
            return self.timestamp
        return self.timestamp / 1000


@dataclass(slots=True, eq=False)
class Delivery:
    """A message on loan from the broker until it is settled."""

    body: bytes
    """The payload, as it was sent."""
    properties: Properties = field(default_factory=Properties)
    attempts: int = 0
    """How often the message was delivered before and not settled; 0 where the broker does not count."""
