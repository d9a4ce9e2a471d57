"""What may be shown of the server's messages, which can quote rows."""

import re
from collections.abc import Collection, Iterator
from functools import cache
from importlib import resources

import asyncpg

from task_activity_log.record import FIELDS

OF_MESSAGES = (*FIELDS, "source_version")
"""The columns of a record that messages set."""
NOT_PERMITTED = "42501"
RAISE = "exec_stmt_raise"
"""The function of the server that executes RAISE. Such an error has the names that a trigger has put into it."""

_PUBLISHED = "CheckCmdReplicaIdentity"
_NAMING = (
    "aclcheck_error",  # permission denied for table base
    "check_enable_rls",  # row_security is off, and a policy applies to the table
    _PUBLISHED,  # it is published, and has no replica identity
    "ExecWithCheckOptions",  # row security
    "RewriteQuery",  # rules
    "error_view_not_updatable",
    "infer_arbiter_indexes",  # no unique index for ON CONFLICT
    "ProcessInterrupts",  # terminating connection due to administrator command
    "nextval_internal",  # reached maximum value of sequence
    "quickdie",  # the same, because another process of the server has crashed
    "rewriteTargetView",  # views, up to PostgreSQL 16
)
"""Functions of the server whose errors have names of tables, views, policies and sequences that exist, and no values. Other
texts are not shown, because they may quote a row."""
_OF_A_POOLER = ("08", "57")
"""The classes of what a pooler says of its own, such as `query_wait_timeout`: it names no function, and reads no rows."""
_LINE = 200
"""How many characters of a server's message are shown."""


def one_line(said: str) -> str:
    """A server's message as one line that cannot control a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in said).split())[:_LINE]


def shown(error: asyncpg.PostgresError | asyncpg.PostgresWarning) -> Iterator[str]:
    """What is known of an error: names, and no values.

    The text may be a trigger's own and quote the row, so it is shown only if the server cannot have put a value into it. For
    a missing privilege it is otherwise the names in it that are in our statements, too.
    """
    of_a_pooler = error.server_source_function is None and (error.sqlstate or "")[:2] in _OF_A_POOLER
    if of_a_pooler or error.server_source_function in _NAMING:
        yield one_line(str(error.args[0]))
        if error.server_source_function == _PUBLISHED and error.detail:
            yield one_line(error.detail)  # "Column list used by the publication does not cover the replica identity."
    elif error.sqlstate == NOT_PERMITTED:
        yield from dict.fromkeys(word for word in re.findall(r"\w+", str(error)) if word in _used())


def qualified(error: asyncpg.PostgresError | asyncpg.PostgresWarning) -> str:
    """The table that an error names, with its schema."""
    return one_line(f"{error.schema_name}.{error.table_name}")


def column(error: asyncpg.PostgresError | asyncpg.PostgresWarning, *, with_schema: bool = False) -> str:
    """The column that an error names, with its table; empty if it names none, or a trigger has chosen the names."""
    if error.server_source_function == RAISE or not error.column_name:
        return ""
    return one_line(f"column {error.column_name} of {qualified(error) if with_schema else error.table_name}")


def table(error: asyncpg.PostgresError | asyncpg.PostgresWarning) -> Iterator[str]:
    """The table that an error of the server names, unless a trigger has chosen the name."""
    if error.server_source_function != RAISE and error.table_name:
        yield one_line(f"table {error.table_name}")


def is_unique(error: asyncpg.PostgresError | asyncpg.PostgresWarning) -> bool:
    """Whether a unique index or an exclusion constraint refuses a row."""
    return error.server_source_function in ("_bt_check_unique", "check_exclusion_or_unique_constraint")


def may_have_fields(error: asyncpg.PostgresError | asyncpg.PostgresWarning, computed: Collection[str] = ()) -> bool:
    """Whether a unique index that refuses a row may have a column with the name of a field, or one that is computed.

    True if it is not known.

    The detail has the columns, and then the values: `Key (n)=(5) already exists.` It is not there without SELECT on them.
    """
    columns, _, _ = (error.detail or "").partition(")=(")
    return not columns or not {*OF_MESSAGES, *computed}.isdisjoint(re.findall(r"\w+", columns))


def names_ours(error: asyncpg.PostgresError | asyncpg.PostgresWarning) -> bool:
    """Whether an error's text has the name of one of our tables, in whatever language."""
    return any(word in _used() for word in re.findall(r"(?<![.\w])task_activity_log\w*", str(error)))


def closing(error: Exception) -> asyncpg.PostgresError | None:
    """What the server or a pooler said before it closed the connection during a statement; None if it said nothing."""
    said: BaseException | None = error
    while isinstance(said, asyncpg.ConnectionDoesNotExistError):  # the driver's own, perhaps about another of its own
        said = said.__cause__
    return said if said is not error and isinstance(said, asyncpg.PostgresError) else None


@cache
def _used() -> frozenset[str]:
    """The functions and tables in our statements."""
    folder = resources.files("task_activity_log.postgresql").joinpath("sql")
    texts = [file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith(".sql")]
    found = re.findall(r"(?<=pg_catalog\.)[a-z_0-9]+(?=\()|task_activity_log\w*", "".join(texts))
    return frozenset(found)
