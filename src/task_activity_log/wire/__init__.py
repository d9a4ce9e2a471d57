"""Bytes ↔ record by media type. No input or output, no clock.

From the outside in: `media` (content type and charset → text), `as_json` and `as_xml` (text ↔ record), `fields`
(members → record, every bad field named), `values` (text → uuid, instant). `problems` writes problems.
"""

from __future__ import annotations

from typing import Literal

from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.record import StoredTaskActivityLog, TaskActivityLog
from task_activity_log.wire import as_json, as_xml, fields, problems
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
    "decode_stored",
    "encode",
    "encode_problem",
    "is_xml",
    "media_type",
    "problem_type",
    "text",
]

Nulls = Literal["emit", "omit"]
"""Whether the nulls of a stored record are in its JSON."""


def decode(text: str, name: str, naive: NaiveDates = "utc") -> TaskActivityLog:
    """The record in a request's text, by its bare media type; absent fields are not in `model_fields_set`.

    Raises `Rejected`; when the body is a record in form and only fields in it are bad, its subclass `InvalidFields`.
    """
    return as_xml.decode(text, naive) if is_xml(name) else as_json.decode(text, naive)


def decode_stored(body: bytes, content_type: str | None) -> StoredTaskActivityLog:
    """The stored record in the body of a reply, for who reads replies. Raises `Rejected`."""
    media = media_type(content_type)
    characters = text(body, media)
    return as_xml.decode_stored(characters) if is_xml(media.name) else as_json.decode_stored(characters)


def encode(record: TaskActivityLog, name: str, nulls: Nulls = "emit") -> Encoded:
    """A stored record as a reply, or any other as a request, in this bare media type.

    A request has the fields in `model_fields_set`; a reply all twelve, or in JSON, nulls omitted, those with a value.
    Raises `Rejected` (`invalid_string`) for a request with characters that XML cannot hold; a reply has them replaced.
    """
    if not is_xml(name):
        return as_json.encode(record, omit_nulls=nulls == "omit")
    encoded = as_xml.encode(record)
    if encoded.replaced and not isinstance(record, StoredTaskActivityLog):
        raise Rejected(fields.problem([fields.bad(field, Code.INVALID_STRING) for field in encoded.replaced]))
    return encoded


def problem_type(name: str) -> str:
    """The media type of a problem that answers a message of this one."""
    return PROBLEM_XML if is_xml(name) else PROBLEM_JSON


def encode_problem(problem: Problem, name: str) -> bytes:
    """A problem in the format of this media type."""
    return problems.encode(problem, name)
