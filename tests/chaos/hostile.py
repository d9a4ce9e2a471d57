"""What strangers send: bodies and headers that cost a worker as much as they can, and `askers` with odd addresses.

All of it is within the limits of the contract, and is accounted for as any other message. One publisher sends it,
several of a kind together, while the others send innocent messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from types import MappingProxyType
from typing import TypeAlias
from uuid import UUID

from task_activity_log.partitions import hash_slot
from tests.chaos import askers
from tests.chaos.messages import REPLY_QUEUE, Message
from tests.chaos.plan import ASKERS, BODIES, Plan

BODY_LIMIT = 262_144
"""WORKER_BODY_LIMIT_BYTES, as it is by default."""
_TOGETHER = 8
"""How many times a kind is sent together at most. A worker needs time for each, and innocent ones may wait behind them."""
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
_SERIALIZATION = "http://schemas.microsoft.com/2003/10/Serialization/"
_XML = "application/xml"

Write: TypeAlias = Callable[[UUID, str], bytes]
"""Writes the body of a message about this record with this subject."""


class Stranger:
    """Writes the messages of one hostile publisher."""

    def __init__(self, plan: Plan, publisher: int) -> None:
        self.random = Random(f"{plan.seed}/hostile")  # noqa: S311 - it has to be repeatable, not secret
        self._plan = plan
        self._publisher = publisher
        self._written = 0
        self._asked_for: list[Message] = []
        self._kinds: list[Callable[[Stranger], Sequence[Message]]] = [
            *(_BODIES if BODIES in plan.hostile else ()),
            *(askers.ALL if ASKERS in plan.hostile else ()),
        ]

    def burst(self) -> list[Message]:
        """Several messages of one kind, and those that were given to `send`."""
        messages = self.kept_back()
        if self._kinds:
            make = self.random.choice(self._kinds)
            for _ in range(self.random.randint(1, _TOGETHER)):
                messages += make(self)
        return messages

    def kept_back(self) -> list[Message]:
        """Those that were given to `send` and are not sent yet."""
        messages, self._asked_for = self._asked_for, []
        return messages

    def send(self, messages: Sequence[Message]) -> None:
        """Send these messages with the next burst."""
        self._asked_for += messages

    def plain(self) -> Message:
        """An innocent message about a record of its own, to be given to `send`."""
        return self.message("")

    def message(
        self,
        kind: str,
        write: Write | None = None,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, object] | None = None,
        fields: Mapping[str, object] | None = None,
        code: str | None = None,
        reply_to: str | None = None,
        record: UUID | None = None,
        may_be_too_large: bool = False,
    ) -> Message:
        """A message with a number of its own.

        Args:
            kind: what is hostile about it; empty for an innocent one.
            write: writes its body; None: its record as JSON.
            content_type: its media type.
            headers: its headers.
            fields: the fields of its record in addition to `subject`.
            code: the error code with which it must be rejected.
            reply_to: where the reply is sent; None: to one of the two queues that are read.
            record: the record that it is about; None: one of its own.
            may_be_too_large: whether its reply may be too large for the broker.
        """
        self._written += 1
        number = self._plan.number(self._written, self._publisher)
        record = record or self.record(number)
        by_record = self._plan.partitions > 0 and record.int % 2 == 0
        subject = f"message {number}"
        return Message(
            number=number,
            body=(write or partial(_json, fields=fields or {}))(record, subject),
            content_type=content_type,
            headers=headers or {},
            message_id=f"chaos-{self._plan.seed}-{number}",
            reply_to=reply_to or (REPLY_QUEUE if self._written % 2 else None),
            code=code,
            record=None if code else record,
            fields={} if code else {"subject": subject, **(fields or {})},
            slot=hash_slot(record) if by_record else None,
            hostile=kind,
            may_be_too_large=may_be_too_large,
        )

    def record(self, number: int) -> UUID:
        """The id of a record that no other publisher writes to."""
        return UUID(int=Random(f"{self._plan.seed}/hostile/{number}").getrandbits(128))  # noqa: S311 - as above


def _arrays(stranger: Stranger) -> Sequence[Message]:
    """JSON with a member that is ignored: an array of some 87,000 empty arrays."""
    return [stranger.message("arrays", lambda record, subject: _filled(_open(record, subject, '"x":[0'), ",[]", "]}"))]


def _references(stranger: Stranger) -> Sequence[Message]:
    """XML with fields that refer to one of some 65,000 children: to the last one, or to none."""
    is_there = stranger.random.random() < 0.5
    names = ("description", "reference_back_office") if is_there else ("task_id", "user_id", "due_date", "is_closed")

    def write(record: UUID, subject: str) -> bytes:
        referring = "".join(f'<{name} z:Ref="7" i:nil="true"/>' for name in names)
        spaces = f'xmlns:i="{_INSTANCE}" xmlns:z="{_SERIALIZATION}"'
        start = f"<task_activity_log {spaces}><id>{record}</id><subject>{subject}</subject>{referring}"
        last = '<x z:Id="7">far away</x>' if is_there else ""
        return _filled(start, "<x/>", f"{last}</task_activity_log>")

    fields = dict.fromkeys(names, "far away") if is_there else None
    code = None if is_there else "invalid_uuid"
    return [stranger.message("references", write, content_type=_XML, fields=fields, code=code)]


def _headers(stranger: Stranger) -> Sequence[Message]:
    """A header with 30,000 values and a body that is rejected, or 8,000 headers, which are too many. Both become dead letters.

    They could be four times as long. But the driver that reads the dead letters here needs 0.4 s for 120,000 values, and
    answers that were read late would count as late; tests/faults/test_hostile_bodies.py sends the longest ones.
    """
    many = {f"{number:05}": True for number in range(8_000)}
    headers: Mapping[str, object]
    headers, code = (
        (many, "invalid_properties") if stranger.random.random() < 0.5 else ({"x-array": [None] * 30_000}, "missing_id")
    )
    return [stranger.message("headers", lambda *_: b'{"subject": "no id"}', headers=headers, code=code)]


def _long(stranger: Stranger) -> Sequence[Message]:
    """A text nearly as long as a body may be, of narrow or wide characters, or of those that are escaped in the reply."""
    is_json = stranger.random.random() < 0.7
    written, character = stranger.random.choice(
        [("a", "a"), ("\N{GRINNING FACE}",) * 2, (r"\n", "\n") if is_json else ("&lt;", "<")]
    )
    count = (BODY_LIMIT - 500) // len(written.encode())

    def write(record: UUID, subject: str) -> bytes:
        if is_json:
            return f'{_open(record, subject)}"description":"{written * count}"}}'.encode()
        fields = f"<id>{record}</id><subject>{subject}</subject><description>{written * count}</description>"
        return f"<task_activity_log>{fields}</task_activity_log>".encode()

    content_type = "application/json" if is_json else _XML
    return [stranger.message("long", write, content_type=content_type, fields={"description": character * count})]


def _too_long(stranger: Stranger) -> Sequence[Message]:
    """A body above the limit, by one byte or by many."""
    length = BODY_LIMIT + stranger.random.choice((1, 20_000))
    return [stranger.message("too long", lambda *of: _json(*of).ljust(length), code="body_too_large")]


_BODIES = (_arrays, _references, _headers, _long, _too_long)


def _open(record: UUID, subject: str, more: str = "") -> str:
    """The beginning of a JSON body."""
    return f'{{"id":"{record}","subject":"{subject}",{more}'


def _json(record: UUID, subject: str, fields: Mapping[str, object] = MappingProxyType({})) -> bytes:
    return json.dumps({"id": str(record), "subject": subject, **fields}).encode()


def _filled(start: str, piece: str, end: str) -> bytes:
    """A body of the greatest length that is allowed."""
    return (start + piece * ((BODY_LIMIT - len(start) - len(end)) // len(piece)) + end).encode()
