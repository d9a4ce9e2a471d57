"""The commands of `task-activity-log dead-letters` and their options. Each imports what it needs when it runs."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import nullcontext
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from task_activity_log.cli.codes import complete
from task_activity_log.cli.exit_codes import DONE, FAILED, SOME_REJECTED, WRONG_USE, fail, guarded, settings_or_exit
from task_activity_log.cli.help_pages import HELP_OPTIONS, Group
from task_activity_log.cli.terminal import agreed, counted, print_json, say

if TYPE_CHECKING:
    from task_activity_log.cli.dead_letters.selection import Selection

app = typer.Typer(
    help="List and show rejected messages; correct, replay, export or discard them. Listing and showing change nothing.",
    cls=Group,
    context_settings=HELP_OPTIONS,
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _complete_id(incomplete: str) -> list[str]:
    """The message ids that begin with this, for the Tab key."""
    from task_activity_log.cli.dead_letters.completing import complete_id

    return complete_id(incomplete)


Ids = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ID",
        help="Message ids from `list --each`, or their beginnings.",
        show_default=False,
        autocompletion=_complete_id,
    ),
]
Codes = Annotated[
    list[str] | None,
    typer.Option(
        "--code",
        metavar="CODE",
        help="Only those rejected with this error code, as shown by `list`.",
        show_default=False,
        autocompletion=complete,
    ),
]
Publishers = Annotated[
    list[str] | None,
    typer.Option("--publisher", metavar="NAME", help="Only those sent by this app_id or user.", show_default=False),
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="FIELD",
        help="Only those in which this field is bad, as shown by `list`; - for no field.",
        show_default=False,
    ),
]
Older = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Only those rejected more than this long ago: 30s, 15m, 2h or 7d.",
        show_default=False,
    ),
]
Newer = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Only those rejected less than this long ago: 30s, 15m, 2h or 7d.",
        show_default=False,
    ),
]
Answered = Annotated[
    bool,
    typer.Option(
        "--answered",
        help="Only those whose record was stored at least a minute after they were rejected. Needs DATABASE_URL.",
    ),
]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]


def _select(
    *,
    ids: Ids = None,
    codes: Codes = None,
    publishers: Publishers = None,
    fields: Fields = None,
    older_than: Older = "",
    newer_than: Newer = "",
    answered: Answered = False,
    everything: All = False,
) -> "Selection":
    """The dead letters that these options select; exits if none of them is given."""
    from task_activity_log.cli.dead_letters.selection import Selection
    from task_activity_log.cli.times import seconds
    from task_activity_log.client.letters import NO_FIELD
    from task_activity_log.record import STORED_FIELDS

    try:
        older, newer = seconds(older_than), seconds(newer_than)
    except ValueError as error:
        fail(str(error), WRONG_USE)
    if unknown := set(fields or ()) - {*STORED_FIELDS, NO_FIELD}:
        fail(f"--field {min(unknown)}: is not a field; the fields are {', '.join(STORED_FIELDS)}", WRONG_USE)
    settings = settings_or_exit("amqp_url", *(("database_url",) if answered else ()))
    if not (ids or codes or publishers or fields or older_than or newer_than or answered or everything):
        fail(
            "select dead letters by message id, --code, --publisher, --field, --older-than, --newer-than or --answered,"
            " or pass --all",
            WRONG_USE,
        )
    names, chosen = frozenset(ids or ()), frozenset(codes or ())
    return Selection(
        settings, names, chosen, frozenset(publishers or ()), older, newer, frozenset(fields or ()), answered
    )


def _selecting(
    *, without: tuple[str, ...] = (), interrupted: str = ""
) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """Gives a command the options of `_select`; it is called with the selection, and returns its exit code.

    Without `everything`, the command is about all dead letters unless others are selected.
    """
    shared = {name: option for name, option in signature(_select).parameters.items() if name not in without}

    def with_options(command: Callable[..., int]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            selection = _select(**{"everything": True, **{name: given.pop(name) for name in shared}})
            sys.exit(guarded(lambda: command(selection, **given), (lambda: interrupted) if interrupted else None))

        _, *own = signature(command).parameters.values()
        # Positional arguments first, as Python demands; the others in the order of the help text.
        parameters = sorted((*shared.values(), *own), key=lambda parameter: parameter.kind)
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
        return run

    return with_options


@app.command("list")
@_selecting(without=("ids", "everything"))
def list_(
    selection: "Selection",
    *,
    each: Annotated[bool, typer.Option("--each", help="Print one line per dead letter, with its message id.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per dead letter, without its body.")
    ] = False,
) -> int:
    """Count the dead letters by code, publisher and bad field.

    Also their ages, and how many would pass now.

    \b
    Examples:
      task-activity-log dead-letters list
      task-activity-log dead-letters list --each --code invalid_date
      task-activity-log dead-letters list --json | jq .message_id
    """
    from task_activity_log.cli.dead_letters import listing

    letters = selection.copies()
    if as_json:
        for letter in letters:
            print_json(listing.as_json(letter))
    elif letters and each:
        listing.print_each(letters, selection)
    elif letters:
        listing.print_groups(letters, selection)
    if letters and not as_json:
        say(counted(len(letters), "dead letter"))
    return DONE


@app.command(short_help="Print dead letters in full.")
@_selecting()
def show(selection: "Selection") -> int:
    """Print dead letters in full: the reason, properties and headers, and the body.

    \b
    Examples:
      task-activity-log dead-letters show 6f1c8e0e-3a5b-4f8b-9d57-0d7f3f6f9b11
      task-activity-log dead-letters show --code refused_by_database | less
    """
    from task_activity_log.cli.dead_letters import listing

    letters = selection.copies()
    for letter in letters:
        print(listing.in_full(letter, selection))
    return selection.exit_code(letters)


@app.command(short_help="Send dead letters again.")
@_selecting(interrupted="interrupted; dead letters that were not replayed are still in the queue")
def replay(
    selection: "Selection",
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be replayed; send nothing.")
    ] = False,
    edit: Annotated[
        bool,
        typer.Option(
            "--edit",
            help="Open each body, or the headers if they are invalid, in $EDITOR first; those left unchanged stay.",
        ),
    ] = False,
    rate: Annotated[
        float, typer.Option(min=0.1, max=100_000, metavar="N", help="Send at most this many per second.")
    ] = 100.0,
    over_newer: Annotated[
        bool,
        typer.Option("--over-newer", help="Also replay those whose row has changed since they were rejected."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation on a terminal.")] = False,
) -> int:
    """Send dead letters again, as the requests that they were: same message_id, properties and headers.

    Those that the present contract would reject again are kept. If DATABASE_URL is set, so are those whose row has
    changed since the rejection, unless they have an x-version, which the worker compares; a newer request that still waits
    in the requests queue is not seen. A dead letter is removed once the broker has confirmed its request.

    \b
    Examples:
      task-activity-log dead-letters replay --code refused_by_database --dry-run
      task-activity-log dead-letters replay --code refused_by_database --rate 20
      task-activity-log dead-letters replay --edit 6f1c8e0e-3a5b-4f8b-9d57-0d7f3f6f9b11
    """
    from task_activity_log.cli.dead_letters import editing, replaying

    letters = selection.copies()
    asks = letters and sys.stdin.isatty() and not (yes or dry_run or edit)
    if asks and not agreed(f"Replay {counted(len(letters), 'dead letter')}?"):
        say("nothing was replayed")
        return FAILED
    unchanged = [(letter.key, letter) for letter in letters]
    with editing.edited(letters, selection.settings) if edit else nullcontext(editing.Edits(unchanged)) as edits:
        if edit and not edits.requests:
            say("nothing was replayed")
            return FAILED if selection.names else DONE
        replaying_ = replaying.replay(selection, edits.requests, dry_run=dry_run, rate=rate, over_newer=over_newer)
        code = asyncio.run(replaying_)
        edits.replayed = code == DONE and not dry_run
        return code or (SOME_REJECTED if len(edits.requests) < len(letters) else DONE)


@app.command()
@_selecting(interrupted="interrupted; dead letters that were not discarded are still in the queue")
def discard(
    selection: "Selection",
    *,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write them to this file first.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be discarded; remove nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> int:
    """Remove dead letters permanently.

    \b
    Examples:
      task-activity-log dead-letters discard --older-than 30d --dry-run
      task-activity-log dead-letters discard --older-than 30d --export old.jsonl
      task-activity-log dead-letters discard --answered --export corrected.jsonl
      task-activity-log dead-letters discard --publisher crm-test --yes
    """
    from task_activity_log.cli.dead_letters import listing

    if str(export) == "-":
        fail("--export -: name a file: the copy has to be on disk before anything is discarded", WRONG_USE)
    _refuse_unreadable(export)
    letters = selection.copies()
    if dry_run:
        say(f"{len(letters):,} would be discarded; nothing was removed")
        return selection.exit_code(letters)
    if letters and not yes:
        if not sys.stdin.isatty():
            say(f"this would discard {len(letters):,} for good: confirm with --yes, as there is no terminal to ask on")
            return WRONG_USE
        if not agreed(f"Discard {counted(len(letters), 'dead letter')} for good?"):
            say("nothing was discarded")
            return FAILED
    if letters:
        if export is not None:
            listing.export(export, letters)
        count = asyncio.run(selection.remove(letters))
        say(f"{count:,} discarded" + (f"; a copy is in {export}" if export else ""))
        return selection.exit_code(letters) or selection.gone(len(letters) - count)
    return selection.exit_code(letters)


def _refuse_unreadable(file: Path | None) -> None:
    """End with an error if this is a file from whose name `publish` would not know that it has lines of JSON."""
    from task_activity_log.cli.sources import not_for_lines

    if file is not None and str(file) != "-" and not file.exists() and (why := not_for_lines(file)):
        fail(why, WRONG_USE)


@app.command(short_help="Write dead letters to a file that `publish` accepts.")
@_selecting()
def export(
    selection: "Selection",
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that does not exist yet; - is standard output.")],
) -> int:
    """Write dead letters as lines of JSON that can be corrected, and that `publish` accepts. They stay in the queue.

    \b
    Examples:
      task-activity-log dead-letters export rejected.jsonl --code invalid_date
      task-activity-log publish rejected.jsonl
    """
    from task_activity_log.cli.dead_letters import listing
    from task_activity_log.client import exported

    _refuse_unreadable(file)
    letters = selection.copies()
    if str(file) == "-":
        for letter in letters:
            print_json(exported.letter_line(letter))
    elif letters:
        listing.export(file, letters)
        say(
            f"{len(letters):,} written to {file}; they are still in the queue: `task-activity-log dead-letters discard"
            " --answered` removes those whose corrected record is stored a minute or more after they were rejected"
            " (it needs DATABASE_URL)"
        )
    return selection.exit_code(letters)
