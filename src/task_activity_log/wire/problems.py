"""Problems to bytes and back: the members of RFC 9457 in JSON, or in XML as in its appendix B (contract, section 6)."""

import json
from collections.abc import Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

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
        "errors": [{"name": error.name, "code": error.code, "message": error.message} for error in problem.errors],
    }
    if not is_xml(name):
        return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return f'<problem xmlns="{NAMESPACE}">{_elements(members)}</problem>'.encode()


class Decoded(NamedTuple):
    """The members of a problem that programs use. The codes are texts, because a later release can have more of them."""

    code: str
    detail: str
    errors: tuple[tuple[str, str, str], ...]
    """Name, code and message of each invalid field."""


def decode(body: bytes, name: str) -> Decoded:
    """The problem in a body of this media type.

    Raises `ValueError` if the body is not a problem: anybody who may write to a reply queue can put anything there.
    """
    try:
        members = _members_of_xml(body) if is_xml(name) else json.loads(body)
        found = Decoded(
            members["code"],
            members["detail"],
            tuple((error["name"], error["code"], error["message"]) for error in members["errors"]),
        )
    except (LookupError, RecursionError, TypeError, etree.XMLSyntaxError) as error:
        raise ValueError(f"not a problem: {type(error).__name__}") from None
    if not all(isinstance(text, str) for text in (found.code, found.detail, *chain.from_iterable(found.errors))):
        raise ValueError("not a problem: a member is not text")
    return found


def _members_of_xml(body: bytes) -> Mapping[str, Any]:
    root = etree.fromstring(body, _PARSER)
    return _texts(root) | {"errors": [_texts(item) for item in root.iter(f"{_PREFIX}i")]}


def _texts(parent: etree._Element) -> dict[str, Any]:
    # Comments, processing instructions and entities are nodes whose tag is a function.
    return {str(child.tag).removeprefix(_PREFIX): child.text or "" for child in parent}


def _elements(members: Mapping[str, Any]) -> str:
    return "".join(f"<{name}>{_element(value)}</{name}>" for name, value in members.items())


def _element(value: Any) -> str:
    """The content of an element. Each item of a list is an element `i` (RFC 9457, appendix B)."""
    if isinstance(value, list):
        return "".join(f"<i>{_elements(item)}</i>" for item in value)
    return as_xml.escape(str(value))
