"""What is sent and what is received: upserts and replies."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import starmap
from types import UnionType
from typing import Any, Literal, Self, TypeAlias
from uuid import uuid4

from task_activity_log import wire
from task_activity_log.client.errors import ClientError, FieldProblem, NoAnswer, UpsertRejected
from task_activity_log.message import (
    ERROR_CODE,
    IGNORED,
    OUTCOME,
    PERSISTENT,
    UPDATE_MODE,
    VERSION,
    Delivery,
    Properties,
)
from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.rabbitmq.headers import encode
from task_activity_log.record import Outcome, StoredTaskActivityLog, TaskActivityLog

SHORT_MAX = 255
"""Bytes of a short string of AMQP."""
_TYPES: dict[str, type | UnionType] = {
    "body": bytes,
    "content_type": str,
    "message_id": str,
    "headers": Mapping,
    "content_encoding": str | None,
    "priority": int | None,
}
_USUAL = (bytes, str, str, dict)
_SURELY_SHORT = 60
_PRIORITY_MAX = 255
_VERSION_MAX = 2**63 - 1
_HEADER_MAX = 100_000
"""Bytes that fit one frame, with what the broker adds."""


@dataclass(frozen=True, slots=True)
class Upsert:
    """A request. Sent twice, it is applied once."""

    body: bytes
    content_type: str = wire.JSON
    message_id: str = field(default_factory=lambda: str(uuid4()))
    headers: Mapping[str, object] = field(default_factory=dict)
    """Text, integers and booleans."""
    content_encoding: str | None = None
    source: str = ""
    """Where it came from, for the reader of the answer. Not sent."""
    priority: int | None = None
    """From 0 to 255; None is the same as 4. What it does depends on the broker's version (docs/publishing.md)."""

    def __post_init__(self) -> None:
        """Check what would otherwise fail where it is sent, together with the upserts of others.

        Raises `ValueError` for what AMQP cannot represent: texts that are too long or no text, a number that is too big; for an
        empty message_id, with which it would be applied each time; and `TypeError` for a value of another type: it would be
        sent as text.
        """
        # The exact types first: asking for abstract ones takes a microsecond.
        if (type(self.body), type(self.content_type), type(self.message_id), type(self.headers)) != _USUAL:
            _check_types(self, ("body", "content_type", "message_id", "headers"))
        if self.content_encoding is not None or self.priority is not None:
            _check_types(self, ("content_encoding", "priority"))
        if not self.message_id:
            raise ValueError("message_id should not be empty")
        for name, value in self.headers.items():
            if not isinstance(value, str | int):
                raise TypeError(f"header {name} should not be a value of type {type(value).__name__}")
        if self.priority is not None and not 0 <= self.priority <= _PRIORITY_MAX:
            raise ValueError("priority should be an integer from 0 to 255")
        plain = self.message_id.isascii() and self.content_type.isascii()  # half of a surrogate pair is no text
        if plain and not self.headers and not self.content_encoding and self._short <= _SURELY_SHORT:
            return
        try:
            size = len(encode(self.properties(None, ""), 0))
        except (ValueError, OverflowError):
            raise ValueError("message_id, content type or a header does not fit AMQP's limits") from None
        if size > _HEADER_MAX:
            raise ValueError(f"the headers take more than {_HEADER_MAX} bytes")

    @property
    def _short(self) -> int:
        return len(self.message_id) + len(self.content_type)

    @classmethod
    def of(
        cls,
        record: TaskActivityLog,
        *,
        message_id: str | None = None,
        version: int | Literal["clock"] | None = None,
        mode: Literal["replace", "merge"] | None = None,
        priority: int | None = None,
    ) -> Self:
        """The request for a record: the fields that were set.

        Raises `ValueError` for a record that cannot be encoded, and for an option that does not fit AMQP's limits.

        Args:
            record: what to store.
            message_id: that of an earlier attempt; None makes a new one.
            version: applied only if higher than every earlier version of this record (`x-version`). `clock`: the present time in
                microseconds, and more than each one before in this process.
            mode: whether a field that was not set becomes null (`replace`) or keeps its value (`merge`); None leaves
                it to the worker's setting.
            priority: see `Upsert.priority`.
        """
        if version == "clock":
            version = clock_version()
        if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
            raise TypeError(f"version should be an integer, not {type(version).__name__}, or 'clock'")
        if version is not None and not -_VERSION_MAX - 1 <= version <= _VERSION_MAX:
            raise ValueError(f"version should be an integer from {-_VERSION_MAX - 1} to {_VERSION_MAX}")
        headers = {name: value for name, value in ((VERSION, version), (UPDATE_MODE, mode)) if value is not None}
        return cls(
            wire.encode(record, wire.JSON).body,
            message_id=str(uuid4()) if message_id is None else message_id,
            headers=headers,
            priority=priority,
        )

    def properties(self, reply_to: str | None, app_id: str) -> Properties:
        """The AMQP properties to send it with."""
        return Properties(
            content_type=self.content_type,
            content_encoding=self.content_encoding,
            headers=self.headers,
            delivery_mode=PERSISTENT,
            priority=self.priority,
            reply_to=reply_to,
            message_id=self.message_id,
            timestamp=int(time.time()),
            app_id=app_id,
        )


