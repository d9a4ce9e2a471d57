"""What a message would do: the contract's verdict, each bad field and its place, and the row before and after. Pure."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from task_activity_log import wire
from task_activity_log.client import misspelled
from task_activity_log.client.marking import Piece, readable, text_pieces
from task_activity_log.client.messages import Upsert
from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.request import Request, Rules, UpdateMode, decode
from task_activity_log.problem import Problem, Rejected
from task_activity_log.record import (
    FIELDS,
    STORED_FIELDS,
    Applied,
    Outcome,
    StoredTaskActivityLog,
    TaskActivityLog,
    instant_text,
)

SET_BY_DATABASE: Final = "set by the database"
_UNSET = datetime(8765, 4, 3, 2, 1, 0, 987654, UTC)
"""Stands for the instant that the database will set."""
_UNSET_TEXT = re.compile(r"8765-04-03T02:01:00\.987(?:654\+00:00|Z)")


@dataclass(frozen=True, slots=True)
class Change:
    """One field of the row: its value now and after the message, as text; None where there is no row or no value."""

    field: str
    before: str | None
    after: str | None

    @property
    def differs(self) -> bool:
        """Whether the message changes it."""
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a worker would say of a message now."""

    found: TaskActivityLog | Problem
    pieces: Sequence[Piece]
    """The body; each bad field is marked with its name, and a syntax error with `here`."""
    mode: str = ""
    unknown: Sequence[tuple[str, str | None]] = ()
    """Members that are not fields, each with the field that was probably meant."""
    changes: Sequence[Change] = ()
    """What would be stored, field by field."""
    normal: str = ""
    """The record in its normal form; empty if it is rejected."""
    answer: str = ""
    """The body of the reply."""
    outcome: str = ""

    @property
    def passes(self) -> bool:
        """Whether the contract accepts it."""
        return not isinstance(self.found, Problem)

    @property
    def differs(self) -> bool:
        """Whether it would change the row."""
        return any(change.differs for change in self.changes if change.field != "modified_dateutc")


def verdict(body: bytes, properties: Properties, rules: Rules, row: StoredTaskActivityLog | None) -> Verdict:
    """Judge a message. `row` is that of its record as it is now; None if there is none, or it is not known."""
    text = readable(body, properties.content_type)
    try:
        request = decode(Delivery(body, properties), rules)
    except Rejected as rejected:
        problem = rejected.problem
        answer = reply.undecoded(Delivery(body, properties), problem, rules.default_media_type)
        fields = [error.name for error in problem.errors]
        marked = text_pieces(text, properties.content_type, fields)
        now = [Change(each.field, each.before, each.before) for each in changes(row, row)] if row is not None else []
        unknown = _unknown(body, properties, fields) if fields else []
        return Verdict(
            problem, marked, unknown=unknown, changes=now, answer=readable(answer.body), outcome=Outcome.REJECTED
        )
    after = stored(request, row)
    outcome = Outcome.INSERTED if row is None else Outcome.UPDATED
    return Verdict(
        request.record,
        [Piece(text)],
        mode=request.mode.value,
        unknown=_unknown(body, properties, request.record.model_fields_set),
        changes=changes(row, after),
        normal=_normal(request),
        answer=_UNSET_TEXT.sub(SET_BY_DATABASE, readable(reply.stored(request, Applied(outcome, after), "emit").body)),
        outcome=outcome,
    )


def stored(request: Request[Delivery], row: StoredTaskActivityLog | None) -> StoredTaskActivityLog:
    """The row after a request (contract, section 7). Its `modified_dateutc` is a stand-in."""
    given = request.record.model_fields_set
    keeps = request.mode is UpdateMode.MERGE and row is not None
    values = {name: getattr(row if keeps and name not in given else request.record, name) for name in FIELDS}
    return StoredTaskActivityLog.trusted(values | {"modified_dateutc": _UNSET}, set(STORED_FIELDS))


def changes(before: StoredTaskActivityLog | None, after: StoredTaskActivityLog) -> list[Change]:
    """Each field of the row before and after a message."""
    found = [Change(name, shown(getattr(before, name, None)), shown(getattr(after, name))) for name in FIELDS]
    return [*found, Change("modified_dateutc", shown(getattr(before, "modified_dateutc", None)), SET_BY_DATABASE)]


def shown(value: object) -> str | None:
    """A value of a field as text; None for null."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return instant_text(value) if isinstance(value, datetime) else str(value)


def _unknown(body: bytes, properties: Properties, present: Collection[str]) -> list[tuple[str, str | None]]:
    """Members that are not fields, each with the field that was probably meant and is not present."""
    names = misspelled.unknown(Upsert(body, properties.content_type or wire.JSON, message_id="-"))
    return [(name, misspelled.meant(name, present)) for name in names]


def _normal(request: Request[Delivery]) -> str:
    """A record in its normal form; empty if it has none: XML cannot hold some characters that came as JSON."""
    try:
        return readable(wire.encode(request.record, request.media_type).body, request.media_type)
    except Rejected:
        return ""
