"""The command line: the commands and their options. Each command imports what it needs when it runs.

publish         sends records from files and prints the replies
rejected_file   the file to which publish writes what was rejected
findings        what publish has found in files before it sends anything, and its numbers
judging         what a worker would reject of records, and misspelled fields
values          the value of a field, for the terminal of the person whose file it is
sources         files, folders and standard input as upserts
reply_commands  the commands replies and resend, and their options
replies         follows the replies
resend          publishes records as they are now, for subscribers that have missed some
codes           error codes on the command line
help_pages      how --help shows the commands
csv_records     records in CSV
times           durations and instants on the command line
dead_letters/   inspects, replays, exports and discards rejected messages
lookups         the commands settings and find, and their options
find            what became of a message or a record
settings_list   prints the settings, and where their values come from
partitions      shows and changes the number of partitions
console         starts the web console
check/          checks that everything a worker needs is in place
contract/       the wire contract for machines, written by tools/contract_files.py
exit_codes      how a command ends
terminal        tables, progress bars and plain lines
"""

import errno
import os
import signal
import sys
import threading
from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal
from uuid import uuid4

import typer

from task_activity_log import __version__, streams
from task_activity_log.cli.dead_letters.commands import app as dead_letters_app
from task_activity_log.cli.exit_codes import DONE, INTERRUPTED, WRONG_USE, fail, guarded, output_lost, settings_or_exit
from task_activity_log.cli.help_pages import HELP_OPTIONS, Group
from task_activity_log.cli.lookups import find, settings_
from task_activity_log.cli.reply_commands import replies, resend
from task_activity_log.cli.terminal import print_data, say

CONTRACT_FILES: Final = {
    "asyncapi": "asyncapi.json",
    "json-schema": "schema.json",
    "xsd": "request.xsd",
    "xsd-reply": "reply.xsd",
    "xsd-problem": "problem.xsd",
}
"""What `contract` prints, and the files in `contract/` that have it."""

_LOCK_SECONDS = 5.0
"""How long a migration may take without a word."""

app = typer.Typer(
    help="Consumes task_activity_log upserts from RabbitMQ, stores them in PostgreSQL and answers with the stored record."
    " Settings are environment variables; AMQP_URL and DATABASE_URL are enough to start, and `settings` prints all of them.",
    cls=Group,
    context_settings=HELP_OPTIONS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(
    dead_letters_app, name="dead-letters", short_help="List, show, replay, export and discard rejected messages."
)


def main() -> None:
    """Run `task-activity-log`."""
    streams.protect()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # at the end of the process it would be too late to report that this fails
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except streams.OutputLost as lost:
        sys.exit(output_lost(lost))


@app.callback(invoke_without_command=True)
def _options(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False
) -> None:
    if version:
        print(f"task-activity-log {__version__}")
        raise typer.Exit


@app.command(short_help="Consume, store and answer: the worker.")
def run() -> None:
    """Consume, store and answer until SIGTERM or SIGINT; then finish the batches under way and exit 0.

    Needs AMQP_URL and DATABASE_URL; all other settings have defaults: see `task-activity-log settings`. Health and metrics
    are served on HTTP_PORT (8080).
    """
    # The worker installs its own handlers once it is started. Until then it has no deliveries; but without a handler,
    # process 1 of a container would ignore the signal. SystemExit would become a RuntimeError where Python calls
    # `__set_name__` during an import (until 3.11), or be lost in a callback.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    settings = settings_or_exit("amqp_url", "database_url")
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):  # before prometheus_client reads it
        if os.environ.pop(name, None):
            say(f"{name} is set for another program and ignored: a worker is one process and has its metrics in memory")
    from task_activity_log import service
    from task_activity_log.problem import Misconfigured

    streams.drop_stalled()
    try:
        service.run(settings)
    except Misconfigured as error:
        fail(str(error), WRONG_USE)
    except OSError as error:
        where = f"HTTP_HOST={settings.http_host} HTTP_PORT={settings.http_port}"
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        remedy = "HTTP_PORT to a free port" if taken else "HTTP_HOST to a name or an address of this machine"
        fail(f"cannot listen on {where}: {error.strerror or error}; set {remedy}", WRONG_USE)


