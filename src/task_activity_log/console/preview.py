"""What a message would do: the contract's verdict, each bad field and its place, and the row before and after. Pure."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import SequenceMatcher
from typing import Final, NamedTuple
from uuid import UUID

from lxml import etree

from task_activity_log import wire
from task_activity_log.client import Upsert, misspelled
from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.request import Request, Rules, UpdateMode, decode
from task_activity_log.problem import Problem, Rejected
from task_activity_log.record import (
    FIELDS,
    STORED_FIELDS,
    Applied,
    Outcome,
    StoredTaskActivityLog,
    TaskActivityLog,
    instant_text,
)

SET_BY_DATABASE: Final = "set by the database"
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_VALUE = re.compile(r"[:>]\s*\"?\s*([-0-9A-Fa-f{}()]{32,38})\s*(?:\"|<|$)")
_LONGEST_COMPARED = 20_000
_UNSET = datetime(8765, 4, 3, 2, 1, 0, 987654, UTC)
"""Stands for the instant that the database will set."""
_UNSET_TEXT = re.compile(r"8765-04-03T02:01:00\.987(?:654\+00:00|Z)")
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, recover=False)


class Piece(NamedTuple):
    """A part of a text. `mark` is the name of what is wrong with it, or how it differs; empty if nothing is."""

    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One field of the row: its value now and after the message, as text; None where there is no row or no value."""

    field: str
    before: str | None
    after: str | None

    @property
    def differs(self) -> bool:
        """Whether the message changes it."""
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a worker would say of a message now."""

    found: TaskActivityLog | Problem
    pieces: Sequence[Piece]
    """The body; each bad field is marked with its name, and a syntax error with `here`."""
    mode: str = ""
    unknown: Sequence[tuple[str, str | None]] = ()
    """Members that are not fields, each with the field that was probably meant."""
    changes: Sequence[Change] = ()
    """What would be stored, field by field."""
    normal: str = ""
    """The record in its normal form; empty if it is rejected."""
    answer: str = ""
    """The body of the reply."""
    outcome: str = ""

    @property
    def passes(self) -> bool:
        """Whether the contract accepts it."""
        return not isinstance(self.found, Problem)

    @property
    def differs(self) -> bool:
        """Whether it would change the row."""
        return any(change.differs for change in self.changes if change.field != "modified_dateutc")


def verdict(body: bytes, properties: Properties, rules: Rules, row: StoredTaskActivityLog | None) -> Verdict:
    """Judge a message. `row` is that of its record as it is now; None if there is none, or it is not known."""
    text = readable(body, properties.content_type)
    try:
        request = decode(Delivery(body, properties), rules)
    except Rejected as rejected:
        problem = rejected.problem
        answer = reply.undecoded(Delivery(body, properties), problem, rules.default_media_type)
        fields = [error.field for error in problem.errors]
        marked = text_pieces(text, properties.content_type, fields)
        now = [Change(each.field, each.before, each.before) for each in changes(row, row)] if row is not None else []
        unknown = _unknown(body, properties, fields) if fields else []
        return Verdict(
            problem, marked, unknown=unknown, changes=now, answer=readable(answer.body), outcome=Outcome.REJECTED
        )
    after = stored(request, row)
    outcome = Outcome.INSERTED if row is None else Outcome.UPDATED
    return Verdict(
        request.record,
        [Piece(text)],
        mode=request.mode.value,
        unknown=_unknown(body, properties, request.record.model_fields_set),
        changes=changes(row, after),
        normal=_normal(request),
        answer=_UNSET_TEXT.sub(SET_BY_DATABASE, readable(reply.stored(request, Applied(outcome, after), "emit").body)),
        outcome=outcome,
    )


def record_id(body: bytes, content_type: str | None) -> UUID | None:
    """The id of the record in a message, also if another field is wrong; None if it has none that is valid."""
    found = wire.record_id(body, content_type)
    if found is None:
        text = body_text(body, content_type)
        named = [piece.text for piece in text_pieces(text, content_type, ["id"]) if piece.mark == "id"]
        value = _VALUE.search(named[0]) if len(named) == 1 else None
        found = wire.record_id(json.dumps({"id": value[1]}).encode(), wire.JSON) if value else None
    return found


def stored(request: Request[Delivery], row: StoredTaskActivityLog | None) -> StoredTaskActivityLog:
    """The row after a request (contract, section 7). Its `modified_dateutc` is a stand-in."""
    given = request.record.model_fields_set
    keeps = request.mode is UpdateMode.MERGE and row is not None
    values = {name: getattr(row if keeps and name not in given else request.record, name) for name in FIELDS}
    return StoredTaskActivityLog.trusted(values | {"modified_dateutc": _UNSET}, set(STORED_FIELDS))


def changes(before: StoredTaskActivityLog | None, after: StoredTaskActivityLog) -> list[Change]:
    """Each field of the row before and after a message."""
    found = [Change(name, shown(getattr(before, name, None)), shown(getattr(after, name))) for name in FIELDS]
    return [*found, Change("modified_dateutc", shown(getattr(before, "modified_dateutc", None)), SET_BY_DATABASE)]


def shown(value: object) -> str | None:
    """A value of a field as text; None for null."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return instant_text(value) if isinstance(value, datetime) else str(value)


