"""PostgreSQL, as `check` sees it: server, schema, privileges."""

import shlex
from collections.abc import Iterator, Sequence

from task_activity_log.cli.check.finding import Finding
from task_activity_log.cli.terminal import counted
from task_activity_log.libpq import Target, is_certificate_checked
from task_activity_log.pipeline.refusals import OF_COPIES
from task_activity_log.postgresql import migrations, statements, table
from task_activity_log.postgresql.messages import NOT_PERMITTED
from task_activity_log.postgresql.session import Row
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Failed, Rule, TimedOut, Unavailable
from task_activity_log.settings import Settings
from task_activity_log.wiring import store_of

_OLDEST = 140_000
_CONNECTIONS = 5
"""Those for writing, for maintenance, for parked rows, for a slow row, and for the journal."""
_PARTITIONS_TIMES = 8
"""So often are rows of our own tried where some partitions are known to refuse rows."""
_SET = "it may be set for the server, the database (ALTER DATABASE … SET) or the role (ALTER ROLE … SET): change "

_HIDDEN_REVISION = Finding(
    "warning",
    "schema",
    f"row security is enabled on {migrations.VERSION_TABLE}, and hides its row from the workers",
    "disable it there, or add a policy that lets the workers read the row",
)
"""If somebody enables it on each new table, by an event trigger, no table is as the migrations made it."""


async def findings(settings: Settings, *, as_worker: bool = True) -> list[Finding]:
    """Connect, ask, and judge what the database answers. `as_worker`: whether the role is that of the workers."""
    if not as_worker and settings.database_url is None:
        return [Finding("unknown", "database", "is not looked at", "set DATABASE_URL to check it")]
    target = settings.database_target
    database = store_of(settings)
    try:
        row, found = await database.describe(), await database.look()
        is_another = not as_worker and bool(row["missing"] or row["not_executable"])
        may_write = not row["missing"] and not row["read_only"] and not any(table.misfits(found))
        refusal = await _refusal(database, found) if may_write and found["kind"] and not row["not_executable"] else None
        tries = may_write and refusal is None and found["has_code_of_others"]
        keeps_versions = not tries or await database.keeps_versions()
        try:
            revision = await database.schema_version()
            schema = _judge_revision(revision, fits=not any(table.misfits(found)), has_journal=row["has_journal"])
            if revision is None and found["kind"] is not None:
                schema = _judge_lost_revision(has_journal=row["has_journal"])
            elif not revision and row["revision_may_be_hidden"]:
                schema = _HIDDEN_REVISION
        except Unavailable as error:
            schema = _judge_unread_revision(error, row, is_another=is_another)
        keeps_journal = settings.journal and row["has_journal"] and not row["journal_missing"]
        journal = await database.try_journal() if may_write and keeps_journal else ""
        may_mark = may_write and (refusal is None or refusal.verdict == "warning")
        mark = await database.try_mark() if may_mark and found["inbox_kind"] else ""
        trim = await database.try_trim() if may_mark and found["inbox_kind"] and not mark else ""
    except Unavailable as error:
        advice = "check that it is running, and what DATABASE_URL names; docs/connecting.md explains each cause"
        if isinstance(error, TimedOut):
            advice = f"the server is slow, or {_SET.removeprefix('it ')}statement_timeout"
        if isinstance(error, Failed) and error.sqlstate == NOT_PERMITTED:
            # Such as on pg_roles, which workers do not need.
            advice = "GRANT SELECT on it to the role, or run check as a role that has it"
            return [Finding("unknown", "database", f"is not looked at: {error.reason}", advice)]
        return [Finding("broken", "database", error.reason, advice)]
    finally:
        await database.close()
    server = (
        *_judge_server(row, target.addresses, is_another=is_another),
        *judge_link(target, encrypted=row["encrypted"], has_files=settings.database_tls is not None),
        *_judge_standbys(row),
    )
    if found["kind"] is None:  # the schema's finding says so, unless the table is in another schema
        return [*server, *(list(_judge_table(found)) or [schema])]
    return [
        *server,
        schema,
        *([_another(row)] if is_another else _judge_rights(row)),
        *([] if refusal is None else [refusal]),
        *_judge_inbox(mark, trim),
        *_judge_table(found, keeps_versions=keeps_versions),
        *(
            _judge_journal(row, journal, migrated=schema.verdict == "fine")
            if settings.journal and not is_another
            else ()
        ),
    ]


