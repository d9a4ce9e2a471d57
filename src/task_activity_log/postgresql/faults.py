"""What the errors of a PostgreSQL connection mean: whose fault each is, and what to raise for it."""

import secrets
from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import Any, NamedTuple, TypeAlias

import asyncpg

from task_activity_log.postgresql.messages import (
    OF_MESSAGES,
    RAISE,
    closing,
    column,
    is_unique,
    may_have_fields,
    names_ours,
    qualified,
    shown,
    table,
)
from task_activity_log.problem import (
    CLIENT,
    SKIPPED,
    UNKEPT,
    UNSET,
    Failed,
    NotMigrated,
    Refused,
    TimedOut,
    Unavailable,
)
from task_activity_log.record import STORED_FIELDS

_SECRET = secrets.token_hex(8)
"""The server quotes texts of messages in the same errors: nobody who publishes may know the words."""
SKIPPED_ROW = f"task_activity_log: a trigger or a rule skipped the row ({_SECRET})"
UNKEPT_KEY = f"task_activity_log: the inbox has not kept the request key ({_SECRET})"
UNSET_INSTANT = f"task_activity_log: no trigger has set modified_dateutc ({_SECRET})"
"""What write.sql has PostgreSQL quote in an error (`invalid input syntax for type boolean: "…"`), in whatever language."""


class Fault(Enum):
    """What caused an error, and so how it is handled."""

    ROW = auto()
    """The row: halve the wave until the row is alone, then reject it."""
    LASTING = auto()
    """The row or the database. A row for which it is raised, while others pass, has little hope to pass later."""
    PASSING = auto()
    """The row or the database. A row for which it is raised, while others pass, may pass later."""
    TIMEOUT = auto()
    """The row or the database, as `PASSING`: the server gave up waiting. The connection can still be used."""
    CONFLICT = auto()
    """Another transaction: try again at once, up to three times, then as `PASSING`."""
    SCHEMA = auto()
    """The statement and the schema do not match: try once more on a new connection, which has no cached plans, then as
    `LASTING`. On a connection that is new for this reason it is not tried again: a trigger raises such errors for one row."""
    STATEMENT = auto()
    """A prepared statement is gone: try once more on a new connection, then as `PASSING`."""
    SKIPPED = auto()
    """The row was not written, although no error was raised: try once more, because another transaction may have stored a
    higher version meanwhile, then as `ROW`; or the key was not remembered, which is then `LASTING`."""
    DATABASE = auto()
    """The database or its connection. A row for which it is raised, while others pass, may be the cause too: a trigger asks
    another server, or the row crashes this one. So it is handled as `PASSING`, and outside a statement it is an outage."""


_FAULTS = {
    "08": Fault.DATABASE,  # connection
    "0A": Fault.SCHEMA,  # not supported; the result of a cached plan has changed
    "22": Fault.ROW,  # data
    "2200H": Fault.LASTING,  # a sequence has no more numbers, for an identity column of others
    "23": Fault.ROW,  # constraint
    "25": Fault.PASSING,  # read-only, or a limit for transactions
    "26": Fault.STATEMENT,  # a prepared statement no longer exists
    "28": Fault.DATABASE,  # authentication
    "3D": Fault.DATABASE,  # no such database
    "40": Fault.CONFLICT,  # deadlock, serialization
    "42": Fault.SCHEMA,  # no such table or column: ours, or one that a trigger names
    "42P05": Fault.STATEMENT,  # its name is in use: a pooler has assigned another connection
    "42501": Fault.LASTING,  # no privilege: for the table, or row security that refuses one row
    "44": Fault.ROW,  # WITH CHECK OPTION
    "53": Fault.PASSING,  # memory
    "53100": Fault.DATABASE,  # disk full. A probe that writes nothing passes
    "53300": Fault.DATABASE,  # connections
    "54": Fault.ROW,  # program limits
    "55": Fault.PASSING,  # not in the required state
    "55P03": Fault.TIMEOUT,  # lock_timeout
    "57": Fault.PASSING,  # operator intervention
    "57014": Fault.TIMEOUT,  # statement_timeout, or an administrator's pg_cancel_backend
    "58": Fault.LASTING,  # system
    "P0001": Fault.ROW,  # RAISE EXCEPTION in a trigger
    "XX": Fault.LASTING,  # internal, corrupt data
}
"""By SQLSTATE or by its first two characters, which are its class. All others are `LASTING`."""

