"""Dead letters as the console shows them: judged by today's contract, filtered and grouped. Pure."""

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self
from urllib.parse import quote, urlencode
from uuid import UUID

from task_activity_log.client.dead_letters import DeadLetter, judged
from task_activity_log.pipeline.request import Rules
from task_activity_log.problem import Problem
from task_activity_log.record import STORED_FIELDS, TaskActivityLog

REPLAYED_BY: Final = "x-replayed-by"
REPLAY_COUNT: Final = "x-replay-count"
"""Headers of a replayed message. A publisher can set them as well: they are shown, and nothing depends on them."""

_FIELD = re.compile(r"Send (\w+) ")
_ID_LENGTH = 16
_MOST_REPLAYS = 10**6
NO_FIELD: Final = "-"
PARTS = 24
"""In how many parts the time is divided for the small lines of the groups."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, and what a worker would say of it today. What lists and filters need is worked out once."""

    raw: DeadLetter
    id: str
    """Identifies it among all: a part of the digest of everything that is in it."""
    found: TaskActivityLog | Problem
    """The record of its request, or the problem with which it would be rejected again."""
    name: str
    code: str
    detail: str
    publisher: str
    since: datetime | None
    fields: tuple[str, ...]
    """The bad fields: all that are bad today; otherwise the one that the reason names."""

    @classmethod
    def of(cls, raw: DeadLetter, rules: Rules) -> Self:
        """Judge a dead letter."""
        found, code, detail = judged(raw, rules), raw.code, raw.detail
        if isinstance(found, Problem) and found.code == code and found.errors:
            fields = tuple(error.field for error in found.errors)
        else:
            named = _FIELD.match(detail)
            fields = (named[1],) if named and named[1] in STORED_FIELDS else ()
        return cls(raw, id_of(raw.key), found, raw.name, code, detail, raw.publisher, raw.since, fields)

    @property
    def passes(self) -> bool:
        """Whether the contract accepts it now; the database may still refuse it."""
        return not isinstance(self.found, Problem)

    @property
    def record_id(self) -> UUID | None:
        """The id of its record; None if it has none that can be read."""
        return None if isinstance(self.found, Problem) else self.found.id

    @property
    def field(self) -> str:
        """The first bad field, which determines the code; a dash if none is named."""
        return self.fields[0] if self.fields else NO_FIELD

    @property
    def replays(self) -> int:
        """How often its message says that it was replayed by a console."""
        count = self.raw.properties.headers.get(REPLAY_COUNT)
        return count if isinstance(count, int) and 0 <= count < _MOST_REPLAYS else 0

    @property
    def replayed_by(self) -> str:
        """Who its message says has replayed it last."""
        return str(self.raw.properties.headers.get(REPLAYED_BY, ""))

    @property
    def path(self) -> str:
        """Its page. A browser would take a name of dots for another path, so the id is what counts."""
        name = quote(self.name, safe="") if self.name.strip(".") else "-"
        return f"/dead-letters/{name}?letter={self.id}"

    def has_text(self, text: str) -> bool:
        """Whether its body contains a text, in upper or lower case."""
        return text.lower() in self.raw.body.decode(errors="replace").lower()


