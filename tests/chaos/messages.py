"""The messages of a run: valid ones in both formats and modes, invalid ones, repeats, and some with unusable reply queues."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from uuid import UUID
from xml.sax.saxutils import escape

from task_activity_log.partitions import SLOTS, hash_slot
from tests.chaos.plan import Plan

REPLY_QUEUE = "chaos.replies"
"""A publisher's own reply queue, which the collector reads."""
FULL_QUEUE = "chaos.full"
"""A reply queue that is full: replies to it are given up."""
GONE_QUEUE = "chaos.gone"
"""A reply queue that does not exist."""
REFUSED = "refuse"
"""The beginning of each subject that the database refuses."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, and what must happen to it."""

    number: int
    """Its correlation_id, which relates answers and dead letters to it."""
    body: bytes
    content_type: str
    headers: Mapping[str, object]
    message_id: str | None
    reply_to: str | None
    code: str | None
    """The error code with which it must be rejected; None if it is valid."""
    record: UUID | None
    fields: Mapping[str, object] = field(default_factory=dict)
    """The fields of the record that it sends. One of them is `subject`, which identifies this message in the database."""
    version: int | None = None
    slot: str | None = None
    """The routing key with which it is sent by record; None: it is sent as if there were no partitions."""
    hostile: str = ""
    """What is hostile about it; empty if it is innocent."""
    may_be_too_large: bool = False
    """Whether the reply may be too large for the broker, which the answer then says."""
    ordered: bool = False
    """Whether it must be applied after all earlier messages about the same record."""

    @property
    def merges(self) -> bool:
        """Whether it leaves fields that it does not send unchanged."""
        return self.headers.get("x-update-mode") == "merge"

    @property
    def is_answered(self) -> bool:
        """Whether somebody reads its answer."""
        return self.reply_to in (None, REPLY_QUEUE)


