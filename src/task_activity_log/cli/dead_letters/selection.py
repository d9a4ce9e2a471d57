"""Which dead letters are meant, and how they are borrowed from the queue."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from task_activity_log.cli.codes import DEAD_LETTER_CODES, unknown
from task_activity_log.cli.exit_codes import DONE, FAILED, WRONG_USE, fail
from task_activity_log.cli.terminal import counted, say
from task_activity_log.cli.times import UNITS
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter, Loan, answered, borrow_dead_letters, borrow_these
from task_activity_log.client.letters import NO_FIELD, Letter
from task_activity_log.client.record_id import record_id
from task_activity_log.problem import Unavailable
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, rules_of, store_of

_PREFIX_MIN = 4
"""How many characters of a message id are enough to find it."""
_WAITS = (0.5, 1.0, 2.0, 2.0, 2.0)
"""How many seconds to wait before the queue is looked at again, because others have what is looked for."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The dead letters that match every criterion that was given."""

    settings: Settings
    names: frozenset[str]
    codes: frozenset[str]
    publishers: frozenset[str]
    older_than: float | None
    newer_than: float | None
    fields: frozenset[str] = frozenset()
    """Only those in which one of these fields is bad; a dash stands for no field."""
    answered: bool = False
    """Only those whose record was stored since they were rejected."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __contains__(self, letter: DeadLetter) -> bool:
        age = None if letter.since is None else (self.now - letter.since).total_seconds()
        return (
            (not self.names or letter.name in self.names)
            and (not self.codes or letter.code in self.codes)
            and (not self.publishers or letter.publisher in self.publishers)
            and (not self.fields or not self.fields.isdisjoint(self._bad_fields(letter)))
            and (self.older_than is None or (age is not None and age > self.older_than))
            and (self.newer_than is None or (age is not None and age < self.newer_than))
        )

    def _bad_fields(self, letter: DeadLetter) -> Sequence[str]:
        return Letter.of(letter, rules_of(self.settings)).fields or (NO_FIELD,)

    def exit_code(self, letters: Sequence[DeadLetter]) -> int:
        """Not finding a name that was given is a failure; that nothing matches the other criteria is not."""
        return FAILED if self.names - {letter.name for letter in letters} else DONE

    def gone(self, missing: int) -> int:
        """Say that some of the selected dead letters were not in the queue at the second look; the exit code."""
        if missing:
            say(f"{missing:,} were not in the queue any more: another consumer has them, or they were removed")
        return FAILED if missing else DONE

    def age(self, letter: DeadLetter) -> str:
        """How long ago a dead letter was last rejected, in its largest unit."""
        if letter.since is None:
            return "?"
        age = max(0.0, (self.now - letter.since).total_seconds())
        unit = next((unit for unit, size in reversed(UNITS.items()) if age >= size), "s")
        return f"{age / UNITS[unit]:.0f} {unit}"

    def copies(self) -> list[DeadLetter]:
        """The selected dead letters, to read, the oldest first: all are in the queue again. Prints what was not found.

        Raises:
            ClientError: none is found, and other consumers have dead letters.
        """
        every, others = asyncio.run(self._all())
        letters = sorted((letter for letter in every if letter in self), key=lambda letter: letter.rejected_at)
        if self.answered:
            letters = asyncio.run(self._answered(letters))
        if others and not letters:
            raise ClientError(f"nothing was found, but other consumers ({others:,}) have dead letters: run it again")
        present = {letter.name for letter in every}
        for name in sorted(self.names - {letter.name for letter in letters}):
            absent = "no such dead letter"
            if len(name) < _PREFIX_MIN:
                absent += f": give the whole id, or at least {_PREFIX_MIN} characters of it"
            say(f"{name}: does not match the other options" if name in present else f"{name}: {absent}")
        # A code that is in the queue exists: it may be one of a later release.
        if lines := unknown(self.codes - {letter.code for letter in every}, DEAD_LETTER_CODES):
            fail("\n".join(lines), WRONG_USE)
        if not letters and not self.names:
            say(f"no match among {counted(len(every), 'dead letter')}" if every else "there are no dead letters")
        return letters

    def _complete_names(self, every: Sequence[DeadLetter]) -> None:
        """Replace each name that is the beginning of just one by that one. Exits if it is the beginning of several."""
        names = {letter.name for letter in every}
        for name in self.names - names:
            found = sorted(one for one in names if one.startswith(name)) if len(name) >= _PREFIX_MIN else []
            if len(found) > 1:
                fail(f"{name} is the beginning of {len(found):,} message ids: {', '.join(found[:3])}, …", WRONG_USE)
            if found:
                object.__setattr__(self, "names", self.names - {name} | {found[0]})

    async def _answered(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        """Those whose record was modified in the database after they were rejected."""
        ids = {letter.key: record_id(letter.body, letter.properties.content_type) for letter in letters}
        store = store_of(self.settings)
        try:
            modified = await store.modified(sorted({one for one in ids.values() if one is not None}))
        except Unavailable as error:
            raise ClientError(f"cannot find out which records were stored since: {error.reason}") from None
        finally:
            await store.close()
        changed = {key: modified.get(one) for key, one in ids.items() if one is not None}
        return [letter for letter in letters if answered(letter, changed.get(letter.key))]

    async def _all(self) -> tuple[list[DeadLetter], int]:
        """All dead letters that are not with other consumers, and how many others there are.

        If what is selected is not among them, it looks again for a while: another command has them for a moment only.
        """
        queue = self.settings.dead_letters_queue
        for wait in (*_WAITS, None):
            async with borrow_dead_letters(link_of(self.settings), queue) as loan:
                letters = [letter async for letter in loan]
            self._complete_names(letters)
            found = {letter.name for letter in letters if letter in self}
            if not loan.others or (found and self.names <= found) or wait is None:
                break
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - only so that two commands do not go on together
        if loan.others:
            say(f"{queue} has other consumers ({loan.others}): what they have is not seen here")
        if loan.newer:
            say(f"only the oldest {len(letters):,} of {loan.waiting:,} were read")
        return letters, loan.others

    def on_loan(self, keys: Iterable[str]) -> AbstractAsyncContextManager[tuple[Loan, list[DeadLetter]]]:
        """The dead letters with these keys, on loan; all others have been returned to the queue."""
        return borrow_these(link_of(self.settings), self.settings.dead_letters_queue, keys)

    async def remove(self, letters: Sequence[DeadLetter]) -> int:
        """Remove these from the queue for good; returns how many the queue has removed."""
        async with self.on_loan(letter.key for letter in letters) as (loan, found):
            return await loan.remove(found)
