"""JSON to record and back (contract, sections 3 and 6).

There are two readers with the same result. The fast one, `_usual`, uses one pass of pydantic-core and accepts only what
serializers usually write: known names, each once, with values in their most common form. Everything else, valid or not,
is left to the complete one, `_members`, which knows every rule and is slower (see docs/performance.md).
"""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache, partial
from itertools import accumulate
from types import NoneType
from typing import Any
from uuid import UUID

from pydantic_core import CoreConfig, CoreSchema, SchemaValidator, ValidationError
from pydantic_core import core_schema as cs

from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.record import (
    FIELDS,
    STORED_FIELDS,
    StoredTaskActivityLog,
    TaskActivityLog,
    is_storable,
)
from task_activity_log.wire import fields, values
from task_activity_log.wire.fields import KINDS, STORED_KINDS, Kind, Reader
from task_activity_log.wire.media import WHITE
from task_activity_log.wire.values import Invalid, NaiveDates

MAX_DEPTH = 64
"""Maximum nesting depth of objects and arrays. The record itself is the first level."""


def decode(text: str, naive: NaiveDates = "utc", ignored: list[str] | None = None) -> TaskActivityLog:
    """The record in a JSON text. The names of members that are not fields are added to `ignored`.

    Raises `Rejected`, or its subclass `InvalidFields` if only fields are invalid.
    """
    return _usual(text, naive, ignored) or fields.record(TaskActivityLog, _members(text, ignored), _readers(naive))


def decode_stored(text: str) -> StoredTaskActivityLog:
    """The stored record in the JSON text of a reply. Raises `Rejected`."""
    return fields.record(StoredTaskActivityLog, _members(text), _readers("utc", stored=True))


def encode(record: TaskActivityLog, *, omit_nulls: bool = False) -> fields.Encoded:
    """The record as one line of JSON in UTF-8, with members in the record's order.

    A stored record has all twelve members, or with `omit_nulls` those that are not null. A request has those that are set.
    """
    stored = type(record) is StoredTaskActivityLog  # faster than isinstance(), which pydantic implements in Python
    # This does the same as model_dump_json(), and saves a microsecond. Warnings would print values of a record that was made
    # without validation.
    body = record.__pydantic_serializer__.to_json(
        record, exclude_none=stored and omit_nulls, exclude_unset=not stored, warnings=False
    )
    return fields.Encoded(body, ())


# ---- the fast reader


def _usual(text: str, naive: NaiveDates, ignored: list[str] | None = None) -> TaskActivityLog | None:
    """The record in a JSON text of the usual kind; None if the complete reader must decide.

    If two members have the same name, pydantic-core silently uses the last one. Quotation marks reveal that: each name and
    each string has two, so further ones belong to a member that was dropped, or are escaped. If the text also has escaped
    backslashes, it is not clear which quotation marks are escaped, so the complete reader decides.

    pydantic-core reserves memory for eight values in each array, 130 times the length of `[]` in the text. Therefore a text
    with many arrays is left to the complete reader.
    """
    # Counting takes half a microsecond, so check first whether there is anything to count.
    if ("[" in text or text.find("{", 1) > 0) and text.count("[") + text.count("{") > MAX_DEPTH:
        return None
    try:
        found, others, given = _validator(naive).validate_json(text)
    except ValidationError:
        return None
    if not (found["id"] and found["id"].int):
        return None
    types = [*map(type, found.values())]
    strings = len(types) - types.count(NoneType) - (found["is_closed"] is not None)
    for name, value in others.items():
        if name not in _READ_ONLY and name.lower() in _NAMES:
            return None
        strings += type(value) is str
    quotes = text.count('"') - 2 * (len(given) + strings)
    if (quotes or "\\" in text) and ("\\u0000" in text or "\\\\" in text or quotes != text.count('\\"')):
        return None
    for name in _INSTANTS:
        value = found[name]
        if value is not None and value.tzinfo is not UTC:
            found[name] = values.in_utc(value if value.tzinfo else value.replace(tzinfo=UTC))
    _leave_out(others, given, ignored)
    return TaskActivityLog.trusted(found, given)


def _leave_out(others: Iterable[str], given: set[str], ignored: list[str] | None) -> None:
    """Take the names of other members from those that are given, and note those that are not fields."""
    given.difference_update(others)
    for name in others:
        if name not in _READ_ONLY:
            fields.ignore(name, ignored)