def _check_types(upsert: Upsert, names: Sequence[str]) -> None:
    for name in names:
        if not isinstance(value := getattr(upsert, name), _TYPES[name]) or isinstance(value, bool):
            raise TypeError(f"{name} should not be a value of type {type(value).__name__}")


Record: TypeAlias = TaskActivityLog | Upsert
"""What can be sent: a record, or a request (`Upsert.of`), which can have a version or a mode."""


@dataclass(frozen=True)
class Reply:
    """What all replies have in common."""

    outcome: str
    """`inserted`, `updated`, `duplicate`, `stale`, `snapshot` or `rejected` (`Outcome`)."""
    body: bytes
    content_type: str
    message_id: str | None
    """The same for each repeat of the reply."""
    correlation_id: str | None
    """The request's correlation_id, else its message_id."""
    code: str | None = None
    """The error code of a rejection; None for a stored record."""
    ignored: tuple[str, ...] = ()
    """Names of members of the request that are not fields, and were ignored: probably misspelled ones."""
    published: datetime | None = None
    """When it was published, to the second."""

    @property
    def rejected(self) -> bool:
        """Whether it holds a problem instead of a record."""
        return self.outcome == Outcome.REJECTED


@dataclass(frozen=True)
class StoredReply(Reply):
    """A reply with the record as the database has it. For `match`: `case StoredReply(record)`."""

    __match_args__ = ("record",)
    record: StoredTaskActivityLog = field(kw_only=True)


@dataclass(frozen=True)
class RejectedReply(Reply):
    """A reply that says why a request was rejected. For `match`: `case RejectedReply(problem)`."""

    __match_args__ = ("problem",)
    problem: UpsertRejected = field(kw_only=True)


@dataclass(frozen=True)
class UnreadableReply(Reply):
    """A message in the replies queue that is no reply of a worker: anybody who may write to the queue can put it there."""

    __match_args__ = ("error",)
    error: ClientError = field(kw_only=True)
    """Why it cannot be read."""


Received: TypeAlias = StoredReply | RejectedReply | UnreadableReply
"""What a subscriber receives."""


def received_reply(delivery: Delivery) -> Received:
    """The reply in a delivery. It raises nothing, whatever the delivery contains."""
    common = _common(delivery)
    reply = Reply(**common)
    try:
        if reply.rejected:
            return RejectedReply(**common, problem=_problem(reply))
        return StoredReply(**common, record=_record(reply))
    except ClientError as error:
        return UnreadableReply(**common, error=error)


def _common(delivery: Delivery) -> dict[str, Any]:
    properties = delivery.properties
    code = properties.headers.get(ERROR_CODE)
    return {
        "outcome": str(properties.headers.get(OUTCOME, "unknown")),
        "body": delivery.body,
        "content_type": properties.content_type or "",
        "message_id": properties.message_id,
        "correlation_id": properties.correlation_id,
        "code": None if code is None else str(code),
        "ignored": tuple(filter(None, str(properties.headers.get(IGNORED, "")).split(", "))),
        "published": _instant(properties.sent),
    }


def _instant(seconds: float | None) -> datetime | None:
    with suppress(ValueError, OverflowError, OSError):
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return None


def _record(reply: Reply) -> StoredTaskActivityLog:
    try:
        return wire.decode_stored(reply.body, reply.content_type)
    except Rejected as unreadable:
        # Not the detail, which says to a publisher what to do.
        found = unreadable.problem.code, *(error.name for error in unreadable.problem.errors)
        raise ClientError(f"this reply cannot be read ({', '.join(found)})") from None


def _problem(reply: Reply) -> UpsertRejected:
    try:
        found = wire.decode_problem(reply.body, reply.content_type.partition(";")[0].strip().lower())
    except ValueError:
        raise ClientError("this problem cannot be read") from None
    return UpsertRejected(found.code, found.detail, tuple(starmap(FieldProblem, found.errors)))


