"""What each command of `dead-letters` does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from task_activity_log.cli.dead_letters import listing
from task_activity_log.cli.dead_letters.candidates import Candidate, accepted, without_newer_rows
from task_activity_log.cli.dead_letters.editing import Edits
from task_activity_log.cli.dead_letters.selection import Selector, borrowed, copies, selected
from task_activity_log.cli.exit_codes import DONE, FAILED, SOME_REJECTED, WRONG_USE
from task_activity_log.cli.terminal import FEW, progress, say
from task_activity_log.client.dead_letters import DeadLetter, Loan, publishing, replay
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, rules_of


class Commands:
    """The commands, for the dead letters that were selected. Each returns its exit code."""

    def __init__(self, settings: Settings, selector: Selector) -> None:
        self._settings = settings
        self._selector = selector
        self._rules = rules_of(settings)

    def list_(self, *, each: bool, as_json: bool) -> int:
        """Print groups, or with `each` or `as_json` one line for each dead letter."""
        letters = asyncio.run(self._in_the_queue())
        if as_json:
            for letter in letters:
                print(listing.as_json(letter))
        elif not letters:
            say("there are no dead letters" if self._selector.empty else "no dead letters match")
        elif each:
            listing.print_each(letters, self._selector)
        else:
            listing.print_groups(letters, self._selector)
        return DONE

    def show(self) -> int:
        """Print them in full."""
        letters = self._copies()
        for letter in letters:
            print(listing.in_full(letter, self._rules))
        return self._code(letters)

    def export(self, file: Path) -> int:
        """Write them to a file."""
        letters = self._copies()
        if str(file) == "-":
            for letter in letters:
                print(listing.export_line(letter))
        elif letters:
            listing.export(file, letters)
            say(f"{len(letters):,} written to {file}; they are still in the queue")
        return self._code(letters)

    def discard(self, export: Path | None, *, yes: bool) -> int:
        """Remove them, after a question."""
        letters = self._copies()
        if not letters:
            return self._code(letters)
        if not yes:
            if not sys.stdin.isatty():
                say(
                    f"this would discard {len(letters):,} for good: confirm with --yes, as there is no terminal to ask on"
                )
                return WRONG_USE
            if input(f"Discard {len(letters):,} dead letters for good? [y/N] ").strip().lower() not in ("y", "yes"):
                say("nothing was discarded")
                return DONE
        if export is not None:
            listing.export(export, letters)
        count = asyncio.run(self._remove({letter.key for letter in letters}))
        say(f"{count:,} discarded" + (f"; a copy is in {export}" if export else ""))
        return self._code(letters)

    def replay(self, *, dry_run: bool, edit: bool, rate: float, over_newer: bool) -> int:
        """Send them again, except those that would be rejected again or would overwrite a newer row."""
        with Edits(self._rules) as edits:
            if edit:
                for letter in self._copies():
                    edits.edit(letter)
                if not edits.accepted:
                    say("nothing was replayed")
                    return FAILED if self._selector.names else DONE
            chosen = edits if edit else None
            code = asyncio.run(self._replay(chosen, dry_run=dry_run, rate=rate, over_newer=over_newer))
            edits.done = True
            return code

    def _copies(self) -> list[DeadLetter]:
        return asyncio.run(copies(self._settings, self._selector))

    async def _in_the_queue(self) -> list[DeadLetter]:
        async with borrowed(self._settings) as loan:
            letters = [letter async for letter in loan if letter in self._selector]
            if loan.waiting > len(letters) and self._selector.empty:
                say(f"only the oldest {len(letters):,} of {loan.waiting:,} are shown")
            return letters

    async def _remove(self, keys: set[tuple[str, bytes]]) -> int:
        async with selected(self._settings, self._selector, keys) as (loan, letters):
            return await loan.remove(letters)

    async def _replay(self, edits: Edits | None, *, dry_run: bool, rate: float, over_newer: bool) -> int:
        async with selected(self._settings, self._selector, edits.accepted if edits else None) as (loan, letters):
            candidates, kept = edits.applied(letters) if edits else accepted(letters, self._rules)
            if not over_newer:
                candidates, newer = await without_newer_rows(candidates, self._settings)
                kept += newer
            for reason in kept[:FEW]:
                say(reason)
            if len(kept) > FEW:
                say(f"and {len(kept) - FEW:,} more")
            others = f", {len(kept):,} kept" if kept else ""
            if dry_run:
                say(f"{len(candidates):,} would be replayed{others}; nothing was sent")
            elif candidates:
                count = await self._send(loan, candidates, rate)
                say(f"{count:,} replayed{others}; any that are rejected again become dead letters again")
            elif letters:
                say(f"nothing was replayed{others}")
        return self._code(letters) or (SOME_REJECTED if kept else DONE)

    async def _send(self, loan: Loan, candidates: Sequence[Candidate], rate: float) -> int:
        user = urlsplit(self._settings.required_amqp_url).username
        async with publishing(link_of(self._settings)) as publisher:
            with progress(len(candidates)) as bar:
                return await replay(
                    loan,
                    [(candidate.letter, candidate.body) for candidate in candidates],
                    publisher,
                    exchange=self._settings.requests_exchange,
                    user=unquote(user) if user else None,
                    rate=rate,
                    on_replayed=lambda _: bar.advance(bar.task_ids[0]),
                )

    def _code(self, letters: Sequence[DeadLetter]) -> int:
        """Not finding what was named is a failure; that nothing matches the other criteria is not."""
        return FAILED if self._selector.missing(letters) else DONE
