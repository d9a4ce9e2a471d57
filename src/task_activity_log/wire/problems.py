"""Problems to bytes and back: the members of RFC 9457 in JSON, or in XML as in its appendix B (contract, section 6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from lxml import etree

from task_activity_log.problem import Problem
from task_activity_log.wire import as_xml
from task_activity_log.wire.media import is_xml

NAMESPACE: Final = "urn:ietf:rfc:7807"
_PREFIX = f"{{{NAMESPACE}}}"
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)


def encode(problem: Problem, name: str) -> bytes:
    """A problem in the format of this media type. It contains nothing of the payload."""
    members = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.code.status,
        "detail": problem.detail,
        "code": problem.code,
        "errors": [{"name": error.field, "code": error.code, "message": error.message} for error in problem.errors],
    }
    if not is_xml(name):
        return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return f'<problem xmlns="{NAMESPACE}">{_elements(members)}</problem>'.encode()


def decode(body: bytes, name: str) -> Mapping[str, Any]:
    """The members of a problem in the format of this media type. In XML their values are texts.

    Raises `ValueError` if the body cannot be parsed.
    """
    if not is_xml(name):
        members: dict[str, Any] = json.loads(body)
        return members
    try:
        root = etree.fromstring(body, _PARSER)
    except etree.XMLSyntaxError as error:
        raise ValueError(str(error)) from error
    return _texts(root) | {"errors": [_texts(item) for item in root.iter(f"{_PREFIX}i")]}


def _texts(parent: etree._Element) -> dict[str, Any]:
    return {child.tag.removeprefix(_PREFIX): child.text or "" for child in parent}


def _elements(members: Mapping[str, Any]) -> str:
    return "".join(f"<{name}>{_element(value)}</{name}>" for name, value in members.items())


def _element(value: Any) -> str:
    """The content of an element. Each item of a list is an element `i` (RFC 9457, appendix B)."""
    if isinstance(value, list):
        return "".join(f"<i>{_elements(item)}</i>" for item in value)
    return as_xml.escape(str(value))
