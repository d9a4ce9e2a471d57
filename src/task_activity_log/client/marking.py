"""A body for people: indented, with the bad fields and syntax errors marked, and the difference that an edit makes. Pure."""

import json
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from lxml import etree

from task_activity_log import wire
from task_activity_log.client.misspelled import xml_root
from task_activity_log.problem import Rejected

_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_LONGEST_COMPARED = 20_000


class Piece(NamedTuple):
    """A part of a text. `mark` is the name of what is wrong with it, or how it differs; empty if nothing is."""

    text: str
    mark: str = ""


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


def body_text(body: bytes, content_type: str | None, errors: str = "replace") -> str:
    """The characters of a body, whatever is wrong with it. `errors`: what becomes of bytes that are not text (`bytes.decode`)."""
    try:
        return wire.text(body, wire.media_type(content_type))
    except Rejected:
        return body.decode(errors=errors)


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
        xml_root(text)
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
