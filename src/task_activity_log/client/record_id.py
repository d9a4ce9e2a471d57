"""The id of the record in a message that may be invalid otherwise."""

import json
from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID

from lxml import etree

from task_activity_log import wire
from task_activity_log.client.misspelled import integer, xml_root
from task_activity_log.problem import Rejected
from task_activity_log.wire import MediaType


def record_id(body: bytes, content_type: str | None) -> UUID | None:
    """The id that a request has, whatever else is wrong with it; None if it has no readable one, or more than one.

    The content type can be absent, or be what is wrong. So a body that is not of this type is read as the other one.
    """
    for media in _media_types(content_type):
        with suppress(Rejected, ValueError, RecursionError, etree.LxmlError):
            text = wire.text(body, media)
            found = _in_xml(text) if wire.is_xml(media.name) else _in_json(text)
            return UUID(found[0].strip()) if len(found) == 1 and found[0] else None
    return None


def _media_types(content_type: str | None) -> Iterator[MediaType]:
    """How a body can be read: as its content type says, if that is one of a request, and then as JSON and as XML."""
    with suppress(Rejected):
        yield wire.media_type(content_type)
    yield MediaType(wire.JSON, None)
    yield MediaType(wire.XML, None)


def _in_json(text: str) -> list[str | None]:
    members = json.loads(text, parse_int=integer, object_pairs_hook=tuple)
    if not isinstance(members, tuple):
        return []
    return [value for name, value in members if name.lower() == "id" and isinstance(value, str)]


def _in_xml(text: str) -> list[str | None]:
    return [
        child.text for child in xml_root(text) if isinstance(child.tag, str) and etree.QName(child).localname == "id"
    ]