_WORDS = {
    "08": "connection lost",
    "25006": "read-only",
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
    "26": "prepared statement lost",
    "28": "access refused",
    "3D": "no such database",
    "40": "conflict",
    "42501": "not permitted",
    "42P01": "not migrated yet",
    "42P05": "prepared statement lost",
    "53": "out of resources",
    "53100": "disk full",
    "53300": "too many connections",
    "55": "not in a fit state",
    "57": "shutting down or starting up",
    "57P04": "the database was dropped",
    "57P05": "idle_session_timeout",
}
_NOBODYS = {
    "ExecFindPartition": "no partition for the row",
    "GetNewMultiXactId": "no more transaction ids",
    "GetNewTransactionId": "no more transaction ids",
    "PreCommit_Notify": "the queue of notifications is full",
}
"""Functions of the server whose errors have an SQLSTATE of `Fault.ROW`, and that no value in a row can cause, unless a trigger
writes it into a partitioned table of others. Rows of the worker's own do not show it: they may belong to another partition, and
they are not committed."""
_NO_SUCH_TABLE = "42P01"
CONNECTION_LOST = "08006"
_LOCK_TIMEOUT = "55P03"
_QUOTED = "22P02"  # the SQLSTATE of the errors in which `SKIPPED_ROW`, `UNKEPT_KEY` and `UNSET_INSTANT` are quoted
_NOT_NULL, _CHECK = "23502", "23514"
_NOT_UTF8 = "22021"
OF_TABLES = (_NOT_NULL, "23505", "23P01")
"""What refuses rows whose fault it is only if the columns that are concerned are fields of a message."""
_INBOX = " of task_activity_log_inbox"
_NO_FIELD = "without a field"
"""The name of the rule of every unique constraint that has no column that messages set."""
_WITHOUT_FIELDS = ("task_activity_log_inbox", "task_activity_log_journal")
"""Our tables whose columns are no fields of a message."""


def fault(sqlstate: str) -> Fault:
    """What caused an error with this SQLSTATE."""
    return _FAULTS.get(sqlstate) or _FAULTS.get(sqlstate[:2], Fault.LASTING)


def outage(sqlstate: str, where: str = "", *, ours: bool = True) -> Unavailable:
    """What to raise for an error that is not certainly a row's. Its label is short, such as `disk full (53100)`.

    For an error of `Fault.DATABASE`, it is what to raise if no statement was under way.

    `where` is the database and its server; `ours`: whether the error names a table of ours.
    """
    if sqlstate == _NO_SUCH_TABLE and not ours:  # a trigger needs it
        return Failed(f"a table of others is missing ({sqlstate})", sqlstate, where, lasting=True)
    match fault(sqlstate):
        case Fault.TIMEOUT:
            return TimedOut(where, locked=sqlstate == _LOCK_TIMEOUT)
        case Fault.DATABASE:
            return Unavailable(label(sqlstate), where)
        case kind:
            failed = NotMigrated if sqlstate == _NO_SUCH_TABLE else Failed
            return failed(label(sqlstate), sqlstate, where, lasting=kind in (Fault.LASTING, Fault.SCHEMA))


def unanswered(refused: Refused, where: str) -> Unavailable:
    """What to raise where a query is refused that belongs to no message."""
    reason = f"the query is refused ({refused.sqlstate})"
    if refused.sqlstate == _NOT_UTF8:  # a database in SQL_ASCII takes any bytes, also in the name of a constraint
        reason += ": a name or a value in the database is not UTF-8"
    return Unavailable(reason, where)


def label(sqlstate: str) -> str:
    """A few words for an SQLSTATE, such as `disk full (53100)`."""
    fallback = "schema does not fit" if fault(sqlstate) is Fault.SCHEMA else "database error"
    return f"{_WORDS.get(sqlstate) or _WORDS.get(sqlstate[:2], fallback)} ({sqlstate})"


_ServerError: TypeAlias = asyncpg.PostgresError | asyncpg.PostgresWarning
"""An error of the server. The driver calls it a warning if its SQLSTATE begins with 01 or 02, which a trigger can raise."""

DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.PostgresWarning,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    ValueError,
    OverflowError,
    LookupError,
)
"""What the driver raises. `LookupError`: a trigger has chosen an encoding for the session that Python does not know."""


def is_of_the_server(error: Exception) -> bool:
    """Whether the server has raised this. The transaction is then rolled back, with what was set in it."""
    return isinstance(error, _ServerError)


class Ours(NamedTuple):
    """What is known of the tables that have the fields."""

    tables: Collection[str] | None = None
    """Their schemas and names. What another one refuses was written by a trigger. None: they are not known."""
    without_fields: Collection[str] = ()
    """The names of their unique constraints that have no column that messages set."""
    domains: Collection[str] = ()
    """The names of NOT NULL domains of columns that messages do not set."""
    computed: Collection[str] = ()
    """The columns that are generated from others: perhaps from fields."""
    of_ids: Collection[str] = ()
    """The names of constraints by which an id refers to another table."""
    has_triggers: bool = False
    """Whether triggers of others may set columns, perhaps from fields. Those of the table behind a view are not known."""

    def may_compute(self, column: str) -> bool:
        """Whether the value of a column may come from the fields of a message."""
        return column in self.computed or self.has_triggers


def ours_of(found: Mapping[str, Any]) -> Ours:
    """What sql/table.sql has found."""
    is_view = "v" in (found["kind"], found["inbox_kind"])
    return Ours(
        frozenset(found["tables"]),
        frozenset(found["without_fields"]),
        frozenset(found["domains_without_fields"]),
        frozenset(found["computed"]),
        frozenset(found["of_ids"]),
        bool(is_view or found["has_other_triggers"] or found["inbox_triggers"]),
    )


