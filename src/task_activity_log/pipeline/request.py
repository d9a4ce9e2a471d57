"""Decodes a delivery into a request: media type, update mode, version, request key, and the record."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Final, Generic, NoReturn, TypeVar
from uuid import UUID

from pydantic_core import SchemaValidator, core_schema

from task_activity_log import wire
from task_activity_log.message import REJECTED, STORED, UPDATE_MODE, VERSION, Delivery, Properties, Timestamp
from task_activity_log.partitions import hash_slot
from task_activity_log.problem import POISON, REPLY_AS_REQUEST, Code, Problem, Rejected
from task_activity_log.record import TaskActivityLog


class UpdateMode(StrEnum):
    """What happens to a field that a message does not contain: it becomes null (`replace`) or keeps its value (`merge`)."""

    REPLACE = "replace"
    MERGE = "merge"


MESSAGE_ID_MAX: Final = 1_024
"""The most characters of a header `MessageId`. RabbitMQ 4 takes 16 MiB from AMQP 1.0, and the request could not be forwarded."""

D = TypeVar("D", bound=Delivery)
D_co = TypeVar("D_co", bound=Delivery, covariant=True)


@dataclass(slots=True)  # not frozen, because creating a frozen instance takes three times as long
class Request(Generic[D_co]):
    """A decoded delivery. It is not modified."""

    delivery: D_co
    record: TaskActivityLog
    media_type: str
    """The media type of the request, lower case, without parameters. The reply has the same."""
    mode: UpdateMode
    version: int | None
    """`x-version`: the request is applied only if it is higher than every version applied to this id before."""
    key: UUID | None
    """The request key, which the inbox stores. None: the request is applied each time it is delivered."""
    ignored: Sequence[str] = ()
    """Names of members that are not fields, at most ten, in a form that a header can contain."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that apply to requests."""

    body_limit: int = 262_144
    """Maximum length of a body in bytes. A longer body is rejected."""
    default_media_type: str | None = wire.JSON
    """The media type assumed if content_type is absent. None: the message is rejected."""
    naive_dates: wire.NaiveDates = "utc"
    """How a date without an offset is read."""
    update_mode: UpdateMode = UpdateMode.REPLACE
    """The update mode of a message without `x-update-mode`."""
    poison_from: int = 10
    """Number of earlier attempts from which on a message that has crashed workers is rejected without being decoded."""

    def __post_init__(self) -> None:
        """Take the name of an update mode as well. Raises `ValueError` for another name."""
        object.__setattr__(self, "update_mode", UpdateMode(self.update_mode))


def decode(delivery: D, rules: Rules) -> Request[D]:
    """Decode a delivery.

    A reply of a worker, and a poison message, which has crashed workers, are rejected at once. The other checks are
    made in this order, and the first that fails determines the error code: properties, media type, size, content encoding,
    charset, empty body, bytes, syntax, root, duplicates, headers, fields, hash slot (contract, section 2). Raises
    `Rejected` and no other exception.
    """
    if delivery.properties.type in _REPLIES:
        raise Rejected(REPLY_AS_REQUEST)
    if delivery.attempts >= rules.poison_from and delivery.crashed:
        raise Rejected(POISON)
    message = message_id(delivery)
    _check_properties(delivery.properties, message)
    media = wire.media_type(delivery.properties.content_type, rules.default_media_type)
    body = delivery.body
    if len(body) > rules.body_limit:
        _reject(Code.BODY_TOO_LARGE, f"Send at most {rules.body_limit} bytes in one message.")
    encoding = delivery.properties.content_encoding
    if encoding and encoding.strip().lower() not in _ENCODINGS:
        _reject(Code.UNSUPPORTED_ENCODING, "Send the body as it is, neither compressed nor otherwise encoded.")
    text = wire.text(body, media)
    ignored: list[str] = []
    try:
        record = wire.decode(text, media.name, rules.naive_dates, ignored)
    except wire.InvalidFields:
        _directives(
            delivery.properties.headers, rules
        )  # checked before the fields: an invalid header determines the code
        raise
    mode, version = _directives(delivery.properties.headers, rules)
    if delivery.slot is not None and delivery.slot != (slot := hash_slot(record.id)):
        _reject(Code.MISROUTED, _MISROUTED.format(slot))
    key = None if message is None or _is_record_id(message, record.id) else _key(message, mode, version, body)
    return Request(delivery, record, media.name, mode, version, key, ignored)


