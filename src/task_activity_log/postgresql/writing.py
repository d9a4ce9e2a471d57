"""The statement that writes a wave (see `sql/write.sql`): its text and its parameters."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from typing import Any
from uuid import UUID, uuid4

from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.postgresql.faults import SKIPPED_ROW, UNKEPT_KEY, UNSET_INSTANT
from task_activity_log.postgresql.statements import sql
from task_activity_log.record import FIELDS, TaskActivityLog, instant_texts, values_of
from task_activity_log.wire.fields import KINDS, Kind

_ORDER = attrgetter("record.id.int")  # the order in which PostgreSQL sorts uuids; faster than comparing UUID objects
_INSTANTS = tuple(index for index, name in enumerate(FIELDS) if KINDS[name] is Kind.INSTANT)

BARE = TaskActivityLog.trusted(dict.fromkeys(FIELDS), set())
FULL = TaskActivityLog(
    id=uuid4(), task_id=uuid4(), task_activity_id=uuid4(), user_id=uuid4(), contact_id=uuid4(),
    subject="task-activity-log-worker", description="A row of the worker's own. It is rolled back.",
    due_date=datetime(2026, 1, 1, tzinfo=UTC), is_closed=False, date_closed=datetime(2026, 1, 1, tzinfo=UTC),
    reference_back_office="task-activity-log-worker",
)  # fmt: skip
"""Two of the worker's own records (see `Store.try_own_rows`): without values, and with all."""

_NEW_VALUE = {
    UpdateMode.REPLACE: "excluded.{column}",
    UpdateMode.MERGE: "CASE WHEN ($15::pg_catalog.jsonb OPERATOR(pg_catalog.->) excluded.id::pg_catalog.text)"
    " OPERATOR(pg_catalog.?) '{column}' THEN excluded.{column} ELSE stored.{column} END",
}
"""What an update sets a column to."""

_INSERTED = {
    True: "xmax OPERATOR(pg_catalog.=) 0",
    False: "(SELECT before.id FROM task_activity_log AS before WHERE before.id OPERATOR(pg_catalog.=) stored.id) IS NULL",
}
"""Whether a row was inserted, by whether the row has an xmax (see write.sql)."""

_UUIDS = tuple(name for name in FIELDS if KINDS[name] is Kind.UUID and name != "id")
UUIDS = ", ".join(f"{name}::pg_catalog.uuid" for name in _UUIDS)
"""The other uuids of a row, where each column has this type."""
TEXT_UUIDS = ",\n    ".join(
    f"CASE WHEN pg_catalog.pg_column_size({name}) OPERATOR(pg_catalog.>) 64"
    f" THEN pg_catalog.left({name}::pg_catalog.text, 64)::pg_catalog.uuid ELSE {name}::pg_catalog.uuid END AS {name}"
    for name in _UUIDS
)
"""The same where a column has another type. No form of a uuid has 64 characters; see write.sql."""
TEXTS = tuple(name for name in FIELDS if KINDS[name] is Kind.TEXT)
_LENGTH = "pg_catalog.octet_length({column}::pg_catalog.text)::pg_catalog.int8"
LENGTH = " OPERATOR(pg_catalog.+) ".join(f"coalesce({_LENGTH.format(column=column)}, 0)" for column in TEXTS)
"""The bytes of text in a row. PostgreSQL knows the length of a long value without reading it."""
TOO_LONG = """coalesce(pg_catalog.sum(length) OVER (
            ORDER BY id ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW
        ), 0) OPERATOR(pg_catalog.>) {most_bytes}"""
"""Whether the rows before this one have more bytes of text."""
_REPLACED_TOO_LONG = """(SELECT pg_catalog.sum(length) FROM written) OPERATOR(pg_catalog.>) {most_bytes}
            AND length OPERATOR(pg_catalog.>) {share}"""
"""Whether a row is one of those that make all of them too long. It costs less than `TOO_LONG`: texts that replace others are as
long as the requests, and these have a limit of their own, unless a trigger has changed them."""
_SHARES = 500
"""Rows that are shorter than one of as many shares are returned in any case."""


