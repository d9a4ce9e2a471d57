"""The lines of parked records, one for each record with its requests in order; and the two lanes where they are tried."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Final, Generic, NamedTuple
from uuid import UUID

from task_activity_log.pipeline.batches import Parts
from task_activity_log.pipeline.groups import TRIAL_SECONDS
from task_activity_log.pipeline.ports import D, Patience, Store
from task_activity_log.pipeline.request import Request
from task_activity_log.problem import Failed, Rule, Unavailable
from task_activity_log.record import Outcome

_QUICK_LEAST_SECONDS = 0.05
_ROUND_SECONDS = 1.0
_ASKED_SECONDS = 0.25
"""How long the database may take to answer after others have timed out before a slow statement is ended."""
_QUICK_ROUNDS = 5
"""A row that has exceeded its limit more often is not tried in the quick lane. The last limit there is 0.32 seconds."""
_SLOW_ROUNDS = 6
"""In the slow lane a row has the limit of this round at least: 0.64 seconds."""


class Limits(NamedTuple):
    """How much may be parked, and how long."""

    messages: int = 1000
    """Half of the prefetch. When as many messages are parked, no more are taken."""
    weight: float = inf
    """The same by their memory (`Delivery.weight`): half of what may be in hand before the broker is not read."""
    seconds: float = 600.0
    """How long a message may be parked before everything in hand is returned to the queue."""


USUAL: Final = Limits()


class Parked(NamedTuple, Generic[D]):
    """A request, and when it was parked (`time.monotonic`)."""

    request: Request[D]
    since: float
    outcome: Outcome | None = None
    """What became of it, if it is stored and its record is still to be read; None if it is not stored."""


@dataclass(eq=False, slots=True)
class Line(Generic[D]):
    """One record that is parked."""

    record: UUID
    cause: Failed
    """Why its first request did not pass."""
    passes: int | None
    """The number of statements that had passed when its first request was tried for the first time of those times when it was
    refused for the same reason; None: it was not refused yet. Those that pass while it waits for a lock, or for another reason,
    say nothing about it. See `Refusals`."""
    due: float
    """When it is tried next."""
    waiting: deque[Parked[D]] = field(default_factory=deque)
    """Its requests, in order."""
    tries: int = 0
    """How often its first request was tried here."""
    last: D | None = None
    """The delivery that was passed on last."""
    rounds: int = 0
    """How often its first request has exceeded its limit although its row is not locked. The limit doubles each time."""
    crashes: int = 0
    """How often in a row the database server has crashed while its first request was tried alone here."""
    taken: bool = False
    """Whether it waits for a trial together with others, or is tried now."""
    outage: Unavailable | None = None
    """Why its first request could not be tried at the last time, such as too many connections; None: it was tried."""

    @property
    def why(self) -> Unavailable:
        """Why its first request waits."""
        return self.outage or self.cause

    def did_not_pass(self, why: Unavailable) -> None:
        """Note why its first request did not pass, or could not be tried."""
        if isinstance(why, Failed):
            self.cause, self.outage = why, None
        else:
            self.outage = why

    def refused(self, rule: Rule, passes: int) -> int:
        """This rule refuses its first request, which was tried after `passes`. Since when it has done so, in `passes`."""
        if self.passes is None or rule != self.cause.rule:
            self.passes = passes
        return self.passes


class Lines(dict[UUID, Line[D]], Generic[D]):
    """All lines, by record. Another thread may read them, for /status."""

    def deliveries(self) -> list[D]:
        """What is parked."""
        return [parked.request.delivery for line in list(self.values()) for parked in list(line.waiting)]

    def since(self) -> list[float]:
        """When the oldest message of each record was parked."""
        return [line.waiting[0].since for line in list(self.values()) if line.waiting]

    @property
    def causes(self) -> str:
        """Why records are parked, in a few words."""
        return ", ".join(sorted({line.why.label for line in list(self.values())}))

    def some(self, most: int) -> list[dict[str, str]]:
        """The first records and the reasons, for /status."""
        return [{"id": str(line.record), "reason": line.why.reason} for line in list(self.values())[:most]]


class Others(asyncio.Event):
    """Set when others may wait for what a slow statement has locked. It is ended then."""

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The database is asked in this block why others have timed out. If that takes long, set it.

        A slow statement may have locked a whole table.
        """
        timer = asyncio.get_running_loop().call_later(_ASKED_SECONDS, self.set)
        try:
            yield
        finally:
            timer.cancel()


class Lane(Generic[D]):
    """Where parked records are tried, one after the other, over a connection of its own."""

    def __init__(self, store: Store, parts: Parts[D], *, slow: bool) -> None:
        self.store = store
        self.parts = parts
        """Of its own: others collect what must be settled at the same time."""
        self.slow = slow
        """Whether it is for slow records, whose statements may take long. They delay each other, and no others."""
        self.changed = asyncio.Event()
        """Set when there may be something to do."""
        self._used = asyncio.Lock()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Store]:
        """Use the connection from another task, also if nothing is parked. Then it is closed afterwards, and not before."""
        try:
            async with self._used:
                yield self.store
        finally:
            self.changed.set()

    async def close(self) -> None:
        """Close the connection when no other task uses it."""
        async with self._used:
            await self.store.close()

    def lines(self, lines: Lines[D]) -> list[Line[D]]:
        """Those of these lines that may be tried here now.

        A slow one may be tried in both lanes. Those whose statement took long only once, because the server was busy at that
        moment, need not wait for the others then.
        """
        if self.slow:
            return [line for line in lines.values() if line.rounds > 0 and not line.taken]
        return [line for line in lines.values() if line.rounds <= _QUICK_ROUNDS and not line.taken]

    def next(self, lines: Lines[D], now: float) -> Line[D] | None:
        """The line that is tried next, perhaps later; None if there is none.

        Of those that are due, it is the least slow. Of these, one whose first request was not tried here yet comes first: it does
        not wait for hundreds that wait for a lock.
        """
        return min(
            self.lines(lines),
            key=lambda line: (max(line.due, now), line.rounds, line.tries > 0, line.due),
            default=None,
        )

    def exceeded(self, rounds: int) -> int:
        """The rounds of a line that has exceeded its limit here."""
        return max(rounds, _SLOW_ROUNDS) + 2 if self.slow else rounds + 1


def quick(records: int, usual: float | None, rounds: int = 0) -> Patience:
    """How long a statement may take in the quick lane, so that trying all of its records takes a second or two.

    Args:
        records: how many there are.
        usual: the limit for one row (`Timing.limit`); None: as long as any statement.
        rounds: those of its line.
    """
    share = _ROUND_SECONDS / max(1, records)
    lock_seconds = max(0.01, share)
    if usual is None:
        return Patience(lock_seconds)
    least = max(_QUICK_LEAST_SECONDS, share) if rounds == 0 else TRIAL_SECONDS * 2.0**rounds
    return Patience(lock_seconds, lock_seconds + max(least, usual))


def slow(records: int, rounds: int) -> Patience:
    """How long a statement may take in the slow lane: as long as any if it has one record; otherwise the longer, the later.

    So rows that take 0.4 seconds do not wait for all those that take ten, and at most a third of the time is spent in vain.
    """
    if records == 1:
        return Patience()
    seconds = TRIAL_SECONDS * 2.0 ** max(rounds, _SLOW_ROUNDS)
    return Patience(min(_ROUND_SECONDS, seconds / 2), seconds)
