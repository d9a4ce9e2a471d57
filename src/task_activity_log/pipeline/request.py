"""Delivery → request: media type, update mode, version and key of a message, and the record in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Final, Generic, NoReturn, TypeVar
from uuid import UUID

from pydantic_core import SchemaValidator, core_schema

from task_activity_log import wire
from task_activity_log.message import Delivery, Properties
from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.record import TaskActivityLog


class UpdateMode(StrEnum):
    """What an absent field means: null (`replace`) or the stored value (`merge`)."""

    REPLACE = "replace"
    MERGE = "merge"


D = TypeVar("D", bound=Delivery)
D_co = TypeVar("D_co", bound=Delivery, covariant=True)


@dataclass(slots=True)  # not frozen, which would take three times as long to make
class Request(Generic[D_co]):
    """A decoded delivery. It is not changed."""

    delivery: D_co
    record: TaskActivityLog
    media_type: str
    """Bare media type of the request, lower case; its reply has the same."""
    mode: UpdateMode
    version: int | None
    """`x-version`: applied only if higher than every one applied before to this id."""
    key: UUID | None
    """Request key: what the inbox remembers. None: applied each time it comes."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What an operator may set about requests."""

    body_limit: int = 262_144
    """Bytes; a longer body is rejected."""
    default_media_type: str | None = wire.JSON
    """What a message without content type is; None: such a message is rejected."""
    naive_dates: wire.NaiveDates = "utc"
    """What a date without offset is."""
    update_mode: UpdateMode = UpdateMode.REPLACE
    """The mode of a message without `x-update-mode`."""


def decode(delivery: D, rules: Rules) -> Request[D]:
    """The request in a delivery. Raises `Rejected` and nothing else, whatever was sent.

    The first check that fails gives the code: properties, media type, size, content encoding, charset, empty, bytes,
    syntax, root, duplicates, headers, fields (contract, section 2).
    """
    if delivery.properties.unreadable is not None:
        _reject(
            Code.INVALID_PROPERTIES,
            f"Send properties and headers that AMQP can hold: {delivery.properties.unreadable}.",
        )
    media = wire.media_type(delivery.properties.content_type, rules.default_media_type)
    body = delivery.body
    if len(body) > rules.body_limit:
        _reject(Code.BODY_TOO_LARGE, f"Send at most {rules.body_limit} bytes in one message.")
    encoding = delivery.properties.content_encoding
    if encoding and encoding.strip().lower() not in _ENCODINGS:
        _reject(Code.UNSUPPORTED_ENCODING, "Send the body as it is, neither compressed nor otherwise encoded.")
    text = wire.text(body, media)
    try:
        record = wire.decode(text, media.name, rules.naive_dates)
    except wire.InvalidFields:
        _directives(delivery.properties.headers, rules)  # which come before the fields: a bad one gives the code
        raise
    mode, version = _directives(delivery.properties.headers, rules)
    message = message_id(delivery)
    key = None if message is None or _names(message, record.id) else _key(message, mode, version, body)
    return Request(delivery, record, media.name, mode, version, key)


def judge(body: bytes, properties: Properties, rules: Rules) -> TaskActivityLog | Problem:
    """The record in a message, or the problem that a worker would reject the message with."""
    try:
        return decode(Delivery(body, properties), rules).record
    except Rejected as rejected:
        return rejected.problem


def message_id(delivery: Delivery) -> str | None:
    """What the publisher calls the message: the property or, where it is absent or empty, the header `MessageId`."""
    return delivery.properties.message_id or _text(delivery.properties.headers.get("MessageId")) or None


def digest(*parts: bytes) -> bytes:
    """The first 16 bytes of SHA-256 over the parts, each after its length as 8 bytes, big-endian."""
    pieces: list[bytes] = []
    for part in parts:
        pieces += (len(part).to_bytes(8, "big"), part)
    return sha256(b"".join(pieces)).digest()[:16]


def _key(message: str, mode: UpdateMode, version: int | None, body: bytes) -> UUID:
    """The request key (contract, section 7). It never changes between releases: the inbox remembers it."""
    numeral = b"" if version is None else b"%d" % version
    key: UUID = _uuid(digest(message.encode("utf-8", "surrogatepass"), mode.encode(), numeral, body))
    return key


def _names(message: str, record: UUID) -> bool:
    """Whether a message_id is the record's id in any form: an entity's name, not a message's."""
    return message.strip(" \t\r\n{}()").replace("-", "").lower() == record.hex


def _directives(headers: Mapping[str, object], rules: Rules) -> tuple[UpdateMode, int | None]:
    """What the headers `x-update-mode` and `x-version` ask for; one without a value is bad, not absent.

    Raises `Rejected`.
    """
    return (
        _update_mode(headers["x-update-mode"]) if "x-update-mode" in headers else rules.update_mode,
        _version(headers["x-version"]) if "x-version" in headers else None,
    )


def _update_mode(value: object) -> UpdateMode:
    mode = _MODES.get(_text(value) or "")
    if mode is None:
        _reject(Code.UNSUPPORTED_UPDATE_MODE, f"Send x-update-mode as one of {', '.join(_MODES)}, or not at all.")
    return mode


def _version(value: object) -> int:
    """A 64-bit integer or its decimal string; a boolean is neither, though Python takes it for a number."""
    numeral = _text(value)
    if numeral is not None and _NUMERAL.fullmatch(numeral):
        value = int(numeral)
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        _reject(Code.INVALID_VERSION, "Send x-version as an integer of 64 bits or its decimal string.")
    return value


def _text(value: object) -> str | None:
    """A header's string, which drivers hand over as bytes where it is a byte array; None for anything else."""
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else None


def _reject(code: Code, detail: str) -> NoReturn:
    raise Rejected(Problem(code, detail))


_uuid = SchemaValidator(core_schema.uuid_schema()).validate_python  # of 16 bytes; a third of what UUID() takes
_ENCODINGS = frozenset({"", "identity", "utf-8"})  # kombu puts the charset there
_MODES: Final = {mode.value: mode for mode in UpdateMode}
_NUMERAL = re.compile(r"-?[0-9]{1,19}")