@app.command()
def migrate(
    *,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for a DBA to run, without connecting.")] = False,
    since: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="REVISION",
            help="With --sql: for a database whose schema has this revision already, as `check` shows it.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Bring the database schema up to date. Safe to run again, and to run concurrently. Needs DATABASE_URL."""
    from task_activity_log.postgresql import migrations
    from task_activity_log.problem import Unavailable
    from task_activity_log.wiring import connector_of

    before: list[str | None] = []
    if since and not sql:
        fail("--from is of use only with --sql: without it, the revision is found in the database", WRONG_USE)
    if since and since not in migrations.known():
        fail(f"--from {since}: no revision of this release; it has {', '.join(sorted(migrations.known()))}", WRONG_USE)
    if sql:
        print_data(migrations.as_sql(since or None), end=b"")
        return
    settings = settings_or_exit("database_url")
    waiting = threading.Timer(
        _LOCK_SECONDS,
        say,
        ["not done yet: another migration, or a transaction with a lock on the tables, may have to end"],
    )
    waiting.daemon = True

    def carry_out() -> int:
        waiting.start()
        try:
            revision = migrations.migrate(connector_of(settings), on_found=before.append)
        except Unavailable as error:
            fail(f"not migrated: {error.reason}")
        finally:
            waiting.cancel()
        if before == [revision]:
            print(f"Nothing to do: the schema is at revision {revision} already.")
        else:
            made = f"upgraded from revision {before[0]}" if before and before[0] else "created"
            print(f"The schema was {made}. It is at revision {revision}.")
        return DONE

    sys.exit(guarded(carry_out))


@app.command(short_help="Publish records from files and print the replies.")
def publish(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Files and folders: .json (one record, or a list), .jsonl (one record per line), .xml (one record), .csv"
            " (a header line and one record per line), also compressed with gzip. - is standard input.",
        ),
    ],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be rejected, without connecting.")
    ] = False,
    rejected: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write rejected records to this new file, so that you can correct and publish it.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Name of this run. Publishing the same files again under the same name applies nothing twice.",
            show_default=False,
        ),
    ] = "",
    wait: Annotated[bool, typer.Option(help="Wait for the replies, or only for the broker to confirm.")] = True,
    partitioned: Annotated[
        bool | None,
        typer.Option(
            "--partitioned/--no-partitioned",
            help="Send each record to its partition, or not. Without this option, if the broker has partitions.",
            show_default=False,
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Keep the values of fields that a record does not have.")
    ] = False,
    send_invalid: Annotated[
        bool, typer.Option("--send-invalid", help="Also send records that are invalid, or have misspelled fields.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Do not send records with any member that is not a field.")
    ] = False,
    priority: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=255,
            metavar="N",
            help="AMQP priority; below 4 other requests come first (RabbitMQ 4.3).",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="HEADER=FIELD",
            help="The field of a column in CSV files whose header is not the name of a field; HEADER= leaves it out.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Do not print outcomes and progress, only what is wrong.")
    ] = False,
    stdin: Annotated[Literal["json", "jsonl", "xml", "csv"], typer.Option(help="Format of standard input.")] = "jsonl",
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Give up after this many seconds without a reply.")
    ] = 60.0,  # TIMEOUT_SECONDS of cli.publish, which is not imported here
) -> None:
    """Publish records, wait for the replies and print them: the stored record, or the problem.

    Replies go to standard output, one per line; for more than 20, a terminal shows only a summary. The outcome of each
    goes to standard error. Records that a worker would reject are not sent, nor are those with misspelled fields. Needs
    AMQP_URL. Exits 3 if some were rejected or not sent, and 1 if files cannot be read but nothing else is wrong. When
    interrupted, it prints how to continue.

    \b
    Examples:
      task-activity-log publish record.json records.jsonl record.xml
      task-activity-log publish --dry-run exports/
      task-activity-log publish records.jsonl --rejected to-correct.jsonl > stored.jsonl
      task-activity-log publish calls.csv --column "Task Id=task_id"
      psql -Atc 'SELECT row_to_json(t) FROM calls t' | task-activity-log publish -
    """
    if "" in paths:
        fail("a PATH is empty: name a file, a folder, or - for standard input", WRONG_USE)
    settings = settings_or_exit() if dry_run else settings_or_exit("amqp_url")
    from task_activity_log.cli.csv_records import columns
    from task_activity_log.cli.publish import Publication
    from task_activity_log.cli.rejected_file import writable

    try:
        columns(column or [])
    except ValueError as error:
        fail(str(error), WRONG_USE)
    if rejected is not None and (why := writable(rejected, again=bool(run), paths=paths)):
        fail(why, WRONG_USE)
    work = Publication(
        settings,
        timeout=timeout,
        dry_run=dry_run,
        wait=wait,
        merge=merge,
        partitioned=partitioned,
        rejected=rejected,
        run=run or uuid4().hex[:12],
        stdin=stdin,
        send_invalid=send_invalid,
        strict=strict,
        priority=priority,
        yes=yes,
        columns=column or [],
        quiet=quiet,
    )
    sys.exit(guarded(lambda: work.carry_out(paths), None if dry_run else lambda: work.explained("interrupted")))


