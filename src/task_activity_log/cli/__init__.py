"""The command line. Each command imports what it needs when it runs: `run` starts without the others' weight.

Exit codes: 0 done, 1 failed, 2 wrong use or setting, 3 some records were rejected, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from task_activity_log import __version__
from task_activity_log.settings import Settings, SettingsError, load

FAILED, WRONG_USE, SOME_REJECTED, INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    help="Keeps task_activity_log records: takes upserts from RabbitMQ, stores them in PostgreSQL, answers with the"
    " stored record. Settings come from the environment; AMQP_URL and DATABASE_URL are enough to begin.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """The entry point of `task-activity-log`."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@app.callback(invoke_without_command=True)
def _options(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run() -> None:
    """Consume, store and answer until SIGTERM or SIGINT; then finish what is under way and exit 0.

    Needs AMQP_URL and DATABASE_URL. Health and metrics are served on HTTP_PORT (8080).
    """
    settings = _settings("amqp_url", "database_url")
    from task_activity_log import service

    try:
        service.run(settings)
    except OSError as error:
        _fail(
            f"HTTP_HOST={settings.http_host} HTTP_PORT={settings.http_port}: {error.strerror or error}",
            WRONG_USE,
        )


@app.command()
def migrate(
    *,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for a DBA to run; connect to nothing.")] = False,
) -> None:
    """Bring the database schema up to date. Safe to run again, and by several at once. Needs DATABASE_URL."""
    from task_activity_log import migrations
    from task_activity_log.problem import Unavailable

    if sql:
        print(migrations.as_sql(), end="")
        return
    settings = _settings("database_url")
    try:
        revision = migrations.migrate(
            settings.database_url.get_secret_value(),
            connect_timeout=settings.database_connect_timeout_seconds,
            tls=settings.database_tls,
        )
    except Unavailable as error:
        _fail(f"not migrated: {error.reason}")
    print(f"The schema is at revision {revision}.")


@app.command()
def publish(
    files: Annotated[
        list[Path], typer.Argument(help="Files of records: .json (one), .jsonl (one a line), .xml (one).")
    ],
    *,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the next reply.")] = 30.0,
) -> None:
    """Publish records, wait for the replies and print them: the stored record, or the problem.

    Replies go to standard output, one a line; what became of each goes to standard error. Needs AMQP_URL.
    Exits 3 when some were rejected.
    """
    settings = _settings("amqp_url")
    from task_activity_log.cli.publish import publish_files
    from task_activity_log.telemetry.logs import quiet_drivers

    quiet_drivers()
    sys.exit(publish_files(files, settings, timeout))


@app.command()
def contract(
    description: Annotated[
        Literal["asyncapi", "json-schema", "xsd", "xsd-reply", "xsd-problem"],
        typer.Argument(help="asyncapi: channels, operations and messages. json-schema and xsd: what a request holds."),
    ],
) -> None:
    """Print the wire contract for machines, with the default names of queues and exchanges. Needs no settings."""
    from task_activity_log.cli.contract import describe

    print(describe(description), end="")


@app.command()
def check(
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for warnings as well.")] = False,
) -> None:
    """Look whether everything is there that a worker needs, and say what to do about what is not. Changes nothing.

    Needs AMQP_URL and DATABASE_URL; MANAGEMENT_URL shows limits and permissions, too. Exits 1 if something is broken.
    """
    settings = _settings("amqp_url", "database_url")
    from task_activity_log.cli.check import check as look
    from task_activity_log.telemetry.logs import quiet_drivers

    quiet_drivers()
    sys.exit(look(settings, strict=strict))


def _settings(*needed: str) -> Settings:
    try:
        return load(needed=needed)
    except SettingsError as error:
        _fail(str(error), WRONG_USE)


def _fail(message: str, code: int = FAILED) -> NoReturn:
    for line in message.splitlines():
        print(f"task-activity-log: {line}", file=sys.stderr)
    raise SystemExit(code)