class Author:
    """Writes the messages of one publisher.

    With versions, all publishers write to the same few records, and some messages are kept back for a while, so that
    newer ones are sent before them. Without versions, each publisher has its own records and sends the messages about
    each record in order.
    """

    def __init__(self, plan: Plan, publisher: int, versions: defaultdict[UUID, int]) -> None:
        """`versions` has the last version of each record; all authors share it."""
        self._random = Random(f"{plan.seed}/{publisher}")  # noqa: S311 - it has to be repeatable, not secret
        self._plan = plan
        self._publisher = publisher
        self._by_record = plan.sends_by_record(publisher)
        self._written = 0
        self._versions = versions
        owner = Random(f"{plan.seed}/{'all' if plan.versions else publisher}/records")  # noqa: S311 - as above
        self._records = [UUID(int=owner.getrandbits(128)) for _ in range(8)]
        self._loose = [UUID(int=self._random.getrandbits(128)) for _ in range(20)]
        self._kept_back: list[Message] = []
        self._too_early: list[Message] = []
        self._repeatable: list[Message] = []

    def burst(self) -> list[Message]:
        """A few messages to send together. If their order matters, no two of them are about the same record."""
        messages: list[Message] = []
        about: set[UUID | None] = set()
        for _ in range(self._random.randint(1, 25)):
            message = self._too_early.pop() if self._too_early else self._next()
            if message.ordered and message.record in about:
                self._too_early.append(message)
                break
            about.add(message.record)
            messages.append(message)
        return messages

    def kept_back(self) -> list[Message]:
        """The messages that are still kept back."""
        last = [*self._too_early, *self._kept_back]
        self._too_early, self._kept_back = [], []
        return last

    def _next(self) -> Message:
        dice = self._random.random()
        if dice < 0.03 and self._repeatable:
            return self._random.choice(self._repeatable)
        if dice < 0.07:
            return self._bad()
        if self._kept_back and dice < 0.25:
            return self._kept_back.pop(self._random.randrange(len(self._kept_back)))
        message = self._valid()
        if message.message_id is not None and message.code is None:
            self._repeatable = [*self._repeatable[-50:], message]
        if message.version is not None and self._random.random() < 0.2:
            self._kept_back.append(message)
            return self._next()
        return message

    def _number(self) -> int:
        self._written += 1
        return self._plan.number(self._written, self._publisher)

    def _valid(self) -> Message:
        roll = self._random
        number = self._number()
        loose = roll.random() < 0.25
        record = roll.choice(self._loose if loose else self._records)
        refused = roll.random() < 0.02
        subject = f"{REFUSED if refused else 'message'} {number}"
        others = {
            "description": f'<{number}> & "ключ"',
            "reference_back_office": str(number % 7),
            "is_closed": bool(number % 2),
            "task_id": str(UUID(int=number)),
        }
        fields = {"subject": subject} | {name: value for name, value in others.items() if roll.random() < 0.6}
        headers: dict[str, int | str] = {"x-update-mode": "merge"} if roll.random() < 0.4 else {}
        version = None
        if self._plan.versions and not loose:
            self._versions[record] += 1
            version = self._versions[record]
            headers["x-version"] = version if roll.random() < 0.5 else str(version)
        # A message without message_id is applied on every delivery, so its record must be a loose one or have versions.
        keyed = roll.random() < 0.9 or not (loose or version)
        is_json = roll.random() < 0.7
        return Message(
            number=number,
            body=_json(record, fields) if is_json else _xml(record, fields),
            content_type="application/json" if is_json else "application/xml; charset=utf-8",
            headers=headers,
            message_id=f"chaos-{self._plan.seed}-{number}" if keyed else None,
            reply_to=self._reply_to(),
            code="refused_by_database" if refused else None,
            record=record,
            fields=fields,
            version=version,
            slot=hash_slot(record) if self._by_record else None,
            ordered=self._plan.in_order and not loose,
        )

    def _bad(self) -> Message:
        number = self._number()
        name = str(UUID(int=number + 1))
        another_slot = f"{(int(hash_slot(UUID(name)), 16) + 1) % SLOTS:02x}"
        misrouted: tuple[str, str, dict[str, str], str] = ("application/json", f'{{"id": "{name}"}}', {}, "misrouted")
        kind, body, headers, code = self._random.choice(
            (
                ("application/json", '{"id": ', {}, "malformed_json"),
                ("application/json", '{"subject": "no id"}', {}, "missing_id"),
                ("application/json", f'{{"id": "{name}", "due_date": "tomorrow"}}', {}, "invalid_date"),
                ("application/json", f'{{"id": "{name}"}}', {"x-update-mode": "upset"}, "unsupported_update_mode"),
                ("application/xml", "<task_activity_log><id></task_activity_log>", {}, "malformed_xml"),
                ("text/plain", "hello", {}, "unsupported_media_type"),
                *((misrouted,) if self._by_record else ()),
            )
        )
        return Message(
            number=number,
            body=body.encode(),
            content_type=kind,
            headers=dict(headers),
            message_id=f"chaos-{self._plan.seed}-{number}" if self._random.random() < 0.8 else None,
            reply_to=self._reply_to(),
            code=code,
            record=None,
            slot=another_slot if self._by_record else None,
        )

    def _reply_to(self) -> str | None:
        dice = self._random.random()
        if dice < 0.02:
            return GONE_QUEUE
        if dice < 0.025:
            return FULL_QUEUE
        return REPLY_QUEUE if dice < 0.3 else None


def _json(record: UUID, fields: Mapping[str, object]) -> bytes:
    return json.dumps({"id": str(record), **fields}).encode()


def _xml(record: UUID, fields: Mapping[str, object]) -> bytes:
    text = {
        name: str(value).lower() if isinstance(value, bool) else escape(str(value)) for name, value in fields.items()
    }
    children = "".join(f"<{name}>{value}</{name}>" for name, value in {"id": record, **text}.items())
    return f"<task_activity_log>{children}</task_activity_log>".encode()