app.command("replies", short_help="Follow the replies.")(replies)
app.command("resend", short_help="Publish records as they are now, for subscribers.")(resend)


@app.command(short_help="Show the partitions, or change their number.")
def partitions(
    *,
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            metavar="N",
            help="The new number: a power of two up to 256; 0 for no partitions.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Change it. Without this only the steps are printed.")] = False,
) -> None:
    """Show the queues among which the requests are divided, or change their number while nobody publishes or consumes.

    Needs AMQP_URL; with --to of a user that may configure the queues. Safe to interrupt and to run again.

    \b
    Examples:
      task-activity-log partitions
      task-activity-log partitions --to 32
      task-activity-log partitions --to 32 --yes
      task-activity-log partitions --to 0 --yes
    """
    from task_activity_log.partitions import is_partition_count

    if to and not is_partition_count(to):
        fail(f"--to {to}: should be 0 or a power of two up to 256: 1, 2, 4, 8, 16, 32, 64, 128 or 256", WRONG_USE)
    settings = settings_or_exit("amqp_url")
    from task_activity_log.cli.partitions import show_or_change

    sys.exit(guarded(lambda: show_or_change(settings, to, yes=yes)))


@app.command(short_help="Print the wire contract in a machine-readable form.")
def contract(
    description: Annotated[
        Literal["asyncapi", "json-schema", "xsd", "xsd-reply", "xsd-problem"],
        typer.Argument(
            metavar="FORMAT",
            help="asyncapi: channels, operations and messages. json-schema and xsd: the body of a request. xsd-reply and"
            " xsd-problem: the bodies of replies.",
        ),
    ],
) -> None:
    """Print the wire contract in a machine-readable form, with the default names of queues and exchanges."""
    file = resources.files(__name__).joinpath("contract", CONTRACT_FILES[description])
    print_data(file.read_bytes(), end=b"")


@app.command(short_help="Serve the web console.")
def console(
    *,
    password_for: Annotated[
        str | None,
        typer.Option(
            metavar="USER",
            help="Ask for a password and print the line of CONSOLE_PASSWORD_FILE for this user; then exit.",
            show_default=False,
        ),
    ] = None,
    roles: Annotated[
        str | None,
        typer.Option(
            metavar="ROLES",
            help="With --password-for: the roles in that line, separated by commas: all of look,act,bodies by default.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve the web console until SIGTERM or SIGINT: what is going on, and the dead letters to correct and replay.

    Needs AMQP_URL and the extra `console`. DATABASE_URL adds the rows, MANAGEMENT_URL limits and permissions.
    CONSOLE_HOST and CONSOLE_PORT (127.0.0.1:8081) say where it listens.

    \b
    Examples:
      CONSOLE_WORKERS=http://worker:8080 task-activity-log console
      task-activity-log console --password-for anna --roles look,act >> passwords
    """
    from task_activity_log.cli.console import print_password_line, serve

    if roles is not None and password_for is None:
        fail("--roles is of use only with --password-for", WRONG_USE)
    if password_for is not None:
        chosen = "look,act,bodies" if roles is None else roles
        # A signal ends the question as Ctrl-C does, so that the terminal echoes again.
        sys.exit(guarded(lambda: print_password_line(password_for, chosen)))
    else:
        serve(settings_or_exit("amqp_url"))


app.command("settings", short_help="Print all settings, and where their values come from.")(settings_)
app.command("find", short_help="Find out what became of a message or a record.")(find)


@app.command(short_help="Check that everything a worker needs is in place.")
def check(
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for warnings as well.")] = False,
) -> None:
    """Check that everything a worker needs is in place, and say how to fix what is not. Changes nothing.

    Needs AMQP_URL and DATABASE_URL; with MANAGEMENT_URL it also checks limits and permissions. Exits 1 if something is
    broken.
    """
    settings = settings_or_exit("amqp_url", "database_url")
    from task_activity_log.cli.check import check as check_all

    sys.exit(guarded(lambda: check_all(settings, strict=strict)))
