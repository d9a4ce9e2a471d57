"""Outcome → reply: what the asker is told, and under which properties (contract, section 6).

Timestamp, app_id and delivery mode are the broker package's, as is where the reply goes in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from task_activity_log import wire
from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Request, digest, message_id
from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.record import Applied, Outcome

STORED: Final = "task_activity_log.stored"
REJECTED: Final = "task_activity_log.rejected"

_WORDS = {kind: kind.rpartition(".")[2].encode() for kind in (STORED, REJECTED)}
_SHORT_STRING_MAX = 255
_TRACE_CONTEXT_MAX = 512
_GONE = Problem(
    Code.RECORD_GONE, "Send the record as a new message: this one was applied before, and its row was deleted since."
)


@dataclass(slots=True)  # not frozen, which would take three times as long to make
class Reply:
    """The answer to one message; it is not changed. Every string fits an AMQP short string, or is None."""

    outcome: Outcome
    body: bytes
    content_type: str
    correlation_id: str | None
    message_id: str
    """The same for every repeat of a request that has a key, so that a subscriber can drop the copies."""
    type: str
    headers: dict[str, str]
    """`x-outcome`; on a problem `x-error-code`; `x-replaced-characters` if XML could not hold some; trace context."""
    reply_to: str | None
    """Where the asker wants it; whether it goes there is the broker package's to say."""


def stored(request: Request[Delivery], applied: Applied, nulls: wire.Nulls) -> Reply:
    """The answer to a request that the database took, now or before: the record as it stood after it.

    Without record (a duplicate whose row was deleted since) it is the problem `record_gone`. That is an answer only:
    nothing is dead-lettered.
    """
    if applied.record is None:
        return rejected(request, _GONE)
    body, replaced = wire.encode(applied.record, request.media_type, nulls)
    headers = {"x-outcome": applied.outcome.value}
    if replaced:
        headers["x-replaced-characters"] = ", ".join(replaced)
    return _reply(
        request.delivery,
        outcome=applied.outcome,
        headers=headers,
        kind=STORED,
        content_type=request.media_type,
        body=body,
        seed=_seed(request),
    )


def rejected(
    source: Request[Delivery] | Delivery, problem: Problem, default_media_type: str | None = wire.JSON
) -> Reply:
    """The answer to a message that is rejected: the problem, in the message's own format where that is known.

    `source` is the request, or the delivery when there is no request in it. `default_media_type` is what a message
    without content type is (`Rules.default_media_type`).
    """
    if isinstance(source, Request):
        delivery, name = source.delivery, source.media_type
    else:
        # one that is not there may have been unreadable
        delivery, name = (
            source,
            _media_type(source.properties.content_type, None if source.properties.unreadable else default_media_type),
        )
    headers = {"x-outcome": Outcome.REJECTED.value, "x-error-code": problem.code.value}
    return _reply(
        delivery,
        outcome=Outcome.REJECTED,
        headers=headers,
        kind=REJECTED,
        content_type=wire.problem_type(name),
        body=wire.encode_problem(problem, name),
        seed=_seed(source),
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
    if "traceparent" in delivery.properties.headers:
        headers |= _trace_context(delivery.properties.headers)
    return Reply(
        outcome=outcome,
        body=body,
        content_type=content_type,
        correlation_id=_short(delivery.properties.correlation_id) or _short(message_id(delivery)),
        message_id=str(uuid4()) if seed is None else _uuid_text(digest(seed, _WORDS[kind])),
        type=kind,
        headers=headers,
        reply_to=_short(delivery.properties.reply_to),
    )


def _trace_context(headers: Mapping[str, object]) -> dict[str, str]:
    """The W3C trace context of the request, as it came: the reply belongs to the same trace."""
    context = {name: headers.get(name) for name in ("traceparent", "tracestate")}
    return {
        name: value for name, value in context.items() if isinstance(value, str) and len(value) <= _TRACE_CONTEXT_MAX
    }


def _uuid_text(raw: bytes) -> str:
    """What str(UUID(bytes=raw)) makes of it, in a quarter of the time."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _seed(source: Request[Delivery] | Delivery) -> bytes | None:
    """What the reply's message_id is made of, the same for each repeat; None when repeats cannot be told."""
    if isinstance(source, Request):
        return source.key.bytes if source.key else None
    message = message_id(source)
    return None if message is None else digest(message.encode("utf-8", "surrogatepass"), source.body)


def _media_type(content_type: str | None, default: str | None) -> str:
    try:
        return wire.media_type(content_type, default).name
    except Rejected:
        return wire.JSON


def _short(text: str | None) -> str | None:
    """The text if AMQP has a form for it as a short string: a header can be longer, lenient decoding adds bytes."""
    if not text:
        return None
    if text.isascii():
        return text if len(text) <= _SHORT_STRING_MAX else None
    try:
        return text if len(text.encode()) <= _SHORT_STRING_MAX else None
    except UnicodeEncodeError:
        return None
