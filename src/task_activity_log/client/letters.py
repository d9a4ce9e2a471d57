"""Dead letters as people look at them: judged by today's contract, grouped, and filtered. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Final, Self
from uuid import UUID

from task_activity_log.client.dead_letters import COUNTS, DeadLetter, judged
from task_activity_log.client.marking import body_text
from task_activity_log.client.record_id import record_id
from task_activity_log.pipeline.request import Rules
from task_activity_log.problem import Problem
from task_activity_log.record import STORED_FIELDS, TaskActivityLog

_FIELD = re.compile(r"Send (\w+) ")
_ID_LENGTH = 16
NO_FIELD: Final = "-"
PARTS = 24
"""In how many parts the time is divided for the small lines of the groups."""


@dataclass(frozen=True)
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
            fields = tuple(error.name for error in found.errors)
        else:
            named = _FIELD.match(detail)
            fields = (named[1],) if named and named[1] in STORED_FIELDS else ()
        return cls(raw, id_of(raw.key), found, raw.name, code, detail, raw.publisher, raw.since, fields)

    @property
    def passes(self) -> bool:
        """Whether the contract accepts it now; the database may still refuse it."""
        return not isinstance(self.found, Problem)

    @cached_property
    def record_id(self) -> UUID | None:
        """The id of its record, whatever else is wrong with it; None if it has none that can be read."""
        if not isinstance(self.found, Problem):
            return self.found.id
        return record_id(self.raw.body, self.raw.restored(None).content_type)

    @property
    def field(self) -> str:
        """The first bad field, which determines the code; a dash if none is named."""
        return self.fields[0] if self.fields else NO_FIELD

    def has_text(self, text: str) -> bool:
        """Whether its body contains a text, in upper or lower case."""
        return text.lower() in body_text(self.raw.body, self.raw.properties.content_type).lower()


def id_of(key: str) -> str:
    """The short form of `DeadLetter.key`."""
    return key.rpartition(" ")[2][:_ID_LENGTH]


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


_TIMES = {"since": "from", "until": "to"}
_CHOICES = {"now": ("pass", "reject"), "answered": ("yes",)}
"""Members whose name is a reserved word of Python or of SQL, and their names in a URL."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant: those that match everything that is given. Texts by name, as in the query of a URL."""

    code: str = ""
    field: str = ""
    publisher: str = ""
    since: datetime | None = None
    until: datetime | None = None
    message: str = ""
    """A part of the message_id."""
    id: str = ""
    """The id of the record."""
    text: str = ""
    """A part of the body; upper and lower case are the same."""
    now: str = ""
    """`pass` for those that the contract accepts now, `reject` for the others."""
    answered: str = ""
    """`yes` for only those whose row was stored since they were rejected. Whoever can read rows finds these out."""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Self:
        """The filter in a query, which may also have a `page`.

        Raises `ValueError` if it has another name, or a value that is not one of this name; its text is a sentence.
        """
        names = {name: _TIMES.get(name, name) for name in cls.__slots__}
        if unknown := sorted(set(query).difference(names.values(), ("page",))):
            raise ValueError(f"“{unknown[0][:40]}” is not a filter: there are {', '.join(names.values())}.")
        given = {name: query.get(shown, "").strip() for name, shown in names.items()}
        for name, values in _CHOICES.items():
            if given[name] not in ("", *values):
                raise ValueError(f"“{given[name][:40]}” is not a value of {name}: it is {' or '.join(values)}.")
        return cls(**{name: _time(text) if name in _TIMES else text for name, text in given.items()})  # type: ignore[arg-type]

    @property
    def members(self) -> dict[str, str]:
        """What is given, by the name in the URL and in the form."""
        given = {_TIMES.get(name, name): value for name, value in asdict(self).items() if value}
        return {name: _form_time(value) if isinstance(value, datetime) else value for name, value in given.items()}

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


def _is_about(letter: Letter, record: str) -> bool:
    """Whether it is about a record. In one that is rejected again the id may be what is wrong: then its text counts."""
    return record.lower() == str(letter.record_id) if letter.passes else letter.has_text(record)


def _time(text: str) -> datetime | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"“{text[:40]}” is not a time: write it as 2026-01-31T14:30, in UTC.") from None


def _form_time(time: datetime) -> str:
    """A time in UTC as a form has it, with seconds only if it has some."""
    return time.replace(tzinfo=None).isoformat(timespec="auto" if time.second or time.microsecond else "minutes")


def shown_headers(letter: DeadLetter) -> Mapping[str, object]:
    """The headers of a dead letter, without the counts that the broker sets at each delivery, as a look is one."""
    return {name: value for name, value in letter.properties.headers.items() if name.encode() not in COUNTS}
