"""Members of a record that are not fields: the worker ignores them, so that a misspelled field is cleared by a replace."""

import difflib
import json
import re
from collections.abc import Collection
from typing import Any

from lxml import etree

from task_activity_log import wire
from task_activity_log.client.messages import Upsert
from task_activity_log.problem import Rejected
from task_activity_log.record import FIELDS, STORED_FIELDS

_CLOSE = 0.8
"""How similar a name must be to that of a field, from 0 to 1."""
_LONGEST_INTEGER = 4_000
_DECLARATION = re.compile(r"^\ufeff?(?:\s*<\?xml.*?\?>)?", re.DOTALL)
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


def integer(digits: str) -> float:
    """An integer of a JSON text. One that is longer than Python reads becomes infinite, which JSON cannot express."""
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float("inf")


def unknown(upsert: Upsert) -> list[str]:
    """The names of the members that are not fields, in the order of the body, of a request that may be invalid otherwise.

    JSON's `$id` and `$type`, and XML elements of another namespace than the root's, are not meant for the worker.
    """
    try:
        media = wire.media_type(upsert.content_type, wire.JSON)
        names = (_of_xml if wire.is_xml(media.name) else _of_json)(wire.text(upsert.body, media))
    except (Rejected, ValueError, RecursionError, etree.LxmlError):
        return []
    return [name for name in names if name not in STORED_FIELDS]


def xml_root(text: str) -> Any:
    """The root of an XML text, whatever encoding its declaration says: it is decoded already, and .NET writes utf-16 there.

    Raises `etree.LxmlError`, whose position is that in the text, or `ValueError`.
    """
    return etree.fromstring(_DECLARATION.sub(lambda found: " " * len(found[0]), text, count=1), _PARSER)


def meant(name: str, present: Collection[str]) -> str | None:
    """The field that this name is probably a misspelling of, if the record does not have that field."""
    found = _SIMPLE.get(_simple(name))
    if found is None:
        close = difflib.get_close_matches(_simple(name), _SIMPLE, n=1, cutoff=_CLOSE)
        found = _SIMPLE[close[0]] if close else None
    # `present` can be a long list, and most names are not misspelled.
    return None if found is None or found in present else found


def _of_json(text: str) -> list[str]:
    members = json.loads(text.removeprefix("\ufeff"), parse_int=integer)
    if not isinstance(members, dict):
        return []  # a list or a number has no members: it is rejected as it is
    lower = (name.lower() if name.isascii() else name for name in members)
    return [
        name if folded not in STORED_FIELDS else folded
        for name, folded in zip(members, lower, strict=True)
        if not name.startswith("$")
    ]


def _of_xml(text: str) -> list[str]:
    root = xml_root(text)
    namespaces = {None, etree.QName(root).namespace}
    elements = (etree.QName(child) for child in root if isinstance(child.tag, str))
    return [name.localname for name in elements if name.namespace in namespaces]


def _simple(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


_SIMPLE = {_simple(field): field for field in FIELDS}