async def _refusal(database: Store, found: Row) -> Finding | None:
    """Why no row can be stored, although the tables look right. Rows of our own are written, and rolled back."""
    advice = "see docs/runbook.md, TaskActivityLogHolding"
    # Only some partitions refuse rows: those of our own may all be in one of them by chance.
    times = _PARTITIONS_TIMES if found["disabled_in"] or found["required_in"] else 1
    try:
        for _ in range(times):
            if not (refused := await database.try_own_rows(None)):
                return None
    except TimedOut as timeout:
        return Finding("warning", "table", timeout.reason, "the server is slow, or somebody has locked a table")
    except Unavailable as outage:
        return Finding("broken", "table", outage.reason, advice)
    if any(isinstance(each, TimedOut) for each in refused):  # a slow server proves nothing
        return None
    if _may_take_others(refused):
        reasons = ", ".join(dict.fromkeys(_in_words(each.rule, found) for each in refused))
        advice = "messages that satisfy your constraints and triggers are stored: send one to be sure"
        return Finding("warning", "table", f"rows of the worker's own are refused ({reasons})", advice)
    return Finding("broken", "table", refused[0].reason, advice)


def _may_take_others(refused: Sequence[Failed]) -> bool:
    """Whether rows of others may pass although all of the worker's own are refused.

    They have no values and arbitrary ones, which a rule about values may refuse. Only the values of a stored record are
    known to satisfy every rule: one of them is refused because it is a copy, or by what refuses every row.
    """
    *stored, bare, full = refused
    return bare.of_values and full.of_values and all(each.sqlstate in OF_COPIES for each in stored)


def _in_words(rule: Rule, found: Row) -> str:
    return f"{rule.sqlstate}, constraint {rule.name}" if rule.name in found["constraints"] else rule.sqlstate


def _judge_server(row: Row, where: str, *, is_another: bool) -> Iterator[Finding]:
    found = f"PostgreSQL {row['version'].split()[0]} at {where}"
    advice = "use PostgreSQL 14 or newer: older releases are not tested" if row["version_number"] < _OLDEST else ""
    yield Finding("warning" if advice else "fine", "database", found, advice)
    if row["read_only"]:
        advice = "name the primary in DATABASE_URL, or all hosts: the one that accepts writes is used"
        if not row["standby"]:
            advice = f"{_SET}default_transaction_read_only"
        yield Finding("broken", "database writes", "read-only", advice)
    if row["synchronous_commit"] == "off":
        found = "synchronous_commit is off: a crash of the server can lose messages that were answered"
        yield Finding("warning", "database writes", found, f"{_SET}synchronous_commit")
    for timeout in row["short_timeouts"] or ():
        name, _, limit = timeout.partition(" ")
        found = f"{name} is {limit}: a batch that takes longer is divided, and tried again in parts"
        yield Finding("warning", "database limits", found, f"{_SET}{name}")
    if (limit := row["connection_limit"]) is not None and limit < _CONNECTIONS and not is_another:
        found = f"the role may have {counted(limit, 'connection')}, and a worker needs up to {_CONNECTIONS}"
        advice = "raise CONNECTION LIMIT of the role or the database: refused and locked rows need more of them"
        yield Finding("warning", "database limits", found, advice)


