"""The statement that writes a wave (see `sql/write.sql`): its text and its parameters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from typing import Any
from uuid import UUID, uuid4

from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.postgresql.session import SKIPPED_ROW, UNSET_INSTANT
from task_activity_log.postgresql.statements import sql
from task_activity_log.record import FIELDS, TaskActivityLog, instant_texts, values_of
from task_activity_log.wire.fields import KINDS, Kind

_ORDER = attrgetter("record.id.int")  # the order in which PostgreSQL sorts uuids; faster than comparing UUID objects
_INSTANTS = tuple(index for index, name in enumerate(FIELDS) if KINDS[name] is Kind.INSTANT)

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

TOO_LONG = """coalesce(pg_catalog.sum(
            coalesce(pg_catalog.octet_length(subject::pg_catalog.text), 0)
            OPERATOR(pg_catalog.+) coalesce(pg_catalog.octet_length(description::pg_catalog.text), 0)
            OPERATOR(pg_catalog.+) coalesce(pg_catalog.octet_length(reference_back_office::pg_catalog.text), 0)
        ) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW), 0) OPERATOR(pg_catalog.>) {most_bytes}"""
"""Whether the rows before this one have more bytes of text. PostgreSQL knows the length of a long value without reading
it."""


@cache
def statement(mode: UpdateMode, most_bytes: int, *, has_xmax: bool = True) -> str:
    """The statement that writes a wave in this mode.

    It returns the texts of the first rows, until they have `most_bytes`. A merge can return rows of any length; what a
    replace returns is as long as the requests.
    """
    assignments = [f"{column} = {_NEW_VALUE[mode].format(column=column)}," for column in FIELDS if column != "id"]
    too_long = TOO_LONG.format(most_bytes=f"{most_bytes}::pg_catalog.int8") if mode is UpdateMode.MERGE else "false"
    text = sql("write").replace("{assignments}", "\n        ".join(assignments))
    return (
        text.replace("{inserted}", _INSERTED[has_xmax])
        .replace("{too_long}", too_long)
        .replace("{unset}", UNSET_INSTANT)
        .replace("{skipped}", SKIPPED_ROW)
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


def own_arguments(record: TaskActivityLog, count: int) -> list[object]:
    """The parameters for rows of the worker's own with the values of this record."""
    values = {name: getattr(record, name) for name in FIELDS}
    rows = [TaskActivityLog.trusted({**values, "id": uuid4()}, set()) for _ in range(count)]
    return arguments([_own_request(row) for row in rows], UpdateMode.REPLACE, 1.0)


def own_version(record: TaskActivityLog, identifier: UUID, version: int) -> list[object]:
    """The parameters for a row of the worker's own with the values of this record, this id and this version."""
    row = TaskActivityLog.trusted({**record.__dict__, "id": identifier}, set())
    return arguments([_own_request(row, version)], UpdateMode.REPLACE, 1.0)
