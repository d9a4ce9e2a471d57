"""The value of a field as it is in a record, for the terminal of the person whose file it is. It is shown nowhere else."""

import json
from typing import Any

from lxml import etree

from task_activity_log import wire
from task_activity_log.client import Upsert
from task_activity_log.client.misspelled import xml_root
from task_activity_log.problem import Rejected

_LENGTH = 40


class _Number(str):
    """A number as it is written. One of Python might not be printed: the longest have thousands of digits."""

    __slots__ = ()


def shown(upsert: Upsert, field: str) -> str | None:
    """The value in a few characters, as JSON; None if there is none."""
    try:
        media = wire.media_type(upsert.content_type, wire.JSON)
        found = (_in_xml if wire.is_xml(media.name) else _in_json)(wire.text(upsert.body, media), field)
    except (Rejected, ValueError, RecursionError, etree.LxmlError):
        return None
    if found is None:
        return None
    text = found if isinstance(found, _Number) else json.dumps(found, ensure_ascii=False)
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}…"


def _in_json(text: str, field: str) -> Any:
    members = json.loads(text, parse_int=_Number, parse_float=_Number)
    return next((value for name, value in members.items() if name.lower() == field), None)


def _in_xml(text: str, field: str) -> str | None:
    found = (child for child in xml_root(text) if isinstance(child.tag, str) and etree.QName(child).localname == field)
    element = next(found, None)
    return None if element is None else "".join(map(str, element.itertext()))
