"""The values of a record in .NET, and the Python values that they correspond to."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

Kind: TypeAlias = Literal["Utc", "Local", "Unspecified"]

MAX_TICKS = 3_155_378_975_999_999_999
ZERO = UUID(int=0)
_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


@dataclass(frozen=True)
class Net:
    """A DateTime or, if `kind` is a number of minutes, a DateTimeOffset. Ticks are 100 ns, since the year 1."""

    ticks: int
    kind: Kind | int

    def instant(self, local: ZoneInfo, digits: int = 7) -> datetime:
        """The instant in UTC, to the microsecond, clamped to what a record can hold.

        `local` is the time zone of Local dates; Unspecified dates are taken as UTC. `digits` is the number of digits of
        the fraction of a second that the serializer writes.
        """
        unit = 10 ** (7 - digits)
        clock = _FIRST + timedelta(microseconds=self.ticks // unit * unit // 10)
        try:
            if isinstance(self.kind, int):
                return clock - timedelta(minutes=self.kind)
            return clock.replace(tzinfo=local).astimezone(UTC) if self.kind == "Local" else clock
        except OverflowError:
            return _FIRST if clock.year == 1 else _LAST


def from_net(text: str) -> datetime:
    """The instant that C# has read."""
    ticks, kind = text.split()
    assert kind == "Utc", f"a date without time zone: {text}"
    return Net(int(ticks), "Utc").instant(ZoneInfo("UTC"))


def to_net(values: dict[str, Any]) -> dict[str, Any]:
    """Values in the format for the C# program (see Values.cs)."""
    return {name: _to_net(value) for name, value in values.items()}


def _to_net(value: object) -> object:
    if isinstance(value, Net):
        return f"{value.ticks} {value.kind}"
    return str(value) if isinstance(value, UUID) else value


SEVEN_DIGITS = 639_037_691_147_203_833
"""2026-01-11T22:58:34.7203833"""
END_OF_DAY = 639_037_727_999_999_999
"""2026-01-11T23:59:59.9999999, which must not be rounded up to the next day."""
SUMMER = 639_192_959_140_000_000
"""2026-07-10T16:05:14: in daylight saving time, and without a fraction."""
Y1980 = 624_511_296_000_000_000
"""1980-01-01, which some publishers use for "not set"."""

TICKS = {
    "min": 0,
    "max": MAX_TICKS,
    "1980": Y1980,
    "7 digits": SEVEN_DIGITS,
    "end of day": END_OF_DAY,
    "summer": SUMMER,
}
KINDS: tuple[Kind, ...] = ("Utc", "Local", "Unspecified")
OFFSETS = (0, 120, -300, 840, -840)

TEXTS = {
    "empty": "",
    "blanks": "  \t ",
    "blanks around": "  a\t",
    "LF": "a\nb",
    "CRLF": "a\r\nb",
    "CR": "a\rb",
    "CR alone": "\r",
    "markup": "<b>&amp;</b>]]>\"'",
    "backslashes": '\\u0041\\"/',
    "emoji": "\N{GRINNING FACE}é",
    "odd spaces": "\u00a0\u0085\u2028\u2029",
    "byte order mark": "\ufeffa\ufeff",
    "C1 controls": "\x7f\x80\x9f",
    "replacement": "\ufffd",
    "long": "é" * 10_000,
    "like a date": "2026-01-11T20:58:34.7203833+00:00",
    "like an old date": "/Date(1768165114720)/",
    "null in words": "null",
}
"""Strings that every format can carry."""
NOT_IN_XML = {"U+000B": "a\x0bb", "U+0001": "\x01", "U+FFFE": "a\ufffeb", "U+FFFF": "\uffff"}
"""Strings that JSON can carry and XML 1.0 cannot."""

ID = UUID("9652e68c-7b6d-4598-bbbd-4e933126c994")
FULL: dict[str, Any] = {
    "id": ID,
    "task_id": UUID("ec77bdfe-882b-4254-84a2-979f5c2b20a9"),
    "task_activity_id": ZERO,
    "user_id": UUID("E11CE129-09C6-48A2-AA5F-D2473D0E2298"),
    "contact_id": UUID("f4f88089-0053-4b7f-b228-7feb728fc541"),
    "subject": "subject é",
    "description": "",
    "due_date": Net(SEVEN_DIGITS, "Utc"),
    "is_closed": False,
    "date_closed": Net(SUMMER, "Utc"),
    "reference_back_office": "a <b> & \"c\" 'd'",
}
"""A record with every field; some have the default value of their .NET type."""
EMPTY: dict[str, Any] = {**dict.fromkeys(FULL), "id": ID}
"""A record in which every field but the id is null."""
