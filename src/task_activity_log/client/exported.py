"""Messages as lines of JSON: `publish --rejected` and `dead-letters export` write them, `publish` reads them again.

What is not corrected is sent again bit by bit. A line has the members `content_type`, `message_id`, `headers`,
`properties` (the others that the message had), and the body: as `record` if it is JSON that survives being parsed, as
`body` if it is other text, or else as `body_base64`. Two members keep what JSON cannot express: `headers_base64`, the header
table with the types of its values, and `original_base64`, the body of a `record` as it was. They count as long as the
headers and the record are not changed. `problems` and all other members are for the person who corrects the message.
"""

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from task_activity_log import wire
from task_activity_log.client.dead_letters import EXPIRATION_MAX, REPLAY_COUNT, REPLAYED_BY, DeadLetter, is_expiration
from task_activity_log.client.errors import UpsertRejected
from task_activity_log.client.messages import SHORT_MAX, Upsert, is_short
from task_activity_log.message import PERSISTENT, Properties, Timestamp
from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.rabbitmq.headers import encode, encode_header, raw_headers, received

_BODIES = ("record", "body", "body_base64")
MARKS = ("content_type", *_BODIES)
"""The members by which such a line is told from a record: the first one, and any of the others."""
_OTHERS = ("correlation_id", "reply_to", "expiration", "priority", "timestamp", "type", "app_id", "cluster_id")
"""The properties in `properties`. A user_id is not sent again: the broker refuses that of another user."""
_NUMBERS = {"priority": 255, "timestamp": 2**64 - 1}
_NAME_LENGTH = 128
OF_THE_HEADER = frozenset(
    {
        Code.INVALID_PROPERTIES,
        Code.UNSUPPORTED_MEDIA_TYPE,
        Code.UNSUPPORTED_CHARSET,
        Code.UNSUPPORTED_ENCODING,
        Code.UNSUPPORTED_UPDATE_MODE,
        Code.INVALID_VERSION,
    }
)
"""Problems that no body can solve: the content type, the content encoding or a header is at fault."""


@dataclass(frozen=True, slots=True)
class Exported(Upsert):
    """A request that was exported. It is sent with the properties that it had, and with its headers byte for byte."""

    original: Properties = field(default_factory=Properties)
    """The properties as they were, with the header table and without `headers`. Its `priority` is that of the request."""

    def __post_init__(self) -> None:
        """As for any request. Raises `ValueError` also for a property that AMQP cannot represent."""
        Upsert.__post_init__(self)
        try:
            encode(self.properties(None, ""), 0)
        except (ValueError, OverflowError):
            raise ValueError("a property or a header does not fit AMQP's limits") from None

    def properties(self, reply_to: str | None, app_id: str) -> Properties:  # noqa: ARG002 - it has its own app_id
        """Its own properties, except that the answer is sent to the caller that waits for it. It keeps its `app_id` too."""
        original = self.original
        same_type = (original.content_type or "") == self.content_type
        return replace(
            original,
            content_type=original.content_type if same_type else self.content_type,
            content_encoding=self.content_encoding,
            table=table_with(original.table, self.headers),
            delivery_mode=PERSISTENT,
            priority=self.priority,
            # The answer has the correlation_id, or the message_id if there is none: by that it is recognized.
            correlation_id=original.correlation_id if reply_to is None else None,
            reply_to=original.reply_to if reply_to is None else reply_to,
            message_id=self.message_id,
        )


def line(body: bytes, properties: Properties, *, exact: bool = True, **more: object) -> str:
    """One message as a line, with `more` members. If it is not `exact`, it is sent as a new request of its sender."""
    members: dict[str, Any] = {name: value for name, value in more.items() if value is not None}
    members["content_type"] = properties.content_type
    for name in ("message_id", "content_encoding"):
        if getattr(properties, name) is not None:
            members[name] = getattr(properties, name)
    if exact:
        members["properties"] = {
            name: getattr(properties, name) for name in _OTHERS if getattr(properties, name) is not None
        }
    elif properties.priority is not None:  # another one would reorder the requests of a record
        members["priority"] = properties.priority
    arrived = received(properties)
    if headers := plain_headers(arrived):
        members["headers"] = headers
    if exact and b"".join(map(encode_header, headers.items())) != arrived.table:
        members["headers_base64"] = base64.b64encode(arrived.table).decode()
    return json.dumps({**members, **_body(body)}, ensure_ascii=False)


