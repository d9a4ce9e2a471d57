"""Problem → bytes: the members of RFC 9457, in JSON or, after its appendix B, in XML (contract, section 6)."""

from __future__ import annotations

import json
from typing import Any, Final

from task_activity_log.problem import Problem
from task_activity_log.wire import as_xml
from task_activity_log.wire.media import is_xml

NAMESPACE: Final = "urn:ietf:rfc:7807"


def encode(problem: Problem, name: str) -> bytes:
    """A problem in the format of this media type. It holds nothing of the payload."""
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


def _elements(members: dict[str, Any]) -> str:
    return "".join(f"<{name}>{_element(value)}</{name}>" for name, value in members.items())


def _element(value: Any) -> str:
    """What is inside an element: an item of a list is one named `i` (RFC 9457, appendix B)."""
    if isinstance(value, list):
        return "".join(f"<i>{_elements(item)}</i>" for item in value)
    return as_xml.escape(str(value))