def id_of(key: str) -> str:
    """The short form of `DeadLetter.key`."""
    return key.rpartition(" ")[2][:_ID_LENGTH]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant: those that match everything that is given. It is the query of a URL."""

    code: str = ""
    field: str = ""
    publisher: str = ""
    since: datetime | None = None
    until: datetime | None = None
    id: str = ""
    """The id of the record."""
    message: str = ""
    """A part of the message_id."""
    text: str = ""
    """A part of the body, upper and lower case are the same."""
    now: str = ""
    """`pass` for those that the contract accepts now, `reject` for the others."""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Self:
        """The filter in a query. Raises `ValueError` for a time that is not one; its text is a sentence."""
        texts = {name: query.get(name, "").strip() for name in _TEXTS}
        return cls(since=_time(query.get("from", "")), until=_time(query.get("to", "")), **texts)

    @property
    def members(self) -> dict[str, str]:
        """What is given, by the name in the URL and in the form."""
        times = {"from": self.since, "to": self.until}
        found = {name: getattr(self, name) for name in _TEXTS}
        return {name: value for name, value in found.items() if value} | {
            name: f"{time:%Y-%m-%dT%H:%M}" for name, time in times.items() if time
        }

    def query(self, **changes: str) -> str:
        """The query of a URL, with some members changed; an empty one is left out."""
        return urlencode({name: value for name, value in (self.members | changes).items() if value})

    def __contains__(self, letter: Letter) -> bool:
        return (
            (not self.code or letter.code == self.code)
            and (not self.field or self.field in (letter.fields or (NO_FIELD,)))
            and (not self.publisher or letter.publisher == self.publisher)
            and (self.since is None or (letter.since is not None and letter.since >= self.since))
            and (self.until is None or (letter.since is not None and letter.since <= self.until))
            and (not self.message or self.message in letter.name)
            and (not self.now or letter.passes == (self.now == "pass"))
            and (not self.id or _is_about(letter, self.id))
            and (not self.text or letter.has_text(self.text))
        )

    def command(self, rate: float) -> str | None:
        """The command that replays the same; None if it has no options for it."""
        if set(self.members) - {"code", "publisher"}:
            return None
        options = [f"--{name} {quoted(value)}" for name, value in self.members.items()] or ["--all"]
        return f"task-activity-log dead-letters replay {' '.join(options)} --rate {rate:g}"


_TEXTS = ("code", "field", "publisher", "id", "message", "text", "now")


def _is_about(letter: Letter, record: str) -> bool:
    """Whether it is about a record. Of one that is rejected again no id was read: then its text counts."""
    return letter.has_text(record) if letter.record_id is None else record.lower() == str(letter.record_id)


def _time(text: str) -> datetime | None:
    if not text.strip():
        return None
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"“{text[:40]}” is not a time: write it as 2026-01-31T14:30, in UTC.") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def quoted(text: str) -> str:
    """A text as one word of a shell, on one line."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII):
        return text
    if text.isprintable():
        return "'" + text.replace("'", "'\"'\"'") + "'"
    plain = string.ascii_letters + string.digits + " -_.:/"
    return (
        "$'"
        + "".join(chr(byte) if chr(byte) in plain else f"\\x{byte:02x}" for byte in text.encode(errors="replace"))
        + "'"
    )


@dataclass(frozen=True, slots=True)
class Group:
    """The dead letters of one code, field and publisher."""

    code: str
    field: str
    publisher: str
    letters: Sequence[Letter]

    @property
    def passing(self) -> int:
        """How many would pass now."""
        return sum(letter.passes for letter in self.letters)

    @property
    def first(self) -> datetime | None:
        """When the first one was rejected, as far as it is known."""
        return min((letter.since for letter in self.letters if letter.since), default=None)

    @property
    def last(self) -> datetime | None:
        """When the last one was rejected, as far as it is known."""
        return max((letter.since for letter in self.letters if letter.since), default=None)

    def counts(self, first: datetime | None, last: datetime | None) -> list[float]:
        """How many were rejected in each part of the time between."""
        counts = [0.0] * PARTS
        if first is not None and last is not None:
            width = max((last - first).total_seconds(), 1.0)
            for letter in self.letters:
                if letter.since is not None:
                    counts[min(PARTS - 1, int(PARTS * (letter.since - first).total_seconds() / width))] += 1
        return counts


def groups(letters: Iterable[Letter]) -> list[Group]:
    """By code, field and publisher, the largest group first."""
    found: dict[tuple[str, str, str], list[Letter]] = {}
    for letter in letters:
        found.setdefault((letter.code, letter.field, letter.publisher), []).append(letter)
    return sorted((Group(*key, letters) for key, letters in found.items()), key=lambda group: -len(group.letters))