def letter_line(letter: DeadLetter) -> str:
    """A dead letter as a line that `publish` takes."""
    return line(
        letter.body,
        letter.restored(None),
        publisher=letter.publisher,
        since=letter.since and letter.since.isoformat(timespec="milliseconds"),
        problems=[f"{letter.code}: {letter.detail}"],
    )


def reasons(problem: Problem | UpsertRejected) -> list[str]:
    """A line for each bad field, or one for the whole message."""
    return [f"{bad.code}: {bad.message}" for bad in problem.errors] or [f"{problem.code}: {problem.detail}"]


def is_message(parsed: object) -> bool:
    """Whether parsed JSON is such a line, and not a record."""
    return isinstance(parsed, dict) and "content_type" in parsed and any(name in parsed for name in _BODIES)


def upsert(parsed: dict[str, Any], message_id: str, source: str) -> Upsert:
    """The request in such a line, by default with this `message_id`. A `ValueError` says which member cannot be sent."""
    for name, kind in _KINDS.items():
        if parsed.get(name) is not None and not isinstance(parsed[name], kind):
            raise ValueError(f"{name} should be {'an object' if kind is dict else 'a string'}")
    original = Properties(
        content_type=parsed.get("content_type"), table=_from_base64(parsed, "headers_base64"), **_others(parsed)
    )
    headers = parsed.get("headers") or {}
    if odd := [name for name, value in headers.items() if not isinstance(value, str | int)]:
        raise ValueError(f"header {odd[0]} should be a string, an integer or a boolean")
    request = Upsert(
        _bytes(parsed),
        parsed.get("content_type") or "",
        message_id=parsed.get("message_id") or message_id,
        headers=headers,
        content_encoding=parsed.get("content_encoding"),
        source=source,
        priority=_priority(parsed) if original.priority is None else original.priority,
    )
    if "properties" not in parsed and "headers_base64" not in parsed:
        return request
    return Exported(**{each.name: getattr(request, each.name) for each in fields(request)}, original=original)


_KINDS: dict[str, type] = {
    "content_type": str,
    "message_id": str,
    "content_encoding": str,
    "headers": dict,
    "properties": dict,
    "headers_base64": str,
    "original_base64": str,
}


def header_text(request: Properties) -> str:
    """The `content_type`, `content_encoding` and `headers` of a request as JSON, to correct: see `corrected`."""
    arrived = received(request)
    members = {
        "content_type": arrived.content_type,
        "content_encoding": arrived.content_encoding,
        "headers": plain_headers(arrived),
    }
    return json.dumps(members, indent=2, ensure_ascii=False)


def corrected(request: Properties, content: bytes) -> Properties:
    """A request's properties with the `content_type`, `content_encoding` and `headers` of this JSON text.

    Headers that JSON cannot express stay. A `ValueError` says what cannot be sent.
    """
    try:
        parsed = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    is_object = isinstance(parsed, dict)
    if not is_object:
        raise ValueError("it should be an object")
    line = {"content_type": None, "body": "", "headers_base64": "", **parsed}
    found = upsert(line, "-", "")  # the request keeps its own message_id
    return replace(
        request,
        content_type=parsed.get("content_type"),
        content_encoding=found.content_encoding,
        table=table_with(request.table, found.headers),
    )


