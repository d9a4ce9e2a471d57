"""The tables as they are found, which may be somebody's own: what does not fit, in words with names.

Pure: sql/table.sql asks the catalog.
"""

from collections.abc import Iterator, Mapping

from task_activity_log.postgresql.session import Row
from task_activity_log.problem import SKIPPED, UNKEPT, UNSET, Rule
from task_activity_log.record import FIELDS, STORED_FIELDS
from task_activity_log.wire.fields import STORED_KINDS, Kind

TRIGGER = "task_activity_log_modified"
_VERSION = "source_version"
_COLUMNS = (*STORED_FIELDS, _VERSION)
"""The columns of a record that are ours."""
_TEXTS = ("text", "varchar", "bpchar", "citext")
_TYPES = {
    Kind.UUID: ("uuid", *_TEXTS),
    Kind.TEXT: _TEXTS,
    Kind.INSTANT: ("timestamptz",),
    Kind.BOOLEAN: ("bool",),
}
"""The types, by kind of field, whose columns hold what a message contains. The first one is that of the migrations."""
_NAMES = {"timestamptz": "timestamp with time zone", "bool": "boolean", "int8": "bigint"}
_RECORDS, _INBOX = "task_activity_log", "task_activity_log_inbox"
_INBOX_TYPES = {"request_key": ("uuid",), "processed_at": ("timestamptz", "timestamp", "date")}
_CHECK = "23514"
_KINDS = {"f": "a foreign table", "m": "a materialized view", "S": "a sequence", "c": "a type"}
_TABLES = ("r", "p")


def has_xmax(table: Row) -> bool:
    """Whether xmax can be read of each row; see write.sql. If there is no table, it does not matter."""
    return table["kind"] in (None, "r")


def has_uuids(table: Row) -> bool:
    """Whether each uuid is in a column of that type, and not of text."""
    types = dict(zip(table["names"], table["types"], strict=True))
    return all(types.get(name) == "uuid" for name, kind in STORED_KINDS.items() if kind is Kind.UUID)


def misfits(table: Row) -> Iterator[str]:
    """Why no row can be stored as it should be, whatever a message contains: one text for each reason.

    Only what is certain. If there are other triggers, they may set what is missing; it is seen when a row is written.
    """
    if table["kind"] is None or table["inbox_kind"] is None:
        yield from _missing(table)
        return
    kind = table["kind"]
    if kind in _KINDS:
        yield f"{_RECORDS} is {_KINDS[kind]}"
    if kind in _TABLES and table["has_rules"]:
        yield f"{_RECORDS} has rules, which ON CONFLICT does not permit"
    yield from _columns(table)
    if kind in _TABLES:
        yield from _unique(_RECORDS, "id", usable=table["id_is_unique"])
        if not table["has_other_triggers"]:
            yield from named(table)
    yield from _inbox(table)


def _missing(table: Row) -> Iterator[str]:
    """A table that the search path does not reach. If there is none in any schema, the database was not migrated yet."""
    name = _RECORDS if table["kind"] is None else _INBOX
    if table["elsewhere"]:
        schemas = " and ".join(table["elsewhere"])
        yield f"table {name} is in the schema {schemas}: it is not in the search path, or the role lacks USAGE on it"
    elif table["kind"] is not None or table["inbox_kind"] is not None:
        yield f"table {name} is missing"


def _unique(name: str, column: str, *, usable: bool | None) -> Iterator[str]:
    """ON CONFLICT needs it."""
    if usable is None:
        yield f"{name} has no unique index on {column} alone"
    elif not usable:
        yield f"the unique constraint on {column} of {name} is deferrable"


def _inbox(table: Row) -> Iterator[str]:
    types = dict(zip(table["inbox_names"], table["inbox_types"], strict=True))
    for column, expected in _INBOX_TYPES.items():
        if column not in types:
            yield f"column {column} of {_INBOX} is missing"
        elif types[column] not in expected:
            yield f"column {column} of {_INBOX} is {types[column]}, not {_NAMES.get(expected[0], expected[0])}"
    if table["inbox_kind"] in _KINDS:
        yield f"{_INBOX} is {_KINDS[table['inbox_kind']]}"
    if table["inbox_kind"] not in _TABLES:
        return
    if table["key_is_generated"]:
        yield f"column request_key of {_INBOX} is generated"
    if table["inbox_has_rules"]:
        yield f"{_INBOX} has rules, which ON CONFLICT does not permit"
    yield from _unique(_INBOX, "request_key", usable=table["key_is_unique"])
    if not table["inbox_triggers"]:
        yield from _inbox_required(table)


def _inbox_required(table: Row) -> Iterator[str]:
    for column in table["inbox_required"]:
        if column != "request_key":
            yield f"column {column} of {_INBOX} is NOT NULL and has no default"


def named(table: Row) -> Iterator[str]:
    """What may leave modified_dateutc or another column without a value: a trigger, or columns that are not ours."""
    if table["trigger_enabled"] is None:
        yield f"trigger {TRIGGER} is missing"
    elif table["trigger_enabled"] == "D":
        yield f"trigger {TRIGGER} is disabled"
    elif table["trigger_enabled"] != "A" and (table["trigger_enabled"] == "R") != (
        table["replication_role"] == "replica"
    ):
        yield f"trigger {TRIGGER} does not fire: session_replication_role is {table['replication_role']}"
    for column in table["required"]:
        if column not in _COLUMNS:
            yield f"column {column} is NOT NULL and not ours"


