"""Builds replies: the body and the properties that answer a message (contract, section 6).

Timestamp, app_id, delivery mode, and where the reply is sent are left to the broker package.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import uuid4

from task_activity_log import wire
from task_activity_log.message import (
    ERROR_CODE,
    IGNORED,
    OUTCOME,
    REJECTED,
    REPLACED_CHARACTERS,
    STORED,
    TRACE_PARENT,
    TRACE_STATE,
    Delivery,
)
from task_activity_log.pipeline.request import Request, digest, message_id
from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.record import Applied, Outcome, StoredTaskActivityLog, TooLong

_WORDS = {kind: kind.rpartition(".")[2].encode() for kind in (STORED, REJECTED)}
_SHORT_STRING_MAX = 255
_TRACE_CONTEXT_MAX = 512
_GONE = Problem(
    Code.RECORD_GONE,
    "This message was applied before, and its row was deleted since. Send the record as a new message to store it again.",
)
_TOO_LONG = Problem(
    Code.REPLY_TOO_LARGE,
    "The request was processed. The record is so long that this worker does not send it. Send less text in its fields, or raise"
    " WORKER_MEMORY_LIMIT_BYTES.",
)


@dataclass(slots=True)  # not frozen, because creating a frozen instance takes three times as long
class Reply:
    """The reply to one message. It is not modified. Each string fits in an AMQP short string, or is None."""

    outcome: Outcome
    body: bytes
    content_type: str
    correlation_id: str | None
    message_id: str
    """If the request has a key, the same for each repeat, so that a subscriber can deduplicate."""
    type: str
    headers: dict[str, str]
    """`x-outcome`; for a problem `x-error-code`; `x-replaced-characters` if any were replaced; `x-ignored` if members of the
    request are not fields; trace context."""
    reply_to: str | None
    """Where the request asked the reply to be sent. The broker package decides whether it is sent there."""
    seed: bytes | None = None
    """What `message_id` is derived from; None if it is random."""


def stored(request: Request[Delivery], applied: Applied, nulls: wire.Nulls) -> Reply:
    """The reply to a request that was stored, now or before: the record as it was after the request.

    If there is no record (a duplicate whose row was deleted since), the reply is the problem `record_gone`, and if the
    record is too long for a reply, `reply_too_large`. Such a request is not dead-lettered.
    """
    if applied.record is None:
        return rejected(request, _TOO_LONG if isinstance(applied, TooLong) else _GONE)
    body, replaced = wire.encode(applied.record, request.media_type, nulls)
    headers = {OUTCOME: applied.outcome.value}
    if replaced:
        headers[REPLACED_CHARACTERS] = ", ".join(replaced)
    if request.ignored:
        headers[IGNORED] = ", ".join(request.ignored)
    return _reply(
        request.delivery,
        outcome=applied.outcome,
        headers=headers,
        kind=STORED,
        content_type=request.media_type,
        body=body,
        seed=_seed(request),
    )


def rejected(request: Request[Delivery], problem: Problem) -> Reply:
    """The reply to a request that was decoded and then rejected: the problem, in the request's format."""
    return _rejected(request.delivery, problem, request.media_type, _seed(request))


def undecoded(delivery: Delivery, problem: Problem, default_media_type: str | None = wire.JSON) -> Reply:
    """The reply to a message that was not decoded: the problem, in the message's format if it is known, else in JSON.

    `default_media_type` is the media type assumed if content_type is absent (`Rules.default_media_type`).
    """
    properties = delivery.properties
    # If properties could not be decoded, an absent content_type may be one of them.
    default = None if properties.unreadable else default_media_type
    message = message_id(delivery)
    seed = None if message is None else digest(message.encode("utf-8", "surrogatepass"), delivery.body)
    return _rejected(delivery, problem, _media_type(properties.content_type, default), seed)


