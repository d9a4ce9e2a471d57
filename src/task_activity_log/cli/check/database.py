"""PostgreSQL, as `check` sees it: server, schema, privileges."""

from collections.abc import Iterator

from task_activity_log.cli.check.finding import Finding
from task_activity_log.postgresql import migrations, store
from task_activity_log.postgresql.session import Row
from task_activity_log.problem import Unavailable
from task_activity_log.settings import Settings
from task_activity_log.wiring import store_of

_OLDEST = 130_000


async def findings(settings: Settings) -> list[Finding]:
    """Connect, ask, and judge what the database answers."""
    target = settings.database_target
    database = store_of(settings)
    try:
        row = await database.describe()
        try:
            schema = _judge_revision(await database.schema_version())
        except Unavailable as error:
            advice = f"run as the role that migrated: psql … -f {store.GRANTS}"
            schema = Finding("broken", "schema", error.reason, advice)
    except Unavailable as error:
        advice = "check that it is running and that DATABASE_URL is correct"
        return [Finding("broken", "database", error.reason, advice)]
    finally:
        await database.close()
    return [
        *_judge_server(row, target.addresses, local=target.is_local),
        *_judge_standbys(row),
        schema,
        *_judge_rights(row),
    ]


def _judge_server(row: Row, where: str, *, local: bool) -> Iterator[Finding]:
    found = f"PostgreSQL {row['version'].split()[0]} at {where}"
    advice = "use PostgreSQL 13 or newer: older releases are not tested" if row["version_number"] < _OLDEST else ""
    yield Finding("warning" if advice else "fine", "database", found, advice)
    if row["read_only"]:
        advice = "name the primary in DATABASE_URL, or all hosts: the one that accepts writes is used"
        yield Finding("broken", "database writes", "read-only", advice)
    if not row["encrypted"] and not local:
        advice = "set WORKER_DATABASE_CA_FILE, or sslmode=verify-full in DATABASE_URL"
        yield Finding("warning", "database link", "not encrypted", advice)


def _judge_standbys(row: Row) -> Iterator[Finding]:
    if row["standbys"] and not row["synchronous"]:
        found = f"{row['standbys']}, none of them synchronous"
        advice = "a failover can lose messages that were answered: set synchronous_standby_names (docs/guarantees.md)"
        yield Finding("warning", "standbys", found, advice)


def _judge_revision(revision: str | None) -> Finding:
    if revision is None:
        return Finding("broken", "schema", "not migrated yet", "run task-activity-log migrate")
    if revision == migrations.head():
        return Finding("fine", "schema", f"revision {revision}")
    if revision in migrations.known():
        found = f"revision {revision}, but {migrations.head()} is needed"
        return Finding("broken", "schema", found, "run task-activity-log migrate")
    found = f"revision {revision}: made by a newer release"
    return Finding("warning", "schema", found, "use that release here as well")


def _judge_rights(row: Row) -> Iterator[Finding]:
    role = f"role {row['role']}"
    if row["missing"]:
        advice = f"run as the role that migrated: psql -v role={row['role']} -f {store.GRANTS}"
        yield Finding("broken", role, f"lacks {', '.join(row['missing'])}", advice)
    elif row["superuser"] or row["more"]:
        found = "is a superuser" if row["superuser"] else f"may {' and '.join(row['more'])} records"
        yield Finding("warning", role, found, "run workers as a role of their own (docs/operations.md)")
    elif row["more"] is None and not row["stamped"]:
        return  # there are no tables: the schema's finding says so
    else:
        yield Finding("fine", role, "has the privileges that it needs, and no more")
    if row["missing"] is None and not row["stamped"] and row["more"] is not None:
        advice = "ALTER TABLE task_activity_log ENABLE TRIGGER task_activity_log_modified"
        yield Finding("broken", "trigger", "modified_dateutc is not set", advice)
