"""Messages as lines of JSON: `publish --rejected` and `dead-letters export` write them, `publish` reads them again.

A line has the members `content_type`, `message_id`, `headers`, and the body: as `record` if it is JSON that survives
being parsed and written again, as `body` if it is other text, or else as `body_base64`. `problems` and any other member
is for whoever corrects it.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

from task_activity_log.client import Upsert, UpsertRejected
from task_activity_log.problem import Problem

_BODIES = ("record", "body", "body_base64")


def line(body: bytes, content_type: str, message_id: str | None, headers: Mapping[str, object], **more: object) -> str:
    """One message as a line."""
    members: dict[str, Any] = {name: value for name, value in more.items() if value is not None}
    members["content_type"] = content_type
    if message_id:
        members["message_id"] = message_id
    if kept := {name: value for name, value in headers.items() if isinstance(value, str | int)}:
        members["headers"] = kept
    name, value = _body(body)
    return json.dumps({**members, name: value}, ensure_ascii=False)


def reasons(problem: Problem | UpsertRejected) -> list[str]:
    """A line for each bad field, or one for the whole message."""
    return [f"{bad.code}: {bad.message}" for bad in problem.errors] or [f"{problem.code}: {problem.detail}"]


def is_message(parsed: object) -> bool:
    """Whether parsed JSON is such a line, and not a record."""
    return isinstance(parsed, dict) and any(name in parsed for name in _BODIES) and "content_type" in parsed


def upsert(parsed: dict[str, Any], message_id: str, source: str) -> Upsert:
    """The request in such a line, by default with this `message_id`. A `ValueError` says which member cannot be sent."""
    for name, kind in (("content_type", str), ("message_id", str), ("headers", dict), ("content_encoding", str)):
        if parsed.get(name) is not None and not isinstance(parsed[name], kind):
            raise ValueError(f"{name} should be {'an object' if kind is dict else 'a string'}")
    return Upsert(
        _bytes(parsed),
        parsed.get("content_type") or "",
        message_id=parsed.get("message_id") or message_id,
        headers=parsed.get("headers") or {},
        content_encoding=parsed.get("content_encoding"),
        source=source,
    )


def _bytes(parsed: dict[str, Any]) -> bytes:
    if "record" in parsed:
        return json.dumps(parsed["record"], ensure_ascii=False, separators=(",", ":")).encode()
    try:
        if "body" in parsed:
            return str(parsed["body"]).encode()
        return base64.b64decode(parsed["body_base64"], validate=True)
    except (TypeError, ValueError):
        raise ValueError("the body is neither text nor base64") from None


def _body(body: bytes) -> tuple[str, Any]:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "body_base64", base64.b64encode(body).decode()
    try:
        parsed = json.loads(text, object_pairs_hook=_once)
        if isinstance(parsed, dict):
            json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
            return "record", parsed
    except (ValueError, RecursionError):
        pass
    return "body", text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members