def judge(body: bytes, properties: Properties, rules: Rules) -> TaskActivityLog | Problem:
    """The record in a message, or the problem with which a worker would reject the message."""
    try:
        return decode(Delivery(body, properties), rules).record
    except Rejected as rejected:
        return rejected.problem


def _check_properties(properties: Properties, message: str | None) -> None:
    """Raise `Rejected` if they cannot be decoded, or the message_id is too long."""
    if properties.unreadable is not None:
        _reject(
            Code.INVALID_PROPERTIES,
            f"Send properties and headers that are valid in AMQP: {properties.unreadable}.",
        )
    if message is not None and len(message) > MESSAGE_ID_MAX:
        _reject(Code.INVALID_PROPERTIES, f"Send a MessageId of at most {MESSAGE_ID_MAX:,} characters.")


def message_id(delivery: Delivery) -> str | None:
    """The publisher's id of the message: the property, or the header `MessageId` if the property is absent or empty."""
    return delivery.properties.message_id or _text(delivery.properties.headers.get("MessageId")) or None


def digest(*parts: bytes) -> bytes:
    """The first 16 bytes of SHA-256 over the parts, each preceded by its length as 8 bytes, big-endian.

    Request keys and the message_ids of replies are made this way. The function must never change between releases.
    """
    pieces: list[bytes] = []
    for part in parts:
        pieces += (len(part).to_bytes(8, "big"), part)
    state = _EMPTY.copy()  # faster than sha256(…), which looks the algorithm up each time
    if len(parts[-1]) <= _LONG_BYTES:
        state.update(b"".join(pieces))
    else:
        for piece in pieces:  # a long body is not copied
            state.update(piece)
    return state.digest()[:16]


def _key(message: str, mode: UpdateMode, version: int | None, body: bytes) -> UUID:
    """The request key (contract, section 7). It must never change between releases, because the inbox stores it."""
    numeral = b"" if version is None else b"%d" % version
    key: UUID = _uuid(digest(message.encode("utf-8", "surrogatepass"), mode.encode(), numeral, body))
    return key


def _is_record_id(message: str, record: UUID) -> bool:
    """Whether a message_id is the record's id in any form. It then identifies the record and not the message."""
    return message.strip(" \t\r\n{}()").replace("-", "").lower() == record.hex


def _directives(headers: Mapping[str, object], rules: Rules) -> tuple[UpdateMode, int | None]:
    """The update mode and the version in the headers. A header without a value is invalid. Raises `Rejected`."""
    return (
        _update_mode(headers[UPDATE_MODE]) if UPDATE_MODE in headers else rules.update_mode,
        _version(headers[VERSION]) if VERSION in headers else None,
    )


def _update_mode(value: object) -> UpdateMode:
    mode = _MODES.get(_text(value) or "")
    if mode is None:
        _reject(Code.UNSUPPORTED_UPDATE_MODE, f"Send {UPDATE_MODE} as one of {', '.join(_MODES)}, or leave it out.")
    return mode


def _version(value: object) -> int:
    """A 64-bit integer or its decimal string. Booleans and timestamps are not accepted, although they are ints in Python.

    AMQP timestamps have whole seconds: two changes in one second would have the same version, and one would be lost.
    """
    numeral = _text(value)
    if numeral is not None and _NUMERAL.fullmatch(numeral):
        value = int(numeral)
    if not isinstance(value, int) or isinstance(value, bool | Timestamp) or not -(2**63) <= value < 2**63:
        _reject(Code.INVALID_VERSION, f"Send {VERSION} as a 64-bit integer or its decimal string.")
    return value


def _text(value: object) -> str | None:
    """The text of a header. Drivers return a byte array as bytes. None for all other types."""
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else None


def _reject(code: Code, detail: str) -> NoReturn:
    raise Rejected(Problem(code, detail))


_EMPTY: Final = sha256()
_REPLIES = frozenset({STORED, REJECTED})
_MISROUTED: Final = (
    "Send this record with the routing key {}: the first two hexadecimal digits of SHA-256 of its id, which is hashed as 36"
    " characters in lower case with hyphens and without braces."
)
_uuid = SchemaValidator(core_schema.uuid_schema()).validate_python  # from 16 bytes, three times as fast as UUID()
_ENCODINGS = frozenset({"", "identity", "utf-8"})  # kombu puts the charset there
_MODES: Final = {mode.value: mode for mode in UpdateMode}
_LONG_BYTES = 2**16
_NUMERAL = re.compile(r"-?[0-9]{1,19}")
