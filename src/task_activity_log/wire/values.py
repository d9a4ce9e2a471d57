"""Text to uuid and instant, in the forms that both formats accept (contract, sections 3 and 4)."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from pydantic_core import SchemaValidator, ValidationError, core_schema

from task_activity_log.problem import Code
from task_activity_log.wire.media import WHITE

NaiveDates = Literal["utc", "reject"]
"""How a date without an offset is read: as UTC, or not at all."""

UUID_SCHEMA = core_schema.chain_schema([core_schema.str_schema(strict=True, max_length=38), core_schema.uuid_schema()])
"""Forms N, D and B. The maximum length excludes `urn:uuid:…`, which pydantic would accept."""
_uuid = SchemaValidator(UUID_SCHEMA).validate_python

DAY: Final = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_OFFSET = r"[+-](?:(?:0[0-9]|1[0-3])(?::?[0-5][0-9])?|14(?::?00)?)"
INSTANT: Final = re.compile(
    rf"({DAY})"
    r"(?:[Tt ]((?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]+)?)?)"
    rf"([Zz]|{_OFFSET})?)?"
)
"""The form of a date in both formats. Whether the `DAY` exists is checked afterwards."""
_TO_MICROSECONDS = len("hh:mm:ss.ffffff")
COUNT: Final = "-?[0-9]{1,15}"
MILLISECONDS: Final = re.compile(rf"/Date\(({COUNT})(?:[+-](?:(?:0[0-9]|1[0-3])[0-5][0-9]|1400))?\)/")
"""A form of an instant that only JSON has. Whether it is between the years 1 and 9999 is checked afterwards."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


class Invalid(ValueError):
    """A value is not of its field's kind; `code` says what was expected. The value itself is not included."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


def uuid(text: str) -> UUID:
    """A uuid in form N, D, B or P, in any case, trimmed. Raises `Invalid`."""
    text = text.strip(WHITE)
    if text.startswith("(") and text.endswith(")"):
        text = f"{{{text[1:-1]}}}"
    try:
        value: UUID = _uuid(text)
    except ValidationError:  # no cause, because the error quotes the value
        raise Invalid(Code.INVALID_UUID) from None
    return value


def instant(text: str, naive: NaiveDates = "utc") -> datetime:
    """A date with or without time and offset, trimmed, as an instant in UTC, truncated to microseconds.

    If the offset moves it out of the years 1 to 9999, it is clamped (`in_utc`). Raises `Invalid`.
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
    """The same instant in UTC, clamped to the years 1 to 9999.

    For example, .NET in the Brussels time zone writes DateTime.MinValue as `0001-01-01T00:00:00+00:18`.
    """
    if value.tzinfo is UTC:
        return value
    try:
        return value.astimezone(UTC)
    except OverflowError:
        return _FIRST if value.year == _FIRST.year else _LAST


def milliseconds(text: str) -> datetime | None:
    r"""The instant in `/Date(ms)/` or `/Date(ms±hhmm)/`; None for any other text. The offset does not change the instant.

    Only JSON has these forms. Raises `Invalid` for an instant outside the years 1 to 9999.
    """
    found = MILLISECONDS.fullmatch(text.strip(WHITE))
    if found is None:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=int(found[1]))
    except OverflowError:
        raise Invalid(Code.INVALID_DATE) from None