@cache
def statement(
    mode: UpdateMode, most_bytes: int, *, has_xmax: bool = True, has_code: bool = False, has_uuids: bool = True
) -> str:
    """The statement that writes a wave in this mode.

    It returns the texts of the rows unless these have more than `most_bytes`. A merge returns rows of any length, and so may a
    replace if code of others is executed for a row.
    """
    assignments = [f"{column} = {_NEW_VALUE[mode].format(column=column)}," for column in FIELDS if column != "id"]
    text = sql("write").replace("{assignments}", "\n        ".join(assignments))
    most = f"{most_bytes}::pg_catalog.int8"
    bounded = has_code or mode is UpdateMode.MERGE
    for column in TEXTS:
        limited = f"CASE WHEN {_LENGTH.format(column=column)} OPERATOR(pg_catalog.<=) {most} THEN {column} END"
        text = text.replace(f"{{{column}}}", limited if bounded else column)
    together = TOO_LONG if mode is UpdateMode.MERGE else _REPLACED_TOO_LONG
    too_long = f"length OPERATOR(pg_catalog.>) {most} OR " + together.format(
        most_bytes=most, share=most_bytes // _SHARES
    )
    return (
        text.replace("{inserted}", _INSERTED[has_xmax])
        .replace("{uuids}", UUIDS if has_uuids else TEXT_UUIDS)
        .replace("{too_long}", too_long if bounded else "false")
        .replace("{length}", LENGTH if bounded else "0")
        .replace("{unset}", UNSET_INSTANT)
        .replace("{skipped}", SKIPPED_ROW)
        .replace("{unkept}", UNKEPT_KEY)
    )


def arguments(wave: Sequence[Request[Any]], mode: UpdateMode, lock_seconds: float) -> list[object]:
    """The parameters of the statement that writes a wave: one array a column, sorted by id (see write.sql)."""
    ordered = sorted(wave, key=_ORDER)
    columns: list[Sequence[Any]] = list(zip(*[values_of(request.record) for request in ordered], strict=True))
    for index in _INSTANTS:
        columns[index] = instant_texts(columns[index])
    found: list[object] = [*columns, [request.key for request in ordered], [request.version for request in ordered]]
    found.append(f"{max(1, round(lock_seconds * 1000))}ms")
    if mode is UpdateMode.MERGE:
        present = {str(request.record.id): list(request.record.model_fields_set) for request in ordered}
        return [*found, json.dumps(present)]
    return found


def _own_request(record: TaskActivityLog, version: int | None = None) -> Request[Delivery]:
    return Request(Delivery(b"", Properties()), record, "", UpdateMode.REPLACE, version=version, key=uuid4())


def nothing(mode: UpdateMode) -> list[object]:
    """The parameters for a wave without requests."""
    empty: list[object] = [[]] * (len(FIELDS) + 2)
    return [*empty, "1s", *(["{}"] if mode is UpdateMode.MERGE else [])]


def own_rows(count: int) -> list[object]:
    """The parameters for rows of the worker's own that have all values."""
    rows = [TaskActivityLog.trusted({**FULL.__dict__, "id": uuid4()}, set()) for _ in range(count)]
    return arguments([_own_request(row) for row in rows], UpdateMode.REPLACE, 1.0)


_HIGHEST = 2**63 - 1
"""A version that is above every other one."""


def own_row(record: TaskActivityLog, *, again: bool) -> list[list[object]]:
    """The parameters to insert and then update a row with the values of this record, or with `again` to update the record itself.

    A row like a stored one has an id that is similar, and versions: there may be rules about both.
    """
    if again:
        return [own_version(record, record.id, _HIGHEST)]
    is_stored = record is not BARE and record is not FULL
    own, versions = (_similar(record.id), (1, 2)) if is_stored else (uuid4(), (None, None))
    return [own_version(record, own, version) for version in versions]


def _similar(identifier: UUID) -> UUID:
    """Another id of the same version and time, which a range of ids or a constraint on the version takes as well."""
    return UUID(int=identifier.int >> 62 << 62 | secrets.randbits(62))


def own_version(record: TaskActivityLog, identifier: UUID, version: int | None) -> list[object]:
    """The parameters for a row of the worker's own with the values of this record, this id and this version."""
    values = {name: getattr(record, name) for name in FIELDS}
    row = TaskActivityLog.trusted({**values, "id": identifier}, set())
    return arguments([_own_request(row, version)], UpdateMode.REPLACE, 1.0)
