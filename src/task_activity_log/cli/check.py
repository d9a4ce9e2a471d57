"""`task-activity-log check`: is everything there that a worker needs, and is it safe? It changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from task_activity_log.cli import check_broker
from task_activity_log.cli.management import Management
from task_activity_log.postgresql import migrations, store
from task_activity_log.postgresql.session import Row
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.inspection import inspect_broker
from task_activity_log.settings import Settings
from task_activity_log.telemetry.logs import Redaction, address, is_local
from task_activity_log.wiring import link_of, secrets_of, store_of, topology_of

Verdict = Literal["fine", "unknown", "warning", "broken"]
_OLDEST_POSTGRESQL = 130_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    verdict: Verdict
    what: str
    found: str
    advice: str = ""
    """What to do; empty where there is nothing to be done."""


def check(settings: Settings, *, strict: bool) -> int:
    """Look at everything, print the table, and return the exit code: 1 if something is broken, else 0.

    With `strict`, 1 for a warning, too.
    """
    found = asyncio.run(findings(settings))
    redaction = Redaction(secrets_of(settings))
    for line in table(found):
        print(redaction.text(line))
    bad: set[Verdict] = {"broken", "warning"} if strict else {"broken"}
    return int(any(finding.verdict in bad for finding in found))


def table(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings in columns, each with its advice below it, and a line that sums them up."""
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        yield f"{finding.verdict:<8} {finding.what:<{width}}  {finding.found}"
        if finding.advice:
            yield f"{'':<8} {'':<{width}}  → {finding.advice}"
    counted = (
        (sum(finding.verdict == kind for finding in findings), kind) for kind in ("broken", "warning", "unknown")
    )
    yield ", ".join(f"{count} {kind}" for count, kind in counted if count) or "all fine"


async def findings(settings: Settings) -> list[Finding]:
    """What is found, the broker first."""
    database, broker = await asyncio.gather(_database(settings), _broker(settings))
    return [*broker, *database]


async def _broker(settings: Settings) -> list[Finding]:
    where = address(settings.amqp_url.get_secret_value())
    try:
        sight = await inspect_broker(link_of(settings), topology_of(settings))
    except Unavailable as error:
        advice = "see that it runs, and AMQP_URL"
        if settings.amqp_url.get_secret_value().startswith("amqps:"):
            advice += "; one that wants a certificate resets connections that have none it trusts"
        return [Finding("broken", "broker", f"{where}: {error.reason}", advice)]
    findings = [Finding(*row) for row in check_broker.judge_sight(sight, settings, where)]
    if settings.management_url is None:
        advice = "set MANAGEMENT_URL, as http://host:15672 with user and password, to have them checked"
        return [*findings, Finding("unknown", "limits and permissions", "AMQP does not show them", advice)]
    management = Management(settings.management_url.get_secret_value(), settings.amqp_tls)
    rows = await asyncio.to_thread(lambda: list(check_broker.judge_management(management, sight, settings)))
    return findings + [Finding(*row) for row in rows]


async def _database(settings: Settings) -> list[Finding]:
    where = address(settings.database_url.get_secret_value())
    looking = store_of(settings)
    try:
        row = await looking.look()
        try:
            schema = _judge_revision(await looking.schema_version())
        except Unavailable as error:
            schema = Finding("broken", "schema", error.reason, f"as the role that migrated: psql … -f {store.GRANTS}")
    except Unavailable as error:
        return [Finding("broken", "database", f"{where}: {error.reason}", "see that it runs, and DATABASE_URL")]
    finally:
        await looking.close()
    local = is_local(settings.database_url.get_secret_value())
    return [*_judge_server(row, where, local=local), schema, *_judge_rights(row)]


def _judge_server(row: Row, where: str, *, local: bool) -> Iterator[Finding]:
    found = f"PostgreSQL {row['version'].split()[0]} at {where}"
    if row["version_number"] < _OLDEST_POSTGRESQL:
        yield Finding("warning", "database", found, "use PostgreSQL 13 or newer: nothing older is tested")
    else:
        yield Finding("fine", "database", found)
    if row["read_only"]:
        advice = "name the primary in DATABASE_URL, or several hosts: the one that takes writes is used"
        yield Finding("broken", "database writes", "read-only", advice)
    if not row["encrypted"] and not local:
        advice = "set WORKER_DATABASE_CA_FILE, or sslmode=verify-full in DATABASE_URL"
        yield Finding("warning", "database link", "not encrypted", advice)


def _judge_revision(revision: str | None) -> Finding:
    if revision is None:
        return Finding("broken", "schema", "not migrated yet", "run task-activity-log migrate")
    if revision == migrations.head():
        return Finding("fine", "schema", f"revision {revision}")
    if revision in migrations.known():
        return Finding(
            "broken", "schema", f"revision {revision}, needed {migrations.head()}", "run task-activity-log migrate"
        )
    return Finding("warning", "schema", f"revision {revision}: made by a newer release", "use that release here, too")


def _judge_rights(row: Row) -> Iterator[Finding]:
    role = f"role {row['role']}"
    if row["missing"]:
        advice = f"as the role that migrated: psql -v role={row['role']} -f {store.GRANTS}"
        yield Finding("broken", role, f"lacks {', '.join(row['missing'])}", advice)
    elif row["superuser"] or row["more"]:
        found = "is a superuser" if row["superuser"] else f"may {' and '.join(row['more'])} records"
        yield Finding("warning", role, found, "let workers run as a role of their own (docs/operations.md)")
    elif row["more"] is None and not row["stamped"]:
        return  # there are no tables; said already
    else:
        yield Finding("fine", role, "may do what is needed, and no more")
    if row["missing"] is None and not row["stamped"] and row["more"] is not None:
        advice = "ALTER TABLE task_activity_log ENABLE TRIGGER task_activity_log_modified"
        yield Finding("broken", "trigger", "modified_dateutc is not set", advice)
