"""Records: the shortcuts that save time give the same values as the ordinary way."""

import re
from datetime import UTC, datetime
from importlib import resources
from uuid import UUID, uuid4

import pytest
from asyncpg.pgproto import pgproto
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from task_activity_log.postgresql.writing import UUIDS
from task_activity_log.record import (
    FIELDS,
    STORED_FIELDS,
    StoredTaskActivityLog,
    TaskActivityLog,
    instant_texts,
    values_of,
)

instants = st.datetimes(timezones=st.just(UTC))
records = st.builds(TaskActivityLog, id=st.uuids(version=4))
SQL = resources.files("task_activity_log.postgresql").joinpath("sql")


@given(st.lists(st.none() | instants, max_size=20))
def test_texts_of_instants_are_the_instants(values: list[datetime | None]) -> None:
    """All years, and all fractions of a second; null stays null. A column is a tuple."""
    texts = instant_texts(tuple(values))
    assert [None if text is None else datetime.fromisoformat(text) for text in texts] == values


@pytest.mark.parametrize("name", ["subjct", "taskId", "modified_dateutc", "source_version"])
def test_a_name_that_is_not_a_field_is_refused(name: str) -> None:
    """The field that was meant would be null, and the record replaces the stored one."""
    with pytest.raises(ValidationError, match=f"(?s)1 validation error.*{name}"):
        TaskActivityLog.model_validate({"id": uuid4(), name: None})


@given(records)
def test_values_are_in_the_records_order(record: TaskActivityLog) -> None:
    """Whoever made the record: those of the decoders are made with `trusted`."""
    assert list(values_of(record)) == [getattr(record, name) for name in FIELDS]
    trusted = TaskActivityLog.trusted({name: getattr(record, name) for name in FIELDS}, set())
    assert list(values_of(trusted)) == list(values_of(record))


@pytest.mark.parametrize("statement", ["write", "read"])
def test_rows_begin_with_the_columns_of_the_record(statement: str) -> None:
    """`StoredTaskActivityLog.from_row` takes them by their position."""
    text = re.sub(r"(?m)^\s*--.*\n", "", SQL.joinpath(f"{statement}.sql").read_text(encoding="utf-8"))
    text = text.replace("{uuids}", UUIDS)
    [selected] = re.findall(r"\nSELECT\n(    id::pg_catalog\.uuid.+?)\nFROM \(", "\n" + text, re.DOTALL)
    names = re.findall(
        rf"^    (?:CASE.* AS )?({'|'.join(STORED_FIELDS)})(?:::\S+)?(?:,|$)", expand(selected), re.MULTILINE
    )
    assert tuple(names) == STORED_FIELDS
    row = {name: number for number, name in enumerate([*STORED_FIELDS, "outcome"])}
    assert StoredTaskActivityLog.from_row(row).__dict__ == {name: row[name] for name in STORED_FIELDS}


def expand(selected: str) -> str:
    """One column a line."""
    return re.sub(r", (\w+::)", r",\n    \1", selected)


def asyncpgs(record: TaskActivityLog) -> dict[str, object]:
    """A row with the values of a record: asyncpg has a class of its own for uuids, which are equal to Python's."""
    values: dict[str, object] = {name: getattr(record, name) for name in FIELDS}
    values |= {name: pgproto.UUID(value.hex) for name, value in values.items() if isinstance(value, UUID)}
    return {**values, "modified_dateutc": datetime(2026, 1, 1, tzinfo=UTC), "outcome": "updated"}


def test_a_record_has_the_objects_that_were_asked_for() -> None:
    """asyncpg's uuids take longer to encode, so those of the request are used where they are equal."""
    asked = TaskActivityLog(id=uuid4(), task_id=uuid4(), subject="a", due_date=datetime(2026, 1, 1, tzinfo=UTC))
    stored = StoredTaskActivityLog.from_row(asyncpgs(asked), asked)
    assert {type(value) for value in stored.__dict__.values()} == {UUID, str, datetime, type(None)}
    assert stored == StoredTaskActivityLog.from_row(asyncpgs(asked))
    assert stored.model_fields_set == set(STORED_FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_a_record_has_what_is_in_the_row(field: str) -> None:
    """A trigger may have stored anything else than what was asked for, in any field."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    asked = TaskActivityLog(
        id=uuid4(), task_id=uuid4(), task_activity_id=uuid4(), user_id=uuid4(), contact_id=uuid4(), subject="a",
        description="b", due_date=moment, is_closed=True, date_closed=moment, reference_back_office="c",
    )  # fmt: skip
    row = {**asyncpgs(asked), field: None}
    assert StoredTaskActivityLog.from_row(row, asked).__dict__ == {name: row[name] for name in STORED_FIELDS}
