"""Which dead letters are meant, and how they are borrowed from the queue."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from task_activity_log.cli.terminal import say
from task_activity_log.client.dead_letters import DeadLetter, Loan, borrow_dead_letters
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float | None:
    """The seconds in `30s`, `15m`, `2h` or `7d`; None for an empty text.

    Raises:
        ValueError: it is something else.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise ValueError(f"invalid duration {text}: use a number and a unit, as in 30s, 15m, 2h or 7d")
    return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True, slots=True)
class Selector:
    """Selects the dead letters that match every criterion that was given."""

    names: frozenset[str] = frozenset()
    codes: frozenset[str] = frozenset()
    publishers: frozenset[str] = frozenset()
    older_than: float | None = None
    newer_than: float | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def empty(self) -> bool:
        """Whether no criterion was given."""
        return not (self.names or self.codes or self.publishers or self.older_than or self.newer_than)

    def __contains__(self, letter: DeadLetter) -> bool:
        age = None if letter.since is None else (self.now - letter.since).total_seconds()
        return (
            (not self.names or letter.name in self.names)
            and (not self.codes or letter.code in self.codes)
            and (not self.publishers or letter.publisher in self.publishers)
            and (self.older_than is None or (age is not None and age > self.older_than))
            and (self.newer_than is None or (age is not None and age < self.newer_than))
        )

    def missing(self, letters: Sequence[DeadLetter]) -> frozenset[str]:
        """The names that were given and are not those of `letters`."""
        return self.names - {letter.name for letter in letters}

    def age(self, letter: DeadLetter) -> str:
        """How long ago a dead letter was first rejected, in its largest unit."""
        if letter.since is None:
            return "?"
        age = max(0.0, (self.now - letter.since).total_seconds())
        unit = next((unit for unit, size in reversed(_UNITS.items()) if age >= size), "s")
        return f"{age / _UNITS[unit]:.0f} {unit}"


@asynccontextmanager
async def borrowed(settings: Settings) -> AsyncIterator[Loan]:
    """All dead letters, on loan; prints a line if other consumers may have some."""
    async with borrow_dead_letters(link_of(settings), settings.dead_letters_queue) as loan:
        if loan.others:
            say(f"{settings.dead_letters_queue} has other consumers ({loan.others}): what they have is not seen here")
        yield loan


@asynccontextmanager
async def selected(
    settings: Settings, selector: Selector, keys: Container[tuple[str, bytes]] | None = None
) -> AsyncIterator[tuple[Loan, list[DeadLetter]]]:
    """The selected dead letters, on loan; all others have been returned to the queue.

    Prints what `selector` does not find, unless it selects again among the `keys` of those that it found before.
    """
    async with borrowed(settings) as loan:
        letters: list[DeadLetter] = []
        others: list[DeadLetter] = []
        async for letter in loan:
            wanted = letter in selector and (keys is None or letter.key in keys)
            (letters if wanted else others).append(letter)
        if keys is None:
            _say_what_is_missing(selector, letters, others)
        await loan.give_back(others)
        yield loan, letters


async def copies(settings: Settings, selector: Selector) -> list[DeadLetter]:
    """The selected dead letters, to read: they have been returned to the queue."""
    async with selected(settings, selector) as (_, letters):
        return letters


def _say_what_is_missing(selector: Selector, letters: Sequence[DeadLetter], others: Sequence[DeadLetter]) -> None:
    for name in sorted(selector.missing(letters)):
        say(f"{name}: no such dead letter")
    if not letters and not selector.names:
        say(f"none of the {len(others):,} dead letters match" if others else "there are no dead letters")
