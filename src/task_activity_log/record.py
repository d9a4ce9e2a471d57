"""The record: `TaskActivityLog` as asked for, `StoredTaskActivityLog` as the row is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from operator import itemgetter
from typing import Annotated, Any, NamedTuple, Self
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, PlainSerializer
from pydantic_core import SchemaSerializer, core_schema

_NO_UUID = UUID(int=0)
# Three times as fast as isoformat(), which spells out the offset through a C format string.
_iso = SchemaSerializer(core_schema.datetime_schema()).to_python


def instant_text(value: datetime) -> str:
    """An instant in UTC as JSON has it: `2026-01-11T20:58:34.720383+00:00` (contract, section 6).

    Trailing zeros of the fraction are trimmed, and there is no fraction when it is zero.
    """
    text: str = _iso(value, mode="json")[:-1]  # without its Z
    if value.microsecond % 10:  # the usual case: nothing to trim
        return text + "+00:00"
    return f"{text.rstrip('0') if value.microsecond else text}+00:00"


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be between the years 1 and 9999 in UTC") from None


def _identifies(value: UUID) -> UUID:
    if value == _NO_UUID:  # a careless default(Guid) would make every message overwrite one row
        raise ValueError("must not be all zeros")
    return value


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold a string: no U+0000, no lone surrogates."""
    if "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _storable(value: str) -> str:
    if not is_storable(value):
        raise ValueError("must not hold U+0000 or half a surrogate pair")
    return value


Id = Annotated[UUID, AfterValidator(_identifies)]
"""A primary key: any uuid but all zeros."""
Text = Annotated[str, AfterValidator(_storable)]
"""A string that PostgreSQL can hold: no U+0000, no lone surrogates."""
Instant = Annotated[
    AwareDatetime,
    AfterValidator(_in_utc),
    PlainSerializer(instant_text, return_type=str, when_used="json"),
]
"""A moment with its offset, kept in UTC to the microsecond; in JSON as `instant_text` writes it."""


class TaskActivityLog(BaseModel):
    """A task_activity_log as a publisher asks for it. Every field but `id` may be null.

    Which fields the message had is in `model_fields_set`; a merge needs it. Instants are in UTC, to the microsecond.
    Made from Python values it is validated by pydantic, which raises `ValidationError`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

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
        """A record of values known to be right, not validated: half a microsecond; `model_construct` takes four.

        `values` has every field, in the record's order, and becomes the record's own; so does `given`, the names of
        those that were set.
        """
        record = cls.__new__(cls)
        # What model_construct() sets, in the same way: the model is frozen, so past its __setattr__.
        _set(record, "__dict__", values)
        _set(record, "__pydantic_fields_set__", given)
        _set(record, "__pydantic_extra__", None)
        _set(record, "__pydantic_private__", None)
        return record


class StoredTaskActivityLog(TaskActivityLog):
    """A task_activity_log as the database has it: it sets `modified_dateutc`, which grows with each write."""

    modified_dateutc: Instant

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The record in a row of the table, by column name; other columns are passed over. About 1 µs: not validated.

        The row's instants have to be in UTC, as asyncpg's are.
        """
        return cls.trusted(dict(zip(STORED_FIELDS, _columns(row), strict=True)), _ALL.copy())


_set = object.__setattr__

FIELDS = tuple(TaskActivityLog.model_fields)
"""The fields a publisher may set, in the record's order."""
STORED_FIELDS = tuple(StoredTaskActivityLog.model_fields)
"""The fields of a stored record, in the record's order."""

_columns = itemgetter(*STORED_FIELDS)
_ALL = set(STORED_FIELDS)


class Outcome(StrEnum):
    """What became of a request (contract, section 6)."""

    INSERTED = "inserted"
    UPDATED = "updated"
    DUPLICATE = "duplicate"
    STALE = "stale"
    REJECTED = "rejected"


class Applied(NamedTuple):
    """A request's outcome and the record as it stood after it; None when a duplicate's row was deleted since."""

    outcome: Outcome
    record: StoredTaskActivityLog | None
