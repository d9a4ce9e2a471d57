"""Times, numbers and the runbook's advice, for people. Pure."""

import json
import re
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Final

_LONG: Final = {"day": 86_400, "hour": 3600, "minute": 60, "second": 1}
_SHORT: Final = ((1.0, 0.001, "ms"), (90.0, 1.0, "s"), (5400.0, 60.0, "min"), (172_800.0, 3600.0, "h"))


def span(seconds: float | timedelta | None) -> str:
    """A time in its largest unit, as in `4 minutes`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    left = max(0.0, seconds.total_seconds() if isinstance(seconds, timedelta) else seconds)
    unit, size = next(((unit, size) for unit, size in _LONG.items() if left >= size), ("second", 1))
    count = round(left / size)
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def capitalized(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return f"{text[:1].upper()}{text[1:]}"


def ago(time: datetime | None) -> str:
    """How long ago something was."""
    return "at an unknown time" if time is None else f"{span(datetime.now(UTC) - time)} ago"


def at(time: datetime | None) -> str:
    """When something was."""
    return "unknown" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def short(seconds: float | None) -> str:
    """A duration for a table: `35 ms`, `2.1 s`, `4 min`, `3 h`; a dash for None."""
    if seconds is None:
        return "-"
    for limit, size, unit in _SHORT:
        if seconds < limit:
            return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds / 86_400)} d"


def digits(value: float) -> str:
    """A number with three digits that count, or all that it has before the point, and never with an exponent."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"  # noqa: PLR2004 - what is rounded to 1,000


def round_up(value: float) -> float:
    """The next number that is easy to read: 1, 2 or 5 times a power of ten."""
    step = 1.0
    while step < value:
        step *= 2 if str(step)[0] in "15" else 2.5
    return step


def advice(reason: str) -> str:
    """What the runbook says to do about the reason of a hold; empty if it does not name it. Of several the longest counts."""
    found = [(len(pattern.pattern), text) for pattern, text in _RUNBOOK if pattern.search(reason)]
    return max(found, default=(0, ""))[1]


_ROWS = json.loads(resources.files("task_activity_log.console").joinpath("runbook.json").read_text(encoding="utf-8"))
_RUNBOOK: Final = [(re.compile(".+".join(map(re.escape, reason.split("…")))), text) for reason, text in _ROWS]
