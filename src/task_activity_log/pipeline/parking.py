"""Parking: requests whose row is locked, late or fails for now wait here, so that they delay their own record alone.

A record is parked with the request that did not pass. While it is parked, all later requests of it join behind, so that
they keep their order. The others go on. One task tries the parked records again, each about once a second, over a
connection of its own, and passes on what must be settled.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, NamedTuple
from uuid import UUID

import structlog

from task_activity_log import wire
from task_activity_log.aio import SharedLock, end
from task_activity_log.pipeline import settling
from task_activity_log.pipeline.batches import Parts
from task_activity_log.pipeline.ports import D, Intake, Patience, Settlement, Store
from task_activity_log.pipeline.refusals import TRY_AGAIN_SECONDS, Refusals
from task_activity_log.pipeline.request import Request
from task_activity_log.pipeline.suspects import is_suspect
from task_activity_log.problem import Failed, Refused, Rule, TimedOut, Unavailable
from task_activity_log.record import TaskActivityLog

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
"""How often a record is tried again."""
_REFUSED_SECONDS = 30.0
"""How often a record is tried again, in the end, while the database refuses every row."""
_SETTLED_AT_ONCE = 100
"""Number of requests of one record after which other records are tried."""
_AT_ONCE_SECONDS = 1.0
"""How long requests of one record are tried one after the other before other records are tried."""
_FEW = 16
"""Waves of so few requests count as those of a few records that come again and again in a batch."""
_FEW_SECONDS = 2.0
"""How long these waves may take in one batch. Then the rest of them is parked: other records wait for them no longer."""
_COSTLY_SECONDS = 0.02
"""From this time on, on average, a wave of few requests is costly. Others are not parked: they pass sooner in their batch."""
_SECONDS = (2.0, 4.0, 8.0, None)
"""Time for a statement, by the number of tries before: a slow row passes in the end, and does not delay others at first."""
_SETTLING_SECONDS = 0.05
"""How often a suspect looks whether the request before it is settled."""
_STOP_SECONDS = 1.0
_SHOWN = 20


class Parked(NamedTuple, Generic[D]):
    """A request, and when it was parked (`time.monotonic`)."""

    request: Request[D]
    since: float


@dataclass(eq=False, slots=True)
class Line(Generic[D]):
    """One record that is parked."""

    record: UUID
    cause: Failed
    """Why its first request did not pass."""
    passes: int
    """The number of statements that had passed when its first request was tried; see `Refusals`."""
    due: float
    """When it is tried next."""
    waiting: deque[Parked[D]] = field(default_factory=deque)
    """Its requests, in order."""
    tries: int = 0
    """How often its first request was tried here."""
    last: D | None = None
    """The delivery that was passed on last."""


class Rejection(NamedTuple, Generic[D]):
    """A request that the database refuses, and the number of statements that had passed then."""

    request: Request[D]
    cause: Refused
    passes: int


async def _at_once() -> None:
    pass


@dataclass(eq=False)
class Parking(Generic[D]):
    """The records that are parked.

    `Storing` parks them, and asks before each wave which records are parked. `run` tries them again.
    """

    intake: Intake[D]
    store: Store
    """Over a connection of its own, so that nobody waits for a statement that waits for a lock."""
    parts: Parts[D]
    """Of its own: `Storing` collects others at the same time."""
    writes: SharedLock
    """Shared by each write to the database. Had alone to requeue."""
    nulls: wire.Nulls
    refusals: Refusals
    most: int
    """Half of the prefetch. When as many messages are parked, `Storing` takes no more."""
    limit_seconds: float
    """How long a message may be parked before everything in hand is returned to the queue."""
    on_outage: Callable[[Failed], None] = lambda _: None
    """Called when requests are parked while no others pass: it may be an outage, although a probe passes."""
    before_parking: Callable[[], Awaitable[None]] = _at_once
    """Awaited before requests are parked. It passes on what is stored of their batch: later requests of the same records are
    answered from here, and their replies must not come first."""
    on_answer: Callable[[], None] = lambda: None
    """Called when a parked request was stored or refused: the database answers."""

    def __post_init__(self) -> None:
        self._lines: dict[UUID, Line[D]] = {}  # by record
        self._rejected: list[Rejection[D]] = []  # of the batch that `Storing` works on
        self._few_since: float | None = None  # since when `Storing` works on a wave of few requests
        self._few_seconds = 0.0  # how long it has worked on such waves of its batch,
        self._few_waves = 0  # and how many there were
        self._changed = asyncio.Event()  # something was parked, or `stop` was called
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    # what others ask

    @property
    def messages(self) -> int:
        """How many messages are parked. What was requeued meanwhile does not count, as it is not in hand any more."""
        waiting = [parked.request.delivery for line in list(self._lines.values()) for parked in list(line.waiting)]
        return sum(map(self.intake.has, waiting)) + len(self.parts)

    @property
    def records(self) -> int:
        """How many records are parked."""
        return len(self._lines)

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest message has been parked; 0 if there is none."""
        return time.monotonic() - min(self._since(), default=time.monotonic())

    def full(self) -> bool:
        """Whether the worker must take no more because too many messages are parked."""
        return self.messages >= self.most

    @property
    def reason(self) -> str:
        """How much is parked and why, in a few words."""
        lines = list(self._lines.values())
        causes = ", ".join(sorted({line.cause.label for line in lines}))
        return f"{self.messages} messages of {len(lines)} records wait for their rows ({causes})"

    def report(self) -> dict[str, object]:
        """What is parked, for /status."""
        records = list(self._lines.values())
        return {
            "messages": self.messages,
            "records": len(records),
            "oldest_seconds": round(self.oldest_seconds, 1),
            "some": [{"id": str(line.record), "reason": line.cause.reason} for line in records[:_SHOWN]],
        }

    # what Storing calls

    async def admit(self, wave: Sequence[Request[D]], pass_on: Callable[[], Awaitable[None]]) -> Sequence[Request[D]]:
        """The requests of a wave that are to be stored now.

        The others join behind the earlier requests of their records, which are parked. If waves of few requests have taken
        too long in this batch, so are the records of this one: a record that is costly to write, and comes hundreds of
        times, delays itself alone. Its earlier requests must be settled before: `pass_on` passes on what was stored.
        """
        now = time.monotonic()
        if self._few_since is not None:
            self._few_seconds, self._few_since = self._few_seconds + now - self._few_since, None
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
        if 0 < len(free) <= _FEW:
            if self._few_seconds > max(_FEW_SECONDS, _COSTLY_SECONDS * self._few_waves):
                await pass_on()
                await self.park(free, TimedOut("costly, and requested many times"), self.refusals.passes)
                return ()
            self._few_since = now
            self._few_waves += 1
        return free

    async def park(self, requests: Sequence[Request[D]], cause: Failed, passes: int) -> None:
        """Park these requests. `passes` is what it was before they were tried."""
        await self.before_parking()
        if passes == self.refusals.passes and not isinstance(cause, TimedOut):
            self.on_outage(cause)
        now = time.monotonic()
        for request in requests:
            identifier = request.record.id
            line = self._lines.setdefault(identifier, Line[D](identifier, cause, passes, due=now))
            line.waiting.append(Parked(request, now))
        self._changed.set()
        log.warning(
            "parked",
            records=[str(request.record.id) for request in requests[:_SHOWN]],
            count=len(requests),
            reason=cause.reason,
            parked=self.messages,
        )
        await self._prove(requests)

    def passed(self, record: TaskActivityLog) -> None:
        """A statement has stored this record, perhaps with others."""
        if self.refusals.passed(record):  # what waits was refused by its own fault, and need not wait any more
            for line in self._lines.values():
                line.due = 0.0
            self._changed.set()
            self.on_answer()

    async def reject(self, request: Request[D], cause: Refused, passes: int) -> None:
        """Reject a request of the current batch, or park it if the database refuses every row."""
        if (everybodys := await self._everybodys(cause.rule, passes, lasting=False)) is None:
            self._rejected.append(Rejection(request, cause, self.refusals.passes))
            return
        # What was rejected since the last pass, a moment ago, was not at fault either. If a record is parked for another
        # reason, later requests of it are waiting already: an earlier one must not come behind them.
        now_passes = self.refusals.passes
        waiting = [
            one for one in self._rejected if one.passes == now_passes and one.request.record.id not in self._lines
        ]
        self._rejected = [one for one in self._rejected if one not in waiting]
        await self.park([*(one.request for one in waiting), request], everybodys, passes)

    def begin(self) -> None:
        """A batch begins. What was rejected of one that was given up comes again."""
        self._rejected.clear()
        self._few_seconds, self._few_since, self._few_waves = 0.0, None, 0

    def rejected(self) -> list[Settlement[D]]:
        """The settlements of what is rejected of the batch."""
        return [settling.rejected(request, cause.problem) for request, cause, _ in self._rejected]

    async def _everybodys(self, rule: Rule, since: int, *, lasting: bool) -> Failed | None:
        """Why the database refuses every row; None if it is the fault of the row that it has refused by this rule."""
        self._changed.set()  # if nothing is parked, the connection is closed again
        if self.refusals.must_try(rule, since, time.monotonic(), lasting=lasting):
            try:
                found = await self.store.try_own_rows(self.refusals.accepted)
            except Unavailable as outage:
                return outage if isinstance(outage, Failed) else Failed(outage.label, rule.sqlstate)
            self.refusals.tried(rule, since, time.monotonic(), found)
        return self.refusals.everybodys if since == self.refusals.passes else None

    async def locked(self, requests: Sequence[Request[D]]) -> set[UUID]:
        """The records whose rows are locked now, as far as the database tells."""
        self._changed.set()  # if nothing is parked, the connection is closed again
        try:
            return await self.store.locked([request.record.id for request in requests])
        except Unavailable:
            return set()

    async def stop(self) -> None:
        """Try nothing more. What is parked stays unsettled, and is returned to the queue with everything else."""
        self._stopping = True
        self._changed.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_STOP_SECONDS)
            await end(self._task)
        await self.store.close()

    async def _prove(self, requests: Sequence[Request[D]]) -> None:
        """They were processed safely: a new consumer, which delivers little at first, need not wait for them."""
        if requests:
            await self.intake.prove([request.delivery for request in requests])

    # the task

    async def run(self) -> None:
        """Try what is parked again, until `stop` is called."""
        self._task = asyncio.current_task()
        while not self._stopping:
            self._changed.clear()
            now = time.monotonic()
            if not self._lines:
                await self.store.close()
                await self._changed.wait()
            elif (returned_at := min(self._since()) + self.limit_seconds) <= now:
                await self._return_all()
            elif (line := min(self._lines.values(), key=lambda line: line.due)).due <= now:
                await self._try(line)
            else:
                await self._until_changed(min(line.due, returned_at) - now)

    async def _until_changed(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def _try(self, line: Line[D]) -> None:
        """Store the requests of one record in order, until one of them does not pass."""
        count, pause = 0, 0.0
        until = time.monotonic() + _AT_ONCE_SECONDS
        while count < _SETTLED_AT_ONCE and time.monotonic() < until and not self._stopping:
            if self._is_too_early(line):
                pause = _SETTLING_SECONDS
                break
            try:
                settlement = await self._try_first(line)
            except Unavailable as outage:
                line.cause = outage if isinstance(outage, Failed) else line.cause
                line.tries += 1
                pause = min(2.0**line.tries, _REFUSED_SECONDS) if outage is self.refusals.everybodys else _RETRY_SECONDS
                break
            if settlement is None:
                break
            count += 1
            if self.parts.add(settlement):
                break
        line.due = time.monotonic() + pause  # behind the records that are due by now
        if count:
            self.on_answer()
            await self.parts.pass_on()
        if not line.waiting:  # nothing has joined meanwhile, so the next request of the record need not wait any more
            del self._lines[line.record]
            log.info("unparked", record=str(line.record), count=count)
        await self.parts.slices.next()

    def _is_too_early(self, line: Line[D]) -> bool:
        """Whether the first request is a suspect, and the one before it is not settled yet.

        If a suspect crashes the process, it must be the oldest message in hand.
        """
        if not line.waiting or line.last is None or not is_suspect(line.waiting[0].request.delivery):
            return False
        return self.intake.has(line.last)

    async def _try_first(self, line: Line[D]) -> Settlement[D] | None:
        """Store the first request of a record, and take it from its line. None: there is none.

        Raises:
            Unavailable: it did not pass, and stays where it is.
        """
        async with self.writes.shared():
            # Another worker may have stored later requests of the record by now. What was requeued comes again, behind.
            while line.waiting and not self.intake.has(line.waiting[0].request.delivery):
                line.waiting.popleft()
            if not line.waiting:
                return None
            settlement = await self._settlement(line, line.waiting[0].request)
            line.last = line.waiting.popleft().request.delivery
            line.tries, line.passes = 0, self.refusals.passes
            return settlement

    async def _settlement(self, line: Line[D], request: Request[D]) -> Settlement[D]:
        lock_seconds = max(0.01, 1.0 / len(self._lines))  # so that trying all of them takes about a second
        patience = Patience(lock_seconds, _SECONDS[min(line.tries, len(_SECONDS) - 1)])
        doubted = False
        while True:
            try:
                [applied] = await self.store.apply([request], patience)
            except Refused as refused:
                cause: Refused | Failed = refused
            except Failed as failed:
                line.cause = cause = failed
                if not failed.lasting:
                    raise
            else:
                self.passed(request.record)
                return settling.stored(request, applied, self.nulls)
            everybodys = await self._everybodys(cause.rule, line.passes, lasting=isinstance(cause, Failed))
            if everybodys is not None:
                self.on_outage(everybodys)
                raise everybodys.with_traceback(None)  # it is raised for each row, and would collect their tracebacks
            if doubted:
                return settling.rejected(request, Refused(cause.sqlstate).problem)
            doubted = True  # it may have been fixed since the row was tried, and before our own was

    async def _return_all(self) -> None:
        """Return everything in hand to the queue, in order: the broker does not wait for ever for what is parked."""
        seconds = self.oldest_seconds
        await self.intake.pause("parked")
        await self.parts.stored.join()
        async with self.writes.alone():
            given_back = await self.intake.requeue()
            self._lines.clear()
        log.warning("parked_too_long", given_back=given_back, seconds=round(seconds, 1))
        await self._until_accepted()
        await self.intake.resume("parked")

    async def _until_accepted(self) -> None:
        """While the database refuses every row, take nothing: each time the messages come again, it counts as a delivery."""
        waited = False
        while not self._stopping and (everybodys := self.refusals.everybodys) is not None:
            waited = True
            self._changed.clear()
            await self._until_changed(TRY_AGAIN_SECONDS)
            with suppress(Unavailable):
                found = await self.store.try_own_rows(self.refusals.accepted)
                self.refusals.tried(everybodys.rule, self.refusals.passes, time.monotonic(), found)
        if waited:
            self.on_answer()

    def _since(self) -> list[float]:
        """When the oldest message of each record was parked."""
        return [line.waiting[0].since for line in list(self._lines.values()) if line.waiting]