def everybodys(rule: Rule, table: Row) -> tuple[str, str]:
    """Why the database refuses every row: a label and more, in words that contain no name that is not in the catalog."""
    if rule.name in table["required"] and rule.name not in _COLUMNS:
        return f"column {rule.name} is NOT NULL and not ours", ""
    if rule.sqlstate == UNSET or rule.name == "modified_dateutc":
        return next(named(table), "modified_dateutc is not set"), ""
    if (found := _inboxes(rule, table)) is not None:
        return found
    if rule.sqlstate == SKIPPED:
        return "a trigger or a rule skips every row", ""
    if rule.sqlstate == _CHECK and not rule.name and table["kind"] == "p":
        return f"{_RECORDS} has no partition for the rows", ""
    return f"every row is refused ({rule.sqlstate})", f"constraint {rule.name}" * (rule.name in table["constraints"])


def _inboxes(rule: Rule, table: Row) -> tuple[str, str] | None:
    """Why the inbox refuses every key, as `everybodys`; None if it does not."""
    if rule.sqlstate == UNKEPT:
        return f"{_INBOX} does not keep the keys", ", ".join(f"trigger {name}" for name in table["inbox_triggers"])
    if rule.name and rule.name not in table["required"] and rule.name in table["inbox_required"]:
        texts = (text for text in _inbox_required(table) if f" {rule.name} " in text)
        return next(texts, "the inbox refuses every key"), ""
    return None


def _columns(table: Row) -> Iterator[str]:
    """Columns that are missing, or whose types would change values."""
    types = dict(zip(table["names"], zip(table["types"], table["declared"], strict=True), strict=True))
    for column in (*FIELDS, _VERSION):
        if column in table["generated"]:
            yield f"column {column} is generated"
    for column in _COLUMNS:
        if column not in types:
            yield f"column {column} is missing"
            continue
        actual, declared = types[column]
        if actual not in _expected(column):
            yield f"column {column} is {declared}, not {_NAMES.get(_expected(column)[0], _expected(column)[0])}"


def _expected(column: str) -> tuple[str, ...]:
    if column == "id":
        return ("uuid",)
    if column == _VERSION:
        return ("int8", "int4", "int2", "numeric")
    return _TYPES[STORED_KINDS[column]]


def oddities(table: Row) -> Iterator[tuple[str, str]]:
    """What works, and is worth a warning: what was found, and what to do about it."""
    if table["kind"] is None:
        return
    advice = "a crash of the server empties it, and no standby has it: ALTER TABLE … SET LOGGED"
    yield from ((f"{name} is unlogged, or a part of it", advice) for name in table["unlogged"])
    if table["has_row_security"]:
        yield "row security is enabled", "rows that a policy hides are answered as if they were not there"
    if table["is_filtered"]:
        yield f"{_RECORDS} is a view that may hide rows", "rows that it hides are answered as if they were not there"
    yield from _inbox_oddities(table)
    if table["has_children"]:
        yield (
            f"other tables inherit from {_RECORDS}",
            "their rows can have the id of another record, which is then answered with them: use PARTITION BY",
        )
    yield from _of_partitions(table)
    types = dict(zip(table["names"], table["declared"], strict=True))
    yield from _rounded(types)
    names = dict(zip(table["names"], table["types"], strict=True))  # declared may be quoted (quote_all_identifiers)
    for column in FIELDS:
        if STORED_KINDS[column] is Kind.UUID and names.get(column, "uuid") != "uuid":
            yield f"column {column} is {types.get(column)}", "a value that is not a uuid makes its record unreadable"
        elif names.get(column) == "bpchar":
            yield f"column {column} is {types.get(column)}", "blanks at the end of a value are not kept: use text"
    for schema in table["open_schemas"]:
        yield (
            f"everybody may create objects in the schema {schema}, which is in the search path",
            f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC",
        )


def _of_partitions(table: Row) -> Iterator[tuple[str, str]]:
    """What is different in a partition, or missing, so that rows wait."""
    if table["lacks_default_partition"]:
        yield (
            f"{_RECORDS} is partitioned by ranges or lists of ids, and has no DEFAULT partition",
            "a message whose id is in no partition waits, and many of them hold up all others: add one",
        )
    for name in table["disabled_in"]:
        yield (
            f"trigger {TRIGGER} does not fire on the partition {name}",
            f"its rows wait: ALTER TABLE {name} ENABLE TRIGGER {TRIGGER}",
        )
    for name in table["required_in"]:
        yield (
            f"column {name} is NOT NULL and has no default",
            "no message sets it, and the rows there wait: give it a default",
        )


def _rounded(types: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Instants with less than microseconds."""
    increases = "it does not increase with each write: use full precision"
    last = (
        "the last instant of 9999, sent for no date, becomes the year 10000, and is dead-lettered: use full precision"
    )
    for column, kind in STORED_KINDS.items():
        if kind is Kind.INSTANT and "(" in types.get(column, ""):
            yield f"{column} is {types[column]}", last if column in FIELDS else increases


def _inbox_oddities(table: Row) -> Iterator[tuple[str, str]]:
    if table["inbox_has_row_security"]:
        yield f"row security is enabled on {_INBOX}", "its policies must permit the workers to see and insert each key"
    if table["inbox_kind"] in _TABLES and not table["inbox_triggers"] and table["inbox_has_instants"] is False:
        yield (
            f"column processed_at of {_INBOX} has no default",
            f"keys without it are never deleted: ALTER TABLE {_INBOX} ALTER processed_at SET DEFAULT now()",
        )
