"""An AMQP message: its body, its properties, and how often it was delivered before. Names that requests and replies use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

APP_ID: Final = "task-activity-log-worker"
"""The `app_id` of the worker's own messages."""
PERSISTENT: Final = 2
"""The `delivery_mode` of a message that the broker writes to disk."""
_MILLISECONDS_FROM: Final = 2**32

STORED: Final = "task_activity_log.stored"  # type of a reply with a record
REJECTED: Final = "task_activity_log.rejected"  # type of a reply with a problem

# Headers of requests,
UPDATE_MODE: Final = "x-update-mode"
VERSION: Final = "x-version"
# of replies and dead letters,
OUTCOME: Final = "x-outcome"
ERROR_CODE: Final = "x-error-code"
REPLACED_CHARACTERS: Final = "x-replaced-characters"
IGNORED: Final = "x-ignored"
# and of the W3C trace context.
TRACE_PARENT: Final = "traceparent"
TRACE_STATE: Final = "tracestate"


class Timestamp(int):
    """The value of a header of type timestamp, as sent: no number, although it is one in Python."""

    __slots__ = ()


@dataclass(slots=True)
class Properties:
    """The properties of one message. Absent ones are None."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Mapping[str, object] = field(default_factory=dict)
    """Header values by name. Nested tables and arrays are left as bytes, because nothing here needs them."""
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
    """The header table as sent, without its length. It is encoded before `headers`, byte for byte."""
    unreadable: str | None = None
    """Which properties could not be decoded, in words; None if all were decoded."""

    @property
    def sent(self) -> float | None:
        """`timestamp` in seconds since 1970; None if it is absent.

        A number from 2^32 on is in milliseconds: as seconds it would be later than the year 2106.
        """
        if self.timestamp is None or self.timestamp < _MILLISECONDS_FROM:
            return self.timestamp
        return self.timestamp / 1000


@dataclass(slots=True, eq=False)
class Delivery:
    """A message that the broker has delivered and that is not settled yet."""

    body: bytes
    """The payload as sent."""
    properties: Properties = field(default_factory=Properties)
    attempts: int = 0
    """How often the message was delivered before without being settled; 0 if the broker does not count."""
    slot: str | None = None
    """The hash slot that the message was published to, as its routing key says; None if it was not published by record."""
    weight: int = 0
    """How much memory it takes at most, in bytes, as decoded; 0 if that is not known."""
    crashed: bool = False
    """Whether workers have crashed while they tried it alone, several times. Set by `pipeline.trials`."""
    suspect: bool = False
    """Whether it must be tried alone, because of the marks of its trials. Set by `pipeline.trials`."""
