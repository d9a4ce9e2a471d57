"""Converts bytes to records and problems and back, by media type. Does no input or output and reads no clock.

media     content type and body to text: media type, charset
as_json   JSON to record and back
as_xml    XML to record and back
fields    members to record; names every invalid field
values    text to uuid and instant
problems  problem to bytes and back
"""

from typing import Literal
from uuid import UUID

from task_activity_log.problem import Code, Rejected
from task_activity_log.record import StoredTaskActivityLog, TaskActivityLog
from task_activity_log.wire import as_json, as_xml, fields
from task_activity_log.wire.fields import Encoded, InvalidFields
from task_activity_log.wire.media import (
    JSON,
    MEDIA_TYPES,
    PROBLEM_JSON,
    PROBLEM_XML,
    XML,
    MediaType,
    is_xml,
    media_type,
    text,
)
from task_activity_log.wire.problems import decode as decode_problem
from task_activity_log.wire.problems import encode as encode_problem
from task_activity_log.wire.values import NaiveDates

__all__ = [
    "JSON",
    "MEDIA_TYPES",
    "PROBLEM_JSON",
    "PROBLEM_XML",
    "XML",
    "Encoded",
    "InvalidFields",
    "MediaType",
    "NaiveDates",
    "Nulls",
    "decode",
    "decode_problem",
    "decode_stored",
    "encode",
    "encode_problem",
    "is_xml",
    "media_type",
    "problem_type",
    "record_id",
    "text",
]

Nulls = Literal["emit", "omit"]
"""Whether the JSON of a stored record contains members with the value null."""


def decode(text: str, name: str, naive: NaiveDates = "utc", ignored: list[str] | None = None) -> TaskActivityLog:
    """The record in the text of a request. `name` is its media type without parameters.

    The names of members that are not fields are added to `ignored`, at most ten, in a form that a header can contain.
    Absent fields are not in `model_fields_set`. Raises `Rejected`, or its subclass `InvalidFields` if the text parses as a
    record and only fields are invalid.
    """
    return as_xml.decode(text, naive, ignored) if is_xml(name) else as_json.decode(text, naive, ignored)


def record_id(body: bytes, content_type: str | None) -> UUID | None:
    """The id of the record in the body of a request; None if there is no record that is valid."""
    try:
        media = media_type(content_type)
        return decode(text(body, media), media.name).id
    except Rejected:
        return None


def decode_stored(body: bytes, content_type: str | None) -> StoredTaskActivityLog:
    """The stored record in the body of a reply, for programs that read replies. Raises `Rejected`."""
    media = media_type(content_type)
    characters = text(body, media)
    return as_xml.decode_stored(characters) if is_xml(media.name) else as_json.decode_stored(characters)


def encode(record: TaskActivityLog, name: str, nulls: Nulls = "emit") -> Encoded:
    """A stored record as a reply, or any other record as a request. `name` is the media type without parameters.

    A request has the fields in `model_fields_set`. A reply has all twelve; in JSON those with a value if nulls are omitted.
    Characters that XML cannot represent are replaced in a reply; a request with such characters raises `Rejected`.
    """
    if not is_xml(name):
        return as_json.encode(record, omit_nulls=nulls == "omit")
    encoded = as_xml.encode(record)
    if encoded.replaced and not isinstance(record, StoredTaskActivityLog):
        raise Rejected(fields.problem([fields.bad(field, Code.INVALID_STRING) for field in encoded.replaced]))
    return encoded


def problem_type(name: str) -> str:
    """The media type of the problem for a message of this media type."""
    return PROBLEM_XML if is_xml(name) else PROBLEM_JSON