def judge_link(target: Target, *, encrypted: bool, has_files: bool) -> Iterator[Finding]:
    """Whether others can read what is sent, or pretend to be the server. `has_files`: TLS has files of its own settings."""
    is_checked = has_files or is_certificate_checked(target)
    if target.is_local or (encrypted and is_checked and (has_files or target.tls)):
        return
    if not encrypted:
        found = "not encrypted"
    elif not is_checked:
        found = "encrypted, but the server's certificate is not checked"
    else:
        mode = target.options["sslmode"]
        found = f"encrypted, but with sslmode={mode} a connection without TLS is accepted as well"
    advice = "set WORKER_DATABASE_CA_FILE, or sslmode=verify-full in DATABASE_URL"
    yield Finding("warning", "database link", found, advice)


def _judge_standbys(row: Row) -> Iterator[Finding]:
    if row["standbys"] and not row["synchronous"]:
        found = f"{row['standbys']}, none of them synchronous"
        advice = "a failover can lose messages that were answered: set synchronous_standby_names (docs/guarantees.md)"
        yield Finding("warning", "standbys", found, advice)


def _judge_revision(revision: str | None, *, fits: bool, has_journal: bool) -> Finding:
    """The revision of the schema. What is missing in an older one may be something that this worker does not use."""
    if revision is None:
        return Finding("broken", "schema", "not migrated yet", "run task-activity-log migrate")
    if revision == migrations.head():
        return Finding("fine", "schema", f"revision {revision}")
    if revision in migrations.known():
        found = f"revision {revision}, and this release has {migrations.head()}"
        if has_journal:  # migrate would fail
            advice = (
                f"if the journal is that of revision {migrations.head()}, correct the row in task_activity_log_alembic_version;"
                " otherwise rename it, and run task-activity-log migrate"
            )
            return Finding("warning", "schema", found, advice)
        return Finding("warning" if fits else "broken", "schema", found, "run task-activity-log migrate")
    if not revision or "," in revision:
        found = f"table task_activity_log_alembic_version has {revision or 'no revision'}, and should have one row"
        return Finding("warning", "schema", found, "restore its row; migrate relies on it")
    found = f"revision {revision}: made by a newer release"
    return Finding("warning", "schema", found, "use that release here as well")


def _judge_unread_revision(error: Unavailable, row: Row, *, is_another: bool) -> Finding:
    if isinstance(error, TimedOut):
        advice = f"the server is slow, or somebody has locked {migrations.VERSION_TABLE}"
        return Finding("warning", "schema", error.reason, advice)
    if isinstance(error, Failed) and error.sqlstate == NOT_PERMITTED:
        if is_another:
            advice = f"to show it, GRANT SELECT ON {migrations.VERSION_TABLE} TO {row['role']}"
            return Finding("unknown", "schema", "its revision is not shown to this role", advice)
        return Finding("broken", "schema", error.reason, _grant(row))
    advice = f"restore table {migrations.VERSION_TABLE}, which task-activity-log migrate made: migrate relies on it"
    return Finding("warning", "schema", f"{migrations.VERSION_TABLE} cannot be read: {error.reason}", advice)


def _judge_lost_revision(*, has_journal: bool) -> Finding:
    """The tables are there, and the table that says which revision they have is not."""
    revision = migrations.head() if has_journal else "0001"
    found = f"table {migrations.VERSION_TABLE} is missing, and the others are there: migrate fails"
    advice = f"if task-activity-log migrate made them, run as its role: {migrations.restore(revision)}"
    return Finding("warning", "schema", found, advice)


def _grant(row: Row) -> str:
    """How to grant the worker's role what it needs."""
    return f"run as the role that migrated: psql -v role={shlex.quote(row['role'])} -f {statements.GRANTS}"


def _another(row: Row) -> Finding:
    """What is said about a role that need not be that of the workers, and has less than they need."""
    advice = "the console needs SELECT only; for the workers' role, run check with their DATABASE_URL"
    return Finding("unknown", f"role {row['role']}", "has fewer privileges than a worker needs", advice)


