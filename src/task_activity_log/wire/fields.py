"""Members by name → record, with every bad field named (contract, sections 1 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeVar

from task_activity_log.problem import Code, FieldError, Problem, Rejected
from task_activity_log.record import TaskActivityLog
from task_activity_log.wire.values import Invalid

Reader = Callable[[Any], Any]
"""What a member holds → the field's value, None for null. Raises `Invalid`."""
Record = TypeVar("Record", bound=TaskActivityLog)

KINDS = {
    "id": Code.INVALID_UUID,
    "task_id": Code.INVALID_UUID,
    "task_activity_id": Code.INVALID_UUID,
    "user_id": Code.INVALID_UUID,
    "contact_id": Code.INVALID_UUID,
    "subject": Code.INVALID_STRING,
    "description": Code.INVALID_STRING,
    "due_date": Code.INVALID_DATE,
    "is_closed": Code.INVALID_BOOLEAN,
    "date_closed": Code.INVALID_DATE,
    "reference_back_office": Code.INVALID_STRING,
}
"""What each field holds, told by what it is called when it does not; in the record's order."""

_WANTED = {
    Code.DUPLICATE_FIELD: "once only, in whatever case its name is",
    Code.MISSING_ID: "as a uuid that is not all zeros",
    Code.INVALID_UUID: "as a uuid such as 9652e68c-7b6d-4598-bbbd-4e933126c994",
    Code.INVALID_DATE: "as a date such as 2026-01-11T20:58:34.720383Z",
    Code.INVALID_BOOLEAN: "as true or false",
    Code.INVALID_STRING: "as a string without U+0000, lone surrogates or elements",
}


class Encoded(NamedTuple):
    """A record as bytes, and the fields in which characters had to be replaced, in the record's order."""

    body: bytes
    replaced: tuple[str, ...]


class InvalidFields(Rejected):
    """The body is a record in form, but fields in it are not. Looked at last: a bad header comes before (section 2)."""


def bad(field: str, code: Code) -> FieldError:
    """What to say of one bad field."""
    return FieldError(field, code, f"Send {field} {_WANTED[code]}.")


def problem(errors: Collection[FieldError]) -> Problem:
    """One problem for all bad fields, in the record's order; the first gives the code."""
    first = next(iter(errors))
    rest = len(errors) - 1
    more = f" {rest} more {'field is' if rest == 1 else 'fields are'} bad too: see errors." if rest else ""
    return Problem(first.code, first.message + more, tuple(errors))


def check_unique(repeated: Collection[str], order: Collection[str]) -> None:
    """Raise `Rejected` (`duplicate_field`) if a field was there more than once: readers differ in which one counts."""
    if repeated:
        raise Rejected(problem([bad(field, Code.DUPLICATE_FIELD) for field in order if field in repeated]))


def record(kind: type[Record], members: Mapping[str, Any], readers: Mapping[str, Reader]) -> Record:
    """The record of this kind in what a message holds for its fields.

    `readers` has every field of the kind, in its order; a member that no reader is for is passed over unread.
    Raises `InvalidFields` with an error for each bad field.
    """
    values: dict[str, Any] = dict.fromkeys(readers)
    errors: dict[str, Code] = {}
    for field, held in members.items():
        if field in readers:
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