def judge(error: Exception, where: str, ours: Ours | None = None) -> tuple[Fault, Refused | Unavailable]:
    """The cause of a driver's error, and what to raise for it. The error's text is dropped, because it quotes rows."""
    if (said := closing(error)) is not None:
        known = ", ".join([*shown(said), where])
        return Fault.DATABASE, Failed(f"connection lost ({said.sqlstate})", CONNECTION_LOST, known)
    if isinstance(error, _ServerError):
        return _judge_server(error, where, ours or Ours())
    if isinstance(error, ValueError | OverflowError):
        return Fault.ROW, Refused(CLIENT)
    if isinstance(error, TimeoutError):
        return Fault.DATABASE, TimedOut(where)  # the server may still execute it, so the connection cannot be used
    return Fault.DATABASE, Failed("connection lost", CONNECTION_LOST, where)


def _judge_server(error: _ServerError, where: str, ours: Ours) -> tuple[Fault, Refused | Unavailable]:
    sqlstate = error.sqlstate or "XX000"
    # The names of a RAISE may be others for each row, and they would seem to be refused by different rules.
    name = "" if error.server_source_function == RAISE else error.constraint_name or error.column_name or ""
    has_fields = ours.tables is None or not error.table_name or qualified(error) in ours.tables
    if sqlstate == _QUOTED and (own := _judge_ours(str(error), where, ours)) is not None:
        return own
    if (
        sqlstate == _NOT_NULL
        and (failed := _judge_not_null(error, name, where, ours, has_fields=has_fields)) is not None
    ):
        return Fault.LASTING, failed
    # Such as a sequence that was set back, or a table of others.
    may_be_a_message = has_fields and may_have_fields(error, ours.computed)
    if name in ours.without_fields or (is_unique(error) and not may_be_a_message):
        what, constraint = "a value that no message sets is not unique", f"constraint {name}"
        if not has_fields and error.table_name not in _WITHOUT_FIELDS:  # a trigger may write a field there
            what, constraint = "a table of others has a value already", f"{constraint} of {qualified(error)}"
        # Each partition may have a constraint of its own: it is one reason.
        rule = _NO_FIELD if name in ours.without_fields else name
        return Fault.LASTING, Failed(what, sqlstate, f"{constraint}, {where}", name=rule, lasting=True)
    if (why := _NOBODYS.get(error.server_source_function or "")) is not None and (has_fields or sqlstate != _CHECK):
        where = ", ".join([*table(error), where])  # it may be the inbox, or one in which a trigger writes
        return Fault.LASTING, Failed(f"{why} ({sqlstate})", sqlstate, where)  # it passes; the connection can be used
    where = ", ".join([*shown(error), where])
    kind = fault(sqlstate)
    if kind is Fault.DATABASE:
        return kind, Failed(label(sqlstate), sqlstate, where)
    return kind, Refused(sqlstate, name) if kind is Fault.ROW else outage(sqlstate, where, ours=names_ours(error))


def _judge_not_null(error: _ServerError, name: str, where: str, ours: Ours, *, has_fields: bool) -> Failed | None:
    """For a value that is missing and that no message can set; None if one can."""
    found, what = column(error, with_schema=not has_fields), "a column that is not ours is NOT NULL"
    if not name:  # it is a domain, perhaps that of a field
        name = error.data_type_name or ""
        if name not in ours.domains:
            return None
        found = f"domain {name}"
    elif has_fields and name in OF_MESSAGES:
        return None
    elif found.endswith(_INBOX):
        what = "a column of the inbox is NOT NULL"
    elif has_fields and name in STORED_FIELDS:
        what = f"{name} is not set"
    where = f"{found}, {where}" if found else where
    # If others pass, it may be one partition that wants it; unless the value comes from the message's fields.
    return Failed(what, _NOT_NULL, where, name=name, lasting=True, nobodys=has_fields and not ours.may_compute(name))


def _judge_ours(text: str, where: str, ours: Ours) -> tuple[Fault, Refused | Unavailable] | None:
    """As `judge` for the errors that write.sql raises; None for others with their SQLSTATE."""
    if SKIPPED_ROW in text:
        return Fault.SKIPPED, Refused(SKIPPED)
    if UNKEPT_KEY in text:
        return Fault.SKIPPED, Failed("the inbox does not keep the key", UNKEPT, where, lasting=True)
    if UNSET_INSTANT in text:
        nobodys = not ours.may_compute("modified_dateutc")
        return Fault.LASTING, Failed("modified_dateutc is not set", UNSET, where, lasting=True, nobodys=nobodys)
    return None


def why(failure: Refused | Unavailable | None) -> str:
    """Why a rehearsal failed, for people; empty if it passed, or took too long: a slow server proves nothing."""
    if failure is None or isinstance(failure, TimedOut):
        return ""
    return failure.reason if isinstance(failure, Unavailable) else f"refused ({failure.sqlstate})"
