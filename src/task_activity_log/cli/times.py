"""Times on the command line: durations such as 2h, and instants."""

import re
from datetime import UTC, datetime, timedelta

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float | None:
    """The seconds in `30s`, `15m`, `2h` or `7d`; None for an empty text; `ValueError` for any other."""
    if not text:
        return None
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd])", text)
    if found is None:
        raise ValueError(f"invalid duration {text}: use a number and a unit, as in 30s, 15m, 2h or 7d")
    return float(found[1]) * UNITS[found[2]]


def since(text: str) -> datetime:
    """The instant that lies so long ago (`2h`), or that is given (`2026-01-11T20:58:34Z`); `ValueError` for any other.

    A date without an offset is in UTC.
    """
    try:
        ago = seconds(text)
    except ValueError:
        ago = None
    try:
        if ago is not None:
            return datetime.now(UTC) - timedelta(seconds=ago)
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"invalid time {text}: use 15m, 2h or 7d, or a date such as 2026-01-11T20:58:34Z") from None