@cache
def _validator(naive: NaiveDates) -> SchemaValidator:
    """Reads a JSON object into its fields, its other members, and the names of all members that are present.

    It accepts less than the contract and never more. Less common forms of uuids, dates and booleans are errors here, and so
    are other members that are not scalars, because they could nest too deeply.
    """
    date = cs.no_info_after_validator_function(
        datetime.fromisoformat,
        cs.str_schema(
            strict=True,
            pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
            rf"(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9]){'?' if naive == 'utc' else ''}$",
        ),
    )
    schemas: dict[Kind, CoreSchema] = {
        Kind.UUID: values.UUID_SCHEMA,
        Kind.TEXT: cs.str_schema(strict=True),
        Kind.INSTANT: date,
        Kind.BOOLEAN: cs.bool_schema(strict=True),
    }
    scalar = cs.union_schema(
        [
            cs.str_schema(strict=True),
            cs.bool_schema(strict=True),
            cs.int_schema(strict=True),
            cs.float_schema(strict=True, allow_inf_nan=False),
        ],
        mode="left_to_right",
    )
    return SchemaValidator(
        cs.model_fields_schema(
            {
                name: cs.model_field(cs.with_default_schema(cs.nullable_schema(schemas[kind]), default=None))
                for name, kind in KINDS.items()
            },
            extras_schema=cs.nullable_schema(scalar),
        ),
        CoreConfig(extra_fields_behavior="allow"),
    )


# ---- the complete reader


def _members(text: str, ignored: list[str] | None = None) -> dict[str, Any]:
    """The members of a JSON object that are fields of a record, by field. Unknown members are left out, and noted.

    Raises `Rejected` with `malformed_json`, `not_an_object` or `duplicate_field`.
    """
    try:
        root = _DECODER.decode(text)
    except (ValueError, RecursionError):  # no cause, because the error quotes the body
        raise Rejected(_MALFORMED) from None
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise Rejected(_MALFORMED)
    if type(root) is not tuple:
        raise Rejected(Problem(Code.NOT_AN_OBJECT, "Send one JSON object: the record itself."))
    found: dict[str, Any] = {}
    repeated = set()
    for name, value in root:
        field = name if name in _NAMES else name.lower() if name.isascii() else None
        if field in _NAMES:
            if field in found:
                repeated.add(field)
            found[field] = value
        else:
            fields.ignore(name, ignored)
    fields.check_unique(repeated, STORED_FIELDS)
    return found


def _depth(text: str) -> int:
    """The nesting depth of well-formed JSON. Each pass is in C: there can be 87,000 brackets, which took Python 28 ms."""
    marks = _STRING.sub("", text).encode(errors="replace")  # brackets in strings do not count
    steps = memoryview(marks.translate(_STEPS, _NOT_BRACKETS)).cast("b")
    return max(accumulate(steps), default=0)


def _number(token: str) -> bool | object:
    """0 and 1 can be booleans. Other numbers are not parsed, because int() fails above 4,300 digits."""
    return _BITS.get(token, _OTHER_NUMBER)


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token} is not JSON")


def _string(raw: object, kind: Kind) -> str:
    if type(raw) is not str:
        raise Invalid(kind.code)
    return raw


def _read_string(raw: object) -> str:
    text = _string(raw, Kind.TEXT)
    if not is_storable(text):
        raise Invalid(Kind.TEXT.code)
    return text


def _read_uuid(raw: object) -> UUID | None:
    return None if raw == "" else values.uuid(_string(raw, Kind.UUID))


def _read_instant(raw: object, naive: NaiveDates) -> datetime | None:
    if raw == "":
        return None
    text = _string(raw, Kind.INSTANT)
    return values.milliseconds(text) or values.instant(text, naive)


def _read_boolean(raw: object) -> bool | None:
    if raw == "":
        return None
    if type(raw) is str:
        raw = _WORDS.get(raw.strip(WHITE).lower())
    if type(raw) is not bool:
        raise Invalid(Kind.BOOLEAN.code)
    return raw


@cache
def _readers(naive: NaiveDates, *, stored: bool = False) -> dict[str, Reader]:
    readers: dict[Kind, Reader] = {
        Kind.UUID: _read_uuid,
        Kind.TEXT: _read_string,
        Kind.INSTANT: partial(_read_instant, naive=naive),
        Kind.BOOLEAN: _read_boolean,
    }
    return {field: readers[kind] for field, kind in (STORED_KINDS if stored else KINDS).items()}


_NAMES = frozenset(STORED_FIELDS)
_INSTANTS = [field for field, kind in KINDS.items() if kind is Kind.INSTANT]
_READ_ONLY = _NAMES - set(FIELDS)
_MALFORMED = Problem(Code.MALFORMED_JSON, f"Send JSON as defined by RFC 8259, nested at most {MAX_DEPTH} levels deep.")
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)).difference(b"[]{}"))
_BITS = {"0": False, "1": True}
_OTHER_NUMBER = object()
_WORDS = {"true": True, "false": False}
# Objects become tuples of pairs. So members with the same name are kept, and arrays differ from objects.
_DECODER = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=_number, parse_float=_number, parse_constant=_refuse_constant
)
