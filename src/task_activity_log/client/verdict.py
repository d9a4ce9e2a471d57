"""What the worker would say of a message by looking at it alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from task_activity_log.broker.properties import Properties
from task_activity_log.problem import Problem, Rejected
from task_activity_log.record import TaskActivityLog
from task_activity_log.request import Rules, decode


def verdict(body: bytes, properties: Properties, rules: Rules) -> TaskActivityLog | Problem:
    """The record in a message, or the problem that it would be rejected with."""
    try:
        return decode(_Draft(body, properties), rules).record
    except Rejected as rejected:
        return rejected.problem


@dataclass(frozen=True, slots=True)
class _Draft:
    """A message that nobody has delivered, with what `decode` looks at."""

    body: bytes
    properties: Properties
    attempts: int = 0

    @property
    def content_type(self) -> str | None:
        return self.properties.content_type

    @property
    def content_encoding(self) -> str | None:
        return self.properties.content_encoding

    @property
    def correlation_id(self) -> str | None:
        return self.properties.correlation_id

    @property
    def reply_to(self) -> str | None:
        return self.properties.reply_to

    @property
    def message_id(self) -> str | None:
        return self.properties.message_id

    @property
    def headers(self) -> Mapping[str, object]:
        return self.properties.headers

    @property
    def timestamp(self) -> int | None:
        return self.properties.timestamp

    @property
    def unreadable(self) -> str | None:
        return self.properties.unreadable
