"""The command line. Each command imports what it needs when it runs: `run` starts without the others' weight.

Exit codes: 0 done, 1 failed, 2 wrong use or setting, 3 some records were rejected, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn
from uuid import UUID

import typer

from task_activity_log import __version__
from task_activity_log.cli import dead_letters
from task_activity_log.record import Outcome
from task_activity_log.settings import Settings, SettingsError, load

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    help="Keeps task_activity_log records: takes upserts from RabbitMQ, stores them in PostgreSQL, answers with the"
    " stored record. Settings come from the environment; AMQP_URL and DATABASE_URL are enough to begin.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(dead_letters.app, name="dead-letters", short_help="Look at rejected messages; replay, export, discard.")


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


@app.command(short_help="Consume, store and answer: the worker.")
def run() -> None:
    """Consume, store and answer until SIGTERM or SIGINT; then finish what is under way and exit 0.

    Needs AMQP_URL and DATABASE_URL. Health and metrics are served on HTTP_PORT (8080).
    """
    # Until the worker has its own handlers nothing is in hand; process 1 of a container would not get the signal at all.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
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
    from task_activity_log.postgresql import migrations
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


@app.command(short_help="Publish records from files and print the replies.")
def publish(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Files and folders: .json (one record, or a list), .jsonl (one a line), .xml (one). - is standard input.",
        ),
    ],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be rejected; connect to nothing.")
    ] = False,
    rejected: Annotated[
        Path | None,
        typer.Option(help="Write the rejected to this file, to correct and publish it.", show_default=False),
    ] = None,
    run: Annotated[
        str,
        typer.Option(
            help="The name of this run. Again under the same name, nothing is applied twice.", show_default=False
        ),
    ] = "",
    wait: Annotated[bool, typer.Option(help="Wait for the replies, or only until the broker has it.")] = True,
    merge: Annotated[bool, typer.Option("--merge", help="Fields that are absent keep their values.")] = False,
    stdin: Annotated[Literal["json", "jsonl", "xml"], typer.Option(help="What standard input holds.")] = "jsonl",
    timeout: Annotated[float, typer.Option(min=0.1, help="Longest time in seconds without any reply.")] = 60.0,
) -> None:
    """Publish records, wait for the replies and print them: the stored record, or the problem.

    Replies go to standard output, one a line (of more than 20, on a terminal, only a summary); what becomes of each goes
    to standard error. Needs AMQP_URL. Exits 3 when some were rejected. Interrupted, it says how to go on.

    \b
    Examples:
      task-activity-log publish record.json records.jsonl record.xml
      task-activity-log publish --dry-run exports/
      task-activity-log publish records.jsonl --rejected to-correct.jsonl > stored.jsonl
      zcat records.jsonl.gz | task-activity-log publish -
    """
    settings = _settings() if dry_run else _settings("amqp_url")
    from task_activity_log.cli.publish import Options
    from task_activity_log.cli.publish import publish as publish_all

    options = Options(
        timeout=timeout, dry_run=dry_run, wait=wait, merge=merge, rejected=rejected, run=run, stdin_format=stdin
    )
    sys.exit(publish_all(paths, settings, options))


@app.command(short_help="Follow the replies.")
def replies(
    *,
    ids: Annotated[list[UUID] | None, typer.Option("--id", help="Only of this record.", show_default=False)] = None,
    outcomes: Annotated[
        list[Outcome] | None, typer.Option("--outcome", help="Only with this outcome.", show_default=False)
    ] = None,
    codes: Annotated[
        list[str] | None, typer.Option("--code", help="Only rejected for this.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each.")] = False,
    take: Annotated[
        bool, typer.Option("--take", help="Take them from the replies queue: nobody else gets them.")
    ] = False,
    count: Annotated[int, typer.Option("-n", "--count", min=0, help="End after so many; 0: never.")] = 0,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.1, help="End after so many seconds.", show_default=False)
    ] = None,
) -> None:
    """Follow the worker's replies until Ctrl-C, without taking them from their subscribers.

    Replies to requests with a reply_to are not among them, unless the worker has WORKER_REPLIES=both. Needs AMQP_URL.

    \b
    Examples:
      task-activity-log replies
      task-activity-log replies --outcome rejected --json
      task-activity-log replies --take -n 10
    """
    settings = _settings("amqp_url")
    if take and (ids or outcomes or codes):
        _fail("--take takes all: what --id, --outcome or --code leave out would be lost", WRONG_USE)
    from task_activity_log.cli.replies import Wanted, follow

    wanted = Wanted(frozenset(ids or ()), frozenset(outcomes or ()), frozenset(codes or ()))
    sys.exit(follow(settings, wanted, take=take, as_json=as_json, count=count, seconds=seconds))


@app.command(short_help="Print the wire contract for machines.")
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