@dataclass(frozen=True)
class Answer(Reply):
    """A reply, and the upsert that it answers."""

    upsert: Upsert = field(kw_only=True)
    sent: bool = field(default=True, kw_only=True)
    """Whether the worker has answered; otherwise the upsert was not sent, and `problem` says why."""

    @classmethod
    def of(cls, delivery: Delivery, upsert: Upsert) -> Self:
        """The answer in a delivery."""
        return cls(**_common(delivery), upsert=upsert)

    @classmethod
    def not_sent(cls, upsert: Upsert, problem: Problem) -> Self:
        """The answer to an upsert that cannot be sent: the worker would answer in the same form."""
        name = wire.problem_type(upsert.content_type.partition(";")[0].strip().lower())
        return cls(
            outcome=Outcome.REJECTED.value,
            body=wire.encode_problem(problem, name),
            content_type=name,
            message_id=None,
            correlation_id=upsert.message_id,
            code=problem.code.value,
            upsert=upsert,
            sent=False,
        )

    @cached_property
    def record(self) -> StoredTaskActivityLog:
        """The record as the database has it.

        Raises:
            UpsertRejected: there is no record, because the request was rejected.
            ClientError: the body cannot be read.
        """
        if self.rejected:
            raise self.problem
        return _record(self)

    @cached_property
    def problem(self) -> UpsertRejected:
        """Why the request was rejected.

        Raises:
            ClientError: it was not rejected, or the body cannot be read.
        """
        if not self.rejected:
            raise ClientError("this reply holds a stored record, not a problem")
        return _problem(self)


@dataclass(frozen=True, slots=True)
class Options:
    """How records are sent. They do not apply to an `Upsert`, which is sent as it is."""

    message_id: str | None = None
    version: int | Literal["clock"] | None = None
    merge: bool | None = None
    priority: int | None = None

    def upsert(self, record: TaskActivityLog) -> Upsert:
        """The request for a record. Raises `ValueError` if it cannot be encoded, or an option does not fit AMQP's limits."""
        if not isinstance(self.merge, bool | None):
            raise TypeError(f"merge should be True, False or None, and not {self.merge!r}")
        mode: Literal["replace", "merge"] | None = None if self.merge is None else "merge" if self.merge else "replace"
        return Upsert.of(record, message_id=self.message_id, version=self.version, mode=mode, priority=self.priority)


PLAIN = Options()


def request_of(record: Record, options: Options = PLAIN) -> Upsert | Answer:
    """The request for it; or the answer, if the record has a value that cannot be encoded.

    Raises `TypeError` for what is not a record, and for an `Upsert` with options, which it would not have.
    """
    if isinstance(record, Upsert):
        if options != PLAIN:
            raise TypeError("an Upsert is sent as it is: give message_id, version, mode and priority to Upsert.of")
        return record
    if not isinstance(record, TaskActivityLog):
        raise TypeError(f"send a TaskActivityLog or an Upsert, not {type(record).__name__}")
    try:
        return options.upsert(record)
    except ValueError:
        if _is_encodable(record):
            raise  # it is an option that does not fit
    # It was made without validation: `model_construct`, or a copy with updates.
    source = f"record {getattr(record, 'id', 'without an id')}"
    problem = Problem(Code.INVALID_STRING, f"The {source} has a value that cannot be encoded.")
    return Answer.not_sent(Upsert(b"", source=source), problem)


def no_answer(timeout: float | None, unanswered: Sequence[Upsert], why: str) -> NoAnswer:
    """What to raise when no answer to these has come for `timeout` seconds."""
    upserts = f"{len(unanswered):,} upsert{'' if len(unanswered) == 1 else 's'}"
    return NoAnswer(f"no answer for {timeout or 0:g} s ({upserts} unanswered): {why}", unanswered[0])


def is_short(text: str) -> bool:
    """Whether a text fits a short string of AMQP."""
    try:
        return len(text.encode()) <= SHORT_MAX
    except UnicodeEncodeError:
        return False


def _is_encodable(record: TaskActivityLog) -> bool:
    try:
        return bool(wire.encode(record, wire.JSON).body)
    except ValueError:
        return False


_clock = threading.Lock()
_last_version = 0


def clock_version() -> int:
    """The present time in microseconds since 1970, and more than each one before in this process, also if the clock is set."""
    global _last_version  # noqa: PLW0603 - one clock for all clients of a process
    with _clock:
        _last_version = max(_last_version + 1, time.time_ns() // 1_000)
        return _last_version
