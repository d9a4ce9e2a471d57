"""JSON ↔ record (contract, sections 3 and 6).

Two readers give the same result. `_usual` does in one pass of pydantic-core what serializers usually write: known
names, each once, with values in their commonest form. Whatever else there is, right or wrong, it leaves to `_members`,
which takes four times as long and knows every rule.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import cache, partial
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
from task_activity_log.wire.fields import Reader
from task_activity_log.wire.media import WHITE
from task_activity_log.wire.values import Invalid, NaiveDates

MAX_DEPTH = 64
"""How deep objects and arrays may nest, the record itself being the first."""


def decode(text: str, naive: NaiveDates = "utc") -> TaskActivityLog:
    """The record in a JSON text. Raises `Rejected`; when only fields are bad, `InvalidFields`."""
    return _usual(text, naive) or fields.record(TaskActivityLog, _members(text), _readers(naive))


def decode_stored(text: str) -> StoredTaskActivityLog:
    """The stored record in a reply's JSON text. Raises `Rejected`."""
    instant = _readers("utc")["due_date"]
    return fields.record(StoredTaskActivityLog, _members(text), {**_readers("utc"), "modified_dateutc": instant})


def encode(record: TaskActivityLog, *, omit_nulls: bool = False) -> fields.Encoded:
    """One line of JSON in UTF-8, members in the record's order.

    A stored record has all twelve, or with `omit_nulls` those that are not null; a request those that were set.
    """
    stored = type(record) is StoredTaskActivityLog  # pydantic's isinstance() runs Python
    # model_dump_json() does the same and takes a microsecond longer.
    body = record.__pydantic_serializer__.to_json(record, exclude_none=stored and omit_nulls, exclude_unset=not stored)
    return fields.Encoded(body, ())


# ---- what serializers usually write


def _usual(text: str, naive: NaiveDates) -> TaskActivityLog | None:
    """The record in a JSON text of the usual sort; None when it has to be looked at more closely.

    pydantic-core takes the last of two members with one name and does not tell. The quotes do: two for each name, two
    for each string, and any others belong to a name that was dropped. (Or to an escaped quote; with an escaped
    backslash in the text as well it takes a closer look to tell whose it is.)

    It keeps room for eight values in every array, 130 times what `[]` takes in the text: many are not for it.
    """
    # Counting takes half a microsecond, and there is seldom anything to count.
    if ("[" in text or text.find("{", 1) > 0) and text.count("[") + text.count("{") > MAX_DEPTH:
        return None
    try:
        found, others, given = _validator(naive).validate_json(text)
    except ValidationError:
        return None
    if not (found["id"] and found["id"].int):
        return None
    kinds = [*map(type, found.values())]
    strings = len(kinds) - kinds.count(NoneType) - (found["is_closed"] is not None)
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
    given.difference_update(others)
    return TaskActivityLog.trusted(found, given)


@cache
def _validator(naive: NaiveDates) -> SchemaValidator:
    """A reader of JSON objects into (fields, other members, names of all members that were there).

    It takes less than the contract, never more: other forms of uuid, date or boolean are errors here, and so are other
    members that are no scalars, as they could nest too deep.
    """
    date = cs.no_info_after_validator_function(
        datetime.fromisoformat,
        cs.str_schema(
            strict=True,
            pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
            rf"(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9]){'?' if naive == 'utc' else ''}$",
        ),
    )
    kinds: dict[Code, CoreSchema] = {
        Code.INVALID_UUID: values.UUID_SCHEMA,
        Code.INVALID_STRING: cs.str_schema(strict=True),
        Code.INVALID_DATE: date,
        Code.INVALID_BOOLEAN: cs.bool_schema(strict=True),
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
                name: cs.model_field(cs.with_default_schema(cs.nullable_schema(kinds[code]), default=None))
                for name, code in fields.KINDS.items()
            },
            extras_schema=cs.nullable_schema(scalar),
        ),
        CoreConfig(extra_fields_behavior="allow"),
    )


# ---- everything else


def _members(text: str) -> dict[str, Any]:
    """What a JSON object holds for the fields of a record, by field. Unknown members are left out.

    Raises `Rejected` with `malformed_json`, `not_an_object` or `duplicate_field`.
    """
    try:
        root = _DECODER.decode(text)
    except (ValueError, RecursionError):  # its text and attributes hold the body, hence no cause
        raise Rejected(_MALFORMED) from None
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise Rejected(_MALFORMED)
    if type(root) is not tuple:
        raise Rejected(Problem(Code.NOT_AN_OBJECT, "Send one JSON object, the record itself."))
    found: dict[str, Any] = {}
    repeated = set()
    for name, value in root:
        field = name if name in _NAMES else name.lower() if name.isascii() else None
        if field in _NAMES:
            if field in found:
                repeated.add(field)
            found[field] = value
    fields.check_unique(repeated, STORED_FIELDS)
    return found


def _depth(text: str) -> int:
    """How deep well-formed JSON nests."""
    depth = deepest = 0
    for mark in _BRACKETS.findall(text):
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _number(token: str) -> bool | object:
    """0 and 1 are booleans too. Any other number is only a number: int() gives up at 4,300 digits."""
    return _BITS.get(token, _OTHER_NUMBER)


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token} is not JSON")


def _string(raw: object, code: Code = Code.INVALID_STRING) -> str:
    if type(raw) is not str:
        raise Invalid(code)
    return raw


def _read_string(raw: object) -> str | None:
    if raw is None:
        return None
    text = _string(raw)
    if not is_storable(text):
        raise Invalid(Code.INVALID_STRING)
    return text


def _read_uuid(raw: object) -> UUID | None:
    return None if raw is None or raw == "" else values.uuid(_string(raw, Code.INVALID_UUID))


def _read_instant(raw: object, naive: NaiveDates) -> datetime | None:
    if raw is None or raw == "":
        return None
    text = _string(raw, Code.INVALID_DATE)
    return values.milliseconds(text) or values.instant(text, naive)


def _read_boolean(raw: object) -> bool | None:
    if raw is None or raw == "":
        return None
    if type(raw) is str:
        raw = _WORDS.get(raw.strip(WHITE).lower())
    if type(raw) is not bool:
        raise Invalid(Code.INVALID_BOOLEAN)
    return raw


@cache
def _readers(naive: NaiveDates) -> dict[str, Reader]:
    kinds: dict[Code, Reader] = {
        Code.INVALID_UUID: _read_uuid,
        Code.INVALID_STRING: _read_string,
        Code.INVALID_DATE: partial(_read_instant, naive=naive),
        Code.INVALID_BOOLEAN: _read_boolean,
    }
    return {field: kinds[code] for field, code in fields.KINDS.items()}


_NAMES = frozenset(STORED_FIELDS)
_INSTANTS = [field for field, code in fields.KINDS.items() if code is Code.INVALID_DATE]
_READ_ONLY = _NAMES - set(FIELDS)
_MALFORMED = Problem(Code.MALFORMED_JSON, f"Send JSON as RFC 8259 has it, nested no deeper than {MAX_DEPTH}.")
_BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{}]')  # strings as well, as brackets in them do not count
_BITS = {"0": False, "1": True}
_OTHER_NUMBER = object()
_WORDS = {"true": True, "false": False}
# Objects become tuples of pairs, so that members with one name are all there and arrays can be told from objects.
_DECODER = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=_number, parse_float=_number, parse_constant=_refuse_constant
)
