"""Copies of a stored record that a unique constraint does not refuse as copies."""

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from string import ascii_lowercase, ascii_uppercase, digits
from uuid import uuid4

from task_activity_log.pipeline.refusals import OF_COPIES
from task_activity_log.problem import Refused, Rule, Unavailable
from task_activity_log.record import FIELDS, TaskActivityLog
from task_activity_log.wire.fields import KINDS, Kind

_VARIABLE = tuple(
    name for kind in (Kind.TEXT, Kind.INSTANT, Kind.UUID) for name in FIELDS if name != "id" and KINDS[name] is kind
)
"""The columns whose value makes a row another one for a unique index; at last those that may refer to rows of other tables."""

_VARIED = 100
"""How many characters of a text are other ones."""
_ENOUGH_DIGITS = 5
"""With as many, hardly ever is a text with other digits that of another record."""


async def passes_otherwise(
    attempt: Callable[[TaskActivityLog], Awaitable[Refused | Unavailable | None]], stored: TaskActivityLog, rule: Rule
) -> bool:
    """Whether a row like this one is refused by this rule only because it is a copy.

    One value after the other is changed. If another unique index refuses it then, that value stays changed. `attempt` writes
    a row with the values of a record, rolls back, and returns what was raised.
    """
    names = list(_VARIABLE)
    while rule.sqlstate in OF_COPIES and names:
        for name in names:
            other = _varied(stored, name)
            failure = await attempt(other)
            if failure is None:
                return True
            if not isinstance(failure, Refused):  # such as a lock
                return False
            if failure.sqlstate in OF_COPIES and failure.rule != rule:
                stored, rule = other, failure.rule
                names.remove(name)
                break
        else:
            break
    return False


def _varied(record: TaskActivityLog, name: str) -> TaskActivityLog:
    """This record with another value in one of the columns that can vary. A text keeps its length and its form."""
    old = getattr(record, name)
    match KINDS[name]:
        case Kind.UUID:
            new: object = uuid4()
        case Kind.INSTANT:
            new = datetime.fromtimestamp(random.randrange(2**31), UTC)  # noqa: S311 - not cryptography
        case _:
            new = old[:-_VARIED] + _another(old[-_VARIED:]) if old else uuid4().hex
    return TaskActivityLog.trusted({**record.__dict__, name: new}, set())


def _another(text: str) -> str:
    """A text of the same form. If it has enough digits, only these are others: the letters may have to stay (`INV-00012`)."""
    digits_only = sum(map(str.isdigit, text)) >= _ENOUGH_DIGITS
    return "".join(letter if digits_only and letter.isalpha() else _like(letter) for letter in text)


def _like(letter: str) -> str:
    """A letter or a digit like this one; itself if it is neither."""
    if letter.isdigit():
        return random.choice(digits)  # noqa: S311 - not cryptography
    if letter.isalpha():
        return random.choice(ascii_uppercase if letter.isupper() else ascii_lowercase)  # noqa: S311
    return letter