def snapshot(record: StoredTaskActivityLog, media_type: str, nulls: wire.Nulls) -> Reply:
    """A record as it is now, which answers no request. It has the same message_id each time until the record is changed."""
    body, replaced = wire.encode(record, media_type, nulls)
    headers = {OUTCOME: Outcome.SNAPSHOT.value}
    if replaced:
        headers[REPLACED_CHARACTERS] = ", ".join(replaced)
    seed = digest(b"snapshot", record.id.bytes, record.modified_dateutc.isoformat().encode())
    return Reply(
        outcome=Outcome.SNAPSHOT,
        body=body,
        content_type=media_type,
        correlation_id=None,
        message_id=_message_id(seed, STORED),
        type=STORED,
        headers=headers,
        reply_to=None,
        seed=seed,
    )


def too_large(reply: Reply, limit: int) -> Reply:
    """The problem that is sent in place of a reply whose body is longer than the broker takes."""
    detail = (
        f"The request was processed. The reply has {len(reply.body)} bytes, and the broker takes messages of at most {limit}"
        " bytes. Send less text in the fields of this record, or have the broker's max_message_size raised."
    )
    media_type = wire.XML if reply.content_type.endswith("xml") else wire.JSON
    return replace(
        reply,
        outcome=Outcome.REJECTED,
        body=wire.encode_problem(Problem(Code.REPLY_TOO_LARGE, detail), media_type),
        content_type=wire.problem_type(media_type),
        message_id=_message_id(reply.seed, REJECTED),
        type=REJECTED,
        headers=reply.headers | {OUTCOME: Outcome.REJECTED.value, ERROR_CODE: Code.REPLY_TOO_LARGE.value},
    )


def _rejected(delivery: Delivery, problem: Problem, media_type: str, seed: bytes | None) -> Reply:
    return _reply(
        delivery,
        outcome=Outcome.REJECTED,
        headers={OUTCOME: Outcome.REJECTED.value, ERROR_CODE: problem.code.value},
        kind=REJECTED,
        content_type=wire.problem_type(media_type),
        body=wire.encode_problem(problem, media_type),
        seed=seed,
    )


def _reply(
    delivery: Delivery,
    *,
    outcome: Outcome,
    headers: dict[str, str],
    kind: str,
    content_type: str,
    body: bytes,
    seed: bytes | None,
) -> Reply:
    """A reply. Its message_id is derived from `seed`; without one it is random, and repeats cannot be recognized."""
    if TRACE_PARENT in delivery.properties.headers:
        headers |= _trace_context(delivery.properties.headers)
    return Reply(
        outcome=outcome,
        body=body,
        content_type=content_type,
        correlation_id=_short(delivery.properties.correlation_id) or _short(message_id(delivery)),
        message_id=_message_id(seed, kind),
        type=kind,
        headers=headers,
        reply_to=_short(delivery.properties.reply_to),
        seed=seed,
    )


def _message_id(seed: bytes | None, kind: str) -> str:
    return str(uuid4()) if seed is None else _uuid_text(digest(seed, _WORDS[kind]))


def _trace_context(headers: Mapping[str, object]) -> dict[str, str]:
    """The W3C trace context of the request, unchanged: the reply belongs to the same trace. The state alone says nothing."""
    context = {name: headers.get(name) for name in (TRACE_PARENT, TRACE_STATE)}
    found = {
        name: value for name, value in context.items() if isinstance(value, str) and len(value) <= _TRACE_CONTEXT_MAX
    }
    return found if TRACE_PARENT in found else {}


def _uuid_text(raw: bytes) -> str:
    """The same text as str(UUID(bytes=raw)), four times as fast."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _seed(request: Request[Delivery]) -> bytes | None:
    return request.key.bytes if request.key else None


def _media_type(content_type: str | None, default: str | None) -> str:
    try:
        return wire.media_type(content_type, default).name
    except Rejected:
        return wire.JSON


def _short(text: str | None) -> str | None:
    """The text if it fits in an AMQP short string, else None. A header can be longer, and lenient decoding adds bytes."""
    if not text:
        return None
    if text.isascii():
        return text if len(text) <= _SHORT_STRING_MAX else None
    try:
        return text if len(text.encode()) <= _SHORT_STRING_MAX else None
    except UnicodeEncodeError:
        return None
