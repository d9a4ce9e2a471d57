"""Makes a record from members by name, and names every invalid field (contract, sections 1 and 6)."""

import re
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any, NamedTuple, TypeVar, get_args
from uuid import UUID

from pydantic import AwareDatetime

from task_activity_log.problem import Code, FieldError, Problem, Rejected
from task_activity_log.record import FIELDS, StoredTaskActivityLog, TaskActivityLog
from task_activity_log.wire.values import Invalid

Reader = Callable[[Any], Any]
"""Turns what a member contains, other than None, into the value of a field; None for null. Raises `Invalid`."""
Record = TypeVar("Record", bound=TaskActivityLog)


class Kind(Enum):
    """The kind of value that a field has, and the error code of a value that is not of this kind."""

    UUID = Code.INVALID_UUID
    TEXT = Code.INVALID_STRING
    INSTANT = Code.INVALID_DATE
    BOOLEAN = Code.INVALID_BOOLEAN

    @property
    def code(self) -> Code:
        """The error code."""
        return self.value


_TYPES: dict[Any, Kind] = {UUID: Kind.UUID, str: Kind.TEXT, AwareDatetime: Kind.INSTANT, bool: Kind.BOOLEAN}


def _kind(annotation: Any) -> Kind:
    """The kind of a field with this annotation, whatever validators it has, and whether it may be null or not."""
    arguments = get_args(annotation)
    return _kind(arguments[0]) if arguments else _TYPES[annotation]


STORED_KINDS = {name: _kind(field.annotation) for name, field in StoredTaskActivityLog.model_fields.items()}
"""The kind of each field of a stored record, in the record's order."""
KINDS = {name: STORED_KINDS[name] for name in FIELDS}
"""The kind of each field that a request can set, in the record's order."""

_WANTED = {
    Code.DUPLICATE_FIELD: "only once; upper and lower case do not matter",
    Code.MISSING_ID: "as a uuid; it is missing or all zeros",
    Code.INVALID_UUID: "as a uuid such as 9652e68c-7b6d-4598-bbbd-4e933126c994",
    Code.INVALID_DATE: "as a date such as 2026-01-11T20:58:34.720383Z",
    Code.INVALID_BOOLEAN: "as true or false",
    Code.INVALID_STRING: "as a string (in JSON in quotes) without U+0000, lone surrogates or elements",
}


class Encoded(NamedTuple):
    """A record as bytes, and the fields in which characters were replaced, in the record's order."""

    body: bytes
    replaced: tuple[str, ...]


class InvalidFields(Rejected):
    """The body parses as a record, but some fields are invalid.

    It is raised only by the last check, so that the headers can be checked before (contract, section 2).
    """


IGNORED_MAX, _NAME_MAX = 10, 64
_UNUSUAL = re.compile(r"[^\w.:@$-]")


def ignore(name: str, ignored: list[str] | None) -> None:
    """Note the name of a member that is not a field: at most ten of them, each shortened, with ? for unusual characters.

    Names that begin with $ are those of serializers ($id, $type), which no publisher means as a field.
    """
    if ignored is not None and len(ignored) < IGNORED_MAX and not name.startswith("$"):
        shown = _UNUSUAL.sub("?", name[:_NAME_MAX])
        if shown not in ignored:
            ignored.append(shown)


def bad(field: str, code: Code) -> FieldError:
    """The error for one invalid field."""
    return FieldError(field, code, f"Send {field} {_WANTED[code]}.")


def problem(errors: Collection[FieldError]) -> Problem:
    """One problem for all invalid fields, which are in the record's order. The first determines the code."""
    first = next(iter(errors))
    rest = len(errors) - 1
    more = f" {rest} more {'field is' if rest == 1 else 'fields are'} invalid too." if rest else ""
    return Problem(first.code, first.message + more, tuple(errors))


def check_unique(repeated: Collection[str], order: Collection[str]) -> None:
    """Raise `Rejected` (`duplicate_field`) if a field is repeated, because readers differ in which one they use."""
    if repeated:
        raise Rejected(problem([bad(field, Code.DUPLICATE_FIELD) for field in order if field in repeated]))


def record(kind: type[Record], members: Mapping[str, Any], readers: Mapping[str, Reader]) -> Record:
    """Make a record of this class from the members of a message.

    `readers` has every field of the class, in its order. Members without a reader are ignored and not parsed. A member
    that is None is null.

    Raises `InvalidFields` with an error for each invalid field.
    """
    values: dict[str, Any] = dict.fromkeys(readers)
    errors: dict[str, Code] = {}
    for field, held in members.items():
        if held is not None and field in readers:
            try:
                values[field] = readers[field](held)
            except Invalid as invalid:
                errors[field] = invalid.code
    if values["id"] is None or not values["id"].int:
        errors.setdefault("id", Code.MISSING_ID)
    if values.get("modified_dateutc", ...) is None:
        errors.setdefault("modified_dateutc", Code.INVALID_DATE)
    if errors:
        raise InvalidFields(problem([bad(field, errors[field]) for field in readers if field in errors]))
    given = set(members)
    given.intersection_update(values)
    return kind.trusted(values, given)
