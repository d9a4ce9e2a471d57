"""The commands `replies` and `resend`, and their options. Each imports what it needs when it runs."""

import asyncio
import sys
from typing import Annotated
from uuid import UUID

import typer

from task_activity_log.cli.codes import CODES, complete, unknown
from task_activity_log.cli.exit_codes import WRONG_USE, fail, guarded, settings_or_exit
from task_activity_log.cli.times import since as since_
from task_activity_log.record import Outcome


def replies(
    *,
    ids: Annotated[
        list[UUID] | None, typer.Option("--id", metavar="ID", help="Only replies for this record.", show_default=False)
    ] = None,
    outcomes: Annotated[
        list[Outcome] | None,
        typer.Option(
            "--outcome",
            metavar="OUTCOME",
            help=f"Only replies with this outcome: {', '.join(Outcome)}.",
            show_default=False,
        ),
    ] = None,
    codes: Annotated[
        list[str] | None,
        typer.Option(
            "--code",
            metavar="CODE",
            help="Only rejections with this error code.",
            show_default=False,
            autocompletion=complete,
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="First print those in the replies queue that were published since then: 15m, 2h, 7d, or a date.",
            show_default=False,
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per reply.")] = False,
    take: Annotated[
        bool, typer.Option("--take", help="Remove them from the replies queue: no other subscriber gets them.")
    ] = False,
    count: Annotated[
        int, typer.Option("-n", "--count", min=0, metavar="N", help="Exit after this many replies; 0 means never.")
    ] = 0,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            min=0.1,
            metavar="N",
            help="Exit after this many seconds. Those of --since are all printed.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the worker's replies until Ctrl-C, without taking them from their subscribers.

    Replies to requests with a reply_to are only shown if the worker runs with WORKER_REPLIES=both. Needs AMQP_URL.

    \b
    Examples:
      task-activity-log replies
      task-activity-log replies --since 2h --outcome rejected
      task-activity-log replies --json
      task-activity-log replies --take -n 10
    """
    settings = settings_or_exit("amqp_url")
    if take and (ids or outcomes or codes):
        fail("--take removes every reply: those that --id, --outcome or --code exclude would be lost", WRONG_USE)
    if take and since:
        fail("--take removes the oldest replies first: it has no --since", WRONG_USE)
    if lines := unknown(codes or (), CODES):
        fail("\n".join(lines), WRONG_USE)
    from task_activity_log.cli.replies import Wanted, follow

    try:
        start = since_(since) if since else None
    except ValueError as error:
        fail(str(error), WRONG_USE)
    wanted = Wanted(frozenset(ids or ()), frozenset(outcomes or ()), frozenset(codes or ()))
    following = follow(settings, wanted, take=take, as_json=as_json, count=count, seconds=seconds, since=start)
    sys.exit(guarded(lambda: asyncio.run(following)))


def resend(
    *,
    changed_since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="The records that were changed since then: 15m, 2h, 7d, or 2026-01-11T20:58:34Z.",
            show_default=False,
        ),
    ] = "",
    ids: Annotated[
        list[UUID] | None, typer.Option("--id", metavar="ID", help="This record.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All records.")] = False,
    queue: Annotated[
        str,
        typer.Option(metavar="NAME", help="Send them to this queue alone, not to all subscribers.", show_default=False),
    ] = "",
    after: Annotated[
        UUID | None, typer.Option(metavar="ID", help="Continue after the record with this id.", show_default=False)
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0.1, max=100_000, metavar="N", help="Send at most this many per second.")
    ] = 500.0,
    xml: Annotated[bool, typer.Option("--xml", help="Send them in XML.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them; send nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Publish records as they are in the database now, as replies with the outcome `snapshot`.

    For a subscriber that has missed replies, or that begins late. Subscribers keep what is newer. Needs AMQP_URL and
    DATABASE_URL. When interrupted, it prints how to continue. Exits 3 if some records could not be sent.

    \b
    Examples:
      task-activity-log resend --changed-since 2h --dry-run
      task-activity-log resend --changed-since 2026-01-11T20:00:00Z --queue crm.replies
      task-activity-log resend --id 9652e68c-7b6d-4598-bbbd-4e933126c994
    """
    if sum((bool(changed_since), bool(ids), everything)) != 1:
        fail("select records with one of --changed-since, --id and --all", WRONG_USE)
    settings = settings_or_exit("amqp_url", "database_url")
    from task_activity_log.cli.resend import Resending
    from task_activity_log.client.names import queue_name
    from task_activity_log.wiring import topology_of

    try:
        if queue:
            queue_name("--queue", queue)
        topology_of(settings).check_reply_queue("--queue", queue)
        start = since_(changed_since) if changed_since else None
    except ValueError as error:
        fail(str(error), WRONG_USE)
    work = Resending(settings, start, ids or [], after, queue or None, xml, rate, dry_run, yes)
    sys.exit(guarded(work.carry_out, work.interrupted))
