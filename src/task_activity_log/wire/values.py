"""Text → uuid and instant, in the forms that both formats take (contract, sections 3 and 4)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from pydantic_core import SchemaValidator, ValidationError, core_schema

from task_activity_log.problem import Code
from task_activity_log.wire.media import WHITE

NaiveDates = Literal["utc", "reject"]
"""What a date without offset is: in UTC, or refused."""

UUID_SCHEMA = core_schema.chain_schema([core_schema.str_schema(strict=True, max_length=38), core_schema.uuid_schema()])
"""Forms N, D and B. Left to itself pydantic takes `urn:uuid:…` as well, which is longer."""
_uuid = SchemaValidator(UUID_SCHEMA).validate_python

DAY: Final = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_OFFSET = r"[+-](?:(?:0[0-9]|1[0-3])(?::?[0-5][0-9])?|14(?::?00)?)"
INSTANT: Final = re.compile(
    rf"({DAY})"
    r"(?:[Tt ]((?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]+)?)?)"
    rf"([Zz]|{_OFFSET})?)?"
)
"""A date as both formats have it. Whether there is such a `DAY` is looked at afterwards."""
_TO_MICROSECONDS = len("hh:mm:ss.ffffff")
COUNT: Final = "-?[0-9]{1,15}"
MILLISECONDS: Final = re.compile(rf"/Date\(({COUNT})(?:[+-](?:(?:0[0-9]|1[0-3])[0-5][0-9]|1400))?\)/")
"""An instant as only JSON has it. Whether it is between the years 1 and 9999 is looked at afterwards."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


class Invalid(ValueError):
    """A value that is not what its field holds; `code` says what was expected. It never carries the value."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


def uuid(text: str) -> UUID:
    """A uuid in form N, D, B or P, any case, trimmed. Raises `Invalid`."""
    text = text.strip(WHITE)
    if text.startswith("(") and text.endswith(")"):
        text = f"{{{text[1:-1]}}}"
    try:
        value: UUID = _uuid(text)
    except ValidationError:  # its text holds the value, hence no cause
        raise Invalid(Code.INVALID_UUID) from None
    return value


def instant(text: str, naive: NaiveDates = "utc") -> datetime:
    """A date with or without time and offset, trimmed, as an instant in UTC, truncated to microseconds.

    One that its offset moves out of the years 1 to 9999 is clamped (`in_utc`). Raises `Invalid`.
    """
    found = INSTANT.fullmatch(text.strip(WHITE))
    if found is None:
        raise Invalid(Code.INVALID_DATE)
    day, time, offset = found.groups()
    if offset is None and naive == "reject":
        raise Invalid(Code.INVALID_DATE)
    zone = "Z" if offset is None or offset in "Zz" else offset
    try:
        value = datetime.fromisoformat(f"{day}T{time[:_TO_MICROSECONDS] if time else '00'}{zone}")
    except ValueError:  # 30 February, year 0
        raise Invalid(Code.INVALID_DATE) from None
    return in_utc(value)


def in_utc(value: datetime) -> datetime:
    """The same instant in UTC; outside the years 1 to 9999 the nearest that there is.

    A Brussels server writes `0001-01-01T00:00:00+00:18` for DateTime.MinValue.
    """
    if value.tzinfo is UTC:
        return value
    try:
        return value.astimezone(UTC)
    except OverflowError:
        return _FIRST if value.year == _FIRST.year else _LAST


def milliseconds(text: str) -> datetime | None:
    r"""The instant in `/Date(ms)/` or `/Date(ms±hhmm)/`, whose offset does not move it; None for any other text.

    Only JSON has these. Raises `Invalid` for an instant outside the years 1 to 9999.
    """
    found = MILLISECONDS.fullmatch(text.strip(WHITE))
    if found is None:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=int(found[1]))
    except OverflowError:
        raise Invalid(Code.INVALID_DATE) from None