def edited(letter: DeadLetter, body: str | None, header: str | None) -> DeadLetter:
    """A dead letter with another body or other headers (see `header_text`). What is None stays byte for byte.

    A body that is edited is sent in UTF-8. Raises `ValueError`: the headers cannot be sent.
    """
    request = letter.restored(None)
    if body is not None:
        letter = replace(letter, body=body.encode("utf-8", "replace"))
        with suppress(Rejected):  # of an unknown media type nothing is known
            media = wire.media_type(request.content_type)
            if media.charset not in (None, "utf-8", "utf8"):
                request = replace(request, content_type=media.name)
                letter = replace(letter, corrected=request)
    return letter if header is None else replace(letter, corrected=corrected(request, header.encode()))


def stamped(request: DeadLetter, user: str) -> DeadLetter:
    """A request that is replayed, with headers that say who replays it, and how often that was done."""
    properties = request.restored(None)
    headers = plain_headers(received(properties))
    headers |= {REPLAYED_BY: user[:_NAME_LENGTH], REPLAY_COUNT: request.replays + 1}
    return replace(request, corrected=replace(properties, table=table_with(properties.table, headers)))


def _others(parsed: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = parsed.get("properties") or {}
    for name, value in found.items():
        if name not in _OTHERS:
            raise ValueError(f"{name} is not one of the properties {', '.join(_OTHERS)}")
        if name in _NUMBERS:
            _check_number(name, value)
        elif not isinstance(value, str):
            raise ValueError(f"{name} should be a string")
        elif not is_short(value):
            raise ValueError(f"{name} should be text of at most {SHORT_MAX} bytes")
    if not is_expiration(found.get("expiration", "0")):
        raise ValueError(f"expiration should be a string of milliseconds, from 0 to {EXPIRATION_MAX}")
    return found


def _priority(parsed: dict[str, Any]) -> int | None:
    """The priority of a line that has no `properties`."""
    found: int | None = parsed.get("priority")
    if found is not None:
        _check_number("priority", found)
    return found


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _NUMBERS[name]:
        raise ValueError(f"{name} should be an integer from 0 to {_NUMBERS[name]}")


def plain_headers(arrived: Properties) -> dict[str, object]:
    """The headers whose values JSON has: those that can be corrected in a line."""
    return {
        name: value
        for name, value in arrived.headers.items()
        if isinstance(value, str | int) and not isinstance(value, Timestamp)
    }


def table_with(table: bytes, headers: Mapping[str, object]) -> bytes:
    """The header table with these headers: what they do not change stays byte for byte, what they lack is left out."""
    before = plain_headers(received(Properties(table=table)))
    entries: list[bytes] = []
    for raw, entry in raw_headers(table):
        name = raw.decode(errors="replace")
        if name not in before or (name in headers and _same(headers[name], before[name])):
            entries.append(entry)
        elif name in headers:
            entries.append(encode_header((name, headers[name])))
    entries += (encode_header((name, value)) for name, value in headers.items() if name not in before)
    return b"".join(entries)


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def _bytes(parsed: dict[str, Any]) -> bytes:
    if "record" in parsed:
        original = _from_base64(parsed, "original_base64")
        body = _compact(parsed["record"])
        return original if original and _is_record(original, body) else body
    if "body" in parsed:
        try:
            return str(parsed["body"]).encode()
        except UnicodeEncodeError:
            raise ValueError("the body is neither text nor base64") from None
    return _from_base64(parsed, "body_base64")


def _from_base64(parsed: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(parsed.get(name) or "", validate=True)
    except (TypeError, ValueError):
        raise ValueError(
            "the body is neither text nor base64" if name == "body_base64" else f"{name} is not base64"
        ) from None


def _is_record(body: bytes, compact: bytes) -> bool:
    try:
        return _compact(json.loads(body)) == compact
    except (ValueError, RecursionError):
        return False


def _compact(record: object) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def _body(body: bytes) -> dict[str, Any]:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}
    try:
        parsed = json.loads(text, object_pairs_hook=_once)
        if isinstance(parsed, dict):
            json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
            original = {} if _compact(parsed) == body else {"original_base64": base64.b64encode(body).decode()}
            return {"record": parsed, **original}
    except (ValueError, RecursionError):
        pass
    return {"body": text}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members
