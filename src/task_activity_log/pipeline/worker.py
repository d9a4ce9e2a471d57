"""The pipeline: take, decode, store, reply, settle. The only control flow that matters.

Two stages run at the same time: `Storing` writes one batch to the database while `Answering` waits for the broker to
confirm the replies of the batch before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from operator import not_
from typing import Generic, Literal, TypeAlias, TypeVar

import structlog

from task_activity_log.pipeline import reply
from task_activity_log.pipeline.batches import Parts, decode_all
from task_activity_log.pipeline.hold import Abandoned, Hold
from task_activity_log.pipeline.ports import D, DeadLetters, Intake, Replies, Settlement, Store, Watch
from task_activity_log.pipeline.request import Request, Rules
from task_activity_log.pipeline.suspects import may_mention, part
from task_activity_log.pipeline.waves import halve, waves
from task_activity_log.problem import UNREADABLE, Problem, Refused, TimedOut, Unavailable
from task_activity_log.record import Applied, Outcome, Unread

log = structlog.get_logger(__name__)

T = TypeVar("T")
Stored: TypeAlias = "asyncio.Queue[list[Settlement[D]] | None]"
"""From `Storing` to `Answering`: what must be settled, batch by batch; None at the end."""

_RETRY_SECONDS = 1.0
"""How often replies that their `reply_to` refuses are published again when no batch arrives."""


class Worker(Generic[D]):
    """Moves batches through both stages until its intake drains."""

    def __init__(
        self,
        *,
        intake: Intake[D],
        store: Store,
        dead_letters: DeadLetters[D],
        replies: Replies,
        watch: Watch,
        rules: Rules,
        batch_max: int,
        part_bytes: int = 8 * 2**20,
        nulls: Literal["emit", "omit"] = "emit",
        hold_limit_seconds: float = 600.0,
    ) -> None:
        stored: Stored[D] = asyncio.Queue(maxsize=1)
        self.store_hold, self.reply_hold = Hold("store"), Hold("reply")
        common = (intake, watch, hold_limit_seconds)
        parts = Parts(stored, part_bytes)
        self._storing = Storing(
            self.store_hold, *common, store=store, stored=stored, parts=parts, rules=rules, batch_max=batch_max,
            nulls=nulls,
        )  # fmt: skip
        # Outages of the dead-letter queue are shown as `reply` too: places are label values that dashboards use.
        self._answering = Answering(self.reply_hold, *common, dead_letters=dead_letters, replies=replies, stored=stored)

    def drain(self) -> None:
        """End each hold after one more attempt, so that `run` returns soon after the intake has no more batches."""
        self.store_hold.drain()
        self.reply_hold.drain()

    async def run(self) -> None:
        """Work until the intake drains."""
        async with asyncio.TaskGroup() as stages:
            stages.create_task(self._storing.run(), name="store")
            stages.create_task(self._answering.run(), name="answer")


class _Requeued(Exception):
    """The outage lasted longer than the hold limit, and all unsettled deliveries were requeued."""


class _WaveTimedOut(Exception):
    """The database works, but the wave took too long: it is too large, or one of its rows is locked."""


@dataclass(eq=False)
class _Stage(Generic[D]):
    """What both stages do: wait out outages."""

    hold: Hold
    intake: Intake[D]
    watch: Watch
    hold_limit_seconds: float

    async def _until_done(self, attempt: Callable[[], Awaitable[T]], *, repeatable: bool = True) -> T:
        """Try until the attempt succeeds, and back off in between.

        After the hold limit all unsettled deliveries are requeued, once, and no more are taken until an attempt succeeds.
        Replies are still tried then, because a repeated reply does no harm. A wave is not (`repeatable=False`), because
        another worker may have stored later requests of its records. Raises `Abandoned` or `_Requeued`.
        """
        requeued = False
        while True:
            try:
                result = await attempt()
            except Unavailable as outage:
                self.watch.held(self.hold.place, outage)
                await self.hold.wait(outage.reason)
                if self.hold.seconds > self.hold_limit_seconds and not requeued:
                    requeued = True
                    await self.intake.pause(self.hold.place)
                    log.warning("stood_down", place=self.hold.place, given_back=await self.intake.requeue())
                    if not repeatable:
                        raise _Requeued from outage
            except (Refused, _WaveTimedOut):
                self._release()  # the database answers
                raise
            else:
                self._release()
                if requeued:
                    await self.intake.resume(self.hold.place)
                return result

    def _release(self) -> None:
        if self.hold.reason is not None:
            self.watch.released(self.hold.place, self.hold.release())


@dataclass(eq=False, kw_only=True)
class Storing(_Stage[D]):
    """The first stage: takes batches, decodes them, stores them, and passes on what must be settled."""

    store: Store
    stored: Stored[D]
    parts: Parts[D]
    rules: Rules
    batch_max: int
    nulls: Literal["emit", "omit"]

    async def run(self) -> None:
        """Store batch after batch until the intake drains."""
        try:
            while batch := await self.intake.take(self.batch_max):
                try:
                    await self._store_batch(batch)
                except _Requeued:
                    self.parts.clear()
                    await self._until_done(self.store.probe)
                    await self.intake.resume("store")
        except Abandoned:
            log.info("batch_abandoned", stage="store")
        await self.stored.put(None)

    async def _store_batch(self, batch: Sequence[D]) -> None:
        go_on, suspects = part(batch, self.rules.poison_from)
        if suspects and self.intake.in_hand > 1:
            await self._set_apart(go_on, suspects)
        else:
            await self._store_all(batch)

    async def _set_apart(self, go_on: Sequence[D], suspects: list[D]) -> None:
        """Settle all other deliveries, then try the suspect if it is the only one left.

        Several (suspects, and requests of the same records behind them) are requeued at once, which keeps their order, and
        are delivered again one by one. A single one is not: it could go from one busy worker to the next, untried, until
        its attempts made it a poison message.
        """
        self.watch.set_apart(suspects)
        await self.intake.pause("suspect")
        try:
            await self._store_all(go_on, behind=suspects)
            while waiting := self.intake.take_waiting(self.batch_max):
                go_on, more = part(waiting, self.rules.poison_from)
                suspects += more
                await self._store_all(go_on, behind=suspects)
            await self.stored.join()
            if self.intake.in_hand == 1:
                await self._store_all(suspects)
                await self.stored.join()
            else:
                await self.intake.requeue(one_by_one=True)
        finally:
            await self.intake.resume("suspect")

    async def _store_all(self, batch: Sequence[D], behind: Sequence[D] = ()) -> None:
        """Decode and store a batch, and pass on what must be settled. Leave out what must not overtake `behind`."""
        started = time.perf_counter()
        requests, rejected = await decode_all(batch, self.rules, self.parts.slices)
        self.watch.took("decode", time.perf_counter() - started)
        await self.parts.add_all(rejected)
        if behind:
            requests = [r for r in requests if not any(may_mention(suspect, r.record.id) for suspect in behind)]
        started = time.perf_counter()
        unresolved: list[Request[D]] = []
        for wave in waves(requests):
            waiting = {request.record.id for request in unresolved}  # their later requests must not overtake them
            unresolved += await self._apply([r for r in wave if r.record.id not in waiting])
            unresolved += [r for r in wave if r.record.id in waiting]
        self.watch.took("store", time.perf_counter() - started)
        await self.parts.pass_on()
        for request in unresolved:
            await self.stored.put([await self._insist(request)])

    async def _apply(self, wave: Sequence[Request[D]]) -> list[Request[D]]:
        """Store a wave, pass on what must be settled, and return the unresolved requests.

        If the wave does not pass, it is halved, so that a row that the database refuses is found in O(log n) statements
        and all other rows are stored. A request is unresolved if it failed alone, but may pass later or not be at fault.
        """
        unresolved: list[Request[D]] = []
        parts = [wave] if wave else []
        while parts:
            some = parts.pop()
            try:
                applied = await self._until_done(partial(self._try_wave, some), repeatable=False)
            except (Refused, _WaveTimedOut) as error:
                if len(some) > 1:
                    parts += reversed(halve(some))
                elif isinstance(error, Refused) and not error.doubtful:
                    self.parts.add(_rejected(some[0], error.problem))
                else:
                    unresolved += some
            else:
                await self._answer(some, applied)
        return unresolved

    async def _answer(self, wave: Sequence[Request[D]], applied: Sequence[Applied]) -> None:
        """Build the replies to a wave that was stored, and pass them on."""
        for request, each in zip(wave, applied, strict=True):
            if isinstance(each, Unread):
                each = await self._until_done(partial(self.store.read, request, each.outcome), repeatable=False)  # noqa: PLW2901 - now it is read
            if self.parts.add(self._settlement(request, each)):
                await self.parts.relieve()

    async def _try_wave(self, wave: Sequence[Request[D]]) -> list[Applied]:
        try:
            return await self.store.apply(wave)
        except TimedOut as outage:
            await self.store.probe()  # if this fails too, the database is unavailable, whatever the wave contains
            raise _WaveTimedOut from outage

    async def _insist(self, request: Request[D]) -> Settlement[D]:
        """Store a request that did not pass alone: wait as long as it may pass, and reject it if it is at fault."""
        doubted = False
        while True:
            try:
                [applied] = await self._until_done(partial(self.store.apply, [request]), repeatable=False)
            except Refused as error:
                if doubted or not error.doubtful:
                    return _rejected(request, error.problem)
                doubted = True
                # If the worker may not write at all, this fails and holds. If it passes, the row was at fault twice.
                await self._until_done(self.store.probe, repeatable=False)
            else:
                return self._settlement(request, applied)  # a single record is never left unread

    def _settlement(self, request: Request[D], applied: Applied) -> Settlement[D]:
        if applied.outcome is Outcome.REJECTED:
            return _rejected(request, UNREADABLE)
        return Settlement(request.delivery, reply.stored(request, applied, self.nulls))


def _rejected(request: Request[D], problem: Problem) -> Settlement[D]:
    return Settlement(request.delivery, reply.rejected(request, problem), problem)


@dataclass(eq=False, kw_only=True)
class Answering(_Stage[D]):
    """The second stage: keeps dead letters, publishes replies, and acknowledges."""

    dead_letters: DeadLetters[D]
    replies: Replies
    stored: Stored[D]
    unplaced: list[Settlement[D]] = field(init=False, default_factory=list)
    """Settlements whose replies are refused at present."""

    async def run(self) -> None:
        """Settle batch after batch until the first stage ends."""
        try:
            while (batch := await self._next_batch()) is not None:
                try:
                    await self._settle(batch)
                finally:
                    self.stored.task_done()
        except Abandoned:
            log.info("batch_abandoned", stage="reply")
            # Later batches are abandoned too: the replies of one record must not overtake each other.
            while await self.stored.get() is not None:
                self.stored.task_done()

    async def _next_batch(self) -> list[Settlement[D]] | None:
        """Wait for the next batch, and try the unplaced replies again meanwhile."""
        while True:
            try:
                async with asyncio.timeout(_RETRY_SECONDS if self.unplaced else None):
                    return await self.stored.get()
            except TimeoutError:
                await self._settle([])

    async def _settle(self, batch: Sequence[Settlement[D]]) -> None:
        """Keep the dead letters, publish the replies, then acknowledge.

        Because of this order, whoever has read a reply finds the row and the dead letter in place.
        """
        started = time.perf_counter()
        rejected = [(each.delivery, each.problem) for each in batch if each.problem is not None]
        if rejected:
            await self._until_done(lambda: self.dead_letters.keep(rejected))
        owed = [*self.unplaced, *batch]
        placed = await self._until_done(lambda: self.replies.publish([each.reply for each in owed]))
        done = list(compress(owed, placed))
        self.unplaced = list(compress(owed, map(not_, placed)))
        if self.unplaced:
            await self.intake.prove([each.delivery for each in self.unplaced])
        await self.intake.acknowledge([each.delivery for each in done])
        self.watch.took("reply", time.perf_counter() - started)
        self.watch.answered(done)
