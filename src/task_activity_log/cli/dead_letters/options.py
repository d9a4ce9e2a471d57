"""The commands of `task-activity-log dead-letters` and their options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from task_activity_log.cli.exit_codes import WRONG_USE, fail, guarded, settings_or_exit

if TYPE_CHECKING:  # each command imports what it needs when it runs
    from task_activity_log.cli.dead_letters.commands import Commands

app = typer.Typer(
    help="List and show rejected messages; correct, replay, export or discard them. Listing and showing change nothing.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Ids = Annotated[list[str] | None, typer.Argument(help="Message ids, as shown by `list --each`.", show_default=False)]
Codes = Annotated[
    list[str] | None,
    typer.Option("--code", help="Only those rejected with this error code, as shown by `list`.", show_default=False),
]
Publishers = Annotated[
    list[str] | None, typer.Option("--publisher", help="Only those sent by this app_id or user.", show_default=False)
]
Older = Annotated[
    str, typer.Option(help="Only those first rejected more than this long ago: 30s, 15m, 2h or 7d.", show_default=False)
]
Newer = Annotated[
    str, typer.Option(help="Only those first rejected less than this long ago: 30s, 15m, 2h or 7d.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]


@app.command("list")
def list_(
    *,
    codes: Codes = None,
    publishers: Publishers = None,
    older_than: Older = "",
    newer_than: Newer = "",
    each: Annotated[bool, typer.Option("--each", help="Print one line per dead letter, with its message id.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per dead letter, without its body.")
    ] = False,
) -> None:
    """Count the dead letters by code and publisher, with their ages.

    \b
    Examples:
      task-activity-log dead-letters list
      task-activity-log dead-letters list --each --code invalid_date
      task-activity-log dead-letters list --json | jq .message_id
    """
    commands = _commands((), codes, publishers, older_than, newer_than, everything=True)
    sys.exit(guarded(lambda: commands.list_(each=each, as_json=as_json)))


@app.command(short_help="Print dead letters in full.")
def show(
    ids: Ids = None,
    *,
    codes: Codes = None,
    publishers: Publishers = None,
    older_than: Older = "",
    newer_than: Newer = "",
    everything: All = False,
) -> None:
    """Print dead letters in full: the reason, properties and headers, and the body.

    \b
    Examples:
      task-activity-log dead-letters show 6f1c8e0e-3a5b-4f8b-9d57-0d7f3f6f9b11
      task-activity-log dead-letters show --code refused_by_database | less
    """
    commands = _commands(ids, codes, publishers, older_than, newer_than, everything=everything)
    sys.exit(guarded(commands.show))


@app.command(short_help="Send dead letters again.")
def replay(
    ids: Ids = None,
    *,
    codes: Codes = None,
    publishers: Publishers = None,
    older_than: Older = "",
    newer_than: Newer = "",
    everything: All = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be replayed; send nothing.")
    ] = False,
    edit: Annotated[
        bool, typer.Option("--edit", help="Open each body in $EDITOR first; those left unchanged are not replayed.")
    ] = False,
    rate: Annotated[float, typer.Option(min=0.1, max=100_000, help="Send at most this many per second.")] = 100.0,
    over_newer: Annotated[
        bool,
        typer.Option("--over-newer", help="Also replay those whose row has changed since they were rejected."),
    ] = False,
) -> None:
    """Send dead letters again, as the requests that they were: same message_id, properties and headers.

    Those that the present contract would reject again are kept. If DATABASE_URL is set, so are those whose row has
    changed since the rejection. A dead letter is removed once the broker has confirmed its request.

    \b
    Examples:
      task-activity-log dead-letters replay --code refused_by_database --dry-run
      task-activity-log dead-letters replay --code refused_by_database --rate 20
      task-activity-log dead-letters replay --edit 6f1c8e0e-3a5b-4f8b-9d57-0d7f3f6f9b11
    """
    commands = _commands(ids, codes, publishers, older_than, newer_than, everything=everything)
    sys.exit(
        guarded(
            lambda: commands.replay(dry_run=dry_run, edit=edit, rate=rate, over_newer=over_newer),
            lambda: "interrupted; dead letters that were not replayed are still in the queue",
        )
    )


@app.command()
def discard(
    ids: Ids = None,
    *,
    codes: Codes = None,
    publishers: Publishers = None,
    older_than: Older = "",
    newer_than: Newer = "",
    everything: All = False,
    export: Annotated[Path | None, typer.Option(help="Write them to this file first.", show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove dead letters for good.

    \b
    Examples:
      task-activity-log dead-letters discard --older-than 30d --export old.jsonl
      task-activity-log dead-letters discard --publisher crm-test --yes
    """
    commands = _commands(ids, codes, publishers, older_than, newer_than, everything=everything)
    sys.exit(
        guarded(
            lambda: commands.discard(export, yes=yes),
            lambda: "interrupted; dead letters that were not discarded are still in the queue",
        )
    )


@app.command(short_help="Write dead letters to a file that `publish` accepts.")
def export(
    file: Annotated[Path, typer.Argument(help="A file that does not exist yet; - is standard output.")],
    ids: Ids = None,
    *,
    codes: Codes = None,
    publishers: Publishers = None,
    older_than: Older = "",
    newer_than: Newer = "",
    everything: All = False,
) -> None:
    """Write dead letters as lines of JSON that can be corrected, and that `publish` accepts. They stay in the queue.

    \b
    Examples:
      task-activity-log dead-letters export rejected.jsonl --code invalid_date
      task-activity-log publish rejected.jsonl
    """
    commands = _commands(ids, codes, publishers, older_than, newer_than, everything=everything)
    sys.exit(guarded(lambda: commands.export(file)))


def _commands(
    ids: Sequence[str] | None,
    codes: Sequence[str] | None,
    publishers: Sequence[str] | None,
    older_than: str,
    newer_than: str,
    *,
    everything: bool,
) -> Commands:
    """The commands for these dead letters; exits if none were selected."""
    from task_activity_log.cli.dead_letters.commands import Commands
    from task_activity_log.cli.dead_letters.selection import Selector, seconds

    try:
        older, newer = seconds(older_than), seconds(newer_than)
    except ValueError as error:
        fail(str(error), WRONG_USE)
    selector = Selector(frozenset(ids or ()), frozenset(codes or ()), frozenset(publishers or ()), older, newer)
    settings = settings_or_exit("amqp_url")
    if selector.empty and not everything:
        fail(
            "select dead letters by message id, --code, --publisher, --older-than or --newer-than, or pass --all",
            WRONG_USE,
        )
    return Commands(settings, selector)
