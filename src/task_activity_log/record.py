"""The record: `TaskActivityLog` as a request has it, `StoredTaskActivityLog` as it is in the database."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any, NamedTuple, Self
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, PlainSerializer
from pydantic_core import SchemaSerializer, core_schema

UNKNOWN_INSTANT = datetime.max.replace(tzinfo=UTC)
"""Stands for the instant of a row that Python cannot represent, or of a row that may be hidden."""
_NO_UUID = UUID(int=0)
# Three times as fast as isoformat(), which formats the offset.
_iso = SchemaSerializer(core_schema.datetime_schema()).to_python
_iso_all = SchemaSerializer(
    core_schema.list_schema(core_schema.nullable_schema(core_schema.datetime_schema()))
).to_python


def instant_text(value: datetime) -> str:
    """An instant in UTC in the form for JSON: `2026-01-11T20:58:34.720383+00:00` (contract, section 6).

    Trailing zeros of the fraction are removed. A fraction of zero is left out.
    """
    text: str = _iso(value, mode="json")[:-1]  # without the Z
    if value.microsecond % 10:  # the usual case: no trailing zeros
        return text + "+00:00"
    return f"{text.rstrip('0') if value.microsecond else text}+00:00"


def instant_texts(values: Sequence[datetime | None]) -> Sequence[str | None]:
    """Instants in UTC as text in ISO 8601, for PostgreSQL. Takes a quarter of the time of calling isoformat() for each."""
    texts: Sequence[str | None] = _iso_all(list(values), mode="json")
    return texts


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be between the years 1 and 9999 in UTC") from None


def _identifies(value: UUID) -> UUID:
    if value == _NO_UUID:  # with a default(Guid) sent by mistake, every message would overwrite the same row
        raise ValueError("must not be all zeros")
    return value


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can store a string: it has no U+0000 and no lone surrogates."""
    if "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _storable(value: str) -> str:
    if not is_storable(value):
        raise ValueError("must not contain U+0000 or a lone surrogate")
    return value


Id = Annotated[UUID, AfterValidator(_identifies)]
"""A primary key: any uuid except all zeros."""
Text = Annotated[str, AfterValidator(_storable)]
"""A string that PostgreSQL can store."""
Instant = Annotated[
    AwareDatetime,
    AfterValidator(_in_utc),
    PlainSerializer(instant_text, return_type=str, when_used="json"),
]
"""A date and time with an offset. It is converted to UTC; its JSON form is that of `instant_text`."""


class TaskActivityLog(BaseModel):
    """A task_activity_log as a publisher sends it. All fields except `id` may be null.

    `model_fields_set` has the fields that the message contained; a merge needs it. Instants are in UTC, with microseconds.
    If it is created from Python values, pydantic validates them and raises `ValidationError`, also for names that are not fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Id
    task_id: UUID | None = None
    task_activity_id: UUID | None = None
    user_id: UUID | None = None
    contact_id: UUID | None = None
    subject: Text | None = None
    description: Text | None = None
    due_date: Instant | None = None
    is_closed: bool | None = None
    date_closed: Instant | None = None
    reference_back_office: Text | None = None

    @classmethod
    def trusted(cls, values: dict[str, Any], given: set[str]) -> Self:
        """A record of valid values, without validation. Takes half a microsecond; `model_construct` takes four.

        `values` has all fields, in the record's order; `given` has the names of those that were set. The record keeps
        both objects.
        """
        record = cls.__new__(cls)
        # The same attributes as model_construct() sets. The model is frozen, so its own __setattr__ would refuse.
        _set(record, "__dict__", values)
        _set(record, "__pydantic_fields_set__", given)
        _set(record, "__pydantic_extra__", None)
        _set(record, "__pydantic_private__", None)
        return record


class StoredTaskActivityLog(TaskActivityLog):
    """A task_activity_log as it is in the database, which sets `modified_dateutc`. That increases with each write."""

    modified_dateutc: Instant

    @classmethod
    def from_row(cls, row: Mapping[str, Any], asked: TaskActivityLog | None = None) -> Self:
        """The record in a row, without validation, in about 1 µs.

        The row begins with the columns of the record, in its order, as those of our statements do. Its instants must be in
        UTC, as asyncpg returns them. If its values are those of `asked`, the record has the same objects: asyncpg's own
        class for uuids is encoded at a third of the speed of Python's.
        """
        *values, modified = islice(row.values(), len(STORED_FIELDS))
        if asked is not None and values == list(values_of(asked)):
            return cls.trusted({**asked.__dict__, "modified_dateutc": modified}, _ALL.copy())
        return cls.trusted(dict(zip(STORED_FIELDS, (*values, modified), strict=True)), _ALL.copy())


def values_of(record: TaskActivityLog) -> Collection[Any]:
    """The values of all fields, in the record's order. Takes a tenth of the time of reading each attribute."""
    return record.__dict__.values()


_set = object.__setattr__

FIELDS = tuple(TaskActivityLog.model_fields)
"""The fields that a publisher can set, in the record's order."""
STORED_FIELDS = tuple(StoredTaskActivityLog.model_fields)
"""The fields of a stored record, in the record's order."""

_ALL = set(STORED_FIELDS)


class Outcome(StrEnum):
    """The outcome of a reply (contract, section 6)."""

    INSERTED = "inserted"
    UPDATED = "updated"
    DUPLICATE = "duplicate"
    STALE = "stale"
    REJECTED = "rejected"
    SNAPSHOT = "snapshot"
    """Of no request: the record was sent as it was (`task-activity-log resend`)."""


ANSWERS = tuple(outcome for outcome in Outcome if outcome is not Outcome.SNAPSHOT)
"""The outcomes of requests."""


class Applied(NamedTuple):
    """The outcome of a request and the record after it; None if the row of a duplicate was deleted since."""

    outcome: Outcome
    record: StoredTaskActivityLog | None


class Unread(Applied):
    """The outcome of a request whose record was not read, because all records of its wave together would be too long."""


class TooLong(Applied):
    """The outcome of a request whose record was not read, because it is longer than any reply may be."""
