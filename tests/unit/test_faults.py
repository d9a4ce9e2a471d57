"""What an error means, and how an outage is labelled."""

import asyncpg
import pytest

from task_activity_log.postgresql.faults import Fault, Ours, fault, judge, outage
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Failed, NotMigrated, Refused, TimedOut, Unavailable


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("22021", Fault.ROW),
        ("23505", Fault.ROW),
        ("44000", Fault.ROW),
        ("54000", Fault.ROW),
        ("P0001", Fault.ROW),
        ("P0002", Fault.LASTING),
        ("42501", Fault.LASTING),
        ("21000", Fault.LASTING),
        ("39P01", Fault.LASTING),
        ("", Fault.LASTING),
        ("40001", Fault.CONFLICT),
        ("40P01", Fault.CONFLICT),
        ("42P01", Fault.SCHEMA),
        ("42703", Fault.SCHEMA),
        ("26000", Fault.STATEMENT),
        ("42P05", Fault.STATEMENT),
        ("0A000", Fault.SCHEMA),
        ("0AZZZ", Fault.SCHEMA),
        ("08P01", Fault.DATABASE),
        ("25006", Fault.PASSING),
        ("28P01", Fault.DATABASE),
        ("3D000", Fault.DATABASE),
        ("53100", Fault.DATABASE),
        ("53200", Fault.PASSING),
        ("53300", Fault.DATABASE),
        ("55006", Fault.PASSING),
        ("55P03", Fault.TIMEOUT),
        ("57014", Fault.TIMEOUT),
        ("57P01", Fault.PASSING),
        ("58030", Fault.LASTING),
        ("XX000", Fault.LASTING),
    ],
)
def test_the_sqlstate_determines_the_fault(sqlstate: str, expected: Fault) -> None:
    """Usually its class does, for some the whole SQLSTATE; an unknown one may be a row's."""
    assert fault(sqlstate) is expected


@pytest.mark.parametrize(
    ("sqlstate", "kind", "label", "lasting"),
    [
        ("57014", TimedOut, "timeout", False),
        ("55P03", TimedOut, "timeout", False),
        ("53100", Unavailable, "disk full (53100)", None),
        ("53300", Unavailable, "too many connections (53300)", None),
        ("28P01", Unavailable, "access refused (28P01)", None),
        ("25006", Failed, "read-only (25006)", False),
        ("25P04", Failed, "transaction_timeout (25P04)", False),
        ("57P03", Failed, "shutting down or starting up (57P03)", False),
        ("57P05", Failed, "idle_session_timeout (57P05)", False),
        ("53400", Failed, "out of resources (53400)", False),
        ("40001", Failed, "conflict (40001)", False),
        ("26000", Failed, "prepared statement lost (26000)", False),
        ("42P01", NotMigrated, "not migrated yet (42P01)", True),
        ("42501", Failed, "not permitted (42501)", True),
        ("42804", Failed, "schema does not fit (42804)", True),
        ("0A000", Failed, "schema does not fit (0A000)", True),
        ("58030", Failed, "database error (58030)", True),
        ("XX001", Failed, "database error (XX001)", True),
        ("38000", Failed, "database error (38000)", True),
    ],
)
def test_an_outage_has_a_type_and_a_short_label(
    sqlstate: str, kind: type[Unavailable], label: str, lasting: bool | None
) -> None:
    """The label has words for the class, or for some for the single error. All timeouts have the same label.
    The reason also has the database and its server.

    A failure that one row may cause says whether it lasts; an outage that no row causes does not.
    """
    found = outage(sqlstate, "database app at db1:5432")
    assert (type(found), found.label, found.reason) == (kind, label, f"{label}: database app at db1:5432")
    assert getattr(found, "lasting", None) is lasting


def test_the_detail_of_an_outage_is_not_part_of_its_label() -> None:
    """The label is for metrics, so it must not vary. The reason is for people."""
    found = Unavailable("replies returned", "no queue takes what x is sent")
    assert (found.label, found.reason) == ("replies returned", "replies returned: no queue takes what x is sent")
    assert str(found) == found.reason


