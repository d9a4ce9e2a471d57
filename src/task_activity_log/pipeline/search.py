"""The search for the rows at fault in a wave that does not pass as a whole."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Generic

from task_activity_log.pipeline.parking import Parking
from task_activity_log.pipeline.ports import D, Patience, Store
from task_activity_log.pipeline.request import Request
from task_activity_log.pipeline.timing import Step, next_step
from task_activity_log.pipeline.waves import divide, halve
from task_activity_log.problem import Failed, Refused, TimedOut
from task_activity_log.record import Applied

_LOCK_SECONDS, _LEAST_SECONDS = 1.0, 2.0
"""For a wave: the longest wait for a lock, and the least limit of its statement. Everybody in the batch, and in the batches
behind it, waits for that, for the search and for one more statement: together less than five seconds."""
_WARNED_LOCK_SECONDS = 0.1
"""While rows are parked. Somebody locks rows, and may lock more: each would cost the others a second."""
_WARNED_LEAST_SECONDS = 0.5
"""While slow rows are parked, for the same reason; and for parts of a wave that has failed."""
_SEARCH_SECONDS = 2.0
"""How long rows that fail are searched for. A row that is refused is searched for until it is found."""


class PartFailed(Exception):
    """The database works, and a part of a wave failed: it is too large, or one of its rows is locked, slow or at fault."""

    def __init__(self, cause: Failed) -> None:
        self.cause = cause


class Search(Generic[D]):
    """The parts of one wave that are still to be tried.

    A wave that does not pass is divided until the row at fault is alone, and all other rows are stored. If it fails at
    once, it is halved: O(log n) statements for one row among n. If it has timed out, the rows that are locked are found by
    one statement; and if there are none, it is divided into as many parts as these have rows: then only two more
    statements have to time out for one row. What fails alone is parked. What is not found in time is parked as well:
    there each row is tried alone, and nobody else waits.
    """

    def __init__(self, wave: Sequence[Request[D]], parking: Parking[D]) -> None:
        """Begin with the whole wave, which may be empty."""
        self._parking, self._timing = parking, parking.timing
        self._passes = parking.refusals.passes
        self._parts = [wave]
        self._warned, self._slow_rows = bool(parking.records), parking.has_slow
        self._typical = parking.is_first
        self._until = math.inf  # when the search ends; set by the first failure
        self._together = False  # whether what was left then was put together
        self._limit: float | None = None  # of the part that was tried last

    def next(self) -> Sequence[Request[D]]:
        """The part that is tried next; empty if there are no more. When the time is over, it is all that is left."""
        if time.monotonic() > self._until and not self._together:
            self._together = True
            self._parts = [[request for part in reversed(self._parts) for request in part]]
        return self._parts.pop() if self._parts else ()

    @property
    def _failed(self) -> bool:
        return self._until < math.inf

    def patience(self, rows: int) -> Patience:
        """For a part of this number of rows, now."""
        least = _WARNED_LEAST_SECONDS if self._failed or self._slow_rows else _LEAST_SECONDS
        self._limit = self._timing.limit(rows, least)
        return Patience(_WARNED_LOCK_SECONDS if self._failed or self._warned else _LOCK_SECONDS, self._limit)

    async def write(self, store: Store, part: Sequence[Request[D]]) -> list[Applied]:
        """Write a part, or what is left of it, and remember how long that took. Raises as `Store.apply`."""
        started = time.monotonic()
        applied = await store.apply(part, self.patience(len(part)))
        if self._typical:  # later waves of a batch have the same few records again, which may be costly ones
            self._timing.passed(len(part), time.monotonic() - started)
        return applied

    async def probe(self, store: Store, cause: Failed) -> None:
        """Prove that the database works although a part has failed. Raises `Unavailable` if it does not."""
        started, passed = time.monotonic(), False
        try:
            await store.probe()
            passed = True
        finally:
            if passed:
                self._timing.probed(time.monotonic() - started)
            elif isinstance(cause, TimedOut):
                self._timing.outage()

    def passed(self, part: Sequence[Request[D]]) -> None:
        """This was stored of the part: all of it, or nothing if everything was requeued meanwhile."""
        if part:
            self._parking.passed(part[-1].record)

    async def refused(self, part: Sequence[Request[D]], cause: Refused) -> None:
        """The database refuses the part. A single row is rejected, unless the database refuses every row."""
        if (everybodys := self._parking.refusals.everybodys) is not None:
            await self._parking.park(part, everybodys, self._passes)
        elif len(part) > 1:
            self._parts += reversed(halve(part))
        else:
            await self._parking.reject(part[0], cause, self._passes)

    async def failed(self, part: Sequence[Request[D]], cause: Failed) -> None:
        """The part failed although the database works."""
        limit = self._limit
        if not self._failed:
            self._until = time.monotonic() + _SEARCH_SECONDS
        in_time = time.monotonic() < self._until and self._parking.refusals.everybodys is None
        timed_out = isinstance(cause, TimedOut)
        locked = await self._parking.locked(part) if in_time and timed_out else set()
        if locked:
            await self._parking.park([request for request in part if request.record.id in locked], cause, self._passes)
            if free := [request for request in part if request.record.id not in locked]:
                self._parts.append(free)
            return
        exceeded = limit if isinstance(cause, TimedOut) and not cause.locked else None
        match next_step(len(part), exceeded, self.patience(len(part)).seconds, in_time=in_time):
            case Step.AGAIN:
                self._parts.append(part)
            case Step.DIVIDE:
                self._parts += reversed(divide(part) if timed_out else halve(part))
            case Step.PARK:
                await self._parking.park(part, cause, self._passes, slow=len(part) == 1 and exceeded is not None)
