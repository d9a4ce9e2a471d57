"""`task-activity-log dead-letters`: look at rejected messages, replay, export and discard them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from task_activity_log.cli.letters import Letters

app = typer.Typer(
    help="Look at the messages that were rejected; correct, replay, export or discard them. Looking changes nothing.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Ids = Annotated[list[str] | None, typer.Argument(help="Message ids, as `list --each` shows them.", show_default=False)]
Codes = Annotated[list[str] | None, typer.Option("--code", help="Rejected for this, as in `list`.", show_default=False)]
Publishers = Annotated[
    list[str] | None, typer.Option("--publisher", help="Sent by this app_id or user.", show_default=False)
]
Older = Annotated[str, typer.Option(help="First rejected longer ago than 30s, 15m, 2h or 7d.", show_default=False)]
Newer = Annotated[str, typer.Option(help="First rejected since 30s, 15m, 2h or 7d.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


@app.command("list")
def list_(
    *,
    codes: Codes = None,
    publishers: Publishers = None,
    older_than: Older = "",
    newer_than: Newer = "",
    each: Annotated[bool, typer.Option("--each", help="A line for each, with its message id.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each, without its body.")] = False,
) -> None:
    """Count the dead letters by code and publisher, with their ages.

    \b
    Examples:
      task-activity-log dead-letters list
      task-activity-log dead-letters list --each --code invalid_date
      task-activity-log dead-letters list --json | jq .message_id
    """
    letters = _letters((), codes, publishers, older_than, newer_than, everything=True)
    sys.exit(letters.show_list(each=each, as_json=as_json))


@app.command(short_help="Print dead letters whole.")
def show(
    ids: Ids = None,
    *,
    codes: Codes = None,
    publishers: Publishers = None,
    older_than: Older = "",
    newer_than: Newer = "",
    everything: All = False,
) -> None:
    """Print dead letters whole: the reason, properties and headers, and the body.

    \b
    Examples:
      task-activity-log dead-letters show 6f1c8e0e-3a5b-4f8b-9d57-0d7f3f6f9b11
      task-activity-log dead-letters show --code refused_by_database | less
    """
    sys.exit(_letters(ids, codes, publishers, older_than, newer_than, everything=everything).show())


@app.command(short_help="Send dead letters again.")
def replay(
    ids: Ids = None,
    *,
    codes: Codes = None,
    publishers: Publishers = None,
    older_than: Older = "",
    newer_than: Newer = "",
    everything: All = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be accepted now.")] = False,
    edit: Annotated[bool, typer.Option("--edit", help="Open each body in $EDITOR first; unchanged ones stay.")] = False,
    rate: Annotated[float, typer.Option(min=0.1, max=100_000, help="At most so many a second.")] = 100.0,
    over_newer: Annotated[
        bool, typer.Option("--over-newer", help="Also those whose row was changed since they were rejected.")
    ] = False,
) -> None:
    """Send dead letters again, as the requests that they were: same message_id, properties and headers.

    Each is first held against the present contract; those that would be rejected again stay. With DATABASE_URL set,
    those whose row was changed since stay too. One leaves the dead letters when the broker has confirmed its request.

    \b
    Examples:
      task-activity-log dead-letters replay --code refused_by_database --dry-run
      task-activity-log dead-letters replay --code refused_by_database --rate 20
      task-activity-log dead-letters replay --edit 6f1c8e0e-3a5b-4f8b-9d57-0d7f3f6f9b11
    """
    letters = _letters(ids, codes, publishers, older_than, newer_than, everything=everything)
    sys.exit(letters.replay(dry_run=dry_run, edit=edit, rate=rate, over_newer=over_newer))


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
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove dead letters for good.

    \b
    Examples:
      task-activity-log dead-letters discard --older-than 30d --export old.jsonl
      task-activity-log dead-letters discard --publisher crm-test --yes
    """
    letters = _letters(ids, codes, publishers, older_than, newer_than, everything=everything)
    sys.exit(letters.discard(export, yes=yes))


@app.command(short_help="Write dead letters to a file that `publish` takes.")
def export(
    file: Annotated[Path, typer.Argument(help="A file that is not there yet; - is standard output.")],
    ids: Ids = None,
    *,
    codes: Codes = None,
    publishers: Publishers = None,
    older_than: Older = "",
    newer_than: Newer = "",
    everything: All = False,
) -> None:
    """Write dead letters as JSON lines that can be corrected, and that `publish` takes. They stay in the queue.

    \b
    Examples:
      task-activity-log dead-letters export rejected.jsonl --code invalid_date
      task-activity-log publish rejected.jsonl
    """
    sys.exit(_letters(ids, codes, publishers, older_than, newer_than, everything=everything).export(file))


def _letters(
    ids: Sequence[str] | None,
    codes: Sequence[str] | None,
    publishers: Sequence[str] | None,
    older_than: str,
    newer_than: str,
    *,
    everything: bool,
) -> Letters:
    from task_activity_log.cli.letters import Letters, Selector, seconds
    from task_activity_log.cli.terminal import WRONG_USE, say
    from task_activity_log.settings import SettingsError, load

    try:
        selector = Selector(
            frozenset(ids or ()),
            frozenset(codes or ()),
            frozenset(publishers or ()),
            seconds(older_than),
            seconds(newer_than),
        )
        settings = load(needed=("amqp_url",))
    except (ValueError, SettingsError) as error:
        for line in str(error).splitlines():
            say(line)
        sys.exit(WRONG_USE)
    if selector.empty and not everything:
        say("say which: message ids, --code, --publisher, --older-than, --newer-than, or --all")
        sys.exit(WRONG_USE)
    return Letters(settings, selector)