@pytest.mark.parametrize("sqlstate", ["22P02", "P0001"])
async def test_a_query_that_belongs_to_no_message_is_refused_by_its_sqlstate(
    sqlstate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not said to lack a privilege: that has an SQLSTATE of its own."""
    store = Store("postgresql://127.0.0.1:1/nobody")

    async def refused(*_: object, **__: object) -> list[object]:
        raise Refused(sqlstate)

    monkeypatch.setattr(store._maintenance, "ask", refused)
    with pytest.raises(Unavailable) as outage:
        await store.schema_version()
    assert outage.value.reason == f"the query is refused ({sqlstate})"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"C": "08P01", "M": "query_wait_timeout"}, "connection lost (08P01): query_wait_timeout, database app"),
        (
            {"C": "57P01", "M": "terminating connection", "R": "ProcessInterrupts"},
            "connection lost (57P01): terminating connection, database app",
        ),
        ({"C": "08006", "M": "the subject", "R": "exec_stmt_raise"}, "connection lost (08006): database app"),
        ({"C": "23505", "M": "the subject"}, "connection lost (23505): database app"),
    ],
)
def test_what_was_said_before_the_connection_was_closed_is_shown(said: dict[str, str], expected: str) -> None:
    """Not if it may quote a row. A pooler names no function of the server."""
    error = asyncpg.ConnectionDoesNotExistError(f"connection was closed in the middle of operation: {said['M']}")
    error.__cause__ = asyncpg.PostgresError.new({"S": "FATAL", **said})
    kind, failure = judge(error, "database app")
    assert isinstance(failure, Failed)
    assert (kind, failure.reason, failure.lost_connection) == (Fault.DATABASE, expected, True)
    outer = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    outer.__cause__ = error
    assert judge(outer, "database app")[1].reason == expected  # type: ignore[union-attr]


NO_MESSAGE = "a value that no message sets is not unique: constraint audit_pkey, d"
OTHERS = "a table of others has a value already: constraint audit_pkey of public.audit, d"
OURS = ["public.task_activity_log", "public.task_activity_log_inbox"]
UNIQUE = {"C": "23505", "R": "_bt_check_unique", "n": "audit_pkey", "D": "Key (id)=(5) already exists."}


@pytest.mark.parametrize(
    ("said", "tables", "kind", "reason"),
    [
        ({**UNIQUE, "t": "audit"}, OURS, Fault.LASTING, OTHERS),
        ({**UNIQUE, "t": "task_activity_log_journal"}, OURS, Fault.LASTING, NO_MESSAGE),
        ({**UNIQUE, "t": "audit"}, None, Fault.ROW, "23505"),  # perhaps the table behind a view
        ({**UNIQUE, "t": "task_activity_log"}, OURS, Fault.ROW, "23505"),
        (
            {**UNIQUE, "s": "audit", "t": "task_activity_log"}, OURS, Fault.LASTING,
            "a table of others has a value already: constraint audit_pkey of audit.task_activity_log, d",
        ),
        (
            {**UNIQUE, "t": "audit", "C": "23P01", "R": "check_exclusion_or_unique_constraint"}, OURS, Fault.LASTING, OTHERS,
        ),
        (
            {"C": "42P01", "M": 'relation "audit.task_activity_log" does not exist'}, OURS, Fault.SCHEMA,
            "a table of others is missing (42P01): d",
        ),
        ({**UNIQUE, "t": "task_activity_log", "D": "Key (n)=(5)"}, None, Fault.LASTING, NO_MESSAGE),
        (
            {"C": "23502", "c": "user_id", "t": "audit"}, OURS, Fault.LASTING,
            "a column that is not ours is NOT NULL: column user_id of public.audit, d",
        ),
        ({"C": "23502", "c": "user_id", "t": "task_activity_log"}, OURS, Fault.ROW, "23502"),
        (
            {"C": "23502", "c": "modified_dateutc", "t": "task_activity_log"}, OURS, Fault.LASTING,
            "modified_dateutc is not set: column modified_dateutc of task_activity_log, d",
        ),
        ({"C": "23502", "c": "a value", "R": "exec_stmt_raise"}, OURS, Fault.ROW, "23502"),
        ({"C": "42P01", "M": 'relation "audit" does not exist'}, OURS, Fault.SCHEMA, "a table of others is missing (42P01): d"),
        ({"C": "42P01", "M": 'relation "task_activity_log" does not exist'}, OURS, Fault.SCHEMA, "not migrated yet (42P01): d"),
    ],
)  # fmt: skip
def test_what_another_table_refuses_was_written_by_a_trigger(
    said: dict[str, str], tables: list[str] | None, kind: Fault, reason: str
) -> None:
    """It often has columns with the names of fields, such as `id`. No message sets them."""
    found, failure = judge(asyncpg.PostgresError.new({"S": "ERROR", "M": "", "s": "public", **said}), "d", Ours(tables))
    assert (found, failure.reason if isinstance(failure, Failed) else failure.args[0]) == (kind, reason)
    if said.get("R") == "exec_stmt_raise":
        assert isinstance(failure, Refused)
        assert failure.rule.name == ""