def _judge_rights(row: Row) -> Iterator[Finding]:
    role = f"role {row['role']}"
    if row["missing"]:
        yield Finding("broken", role, f"lacks {', '.join(row['missing'])}", _grant(row))
    if function := row["not_executable"]:
        advice = f"run as a superuser: GRANT EXECUTE ON FUNCTION {function} TO {row['role']}"
        yield Finding("broken", role, f"lacks EXECUTE on {function}", advice)
    if row["missing"] or function:
        return
    if row["superuser"] or row["more"]:
        found = "is a superuser" if row["superuser"] else f"may {' and '.join(row['more'])} records"
        yield Finding("warning", role, found, "run workers as a role of their own (docs/operations.md)")
    else:
        yield Finding("fine", role, "has the privileges that it needs, and no more")


def _judge_inbox(mark: str, trim: str) -> Iterator[Finding]:
    """Messages that may have crashed a worker wait until they can be marked. Nothing waits for old keys to be deleted."""
    if mark:
        found = f"keys cannot be inserted into task_activity_log_inbox and deleted again: {mark}"
        yield Finding("broken", "inbox", found, "look for triggers of others on it; redelivered messages wait")
    elif trim:
        advice = "look for rules and triggers of others on it, and for rights that were revoked: the table grows"
        yield Finding("warning", "inbox", f"old keys cannot be deleted from task_activity_log_inbox: {trim}", advice)


def _judge_journal(row: Row, why: str, *, migrated: bool) -> Iterator[Finding]:
    """With WORKER_JOURNAL. Messages are answered whatever is found here."""
    if row["journal_elsewhere"]:
        found = (
            f"is not kept: table task_activity_log_journal is in the schema {' and '.join(row['journal_elsewhere'])}"
        )
        advice = "set search_path for the role or the database, and GRANT USAGE ON SCHEMA … to the role"
        yield Finding("warning", "journal", found, advice)
    elif not row["has_journal"]:
        found = "is not kept: there is no table task_activity_log_journal"
        advice = "run task-activity-log migrate"
        if migrated:  # it was dropped since, and migrate finds nothing to do
            advice = "run the SQL that `task-activity-log migrate --sql --from 0001` prints, and grants.sql (docs/operations.md)"
        yield Finding("warning", "journal", found, advice)
    elif row["journal_missing"]:
        yield Finding("warning", "journal", f"is not kept: lacks {', '.join(row['journal_missing'])}", _grant(row))
    elif why:
        advice = "the server's log says more"
        if why.startswith(("refused", "schema does not fit")):
            advice = "look for triggers of others on it, and compare its columns with `task-activity-log migrate --sql`"
        if why.startswith("disk full"):
            advice = "free space on the server's disk, or in the tablespace of the journal and its indexes"
        if "not unique" in why:  # after a restore, or a move by logical replication
            advice = "let its numbers begin behind the highest: ALTER TABLE task_activity_log_journal ALTER number RESTART WITH …"
        yield Finding("warning", "journal", f"is not kept: {why}", advice)
    else:
        yield Finding("fine", "journal", "can be written: workers with WORKER_JOURNAL=true record how they answer")


def _judge_table(found: Row, *, keeps_versions: bool = True) -> Iterator[Finding]:
    """Whether rows can be stored as they should be, in a table that may be somebody's own."""
    certain = list(table.misfits(found))
    for misfit in certain:
        yield Finding("broken", "table", misfit, "see docs/runbook.md, TaskActivityLogHolding")
    if found["kind"] is None:
        return
    for misfit in table.named(found):
        if misfit not in certain and found["kind"] != "v":  # the triggers of a view's table are not known
            yield Finding("warning", "table", misfit, "another trigger must make up for it")
    if not keeps_versions:
        advice = "x-version protects no record from older changes: have the trigger leave source_version as it is"
        yield Finding("warning", "table", "a trigger changes source_version", advice)
    for oddity, advice in table.oddities(found):
        yield Finding("warning", "table", oddity, advice)