def readable(body: bytes, content_type: str | None = None) -> str:
    """A body for people: JSON is indented, and only its white space changes; anything else is as it is."""
    return indented(body_text(body, content_type))


def indented(text: str) -> str:
    """JSON with a line for each member. Nothing but white space changes; a text that is not JSON is as it is."""
    try:
        json.loads(text, parse_int=len, parse_float=len)
    except (ValueError, RecursionError):
        return text
    lines, depth = [""], 0
    for part in _TOKEN.findall(text):
        if part in "}]":
            depth -= 1
            if lines[-1].strip():
                lines.append("  " * depth)
            else:
                lines = [*lines[:-2], lines[-2]]  # it was empty
        lines[-1] += part + (" " if part == ":" else "")
        if part in "{[":
            depth += 1
        if part in "{[,":
            lines.append("  " * depth)
    return "\n".join(lines)


def body_text(body: bytes, content_type: str | None) -> str:
    """The characters of a body, whatever is wrong with it."""
    try:
        return wire.text(body, wire.media_type(content_type))
    except Rejected:
        return body.decode(errors="replace")


def text_pieces(text: str, content_type: str | None, fields: Sequence[str]) -> list[Piece]:
    """A body in pieces: what holds one of these fields is marked with its name, and a syntax error with `here`."""
    is_xml = wire.is_xml((content_type or "").partition(";")[0].strip().lower())
    try:
        places = list(_places_in_xml(text, fields) if is_xml else _places_in_json(text, fields))
    except _SyntaxError as error:
        places = [(error.position, min(len(text), error.position + 1), "here")]
    pieces, end = list[Piece](), 0
    for start, stop, mark in sorted(places):
        if start >= end:
            pieces += [Piece(text[end:start]), Piece(text[start:stop], mark)]
            end = stop
    return [piece for piece in (*pieces, Piece(text[end:])) if piece.text or piece.mark]


class _SyntaxError(Exception):
    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


def _places_in_json(text: str, fields: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Where the members with these names are, from the name to the end of the value. Raises `_SyntaxError`."""
    decoder = json.JSONDecoder(parse_int=len, parse_float=len)
    try:
        decoder.decode(text)
        at = _skip(text, _skip(text, 0) + 1)
        while text[at : at + 1] == '"':  # it is well-formed: what follows a value is a comma, or the end of the object
            start = at
            name, at = decoder.raw_decode(text, at)
            _, at = decoder.raw_decode(text, _skip(text, _skip(text, at) + 1))
            if name.lower() in fields:
                yield start, at, name.lower()
            at = _skip(text, _skip(text, at) + 1)
    except json.JSONDecodeError as error:
        raise _SyntaxError(error.pos) from None
    except (RecursionError, AttributeError):  # nested too deeply; or an array or a text, which have no members
        return


def _places_in_xml(text: str, fields: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Where the elements with these names are. Raises `_SyntaxError`."""
    try:
        etree.fromstring(
            re.sub(r"^\s*<\?xml.*?\?>", lambda found: " " * len(found[0]), text, count=1, flags=re.DOTALL), _PARSER
        )
    except etree.XMLSyntaxError as error:
        line, column = error.position
        before = sum(len(part) + 1 for part in text.split("\n")[: max(0, line - 1)])
        raise _SyntaxError(min(len(text), before + max(0, column - 1))) from None
    except ValueError:
        return
    for field in fields:
        name = rf"(?:[\w.-]+:)?{re.escape(field)}"
        for found in re.finditer(rf"<{name}(?:\s[^>]*)?(?:/>|>.*?</{name}\s*>)", text, re.DOTALL):
            yield found.start(), found.end(), field


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def difference(before: str, after: str) -> list[Piece]:
    """A text after an edit, line by line: what was taken out is marked `removed`, what was put in `added`."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    if len(before) + len(after) > _LONGEST_COMPARED:
        return [Piece(before, "removed"), Piece(after, "added")] if before != after else [Piece(after)]
    pieces = list[Piece]()
    for kind, low, high, start, stop in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(Piece("".join(new[start:stop])))
        else:
            pieces += [Piece(line, "removed") for line in old[low:high]] + [
                Piece(line, "added") for line in new[start:stop]
            ]
    return pieces


def _unknown(body: bytes, properties: Properties, present: Collection[str]) -> list[tuple[str, str | None]]:
    """Members that are not fields, each with the field that was probably meant and is not present."""
    names = misspelled.unknown(Upsert(body, properties.content_type or wire.JSON, message_id="-"))
    return [(name, misspelled.meant(name, present)) for name in names]


def _normal(request: Request[Delivery]) -> str:
    """A record in its normal form; empty if it has none: XML cannot hold some characters that came as JSON."""
    try:
        return readable(wire.encode(request.record, request.media_type).body, request.media_type)
    except Rejected:
        return ""
