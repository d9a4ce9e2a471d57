"""The id of the record in a message that may be invalid otherwise."""

import json
from uuid import UUID

from lxml import etree

from task_activity_log import wire
from task_activity_log.client.misspelled import integer
from task_activity_log.problem import Rejected

_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


def record_id(body: bytes, content_type: str | None) -> UUID | None:
    """The id that a request has, whatever else is wrong with it; None if it has no readable one, or more than one."""
    try:
        media = wire.media_type(content_type)
        text = wire.text(body, media)
        found = _in_xml(text) if wire.is_xml(media.name) else _in_json(text)
        return UUID(found[0].strip()) if len(found) == 1 and found[0] else None
    except (Rejected, ValueError, RecursionError, etree.LxmlError):
        return None


def _in_json(text: str) -> list[str | None]:
    members = json.loads(text, parse_int=integer, object_pairs_hook=tuple)
    if not isinstance(members, tuple):
        return []
    return [value for name, value in members if name.lower() == "id" and isinstance(value, str)]


def _in_xml(text: str) -> list[str | None]:
    root = etree.fromstring(text.encode(), _PARSER)
    return [child.text for child in root if isinstance(child.tag, str) and etree.QName(child).localname == "id"]
