"""What each command of `dead-letters` does with the selected dead letters. Each returns its exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from task_activity_log.cli.dead_letters import exporting, listing
from task_activity_log.cli.dead_letters.candidates import Candidate, accepted, without_newer_rows
from task_activity_log.cli.dead_letters.editing import Edits
from task_activity_log.cli.dead_letters.selection import Selector, borrowed, copies, selected
from task_activity_log.cli.exit_codes import DONE, FAILED, SOME_REJECTED, WRONG_USE
from task_activity_log.cli.terminal import FEW, progress, say
from task_activity_log.client.dead_letters import DeadLetter, Loan, publishing
from task_activity_log.client.dead_letters import replay as replay_all
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, rules_of


def list_(settings: Settings, selector: Selector, *, each: bool, as_json: bool) -> int:
    """Print groups, or with `each` or `as_json` one line for each dead letter."""
    letters = asyncio.run(_in_the_queue(settings, selector))
    if as_json:
        for letter in letters:
            print(listing.as_json(letter))
    elif not letters:
        say("there are no dead letters" if selector.empty else "no dead letters match")
    elif each:
        listing.print_each(letters, selector)
    else:
        listing.print_groups(letters, selector)
    return DONE


async def _in_the_queue(settings: Settings, selector: Selector) -> list[DeadLetter]:
    async with borrowed(settings) as loan:
        letters = [letter async for letter in loan if letter in selector]
        if loan.waiting > len(letters) and selector.empty:
            say(f"only the oldest {len(letters):,} of {loan.waiting:,} are shown")
        return letters


def show(settings: Settings, selector: Selector) -> int:
    """Print them in full."""
    letters = asyncio.run(copies(settings, selector))
    for letter in letters:
        print(listing.in_full(letter, rules_of(settings)))
    return _code(selector, letters)


def export(settings: Settings, selector: Selector, file: Path) -> int:
    """Write them to a file."""
    letters = asyncio.run(copies(settings, selector))
    if str(file) == "-":
        for letter in letters:
            print(exporting.line(letter))
    elif letters:
        exporting.write(file, letters)
        say(f"{len(letters):,} written to {file}; they are still in the queue")
    return _code(selector, letters)


def discard(settings: Settings, selector: Selector, export_to: Path | None, *, yes: bool) -> int:
    """Remove them, after a question."""
    letters = asyncio.run(copies(settings, selector))
    if not letters:
        return _code(selector, letters)
    if not yes:
        if not sys.stdin.isatty():
            say(f"this would discard {len(letters):,} for good: confirm with --yes, as there is no terminal to ask on")
            return WRONG_USE
        if input(f"Discard {len(letters):,} dead letters for good? [y/N] ").strip().lower() not in ("y", "yes"):
            say("nothing was discarded")
            return DONE
    if export_to is not None:
        exporting.write(export_to, letters)
    count = asyncio.run(_remove(settings, selector, {letter.key for letter in letters}))
    say(f"{count:,} discarded" + (f"; a copy is in {export_to}" if export_to else ""))
    return _code(selector, letters)


async def _remove(settings: Settings, selector: Selector, keys: set[tuple[str, bytes]]) -> int:
    async with selected(settings, selector, keys) as (loan, letters):
        return await loan.remove(letters)


def replay(settings: Settings, selector: Selector, *, dry_run: bool, edit: bool, rate: float, over_newer: bool) -> int:
    """Send them again, except those that would be rejected again or would overwrite a newer row."""
    with Edits(rules_of(settings)) as edits:
        if edit:
            for letter in asyncio.run(copies(settings, selector)):
                edits.edit(letter)
            if not edits.accepted:
                say("nothing was replayed")
                return FAILED if selector.names else DONE
        code = asyncio.run(
            _replay(settings, selector, edits if edit else None, dry_run=dry_run, rate=rate, over_newer=over_newer)
        )
        edits.done = True
        return code


async def _replay(
    settings: Settings, selector: Selector, edits: Edits | None, *, dry_run: bool, rate: float, over_newer: bool
) -> int:
    async with selected(settings, selector, None if edits is None else edits.accepted) as (loan, letters):
        if edits is None:
            candidates, reasons = accepted(letters, rules_of(settings))
        else:
            candidates, reasons = edits.applied(letters), []
        if not over_newer:
            candidates, more = await without_newer_rows(candidates, settings)
            reasons += more
        _say_first(reasons)
        kept = f", {len(reasons):,} kept" if reasons else ""
        if dry_run:
            say(f"{len(candidates):,} would be replayed{kept}; nothing was sent")
        elif candidates:
            count = await _send(settings, loan, candidates, rate)
            say(f"{count:,} replayed{kept}; any that are rejected again become dead letters again")
        elif letters:
            say(f"nothing was replayed{kept}")
    return _code(selector, letters) or (SOME_REJECTED if reasons else DONE)


async def _send(settings: Settings, loan: Loan, candidates: Sequence[Candidate], rate: float) -> int:
    user = urlsplit(settings.amqp_url.get_secret_value()).username
    async with publishing(link_of(settings)) as publisher:
        with progress(len(candidates)) as bar:
            return await replay_all(
                loan,
                [(candidate.letter, candidate.body) for candidate in candidates],
                publisher,
                exchange=settings.requests_exchange,
                user=unquote(user) if user else None,
                rate=rate,
                on_replayed=lambda _: bar.advance(bar.task_ids[0]),
            )


def _say_first(reasons: Sequence[str]) -> None:
    for reason in reasons[:FEW]:
        say(reason)
    if len(reasons) > FEW:
        say(f"and {len(reasons) - FEW:,} more")


def _code(selector: Selector, letters: Sequence[DeadLetter]) -> int:
    """Not finding what was named is a failure; that nothing matches the other criteria is not."""
    return FAILED if selector.missing(letters) else DONE
