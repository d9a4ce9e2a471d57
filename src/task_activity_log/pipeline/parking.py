"""Parking: requests whose row is locked, slow or fails for now wait here, so that they delay their own record alone.

A record is parked with the request that did not pass. While it is parked, all later requests of it join behind, so that
they keep their order. The others go on. One task tries the parked records again, each about once a second, over a
connection of its own, and passes on what must be settled. Records whose statement takes long are tried by another one.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, NamedTuple
from uuid import UUID

import structlog

from task_activity_log.pipeline import settling
from task_activity_log.pipeline.lines import Line, Parked
from task_activity_log.pipeline.ports import D, Settlement
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.pipeline.retrying import SHOWN, Retrying
from task_activity_log.pipeline.timing import Repeats
from task_activity_log.problem import Failed, Refused, TimedOut, Unavailable
from task_activity_log.record import Applied, Outcome, StoredTaskActivityLog

log = structlog.get_logger(__name__)

_LONG_BYTES = 2**18
"""From this length on, the replies to several requests of a record are not published in one batch."""
_LONG_TEXT = 2**15
"""The characters of a record whose reply may be long: each can become six bytes."""


def is_long(record: StoredTaskActivityLog) -> bool:
    """Whether the texts of a record make its reply a long one."""
    texts = (record.subject, record.description, record.reference_back_office)
    return sum(len(text) for text in texts if text is not None) > _LONG_TEXT


class Rejection(NamedTuple, Generic[D]):
    """A request that the database refuses, and the number of statements that had passed then."""

    request: Request[D]
    cause: Refused
    passes: int


async def _at_once() -> None:
    pass


@dataclass(eq=False)
class Parking(Retrying[D]):
    """The records that are parked.

    `Storing` parks them, and asks before each wave which records are parked. `Retrying.run` tries them again.
    """

    before_parking: Callable[[], Awaitable[None]] = _at_once
    """Awaited before requests are parked. It passes on what is stored of their batch: later requests of the same records are
    answered from here, and their replies must not come first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rejected: list[Rejection[D]] = []  # of the batch that `Storing` works on
        self._repeats = Repeats()  # of the batch that `Storing` works on
        self._modes: set[UpdateMode] = set()  # of its waves so far
        self._long: set[UUID] = set()  # its records that were answered with long replies
        self._answered_bytes = 0  # of its replies so far
        self.is_first = True
        """Whether the wave that was admitted last is the first one of its update mode in the batch."""

    # what others ask

    @property
    def messages(self) -> int:
        """How many messages are parked. What was requeued meanwhile does not count, as it is not in hand any more."""
        return len(self._parked()) + len(self._quick.parts) + len(self._slow.parts)

    def _parked(self) -> list[D]:
        return [delivery for delivery in self._lines.deliveries() if self.intake.has(delivery)]

    @property
    def records(self) -> int:
        """How many records are parked."""
        return len(self._lines)

    @property
    def has_slow(self) -> bool:
        """Whether a record is parked whose statement takes long."""
        return len(self._untried) > 0 or any(line.rounds for line in self._lines.values())

    def full(self) -> bool:
        """Whether the worker must take no more because too much is parked."""
        return (
            self.messages >= self.limits.messages or sum(each.weight for each in self._parked()) >= self.limits.weight
        )

    @property
    def reason(self) -> str:
        """How much is parked and why, in a few words."""
        return f"{self.messages} messages of {self.records} records wait for their rows ({self._lines.causes})"

    def report(self) -> dict[str, object]:
        """What is parked, for /status."""
        return {
            "messages": self.messages,
            "records": self.records,
            "oldest_seconds": round(self.oldest_seconds, 1),
            "some": self._lines.some(SHOWN),
        }

    # what Storing calls

    async def admit(self, wave: Sequence[Request[D]], pass_on: Callable[[], Awaitable[None]]) -> Sequence[Request[D]]:
        """The requests of a wave that are to be stored now.

        The others join behind the earlier requests of their records, which are parked. If the same records have taken too
        long again and again in this batch, so do they: records that are costly to write, and come hundreds of times, delay
        themselves alone. So do records with a long reply that come again: a short merge can be answered with megabytes.
        Their earlier requests must be settled before: `pass_on` passes on what was stored.
        """
        now = time.monotonic()
        self._repeats.end(now)
        free: list[Request[D]] = []
        joining: list[Request[D]] = []
        for request in wave:
            line = self._lines.get(request.record.id)
            if line is None:
                free.append(request)
            else:
                line.waiting.append(Parked(request, now))
                joining.append(request)
        await self._prove(joining)
        if again := [request for request in free if request.record.id in self._long]:
            free = [request for request in free if request.record.id not in self._long]
            await pass_on()
            await self.park(again, TimedOut("its reply is long, and it is requested again"), self.refusals.passes)
        if not free:
            return free
        self.is_first = free[0].mode not in self._modes
        self._modes.add(free[0].mode)
        if not self.is_first:
            if self._repeats.long and await self._are_costly(free):
                await pass_on()
                await self.park(free, TimedOut("costly, and requested many times"), self.refusals.passes)
                return ()
            self._repeats.begin(len(free), time.monotonic())
        return free

    async def _are_costly(self, wave: Sequence[Request[D]]) -> bool:
        """Whether the waves of this batch take long because of their records. If not, it is asked again after as long.

        If a probe takes as long, it is the database. If rows of theirs are locked, another worker writes the same records,
        and each wave waits for one of its waves. Parked, each request would wait for one by itself.
        """
        ids = [request.record.id for request in wave]
        costly = False
        with suppress(Unavailable):
            async with self._quick.use() as store:
                locked = await store.locked(ids)  # it also opens the connection
                started = time.monotonic()
                await store.probe()
                costly = self._repeats.costly(time.monotonic() - started) and not locked and not await store.locked(ids)
        if not costly:
            self._repeats = Repeats()
        return costly

    async def park(self, requests: Sequence[Request[D]], cause: Failed, passes: int) -> None:
        """Park these requests.

        Args:
            requests: their records are not parked.
            cause: why they did not pass.
            passes: what it was before they were tried.
        """
        await self._park(requests, cause, passes)

    async def park_untried(self, parts: Sequence[Sequence[Request[D]]], cause: Failed, passes: int) -> None:
        """Park parts of a wave that does not pass. The requests of each are tried together."""
        if parts:
            requests = [request for part in parts for request in part]
            await self._park(requests, cause, passes, parts)

    def answered(self, request: Request[D], size: int) -> None:
        """This request of the batch is answered with a reply of `size` bytes."""
        self._answered_bytes += size
        if size > _LONG_BYTES:
            self._long.add(request.record.id)

    def answers_apart(self, applied: Applied) -> bool:
        """Whether a request that is stored is to be parked with `park_unread` although its record was read.

        It is if its record is long and the batch was answered with many bytes before. A reply may be five times as long as the
        texts of the record, because characters are escaped. Others would wait until the broker has taken all of these replies.
        """
        return self._answered_bytes > self.part_bytes and applied.record is not None and is_long(applied.record)

    async def park_unread(self, stored: Sequence[tuple[Request[D], Outcome]]) -> None:
        """Park requests that are stored and whose records are to be read once more, because all replies together are long."""
        await self.before_parking()
        now = time.monotonic()
        for request, outcome in stored:
            line = Line[D](request.record.id, TimedOut("its reply is long"), self.refusals.passes, due=now)
            line.waiting.append(Parked(request, now, outcome))
            self._lines[line.record] = line
        self._wake()
        await self._prove([request for request, _ in stored])

    async def _park(
        self,
        requests: Sequence[Request[D]],
        cause: Failed,
        passes: int,
        parts: Sequence[Sequence[Request[D]]] = (),
    ) -> None:
        await self.before_parking()
        if passes == self.refusals.passes and not isinstance(cause, TimedOut):
            self.on_outage(cause)
        now = time.monotonic()
        refused = passes if cause.lasting and not parts else None
        for request in requests:
            identifier = request.record.id
            line = self._lines.setdefault(identifier, Line[D](identifier, cause, refused, due=now))
            line.waiting.append(Parked(request, now))
        for part in parts:
            lines = [self._lines[request.record.id] for request in part]
            for line in lines:
                line.taken = True
            self._untried.add(lines)
        self._wake()
        log.warning(
            "parked",
            records=[str(request.record.id) for request in requests[:SHOWN]],
            count=len(requests),
            reason=cause.reason,
            parked=self.messages,
        )
        await self._prove(requests)

    def reject(self, request: Request[D], cause: Refused) -> None:
        """Reject a request of the current batch."""
        self._rejected.append(Rejection(request, cause, self.refusals.passes))

    async def is_at_fault(self, request: Request[D], cause: Refused, passes: int) -> bool:
        """Whether a request that was refused alone is at fault. If the database refuses every row, it is parked."""
        if (everybodys := await self._everybodys(cause.rule, passes, lasting=False)) is None:
            return True
        # What was rejected since the last pass, a moment ago, was not at fault either. If a record is parked for another
        # reason, later requests of it are waiting already: an earlier one must not come behind them.
        now_passes = self.refusals.passes
        waiting = [
            one for one in self._rejected if one.passes == now_passes and one.request.record.id not in self._lines
        ]
        self._rejected = [one for one in self._rejected if one not in waiting]
        await self.park([*(one.request for one in waiting), request], everybodys, passes)
        return False

    def begin(self) -> None:
        """A batch begins. What was rejected of one that was given up comes again."""
        self._rejected.clear()
        self._repeats = Repeats()
        self._modes.clear()
        self._long.clear()
        self._answered_bytes = 0

    def rejected(self) -> list[Settlement[D]]:
        """The settlements of what is rejected of the batch."""
        return [settling.rejected(request, cause.problem) for request, cause, _ in self._rejected]

    async def _prove(self, requests: Sequence[Request[D]]) -> None:
        """They were processed safely: a new consumer, which delivers little at first, need not wait for them."""
        if requests:
            await self.intake.prove([request.delivery for request in requests])
